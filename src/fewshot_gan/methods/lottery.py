"""Lottery tickets of GANs: sparse training, the random-pruning baseline, distillation (arXiv 2103.00397 §3.1–3.2).

`adapters.ticket.magnitude_masks` does the pruning by magnitude. Masks are module path → bool tensor of the shape of
the weight, True for weights that are kept. Only convolutions are pruned; linear layers, embeddings, norms and biases
stay dense.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.ticket import check_masks, check_sparsity, prunable, split_mask

Masks = Mapping[str, torch.Tensor]


@torch.no_grad()
def prune_randomly(model: nn.Module, sparsity: float, random: torch.Generator | None = None) -> dict[str, torch.Tensor]:
    """Return masks that prune random weights: a baseline for magnitude pruning of the same sparsity.

    Args:
        model: network whose convolutions are pruned.
        sparsity: share of pruned weights, from 0 to below 1.
        random: CPU generator.

    Raises:
        ValueError: the sparsity is out of range.
    """
    check_sparsity(sparsity)
    weights = prunable(model)
    total = sum(w.numel() for w in weights.values())
    kept = torch.ones(total, dtype=torch.bool, device="cpu")
    kept[torch.randperm(total, generator=random, device="cpu")[: round(sparsity * total)]] = False
    return split_mask(kept, weights)


class SparseWeights:
    """Keep the pruned weights of a network at exactly zero during training.

    Call `mask_gradients` between backward pass and optimiser step, and `mask_weights` after the step, since the
    momentum of an optimiser also changes weights without gradient. Spectral normalisation sees the masked weights.

    Args:
        model: the network; its pruned weights are set to zero at once.
        masks: masks of all its convolutions.

    Raises:
        ValueError: the masks belong to another network.
    """

    def __init__(self, model: nn.Module, masks: Masks):
        weights = prunable(model)
        check_masks(masks, weights)
        self.pairs = [(weight, masks[path].to(weight.device)) for path, weight in weights.items()]
        self.mask_weights()

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set pruned weights to zero."""
        for weight, mask in self.pairs:
            weight.mul_(mask)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to zero."""
        for weight, mask in self.pairs:
            if weight.grad is not None:
                weight.grad.mul_(mask)


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the divergence of the student's from the teacher's predictions: mean(t · (log t − log s)).

    s and t are the probabilities [σ(D), 1 − σ(D)] of student and teacher; the mean is over both and over all images.

    Args:
        student_logits, teacher_logits: `[B, 1]` for the same real and fake images; the teacher is the trained dense
            discriminator in evaluation mode.
    """
    s, t = (torch.cat([x.sigmoid(), 1 - x.sigmoid()], 1) for x in (student_logits, teacher_logits.detach()))
    return F.kl_div((s + 1e-10).log(), t, reduction="none").mean()
