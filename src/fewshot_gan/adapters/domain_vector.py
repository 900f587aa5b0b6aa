"""Domain vector: one number per input channel of each styled convolution (HyperDomainNet, arXiv 2210.08884, §3).

StyleGAN2 at 1024 px takes 6,048 numbers, at 256 px 5,760.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..models.layers import EffectiveWeight
from .base import Adapter, Factors, LayerSpec

PLACEMENTS = ("post_demod", "pre_demod")


class DomainVectorFactors(Factors):
    """δ `[I]`: input channels are scaled by 1 + δ, after or before demodulation."""

    def __init__(self, spec: LayerSpec, placement: str):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(spec.shape[1]))
        self.placement, self.folded = placement, spec.demodulation == "folded"

    def forward(self, weight, bias):
        if self.placement == "post_demod":
            return EffectiveWeight(weight, bias, 1 + self.delta)
        scaled = weight * (1 + self.delta).to(weight.dtype)[:, None, None]
        if self.folded:  # the norm is already in the stored weight: keep each filter's
            before, after = (w.float().square().sum((1, 2, 3), keepdim=True) for w in (weight, scaled))
            scaled = scaled * (before / (after + 1e-12)).sqrt().to(scaled.dtype)
        return EffectiveWeight(scaled, bias)


class DomainVectorAdapter(Adapter):
    """Domain vector d = 1 + δ (arXiv 2210.08884); δ = 0 is the identity.

    Args:
        placement: "post_demod" multiplies the demodulated weight, as the released code does; "pre_demod" the weight
            before demodulation, as the paper's figure shows. They differ materially.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.

    Raises:
        ValueError: unknown placement.
    """

    adapter_type = "domain_vector"
    roles = ("conv",)

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        placement: str = "post_demod",
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        if placement not in PLACEMENTS:
            raise ValueError(f"unknown placement {placement!r}; known: {', '.join(PLACEMENTS)}")
        self.placement = placement
        self._build(target_modules)

    def make_factors(self, spec: LayerSpec) -> Factors:
        return DomainVectorFactors(spec, self.placement)
