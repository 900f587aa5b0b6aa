"""What photo filters are made of: blur, contours, and coordinates of patterns.

Lengths are in pixels of the picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of `[B, C, H, W]` with reflected borders; `sigma` in pixels."""
    radius = min(max(1, math.ceil(3 * sigma)), min(x.shape[-2:]) - 1)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma).square())
    kernel = kernel / kernel.sum()
    if max(x.shape[-2:]) > _CONVOLVED_SIDE:
        weights = kernel.tolist()
        return _blur_rows(_blur_rows(x, weights).mT, weights).mT.contiguous()
    kernel = kernel.expand(x.shape[1], 1, -1)
    x = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    x = F.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])
    return F.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])


_CONVOLVED_SIDE = 256  # px; above it a sum of shifted images is 5 times as fast as PyTorch's convolution on a CPU


def _blur_rows(x: Tensor, weights: list[float]) -> Tensor:
    """Weighted sum of `x` `[B, C, H, W]` shifted up and down; `weights` are symmetric."""
    radius, height = len(weights) // 2, x.shape[-2]
    padded = F.pad(x, (0, 0, radius, radius), mode="reflect")
    total = padded[..., radius : radius + height, :] * weights[radius]
    for index, weight in enumerate(weights[:radius]):
        total.add_(padded[..., index : index + height, :], alpha=weight)
        total.add_(padded[..., 2 * radius - index : 2 * radius - index + height, :], alpha=weight)
    return total


def places(x: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates `[1, 1, H, W]` in px, from the middle, along two axes turned by `angle` degrees."""
    height, width = x.shape[-2:]
    down = torch.arange(height, dtype=torch.float32, device=x.device)[:, None] - (height - 1) / 2
    across = torch.arange(width, dtype=torch.float32, device=x.device)[None, :] - (width - 1) / 2
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (cos * across + sin * down)[None, None].to(x.dtype), (cos * down - sin * across)[None, None].to(x.dtype)


def contours(grey: Tensor, sigma: float, sharpness: float, offset: float) -> Tensor:
    """1 on flat and light ground, falling to 0 on the dark side of an edge."""
    difference = gaussian_blur(grey, sigma) - gaussian_blur(grey, 1.6 * sigma)
    return torch.sigmoid(sharpness * (difference + offset))
