"""Numbers of settings: finite, and in their range, or refused in one sentence."""

import math
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import NamedTuple

from .random import check_seed


class Range(NamedTuple):
    """Numbers from `least` to `most`.

    Attributes:
        least, most: ±inf where there is no limit; no number is infinite.
        above, below: `least` itself, `most` itself is not one of them.
        example: one to give instead, as text.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    example: str = ""

    def has(self, value: float) -> bool:
        """Whether `value` is finite and in the range."""
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
    """Refuse what is no number of `allowed`.

    Args:
        name: of the setting, as the message has it.
        value: of any type.
        allowed: its range.
        whole: whether it is to be an integer.

    Raises:
        ValueError: in one sentence.
    """
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not allowed.has(value):
        part = whole and isinstance(value, Real) and not isinstance(value, kind)
        raise ValueError(f"{name}={value}: give {'a whole number, ' if part else ''}{allowed}")


def check_numbers(config, ranges: Mapping[str, Range]) -> None:
    """Refuse settings, a dataclass, with a number that is not finite or outside of its range.

    Args:
        config: fields of type int or float are looked at; bool and text are not.
        ranges: name → range; of others a weight (`…_weight`) is 0 or more, `seed` is one, and the rest is finite.

    Raises:
        ValueError: about the first of them, in one sentence.
    """
    for field in fields(config):
        if field.name == "seed":
            check_seed(config.seed)
        elif field.type in (int, float):
            usual = NOT_NEGATIVE if field.name.endswith("_weight") else FINITE
            check_number(field.name, getattr(config, field.name), ranges.get(field.name, usual), field.type is int)
