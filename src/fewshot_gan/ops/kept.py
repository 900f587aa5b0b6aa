"""What is made of a weight once and kept beside it while it stays as it is: another layout, a transform, a norm."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter: (its stamp, {function: what it made})


@torch.no_grad()
def kept(weight: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`make(weight)`, without gradient; of a parameter it is kept until that changes, see `stamped`, or is gone."""
    stamp = stamped([weight])
    if stamp is None or not isinstance(weight, nn.Parameter):
        return make(weight)
    if weight not in _kept or _kept[weight][0] != stamp:
        _kept[weight] = stamp, {}
    made = _kept[weight][1]
    if make not in made:
        made[make] = make(weight)
    return made[make]


def stamped(tensors: Sequence[torch.Tensor]) -> tuple | None:
    """Changes when one of `tensors` is replaced, moved, cast or written to; None where that cannot be told.

    Writes through `tensor.data` go unnoticed: they leave no trace on a tensor. What is made under inference mode has
    another stamp, since autograd cannot use it.
    """
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return torch.is_inference_mode_enabled(), *((t.data_ptr(), t.dtype, t._version) for t in tensors)
