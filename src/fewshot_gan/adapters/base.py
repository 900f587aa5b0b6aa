"""What an adapter is: for each adapted layer a function from stored to effective weight, and a file that holds it.

An adapter knows module paths and weight shapes of its base, no model class and no loss. On disk it is
`adapter_config.json` + `adapter_model.safetensors` (keys are module path + factor name) + `README.md`.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from ..models.layers import AdaptableLayer, adaptable_layers
from ..utils.hashing import fingerprint
from .io import AdapterFiles
from .registry import REGISTRY
from .spec import LayerSpec
from .trainable import Trainable


class Adapted(NamedTuple):
    """What an adapter makes of one layer. Scales act after demodulation, None = 1; they add up when adapters blend."""

    weight: torch.Tensor  # as stored; the very tensor given where the adapter leaves it alone
    bias: torch.Tensor | None = None  # [O]
    input_scale: torch.Tensor | None = None  # [I]
    output_scale: torch.Tensor | None = None  # [O]
    filter_scale: torch.Tensor | None = None  # [O, I, 1, 1]


class Factors(nn.Module):
    """The learned tensors of one layer; `forward(weight, bias)` gives what becomes of that layer."""

    def forward(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Adapted:
        raise NotImplementedError

    def change(self) -> dict[str, torch.Tensor] | None:
        """`forward` of a convolution's weight in the terms of the kernel `modulate_weight`; None: it has none."""
        return None

    def tensors(self) -> list[torch.Tensor]:
        """What `forward` depends on besides its arguments."""
        own = [*self._parameters.values(), *self._buffers.values()]
        return [tensor for tensor in own if tensor is not None]

    def initialise(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Become the identity for this stored weight and bias; kinds whose identity is known without them need none."""


def combine(parts: Iterable[tuple[Factors, float]], weight: torch.Tensor, bias: torch.Tensor | None) -> Adapted:
    """W + Σ α_k (f_k(W) − W) over `(f_k, α_k)`; likewise the bias, and 1 + Σ α_k (s_k − 1) for each kind of scale."""
    parts = list(parts)
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0](weight, bias)  # exact: no rounding of W + (f(W) − W)
    total_weight, total_bias, scales = weight, bias, [None, None, None]
    for factors, alpha in parts:
        new = factors(weight, bias)
        if new.weight is not weight:
            total_weight = total_weight + alpha * (new.weight - weight)
        if new.bias is not bias:
            total_bias = total_bias + alpha * (new.bias - bias)
        for i, scale in enumerate(new[2:]):
            if scale is not None:
                scales[i] = (1 if scales[i] is None else scales[i]) + alpha * (scale - 1)
    return Adapted(total_weight, total_bias, *scales)


class Adapter(Trainable, AdapterFiles, ModelMixin, ConfigMixin):
    """Base of all adapters: a tree of `Factors` at the module paths of the base network.

    Subclasses set `adapter_type`, `roles` (the layer roles they adapt unless told otherwise) and `make_factors`, and
    decorate an `__init__` that names its options and ends with `_build`. `only_scales` is true of adapters that leave
    all weights alone: rows of a batch that differ in such adapters share their convolutions. All take:

    Args:
        target_modules: module path → `LayerSpec` as a dict (JSON); `for_model` fills it in.
        base_model_name_or_path: alias, folder or repo id of the base.
        base_fingerprint: `fingerprint(generator)` of the base.
        method: objective that trained it, e.g. "lfs_gan".
        training: settings of the run, for the record.
    """

    adapter_type: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    trainable: ClassVar[bool] = True  # False: made otherwise, e.g. from masks or from other adapters

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "adapter_type" in cls.__dict__:
            REGISTRY[cls.adapter_type] = cls

    @property
    def only_scales(self) -> bool:
        return False

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        raise NotImplementedError

    @torch.inference_mode(False)  # an adapter that is made there serves elsewhere too
    def _build(self, target_modules: dict[str, dict]) -> None:
        if not target_modules:
            raise ValueError("target_modules is empty: an adapter needs at least one layer to act on")
        for path, spec in target_modules.items():
            parent = self
            *folders, leaf = path.split(".")
            for folder in folders:
                if folder not in parent._modules:
                    parent.add_module(folder, nn.Module())
                parent = parent._modules[folder]
            # A layer may itself contain adapted layers (`conv0` and `conv0.affine`): keep what is already below it.
            below = parent._modules[leaf]._modules if leaf in parent._modules else {}
            factors = self.make_factors(LayerSpec(**{**spec, "shape": tuple(spec["shape"])}), path)
            parent.add_module(leaf, factors)
            for name, module in below.items():
                factors.add_module(name, module)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        *,
        roles: Sequence[str] | None = None,
        target_modules: Sequence[str] | None = None,
        **options,
    ) -> "Adapter":
        """A fresh adapter, the identity, for layers of `model`.

        Args:
            model: the base network.
            roles: roles of the layers to adapt; None: the type's own.
            target_modules: patterns of module paths, e.g. `["synthesis.b64.*"]`; None: all layers of these roles.
            options: of the adapter type.

        Raises:
            ValueError: no layer has such a role, or a pattern matches none of them.
        """
        layers = select_layers(model, cls.roles if roles is None else roles, target_modules)
        targets = {path: asdict(LayerSpec.of(layer)) for path, layer in layers.items()}
        adapter = cls(target_modules=targets, base_fingerprint=fingerprint(model), **options)
        with torch.no_grad():
            for path, factors in adapter.factors().items():
                factors.initialise(*layers[path].stored())
        return adapter

    def check(self) -> None:
        """Refuse contents that no training should have left.

        Raises:
            ValueError: a number is not finite.
        """
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name} has NaN or infinite numbers, so the adapter would only draw noise; train again with a "
                    "lower learning rate or take an earlier checkpoint"
                )

    def factors(self) -> dict[str, Factors]:
        """Module path → factors."""
        return {path: self.get_submodule(path) for path in self.config.target_modules}

    def settings(self) -> dict:
        """The options it was made with."""
        return {n: self.config[n] for n in inspect.signature(type(self).__init__).parameters if n != "self"}

    def attach(self, bank, name: str) -> None:
        bank.add(name, self)

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.named_buffers())

    def num_values(self) -> int:
        """How many numbers the adapter holds."""
        return sum(t.numel() for t in self.state_dict().values())

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round every number to the nearest float16 in place: the file then takes half the bytes, without loss."""
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def select_layers(
    model: nn.Module, roles: Sequence[str], patterns: Sequence[str] | None = None
) -> dict[str, AdaptableLayer]:
    """Path → layer of those whose role is in `roles` and whose path matches one of `patterns` (None: any).

    Raises:
        ValueError: there is none, or none for a pattern.
    """
    for option, value in (("roles", roles), ("target_modules", patterns)):
        if isinstance(value, str):
            raise ValueError(f"{option}={value!r}: give a list, [{value!r}]")
    layers = {path: layer for path, layer in adaptable_layers(model) if layer.role in roles}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer with a role in {tuple(roles)}; nothing to adapt")
    if patterns is None:
        return layers
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in layers):
            raise ValueError(
                f"target_modules: no layer of {type(model).__name__} with a role in {tuple(roles)} matches "
                f"{pattern!r}; there are for example {', '.join(list(layers)[:3])}"
            )
    return {path: layer for path, layer in layers.items() if any(fnmatchcase(path, p) for p in patterns)}
