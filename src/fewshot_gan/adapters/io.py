"""From what people have to an adapter: a name, a folder, a Hub repo, a weights file, or a state dict and its config."""

import inspect
import json
import shutil
import tempfile
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Union, get_args, get_origin

import torch
from safetensors.torch import save_file
from torch import nn

from ..hub import HUB_OPTIONS, adapter_folders, resolve_folder
from ..utils.files import read_together, replacing, user_path
from ..utils.json_files import read_json
from ..utils.meta import on_meta
from ..utils.safetensors_files import read_tensors
from ..utils.text import in_short, plain
from ..version import __version__
from .registry import REGISTRY
from .spec import LayerSpec

if TYPE_CHECKING:
    from .base import Adapter

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
FORMAT_VERSION = 1
LOAD_OPTIONS = ("low_cpu_mem_usage", "torch_device", "is_trainable", "dtype", "torch_dtype")  # of every source
_PREFIX = "base_model.model."  # of PEFT's names
_ODD = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError, RecursionError)


class AdapterFiles:
    """What an adapter is on disk and on the Hub: the part of `Adapter` that writes and loads."""

    config_name = CONFIG_NAME

    def stored_config(self) -> dict:
        """What `adapter_config.json` says: with the state dict it is the whole adapter, see `load_adapter`."""
        versions = {"format_version": FORMAT_VERSION, "fewshot_gan_version": __version__}
        return {"adapter_type": self.adapter_type, **versions, **self.settings()}

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
            tensors = {k: compact(v.detach().cpu()).contiguous() for k, v in self.state_dict().items()}
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
        """Load an adapter of any registered type: see `adapters.io.load_adapter`, which has the options."""
        return load_adapter(pretrained_model_name_or_path, **options)


def load_adapter(
    source=None,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    config=None,
    variant: str | None = None,
    low_cpu_mem_usage: bool = True,
    torch_device: str | torch.device | None = None,
    is_trainable: bool = False,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    **hub_options,
) -> "Adapter":
    """Load an adapter of any registered type.

    Args:
        source: embedded name, local folder, Hub repo id, weights file (`.safetensors`, its `adapter_config.json` beside
            it), state dict, or a pair of a state dict and its config.
        state_dict: name → tensor, as `adapter.state_dict()` gives it, in place of `source`; it is copied.
        config: of a state dict or a weights file: what `adapter_config.json` holds, as a dict (`stored_config` of an
            adapter), or the path of that file.
        variant: of a folder or repo: which weights file, see `save_pretrained`.
        low_cpu_mem_usage: make no numbers but those that are stored; False first makes an adapter with numbers of its
            own, as a kind of adapter may need that has some beside the stored ones.
        torch_device: where its tensors go at once; None: the CPU. A pipeline moves them to its generator.
        is_trainable: leave its numbers ready for an optimiser; else they are frozen.
        dtype, torch_dtype: of its floating numbers; None: float32. Either name.
        hub_options: `subfolder`, and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Returns:
        The adapter, in train mode if it is trainable.

    Raises:
        FileNotFoundError: there is no such folder, repo or file.
        ValueError: the config or the tensors are damaged, unknown, or do not belong together; the folder holds several
            adapters and none is chosen; an option is unknown, out of range or of another kind of source.
    """
    refuse_unknown(hub_options)
    build = _Builder(low_cpu_mem_usage, _device(torch_device), _dtype(dtype, torch_dtype))
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Mapping):
        if state_dict is not None or config is not None:
            raise ValueError("the state dict and its config are given twice; give the pair, or state_dict= and config=")
        state_dict, config, source = *source, None
    elif isinstance(source, Mapping):
        source, state_dict = None, source if state_dict is None else [source, state_dict]
    of_folders = [name for name, value in {"variant": variant, **hub_options}.items() if value is not None]
    if state_dict is not None:
        if source is not None or not isinstance(state_dict, Mapping):
            raise ValueError("two adapters are given, and one is loaded at a time: a name or path, or a state dict")
        if of_folders:
            raise ValueError(f"{', '.join(of_folders)}: of folders and repos, not of a state dict; leave out")
        adapter = build(*_given(config, None), state_dict, "the state dict")
    elif source is None:
        raise ValueError("there is no adapter to load: give a name, folder, repo id, weights file or state dict")
    elif (file := Path(str(source)).expanduser()).is_file():
        if of_folders:
            raise ValueError(f"{', '.join(of_folders)}: of folders and repos, not of the file {file}; leave out")
        if file.suffix != ".safetensors":
            raise ValueError(f"{file} is no .safetensors file; an adapter is loaded from such a file, or its folder")
        adapter = read_together(
            file.parent,
            (CONFIG_NAME, file.name),
            lambda place: build(*_given(config, place), *_tensors(place / file.name)),
        )
    else:
        if config is not None:
            raise ValueError("config= belongs to a state dict or a weights file; a folder or repo has its own")
        folder = resolve_folder(source, kind="adapter", **hub_options)
        if not (folder / CONFIG_NAME).is_file() and (several := adapter_folders(folder)):
            raise ValueError(
                f"{str(source)!r} holds several adapters: {', '.join(several)}; choose one with "
                f"subfolder={next(iter(several))!r}, or load them all with FewShotGAN.load_adapters"
            )
        adapter = _read(folder, variant, build)
    if is_trainable and not any(True for _ in adapter.parameters()):
        raise ValueError(f"is_trainable: this adapter of type {adapter.adapter_type!r} has no numbers to train")
    return adapter.train(is_trainable).requires_grad_(is_trainable)


def read_adapter(folder: Path, variant: str | None = None) -> "Adapter":
    """The adapter stored in `folder`; see `load_adapter` for what is raised."""
    return _read(Path(folder), variant, _Builder()).eval().requires_grad_(False)


def refuse_unknown(options: Collection[str], *more: str) -> None:
    """Refuse what is no option of `load_adapter`.

    Raises:
        ValueError: with the names.
    """
    if unknown := sorted(set(options) - {*LOAD_OPTIONS, *HUB_OPTIONS, *more}):
        raise ValueError(f"unknown options of load_adapter: {', '.join(unknown)}")


def warn_of_base(adapter: "Adapter", name: str, base_name: str | None) -> None:
    """Say so where an adapter cannot tell whether it belongs to a base, and names another one."""
    own = adapter.config.base_model_name_or_path
    if adapter.config.base_fingerprint is None and own and base_name and Path(own).name != Path(base_name).name:
        warnings.warn(
            f"adapter {name!r} says that it was made for {own!r}, and this base is {base_name!r}; it carries no "
            "fingerprint by which to tell whether they are the same",
            stacklevel=3,
        )


def name_of(source, subfolder: str | None = None) -> str | None:
    """What a pipeline calls an adapter without a name: the last part of its folder; None of a state dict."""
    if not isinstance(source, str | Path):
        return None
    path = Path(subfolder or source).expanduser().absolute()
    if path.is_file():
        own = path.name.partition(".")[0]
        return path.parent.name if own == weights_file(None).partition(".")[0] else own
    return path.name


class _Builder:
    """`(config, what it is called, tensors, what they are called)` → adapter."""

    def __init__(self, low_cpu_mem_usage: bool = True, device: torch.device | None = None, dtype=torch.float32):
        self.low_cpu_mem_usage, self.device, self.dtype = low_cpu_mem_usage, device or torch.device("cpu"), dtype

    @torch.inference_mode(False)  # its tensors shall serve everywhere
    @torch.no_grad()
    def __call__(self, config: Mapping, config_name: str, tensors: Mapping, weights_name: str) -> "Adapter":
        cls, settings = _understood(config, config_name)
        try:
            with on_meta():  # nothing is allocated for a shape that the file does not hold
                adapter = cls(**settings)
                adapter.factors()
        except _ODD as error:
            raise ValueError(f"{config_name} is damaged: {in_short(error)}; fetch it again") from error
        own = adapter.state_dict()
        tensors = _fitting(tensors, own, weights_name)
        wanted = {k: self.dtype if own[k].is_floating_point() else own[k].dtype for k in own}
        if self.low_cpu_mem_usage:  # copies: see models.network.Network
            tensors = {k: v.detach().to(self.device, wanted[k], copy=True) for k, v in tensors.items()}
            adapter.load_state_dict(tensors, assign=True)
        else:
            adapter = cls(**settings)
            nn.Module.to(adapter, self.device, self.dtype)  # diffusers' own warns at length
            adapter.load_state_dict(tensors)
        try:
            adapter.check()
        except ValueError as error:
            raise ValueError(f"{weights_name}: {error}") from error
        return adapter


def _understood(config: Mapping, name: str) -> "tuple[type[Adapter], dict]":
    """Class and settings of a stored config."""
    config = dict(config)
    if "adapter_type" not in config:
        raise ValueError(f"{name} is damaged or not an adapter config ('adapter_type' is missing); fetch it again")
    kind, version = config.pop("adapter_type"), config.pop("format_version", 1)
    config.pop("fewshot_gan_version", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{name} is damaged: format_version is {version!r}; fetch it again")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{name} has adapter format {version}, this fewshot_gan {__version__} reads up to {FORMAT_VERSION}; "
            "upgrade with pip install -U fewshot_gan"
        )
    if not isinstance(kind, str) or kind not in REGISTRY:
        raise ValueError(f"{name} is of an adapter of type {kind!r}; known types: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[kind], known_settings(REGISTRY[kind], config, name)


def _fitting(tensors: Mapping, own: Mapping, weights_name: str) -> dict[str, torch.Tensor]:
    """The tensors under the adapter's names, each of the adapter's shape and kind."""
    names = [str(name).removeprefix(_PREFIX) for name in tensors]
    problems = [f"{name} twice" for name in set(names) if names.count(name) > 1]
    tensors = dict(zip(names, tensors.values(), strict=True))
    problems += [f"missing {k}" for k in own.keys() - tensors.keys()]
    problems += [f"unexpected {k}" for k in tensors.keys() - own.keys()]
    for k in own.keys() & tensors.keys():
        if not isinstance(tensors[k], torch.Tensor) or tensors[k].is_meta or tensors[k].layout != torch.strided:
            problems.append(f"{k} is no tensor with numbers")
        elif own[k].shape != tensors[k].shape:
            problems.append(f"{k} is {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}")
        elif own[k].is_floating_point() != tensors[k].is_floating_point() or tensors[k].dtype.is_complex:
            problems.append(f"{k} is of {tensors[k].dtype} instead of {own[k].dtype}")
    if problems:
        raise ValueError(f"{weights_name} does not fit its config: {plain('; '.join(sorted(problems)[:8]))}")
    return tensors


def _read(folder: Path, variant: str | None, build: _Builder) -> "Adapter":
    weights_name = weights_file(variant)

    def read(place: Path) -> "Adapter":
        for name in (CONFIG_NAME, weights_name):
            if not (place / name).is_file():
                raise FileNotFoundError(f"{folder} is not an adapter folder: it has no {name}")
        return build(*_given(None, place), *_tensors(place / weights_name))

    return read_together(folder, (CONFIG_NAME, weights_name), read)


def _given(config, folder: Path | None) -> tuple[Mapping, str]:
    """A config that was given, or that of `folder`, and what messages call it."""
    if isinstance(config, Mapping):
        return config, "the config"
    if config is None and folder is None:
        raise ValueError(
            "a state dict alone does not say what kind of adapter it is: give config= too, what adapter_config.json "
            "holds (stored_config() of an adapter)"
        )
    path = folder / CONFIG_NAME if config is None else Path(str(config)).expanduser()
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}; it says what kind of adapter the weights are, see config=")
    return read_json(path), str(path)


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    return read_tensors(path), str(path)


def _device(device) -> torch.device:
    try:
        found = torch.device("cpu" if device is None else device)
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"torch_device={device!r} is no device of this machine ({reason[:120]})") from error
    return found


def _dtype(dtype, torch_dtype) -> torch.dtype:
    if None not in (dtype, torch_dtype) and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} are two names of one option; give one")
    wanted = torch_dtype if dtype is None else dtype
    if wanted is None:
        return torch.float32
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point or wanted.itemsize < 2:
        raise ValueError(f"dtype={wanted!r}: give float32, float16, bfloat16 or float64 of torch")
    return wanted


def known_settings(cls: "type[Adapter]", config: Mapping, where: str) -> dict:
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


def compact(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor
