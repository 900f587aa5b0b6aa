"""Modules whose parameters are not trained: for a while (`frozen`), or as tools of another module (`Frozen`)."""

import threading
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Held = TypeVar("Held", bound=nn.Module | None)

_lock = threading.Lock()
_frozen: WeakKeyDictionary = WeakKeyDictionary()  # module: [open blocks, its trainable parameters]


class Frozen(Generic[Held]):
    """A holder that hides a module from `nn.Module` registration.

    An attribute `self.features = Frozen(features)` is neither saved nor trained nor moved with its owner. Use the
    module as `self.features.module`, or as `self.features.like(x).module` where `x` tells device and dtype.

    Args:
        module: the module, or None if the owner has no such tool.
    """

    def __init__(self, module: Held):
        self.module = module

    def like(self, tensor: torch.Tensor) -> "Frozen[Held]":
        """Move the module to the device and dtype of `tensor`; returns this holder."""
        if self.module is not None:
            self.module.to(device=tensor.device, dtype=tensor.dtype)
        return self


@contextmanager
def frozen(module: nn.Module):
    """Turn off gradients of all parameters of `module` for a `with` block; safe for several threads.

    The last open block, in any thread, turns them on again for the parameters that were trainable before the first.
    """
    with _lock:
        if module not in _frozen:
            _frozen[module] = [0, [p for p in module.parameters() if p.requires_grad]]
        _frozen[module][0] += 1
        for parameter in _frozen[module][1]:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        with _lock:
            _frozen[module][0] -= 1
            if not _frozen[module][0]:
                for parameter in _frozen.pop(module)[1]:
                    parameter.requires_grad_(True)
