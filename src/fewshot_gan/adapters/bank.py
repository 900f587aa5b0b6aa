"""Many adapters in one generator: which are loaded and how strongly each acts. Stored weights are never written."""

from contextlib import contextmanager

import torch
from torch import nn

from ..models.layers import EffectiveWeight, adaptable_layers
from .base import Adapter, fingerprint


class LayerBlend:
    """Effective weight of one layer under several adapters: Ŵ = W + Σ_k α_k (f_k(W) − W), likewise bias and scale.

    Args:
        parts: `(factors, α)` pairs.
    """

    def __init__(self, parts):
        self.parts = parts

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        if len(self.parts) == 1 and self.parts[0][1] == 1:
            return self.parts[0][0](weight, bias)  # exact: no rounding of W + (f(W) − W)
        total_weight, total_bias, total_scale = weight, bias, None
        for factors, alpha in self.parts:
            new_weight, new_bias, scale = factors(weight, bias)
            if new_weight is not weight:
                total_weight = total_weight + alpha * (new_weight - weight)
            if new_bias is not bias:
                total_bias = total_bias + alpha * (new_bias - bias)
            if scale is not None:
                total_scale = (1 if total_scale is None else total_scale) + alpha * (scale - 1)
        return EffectiveWeight(total_weight, total_bias, total_scale)


class AdapterBank:
    """The adapters of one generator.

    Args:
        model: a generator with `AdaptableLayer`s.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.active: dict[str, float] = {}
        self.enabled = True
        self._layers = dict(adaptable_layers(model))

    def add(self, name: str, adapter: Adapter) -> None:
        """Load `adapter` under `name` (replacing one of that name) without activating it.

        Raises:
            ValueError: it was made for another base: layers are missing, shapes differ, or the fingerprint does.
        """
        for path, spec in adapter.config.target_modules.items():
            layer = self._layers.get(path)
            if layer is None or tuple(layer.weight.shape) != tuple(spec["shape"]):
                found = "no such layer" if layer is None else f"shape {tuple(layer.weight.shape)}"
                raise ValueError(
                    f"adapter {name!r} does not fit this {type(self.model).__name__}: it adapts {path} of shape "
                    f"{tuple(spec['shape'])}, here {found}; {self._way_out(adapter)}"
                )
        wanted = adapter.config.base_fingerprint
        if wanted is not None and wanted != (have := fingerprint(self.model)):
            raise ValueError(
                f"adapter {name!r} was trained on {adapter.config.base_model_name_or_path!r} (fingerprint {wanted}), "
                f"not on this generator (fingerprint {have}); {self._way_out(adapter)}"
            )
        self.adapters[name] = adapter.to(next(self.model.parameters()).device)
        self._install()

    @staticmethod
    def _way_out(adapter: Adapter) -> str:
        base = adapter.config.base_model_name_or_path
        return f"load its base with FewShotGAN.from_pretrained({base!r})" if base else "load the base it was made for"

    def remove(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            ValueError: there is none of that name.
        """
        self.check([name])
        del self.adapters[name]
        self.active.pop(name, None)
        self._install()

    def activate(self, names: dict[str, float]) -> None:
        """Let exactly these adapters act, each with its weight α (any number: 0 = off, beyond 0…1 extrapolates).

        Raises:
            ValueError: an adapter is not loaded.
        """
        self.check(names)
        self.active = dict(names)
        self._install()

    def enable(self, enabled: bool = True) -> None:
        """Switch all active adapters off without forgetting which they are, or on again."""
        self.enabled = enabled
        self._install()

    @contextmanager
    def using(self, names: dict[str, float]):
        """Activate `names` for the duration of a `with` block."""
        before = self.active, self.enabled
        try:
            self.enabled = True
            self.activate(names)
            yield
        finally:
            self.active, self.enabled = before
            self._install()

    def to(self, device) -> None:
        for adapter in self.adapters.values():
            adapter.to(device)

    def check(self, names) -> None:
        """Refuse names that are not loaded.

        Raises:
            ValueError: the first such name, with those that are loaded.
        """
        for name in names:
            if name not in self.adapters:
                loaded = ", ".join(map(repr, self.adapters)) or "none"
                raise ValueError(f"adapter {name!r} is not loaded; loaded: {loaded}; load it with load_adapter")

    def _install(self) -> None:
        parts: dict[str, list] = {}
        if self.enabled:
            for name, alpha in self.active.items():
                for path, factors in self.adapters[name].factors().items():
                    parts.setdefault(path, []).append((factors, float(alpha)))
        for path, layer in self._layers.items():
            layer.adaptation = LayerBlend(parts[path]) if path in parts else None
