"""Weights that need no gradient for a while, though several threads may ask for that at once."""

import threading
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
_frozen: WeakKeyDictionary = WeakKeyDictionary()  # module: [blocks that hold it, its trainable parameters]


@contextmanager
def frozen(module: nn.Module):
    """No parameter of `module` takes gradients inside the block; those that did do again after the last such block."""
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
