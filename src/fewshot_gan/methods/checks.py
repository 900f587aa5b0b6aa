"""A check for values that are optional in general but needed by the term at hand."""

from typing import TypeVar

T = TypeVar("T")


def required(value: T | None, message: str) -> T:
    """Return `value`.

    Raises:
        ValueError: the value is None; `message` says what is missing and how to provide it.
    """
    if value is None:
        raise ValueError(message)
    return value
