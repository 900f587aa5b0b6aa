"""Files of `torch.save`, read without running anything in them."""

import argparse
from pathlib import Path

import torch

from .report import ConversionError


def read(path: Path):
    """What was saved, on the CPU.

    Raises:
        ConversionError: the file is damaged, or holds more than tensors, numbers, strings and their containers.
    """
    try:
        # training checkpoints carry their command line, an argparse.Namespace: attributes only
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"{path.name} cannot be read as a checkpoint of tensors ({reason}); it is damaged, cut short or holds code"
        ) from error
