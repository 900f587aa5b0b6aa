"""The error of files of others that are not what they should be."""

from .text import plain

MAX_MESSAGE = 2000  # characters; names of others can be of any length


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: one line names what is unknown, missing or of the wrong shape."""

    def __init__(self, message: str):
        message = plain(message)
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} …")
