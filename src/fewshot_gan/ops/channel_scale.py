"""Features times a factor per channel, in their own memory where that is allowed."""

import torch


def times(x: torch.Tensor, factor: torch.Tensor, reuse: bool = True) -> torch.Tensor:
    """`x` `[B, C, …]` times `[C]` or `[B, C]`; `reuse`: nobody else needs `x`, so it may be overwritten."""
    factor = per_channel(factor, x)
    return x.mul_(factor) if reuse and not tracked(x, factor) else x * factor


def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`[C]` or `[B, C]` as `[1 or B, C, 1, …]` in the dtype of `x` `[B, C, …]`."""
    return values.to(x.dtype).reshape(-1, x.shape[1], *[1] * (x.ndim - 2))


def tracked(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd follows what is computed from these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
