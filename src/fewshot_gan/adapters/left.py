"""LeFT: learnable factorised tensors that scale and shift weights (LFS-GAN §3.2, arXiv 2308.11917).

Shape legend: O/I outputs and inputs, k kernel size, r rank.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from .base import Adapted, Adapter, Factors
from .spec import LayerSpec
from .trainable import RankOptions

# Differs from the paper, where both factors of an additive pair start at zero, so that neither ever gets a gradient.
# Here one factor of each pair starts as small noise; the product is still exactly zero.
ADDITIVE_STD = 0.1


class ConvFactors(Factors):
    """Ŵ[o,i,κ] = W[o,i,κ] · γ[o,i,κ] + β[i,κ] with γ and β factorised (§3.2)."""

    def __init__(self, spec: LayerSpec, rank: int, use_activation: bool):
        super().__init__()
        out, inn, k2 = spec.shape[0], spec.shape[1], spec.shape[2] * spec.shape[3]
        scale = rank ** (-2 / 3)
        self.mul_out = nn.Parameter(torch.full((out, rank), scale, dtype=torch.float32, device="cpu"))
        self.mul_core = nn.Parameter(torch.full((rank, rank, k2), scale, dtype=torch.float32, device="cpu"))
        self.mul_in = nn.Parameter(torch.full((inn, rank), scale, dtype=torch.float32, device="cpu"))
        self.add_out = nn.Parameter(torch.zeros(out, rank, dtype=torch.float32, device="cpu"))
        self.add_core = nn.Parameter(torch.randn(k2, rank, dtype=torch.float32, device="cpu") * ADDITIVE_STD)
        self.add_in = nn.Parameter(torch.zeros(inn, rank, dtype=torch.float32, device="cpu"))
        self.add_kernel = nn.Parameter(torch.randn(k2, rank, dtype=torch.float32, device="cpu") * ADDITIVE_STD)
        self.use_activation = use_activation

    def inner(self):
        """Return m1[s,o,κ] = Σ_t u[o,t] c[s,t,κ] + Σ_t a[o,t] p[κ,t], through a ReLU if there is one."""
        m1 = torch.einsum("ot,stk->sok", self.mul_out, self.mul_core) + self.add_out @ self.add_core.t()
        return m1.relu() if self.use_activation else m1

    def change(self):
        factors = {"mul_in": self.mul_in, "add_in": self.add_in, "add_kernel": self.add_kernel}
        return {**factors, "mul_core": self.inner()}

    def forward(self, weight, bias):
        gamma = torch.einsum("is,sok->oik", self.mul_in, self.inner()).reshape(weight.shape)
        beta = (self.add_in @ self.add_kernel.t()).reshape(weight.shape[1:])
        return Adapted(weight * gamma + beta, bias)


class LinearFactors(Factors):
    """Ŵ = W ⊙ (U Vᵀ) + A Bᵀ and b̂ = b ⊙ m + s (§3.2)."""

    def __init__(self, spec: LayerSpec, rank: int):
        super().__init__()
        out, inn = spec.shape
        self.mul_out = nn.Parameter(torch.full((out, rank), rank**-0.5, dtype=torch.float32, device="cpu"))
        self.mul_in = nn.Parameter(torch.full((inn, rank), rank**-0.5, dtype=torch.float32, device="cpu"))
        self.add_out = nn.Parameter(torch.zeros(out, rank, dtype=torch.float32, device="cpu"))
        self.add_in = nn.Parameter(torch.randn(inn, rank, dtype=torch.float32, device="cpu") * ADDITIVE_STD)
        if spec.bias:
            self.bias_mul = nn.Parameter(torch.ones(out, dtype=torch.float32, device="cpu"))
            self.bias_add = nn.Parameter(torch.zeros(out, dtype=torch.float32, device="cpu"))

    def forward(self, weight, bias):
        weight = weight * (self.mul_out @ self.mul_in.t()) + self.add_out @ self.add_in.t()
        if bias is not None:
            bias = bias * self.bias_mul + self.bias_add
        return Adapted(weight, bias)


class ElementwiseFactors(Factors):
    """Full rank: Ŵ = W ⊙ γ + β with one γ and β per weight; biases of linear layers likewise."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(spec.shape, dtype=torch.float32, device="cpu"))
        self.beta = nn.Parameter(torch.zeros(spec.shape, dtype=torch.float32, device="cpu"))
        self.modulates_bias = spec.bias and len(spec.shape) == 2
        if self.modulates_bias:
            self.bias_mul = nn.Parameter(torch.ones(spec.shape[0], dtype=torch.float32, device="cpu"))
            self.bias_add = nn.Parameter(torch.zeros(spec.shape[0], dtype=torch.float32, device="cpu"))

    def forward(self, weight, bias):
        if self.modulates_bias and bias is not None:
            bias = bias * self.bias_mul + self.bias_add
        return Adapted(weight * self.gamma + self.beta, bias)


class LeFTAdapter(Adapter):
    """Learnable factorised tensors (arXiv 2308.11917) for mapping, affine and linear layers, convolutions and to_rgb.

    They act on the raw stored weight, before equalised-lr gain, style and demodulation. Identity at initialisation.

    Args:
        rank: r ≥ 1; None: one γ and one β per weight.
        use_activation: apply a ReLU to the inner product of the multiplicative factors, as in the paper.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.
        latents_shape: shape of `Adapter.latents`, for an adapter of a person; None: it has none.

    Raises:
        ValueError: rank below 1, or another shape.
    """

    adapter_type = "left"
    Options = RankOptions
    roles = ("mapping", "affine", "linear", "conv", "depthwise", "skip", "to_rgb")

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        rank: int | None = 1,
        use_activation: bool = True,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
        latents_shape: list[int] | None = None,
    ):
        super().__init__()
        if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise ValueError(f"rank={rank}: give 1 or more, or None for one factor per weight")
        self.rank, self.use_activation = rank, use_activation
        self._build(target_modules, latents_shape)

    @classmethod
    def fresh(cls, generator, options, **settings) -> "LeFTAdapter":
        chosen = {} if options.rank is None else {"rank": options.rank or None}
        return cls.for_model(generator, **chosen, **settings)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        if self.rank is None:
            return ElementwiseFactors(spec)
        if len(spec.shape) == 2:
            return LinearFactors(spec, self.rank)
        return ConvFactors(spec, self.rank, self.use_activation)
