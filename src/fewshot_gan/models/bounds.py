"""How large a network of others may be: its settings are looked at before it is built, its weights before they act."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from ..utils.json_files import read_json
from ..utils.safetensors_files import read_header
from ..utils.text import in_short, plain

LARGEST = 2**24  # of any whole number in a network's settings but a seed
MOST = 64  # of what is built in a loop: layers, blocks, entries of a list
MOST_PIXELS = 4096  # a side: narrow blocks take little in a file, and their pictures gigabytes
REPEATED = {"num_mapping_layers", "mapping_layers", "blocks_per_scale", "style_blocks", "num_convs"}
SPARE, GROWTH = 4_000_000, 2  # noise and means may be missing in a file, and are drawn
_stored: ContextVar[int | None] = ContextVar("stored", default=None)
_FACTORIES = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm),
    *(torch.arange, torch.linspace, torch.eye, torch.empty_strided),
}


@contextmanager
def built_from(numbers: int | None) -> Iterator[None]:
    """Within it a network much larger than what `numbers` can fill is refused before it takes memory; None: none is."""
    token = _stored.set(numbers)
    try:
        yield
    finally:
        _stored.reset(token)


def _bounded(init: Callable) -> Callable:
    """`__init__` of a network, which refuses settings that are too large or not finite, and see `built_from`."""

    @wraps(init)
    def bounded_init(self, *args, **kwargs):
        _check_settings(type(self).__name__, init, args, kwargs)
        if (stored := _stored.get()) is None:
            init(self, *args, **kwargs)
        else:
            with built_from(None), _Counted(type(self).__name__, stored):
                init(self, *args, **kwargs)
        if (side := getattr(self, "resolution", 0)) > MOST_PIXELS:
            raise ValueError(f"{type(self).__name__}: pictures of {side:,} px a side; at most {MOST_PIXELS:,}")

    return bounded_init


class Checked:
    """Of networks that diffusers loads: nothing is built or mapped into memory that the folder's files do not hold."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _bounded(cls.__init__)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, but that files are read and never mapped: one that is cut short later ends no process.

        Raises:
            ValueError: config or weights are damaged, do not belong together, or hold numbers that are not finite.
        """
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        numbers = _stored_numbers(folder) if folder.is_dir() else None
        kwargs["disable_mmap"] = True
        try:
            with built_from(numbers):
                loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (TypeError, KeyError, AttributeError, IndexError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no {cls.__name__} that can be loaded ({in_short(error)})") from error
        check_finite(loaded[0] if isinstance(loaded, tuple) else loaded, f"the {cls.__name__} in {folder}")
        return loaded


def _stored_numbers(folder: Path) -> int | None:
    """How many numbers the weights of a folder hold at most; None where there are none.

    Raises:
        ValueError: a file is damaged, or an index of shards names files elsewhere.
    """
    if (config := folder / "config.json").is_file():
        read_json(config)
    for index in folder.glob("*.index.json"):
        _check_shards(index)
    found = [read_header(path).numel for path in folder.glob("*.safetensors")]
    if not found and (pickles := list(folder.glob("*.bin"))):
        from ..utils.untrusted import check

        for path in pickles:  # diffusers reads them
            check(path)
            found.append(path.stat().st_size)
    return sum(found) if found else None


def _check_shards(index: Path) -> None:
    """Refuse an index of shards that is damaged or names files elsewhere on this machine."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} is damaged: it has no weight_map; fetch the file again")
    for shard in shards.values():
        if not isinstance(shard, str) or PureWindowsPath(shard).name != shard or shard.startswith("."):
            raise ValueError(f"{index} names the file {plain(shard)!r}, which is not beside it; do not trust this base")


class _Counted(TorchFunctionMode):
    """Counts the numbers of new tensors before they are made."""

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
        given = inspect.signature(init).bind_partial(None, *args, **kwargs).arguments
    except TypeError:
        return  # the call itself says what is wrong
    for setting, value in list(given.items())[1:]:
        _check(name, setting, setting, value)


def _check(name: str, setting: str, part: str, value) -> None:
    if isinstance(value, list | tuple | dict):
        if len(value) > MOST:
            raise ValueError(f"{name}: {part} has {len(value)} entries; at most {MOST}")
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _check(name, setting, f"{part}[{key!r}]", entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {part} is {value}; give a finite number")
    elif isinstance(value, int) and setting != "seed":
        most = MOST if setting in REPEATED else LARGEST
        if not 0 <= value <= most:
            shown = f"{value:,}" if abs(value) < 10**15 else "of more than 15 digits"
            raise ValueError(f"{name}: {part} is {shown}; at least 0 and at most {most:,}")


def check_finite(network: nn.Module, name: str) -> None:
    """Refuse weights that are no finite numbers: every picture would be black.

    Raises:
        ValueError: names up to four of them.
    """
    wrong = []
    for key, tensor in network.state_dict().items():
        if tensor.is_complex():
            wrong.append(key)
        elif tensor.is_floating_point() and not tensor.is_meta:
            tensor = tensor.float() if tensor.element_size() == 1 else tensor  # float8 knows no isfinite
            if not torch.isfinite(tensor).all():
                wrong.append(key)
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"{name} has weights that are no finite real numbers: {', '.join(wrong[:4])}{more}")
