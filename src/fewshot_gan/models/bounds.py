"""Limits for networks from untrusted sources: check the config before building, the weights before using them."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from ..utils.json_files import read_json
from ..utils.safetensors_files import read_header
from ..utils.text import in_short, plain

MAX_INTEGER = 2**24  # for every integer in a network's config except seeds
MAX_REPEATS = 64  # for numbers of layers and blocks and lengths of lists
MAX_RESOLUTION = 4096  # a small file of narrow blocks could otherwise make images of gigabytes
REPEATED = {"num_mapping_layers", "mapping_layers", "blocks_per_scale", "style_blocks", "num_convs"}
# A network may have GROWTH times the values of its file plus SPARE, since files may lack noise and means.
SPARE, GROWTH = 4_000_000, 2
_stored_values: ContextVar[int | None] = ContextVar("stored_values", default=None)
_FACTORIES = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm),
    *(torch.arange, torch.linspace, torch.eye, torch.empty_strided),
}


@contextmanager
def limit_size(num_values: int | None) -> Iterator[None]:
    """Refuse, before it takes memory, to build a network much larger than a file of `num_values` values.

    Args:
        num_values: number of values in the file, or None for no limit.
    """
    token = _stored_values.set(num_values)
    try:
        yield
    finally:
        _stored_values.reset(token)


def _bounded(init: Callable) -> Callable:
    """Wrap the `__init__` of a network so that it checks its arguments and enforces `limit_size`."""

    @wraps(init)
    def bounded_init(self, *args, **kwargs):
        _check_settings(type(self).__name__, init, args, kwargs)
        if (stored := _stored_values.get()) is None:
            init(self, *args, **kwargs)
        else:
            with limit_size(None), _CountValues(type(self).__name__, stored):
                init(self, *args, **kwargs)
        if (side := getattr(self, "resolution", 0)) > MAX_RESOLUTION:
            raise ValueError(f"{type(self).__name__}: pictures of {side:,} px a side; at most {MAX_RESOLUTION:,}")

    return bounded_init


class Checked:
    """Mixin before `ModelMixin`: check configs and weights, and build nothing larger than the folder's files allow."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _bounded(cls.__init__)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load as diffusers does, but read the files without mapping them: a truncated mapped file kills the process.

        Raises:
            ValueError: config or weights are damaged, do not fit each other, or contain NaN or infinity.
        """
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        num_values = _count_stored_values(folder) if folder.is_dir() else None
        kwargs["disable_mmap"] = True
        diffusers_class: Any = super()  # ModelMixin
        try:
            with limit_size(num_values):
                loaded = diffusers_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (TypeError, KeyError, AttributeError, IndexError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no {cls.__name__} that can be loaded ({in_short(error)})") from error
        check_finite(loaded[0] if isinstance(loaded, tuple) else loaded, f"the {cls.__name__} in {folder}")
        return loaded


def _count_stored_values(folder: Path) -> int | None:
    """Return an upper bound of the number of values in a folder's weights, or None if it has no weights.

    Raises:
        ValueError: a file is damaged, or an index of shards names files outside of the folder.
    """
    if (config := folder / "config.json").is_file():
        read_json(config)
    for index in folder.glob("*.index.json"):
        _check_shards(index)
    sizes = [read_header(path).numel for path in folder.glob("*.safetensors")]
    if not sizes and (pickles := list(folder.glob("*.bin"))):
        from ..utils.untrusted import check

        for path in pickles:
            check(path)
            sizes.append(path.stat().st_size)
    return sum(sizes) if sizes else None


def _check_shards(index: Path) -> None:
    """Raise ValueError if an index of shards is damaged or names files outside of its folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} is damaged: it has no weight_map; fetch the file again")
    for shard in shards.values():
        if not isinstance(shard, str) or PureWindowsPath(shard).name != shard or shard.startswith("."):
            raise ValueError(f"{index} names the file {plain(shard)!r}, which is not beside it; do not trust this base")


class _CountValues(TorchFunctionMode):
    """Count the values of new tensors, and refuse too many before they are allocated."""

    def __init__(self, name: str, stored: int):
        super().__init__()
        self.name, self.stored, self.count = name, stored, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _FACTORIES:
            shape = {key: value for key, value in kwargs.items() if key not in ("generator", "out", "pin_memory")}
            self.count += function(*args, **(shape | {"device": "meta"})).numel()
            if self.count > SPARE + GROWTH * self.stored:
                raise ValueError(
                    f"a {self.name} of these settings has more than {self.count:,} numbers, the weights at most "
                    f"{self.stored:,}; they do not belong together"
                )
        return function(*args, **kwargs)


def _check_settings(name: str, init: Callable, args: tuple, kwargs: dict) -> None:
    try:
        arguments = inspect.signature(init).bind_partial(None, *args, **kwargs).arguments
    except TypeError:
        return  # calling `init` raises the same error
    for setting, value in list(arguments.items())[1:]:
        _check(name, setting, setting, value)


def _check(name: str, setting: str, part: str, value) -> None:
    if isinstance(value, list | tuple | dict):
        if len(value) > MAX_REPEATS:
            raise ValueError(f"{name}: {part} has {len(value)} entries; at most {MAX_REPEATS}")
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _check(name, setting, f"{part}[{key!r}]", entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {part} is {value}; give a finite number")
    elif isinstance(value, int) and setting != "seed":
        limit = MAX_REPEATS if setting in REPEATED else MAX_INTEGER
        if not 0 <= value <= limit:
            shown = f"{value:,}" if abs(value) < 10**15 else "of more than 15 digits"
            raise ValueError(f"{name}: {part} is {shown}; at least 0 and at most {limit:,}")


def check_finite(network: nn.Module, name: str) -> None:
    """Refuse weights with NaN or infinity, with which every image would be black.

    Raises:
        ValueError: a weight is complex or not finite; the message names up to four.
    """
    bad_keys = []
    for key, tensor in network.state_dict().items():
        if tensor.is_complex():
            bad_keys.append(key)
        elif tensor.is_floating_point() and not tensor.is_meta:
            tensor = tensor.float() if tensor.element_size() == 1 else tensor  # isfinite lacks float8
            if not torch.isfinite(tensor).all():
                bad_keys.append(key)
    if bad_keys:
        more = f" and {len(bad_keys) - 4} more" if len(bad_keys) > 4 else ""
        raise ValueError(f"{name} has weights that are no finite real numbers: {', '.join(bad_keys[:4])}{more}")
