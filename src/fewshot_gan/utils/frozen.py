"""Modules whose parameters are not trained: for a while (`frozen`), or as tools of another module (`Frozen`)."""

import threading
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")
_lock = threading.Lock()
_frozen: WeakKeyDictionary = WeakKeyDictionary()  # module: [number of blocks that hold it, its trainable parameters]


class Frozen(Generic[T]):
    """Hold a network, or a collection of them, that a module uses but does not own.

    An attribute of this type is no submodule: `state_dict`, `parameters`, `to` and `train` pass it over.

    Attributes:
        value: what is held.
    """

    def __init__(self, value: T):
        self.value = value


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
