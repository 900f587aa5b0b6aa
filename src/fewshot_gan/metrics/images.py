"""Luminance, edges and PSNR of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import check_floats

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


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


def luminance(images: Tensor) -> Tensor:
    """Return BT.601 luminance `[B, 3, H, W] -> [B, 1, H, W]`, in the range of the input."""
    return (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sobel(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Return horizontal and vertical Sobel derivatives of `[B, 1, H, W]`; a unit ramp gives 1. Borders: replicated."""
    kernel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    out = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return out[:, :1], out[:, 1:]


def resize(x: Tensor, size: int) -> Tensor:
    """Return images `[B, C, H, W]` as squares of `size` px: area if reduced, bilinear if enlarged."""
    if x.shape[-2:] == (size, size):
        return x
    if min(x.shape[-2:]) >= size:
        return F.interpolate(x, size=(size, size), mode="area")
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
