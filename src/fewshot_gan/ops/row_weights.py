"""Batches whose rows use different weights: rows that share a weight lie side by side and are computed together."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class RowWeights(NamedTuple):
    """Weights of a batch: its first `counts[0]` rows use `weights[0]`, the next `counts[1]` rows `weights[1]`, …"""

    weights: tuple[torch.Tensor, ...]
    counts: tuple[int, ...]


def scaled(weight: torch.Tensor | RowWeights, gain: float) -> torch.Tensor | RowWeights:
    """`gain` times a weight, or times each of several."""
    if isinstance(weight, RowWeights):
        return RowWeights(tuple(w * gain for w in weight.weights), weight.counts)
    return weight * gain


def by_rows(function: Callable[..., torch.Tensor], x: torch.Tensor, weight, *others) -> torch.Tensor:
    """`function(x, weight, *others)`, called once per run of rows if `weight` is a `RowWeights`.

    Args:
        x: `[B, …]`.
        weight: a tensor, or `RowWeights` whose counts add up to B.
        others: each None, `[B, …]`, or `RowWeights` with the counts of `weight`.

    Raises:
        ValueError: counts that do not add up to B.
    """
    if not isinstance(weight, RowWeights):
        return function(x, weight, *others)
    if sum(weight.counts) != len(x):
        raise ValueError(f"weights for {sum(weight.counts)} rows do not fit a batch of {len(x)}")

    def runs(value):
        if value is None:
            return [None] * len(weight.counts)
        return value.weights if isinstance(value, RowWeights) else value.split(weight.counts)

    return torch.cat([function(*run) for run in zip(*map(runs, (x, weight, *others)), strict=True)])
