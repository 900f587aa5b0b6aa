"""Cache tensors derived from a weight until the weight changes: another layout, a transform, a norm.

A write in place raises a tensor's version, but one through `tensor.data` leaves no trace on it; diffusers' `EMAModel`
writes so. Cached weights are therefore compared with a checksum of what they were: once per forward pass, which costs
1 to 4 % of it for four pictures of a look, 11 % for one, and nothing for the base.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..utils.random import seeded

ROW = 1024  # numbers that one number of a checksum stands for


@dataclass
class _Content:
    """What a cached tensor held when it was last looked at."""

    checksum: torch.Tensor
    place: tuple  # of the tensor's memory then
    writes: int = 0  # seen so far


_lock = threading.RLock()
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter: (its stamp, {function: what it made})
_contents: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor: _Content
_checked: ContextVar[Mapping[int, torch.Tensor]] = ContextVar("checked", default=MappingProxyType({}))
# id: tensor of those compared in this forward pass


@torch.no_grad()
def kept(weight: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`make(weight)`, without gradient; of a parameter it is kept until that changes, see `stamped`, or is gone."""
    stamp = stamped([weight]) if isinstance(weight, nn.Parameter) else None
    if stamp is None:
        return make(weight)
    with _lock:
        if weight not in _kept or _kept[weight][0] != stamp:
            _kept[weight] = stamp, {}
        derived = _kept[weight][1]
    if make not in derived:
        derived[make] = make(weight)
    return derived[make]


def stamped(tensors: Sequence[torch.Tensor]) -> tuple | None:
    """Changes when one of `tensors` is replaced, moved, cast or written to; None where that cannot be told.

    What is made under inference mode has another stamp, since autograd cannot use it.
    """
    if any(tensor.is_inference() or tensor.is_meta for tensor in tensors):
        return None
    _compare([tensor for tensor in tensors if id(tensor) not in _checked.get()])
    writes = [_content(tensor).writes for tensor in tensors]
    return torch.is_inference_mode_enabled(), *(_place(t) + (n,) for t, n in zip(tensors, writes, strict=True))


@contextmanager
def contents_checked(tensors: Iterable[torch.Tensor]):
    """Compare `tensors` with their checksums once, instead of whenever `stamped` is asked inside the block."""
    checked = _checked.get()
    new = {id(tensor): tensor for tensor in tensors if id(tensor) not in checked}
    _compare(new.values())
    token = _checked.set({**checked, **new})
    try:
        yield
    finally:
        _checked.reset(token)


def _place(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tensor.dtype, tensor._version


def _content(tensor: torch.Tensor) -> _Content:
    with _lock:
        if tensor not in _contents:
            _contents[tensor] = _Content(_copied_checksum(tensor), _place(tensor))
        return _contents[tensor]


def _compare(tensors: Iterable[torch.Tensor]) -> None:
    """Note which of those tensors that were looked at before hold something else now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    with _lock:
        looked_at = [(tensor, _contents.get(tensor)) for tensor in tensors if not tensor.is_meta]
        known = [pair for pair in looked_at if pair[1] is not None]
        moved = [(tensor, content) for tensor, content in known if content.place != _place(tensor)]
        for tensor, content in moved:  # the stamp tells already; the checksum is of what was there before
            content.checksum, content.place = _copied_checksum(tensor), _place(tensor)
        rest = [pair for pair in known if all(pair[0] is not tensor for tensor, _ in moved)] if moved else known
        if not rest:
            return
        for device in {tensor.device for tensor, _ in rest}:  # one comparison each: a GPU is waited for once
            here = [pair for pair in rest if pair[0].device == device]
            with torch.autocast(device.type, enabled=False):
                now = [_checksum(tensor) for tensor, _ in here]
            before = [content.checksum for _, content in here]
            if torch.equal(_bits(torch.cat(now)), _bits(torch.cat(before))):
                continue
            for (_, content), checksum in zip(here, now, strict=True):
                if not torch.equal(_bits(checksum), _bits(content.checksum)):
                    content.checksum = checksum.clone()
                    content.writes += 1


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """A number per `ROW` numbers of a tensor, then what is left of it; the same numbers in another order differ."""
    flat = tensor.detach()
    if not flat.is_contiguous() and flat.ndim == 4 and flat.is_contiguous(memory_format=torch.channels_last):
        flat = flat.permute(0, 2, 3, 1)  # as it lies in memory: nothing is copied
    flat = flat.reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.dtype != torch.float64:
        flat = flat.float()
    length = flat.numel()
    if length < ROW:
        return flat
    whole = length // ROW * ROW
    sums = flat[:whole].view(-1, ROW) @ _factors(flat.device, flat.dtype)
    return sums if whole == length else torch.cat([sums, flat[whole:]])


def _copied_checksum(tensor: torch.Tensor) -> torch.Tensor:
    """`_checksum` in memory of its own."""
    with torch.autocast(tensor.device.type, enabled=False):
        return _checksum(tensor).clone()


def _bits(checksum: torch.Tensor) -> torch.Tensor:
    """As integers, in which NaN equals NaN."""
    return checksum.view(torch.int64 if checksum.dtype == torch.float64 else torch.int32)


@cache
def _factors(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Different numbers `[ROW]`, so that a checksum knows the places of what it adds."""
    random = seeded(0)
    return torch.randn(ROW, generator=random, dtype=dtype, device="cpu").to(device)
