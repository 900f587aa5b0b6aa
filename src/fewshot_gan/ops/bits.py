"""Pack boolean masks into bits: eight entries per byte in row-major order, the first in the lowest bit."""

from collections.abc import Sequence

import torch

from .dispatch import kernels_for

BITS = tuple(1 << i for i in range(8))


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Pack a bool tensor of any shape with N entries into uint8 `[ceil(N / 8)]`."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).reshape(-1, 8)
    return (flat * torch.tensor(BITS, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Unpack uint8 `[ceil(N / 8)]` into a bool tensor of `shape` with N entries."""
    count = torch.Size(shape).numel()
    if (kernels := kernels_for(packed)) is not None:
        return kernels.expand_bits(packed, count).reshape(tuple(shape))
    bits = (packed[:, None] & torch.tensor(BITS, dtype=torch.uint8, device=packed.device)) != 0
    return bits.flatten()[:count].reshape(tuple(shape))
