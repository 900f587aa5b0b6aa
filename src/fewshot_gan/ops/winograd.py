"""3×3 convolution in float32 on a CPU with a quarter of the multiplications: Winograd's F(4×4, 3×3) (1509.09308).

Each 4×4 tile of the result needs a 6×6 tile of the input. With constant matrices A, B, G a tile is
`Aᵀ [(G W Gᵀ) ⊙ (Bᵀ x B)] A`, so that at each of 36 places one matrix product over the channels remains. Tiles are
taken a few rows at a time, so that what lies between the matrix products stays in the cache; one image at a time, so
that its bits do not depend on the batch. It rounds ten times as coarsely as the direct convolution (1e-5 of the largest
value), which 16-bit arithmetic could not afford.

Shape legend: B batch, I/O input and output channels, N tiles.
"""

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from .dispatch import traced
from .times import per_channel, tracked

TILE, INPUT = 4, 6  # pixels of a tile's side: of the result, of the input
LEAST_CHANNELS = 128  # with fewer the transforms cost about what the multiplications that they save do
LEAST_PIXELS = 256  # of a map: below it a transformed weight is four times what a direct convolution reads
LEAST_WORK = 1024  # pixels of a batch that pay for transforming a weight which nobody keeps
LARGE, MANY = 256, 256  # channels whose transformed weight is so large that a product over fewer tiles only reads it
CACHED = 16384  # numbers at each of the 36 places, below that many channels: few enough for the cache, and many enough
# not to have threads wait for each other all the time, which on a machine with other work takes longer than computing

_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # times 1/24

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter: (its address and version, transformed)


def suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `winograd_conv2d` takes these and is likely to be faster.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I, k, k]`.
    """
    if traced():
        return False
    batch, channels, height, width = x.shape
    if weight.shape[1:] != (channels, 3, 3) or min(weight.shape[:2]) < LEAST_CHANNELS:
        return False
    if height % TILE or width % TILE or height * width < LEAST_PIXELS:
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    pays = isinstance(weight, nn.Parameter) or batch * height * width >= LEAST_WORK
    return pays and not tracked(x, weight)


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """`F.conv2d(x · scale, weight, padding=1)`.

    Args:
        x: `[B, I, H, W]` float32, H and W multiples of 4.
        weight: `[O, I, 3, 3]` float32. Of a parameter the transformed weight, four times its size, is kept.
        scale: `[I]` or `[B, I]`, or None for ones.

    Returns:
        `[B, O, H, W]`, channels last.
    """
    batch, channels, height, width = x.shape
    transformed = _transformed(weight)  # [6·6, I, O]
    out, down, across = weight.shape[0], height // TILE, width // TILE
    many = max(1, (MANY if max(channels, out) >= LARGE else CACHED // channels) // across)
    rows = next(n for n in range(min(many, down), 0, -1) if down % n == 0)  # of tiles, at a time
    a, b = x.new_tensor(_A), x.new_tensor(_B)
    a_each, b_each, b_rows = (m.expand(n, *m.shape) for m, n in ((a, TILE), (b, INPUT), (b, rows)))

    padded = x.new_zeros(height + 2, width + 2, channels)
    inner, line = padded[1:-1, 1:-1].permute(2, 0, 1), padded.stride(0)
    strips = padded.as_strided((down, INPUT, line), (TILE * line, line, 1))  # six lines each; neighbours share two
    half = x.new_empty(rows, INPUT, width + 2, channels)
    step, place, right, _ = half.stride()
    windows = half.as_strided((INPUT, INPUT, rows, across, channels), (place, right, step, TILE * right, 1))
    tiles = torch.empty_like(windows, memory_format=torch.contiguous_format)
    spread = x.new_empty(INPUT, INPUT, rows * across * channels)
    product = x.new_empty(INPUT * INPUT, rows * across, out)
    lines = x.new_empty(TILE, INPUT, rows * across * out)
    patches = x.new_empty(TILE, TILE, rows, across, out)
    y = x.new_empty(batch, down, TILE, across, TILE, out)
    scale = None if scale is None else per_channel(scale, x).expand(batch, -1, -1, -1)
    for i in range(batch):
        if scale is None:
            inner.copy_(x[i])
        else:
            torch.mul(x[i], scale[i], out=inner)
        for top in range(0, down, rows):
            torch.bmm(b_rows, strips[top : top + rows], out=half.view(rows, INPUT, line))  # Bᵀ down the columns …
            tiles.copy_(windows)
            torch.bmm(b_each, tiles.view(INPUT, INPUT, -1), out=spread)  # … and along the lines
            torch.bmm(spread.view(INPUT * INPUT, -1, channels), transformed, out=product)
            torch.mm(a, product.view(INPUT, -1), out=lines.view(TILE, -1))
            torch.bmm(a_each, lines, out=patches.view(TILE, TILE, -1))
            y[i, top : top + rows].copy_(patches.permute(2, 0, 3, 1, 4))
    y = y.view(batch, height, width, out)
    return y.permute(0, 3, 1, 2)


def _transformed(weight: torch.Tensor) -> torch.Tensor:
    """`[O, I, 3, 3]` → G W Gᵀ `[6·6, I, O]`, kept of a parameter until it changes."""
    if not isinstance(weight, nn.Parameter) or weight.is_inference():
        return _transform(weight)
    stamp = weight.data_ptr(), weight._version
    kept = _kept.get(weight)
    if kept is None or kept[0] != stamp:
        kept = _kept[weight] = stamp, _transform(weight)
    return kept[1]


@torch.no_grad()
def _transform(weight: torch.Tensor) -> torch.Tensor:
    g = weight.new_tensor(_G, dtype=torch.float64) / 24
    both = torch.kron(g, g).to(weight.dtype)  # [36, 9]
    return (both @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(INPUT * INPUT, weight.shape[1], weight.shape[0])
