"""Winograd's 3×3 convolution on a CPU (arXiv 1509.09308): 1/4 (float32) or 1/2 (bfloat16) of the multiplications.

F(m×m, 3×3) computes m×m pixels of the result from a tile of (m+2)×(m+2) pixels. With constant matrices A, B, G a tile
is `Aᵀ [(G W Gᵀ) ⊙ (Bᵀ x B)] A`: one matrix product over the channels for each of the (m+2)² positions. A few rows of
tiles are processed at a time, so that intermediate results stay in the CPU's cache. Images are processed one at a time,
so that the bits of a result do not depend on the batch.

F(4×4) has ten times the rounding error of the direct convolution: 1e-5 of the largest value in float32, but 2 % in
bfloat16. bfloat16 therefore uses F(2×2): 43 dB per layer, where the direct convolution reaches 51 dB (both with rounded
inputs and weights).

Shape legend: B batch, I/O input and output channels, m pixels per side of a result tile, n = m+2, R rows of tiles
processed at a time, T tiles per row.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from .channel_scale import broadcast_channels, needs_grad
from .dispatch import is_traced
from .weight_cache import cached

MIN_PIXELS = 256  # per map: below it the transformed weight is larger than the data of a direct convolution
# Values per position that are processed at a time. With fewer, threads mostly wait for each other, which takes longer
# than computing if the machine has other work; many more do not fit the cache.
CHUNK = 16384
MIN_BATCH_PIXELS = 1024  # per batch: from here on it pays to transform a weight that is not cached


class _Tiling(NamedTuple):
    """F(m×m, 3×3) and the sizes from which it is faster than the direct convolution."""

    m: int
    g: tuple[tuple[float, ...], ...]  # G, [n, 3]
    transforms: Callable[..., tuple[Callable, Callable]]  # returns (transform of x, transform of the result)
    min_channels: int  # with fewer the transforms cost as much as they save
    tiles: int  # per matrix product; with fewer, reading the transformed weight dominates


def winograd_is_faster(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> bool:
    """Return whether `winograd_conv2d` supports these inputs and is likely to be faster than `F.conv2d`.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I, k, k]`.
        scale: `[I]`, `[B, I]` or None.
    """
    if is_traced() or x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in _TILINGS:
        return False
    (batch, channels, height, width), tiling = x.shape, _TILINGS[x.dtype]
    if weight.shape[1:] != (channels, 3, 3) or min(weight.shape[:2]) < tiling.min_channels:
        return False
    if height % tiling.m or width % tiling.m or height * width < MIN_PIXELS:
        return False
    if x.dtype == torch.bfloat16 and not _has_bf16_vectors():
        return False
    pays = isinstance(weight, nn.Parameter) or batch * height * width >= MIN_BATCH_PIXELS
    return pays and not needs_grad(x, weight, scale)


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Return `F.conv2d(x · scale, weight, padding=1)`.

    Args:
        x: `[B, I, H, W]` float32 with H and W multiples of 4, or bfloat16 with multiples of 2.
        weight: `[O, I, 3, 3]`, dtype of `x`. For a parameter the transformed weight, two to four times its size,
            is cached.
        scale: `[I]` or `[B, I]`, or None for ones.

    Returns:
        `[B, O, H, W]`, channels last.
    """
    (batch, channels, height, width), out, tiling = x.shape, weight.shape[0], _TILINGS[x.dtype]
    m, transformed = tiling.m, cached(weight, _transform)  # [n·n, I, O]
    down, across = height // m, width // m
    max_rows = max(1, max(tiling.tiles, CHUNK // channels) // across)
    rows = next(r for r in range(min(max_rows, down), 0, -1) if down % r == 0)
    padded = x.new_empty(height + 2, width + 2, channels)
    for edge in (padded[0], padded[-1], padded[:, 0], padded[:, -1]):
        edge.zero_()
    product = x.new_empty(len(transformed), rows * across, out)
    y = x.new_empty(batch, down, m, across, m, out)
    spread, gather = tiling.transforms(padded, product, rows, across)
    inner = padded[1:-1, 1:-1].permute(2, 0, 1)
    scale = None if scale is None else broadcast_channels(scale, x).expand(batch, -1, -1, -1)
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


def _matrix_transforms(padded, product, rows: int, across: int):
    """Return the two transforms of F(4×4, 3×3), computed as matrix products.

    Args:
        padded: `[H + 2, W + 2, I]`, the input.
        product: `[n·n, R·T, O]`, the matrix products over the channels.
        rows: R.
        across: T.

    Returns:
        `spread`, which returns Bᵀ x B `[n·n, R·T, I]` of the R rows of tiles from row `top`, and `gather`, which writes
        Aᵀ `product` A into a tensor `[R, m, T, m, O]`.
    """
    m, n, channels, line = 4, 6, padded.shape[-1], padded.stride(0)
    a, b = padded.new_tensor(_A), padded.new_tensor(_B)
    a_each, a_lines, b_each, b_rows = (c.expand(r, *c.shape) for c, r in ((a, m), (a, n), (b, n), (b, rows)))
    strips = padded.as_strided(
        (len(padded) // m, n, line), (m * line, line, 1)
    )  # six lines each, two of them shared with the next
    half = padded.new_empty(rows, n, *padded.shape[1:])
    step, place, right, _ = half.stride()
    windows = half.as_strided((n, n, rows, across, channels), (place, right, step, m * right, 1))
    tiles = torch.empty_like(windows, memory_format=torch.contiguous_format)
    whole = padded.new_empty(n, n, rows * across * channels)
    lines = product.new_empty(n, m, product[0].numel())
    patches = product.new_empty(m, m, rows, across, product.shape[-1])  # position within the line first

    def spread(top):
        torch.bmm(b_rows, strips[top : top + rows], out=half.view(rows, n, line))  # Bᵀ down the columns …
        tiles.copy_(windows)
        torch.bmm(b_each, tiles.view(n, n, -1), out=whole)  # … and along the lines
        return whole.view(n * n, -1, channels)

    def gather(y):
        torch.bmm(a_lines, product.view(n, n, -1).transpose(0, 1), out=lines)  # one plain product is slower
        torch.bmm(a_each, lines.transpose(0, 1), out=patches.view(m, m, -1))
        y.copy_(patches.permute(2, 0, 3, 1, 4))

    return spread, gather


def _sum_transforms(padded, product, rows: int, across: int):
    """Return the two transforms of F(2×2, 3×3), whose matrices hold only 0 and ±1; see `_matrix_transforms`."""
    channels, out = padded.shape[-1], product.shape[-1]
    half = padded.new_empty(4, rows, *padded.shape[1:])
    whole = padded.new_empty(4, 4, rows, across, channels)
    product = product.view(4, 4, rows, across, out)
    lines = product.new_empty(2, 4, rows, across, out)

    def apply_b(lines, result):  # Bᵀ
        first, second, third, fourth = lines
        torch.sub(first, third, out=result[0])
        torch.add(second, third, out=result[1])
        torch.sub(third, second, out=result[2])
        torch.sub(second, fourth, out=result[3])

    def apply_a(lines, result):  # Aᵀ
        first, second, third, fourth = lines
        torch.add(second, third, out=result[0]).add_(first)
        torch.sub(second, third, out=result[1]).sub_(fourth)

    def spread(top):
        apply_b([padded[2 * top + k :][: 2 * rows : 2] for k in range(4)], half)
        apply_b([half[:, :, k:][:, :, : 2 * across : 2] for k in range(4)], whole.transpose(0, 1))
        return whole.view(16, -1, channels)

    def gather(y):
        apply_a(product, lines)
        apply_a(lines.transpose(0, 1), y.permute(3, 1, 0, 2, 4))

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
    torch.float32: _Tiling(4, _G4, _matrix_transforms, min_channels=64, tiles=128),
    torch.bfloat16: _Tiling(2, _G2, _sum_transforms, min_channels=256, tiles=256),
}


@cache
def _has_bf16_vectors() -> bool:
    """Return whether the CPU multiplies bfloat16 vectors (AVX512-bf16) and has no matrix unit for them (AMX).

    AMX is so fast that the transforms cost more than they save. Without AVX512-bf16 torch emulates bfloat16 slowly.
    torch has no public function for either feature.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def _transform(weight: torch.Tensor) -> torch.Tensor:
    """Transform a weight `[O, I, 3, 3]` to G W Gᵀ `[n·n, I, O]`."""
    g = torch.tensor(_TILINGS[weight.dtype].g, dtype=torch.float64, device=weight.device)
    both = torch.kron(g, g).float()  # [n·n, 9]
    places = both @ weight.float().permute(2, 3, 1, 0).reshape(9, -1)
    return places.to(weight.dtype).view(len(both), weight.shape[1], weight.shape[0])
