"""What an adapter is: for each adapted layer a function from stored to effective weight, and a file that holds it.

An adapter knows module paths and weight shapes of its base, no model class and no loss. On disk it is
`adapter_config.json` + `adapter_model.safetensors` (keys are module path + factor name) + `README.md`.
"""

import inspect
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from types import UnionType
from typing import ClassVar, NamedTuple, Union, get_args, get_origin

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from safetensors.torch import save_file
from torch import nn

from ..models.layers import AdaptableLayer, adaptable_layers
from ..models.offloading import stored_state
from ..utils.files import replacing, user_path
from ..version import __version__

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
FORMAT_VERSION = 1
REGISTRY: dict[str, type["Adapter"]] = {}


@dataclass(frozen=True)
class LayerSpec:
    """What an adapter must know of a layer: its weight shape, whether it has a bias, role and demodulation."""

    shape: tuple[int, ...]
    bias: bool = False
    role: str = "conv"
    demodulation: str = "none"

    @classmethod
    def of(cls, layer: AdaptableLayer) -> "LayerSpec":
        weight, bias = layer.stored()
        return cls(tuple(weight.shape), bias is not None, layer.role, layer.demodulation)


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


class Adapter(ModelMixin, ConfigMixin):
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

    config_name = CONFIG_NAME
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

    def stored_config(self) -> dict:
        """What `adapter_config.json` says: with the state dict it is the whole adapter, see `load_adapter`."""
        versions = {"format_version": FORMAT_VERSION, "fewshot_gan_version": __version__}
        return {"adapter_type": self.adapter_type, **versions, **self.settings()}

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """For an optimiser: parameters of one rate each, with "rate", their share of `learning_rate`."""
        rates: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            rates.setdefault(self.rate_of(name), []).append(parameter)
        return [{"params": p, "rate": rate, "lr": rate * learning_rate} for rate, p in rates.items()]

    def rate_of(self, name: str) -> float:
        """Learning rate of a parameter beside that of the adapter."""
        return 1.0

    def penalty(self, step: int) -> torch.Tensor | None:
        """A loss of the adapter's own numbers at a step of its training, None = none."""
        return None

    def num_values(self) -> int:
        """How many numbers the adapter holds."""
        return sum(t.numel() for t in self.state_dict().values())

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round every number to the nearest float16 in place: the file then takes half the bytes, without loss."""
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())

    def save_pretrained(
        self, save_directory, *, variant: str | None = None, push_to_hub: bool = False, repo_id=None, **push_options
    ) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, which replace those of the folder both at once.

        A tensor whose numbers are all float16 ones is stored as float16; loading is exact either way.

        Args:
            save_directory: folder, made if needed.
            variant: the weights become `adapter_model.<variant>.safetensors`.
            push_to_hub: upload it too, see `push_to_hub`; `repo_id` defaults to the folder's name.
        """
        weights_name = weights_file(variant)
        folder = user_path(save_directory)
        with replacing(folder) as staged:
            tensors = {k: _compact(v.detach().cpu()).contiguous() for k, v in self.state_dict().items()}
            save_file(tensors, staged / weights_name, metadata={"format": "pt"})
            text = json.dumps(self.stored_config(), indent=1, default=list) + "\n"
            (staged / CONFIG_NAME).write_text(text, encoding="utf-8")
            shutil.copymode(staged / CONFIG_NAME, staged / weights_name)  # safetensors lets only the owner read
        if push_to_hub:
            self.push_to_hub(repo_id or folder.absolute().name, variant=variant, **push_options)

    def push_to_hub(
        self, repo_id: str, *, base: str | None = None, grid=None, variant: str | None = None, **push_options
    ) -> str:
        """Upload the adapter with its card.

        Args:
            repo_id: `owner/name`, made if it is not there.
            base: what card and config call the base if it was trained on a folder of this machine; None: its name.
            grid: sample picture for the card (PIL, or the folder of a run's samples), or None.
            variant: see `save_pretrained`.
            push_options: `token`, `private`, `revision`, `commit_message`, `create_pr`.

        Returns:
            Full id of the repo.

        Raises:
            ValueError: the Hub refused, e.g. without a token, or cannot be reached.
        """
        from ..hub import push_folder
        from ..hub.cards import PUBLISHED, portable_base, write_adapter_card

        with tempfile.TemporaryDirectory() as temp:
            known = self.config.base_model_name_or_path
            self.register_to_config(base_model_name_or_path=portable_base(self.config, base))
            try:
                self.save_pretrained(temp, variant=variant)
                write_adapter_card(self, temp, repo_id.rsplit("/", 1)[-1], grid=grid, repo_id=repo_id)
            finally:
                self.register_to_config(base_model_name_or_path=known)
            return push_folder(temp, repo_id, allow_patterns=list(PUBLISHED), **push_options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path=None, **options) -> "Adapter":
        """Load an adapter of any registered type: see `adapters.loading.load_adapter`, which has the options."""
        from .io import load_adapter

        return load_adapter(pretrained_model_name_or_path, **options)


def known_settings(cls: type[Adapter], config: Mapping, where: str) -> dict:
    """Those settings of a stored config that `cls` knows; a newer release may have written others, which are named.

    Args:
        cls: a registered type of adapter.
        config: its settings.
        where: what holds them, for messages.

    Raises:
        ValueError: a setting is of another type than it may be.
    """
    wanted = {n: p.annotation for n, p in inspect.signature(cls.__init__).parameters.items() if n != "self"}
    known, unknown = _sorted_out(config, wanted, where)
    layers = known.get("target_modules")
    if isinstance(layers, Mapping):
        fields_of_spec, known["target_modules"] = {field.name: field.type for field in fields(LayerSpec)}, {}
        for path, spec in layers.items():
            known["target_modules"][path], more = _sorted_out(spec, fields_of_spec, f"{where}: target_modules.{path}")
            unknown += [name for key in more if (name := f"target_modules.*.{key}") not in unknown]
    if unknown:
        shown = ", ".join(repr(name)[:60] for name in unknown[:8]) + (", …" if len(unknown) > 8 else "")
        warnings.warn(
            f"{where} has settings that adapter type {cls.adapter_type!r} of fewshot_gan {__version__} does not know, "
            f"and which are ignored: {shown}; a newer version may know them",
            stacklevel=2,
        )
    return known


def _sorted_out(settings: Mapping, wanted: Mapping, where: str) -> tuple[dict, list[str]]:
    """Those settings that are wanted, each of the type it is annotated with, and the names of the others."""
    for key in settings.keys() & wanted.keys():
        if not _fits(settings[key], wanted[key]):
            kind = getattr(wanted[key], "__name__", "") if isinstance(wanted[key], type) else str(wanted[key])
            raise ValueError(f"{where}: {key} is {repr(settings[key])[:60]}, not of type {kind or wanted[key]}")
    unknown = [str(key) for key in settings if key not in wanted and not str(key).startswith("_")]
    return {key: value for key, value in settings.items() if key in wanted}, unknown


def _fits(value, annotation) -> bool:
    """Whether a value as JSON has it is of the type that a setting is annotated with."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (UnionType, Union):
        return any(_fits(value, part) for part in parts)
    if kind is dict:
        fits = isinstance(value, Mapping)
        return fits and (not parts or all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items()))
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(v, parts[0]) for v in value if parts)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def trainable_types() -> dict[str, type[Adapter]]:
    """Type name → class of the kinds that start as the identity and learn all their numbers."""
    return {name: cls for name, cls in REGISTRY.items() if cls.trainable}


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


def weights_file(variant: str | None) -> str:
    """Name of the weights file of a variant, e.g. `adapter_model.fp16.safetensors`.

    Raises:
        ValueError: a variant that is no plain word.
    """
    if variant is None:
        return WEIGHTS_NAME
    if not variant.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"variant={variant!r} is no plain word; for example 'fp16'")
    return WEIGHTS_NAME.replace(".", f".{variant}.")


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def fingerprint(model: nn.Module, tensors: Mapping[str, torch.Tensor] | None = None) -> str:
    """Sixteen hex digits of the network's configuration and weights.

    An option that a later version added counts unless it is at its default (`Network.LATER_OPTIONS`). Weights enter as
    float16 rounded to bfloat16, so that a base has one fingerprint in float32 and float16. Cast to bfloat16 it has
    another one unless its weights are stored in float16; `FewShotGAN` keeps that of the stored weights.

    Args:
        model: the network.
        tensors: take these for its weights, e.g. as they are stored.
    """
    import hashlib

    digest = hashlib.sha256()
    later = getattr(model, "LATER_OPTIONS", {})
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_") and (k, v) not in later.items()}
    digest.update(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted((stored_state(model) if tensors is None else tensors).items()):
        digest.update(name.encode())
        rounded = tensor.detach().to("cpu", torch.float16).to(torch.bfloat16)
        digest.update(rounded.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def digest(tensors: Mapping[str, torch.Tensor], config: Mapping | None = None) -> str:
    """Sixteen hex digits of tensors, bit for bit, and of a config but for where it was loaded from."""
    import hashlib

    config = {k: v for k, v in dict(config or {}).items() if not k.startswith("_")}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
