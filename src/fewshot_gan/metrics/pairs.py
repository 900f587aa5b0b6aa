"""Correlation of adapted pictures with the true ones of the same latents."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.images import check_floats
from .images import luminance, resize, sobel


def paired_correlations(adapted: Tensor, true: Tensor, size: int = 256) -> dict[str, float]:
    """Return mean Pearson correlations over aligned pairs: whether each adapted image resembles *its* true image.

    Args:
        adapted, true: float `[B, 3, H, W]` in [-1, 1], row i of both from the same latent; resized (area or bilinear)
            to `size`.

    Returns:
        `{"luminance": …, "edge": …}` in [-1, 1]; edge compares Sobel gradient magnitudes. Constant images count as 0.

    Raises:
        ValueError: different numbers of images.
    """
    if len(adapted) != len(true):
        raise ValueError(
            f"{len(adapted)} adapted and {len(true)} true images are not aligned; pass one true image for each"
        )
    check_floats(adapted, true)
    totals = torch.zeros(2, dtype=torch.float64, device="cpu")
    for a, b in zip(adapted.split(32), true.split(32), strict=True):
        greys = [resize(luminance(x.float().clamp(-1, 1)), size) for x in (a, b)]
        edges = [torch.hypot(*sobel(grey)) for grey in greys]
        totals += torch.stack([_pearson(*greys).sum(), _pearson(*edges).sum()]).cpu()
    return dict(zip(("luminance", "edge"), (totals / max(len(adapted), 1)).tolist(), strict=True))


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    # in float32 a constant image has rounding errors of about 1e-6 per pixel, which must not be correlated
    return torch.where(norm > 1e-10 * a.shape[1], (a * b).sum(1) / norm.clamp_min(1e-300), 0.0)
