"""Batches whose samples (rows) use different weights; neighbouring rows with the same weight are computed together."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class RowWeights(NamedTuple):
    """The weights of a batch: the first `counts[0]` rows use `weights[0]`, the next `counts[1]` rows `weights[1]`, …"""

    weights: tuple[torch.Tensor, ...]
    counts: tuple[int, ...]


def scale_weight(weight: torch.Tensor | RowWeights, gain: float) -> torch.Tensor | RowWeights:
    """Multiply a weight, or each of several, by `gain`."""
    if isinstance(weight, RowWeights):
        return RowWeights(tuple(w * gain for w in weight.weights), weight.counts)
    return weight * gain


def by_rows(function: Callable[..., torch.Tensor], x: torch.Tensor, weight, *others) -> torch.Tensor:
    """Call `function(x, weight, *others)`, once per weight if `weight` is a `RowWeights`, and join the results.

    Args:
        x: `[B, …]`.
        weight: a tensor, or `RowWeights` whose counts add up to B.
        others: each None, `[B, …]`, or `RowWeights` with the counts of `weight`.

    Raises:
        ValueError: the counts do not add up to B.
    """
    if not isinstance(weight, RowWeights):
        return function(x, weight, *others)
    if sum(weight.counts) != len(x):
        raise ValueError(f"weights for {sum(weight.counts)} rows do not fit a batch of {len(x)}")

    def split(value):
        if value is None:
            return [None] * len(weight.counts)
        return value.weights if isinstance(value, RowWeights) else value.split(weight.counts)

    return torch.cat([function(*part) for part in zip(*map(split, (x, weight, *others)), strict=True)])
