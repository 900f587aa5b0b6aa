"""What is made of a frozen weight once and kept beside it: another layout, a transform."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter: {function: (address and version, what it made)}


@torch.no_grad()
def kept(weight: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`make(weight)`, which of a parameter is kept until the parameter changes or is gone."""
    if not isinstance(weight, nn.Parameter) or weight.is_inference():
        return make(weight)
    stamp, made = (weight.data_ptr(), weight._version), _kept.setdefault(weight, {})
    if make not in made or made[make][0] != stamp:
        made[make] = stamp, make(weight)
    return made[make][1]
