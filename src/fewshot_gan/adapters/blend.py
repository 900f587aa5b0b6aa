"""Blend: several adapters with their weights, stored and used as one; `add_weighted_adapter` makes it."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..utils.frozen import Frozen
from .base import Adapted, Adapter, Factors, combine
from .io import known_settings
from .looks import TOO_LARGE
from .registry import adapter_class


class BlendFactors(Factors):
    """W + Σ α_k (f_k(W) − W) of one layer, over factors f_k that belong to the blended adapters.

    Args:
        parts: `(f_k, α_k)` of each adapter.
    """

    def __init__(self, parts: list[tuple[Factors, float]]):
        super().__init__()
        self.parts = Frozen(parts)  # submodules of their own adapters

    def tensors(self):
        return [tensor for factors, _ in self.parts.value for tensor in factors.tensors()]

    def forward(self, weight, bias) -> Adapted:
        return combine(self.parts.value, weight, bias)


class BlendAdapter(Adapter):
    """Several adapters of one base as one. It is exact for all types, and as large as its parts together.

    Args:
        parts: `{"adapter_type": …, **its settings}` of each part.
        weights: module path → α, for each part.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.

    Raises:
        ValueError: an unknown type, or not one set of weights per part.
    """

    adapter_type = "blend"
    roles = ()
    trainable = False

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        parts: list[dict],
        weights: list[dict[str, float]],
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        if len(parts) != len(weights) or not parts:
            raise ValueError(f"a blend has one set of weights per part, got {len(weights)} for {len(parts)}")
        self.members = nn.ModuleList()
        for settings in map(dict, parts):
            cls = adapter_class(settings.pop("adapter_type"), "a part of a blend")
            self.members.append(cls(**known_settings(cls, settings, "a part of a blend")))
        self.weights = [dict(by_path) for by_path in weights]
        for part, by_path in zip(self.part_adapters, self.weights, strict=True):
            if by_path.keys() != part.config.target_modules.keys():
                raise ValueError("the weights of a blend's part name other layers than the part adapts")
            if not all(isinstance(w, int | float) and abs(w) < TOO_LARGE for w in by_path.values()):
                raise ValueError("a weight of a blend's part is no finite number")
        union = {path: spec for part in self.part_adapters for path, spec in part.config.target_modules.items()}
        if _comparable(union) != _comparable(target_modules):
            raise ValueError("the target_modules of a blend are not those of its parts")

    @property
    def part_adapters(self) -> list[Adapter]:
        """The blended adapters."""
        return cast(list[Adapter], list(self.members))

    @property
    def latents(self) -> torch.Tensor | None:
        """Those of the first blended adapter that has any, or None."""
        return next((part.latents for part in self.part_adapters if part.latents is not None), None)

    @property
    def only_scales(self) -> bool:
        return all(part.only_scales for part in self.part_adapters)

    def factors(self) -> dict[str, Factors]:
        layers: dict[str, list[tuple[Factors, float]]] = {}
        for part, by_path in zip(self.part_adapters, self.weights, strict=True):
            for path, factors in part.factors().items():
                if by_path[path]:
                    layers.setdefault(path, []).append((factors, by_path[path]))
        return {path: BlendFactors(parts) for path, parts in layers.items()}

    def check(self) -> None:
        for part in self.part_adapters:
            part.check()

    @classmethod
    def for_model(cls, model, **options):
        raise NotImplementedError("a blend is made from loaded adapters: use add_weighted_adapter")

    @classmethod
    def of(cls, adapters: Sequence[Adapter], weights: Sequence[Mapping[str, float]]) -> "BlendAdapter":
        """Return the blend of copies of adapters.

        Args:
            adapters: of one base.
            weights: module path → α, for each adapter.
        """
        no_base = {"base_model_name_or_path": None, "base_fingerprint": None}
        base = {key: next((a.config[key] for a in adapters if a.config[key] is not None), None) for key in no_base}
        blend = cls(
            target_modules={path: spec for a in adapters for path, spec in a.config.target_modules.items()},
            parts=[{"adapter_type": a.adapter_type, **a.settings(), **no_base} for a in adapters],
            weights=[dict(by_path) for by_path in weights],
            **base,
        )
        for part, adapter in zip(blend.members, adapters, strict=True):
            part.load_state_dict(adapter.state_dict())
        return blend.eval().requires_grad_(False)


def _comparable(target_modules: Mapping[str, dict]) -> dict:
    """Return target modules with their shapes as lists, as JSON has them."""
    return {path: {**spec, "shape": list(spec["shape"])} for path, spec in target_modules.items()}
