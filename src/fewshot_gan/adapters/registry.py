"""The kinds of adapters that are defined: type name → class."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Adapter

REGISTRY: dict[str, "type[Adapter]"] = {}


def trainable_types() -> "dict[str, type[Adapter]]":
    """Type name → class of the kinds that start as the identity and learn all their numbers."""
    return {name: cls for name, cls in REGISTRY.items() if cls.trainable}
