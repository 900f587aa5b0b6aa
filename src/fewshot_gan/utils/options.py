"""Options of methods and adapters: frozen dataclasses whose fields are None where nothing was given."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class NoOptions:
    """For what has no options."""


def given(options) -> dict[str, Any]:
    """Fields of an options dataclass that are not None."""
    return {name: value for name, value in asdict(options).items() if value is not None}
