"""Dual contrastive learning: each adapted picture stays nearest to its own source picture (DCL, arXiv 2203.03190)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .losses import total

DIVERSITIES = ("own", "dcl")
TEMPERATURE = 0.07
LARGEST_MAP = 64  # px of the generator's feature maps that are contrasted


def contrastive_loss(
    source: Sequence[torch.Tensor], target: Sequence[torch.Tensor], temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Contrast feature maps of adapted pictures with those of the source's.

    −mean_i log(exp(cos(t_i, s_i)/τ) / Σ_j exp(cos(t_i, s_j)/τ)), mean over levels.

    Args:
        source, target: one feature map `[B, …]` per level; row i of both comes from the same latent.
        temperature: τ.

    Returns:
        Scalar; gradients reach `target`. It is 0 for one picture, which has nothing to be told from.
    """
    losses = []
    for s, t in zip(source, target, strict=True):
        s, t = (F.normalize(x.float().flatten(1), dim=1) for x in (s.detach(), t))
        own = torch.arange(len(t), device=t.device)
        losses.append(F.cross_entropy(t @ s.t() / temperature, own))
    return total(losses) / len(losses)
