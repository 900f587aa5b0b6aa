"""What an adapter is: for each adapted layer a function from stored to effective weight, and a file that holds it.

An adapter knows module paths and weight shapes of its base, no model class and no loss. On disk it is
`adapter_config.json` + `adapter_model.safetensors` (keys are module path + factor name) + `README.md`.
"""

import inspect
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..models.layers import AdaptableLayer, EffectiveWeight, adaptable_layers
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
        return cls(tuple(layer.weight.shape), layer.bias is not None, layer.role, layer.demodulation)


class Factors(nn.Module):
    """The learned tensors of one layer; `forward(weight, bias)` gives that layer's effective weight."""

    def forward(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        raise NotImplementedError


class Adapter(ModelMixin, ConfigMixin):
    """Base of all adapters: a tree of `Factors` at the module paths of the base network.

    Subclasses set `adapter_type`, `roles` (the layer roles they adapt unless told otherwise) and `make_factors`, and
    decorate an `__init__` that names its options and ends with `_build`. All take:

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

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "adapter_type" in cls.__dict__:
            REGISTRY[cls.adapter_type] = cls

    def make_factors(self, spec: LayerSpec) -> Factors:
        raise NotImplementedError

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
            factors = self.make_factors(LayerSpec(**{**spec, "shape": tuple(spec["shape"])}))
            parent.add_module(leaf, factors)
            for name, module in below.items():
                factors.add_module(name, module)

    @classmethod
    def for_model(cls, model: nn.Module, *, roles: tuple[str, ...] | None = None, **options) -> "Adapter":
        """A fresh adapter, the identity, for the layers of `model` whose role is in `roles` (None: the type's own).

        Raises:
            ValueError: no layer of `model` has such a role.
        """
        roles = cls.roles if roles is None else roles
        targets = {path: asdict(LayerSpec.of(layer)) for path, layer in adaptable_layers(model) if layer.role in roles}
        if not targets:
            raise ValueError(f"{type(model).__name__} has no layer with a role in {roles}; nothing to adapt")
        return cls(target_modules=targets, base_fingerprint=fingerprint(model), **options)

    def factors(self) -> dict[str, Factors]:
        """Module path → factors."""
        return {path: self.get_submodule(path) for path in self.config.target_modules}

    def num_values(self) -> int:
        """How many numbers the adapter holds."""
        return sum(t.numel() for t in self.state_dict().values())

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round every number to the nearest float16 in place: the file then takes half the bytes, without loss."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())

    def save_pretrained(self, save_directory, *, push_to_hub: bool = False, **kwargs) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` (each written beside, then renamed).

        A tensor whose numbers are all float16 ones is stored as float16; loading is exact either way.

        Args:
            save_directory: folder, made if needed.
            push_to_hub: upload the folder afterwards; `kwargs` go to `push_to_hub`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        config = {
            "adapter_type": self.adapter_type,
            "format_version": FORMAT_VERSION,
            "fewshot_gan_version": __version__,
            **{name: self.config[name] for name in names},
        }
        with tempfile.TemporaryDirectory(dir=folder) as temp:
            temp = Path(temp)
            tensors = {k: _compact(v.detach().cpu()).contiguous() for k, v in self.state_dict().items()}
            save_file(tensors, temp / WEIGHTS_NAME, metadata={"format": "pt"})
            (temp / CONFIG_NAME).write_text(json.dumps(config, indent=1, default=list) + "\n")
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                os.replace(temp / name, folder / name)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **hub_kwargs) -> "Adapter":
        """Load an adapter of any registered type from a folder, or from a Hub repo (`revision`, `token`, `cache_dir`,
        `local_files_only`, `subfolder`).

        Raises:
            FileNotFoundError: there is no such folder, repo or file.
            ValueError: the config or the tensors are damaged, unknown, or do not belong together.
        """
        from ..hub import resolve_folder

        folder = resolve_folder(pretrained_model_name_or_path, kind="adapter", **hub_kwargs)
        return read_adapter(folder)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def read_adapter(folder: Path) -> Adapter:
    """Build the adapter stored in `folder`; see `Adapter.from_pretrained` for what is raised."""
    config_path, weights_path = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    for path in (config_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not an adapter folder: it has no {path.name}")
    try:
        config = json.loads(config_path.read_text())
        kind, version = config.pop("adapter_type"), config.pop("format_version", 1)
        config.pop("fewshot_gan_version", None)
        newer = version > FORMAT_VERSION
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{config_path} is damaged or not an adapter config ({error}); fetch the file again"
        ) from error
    if newer:
        raise ValueError(
            f"{folder} has adapter format {version}, this fewshot_gan {__version__} reads up to {FORMAT_VERSION}; "
            "upgrade with pip install -U fewshot_gan"
        )
    if kind not in REGISTRY:
        raise ValueError(f"{folder} holds an adapter of type {kind!r}; known types: {', '.join(sorted(REGISTRY))}")
    cls = REGISTRY[kind]
    known = inspect.signature(cls.__init__).parameters
    if unknown := [k for k in config if k not in known and not k.startswith("_")]:
        raise ValueError(f"{config_path} has settings that adapter type {kind!r} does not know: {', '.join(unknown)}")
    try:
        adapter = cls(**{k: v for k, v in config.items() if k in known})
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{config_path} is damaged: {error}; fetch the file again") from error
    try:
        tensors = load_file(weights_path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights_path} is damaged or cut short ({error}); fetch the file again") from error
    tensors = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}  # PEFT's prefix
    own = adapter.state_dict()
    problems = [f"missing {k}" for k in own.keys() - tensors.keys()]
    problems += [f"unexpected {k}" for k in tensors.keys() - own.keys()]
    problems += [
        f"{k} is {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if own[k].shape != tensors[k].shape
    ]
    if problems:
        raise ValueError(f"{weights_path} does not fit its config: {'; '.join(sorted(problems)[:8])}")
    adapter.load_state_dict(tensors)
    return adapter.eval().requires_grad_(False)


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits of the network's configuration and weights.

    Weights enter as bfloat16, so that a base loaded in fp32, fp16 or bf16 keeps its fingerprint.
    """
    import hashlib

    digest = hashlib.sha256()
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
