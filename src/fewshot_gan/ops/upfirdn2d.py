"""Upsample, pad, filter (FIR) and downsample images: the anti-aliased resampling of StyleGAN2 (arXiv 1912.04958).

Shape legend: B batch, C channels, H/W height and width, T filter taps.
"""

import torch
import torch.nn.functional as F

from .bias_act import Act, bias_act
from .channel_scale import scale_channels
from .dispatch import kernels_for

MAX_KERNEL_TAPS = 8


def setup_filter(taps, *, gain: float = 1.0, device=None) -> torch.Tensor:
    """Build a float32 FIR filter whose taps sum to `gain`.

    Args:
        taps: 1-D taps of a separable filter (e.g. `[1, 3, 3, 1]`, giving the outer product) or a 2-D kernel.
        gain: sum of the returned filter.
        device: where to put it; None means the device of `taps`, or torch's default device.

    Returns:
        `[T, T]` (or the 2-D shape given) float32 tensor.

    Raises:
        ValueError: `taps` is not 1-D or 2-D, is empty, or sums to zero.
    """
    if device is None:
        device = taps.device if isinstance(taps, torch.Tensor) else torch.get_default_device()
    f = torch.as_tensor(taps, dtype=torch.float32, device="cpu")  # so that a model can be built on "meta"
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"a filter has 1 or 2 dimensions and at least one tap, got shape {tuple(f.shape)}")
    if f.ndim == 1:
        f = torch.outer(f, f)
    if f.sum() == 0:
        raise ValueError("filter taps sum to zero, so they cannot be normalised; give taps with a non-zero sum")
    return (f * (gain / f.sum())).to(device)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding: int | tuple[int, int, int, int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    then: Act | None = None,
) -> torch.Tensor:
    """Insert zeros, pad (or crop), convolve with `f` and keep every `down`-th pixel, channel by channel.

    Args:
        x: `[B, C, H, W]`.
        f: `[T, T]` filter (see `setup_filter`), or None for the identity.
        up: insert `up - 1` zeros after every pixel.
        down: stride of the result.
        padding: one value for all sides, or `(left, right, top, bottom)` in upsampled pixels; negative values crop.
        flip_filter: False = convolution, True = correlation.
        gain: factor on the filtered image.
        then: arguments of a `bias_act` that follows, fused with the filter by a kernel; None for none.

    Returns:
        `[B, C, (H·up + top + bottom − T) // down + 1, (W·up + left + right − T) // down + 1]`, dtype of `x`.

    Raises:
        ValueError: `up` or `down` is below 1, or the padded image is smaller than the filter.
    """
    if up < 1 or down < 1:
        raise ValueError(f"up and down are at least 1, got up={up}, down={down}")
    left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
    b, c, h, w = x.shape
    taps_h, taps_w = f.shape if f is not None else (1, 1)
    if h * up + top + bottom < taps_h or w * up + left + right < taps_w:
        raise ValueError(
            f"an image of {h * up}×{w * up} with padding {(left, right, top, bottom)} is smaller than "
            f"the {taps_h}×{taps_w} filter; use a larger image or more padding"
        )
    kernel_takes = f is not None and max(f.shape) <= MAX_KERNEL_TAPS and not f.requires_grad
    if kernel_takes and (kernels := kernels_for(x)) is not None:
        act_options = {} if then is None else {**then._asdict(), "act_gain": then.gain}
        if (scale := act_options.pop("scale", None)) is not None:
            x = scale_channels(x, scale, reuse=False)
        options = {"up": up, "down": down, "padding": (left, right, top, bottom), "flip_filter": flip_filter}
        return kernels.upfirdn2d(x, f, **act_options | options | {"gain": gain})
    if then is not None:
        x = upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain)
        return bias_act(x, **then._asdict(), reuse=f is not None)
    if up > 1:
        kernel = x.new_ones(1, 1, dtype=torch.float32) if f is None else f.flip(0, 1) if flip_filter else f
        return _transposed(x, kernel * gain, up, (left, right, top, bottom))[..., ::down, ::down]
    conv_pads = f is not None and left == right >= 0 and top == bottom >= 0  # the convolution pads without a copy
    if not conv_pads and (left or right or top or bottom):
        x = F.pad(x, (left, right, top, bottom))
    if f is None:
        x = x[..., ::down, ::down]
        return x * gain if gain != 1 else x
    kernel = (f * gain).to(x.dtype)
    if not flip_filter:
        kernel = kernel.flip(0, 1)
    # a depthwise convolution with the same kernel on every channel: [T, T] -> [C, 1, T, T]
    kernel = kernel.expand(c, 1, taps_h, taps_w)
    return F.conv2d(x, kernel, stride=down, padding=(top, left) if conv_pads else 0, groups=c)


def _transposed(x, kernel, up: int, padding: tuple[int, int, int, int]) -> torch.Tensor:
    """Upsample as `upfirdn2d` does, by a transposed convolution with `kernel` `[T, T]`: no zeros are multiplied."""
    (left, right, top, bottom), (taps_h, taps_w), c = padding, kernel.shape, x.shape[1]
    excess = taps_w - 1 - left, taps_w - up - right, taps_h - 1 - top, taps_h - up - bottom  # to crop; negative: to pad
    conv_crops = excess[0] == excess[1] >= 0 and excess[2] == excess[3] >= 0
    dtype = x.dtype
    if x.device.type == "cpu" and x.dtype != torch.float64:
        x = x.float()  # torch has no fast half-precision version for a CPU
    kernel = kernel.to(x.dtype).expand(c, 1, taps_h, taps_w)
    x = F.conv_transpose2d(x, kernel, stride=up, padding=(excess[2], excess[0]) if conv_crops else 0, groups=c)
    if not conv_crops:
        x = F.pad(F.pad(x, [max(-side, 0) for side in excess]), [min(-side, 0) for side in excess])
    return x.to(dtype)


def upsample2d(x: torch.Tensor, f: torch.Tensor, *, up: int = 2) -> torch.Tensor:
    """Upsample `x` `[B, C, H, W]` by `up` with filter `f` `[T, T]`; keeps brightness and aligns pixel centres."""
    taps = f.shape[-1]
    before, after = (taps + up - 1) // 2, (taps - up) // 2
    return upfirdn2d(x, f, up=up, padding=(before, after, before, after), gain=up * up)


def downsample2d(x: torch.Tensor, f: torch.Tensor, *, down: int = 2) -> torch.Tensor:
    """Downsample `x` `[B, C, H, W]` by `down` after filtering with `f` `[T, T]`; aligns pixel centres."""
    taps = f.shape[-1]
    before, after = (taps - down + 1) // 2, (taps - down) // 2
    return upfirdn2d(x, f, down=down, padding=(before, after, before, after))
