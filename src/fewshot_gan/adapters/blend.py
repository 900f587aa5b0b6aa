"""Blend: several adapters with their weights, stored and used as one. What `add_weighted_adapter` makes."""

from collections.abc import Mapping, Sequence

from diffusers.configuration_utils import register_to_config
from torch import nn

from .base import Adapted, Adapter, Factors, combine
from .io import known_settings
from .registry import adapter_class


class BlendFactors(Factors):
    """W + Σ α_k (f_k(W) − W) of one layer, over factors that belong to the parts."""

    def __init__(self, parts: list[tuple[Factors, float]]):
        super().__init__()
        self.parts = parts  # a list: they are registered in their own adapters

    def tensors(self):
        return [tensor for factors, _ in self.parts for tensor in factors.tensors()]

    def forward(self, weight, bias) -> Adapted:
        return combine(self.parts, weight, bias)


class BlendAdapter(Adapter):
    """Several adapters of one base as one. Exact for all kinds; its size is the sum of its parts'.

    Args:
        parts: `{"adapter_type": …, **its settings}` of each part.
        weights: of each part: module path → α.
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
        for config in map(dict, parts):
            kind = config.pop("adapter_type")
            part_class = adapter_class(kind, "a part of a blend")
            self.members.append(part_class(**known_settings(part_class, config, "a part of a blend")))
        self.weights = [dict(of_layers) for of_layers in weights]
        for part, of_layers in zip(self.members, self.weights, strict=True):
            if of_layers.keys() != part.config.target_modules.keys():
                raise ValueError("the weights of a blend's part name other layers than the part adapts")
            if not all(isinstance(w, int | float) and abs(w) < 1e30 for w in of_layers.values()):
                raise ValueError("a weight of a blend's part is no finite number")
        union = {path: spec for part in self.members for path, spec in part.config.target_modules.items()}
        if _plain(union) != _plain(target_modules):
            raise ValueError("the target_modules of a blend are not those of its parts")

    @property
    def only_scales(self) -> bool:
        return all(part.only_scales for part in self.members)

    def factors(self) -> dict[str, Factors]:
        layers: dict[str, list] = {}
        for part, weights in zip(self.members, self.weights, strict=True):
            for path, factors in part.factors().items():
                if weights[path]:
                    layers.setdefault(path, []).append((factors, weights[path]))
        return {path: BlendFactors(parts) for path, parts in layers.items()}

    def check(self) -> None:
        for part in self.members:
            part.check()

    @classmethod
    def for_model(cls, model, **options):
        raise NotImplementedError("a blend is made from loaded adapters: use add_weighted_adapter")

    @classmethod
    def of(cls, adapters: Sequence[Adapter], weights: Sequence[Mapping[str, float]]) -> "BlendAdapter":
        """The blend of `adapters`, copied, each with its module path → α."""
        unbound = {"base_model_name_or_path": None, "base_fingerprint": None}
        base = {key: next((a.config[key] for a in adapters if a.config[key] is not None), None) for key in unbound}
        blend = cls(
            target_modules={path: spec for a in adapters for path, spec in a.config.target_modules.items()},
            parts=[{"adapter_type": a.adapter_type, **a.settings(), **unbound} for a in adapters],
            weights=[dict(of_layers) for of_layers in weights],
            **base,
        )
        for part, adapter in zip(blend.members, adapters, strict=True):
            part.load_state_dict(adapter.state_dict())
        return blend.eval().requires_grad_(False)


def _plain(target_modules: Mapping[str, dict]) -> dict:
    return {path: {**spec, "shape": list(spec["shape"])} for path, spec in target_modules.items()}
