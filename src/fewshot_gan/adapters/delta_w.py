"""Δw: a shift of w, the same for all pictures, as a change of the biases of affine layers (WeditGAN, arXiv 2305.06671).

A style is A(w) = W·w + b, so that A(w + Δw) = W·w + (b + W·Δw). The shift is therefore a function on stored biases, and
blends with other adapters like any other.

Shape legend: O/I outputs and inputs of an affine layer; I is `w_dim`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..utils.frozen import Frozen
from ..utils.random import seeded
from .base import Adapted, Adapter, Factors
from .spec import LayerSpec

SAMPLES = 4096  # latents over which the covariance of w is computed
PENALTY = 1e-4  # weight of the regulariser, as in the paper


class DeltaWFactors(Factors):
    """b̂ = b + W·Δw/√I, where 1/√I is the gain of weights under equalised learning rate (arXiv 1710.10196 §4.1).

    Args:
        spec: of the layer.
        first: factors whose Δw this layer shares; None: it has a Δw of its own.
    """

    def __init__(self, spec: LayerSpec, first: "DeltaWFactors | None" = None):
        super().__init__()
        self.first = Frozen(first)
        if first is None:
            self.delta = nn.Parameter(torch.zeros(spec.shape[1], dtype=torch.float32, device="cpu"))

    @property
    def shift(self) -> torch.Tensor:
        """Δw `[I]`."""
        return self.delta if self.first.value is None else self.first.value.delta

    def tensors(self) -> list[torch.Tensor]:
        return [self.shift]

    def _apply(self, fn, recurse=True):
        if self.first.value is not None:  # offloading moves the factors of one layer
            self.first.value._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, weight, bias):
        kind = torch.promote_types(weight.dtype, self.shift.dtype)
        shift = weight.to(kind) @ self.shift.to(kind) / weight.shape[1] ** 0.5
        return Adapted(weight, None if bias is None else bias + shift.to(bias.dtype))


@dataclass(frozen=True)
class DeltaWOptions:
    """Options of a new Δw adapter.

    Attributes:
        shared: one Δw for all layers.
    """

    shared: bool | None = field(default=None, metadata={"help": "one shift of w for all layers; default: one for each"})


class DeltaWAdapter(Adapter):
    """Shift of w (arXiv 2305.06671, §3.2); Δw = 0 is the identity.

    Args:
        shared: one Δw `[w_dim]` for all layers, as a shift in W; otherwise one for each affine layer, as in W+.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.

    Raises:
        ValueError: a layer that is no affine layer with a bias.
    """

    adapter_type = "delta_w"
    Options = DeltaWOptions
    roles = ("affine",)

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        shared: bool = False,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        self.shared = shared
        self._first: Frozen[DeltaWFactors | None] = Frozen(None)
        self._covariance: Frozen[torch.Tensor | None] = Frozen(None)
        self._build(target_modules)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        if spec.role != "affine" or len(spec.shape) != 2 or not spec.bias:
            raise ValueError(f"delta_w shifts the biases of affine layers; {path} is of role {spec.role!r}")
        if self.shared and self._first.value is not None:
            return DeltaWFactors(spec, self._first.value)
        self._first.value = DeltaWFactors(spec)
        return self._first.value

    @classmethod
    def fresh(cls, generator: Any, options, **settings) -> "DeltaWAdapter":
        adapter: Any = super().fresh(generator, options, **settings)
        z = torch.randn(SAMPLES, generator.z_dim, generator=seeded(0), dtype=torch.float32, device="cpu")
        with torch.no_grad():
            w = generator.mapping(z.to(generator.device, generator.dtype))[:, 0].float()
        adapter._covariance.value = torch.cov(w.T)
        return adapter

    def penalty(self, step: int) -> torch.Tensor | None:
        """Return the regulariser of §3.3: 1e-4 times the mean of ⟨w_i − w_j, Δw⟩² over random w, summed over Δw.

        It keeps the shift perpendicular to the directions in which latents differ. The mean is 2·Δwᵀ Cov(w) Δw.
        """
        if self._covariance.value is None:
            return None
        shifts = torch.stack(list(self.parameters()))
        covariance = self._covariance.value.to(shifts.device)
        return PENALTY * 2 * ((shifts @ covariance) * shifts).sum()
