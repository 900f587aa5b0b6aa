"""Scale the channels of a feature map, in place where that is allowed."""

import torch


def scale_channels(x: torch.Tensor, factor: torch.Tensor, reuse: bool = True) -> torch.Tensor:
    """Multiply every channel of `x` by its factor.

    Args:
        x: `[B, C, …]`.
        factor: `[C]` or `[B, C]`.
        reuse: `x` may be overwritten, since no one else reads it; ignored where autograd needs `x`.

    Returns:
        Same shape and dtype as `x`.
    """
    factor = broadcast_channels(factor, x)
    return x.mul_(factor) if reuse and not needs_grad(x, factor) else x * factor


def broadcast_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Reshape `[C]` or `[B, C]` to `[1 or B, C, 1, …]` in the dtype of `x` `[B, C, …]`."""
    return values.to(x.dtype).reshape(-1, x.shape[1], *[1] * (x.ndim - 2))


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Return whether autograd records operations on any of `tensors`."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
