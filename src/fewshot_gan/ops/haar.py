"""Haar wavelet transform and its inverse, the upsampling of MobileStyleGAN (arXiv 2104.04767 §3.2).

Shape legend: B batch, C channels of the picture, H/W size of the bands.
"""

import torch
import torch.nn.functional as F
from torch.autograd import Function

from .channel_scale import needs_grad
from .dispatch import is_traced, kernels_for


def inverse_haar(x: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
    """Apply one level of the inverse orthonormal Haar transform to `x · style`.

    Args:
        x: `[B, 4C, H, W]`: C low-pass channels, then (lh, hl, hh) of each channel.
        style: `[B, 4C]`, one factor per channel and sample, or None for ones.

    Returns:
        `[B, C, 2H, 2W]`, dtype of `x`; on a CPU channels last in memory.

    Raises:
        ValueError: the number of channels is not a multiple of four, or `style` has another shape.
    """
    if x.shape[1] % 4 or (style is not None and style.shape != x.shape[:2]):
        given = "" if style is None else f" and a style {tuple(style.shape)}"
        raise ValueError(f"bands are [B, 4C, H, W] and a style [B, 4C], got {tuple(x.shape)}{given}")
    if (kernels := kernels_for(x)) is not None:
        return kernels.inverse_haar(x, style)
    for_autograd = needs_grad(x, style)
    if style is not None and (is_traced() or for_autograd):
        x, style = x * style.to(x.dtype)[:, :, None, None], None
    if is_traced():
        ll, lh, hl, hh = _bands(x / 2, 1)
        top, bottom, top_step, bottom_step = ll + lh, ll - lh, hl + hh, hl - hh
        corners = top + top_step, top - top_step, bottom + bottom_step, bottom - bottom_step
        return F.pixel_shuffle(torch.stack(corners, 2).flatten(1, 2), 2)
    return _InverseHaar.apply(x) if for_autograd else _to_pixels(x, style)


def haar(x: torch.Tensor) -> torch.Tensor:
    """Apply one level of the orthonormal Haar transform, the inverse of `inverse_haar`.

    Args:
        x: `[B, C, 2H, 2W]`.

    Returns:
        `[B, 4C, H, W]`, in the channel order of `inverse_haar`.

    Raises:
        ValueError: height or width is odd.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"haar halves height and width, got {list(x.shape)}; pad to even sizes")
    kernels = kernels_for(x)
    return _Haar.apply(x) if kernels is None else kernels.haar(x)


class _InverseHaar(Function):  # linear and orthonormal, so each transform is the gradient of the other
    @staticmethod
    def forward(ctx, x):
        return _to_pixels(x)

    @staticmethod
    def backward(ctx, *gradients):
        return _Haar.apply(*gradients)


class _Haar(Function):
    @staticmethod
    def forward(ctx, x):
        return _to_bands(x)

    @staticmethod
    def backward(ctx, *gradients):
        return _InverseHaar.apply(*gradients)


def _bands(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    """Split the channel dimension `dim` into views of the bands ll, lh, hl and hh."""
    c = x.shape[dim] // 4
    return x.narrow(dim, 0, c), *x.narrow(dim, c, 3 * c).unflatten(dim, (c, 3)).unbind(dim + 1 if dim >= 0 else dim)


def _to_pixels(x: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
    b, bands, h, w = x.shape
    half = x.new_full((1, bands), 0.5) if style is None else style.to(x.dtype) / 2
    parts = zip(_bands(x.permute(0, 2, 3, 1), -1), _bands(half[:, None, None], -1), strict=True)
    ll, lh, hl, hh = (part * factor for part, factor in parts)  # [B, H, W, C]
    y = x.new_empty(b, h, 2, w, 2, bands // 4)
    for row, (mean, difference) in enumerate(((ll + lh, hl + hh), (ll.sub_(lh), hl.sub_(hh)))):
        torch.add(mean, difference, out=y[:, :, row, :, 0])
        torch.sub(mean, difference, out=y[:, :, row, :, 1])
    return y.view(b, 2 * h, 2 * w, bands // 4).permute(0, 3, 1, 2)


def _to_bands(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    x = (x / 2).permute(0, 2, 3, 1)  # [B, 2H, 2W, C]
    corners = (x[:, row::2, column::2] for row in (0, 1) for column in (0, 1))
    y = x.new_empty(b, h // 2, w // 2, 4 * c)
    tl, tr, bl, br = corners
    top, top_step, bottom, bottom_step = tl + tr, tl - tr, bl + br, bl - br
    sums = ((top, bottom, 1), (top, bottom, -1), (top_step, bottom_step, 1), (top_step, bottom_step, -1))
    for band, (upper, lower, sign) in zip(_bands(y, -1), sums, strict=True):
        torch.add(upper, lower, alpha=sign, out=band)
    return y.permute(0, 3, 1, 2)
