"""Load adapters from names, folders, Hub repos, weights files and state dicts; save them to folders and the Hub."""

import inspect
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin

import torch
from safetensors.torch import save_file
from torch import nn

from ..data.adapter_archives import is_archive, unpacked
from ..hub import HUB_OPTIONS, adapter_folders, resolve_folder
from ..utils.files import read_together, replacing, user_path
from ..utils.json_files import read_json
from ..utils.meta import on_meta
from ..utils.safetensors_files import read_tensors
from ..utils.text import in_short, plain
from ..version import __version__
from .registry import adapter_class
from .spec import LayerSpec

if TYPE_CHECKING:
    from .base import Adapter

    class _Files:  # what `Adapter` has besides
        adapter_type: ClassVar[str]
        config: Any
        register_to_config: Callable[..., None]
        settings: Callable[[], dict]
        state_dict: Callable[[], dict[str, torch.Tensor]]
else:
    _Files = object

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
FORMAT_VERSION = 1
ONE_SOURCE = "two adapters are given, and one is loaded at a time: a name or path, or a state dict"
LOAD_OPTIONS = ("low_cpu_mem_usage", "torch_device", "is_trainable", "dtype", "torch_dtype")  # for every source
_PREFIX = "base_model.model."  # of tensor names in PEFT
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError, RecursionError)


class AdapterFiles(_Files):
    """The part of `Adapter` that saves to disk and to the Hub, and loads."""

    config_name = CONFIG_NAME

    def stored_config(self) -> dict:
        """Return the content of `adapter_config.json`; with the state dict it makes the adapter, see `load_adapter`."""
        versions = {"format_version": FORMAT_VERSION, "fewshot_gan_version": __version__}
        return {"adapter_type": self.adapter_type, **versions, **self.settings()}

    def save_pretrained(
        self, save_directory, *, variant: str | None = None, push_to_hub: bool = False, repo_id=None, **push_options
    ) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`; both replace older ones at the same moment.

        Variants of weights that are there stay if they have the same config; those of another adapter are deleted.
        Tensors that float16 holds exactly are stored as float16, so that loading is exact in any case.

        Args:
            save_directory: folder, made if needed.
            variant: the weights are written to `adapter_model.<variant>.safetensors`.
            push_to_hub: also upload the adapter, see `push_to_hub`.
            repo_id: repo to upload to; None: the folder's name.
            push_options: of `push_to_hub`.
        """
        weights_name = weights_file(variant)
        folder = user_path(save_directory)
        text = json.dumps(self.stored_config(), indent=1, default=list) + "\n"
        with replacing(folder, _variants_of_others(folder, text)) as staged:
            tensors = {k: compact(v.detach().cpu()).contiguous() for k, v in self.state_dict().items()}
            save_file(tensors, staged / weights_name, metadata={"format": "pt"})
            (staged / CONFIG_NAME).write_text(text, encoding="utf-8")
            shutil.copymode(
                staged / CONFIG_NAME, staged / weights_name
            )  # safetensors writes files that only the owner can read
        if push_to_hub:
            self.push_to_hub(repo_id or folder.absolute().name, variant=variant, **push_options)

    def push_to_hub(
        self, repo_id: str, *, base: str | None = None, grid=None, variant: str | None = None, **push_options
    ) -> str:
        """Upload the adapter with its card.

        Args:
            repo_id: `owner/name`, created if it does not exist.
            base: name of the base in card and config, for a base in a local folder; None: the folder's name.
            grid: sample picture for the card (PIL, or the folder with the samples of a training run), or None.
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
            local_name = self.config.base_model_name_or_path
            self.register_to_config(base_model_name_or_path=portable_base(self.config, base))
            try:
                self.save_pretrained(temp, variant=variant)
                write_adapter_card(self, temp, repo_id.rsplit("/", 1)[-1], grid=grid, repo_id=repo_id)
            finally:
                self.register_to_config(base_model_name_or_path=local_name)
            return push_folder(temp, repo_id, allow_patterns=list(PUBLISHED), **push_options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path=None, **options) -> "Adapter":
        """Load an adapter of any registered type; see `adapters.io.load_adapter` for the options."""
        return load_adapter(pretrained_model_name_or_path, **options)


def _variants_of_others(folder: Path, config: str) -> Iterator[str]:
    """Yield the weights files in `folder` if the config there is another than `config`."""
    if (path := folder / CONFIG_NAME).is_file() and path.read_text(encoding="utf-8", errors="replace") != config:
        yield from (file.name for file in folder.glob("adapter_model*.safetensors"))


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
        source: embedded name, local folder, Hub repo id, weights file (`.safetensors`, with `adapter_config.json` in
            the same folder), zip archive of an adapter, state dict, or a pair of a state dict and its config.
        state_dict: name → tensor, as `adapter.state_dict()` returns it, instead of `source`; it is copied.
        config: of a state dict or a weights file: the content of `adapter_config.json` as a dict (`stored_config` of
            an adapter), or the path of that file.
        variant: of the weights file in a folder or repo, see `save_pretrained`.
        low_cpu_mem_usage: allocate memory for the stored tensors only. False first initialises an adapter, which types
            with values that are not stored may need.
        torch_device: device of its tensors; None: the CPU. A pipeline moves them to the device of its generator.
        is_trainable: whether its parameters require gradients.
        dtype, torch_dtype: of its floating-point tensors; two names of one option. None: float32.
        hub_options: `subfolder`, and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Returns:
        The adapter, in train mode if it is trainable, else in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder, repo or file.
        ValueError: the config or the tensors are damaged, unknown, or do not fit each other; the folder holds several
            adapters and none is chosen; an option is unknown, out of range or of another kind of source.
    """
    refuse_unknown(hub_options)
    build = _Builder(low_cpu_mem_usage, _device(torch_device), _dtype(dtype, torch_dtype))
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Mapping):
        if state_dict is not None or config is not None:
            raise ValueError("the state dict and its config are given twice; give the pair, or state_dict= and config=")
        state_dict, config, source = *source, None
    elif isinstance(source, Mapping):
        if state_dict is not None:
            raise ValueError(ONE_SOURCE)
        source, state_dict = None, source
    folder_options = [name for name, value in {"variant": variant, **hub_options}.items() if value is not None]
    if state_dict is not None:
        if source is not None or not isinstance(state_dict, Mapping):
            raise ValueError(ONE_SOURCE)
        if folder_options:
            raise ValueError(f"{', '.join(folder_options)}: of folders and repos, not of a state dict; leave out")
        adapter = build(*_config_and_name(config, None), state_dict, "the state dict")
    elif source is None:
        raise ValueError("there is no adapter to load: give a name, folder, repo id, weights file or state dict")
    elif is_archive(source):
        if config is not None or hub_options:
            given = ", ".join(["config", *hub_options] if config is not None else hub_options)
            raise ValueError(f"{given}: an archive brings its own files; leave out")
        with unpacked(source) as folder:
            adapter = _read(folder, variant, build, user_path(str(source)))
    elif (file := Path(str(source)).expanduser()).is_file():
        if folder_options:
            raise ValueError(f"{', '.join(folder_options)}: of folders and repos, not of the file {file}; leave out")
        if file.suffix != ".safetensors":
            raise ValueError(f"{file} is no .safetensors file; an adapter is loaded from such a file, or its folder")
        stored = read_together(
            file.parent,
            (CONFIG_NAME, file.name),
            lambda place: (*_config_and_name(config, place), *_tensors_and_name(place / file.name)),
        )
        adapter = build(*stored)
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
    if is_trainable and not list(adapter.parameters()):
        raise ValueError(f"is_trainable: this adapter of type {adapter.adapter_type!r} has no numbers to train")
    return adapter.train(is_trainable).requires_grad_(is_trainable)


def read_adapter(folder: Path, variant: str | None = None) -> "Adapter":
    """Load the adapter in a local folder, in evaluation mode; see `load_adapter` for the exceptions."""
    return _read(Path(folder), variant, _Builder()).eval().requires_grad_(False)


def refuse_unknown(options: Collection[str], *more: str) -> None:
    """Refuse options that are not of `load_adapter`.

    Args:
        options: names of options.
        more: further names that are allowed.

    Raises:
        ValueError: names the unknown options.
    """
    if unknown := sorted(set(options) - {*LOAD_OPTIONS, *HUB_OPTIONS, *more}):
        raise ValueError(f"unknown options of load_adapter: {', '.join(unknown)}")


def warn_of_base(adapter: "Adapter", name: str, base_name: str | None) -> None:
    """Warn about an adapter that names another base and has no fingerprint by which to compare the two."""
    named = adapter.config.base_model_name_or_path
    if adapter.config.base_fingerprint is None and named and base_name and Path(named).name != Path(base_name).name:
        warnings.warn(
            f"adapter {name!r} says that it was made for {named!r}, and this base is {base_name!r}; it carries no "
            "fingerprint by which to tell whether they are the same",
            stacklevel=3,
        )


def name_of(source, subfolder: str | None = None) -> str | None:
    """Return the default name of an adapter: the last part of its path, or its subfolder; None for a state dict."""
    if not isinstance(source, str | Path):
        return None
    path = Path(os.path.abspath(user_path(subfolder or source)))  # of ".." too
    if path.is_file():
        stem = path.name.partition(".")[0]
        return path.parent.name if stem == weights_file(None).partition(".")[0] else stem
    return path.name


class _Builder:
    """Build an adapter from its config and tensors.

    Args:
        low_cpu_mem_usage, device, dtype: see `load_adapter`.
    """

    def __init__(self, low_cpu_mem_usage: bool = True, device: torch.device | None = None, dtype=torch.float32):
        self.low_cpu_mem_usage, self.device, self.dtype = low_cpu_mem_usage, device or torch.device("cpu"), dtype

    @torch.inference_mode(False)  # tensors made in inference mode could never be trained
    @torch.no_grad()
    def __call__(self, config: Mapping, config_name: str, tensors: Mapping, weights_name: str) -> "Adapter":
        """Return the adapter.

        Args:
            config: content of `adapter_config.json`.
            config_name: of the config, for messages.
            tensors: name → tensor.
            weights_name: of the tensors, for messages.
        """
        cls, settings = _class_and_settings(config, config_name)
        try:
            with on_meta():  # a damaged config may ask for huge tensors that the file does not hold
                adapter = cls(**settings)
                adapter.factors()
        except _DAMAGE as error:
            raise ValueError(f"{config_name} is damaged: {in_short(error)}; fetch it again") from error
        own = adapter.state_dict()
        tensors = _matching_tensors(tensors, own, weights_name)
        dtypes = {k: self.dtype if own[k].is_floating_point() else own[k].dtype for k in own}
        if self.low_cpu_mem_usage:  # copies, for the reason that models.network.Network gives
            tensors = {k: v.detach().to(self.device, dtypes[k], copy=True) for k, v in tensors.items()}
            adapter.load_state_dict(tensors, assign=True)
        else:
            adapter = cls(**settings)
            nn.Module.to(adapter, self.device, self.dtype)  # `to` of diffusers warns at length
            adapter.load_state_dict(tensors)
        try:
            adapter.check()
        except ValueError as error:
            raise ValueError(f"{weights_name}: {error}") from error
        return adapter


def _class_and_settings(config: Mapping, name: str) -> "tuple[type[Adapter], dict]":
    """Return adapter class and settings of a stored config; `name` stands for it in messages."""
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
    cls = adapter_class(kind, f"the adapter of {name}")
    return cls, known_settings(cls, config, name)


def _matching_tensors(tensors: Mapping, own: Mapping, weights_name: str) -> dict[str, torch.Tensor]:
    """Return stored tensors by the names of the adapter's own ones, and refuse other names, shapes and dtypes."""
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


def _read(folder: Path, variant: str | None, build: _Builder, shown: Path | None = None) -> "Adapter":
    """Build the adapter in `folder`, which messages about its files call `shown`."""
    weights_name, shown = weights_file(variant), shown or folder

    def read(place: Path) -> tuple:
        for name in (CONFIG_NAME, weights_name):
            if not (place / name).is_file():
                raise FileNotFoundError(f"{shown} is not an adapter folder: it has no {name}")
        return read_json(place / CONFIG_NAME), read_tensors(place / weights_name)

    # reading alone is short, so seldom repeated
    config, tensors = read_together(folder, (CONFIG_NAME, weights_name), read)
    return build(config, str(shown / CONFIG_NAME), tensors, str(shown / weights_name))


def _config_and_name(config, folder: Path | None) -> tuple[Mapping, str]:
    """Return the given config, or that of `folder`, and its name for messages."""
    if isinstance(config, Mapping):
        return config, "the config"
    if config is not None:
        path = Path(str(config)).expanduser()
    elif folder is not None:
        path = folder / CONFIG_NAME
    else:
        raise ValueError(
            "a state dict alone does not say what kind of adapter it is: give config= too, what adapter_config.json "
            "holds (stored_config() of an adapter)"
        )
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}; it says what kind of adapter the weights are, see config=")
    return read_json(path), str(path)


def _tensors_and_name(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    return read_tensors(path), str(path)


def _device(device) -> torch.device:
    """Return `torch_device` of `load_adapter` as a device of this machine."""
    try:
        usable = torch.device("cpu" if device is None else device)
        if usable.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"torch_device={device!r} is no device of this machine ({reason[:120]})") from error
    return usable


def _dtype(dtype, torch_dtype) -> torch.dtype:
    """Return the dtype that two names of one option of `load_adapter` give, float32 by default."""
    if None not in (dtype, torch_dtype) and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} are two names of one option; give one")
    wanted = torch_dtype if dtype is None else dtype
    if wanted is None:
        return torch.float32
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point or wanted.itemsize < 2:
        raise ValueError(f"dtype={wanted!r}: give float32, float16, bfloat16 or float64 of torch")
    return wanted


def known_settings(cls: "type[Adapter]", config: Mapping, where: str) -> dict:
    """Return the settings of a stored config that `cls` takes, and warn about others: a newer release may have them.

    Args:
        cls: a registered type of adapter.
        config: its settings.
        where: name of the config, for messages.

    Raises:
        ValueError: a setting has a value of another type than its annotation.
    """
    annotations = {n: p.annotation for n, p in inspect.signature(cls.__init__).parameters.items() if n != "self"}
    settings, unknown = _split_settings(config, annotations, where)
    layers = settings.get("target_modules")
    if isinstance(layers, Mapping):
        spec_annotations, specs = {field.name: field.type for field in fields(LayerSpec)}, {}
        settings["target_modules"] = specs
        for path, spec in layers.items():
            specs[path], more = _split_settings(spec, spec_annotations, f"{where}: target_modules.{path}")
            unknown += [name for key in more if (name := f"target_modules.*.{key}") not in unknown]
    if unknown:
        shown = ", ".join(repr(name)[:60] for name in unknown[:8]) + (", …" if len(unknown) > 8 else "")
        warnings.warn(
            f"{where} has settings that adapter type {cls.adapter_type!r} of fewshot_gan {__version__} does not know, "
            f"and which are ignored: {shown}; a newer version may know them",
            stacklevel=2,
        )
    return settings


def _split_settings(settings: Mapping, annotations: Mapping, where: str) -> tuple[dict, list[str]]:
    """Return the settings that have an annotation, whose types are checked, and the names of the others."""
    for key in settings.keys() & annotations.keys():
        if not _fits(settings[key], annotation := annotations[key]):
            kind = getattr(annotation, "__name__", "") if isinstance(annotation, type) else str(annotation)
            raise ValueError(f"{where}: {key} is {repr(settings[key])[:60]}, not of type {kind or annotation}")
    unknown = [str(key) for key in settings if key not in annotations and not str(key).startswith("_")]
    return {key: value for key, value in settings.items() if key in annotations}, unknown


def _fits(value, annotation) -> bool:
    """Return whether a value from JSON has the type of an annotation."""
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
    """Return the name of the weights file of a variant, e.g. `adapter_model.fp16.safetensors`.

    Raises:
        ValueError: a variant that is no plain word.
    """
    if variant is None:
        return WEIGHTS_NAME
    if not variant.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"variant={variant!r} is no plain word; for example 'fp16'")
    return WEIGHTS_NAME.replace(".", f".{variant}.")


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as float16 if that holds its values exactly, else as it is."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor
