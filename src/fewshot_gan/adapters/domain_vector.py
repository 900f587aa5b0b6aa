"""Domain vector: values that rescale the channels of styled convolutions (HyperDomainNet, arXiv 2210.08884, §3).

The paper has one value per input channel: 6,048 values for StyleGAN2 at 1024 px, 5,760 at 256 px.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from .base import Adapted, Adapter, Factors
from .spec import LayerSpec

PLACEMENTS = ("post_demod", "pre_demod")
PARAMETRIZATIONS = ("input", "output", "separable", "full")


class DomainVectorFactors(Factors):
    """Weights × (1 + δ), δ per input channel `[I]`, per output channel `[O]`, their sum, or per filter `[O, I]`."""

    def __init__(self, spec: LayerSpec, parametrization: str, placement: str):
        super().__init__()
        out, inn = spec.shape[:2]
        if parametrization in ("input", "separable"):
            self.delta = nn.Parameter(torch.zeros(inn, dtype=torch.float32, device="cpu"))
        if parametrization in ("output", "separable"):
            self.delta_out = nn.Parameter(torch.zeros(out, dtype=torch.float32, device="cpu"))
        if parametrization == "full":
            self.delta_filter = nn.Parameter(torch.zeros(out, inn, dtype=torch.float32, device="cpu"))
        self.parametrization, self.placement = parametrization, placement
        self.folded = spec.demodulation == "folded"

    def change(self):
        after = self.placement == "post_demod"
        if self.parametrization in ("input", "output") if after else self.folded:
            return None
        gain = self.gain()
        return {"gain" if after else "scale": gain.expand(*(1,) * (4 - gain.ndim), *gain.shape)[..., 0, 0]}

    def forward(self, weight, bias):
        if self.placement == "post_demod":
            if self.parametrization == "input":
                return Adapted(weight, bias, input_scale=1 + self.delta)
            if self.parametrization == "output":
                return Adapted(weight, bias, output_scale=1 + self.delta_out)
            return Adapted(weight, bias, filter_scale=self.gain())
        scaled = weight * self.gain().to(weight.dtype)
        if self.folded:  # the stored weight is already normalised: keep the norm of each filter
            before, after = (w.float().square().sum((1, 2, 3), keepdim=True) for w in (weight, scaled))
            scaled = scaled * (before / (after + 1e-12)).sqrt().to(scaled.dtype)
        return Adapted(scaled, bias)

    def gain(self) -> torch.Tensor:
        """Return 1 + δ, in a shape that broadcasts to `[O, I, 1, 1]`."""
        if self.parametrization == "full":
            return 1 + self.delta_filter[:, :, None, None]
        total: Any = 1
        if self.parametrization != "output":
            total = total + self.delta[:, None, None]
        if self.parametrization != "input":
            total = total + self.delta_out[:, None, None, None]
        return total


@dataclass(frozen=True)
class DomainVectorOptions:
    """Options of a new domain vector, see `DomainVectorAdapter`."""

    placement: str | None = field(
        default=None, metadata={"choices": list(PLACEMENTS), "help": "where a domain vector acts: default post_demod"}
    )
    parametrization: str | None = field(
        default=None, metadata={"choices": list(PARAMETRIZATIONS), "help": "what a domain vector scales: default input"}
    )


class DomainVectorAdapter(Adapter):
    """Domain vector d = 1 + δ (arXiv 2210.08884); δ = 0 is the identity.

    Args:
        placement: "post_demod" multiplies the demodulated weight, as the released code does; "pre_demod" multiplies the
            weight before demodulation, as the paper's figure shows. The pictures differ clearly.
        parametrization: "input": one δ per input channel, as in the paper; "output": one per output channel;
            "separable": 1 + δ_in + δ_out; "full": one per filter. With the first two, rows of a batch with different
            vectors share their convolutions.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.

    Raises:
        ValueError: unknown placement or parametrization, or a layer that is no dense convolution.
    """

    adapter_type = "domain_vector"
    Options = DomainVectorOptions
    roles = ("conv",)

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        placement: str = "post_demod",
        parametrization: str = "input",
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        if placement not in PLACEMENTS:
            raise ValueError(f"unknown placement {placement!r}; known: {', '.join(PLACEMENTS)}")
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"unknown parametrization {parametrization!r}; known: {', '.join(PARAMETRIZATIONS)}")
        if parametrization == "output" and placement == "pre_demod":
            raise ValueError(
                "parametrization='output' before demodulation does nothing, since demodulation undoes it; "
                "use placement='post_demod'"
            )
        self.placement, self.parametrization = placement, parametrization
        self._build(target_modules)

    @property
    def only_scales(self) -> bool:
        return self.placement == "post_demod" and self.parametrization in ("input", "output")

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        if spec.role not in ("conv", "to_rgb"):
            raise ValueError(f"domain vectors act on dense convolutions; {path} is of role {spec.role!r}")
        return DomainVectorFactors(spec, self.parametrization, self.placement)
