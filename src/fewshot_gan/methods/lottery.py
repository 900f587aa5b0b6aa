"""Lottery tickets of GANs: sparse training, its baselines, distillation (arXiv 2103.00397 §3.1–3.2).

The pruning itself is `adapters.ticket.magnitude_masks`. Masks are `{module path: bool of the weight's shape}`, True =
kept, of the convolutions of one network; linear layers, embeddings, norms and biases stay dense.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.ticket import check_masks, check_sparsity, prunable, split_mask

Masks = Mapping[str, torch.Tensor]


@torch.no_grad()
def prune_randomly(model: nn.Module, sparsity: float, random: torch.Generator | None = None) -> dict[str, torch.Tensor]:
    """As many weights as magnitude pruning would leave at this sparsity, anywhere: a baseline.

    Raises:
        ValueError: a sparsity out of range.
    """
    check_sparsity(sparsity)
    weights = prunable(model)
    total = sum(w.numel() for w in weights.values())
    kept = torch.ones(total, dtype=torch.bool, device="cpu")
    kept[torch.randperm(total, generator=random, device="cpu")[: round(sparsity * total)]] = False
    return split_mask(kept, weights)


class SparseWeights:
    """Keeps the pruned weights of a network at exactly zero while it is trained.

    Gradients are masked between backward and step, and weights after it, so that no momentum of an optimiser leaks
    into what is gone. Spectral norms are those of the masked weights, as these are what is stored.

    Args:
        model: its weights are set to zero where masked.
        masks: of all its convolutions.

    Raises:
        ValueError: masks of another network.
    """

    def __init__(self, model: nn.Module, masks: Masks):
        weights = prunable(model)
        check_masks(masks, weights)
        self.pairs = [(weight, masks[path].to(weight.device)) for path, weight in weights.items()]
        self.mask_weights()

    @torch.no_grad()
    def mask_weights(self) -> None:
        for weight, mask in self.pairs:
            weight.mul_(mask)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        for weight, mask in self.pairs:
            if weight.grad is not None:
                weight.grad.mul_(mask)


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """mean(t · (log t − log s)) of the probabilities [σ(D), 1 − σ(D)] of student and teacher, over both and all images.

    Args:
        student_logits, teacher_logits: `[B, 1]` on the same real and fake images; the teacher is the trained dense
            discriminator in evaluation mode.
    """
    s, t = (torch.cat([x.sigmoid(), 1 - x.sigmoid()], 1) for x in (student_logits, teacher_logits.detach()))
    return F.kl_div((s + 1e-10).log(), t, reduction="none").mean()
