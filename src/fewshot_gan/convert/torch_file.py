"""Files of `torch.save`, read without running anything in them."""

from pathlib import Path

from ..utils.untrusted import read_checkpoint


def read(path: Path):
    """What was saved, on the CPU: tensors, NumPy's arrays as such, numbers, texts and their containers.

    Raises:
        ConversionError: the file is damaged, or holds more than these, such as a whole pickled network.
    """
    return read_checkpoint(path, "tensors")
