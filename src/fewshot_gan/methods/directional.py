"""Losses on directions between embeddings, and operations on the embeddings of domains.

HyperDomainNet §3 (arXiv 2210.08884), after StyleGAN-NADA (arXiv 2108.00946) and Mind the Gap (arXiv 2110.08398).
Shape legend: B images, K prompt templates (1 for a domain shown by pictures), D size of an embedding, N domains, R
reference pictures.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .losses import total

SHORTEST = 0.1  # differences of unit vectors that are shorter weigh less, see `cosine`


def direction_loss(
    adapted: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, origins: torch.Tensor
) -> torch.Tensor:
    """Let every picture change in the direction from the source to the target domain.

    mean_b 1 − cos(e_t − e_s, mean_k(T − S)).

    Args:
        adapted, source: embeddings e_t, e_s `[B, D]` of the adapted and the source picture of each latent.
        targets, origins: embeddings T, S `[B or 1, K, D]` of the target and the source domain.
    """
    return (1 - cosine(adapted - source, (targets - origins).mean(1))).mean()


def indomain_loss(adapted: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Keep the similarities between the pictures of a batch.

    2/(B(B−1)) Σ_{i>j} (⟨e_s^i, e_s^j⟩ − ⟨e_t^i, e_t^j⟩)²; 0 for a single picture.

    Args:
        adapted, source: embeddings `[B, D]`, see `direction_loss`.
    """
    first, second = pairs(adapted)
    if len(first) == 0:
        return adapted.sum() * 0
    difference = (source[first] * source[second]).sum(1) - (adapted[first] * adapted[second]).sum(1)
    return difference.square().mean()


def tt_direction_loss(adapted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Let pictures of two domains differ in the direction in which the domains differ.

    mean_{i>j} 1 − cos(e_t^i − e_t^j, T^i − T^j). Differs from the released code: pairs of equal domains, whose loss
    would be a constant 1, are left out.

    Args:
        adapted: embeddings `[B, D]` of adapted pictures.
        targets: embeddings `[B, K, D]` of the domain of each picture.
    """
    targets, (first, second) = targets.mean(1), pairs(adapted)
    domain_direction = targets[first] - targets[second]
    differ = domain_direction.norm(dim=1) > 1e-6
    if not differ.any():
        return adapted.sum() * 0
    return (1 - cosine((adapted[first] - adapted[second])[differ], domain_direction[differ])).mean()


def global_loss(adapted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Move every picture towards the target domain: mean_b 1 − cos(e_t, mean_k T).

    Args:
        adapted: embeddings `[B, D]` of adapted pictures.
        targets: embeddings `[B or 1, K, D]` of the target domain.
    """
    return (1 - F.cosine_similarity(adapted, targets.mean(1), dim=1)).mean()


def within_loss(
    adapted: torch.Tensor, source: torch.Tensor, reference: torch.Tensor, projected: torch.Tensor
) -> torch.Tensor:
    """Let adapted pictures differ from the reference as source pictures differ from its projection.

    mean_b 1 − cos(e_t − e_ref, e_s − e_ref,A). All embeddings are `[B or 1, D]`.

    Args:
        adapted, source: see `direction_loss`.
        reference: the reference picture.
        projected: the source's picture of the reference's latent.
    """
    return (1 - cosine(adapted - reference, source - projected)).mean()


def reference_loss(drawn: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Let the adapted picture of a reference's latent look like the reference: mean 1 − cos.

    Args:
        drawn, reference: embeddings `[R, D]` of the adapted pictures and of the references.
    """
    return (1 - F.cosine_similarity(drawn, reference, dim=1)).mean()


def offsets_l2(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return Σ over layers of mean(δ²) for the offsets δ `[C]` or `[B, C]` of one or more layers."""
    return total(delta.square().mean() for delta in deltas)


def offsets_l1(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return Σ over layers of mean(|δ|) for the offsets δ `[C]` or `[B, C]` of one or more layers."""
    return total(delta.abs().mean() for delta in deltas)


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return ⟨x, y⟩ / (max(‖x‖, 0.1) ‖y‖) over the last dimension of `[…, D]`.

    The limit 0.1 bounds the gradient at x = 0. That is where training starts, because a new adapter draws the same
    pictures as the source; gradients of the plain cosine would spoil Adam's second moment for a thousand steps. The
    released code does not need the limit, since its pairs of pictures have different noise.
    """
    return (x * y).sum(-1) / (x.norm(dim=-1).clamp_min(SHORTEST) * y.norm(dim=-1).clamp_min(1e-8))


def pairs(x: torch.Tensor) -> torch.Tensor:
    """Return the row indices i < j of all pairs of rows of `x`, `[2, B(B−1)/2]`."""
    return torch.triu_indices(len(x), len(x), 1, device=x.device)


def dirichlet_alphas(batch: int, random: torch.Generator) -> torch.Tensor:
    """Sample mixing weights `[B, B]`: each row from a Dirichlet distribution with all concentrations 2/B.

    A row is dominated by one domain, with small shares of others.
    """
    seed = int(torch.randint(2**62, (), generator=random, device="cpu"))
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([2 / batch] * batch, batch)).float()


def convex_hull(embeddings: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Return B domains between the given ones: normalise(Σ_j α_ij x_j) (§4.2).

    Args:
        embeddings: x, `[B, …, D]`; they are first scaled to unit length.
        alphas: α `[B, B]`, see `dirichlet_alphas`.

    Returns:
        `[B, …, D]` of unit length.
    """
    mixed = torch.einsum("ij,j...->i...", alphas.to(embeddings), F.normalize(embeddings, dim=-1))
    return F.normalize(mixed, dim=-1)


def resample(embeddings: Sequence[torch.Tensor], random: torch.Generator, least: float = 0.95) -> list[torch.Tensor]:
    """Sample domains near the given ones: cosθ·u + sinθ·u⊥ with cosθ from U[least, 1] (§4.2).

    Differs from the released code. There, every template gets a perturbation of its own, so that their mean hardly
    changes, and the input of the hypernetwork is not perturbed. Here, one perturbation per domain is shared by all its
    templates and by all entries of `embeddings`.

    Args:
        embeddings: embeddings u of the same B domains by one encoder, `[B, K, D]` each; K may differ.
        random: CPU generator.
        least: smallest cosine between a domain and its perturbed version.

    Returns:
        Tensors of the same shapes, of unit length.
    """
    batch, _, dim = embeddings[0].shape
    cosine = least + (1 - least) * torch.rand(batch, 1, 1, generator=random, dtype=torch.float32, device="cpu")
    noise = torch.rand(batch, 1, dim, generator=random, dtype=torch.float32, device="cpu") * 2 - 1
    near = []
    for x in embeddings:
        u, r, c = F.normalize(x, dim=-1), noise.to(x), cosine.to(x)
        across = F.normalize(r - (r * u).sum(-1, keepdim=True) * u, dim=-1)
        near.append(c * u + (1 - c.square()).sqrt() * across)
    return near


def draw_each(num: int, batch: int, random: torch.Generator) -> torch.Tensor:
    """Sample `[batch]` indices below `num`; no index repeats before all have occurred.

    Differs from the released code, where indices may repeat earlier.
    """
    rounds = [torch.randperm(num, generator=random, device="cpu") for _ in range(-(-batch // num))]
    return torch.cat(rounds)[:batch]


def random_crops(images: Sequence[torch.Tensor], share: float, random: torch.Generator) -> list[torch.Tensor]:
    """Crop random squares, the same for row b of every tensor.

    Args:
        images: tensors `[B, 3, H, H]` of one shape.
        share: side of the square as a share of H; 1 returns the images unchanged.
        random: CPU generator.
    """
    side = images[0].shape[-1]
    size = max(1, round(side * share))
    if size >= side:
        return list(images)
    corners = torch.randint(side - size + 1, (len(images[0]), 2), generator=random, device="cpu").tolist()
    return [torch.stack([x[b, :, i : i + size, j : j + size] for b, (i, j) in enumerate(corners)]) for x in images]
