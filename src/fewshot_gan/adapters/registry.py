"""The kinds of adapters: type name → class."""

from typing import TYPE_CHECKING

from ..catalogue import ADAPTERS, class_path

if TYPE_CHECKING:
    from .base import Adapter

REGISTRY: dict[str, "type[Adapter]"] = {}  # classes that are defined; a class enters itself when it is


def enter(cls: "type[Adapter]") -> None:
    """Enter a class under its `adapter_type`.

    Raises:
        ValueError: another class has this name, which keeps it.
    """
    ADAPTERS.refuse_taken(cls.adapter_type, class_path(cls))
    REGISTRY[cls.adapter_type] = cls


def adapter_class(kind: str, what: str) -> "type[Adapter]":
    """The class of a type name; one of a plugin is imported.

    Args:
        kind: the type name.
        what: what says so, for messages.

    Raises:
        ValueError: there is no such type.
    """
    if isinstance(kind, str) and kind not in REGISTRY and kind in ADAPTERS:
        ADAPTERS.load(kind)
    if not isinstance(kind, str) or kind not in REGISTRY:
        known = ", ".join(sorted({*REGISTRY, *ADAPTERS}))
        raise ValueError(f"{what} is of type {kind!r}; known types: {known}; others need the package that defines them")
    return REGISTRY[kind]


def trainable_types() -> "dict[str, type[Adapter]]":
    """Type name → class of the kinds that start as the identity and learn all their numbers."""
    return {name: cls for name, cls in REGISTRY.items() if cls.trainable}
