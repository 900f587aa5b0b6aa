"""Losses on directions between embeddings, and operations on embeddings of domains.

HyperDomainNet §3 (arXiv 2210.08884), after StyleGAN-NADA (arXiv 2108.00946) and Mind the Gap (arXiv 2110.08398).
Shape legend: B images, K templates (1 for pictures), D size of an embedding, N domains, R reference pictures.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

SHORTEST = 0.1  # directions between unit vectors below this length weigh less, see `cosine`


def direction_loss(adapted, source, targets, origins) -> torch.Tensor:
    """mean_b 1 − cos(e_t − e_s, mean_k(T − S)): every picture moves as the domain's name does.

    Args:
        adapted, source: e_t, e_s `[B, D]` of the pictures of one latent.
        targets, origins: T, S `[B or 1, K, D]`.
    """
    return (1 - cosine(adapted - source, (targets - origins).mean(1))).mean()


def indomain_loss(adapted, source) -> torch.Tensor:
    """2/(B(B−1)) Σ_{i>j} (⟨e_s^i, e_s^j⟩ − ⟨e_t^i, e_t^j⟩)²: what differed still differs as much. `[B, D]` each."""
    first, second = pairs(adapted)
    if len(first) == 0:
        return adapted.sum() * 0
    difference = (source[first] * source[second]).sum(1) - (adapted[first] * adapted[second]).sum(1)
    return difference.square().mean()


def tt_direction_loss(adapted, targets) -> torch.Tensor:
    """mean_{i>j} 1 − cos(e_t^i − e_t^j, T^i − T^j): pictures of two domains differ as the domains do.

    Differs from the released code: a pair of equal domains, whose loss would be a constant 1, is left out.

    Args:
        adapted: `[B, D]`.
        targets: `[B, K, D]`, a domain each.
    """
    targets, (first, second) = targets.mean(1), pairs(adapted)
    wanted = targets[first] - targets[second]
    apart = wanted.norm(dim=1) > 1e-6
    if not apart.any():
        return adapted.sum() * 0
    return (1 - cosine((adapted[first] - adapted[second])[apart], wanted[apart])).mean()


def global_loss(adapted, targets) -> torch.Tensor:
    """mean_b 1 − cos(e_t, mean_k T), `[B, D]` and `[B or 1, K, D]`."""
    return (1 - F.cosine_similarity(adapted, targets.mean(1), dim=1)).mean()


def within_loss(adapted, source, reference, projected) -> torch.Tensor:
    """mean_b 1 − cos(e_t − e_ref, e_s − e_ref,A): pictures lie around the reference as they did around its projection.

    All `[B or 1, D]`; `projected` is the source's picture of the reference's latent.
    """
    return (1 - cosine(adapted - reference, source - projected)).mean()


def reference_loss(drawn, reference) -> torch.Tensor:
    """mean 1 − cos of two `[R, D]`: the adapted picture of a reference's latent, and the reference."""
    return (1 - F.cosine_similarity(drawn, reference, dim=1)).mean()


def offsets_l2(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Σ over layers of mean(δ²), of `[C]` or `[B, C]` each."""
    return sum(delta.square().mean() for delta in deltas)


def offsets_l1(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Σ over layers of mean(|δ|)."""
    return sum(delta.abs().mean() for delta in deltas)


def cosine(x, y) -> torch.Tensor:
    """⟨x, y⟩ / (max(‖x‖, 0.1) ‖y‖) of `[…, D]`.

    A fresh adapter draws the source itself, x = 0, where the gradient of the plain cosine has no bound and would blind
    Adam's second moment for a thousand steps. (The released code never meets this: its pairs do not share their noise.)
    """
    return (x * y).sum(-1) / (x.norm(dim=-1).clamp_min(SHORTEST) * y.norm(dim=-1).clamp_min(1e-8))


def pairs(x) -> torch.Tensor:
    return torch.triu_indices(len(x), len(x), 1, device=x.device)


def dirichlet_alphas(batch: int, random: torch.Generator) -> torch.Tensor:
    """`[B, B]`, rows from a Dirichlet distribution of concentration 2/B each: mostly one domain, some of others."""
    seed = int(torch.randint(2**62, (), generator=random, device="cpu"))
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([2 / batch] * batch, batch)).float()


def convex_hull(embeddings: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """normalise(Σ_j α_ij x_j): `[B, …, D]` of unit length and `[B, B]` → as many domains between them (§4.2)."""
    mixed = torch.einsum("ij,j...->i...", alphas.to(embeddings), F.normalize(embeddings, dim=-1))
    return F.normalize(mixed, dim=-1)


def resample(embeddings: Sequence[torch.Tensor], random: torch.Generator, least: float = 0.95) -> list[torch.Tensor]:
    """cosθ·u + sinθ·u⊥, cosθ from U[least, 1]: domains near the given ones, of unit length (§4.2).

    Differs from the released code, which perturbs every template on its own, so that their mean hardly moves, and
    leaves the hypernetwork's input where it was: one draw per domain, for its templates and for every entry alike.

    Args:
        embeddings: several `[B, K, D]` of one encoder, each with K of its own.
        random: CPU generator.
        least: smallest cosine to where it was.
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
    """`[batch]` indices below `num`, none twice before all were there (differs from the released code)."""
    rounds = [torch.randperm(num, generator=random, device="cpu") for _ in range(-(-batch // num))]
    return torch.cat(rounds)[:batch]


def random_crops(images: Sequence[torch.Tensor], share: float, random: torch.Generator) -> list[torch.Tensor]:
    """Squares of `share` of the side at random places, row b of every `[B, 3, H, H]` at the same one."""
    side = images[0].shape[-1]
    size = max(1, round(side * share))
    if size >= side:
        return list(images)
    corners = torch.randint(side - size + 1, (len(images[0]), 2), generator=random, device="cpu").tolist()
    return [torch.stack([x[b, :, i : i + size, j : j + size] for b, (i, j) in enumerate(corners)]) for x in images]
