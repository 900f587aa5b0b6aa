"""Correlation of adapted pictures with the true ones of the same latents."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.images import check_floats, luminance, resize, sobel

FACE_SIDE = 64  # px of the pictures in which `FACE_PLACES` are measured
FACE_PLACES = {  # top, bottom, left and right of boxes where faces placed as in FFHQ have hair and cheeks
    "hair": ((4, 14, 22, 42),),
    "skin": ((36, 44, 18, 26), (36, 44, 38, 46)),
}


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
    _check_aligned(true, adapted)
    totals = torch.zeros(2, dtype=torch.float64, device="cpu")
    for a, b in zip(adapted.split(32), true.split(32), strict=True):
        greys = [resize(luminance(x.float().clamp(-1, 1)), size) for x in (a, b)]
        edges = [torch.hypot(*sobel(grey)) for grey in greys]
        totals += torch.stack([_pearson(*greys).sum(), _pearson(*edges).sum()]).cpu()
    return dict(zip(("luminance", "edge"), (totals / max(len(adapted), 1)).tolist(), strict=True))


def _check_aligned(true: Tensor, adapted: Tensor) -> None:
    if len(adapted) != len(true):
        raise ValueError(
            f"{len(adapted)} adapted and {len(true)} true images are not aligned; pass one true image for each"
        )
    check_floats(adapted, true)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    # in float32 a constant image has rounding errors of about 1e-6 per pixel, which must not be correlated
    return torch.where(norm > 1e-10 * a.shape[1], (a * b).sum(1) / norm.clamp_min(1e-300), 0.0)


def lightness_following(source: Tensor, adapted: Tensor) -> dict[str, float]:
    """Return how far the lightness of hair and skin in adapted pictures follows that of their source.

    Args:
        source, adapted: float `[B, 3, H, W]` in [-1, 1], row i of both from the same latent, B ≥ 2; faces placed as in
            FFHQ. The lightness of a place is its mean grey.

    Returns:
        For each place in `FACE_PLACES` `{place}_correlation`, over the B pictures, and `{place}_spread`, the standard
        deviation in `adapted` over that in `source`. Places of constant lightness count as 0.

    Raises:
        ValueError: different numbers of images, or fewer than two.
    """
    _check_aligned(source, adapted)
    if len(source) < 2:
        raise ValueError("one pair of images has no correlation; give at least two")
    greys = [resize(luminance(x.float().clamp(-1, 1)), FACE_SIDE)[:, 0].double() for x in (source, adapted)]
    found = {}
    for place, boxes in FACE_PLACES.items():
        a, b = (
            torch.stack([grey[:, top:bottom, left:right].mean((1, 2)) for top, bottom, left, right in boxes]).mean(0)
            for grey in greys
        )
        found[f"{place}_correlation"] = float(_pearson(a[None], b[None]))
        found[f"{place}_spread"] = float(b.std() / a.std()) if a.std() > 1e-6 else 0.0
    return found


def order_correlation(before: Tensor, after: Tensor) -> float:
    """Return Spearman's rank correlation of the distances between the same N things before and after a change.

    Equal distances share the mean of their ranks. If all are equal on one side, it is 0.

    Args:
        before, after: distances `[N, N]`, N ≥ 3; the upper triangles are compared.

    Raises:
        ValueError: matrices of other shapes.
    """
    if before.shape != after.shape or before.ndim != 2 or before.shape[0] != before.shape[1] or len(before) < 3:
        raise ValueError(
            f"distances of shapes {list(before.shape)} and {list(after.shape)}: give two [N, N] with N of 3 or more"
        )
    above = torch.triu_indices(len(before), len(before), 1, device="cpu")
    ranks = []
    for x in (before, after):
        _, group, sizes = x.cpu()[above[0], above[1]].unique(return_inverse=True, return_counts=True)
        last = sizes.cumsum(0).double()
        ranks.append((last - (sizes - 1) / 2)[group])  # mean rank of each group of equal ones
    return float(_pearson(*(rank[None] for rank in ranks)))
