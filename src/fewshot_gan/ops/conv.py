"""Convolution of stride 1 that is fast on a CPU: a matrix product for small maps, Winograd for large 3×3 ones."""

import torch
import torch.nn.functional as F

from .channel_scale import scale_channels
from .dispatch import is_exported, is_traced
from .winograd import winograd_conv2d, winograd_is_faster

SMALL = 16  # pixels; up to this size F.conv2d on a CPU spends its time copying the weight


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    padding: int,
    groups: int = 1,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    reuse: bool = False,
) -> torch.Tensor:
    """Return `F.conv2d(x · scale, weight, bias, padding=padding, groups=groups)`.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I / groups, k, k]`, dtype of `x`.
        padding: pixels on every side.
        groups: as in `F.conv2d`.
        bias: `[O]`, dtype of `x`, or None.
        scale: `[I]` or `[B, I]`, or None for ones.
        reuse: `x` may be overwritten, since no one else reads it.

    Returns:
        `[B, O, H + 2·padding − k + 1, W + 2·padding − k + 1]`.
    """
    if groups == padding == 1 and bias is None and winograd_is_faster(x, weight, scale):
        return winograd_conv2d(x, weight, scale)
    x = x if scale is None else scale_channels(x, scale, reuse)
    if is_exported():  # the runtime that reads the graph has fast convolutions of its own
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)
    out, in_per_group, k, _ = weight.shape
    height, width = x.shape[2] + 2 * padding - k + 1, x.shape[3] + 2 * padding - k + 1
    if groups > 1 or k == 1 or x.is_cuda or not 0 < height * width <= SMALL or in_per_group != x.shape[1]:
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)
    weight, columns = weight.flatten(1), F.unfold(x, k, padding=padding)  # [O, I·k²], [B, I·k², H·W]
    if x.dtype.itemsize > 2 or is_traced() or not len(x):
        y = weight @ columns
    else:  # in half precision a batched product first copies the weight for every sample
        y = torch.stack([weight @ sample for sample in columns])
    y = y if bias is None else y + bias[:, None]
    return y.reshape(x.shape[0], out, height, width).contiguous(memory_format=torch.channels_last)
