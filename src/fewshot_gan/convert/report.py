"""Bookkeeping of a conversion: every source tensor is used exactly once, or the conversion is refused with a list."""

import torch

from ..utils.conversion import ConversionError


class SourceTensors:
    """Named tensors of a checkpoint; `take` hands one out and `finish` refuses leftovers and gaps.

    Args:
        tensors: name → tensor.

    Raises:
        ConversionError: something else is among them.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]):
        for name, value in tensors.items():
            if not isinstance(value, torch.Tensor):
                raise ConversionError(f"{name} is a {type(value).__name__}, not a tensor")
        self.tensors, self.used, self.problems = dict(tensors), set(), []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        """Look at a tensor without using it up.

        Raises:
            ConversionError: there is none of that name.
        """
        if name not in self.tensors:
            raise ConversionError(f"the checkpoint has no tensor {name!r}; it is not of the layout it looked like")
        return self.tensors[name]

    def take(self, name: str, shape=None) -> torch.Tensor | None:
        """Hand out a tensor; a gap or a wrong shape is remembered for `finish`, and zeros or None come back."""
        if name not in self.tensors:
            self.problems.append(f"missing: {name}")
            return None if shape is None else torch.zeros(shape, dtype=torch.float32, device="cpu")
        self.used.add(name)
        tensor = self.tensors[name].detach().float()
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            self.problems.append(f"shape of {name}: {tuple(tensor.shape)} instead of {tuple(shape)}")
            return torch.zeros(shape, dtype=torch.float32, device="cpu")
        return tensor

    def discard(self, name: str) -> None:
        """Account for a tensor that the target derives itself (e.g. a fixed filter)."""
        self.used.add(name)

    def finish(self) -> None:
        """Raise if anything is missing, misshapen or left over.

        Raises:
            ConversionError: with up to twelve of the problems named.
        """
        self.problems += [f"left over: {name}" for name in sorted(set(self.tensors) - self.used)]
        if self.problems:
            shown = "; ".join(self.problems[:12])
            more = f"; and {len(self.problems) - 12} more" if len(self.problems) > 12 else ""
            raise ConversionError(f"the checkpoint does not fit its layout ({len(self.problems)} keys): {shown}{more}")


SAME = 0.01  # largest difference of two copies of a weight, beside its largest number: one may be in half precision


def check_frozen(source: SourceTensors, frozen: dict[str, torch.Tensor]) -> None:
    """Account for copies of a base's weights, which an adapter's file may hold.

    Args:
        source: the file's tensors.
        frozen: their names → the base's own.

    Raises:
        ConversionError: one differs.
    """
    for name, own in frozen.items():
        if name in source:
            copy, own = source.take(name, own.shape), own.detach().float().cpu()
            if (copy - own).abs().max() > SAME * own.abs().max():
                raise ConversionError(f"the file's {name} is not that of this base: it was trained on another one")
