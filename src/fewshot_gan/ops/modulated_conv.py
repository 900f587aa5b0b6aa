"""Convolution with per-sample weight modulation and demodulation (StyleGAN2 §2.2, arXiv 1912.04958).

Shape legend: B batch, I/O input and output channels, k kernel size.
"""

import torch
import torch.nn.functional as F

from .upfirdn2d import upfirdn2d


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor | None = None,
    *,
    input_scale: torch.Tensor | None = None,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    padding: int | None = None,
    resample_filter: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve with `weight · styles`, each output filter rescaled to unit norm.

    The modulation multiplies the activations before, and the demodulation after, one ordinary convolution: equal to
    modulating the weights, but a whole batch shares them. A domain vector's `input_scale` (HyperDomainNet §3,
    arXiv 2210.08884) multiplies the activations too but takes no part in the norm, i.e. it acts *after* demodulation.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I, k, k]`, or one per sample `[B, O, I, k, k]`.
        styles: `[B, I]`, or None for ones.
        input_scale: `[I]` or `[B, I]`, or None for ones.
        demodulate: divide by the L2 norm of each modulated filter.
        up: 1 or 2; enlarges with a transposed convolution followed by `resample_filter`.
        down: 1 or 2; `resample_filter` followed by a strided convolution.
        padding: pixels at the lower resolution; None keeps the size (`k // 2`).
        resample_filter: `[T, T]`, needed when `up` or `down` is not 1 (`setup_filter([1, 3, 3, 1])`).

    Returns:
        `[B, O, H·up / down, W·up / down]` for the default padding.

    Raises:
        ValueError: shapes that do not fit, or resampling without a filter.
    """
    batch, channels, height, width = x.shape
    per_sample = weight.ndim == 5
    out_channels, in_channels, k = weight.shape[-4], weight.shape[-3], weight.shape[-1]
    if weight.ndim not in (4, 5) or in_channels != channels or (per_sample and weight.shape[0] != batch):
        raise ValueError(f"weight {tuple(weight.shape)} does not fit an input of shape {tuple(x.shape)}")
    if styles is not None and styles.shape != (batch, channels):
        raise ValueError(f"styles are [B, I] = {(batch, channels)}, got {tuple(styles.shape)}")
    if (up, down) != (1, 1) and resample_filter is None:
        raise ValueError(f"up={up}, down={down} needs a resample_filter, e.g. setup_filter([1, 3, 3, 1])")
    padding = k // 2 if padding is None else padding
    # The norm needs float32: in half precision Σ(w·s)² overflows for strong styles.
    norm = None
    if demodulate:
        w32 = weight.float() if weight.dtype != torch.float64 else weight
        energy = w32.square().sum((-2, -1))  # [O, I] or [B, O, I]
        if styles is None:
            norm = (energy.sum(-1) + 1e-8).rsqrt().expand(batch, out_channels)
        else:
            s2 = styles.to(w32.dtype).square()  # [B, I]
            total = torch.einsum("boi,bi->bo", energy, s2) if per_sample else s2 @ energy.t()
            norm = (total + 1e-8).rsqrt()  # [B, O]

    scale = styles
    if input_scale is not None:
        scale = input_scale.expand(batch, channels) if scale is None else scale * input_scale
    if scale is not None:
        x = x * scale.to(x.dtype)[:, :, None, None]
    weight = weight.to(x.dtype)
    groups = 1
    if per_sample:
        # one group per sample: [B, I, H, W] -> [1, B*I, H, W] and [B, O, I, k, k] -> [B*O, I, k, k]
        groups, x = batch, x.reshape(1, batch * channels, height, width)
        weight = weight.reshape(batch * out_channels, in_channels, k, k)
    x = _resampling_conv(x, weight, groups, up, down, padding, resample_filter)
    if per_sample:
        x = x.reshape(batch, out_channels, *x.shape[2:])
    return x if norm is None else x * norm.to(x.dtype)[:, :, None, None]


def _resampling_conv(x, weight, groups, up, down, padding, f):
    """Correlate `x` `[N, groups·I, H, W]` with `weight` `[groups·O, I, k, k]`, resampled as StyleGAN2 does."""
    k = weight.shape[-1]
    if up == 1 and down == 1:
        return F.conv2d(x, weight, padding=padding, groups=groups)
    taps = f.shape[-1]
    if up > 1:
        if down != 1:
            raise ValueError(f"up and down exclude each other, got up={up}, down={down}")
        # Published weights of up-convolutions are stored for a plain transposed convolution (no flip).
        out, inn = weight.shape[0] // groups, weight.shape[1]
        weight = weight.reshape(groups, out, inn, k, k).transpose(1, 2).reshape(groups * inn, out, k, k)
        x = F.conv_transpose2d(x, weight, stride=up, groups=groups)
        before = padding + (taps + up - 1) // 2 - (k - 1)
        after = padding + (taps - up) // 2 - (k - up)
        return upfirdn2d(x, f, padding=(before, after, before, after), gain=up * up)
    before, after = padding + (taps - down + 1) // 2, padding + (taps - down) // 2
    if k == 1:  # filter and stride first: the 1×1 then sees a quarter of the pixels
        return F.conv2d(upfirdn2d(x, f, down=down, padding=(before, after, before, after)), weight, groups=groups)
    return F.conv2d(upfirdn2d(x, f, padding=(before, after, before, after)), weight, stride=down, groups=groups)
