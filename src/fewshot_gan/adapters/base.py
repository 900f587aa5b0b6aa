"""Adapters: a function from stored to effective weight for each adapted layer, with learned tensors and a file format.

An adapter depends on the module paths and weight shapes of its base, on no model class and no loss. On disk it is
`adapter_config.json` + `adapter_model.safetensors` (keys are module path + name of a factor) + `README.md`.

Shape legend: O/I outputs and inputs of a layer.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..models.layers import AdaptableLayer, adaptable_layers
from ..utils.hashing import fingerprint
from .io import AdapterFiles
from .registry import enter
from .spec import LayerSpec, stored
from .trainable import Trainable

LATENTS = "person_latents"  # name of the tensor in the file
MOST_PHOTOS = 20  # of one person


class Adapted(NamedTuple):
    """Weight, bias and scales of one layer under an adapter.

    Scales act after demodulation; None = 1. When adapters are blended, their weighted differences from 1 add up.
    """

    weight: torch.Tensor  # shaped as stored; the same tensor as the input where the adapter leaves it alone
    bias: torch.Tensor | None = None  # [O]
    input_scale: torch.Tensor | None = None  # [I]
    output_scale: torch.Tensor | None = None  # [O]
    filter_scale: torch.Tensor | None = None  # [O, I, 1, 1]


class Factors(nn.Module):
    """The learned tensors of an adapter at one layer; `forward` maps stored weight and bias to the adapted ones."""

    def forward(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Adapted:
        raise NotImplementedError

    def change(self) -> dict[str, torch.Tensor] | None:
        """Return the arguments with which the kernel `modulate_weight` does the same to a convolution's weight.

        None if it cannot.
        """
        return None

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that `forward` depends on besides its arguments."""
        return list(self.named_tensors().values())

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """Return name → tensor of this layer's own parameters and buffers."""
        own = {**self._parameters, **self._buffers}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def initialise(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Become the identity for this stored weight and bias.

        Types whose fresh factors are the identity for any weight need not do anything.
        """


def combine(parts: Iterable[tuple[Factors, float]], weight: torch.Tensor, bias: torch.Tensor | None) -> Adapted:
    """Return the blend of several adapters at one layer.

    The weight is W + Σ α_k (f_k(W) − W), likewise the bias; each scale is 1 + Σ α_k (s_k − 1).

    Args:
        parts: `(f_k, α_k)` of each adapter.
        weight, bias: as stored.
    """
    parts = list(parts)
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0](weight, bias)  # exact: no rounding of W + (f(W) − W)
    total_weight, total_bias = weight, bias
    scales: list[Any] = [None, None, None]
    for factors, alpha in parts:
        new = factors(weight, bias)
        if new.weight is not weight:
            total_weight = total_weight + alpha * (new.weight - weight)
        if new.bias is not bias and new.bias is not None and bias is not None and total_bias is not None:
            total_bias = total_bias + alpha * (new.bias - bias)
        for i, scale in enumerate(new[2:]):
            if scale is not None:
                scales[i] = (1 if scales[i] is None else scales[i]) + alpha * (scale - 1)
    return Adapted(total_weight, total_bias, *scales)


class Adapter(Trainable, AdapterFiles, ModelMixin, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]  other options
    """Base class of all adapters: a tree of `Factors` at the module paths of the base network.

    Subclasses set `adapter_type` and `roles`, implement `make_factors`, and decorate an `__init__` with
    `register_to_config` that names their options and ends with `_build`. All take:

    Args:
        target_modules: module path → `LayerSpec` as a dict (JSON); `for_model` fills it in.
        base_model_name_or_path: alias, folder or repo id of the base.
        base_fingerprint: `fingerprint(generator)` of the base.
        method: objective that trained it, e.g. "lfs_gan".
        training: settings of the training run, for the record.

    Attributes:
        adapter_type: name of the type in `adapter_config.json`.
        roles: roles of the layers that are adapted by default, see `AdaptableLayer`.
        trainable: False for types that are made in another way, e.g. from masks or from other adapters.
    """

    adapter_type: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    trainable: ClassVar[bool] = True
    if TYPE_CHECKING:  # diffusers annotates a plain dict, which has no attributes

        @property
        def config(self) -> Any: ...

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "adapter_type" in cls.__dict__:
            enter(cls)

    @property
    def only_scales(self) -> bool:
        """Whether the adapter leaves all weights alone; rows of a batch that differ in such adapters share weights."""
        return False

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        """Return fresh factors for the layer at `path`."""
        raise NotImplementedError

    @torch.inference_mode(False)  # tensors made in inference mode could never be trained
    def _build(self, target_modules: dict[str, dict], latents_shape: Sequence[int] | None = None) -> None:
        if not target_modules:
            raise ValueError("target_modules is empty: an adapter needs at least one layer to act on")
        if latents_shape is not None:
            if len(latents_shape) not in (2, 3) or min(latents_shape) < 1:
                raise ValueError(f"latents_shape={list(latents_shape)}: give [P, w_dim] or [P, num_ws, w_dim]")
            self.register_buffer(LATENTS, torch.zeros(*latents_shape, dtype=torch.float32, device="cpu"))
        for path, spec in target_modules.items():
            parent: nn.Module = self
            *ancestors, leaf = path.split(".")
            for name in ancestors:
                if name not in parent._modules:
                    parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            # a layer may itself contain adapted layers (`conv0` and `conv0.affine`): keep those already built below it
            below = dict(parent.get_submodule(leaf)._modules) if leaf in parent._modules else {}
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
    ) -> Self:
        """Return a fresh adapter, the identity, for layers of `model`.

        Args:
            model: the base network.
            roles: roles of the layers to adapt; None: those of the type.
            target_modules: patterns of module paths, e.g. `["synthesis.b64.*"]`; None: all layers of these roles.
            options: options of the adapter type.

        Raises:
            ValueError: no layer has such a role, or a pattern matches no layer.
        """
        layers = select_layers(model, cls.roles if roles is None else roles, target_modules)
        targets = {path: asdict(LayerSpec.of(layer)) for path, layer in layers.items()}
        adapter = cls(**{"target_modules": targets, "base_fingerprint": fingerprint(model)}, **options)
        with torch.no_grad():
            for path, factors in adapter.factors().items():
                factors.initialise(*stored(layers[path]))
        return adapter

    def check(self) -> None:
        """Refuse values that cannot have been meant.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name} has NaN or infinite numbers, so the adapter would only draw noise; train again with a "
                    "lower learning rate or take an earlier checkpoint"
                )

    @property
    def latents(self) -> torch.Tensor | None:
        """Latents w `[P, w_dim]` or w+ `[P, num_ws, w_dim]` of the photos it learned to draw, or None."""
        return self._buffers.get(LATENTS)

    def factors(self) -> dict[str, Factors]:
        """Return module path → factors."""
        return {path: cast(Factors, self.get_submodule(path)) for path in self.config.target_modules}

    @torch.no_grad()
    def start_from(self, other: "Adapter") -> int:
        """Take the values of another adapter in all layers that both adapt.

        Args:
            other: of the same type and options; its base may be another one, e.g. a smaller one with the same lower
                layers.

        Returns:
            The number of these layers. Others keep their values.

        Raises:
            ValueError: the types differ, or no layer has the same path and shapes.
        """
        if type(other) is not type(self):
            raise ValueError(
                f"a {self.adapter_type} adapter cannot start from one of type {other.adapter_type}; train that type, "
                "or leave start_from out"
            )
        copied, theirs = 0, other.factors()
        for path, factors in self.factors().items():
            tensors = factors.named_tensors()
            given = theirs[path].named_tensors() if path in theirs else {}
            if tensors and {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in given.items()}:
                copied += 1
                for name, tensor in tensors.items():
                    tensor.copy_(given[name])
        if not copied:
            raise ValueError(
                "no layer of the adapter to start from has the path and the shapes of one here; take an adapter of "
                "this base, or of a smaller one of the same family, with the same options"
            )
        return copied

    def settings(self) -> dict:
        """Return the options with which the adapter was made."""
        options = {n: self.config[n] for n in inspect.signature(type(self).__init__).parameters if n != "self"}
        if options.get("latents_shape", 0) is None:  # older versions warn about options that they do not know
            del options["latents_shape"]
        return options

    def attach(self, bank, name: str) -> None:
        bank.add(name, self)

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.named_buffers())

    def num_values(self) -> int:
        """Return the number of values that the adapter holds."""
        return sum(t.numel() for t in self.state_dict().values())

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round every value to the nearest float16 in place, so that the file takes half the bytes without loss."""
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def select_layers(
    model: nn.Module, roles: Sequence[str], patterns: Sequence[str] | None = None
) -> dict[str, AdaptableLayer]:
    """Return module path → layer for the layers of some roles whose path matches a pattern.

    Args:
        model: the base network.
        roles: of the layers, see `AdaptableLayer`.
        patterns: of the paths, as of `fnmatch`; None: any path.

    Raises:
        ValueError: no layer has such a role, or a pattern matches none of them.
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
