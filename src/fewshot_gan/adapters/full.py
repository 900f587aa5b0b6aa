"""Full difference: what fine-tuning added to each weight, as float16. All smaller types are compared with it."""

from typing import cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..models.layers import adaptable_layers
from .base import Adapted, Adapter, Factors, select_layers
from .spec import LayerSpec


class BiasDifference(Factors):
    """b̂ = b + Δb, for factors that change the weight in their own way; Δb starts at 0."""

    def add_bias_delta(self, spec: LayerSpec) -> None:
        """Make Δb, after the parameters of the weight: optimisers number parameters in the order of their making."""
        self.bias_delta = (
            nn.Parameter(torch.zeros(spec.shape[0], dtype=torch.float32, device="cpu")) if spec.bias else None
        )

    def shifted(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return b̂, or None for a layer without bias."""
        return bias if bias is None or self.bias_delta is None else bias + self.bias_delta


class FullFactors(BiasDifference):
    """Ŵ = W + ΔW and b̂ = b + Δb; both differences start at 0."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        self.weight_delta = nn.Parameter(torch.zeros(spec.shape, dtype=torch.float32, device="cpu"))
        self.add_bias_delta(spec)

    def forward(self, weight, bias):
        return Adapted(weight + self.weight_delta, self.shifted(bias))


class FullAdapter(Adapter):
    """Differences of weights and biases; by default of every parameter of the network.

    Args:
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.
        latents_shape: shape of `Adapter.latents`, for an adapter of a person; None: it has none.
    """

    adapter_type = "full"
    roles = (
        *("mapping", "affine", "linear", "embedding", "conv", "depthwise", "skip", "to_rgb", "from_rgb"),
        *("const", "noise", "norm", "bias"),
    )

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
        latents_shape: list[int] | None = None,
    ):
        super().__init__()
        self._build(target_modules, latents_shape)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        return FullFactors(spec)

    @classmethod
    @torch.no_grad()
    def difference(cls, base: nn.Module, tuned: nn.Module, **options) -> "FullAdapter":
        """Return the adapter that turns `base` into `tuned`, rounded to float16, for the layers that changed.

        Args:
            base: the base network.
            tuned: the same network after fine-tuning.
            options: of the class.

        Raises:
            ValueError: the architectures differ, a buffer changed, which no adapter can hold, or nothing changed.
        """
        own, other = base.state_dict(), tuned.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in other.items()}:
            raise ValueError("base and tuned network differ in their tensors; give two of one architecture and size")
        if moved := [name for name, buffer in base.named_buffers() if not torch.equal(buffer, tuned.get_buffer(name))]:
            raise ValueError(f"{', '.join(moved)} changed too, which no adapter can hold; save the whole network")
        layers = dict(adaptable_layers(tuned))
        changed = {
            path: [
                None if new is None or old is None else new - old
                for new, old in zip(layers[path].stored(), layer.stored(), strict=True)
            ]
            for path, layer in select_layers(base, cls.roles).items()
        }
        changed = {path: delta for path, delta in changed.items() if any(d is not None and d.any() for d in delta)}
        if not changed:
            raise ValueError("base and tuned network are the same; there is no difference to store")
        adapter = cls.for_model(base, target_modules=list(changed), **options)
        for path, factors in adapter.factors().items():
            parameters = cast(FullFactors, factors).weight_delta, cast(FullFactors, factors).bias_delta
            for parameter, delta in zip(parameters, changed[path], strict=True):
                if parameter is not None and delta is not None:
                    parameter.copy_(delta)
        adapter.round_to_half()
        return adapter
