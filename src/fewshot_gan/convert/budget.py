"""No network is built that is larger than the file it is said to come from."""

import math

import torch
from torch.overrides import TorchFunctionMode

from .report import ConversionError

FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
SHARE, SPARE = 2, 10_000_000  # numbers that may be made for each one in the file, and whatever its size


class Budget(TorchFunctionMode):
    """Within it, tensors may be made of at most twice as many numbers as `tensors` has, and ten million.

    A shape is the file's word only: two tensors of a million rows would ask for a layer of 10¹² numbers.

    Args:
        tensors: name → tensor, what the file holds.
    """

    def __init__(self, tensors: dict):
        super().__init__()
        self.left = SPARE + SHARE * sum(value.numel() for value in tensors.values() if isinstance(value, torch.Tensor))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FACTORIES:
            sizes = args[:1] if args and isinstance(args[0], (tuple, list)) else (args,)
            self.left -= math.prod(size for size in sizes[0] if isinstance(size, int))
            if self.left < 0:
                raise ConversionError("the shapes ask for a network larger than the file; it is damaged")
        return func(*args, **(kwargs or {}))
