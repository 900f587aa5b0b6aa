"""Account for every tensor of a checkpoint: unused, missing and misshapen ones are listed in an error."""

from collections.abc import Iterable

import torch

from ..utils.conversion import ConversionError


class SourceTensors:
    """The tensors of a checkpoint; `take` uses one, and `finish` raises an error for unused or missing ones.

    Args:
        tensors: name → tensor.

    Raises:
        ConversionError: a value is not a tensor.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]):
        for name, value in tensors.items():
            if not isinstance(value, torch.Tensor):
                raise ConversionError(f"{name} is a {type(value).__name__}, not a tensor")
        self.tensors, self.used, self.problems = dict(tensors), set(), []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor without marking it as used.

        Raises:
            ConversionError: the tensor does not exist.
        """
        if name not in self.tensors:
            raise ConversionError(f"the checkpoint has no tensor {name!r}; it is not of the layout it looked like")
        return self.tensors[name]

    def take(self, name: str, shape: Iterable[int]) -> torch.Tensor:
        """Return a tensor in float32 and mark it as used.

        If it is missing or misshapen, return zeros and note the problem for `finish`.
        """
        shape = tuple(shape)
        if name not in self.tensors:
            self.problems.append(f"missing: {name}")
            return torch.zeros(shape, dtype=torch.float32, device="cpu")
        self.used.add(name)
        tensor = self.tensors[name].detach().float()
        if tuple(tensor.shape) != shape:
            self.problems.append(f"shape of {name}: {tuple(tensor.shape)} instead of {shape}")
            return torch.zeros(shape, dtype=torch.float32, device="cpu")
        return tensor

    def discard(self, name: str) -> None:
        """Mark a tensor as used that our network computes itself, e.g. a fixed filter."""
        self.used.add(name)

    def finish(self) -> None:
        """Raise an error if a tensor is missing, misshapen or unused.

        Raises:
            ConversionError: names up to twelve problems.
        """
        self.problems += [f"left over: {name}" for name in sorted(set(self.tensors) - self.used)]
        if self.problems:
            shown = "; ".join(self.problems[:12])
            more = f"; and {len(self.problems) - 12} more" if len(self.problems) > 12 else ""
            raise ConversionError(f"the checkpoint does not fit its layout ({len(self.problems)} keys): {shown}{more}")


SAME = 0.01  # tolerance between copies of a weight, relative to its maximum; one may have been in half precision


def check_frozen(source: SourceTensors, frozen: dict[str, torch.Tensor]) -> None:
    """Check and mark as used the copies of base weights in an adapter file.

    Args:
        source: the file's tensors.
        frozen: name in the file → weight of the base.

    Raises:
        ConversionError: a weight differs from the base's.
    """
    for name, own in frozen.items():
        if name in source:
            copy, own = source.take(name, own.shape), own.detach().float().cpu()
            if (copy - own).abs().max() > SAME * own.abs().max():
                raise ConversionError(f"the file's {name} is not that of this base: it was trained on another one")
