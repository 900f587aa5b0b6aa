"""GAN Memory: normalised weights with a scale and shift per filter (NeurIPS 2020, arXiv 2006.07543 §3.1)."""

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from .base import Adapted, Adapter, Factors, LayerSpec
from .full import FullFactors


class ModulationFactors(Factors):
    """Ŵ = γ ⊙ (W − μ) / σ + β and b̂ = b + b_t; γ = σ, β = μ and b_t = 0 at first.

    μ and σ (unbiased) are taken per filter over its k×k taps (mAdaFM), γ, β `[O, I, 1, 1]`; where there are no taps to
    take them over, per output row of the matrix (mFiLM), γ, β `[O, 1]` or `[O, 1, 1, 1]`.
    """

    def __init__(self, spec: LayerSpec):
        super().__init__()
        self.dims = (2, 3) if len(spec.shape) == 4 and spec.shape[2] > 1 else tuple(range(1, len(spec.shape)))
        shape = [1 if i in self.dims else n for i, n in enumerate(spec.shape)]
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.bias_shift = nn.Parameter(torch.zeros(spec.shape[0])) if spec.bias else None

    def initialise(self, weight, bias):
        self.beta.copy_(weight.mean(self.dims, keepdim=True))
        self.gamma.copy_(weight.std(self.dims, keepdim=True))

    def forward(self, weight, bias):
        mean, std = weight.mean(self.dims, keepdim=True), weight.std(self.dims, keepdim=True)
        # Differs from the reference: a filter whose taps are all equal has σ = 0 and gives β there, not NaN.
        weight = self.gamma * ((weight - mean) / std.clamp_min(torch.finfo(std.dtype).tiny)) + self.beta
        return Adapted(weight, bias if self.bias_shift is None else bias + self.bias_shift)


class GANMemoryAdapter(Adapter):
    """GAN Memory's mAdaFM and mFiLM (arXiv 2006.07543), without the compression of γ and β across tasks.

    The paper modulates the fully connected layer and the 3×3 convolutions of a GP-GAN; in style-based networks mapping,
    affines and all convolutions but the image head's take their place.

    Args:
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.
    """

    adapter_type = "gan_memory"
    roles = ("mapping", "affine", "linear", "conv", "depthwise", "bias")

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        self._build(target_modules)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        # a module that owns a bias alone: b̂ = b + b_t
        return FullFactors(spec) if spec.role == "bias" else ModulationFactors(spec)
