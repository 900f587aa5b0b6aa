"""The exponential moving average of a module that is trained."""

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of a module: parameters averaged, buffers (batch norm's, spectral norm's) copied.

    Args:
        model: what is averaged.
        average: a copy of it; changed in place.
        decay: per update, from 0 to below 1.
        start: before this update the average is the module itself.
        warmup: the decay of update t is at most (1 + t) / (10 + t), so that the first steps are soon forgotten.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float, start: int = 0, warmup: bool = False):
        self.model, self.average, self.decay, self.start, self.warmup = model, average, decay, start, warmup

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        decay = 0.0 if step < self.start else self.decay
        if self.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)  # the average of pruned weights, which are zero, is zero
        for mean, value in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(value)
