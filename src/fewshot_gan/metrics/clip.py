"""Quality and diversity of pictures, measured by CLIP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def clip_quality(image_embeddings: Tensor, text_embeddings: Tensor) -> float:
    """Return the mean cosine of N pictures and K prompts with the domain's name (HyperDomainNet, 2210.08884, §5).

    The paper measures with CLIP ViT-B/16, which it also trains with: also report a value by an encoder that was not
    used in training.

    Args:
        image_embeddings, text_embeddings: `[N, D]`, `[K, D]` of one encoder.

    Raises:
        ValueError: no rows, or different D.
    """
    a, b = image_embeddings, text_embeddings
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 1:
        raise ValueError(
            f"embeddings of shapes {list(a.shape)} and {list(b.shape)} are not [N, D] and [K, D]; "
            "take both from one encoder"
        )
    return (F.normalize(a.double(), dim=1).mean(0) @ F.normalize(b.double(), dim=1).mean(0)).item()


def clip_diversity(image_embeddings: Tensor) -> float:
    """Return the mean of 1 − cosine over all pairs of pictures `[N, D]`, N ≥ 2 (HyperDomainNet, 2210.08884, §5).

    Raises:
        ValueError: fewer than two rows.
    """
    n = len(image_embeddings)
    if image_embeddings.ndim != 2 or n < 2:
        raise ValueError(
            f"embeddings of shape {list(image_embeddings.shape)} have no pair; give [N, D] with N 2 or more"
        )
    total = F.normalize(image_embeddings.double(), dim=1).sum(0)
    return (1 - (total.square().sum() - n) / (n * (n - 1))).item()
