"""Features times a factor per channel, in their own memory where that is allowed."""

import torch


def times(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`x` `[B, C, H, W]` times `[C]` or `[B, C]`; nobody else may need `x`: without gradients its memory is reused."""
    factor = factor.to(x.dtype)[..., None, None]
    if torch.is_grad_enabled() and (x.requires_grad or factor.requires_grad):
        return x * factor
    return x.mul_(factor)
