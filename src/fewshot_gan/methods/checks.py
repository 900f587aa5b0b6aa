"""Checks of methods: a value that the term at hand needs, and weights of which one at least must act."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def required(value: T | None, message: str) -> T:
    """Return `value`.

    Raises:
        ValueError: the value is None; `message` says what is missing and how to provide it.
    """
    if value is None:
        raise ValueError(message)
    return value


def check_terms(config: Any, others: Collection[str], example: str) -> None:
    """Refuse weights with which nothing is learned.

    Args:
        config: a dataclass; its weights are the fields `…_weight`.
        others: the weights that are not of a loss of what is trained.
        example: a weight to give.

    Raises:
        ValueError: all weights but `others` are 0.
    """
    weights = [field.name for field in fields(config) if field.name.endswith("_weight") and field.name not in others]
    if not any(getattr(config, name) for name in weights):
        raise ValueError(f"every weight is 0, so there is nothing to learn; give one, for example {example}")
