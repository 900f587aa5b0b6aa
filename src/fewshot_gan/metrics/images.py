"""PSNR of images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.images import check_floats


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, averaged over images; infinite if the images of a pair are equal.

    Args:
        a, b: float `[B, 3, H, W]`, clamped to [-1, 1] (peak-to-peak 2) first.

    Raises:
        ValueError: shapes differ, or they are no floats.
    """
    check_floats(a, b)
    if a.shape != b.shape:
        raise ValueError(f"images have shapes {list(a.shape)} and {list(b.shape)}; resize one set to the other")
    error = (a.double().clamp(-1, 1) - b.double().clamp(-1, 1)).square().flatten(1).mean(1)  # [B]
    return (10 * torch.log10(4 / error)).mean().item()
