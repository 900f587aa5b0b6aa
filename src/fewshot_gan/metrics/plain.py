"""Features without a network: histograms of colours and gradients, and grey levels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import check_floats, luminance, sobel

# SCALES: square root of each group's total variance over 100 source faces (FFHQ generator, psi 0.7, 256 px). Divided by
# it, every group has total variance 1 on those faces. PLAIN_GAIN brings x·y / D near 1, where the linear, square and
# cubic parts of the kernel in `kernel_distance` have equal weight. Both are constants, so that the features of an image
# do not depend on other images.
SCALES = {"colour": 0.329, "chroma": 0.389, "magnitude": 0.118, "orientation": 0.0710, "greys": 2.93}
PLAIN_GAIN = 2.5
_PLAIN_SIZE = 256


def plain_features(images: Tensor, batch_size: int = 64) -> Tensor:
    """Return features for metrics that no loss trains on: colour and gradient histograms, and 16x16 grey levels.

    Groups, all at 256 px (area resize): RGB histograms (16 bins each), Cb and Cr histograms (17 bins each), gradient
    magnitude (16 bins of its square root, 1 = derivative 0.7 of the white-black range), gradient orientation (8 bins
    over 180°, weighted by magnitude), 16x16 greys. Each group is divided by a fixed constant (`SCALES`) so that none
    dominates by its number of bins.

    Args:
        images: float `[N, 3, H, W]`, clamped to [-1, 1].
        batch_size: images per step; the result does not depend on it.

    Returns:
        float `[N, 362]`.
    """
    return torch.cat([_plain(chunk) for chunk in images.split(batch_size)])


def _plain(images: Tensor) -> Tensor:
    check_floats(images)
    x = (images.float().clamp(-1, 1) + 1) / 2
    if x.shape[-2:] != (_PLAIN_SIZE, _PLAIN_SIZE):
        x = F.interpolate(x, size=(_PLAIN_SIZE, _PLAIN_SIZE), mode="area")
    grey = luminance(x)  # [B, 1, S, S] in [0, 1]
    chroma = torch.cat([(x[:, 2:] - grey) * 0.564, (x[:, :1] - grey) * 0.713], 1) + 0.5  # Cb, Cr of BT.601
    gx, gy = sobel(grey)
    magnitude = (gx.square() + gy.square()).sqrt()
    # Orientation in [0, 1); 180° apart is the same line. Exact grey and exact horizontals lie in the *middle* of a bin
    # (odd number of chroma bins, offset of half a bin here): on the edge of bins, rounding errors would choose the bin.
    angle = (torch.atan2(gy, gx) / math.pi + 1 / 16) % 1.0
    groups = {
        "colour": _histogram(x, 16).flatten(1),
        "chroma": _histogram(chroma, 17).flatten(1),
        "magnitude": _histogram((magnitude / 0.7).sqrt(), 16).flatten(1),
        "orientation": _histogram(angle, 8, magnitude).flatten(1),
        "greys": F.interpolate(grey, size=(16, 16), mode="area").flatten(1),
    }
    return PLAIN_GAIN * torch.cat([groups[name] / scale for name, scale in SCALES.items()], 1)


def _histogram(x: Tensor, bins: int, weight: Tensor | None = None) -> Tensor:
    """Return the shares of `x` `[B, C, H, W]`, clamped to [0, 1], in equal bins: `[B, C, bins]`, rows sum to 1."""
    index = (x * bins).long().clamp_(0, bins - 1).flatten(2)
    weight = torch.ones_like(x).flatten(2) if weight is None else weight.flatten(2)
    counts = torch.zeros(*index.shape[:2], bins, device=x.device, dtype=torch.float32).scatter_add_(2, index, weight)
    return counts / weight.sum(2, keepdim=True).clamp_min(1e-8)
