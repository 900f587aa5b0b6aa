"""Plain convolution, the way that a CPU does it fastest: small maps as a matrix product, large 3×3 ones by Winograd."""

import torch
import torch.nn.functional as F

from .channel_scale import times
from .dispatch import traced
from .winograd import suits, winograd_conv2d

SMALL = 16  # pixels of a map: below it a CPU's convolution spends its time copying the weight


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    padding: int,
    groups: int = 1,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    reuse: bool = False,
) -> torch.Tensor:
    """`F.conv2d(x · scale, …)` of stride 1.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I / groups, k, k]`, dtype of `x`.
        padding: pixels.
        groups: as in `F.conv2d`.
        bias: `[O]`, dtype of `x`, or None.
        scale: `[I]` or `[B, I]`, or None for ones.
        reuse: nobody else needs `x`, so it may be overwritten.

    Returns:
        `[B, O, H + 2·padding − k + 1, W + 2·padding − k + 1]`.
    """
    if groups == padding == 1 and bias is None and suits(x, weight, scale):
        return winograd_conv2d(x, weight, scale)
    x = x if scale is None else times(x, scale, reuse)
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # whoever reads the trace has convolutions of its own
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)
    out, inn, k, _ = weight.shape
    height, width = x.shape[2] + 2 * padding - k + 1, x.shape[3] + 2 * padding - k + 1
    if groups > 1 or k == 1 or x.is_cuda or not 0 < height * width <= SMALL or inn != x.shape[1]:
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)
    weight, columns = weight.flatten(1), F.unfold(x, k, padding=padding)  # [O, I·k²], [B, I·k², H·W]
    if x.dtype.itemsize > 2 or traced() or not len(x):
        y = weight @ columns
    else:  # in half precision a batched product first repeats the weight for each of the batch
        y = torch.stack([weight @ each for each in columns])
    y = y if bias is None else y + bias[:, None]
    return y.reshape(x.shape[0], out, height, width).contiguous(memory_format=torch.channels_last)
