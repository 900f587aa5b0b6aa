"""Read files of `torch.save` without running their code."""

from pathlib import Path

from ..utils.untrusted import read_checkpoint


def read(path: Path):
    """Return the saved value on the CPU: tensors (also for NumPy arrays), numbers, text and containers of them.

    Raises:
        ConversionError: the file is damaged, or contains other objects, such as a pickled network.
    """
    return read_checkpoint(path, "tensors")
