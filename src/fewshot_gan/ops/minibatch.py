"""Minibatch standard deviation: show the discriminator how much the samples of a batch vary."""

import torch


def minibatch_stddev(x: torch.Tensor, group_size: int, num_channels: int) -> torch.Tensor:
    """Append the standard deviation over a group of samples as extra channels (arXiv 1710.10196 §3).

    Samples `i, i + B/G, i + 2B/G, …` form a group. Differs from the published networks: the group size G is the
    largest divisor of B up to `group_size`, so that any batch is accepted. The groups are the same wherever the
    published rule works.

    Args:
        x: `[B, C, H, W]`.
        group_size: largest number of samples per group.
        num_channels: number F of extra channels; must divide C.

    Returns:
        `[B, C + F, H, W]`.
    """
    b, c, h, w = x.shape
    size = next(g for g in range(min(group_size, b), 0, -1) if b % g == 0)
    y = x.float() if x.dtype != torch.float64 else x
    y = y.reshape(size, b // size, num_channels, c // num_channels, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((2, 3, 4))  # [B/G, F]
    y = y.to(x.dtype).repeat(size, 1)[:, :, None, None].expand(-1, -1, h, w)
    return torch.cat([x, y], 1)
