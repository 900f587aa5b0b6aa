"""Check that numbers in settings are finite and in their range."""

import math
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import NamedTuple, cast

from .random import check_seed


class Range(NamedTuple):
    """The finite numbers from `least` to `most`.

    Attributes:
        least, most: limits; ±inf means none.
        above, below: exclude `least` itself, exclude `most` itself.
        example: a suggested value for the error message.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    example: str = ""

    def has(self, value: float) -> bool:
        """Return whether `value` is finite and in the range."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return math.isfinite(value) and low and high

    def __str__(self) -> str:
        if self.least == -math.inf and self.most == math.inf:
            words = "a finite number"
        elif self.most == math.inf:
            words = f"a number above {self.least:g}" if self.above else f"{self.least:g} or more"
        else:
            low = f"a number above {self.least:g}" if self.above else f"{self.least:g}"
            words = f"{low} to {'below ' if self.below else ''}{self.most:g}"
        return words + (f", e.g. {self.example}" if self.example else "")


FINITE, POSITIVE, NOT_NEGATIVE = Range(), Range(0, above=True), Range(0)
COUNT, SHARE = Range(1), Range(0, 1)


def check_number(name: str, value, allowed: Range, whole: bool = False) -> None:
    """Check that `value` is a number of a range.

    Args:
        name: name of the setting, for the error message.
        value: any object.
        allowed: range of the number.
        whole: whether it must be an integer.

    Raises:
        ValueError: it is not such a number; the message names the range.
    """
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not allowed.has(cast(float, value)):
        fraction = whole and isinstance(value, Real) and not isinstance(value, kind)
        raise ValueError(f"{name}={value}: give {'a whole number, ' if fraction else ''}{allowed}")


def check_numbers(config, ranges: Mapping[str, Range]) -> None:
    """Check all int and float fields of a dataclass of settings.

    Args:
        config: the settings.
        ranges: field name → range. By default a weight (`…_weight`) must be 0 or more, `seed` a seed, and all other
            numbers finite.

    Raises:
        ValueError: a number is not finite or out of range; the message names the first one.
    """
    for field in fields(config):
        if field.name == "seed":
            check_seed(config.seed)
        elif field.type in (int, float):
            default = NOT_NEGATIVE if field.name.endswith("_weight") else FINITE
            check_number(field.name, getattr(config, field.name), ranges.get(field.name, default), field.type is int)
