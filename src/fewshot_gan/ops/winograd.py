"""3×3 convolution on a CPU with a quarter (float32) or half (bfloat16) of the multiplications: Winograd's (1509.09308).

F(m×m, 3×3) makes m×m pixels of the result from a tile of m+2 pixels' side. With constant matrices A, B, G a tile is
`Aᵀ [(G W Gᵀ) ⊙ (Bᵀ x B)] A`, so that at each of (m+2)² places one matrix product over the channels remains. Tiles are
taken a few rows at a time, so that what lies between the matrix products stays in the cache; one image at a time, so
that its bits do not depend on the batch.

F(4×4) rounds ten times as coarsely as the direct convolution: 1e-5 of the largest value in float32, but an error of
2 % in bfloat16, which gets F(2×2): 43 dB a layer where the direct convolution has 51 (inputs and weights rounded too).

Shape legend: B batch, I/O input and output channels, m pixels of a tile's side, n = m+2, R rows of tiles at a time,
T tiles in a row.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from .channel_scale import per_channel, tracked
from .dispatch import traced
from .weight_cache import kept

LEAST_PIXELS = 256  # of a map: below it a transformed weight is larger than what a direct convolution reads
LEAST_NUMBERS = 16384  # at each place at a time: with fewer the threads mostly wait for each other, which on a machine
# with other work takes longer than computing; with many more they do not stay in the cache
LEAST_WORK = 1024  # pixels of a batch that pay for transforming a weight which nobody keeps


class _Tiling(NamedTuple):
    """F(m×m, 3×3) and when it is the faster way."""

    m: int
    g: tuple[tuple[float, ...], ...]  # G, [n, 3]
    work: Callable[..., tuple[Callable, Callable]]  # the two transforms
    least_channels: int  # with fewer the transforms cost about what the multiplications that they save do
    tiles: int  # at a time, so many that a product does more than read the transformed weight


def suits(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> bool:
    """Whether `winograd_conv2d` takes these and is likely to be faster.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I, k, k]`.
        scale: as `winograd_conv2d` takes it.
    """
    if traced() or x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in _TILINGS:
        return False
    (batch, channels, height, width), tiling = x.shape, _TILINGS[x.dtype]
    if weight.shape[1:] != (channels, 3, 3) or min(weight.shape[:2]) < tiling.least_channels:
        return False
    if height % tiling.m or width % tiling.m or height * width < LEAST_PIXELS:
        return False
    if x.dtype == torch.bfloat16 and not _has_vectors():
        return False
    pays = isinstance(weight, nn.Parameter) or batch * height * width >= LEAST_WORK
    return pays and not tracked(x, weight, scale)


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """`F.conv2d(x · scale, weight, padding=1)`.

    Args:
        x: `[B, I, H, W]` float32 with H and W multiples of 4, or bfloat16 with multiples of 2.
        weight: `[O, I, 3, 3]`, dtype of `x`. Of a parameter the transformed weight, two to four times its size, is
            kept.
        scale: `[I]` or `[B, I]`, or None for ones.

    Returns:
        `[B, O, H, W]`, channels last.
    """
    (batch, channels, height, width), out, tiling = x.shape, weight.shape[0], _TILINGS[x.dtype]
    m, transformed = tiling.m, kept(weight, _transform)  # [n·n, I, O]
    down, across = height // m, width // m
    most = max(1, max(tiling.tiles, LEAST_NUMBERS // channels) // across)
    rows = next(r for r in range(min(most, down), 0, -1) if down % r == 0)
    padded = x.new_empty(height + 2, width + 2, channels)
    for edge in (padded[0], padded[-1], padded[:, 0], padded[:, -1]):
        edge.zero_()
    product = x.new_empty(len(transformed), rows * across, out)
    y = x.new_empty(batch, down, m, across, m, out)
    spread, gather = tiling.work(padded, product, rows, across)
    inner = padded[1:-1, 1:-1].permute(2, 0, 1)
    scale = None if scale is None else per_channel(scale, x).expand(batch, -1, -1, -1)
    for i in range(batch):
        if scale is None:
            inner.copy_(x[i])
        else:
            torch.mul(x[i], scale[i], out=inner)
        for top in range(0, down, rows):
            torch.bmm(spread(top), transformed, out=product)
            gather(y[i, top : top + rows])
    y = y.view(batch, height, width, out)
    return y.permute(0, 3, 1, 2)


def _by_products(padded, product, rows: int, across: int):
    """The transforms of F(4×4, 3×3) as matrix products.

    Args:
        padded: `[H + 2, W + 2, I]`, the input.
        product: `[n·n, R·T, O]`, the matrix products over the channels.
        rows: R.
        across: T.

    Returns:
        A function from the first row of tiles to Bᵀ x B `[n·n, R·T, I]`, and one that writes Aᵀ `product` A into
        `[R, m, T, m, O]`.
    """
    m, n, channels, line = 4, 6, padded.shape[-1], padded.stride(0)
    a, b = padded.new_tensor(_A), padded.new_tensor(_B)
    a_each, a_lines, b_each, b_rows = (c.expand(r, *c.shape) for c, r in ((a, m), (a, n), (b, n), (b, rows)))
    strips = padded.as_strided((len(padded) // m, n, line), (m * line, line, 1))  # six lines each; two are shared
    half = padded.new_empty(rows, n, *padded.shape[1:])
    step, place, right, _ = half.stride()
    windows = half.as_strided((n, n, rows, across, channels), (place, right, step, m * right, 1))
    tiles = torch.empty_like(windows, memory_format=torch.contiguous_format)
    whole = padded.new_empty(n, n, rows * across * channels)
    lines = product.new_empty(n, m, product[0].numel())
    patches = product.new_empty(m, m, rows, across, product.shape[-1])  # along the line first

    def spread(top):
        torch.bmm(b_rows, strips[top : top + rows], out=half.view(rows, n, line))  # Bᵀ down the columns …
        tiles.copy_(windows)
        torch.bmm(b_each, tiles.view(n, n, -1), out=whole)  # … and along the lines
        return whole.view(n * n, -1, channels)

    def gather(y):
        torch.bmm(a_lines, product.view(n, n, -1).transpose(0, 1), out=lines)  # a plain product is slower
        torch.bmm(a_each, lines.transpose(0, 1), out=patches.view(m, m, -1))
        y.copy_(patches.permute(2, 0, 3, 1, 4))

    return spread, gather


def _by_sums(padded, product, rows: int, across: int):
    """The transforms of F(2×2, 3×3), whose matrices hold nothing but 0 and ±1; as `_by_products`."""
    channels, out = padded.shape[-1], product.shape[-1]
    half = padded.new_empty(4, rows, *padded.shape[1:])
    whole = padded.new_empty(4, 4, rows, across, channels)
    product = product.view(4, 4, rows, across, out)
    lines = product.new_empty(2, 4, rows, across, out)

    def four(lines, result):  # Bᵀ
        first, second, third, fourth = lines
        torch.sub(first, third, out=result[0])
        torch.add(second, third, out=result[1])
        torch.sub(third, second, out=result[2])
        torch.sub(second, fourth, out=result[3])

    def two(places, result):  # Aᵀ
        first, second, third, fourth = places
        torch.add(second, third, out=result[0]).add_(first)
        torch.sub(second, third, out=result[1]).sub_(fourth)

    def spread(top):
        four([padded[2 * top + k :][: 2 * rows : 2] for k in range(4)], half)
        four([half[:, :, k:][:, :, : 2 * across : 2] for k in range(4)], whole.transpose(0, 1))
        return whole.view(16, -1, channels)

    def gather(y):
        two(product, lines)
        two(lines.transpose(0, 1), y.permute(3, 1, 0, 2, 4))

    return spread, gather


_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G4 = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_G2 = ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1))
_TILINGS = {
    torch.float32: _Tiling(4, _G4, _by_products, least_channels=64, tiles=128),
    torch.bfloat16: _Tiling(2, _G2, _by_sums, least_channels=256, tiles=256),
}


@cache
def _has_vectors() -> bool:
    """Whether the CPU multiplies vectors of bfloat16 (AVX512-bf16): as fast as was measured.

    With matrix tiles (AMX) it is so fast that the transforms would take longer than what they save; without either it
    emulates.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def _transform(weight: torch.Tensor) -> torch.Tensor:
    """`[O, I, 3, 3]` → G W Gᵀ `[n·n, I, O]`."""
    g = torch.tensor(_TILINGS[weight.dtype].g, dtype=torch.float64, device=weight.device)
    both = torch.kron(g, g).float()  # [n·n, 9]
    places = both @ weight.float().permute(2, 3, 1, 0).reshape(9, -1)
    return places.to(weight.dtype).view(len(both), weight.shape[1], weight.shape[0])
