"""The error for checkpoints of other projects that cannot be converted."""

from .text import plain

MAX_MESSAGE = 2000  # characters; names in a checkpoint can have any length


class ConversionError(ValueError):
    """Raised when a checkpoint cannot be converted; one line names what is unknown, missing or of the wrong shape."""

    def __init__(self, message: str):
        message = plain(message)
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} …")


class CodeRefused(ConversionError):
    """Raised for a file of `torch.save` that holds code besides tensors, such as the settings of a training."""
