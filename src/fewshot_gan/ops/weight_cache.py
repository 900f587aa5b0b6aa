"""Cache tensors derived from a weight until the weight changes: another memory layout, a transform, a norm.

An in-place write raises a tensor's version counter. A write through `tensor.data`, as in diffusers' `EMAModel`, leaves
it unchanged. Cached weights are therefore also compared with a checksum of their earlier values, once per forward pass.
That costs 1 to 4 % of a forward pass for four pictures of an adapter, 11 % for one, and nothing for the base model.
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
from .dispatch import is_traced

ROW = 1024  # values of a tensor that are summed up to one value of its checksum


@dataclass
class _Content:
    """The values that a tensor held when they were last compared."""

    checksum: torch.Tensor
    place: tuple  # `_place` of the tensor at that time
    writes: int = 0  # changes that only the checksum showed


_lock = threading.RLock()
_derived: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter: (its version, {function: its result})
_contents: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor: _Content
# id: tensor, for the tensors that this forward pass has already compared
_compared: ContextVar[Mapping[int, torch.Tensor]] = ContextVar("compared", default=MappingProxyType({}))


@torch.no_grad()
def cached(weight: torch.Tensor, derive: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return `derive(weight)` without gradient, from the cache if `weight` is a parameter that has not changed.

    Args:
        weight: the tensor to derive from. Results for plain tensors are not cached.
        derive: a function of one tensor. It is part of the cache key, so pass the same object each time.
    """
    version = tensors_version([weight]) if isinstance(weight, nn.Parameter) else None
    if version is None:
        return derive(weight)
    with _lock:
        if weight not in _derived or _derived[weight][0] != version:
            _derived[weight] = version, {}
        results = _derived[weight][1]
    if derive not in results:
        results[derive] = derive(weight)
    return results[derive]


def tensors_version(tensors: Sequence[torch.Tensor]) -> tuple | None:
    """Return a value that changes when one of `tensors` is replaced, moved, cast or written to.

    Inference mode has versions of its own, since autograd cannot use tensors that were made there.

    Returns:
        A tuple to compare with `==`, or None for inference and meta tensors, whose changes cannot be detected.
    """
    if any(tensor.is_inference() or tensor.is_meta for tensor in tensors):
        return None
    _compare([tensor for tensor in tensors if id(tensor) not in _compared.get()])
    writes = [_content(tensor).writes for tensor in tensors]
    return torch.is_inference_mode_enabled(), *(_place(t) + (n,) for t, n in zip(tensors, writes, strict=True))


@contextmanager
def compare_once(tensors: Iterable[torch.Tensor]):
    """Compare `tensors` with their checksums now, and not again in calls of `tensors_version` inside the block."""
    compared = _compared.get()
    new = {id(tensor): tensor for tensor in tensors if id(tensor) not in compared}
    _compare(new.values())
    token = _compared.set({**compared, **new})
    try:
        yield
    finally:
        _compared.reset(token)


def _place(tensor: torch.Tensor) -> tuple:
    """Address, dtype and version counter; torch has no public name for the counter of in-place writes."""
    return tensor.data_ptr(), tensor.dtype, tensor._version


def _content(tensor: torch.Tensor) -> _Content:
    with _lock:
        if tensor not in _contents:
            _contents[tensor] = _Content(_copied_checksum(tensor), _place(tensor))
        return _contents[tensor]


def _compare(tensors: Iterable[torch.Tensor]) -> None:
    """Count a write for each tensor whose values differ from those at its last comparison."""
    if is_traced():
        return
    with _lock:
        pairs = [(tensor, _contents.get(tensor)) for tensor in tensors if not tensor.is_meta]
        unmoved: list[tuple[torch.Tensor, _Content]] = []
        for tensor, content in pairs:
            if content is None:
                continue
            if content.place == _place(tensor):
                unmoved.append((tensor, content))
            else:  # `_place` already gives it a new version; the checksum is of the old memory
                content.checksum, content.place = _copied_checksum(tensor), _place(tensor)
        for device in {tensor.device for tensor, _ in unmoved}:  # one comparison per device, so one wait for a GPU
            on_device = [pair for pair in unmoved if pair[0].device == device]
            with torch.autocast(device.type, enabled=False):
                checksums = [_checksum(tensor) for tensor, _ in on_device]
            earlier = [content.checksum for _, content in on_device]
            if torch.equal(_bits(torch.cat(checksums)), _bits(torch.cat(earlier))):
                continue
            for (_, content), checksum in zip(on_device, checksums, strict=True):
                if not torch.equal(_bits(checksum), _bits(content.checksum)):
                    content.checksum = checksum.clone()
                    content.writes += 1


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return a weighted sum of every `ROW` values, then the remaining values; it depends on the order of the values."""
    flat = tensor.detach()
    if not flat.is_contiguous() and flat.ndim == 4 and flat.is_contiguous(memory_format=torch.channels_last):
        flat = flat.permute(0, 2, 3, 1)  # the order in memory, so that nothing is copied
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
    """`_checksum` that shares no memory with the tensor."""
    with torch.autocast(tensor.device.type, enabled=False):
        return _checksum(tensor).clone()


def _bits(checksum: torch.Tensor) -> torch.Tensor:
    """View the checksum as integers, for which NaN equals NaN."""
    return checksum.view(torch.int64 if checksum.dtype == torch.float64 else torch.int32)


@cache
def _factors(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return `[ROW]` different weights for the sums, so that swapped values change the checksum."""
    random = seeded(0)
    return torch.randn(ROW, generator=random, dtype=dtype, device="cpu").to(device)
