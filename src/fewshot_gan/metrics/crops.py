"""Native crops: squares cut from pictures at full size, for metrics of what a reduced picture does not show.

Feature networks resize pictures to 224 or 260 px, so strokes of a 1024 px picture that are finer than four pixels
hardly reach them. A crop of 256 px is resized by 0.88 or 1.02: nearly native. As the patch FID of arXiv 2204.07156, the
metrics of crops see textures and strokes but no composition: read them beside those of whole pictures. Differs from the
paper: crops are taken at one scale, picture i of every set is cropped at the same places, and KID leaves out pairs of
crops that depend on each other.

Shape legend: N pictures, n crops of each, S their side in px, D size of a feature vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .distributions import sum_of_kernels

CROP_SIZE = 256  # px
CROPS = 2  # of each picture
CROP_SEED = 0


def crop_places(
    num_pictures: int, side: int, crops: int = CROPS, size: int = CROP_SIZE, seed: int = CROP_SEED, skip: int = 0
) -> Tensor:
    """Return where to cut crops: the places of picture i depend on i, the seed and the sizes alone.

    Args:
        num_pictures: number N of pictures.
        side: of the pictures, in px.
        crops: number n of crops of each picture, 1 or more.
        size: side of a crop in px.
        seed: of a generator on the CPU.
        skip: number of the first picture; the result is that of `skip + N` pictures from row `skip` on.

    Returns:
        int64 `[N, n, 2]`: the top and left edges in px, uniform. Pictures that are no larger than a crop are taken
        whole and once: `[N, 1, 2]` of zeros.

    Raises:
        ValueError: `crops` or `size` below 1.
    """
    if crops < 1 or size < 1:
        raise ValueError(f"{crops} crops of {size} px: give 1 or more of each, typically {CROPS} of {CROP_SIZE} px")
    if side <= size:
        return torch.zeros(num_pictures, 1, 2, dtype=torch.int64, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(side - size + 1, (skip + num_pictures, crops, 2), generator=generator, device="cpu")
    return places[skip:]


def native_crops(images: Tensor, places: Tensor, size: int = CROP_SIZE) -> Tensor:
    """Cut crops; nothing is resized.

    Args:
        images: `[N, 3, H, W]` of any type.
        places: of `crop_places` for these pictures, `[N, n, 2]`.
        size: side S of a crop; at a picture's end it ends there.

    Returns:
        `[N * n, 3, S, S]`, the n crops of a picture one after another; a copy.

    Raises:
        ValueError: N differs.
    """
    if len(images) != len(places):
        raise ValueError(f"{len(places)} rows of places for {len(images)} pictures; give one row for each")
    crops = [
        image[:, top : top + size, left : left + size]
        for image, row in zip(images, places.tolist(), strict=True)
        for top, left in row
    ]
    return torch.stack(crops) if crops else images.new_zeros(0, images.shape[1], size, size)


def crop_kernel_distance(fa: Tensor, fb: Tensor) -> float:
    """Return KID between native crops, over pairs of crops from pictures of different numbers, in float64.

    With k(x, y) = (x·y / D + 1)³ of KID (arXiv 1801.01401) and crop p of picture i called a_ip:

        mean of k(a_ip, a_jq) + mean of k(b_ip, b_jq) - 2 · mean of k(a_ip, b_jq), each over i ≠ j and all p, q.

    Crops of one picture resemble each other, as do crops from one place, which picture i of both sets shares. Pairs
    with i = j are therefore left out. The estimate is unbiased (the U-statistic of Gretton et al. 2012, lemma 6, over
    pictures): for two samples of one distribution it scatters around 0 and may be negative.

    Args:
        fa, fb: features `[Na, n, D]`, `[Nb, n, D]` of the crops of at least two pictures each; of the same places.

    Raises:
        ValueError: fewer than two pictures, or another n or D.
    """
    if fa.ndim != 3 or fb.ndim != 3 or fa.shape[1:] != fb.shape[1:] or min(len(fa), len(fb)) < 2:
        raise ValueError(
            f"features of crops have shapes {list(fa.shape)} and {list(fb.shape)}, not [N ≥ 2, n, D] with one n and D; "
            "take both from the same network, the same number of crops and at least two pictures"
        )
    crops, dimension = fa.shape[1:]
    fa, fb = fa.double(), fb.double()

    def mean_of_others(x: Tensor, y: Tensor) -> Tensor:
        shared = min(len(x), len(y))
        same = (x[:shared] @ y[:shared].mT / dimension + 1).pow_(3).sum()
        pairs = len(x) * len(y) - shared
        return (sum_of_kernels(x.flatten(0, 1), y.flatten(0, 1)) - same) / (pairs * crops**2)

    return (mean_of_others(fa, fa) + mean_of_others(fb, fb) - 2 * mean_of_others(fa, fb)).item()
