"""Diversity: how much the pictures of a set differ from one another."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from ..features import FeatureNetwork

_COLUMNS = 2**18  # of embeddings turned to float64 at a time


@torch.no_grad()
def spatial_embedding(
    images: Tensor, features: FeatureNetwork, size: int | None = None, batch_size: int = 16
) -> Tensor:
    """Return vectors whose squared Euclidean distance is the distance of two pictures, see `FeatureNetwork.spatial`.

    Unlike pooled features they depend on positions, so a collapse to one picture shows in their distances.

    Args:
        images: float `[N, 3, H, W]` in [-1, 1].
        features: the network.
        size: px to which `features` resizes images; None: its default.
        batch_size: images per forward pass.

    Returns:
        float `[N, E]`.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError(f"there are no images to compare in shape {list(images.shape)}")
    device = next(chain(features.parameters(), features.buffers())).device
    first = features.spatial(images[:batch_size].to(device), size)
    embeddings = first.new_empty(len(images), first.shape[1])  # allocated once, since those of LPIPS are large
    embeddings[:batch_size] = first
    for start in range(batch_size, len(images), batch_size):
        embeddings[start : start + batch_size] = features.spatial(images[start : start + batch_size].to(device), size)
    return embeddings


def pairwise_distances(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Return squared Euclidean distances `[N, E], [M, E] -> [N, M]` in float64.

    Args:
        a: `[N, E]`; of spatial embeddings the results are LPIPS-like distances.
        b: `[M, E]`; None: `a`.
    """
    b = a if b is None else b
    distances = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y in zip(a.split(_COLUMNS, 1), b.split(_COLUMNS, 1), strict=True):
        x, y = x.double(), y.double()
        distances += x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    return distances.clamp_min_(0)


def spatial_distance(images: Tensor, features: FeatureNetwork, size: int | None = None) -> float:
    """Return the mean LPIPS-like distance over all pairs of images; near 0 if all latents give the same image.

    Args:
        images: float `[N, 3, H, W]` in [-1, 1], N ≥ 2; the published protocol uses 64.
        features, size: as in `spatial_embedding`.

    Raises:
        ValueError: fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} image has no pair; pass at least 2, 64 for the published protocol")
    return mean_of_pairs(pairwise_distances(spatial_embedding(images, features, size)))


def mean_of_pairs(pairwise: Tensor) -> float:
    """Return the mean of pairwise distances `[N, N]` without the diagonal."""
    return (pairwise.sum() - pairwise.trace()).item() / (len(pairwise) * (len(pairwise) - 1))


def intra_cluster_distance(to_references: Tensor, pairwise: Tensor, max_members: int = 50) -> float:
    """Return the intra-cluster diversity (arXiv 2104.06820): the mean distance in a cluster, over clusters with a pair.

    Each generated image belongs to the cluster of its nearest training image.

    Args:
        to_references: `[N, K]` distances of N generated images to the K training images.
        pairwise: `[N, N]` distances among the generated images, any metric.
        max_members: number of images, the first ones, that are compared in a cluster.

    Returns:
        0 if every cluster holds copies of one image, or none has a pair.

    Raises:
        ValueError: shapes do not fit, or N = 0.
    """
    _, distances, counts = _clusters(to_references, pairwise, max_members)
    return distances[counts > 1].mean().nan_to_num().item()  # NaN: the mean of nothing


def balanced_intra_cluster_distance(to_references: Tensor, pairwise: Tensor, max_members: int = 50) -> float:
    """Return B-LPIPS (LFS-GAN, arXiv 2308.11917): Σ_c -p_c log10(p_c) · d_c with shares p_c and mean distances d_c.

    If one cluster holds all images, the result is 0 whatever its diversity; K clusters of equal size give the mean
    distance times log10 K. Differs from the paper: p_c + 1e-5 is capped at 1, so that the collapsed case is 0 and not
    slightly negative.

    Args, Raises: as `intra_cluster_distance`.
    """
    total, distances, counts = _clusters(to_references, pairwise, max_members)
    share = (counts / total + 1e-5).clamp_max(1.0)
    return (-share * share.log10() * distances).sum().item()


def _clusters(to_references: Tensor, pairwise: Tensor, max_members: int) -> tuple[int, Tensor, Tensor]:
    """Return N, the mean distance inside each cluster `[K]`, and the number of images of each cluster `[K]`."""
    n, k = to_references.shape
    if n == 0 or pairwise.shape != (n, n):
        raise ValueError(
            f"pairwise is {list(pairwise.shape)} for {n} generated images, not [{n}, {n}] with at least one image; "
            "compute both matrices from the same images"
        )
    nearest = to_references.argmin(1)
    distances = torch.zeros(k, dtype=torch.float64, device="cpu")
    for cluster in range(k):
        members = (nearest == cluster).nonzero().flatten()[:max_members]
        if len(members) > 1:
            inside = pairwise[members][:, members].double()
            upper = torch.triu_indices(len(members), len(members), offset=1)
            distances[cluster] = inside[upper[0], upper[1]].mean()
    return n, distances, torch.bincount(nearest, minlength=k).double().cpu()
