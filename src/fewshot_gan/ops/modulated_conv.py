"""Convolution with per-sample weight modulation and demodulation (StyleGAN2 §2.2, arXiv 1912.04958).

Shape legend: B batch, I/O input and output channels, k kernel size.
"""

from functools import partial

import torch
import torch.nn.functional as F

from .bias_act import Act, bias_act
from .channel_scale import needs_grad, scale_channels
from .conv import conv2d
from .dispatch import is_traced
from .row_weights import RowWeights, by_rows
from .upfirdn2d import upfirdn2d
from .weight_cache import cached


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor | RowWeights,
    styles: torch.Tensor | None = None,
    *,
    input_scale: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | RowWeights | None = None,
    energy: torch.Tensor | None = None,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    padding: int | None = None,
    resample_filter: torch.Tensor | None = None,
    then: Act | None = None,
    reuse: bool = False,
) -> torch.Tensor:
    """Convolve with `weight · styles`, each output filter rescaled to unit norm.

    Scales the activations before and after one ordinary convolution, which equals scaling the weights, so that the
    samples of a batch share one weight. `input_scale`, the domain vector of HyperDomainNet (§3, arXiv 2210.08884), and
    `output_scale` do not enter the norm: they act *after* demodulation.

    Args:
        x: `[B, I, H, W]`.
        weight: `[O, I, k, k]`, or `RowWeights` of such tensors if the samples use different ones.
        styles: `[B, I]`, or None for ones.
        input_scale: `[I]` or `[B, I]`, or None for ones.
        output_scale: `[O]` or `[B, O]`, or None for ones.
        norm_weight: compute the norm from this weight instead of `weight`; same shape or `RowWeights`.
        energy: `[O, I]`, the `filter_energy` of that weight if it is at hand; None computes it. Not with `RowWeights`.
        demodulate: divide by the L2 norm of each modulated filter.
        up: 1 or 2; 2 enlarges with a transposed convolution, then `resample_filter`.
        down: 1 or 2; 2 applies `resample_filter`, then a strided convolution.
        padding: pixels at the lower resolution; None keeps the size (`k // 2`).
        resample_filter: `[T, T]`, needed when `up` or `down` is not 1 (`setup_filter([1, 3, 3, 1])`).
        then: arguments of a `bias_act` that follows, or None.
        reuse: `x` may be overwritten, since no one else reads it.

    Returns:
        `[B, O, H·up / down, W·up / down]` for the default padding.

    Raises:
        ValueError: the shapes do not fit each other, or `resample_filter` is missing.
    """
    batch, channels = x.shape[:2]
    if styles is not None and styles.shape != (batch, channels):
        raise ValueError(f"styles are [B, I] = {(batch, channels)}, got {tuple(styles.shape)}")
    if up > 1 and down > 1:
        raise ValueError(f"up and down exclude each other, got up={up}, down={down}")
    if (up, down) != (1, 1) and resample_filter is None:
        raise ValueError(f"up={up}, down={down} needs a resample_filter, e.g. setup_filter([1, 3, 3, 1])")
    scale = styles
    if input_scale is not None:
        scale = input_scale.expand(batch, channels) if scale is None else scale * input_scale
    k = (weight.weights[0] if isinstance(weight, RowWeights) else weight).shape[-1]
    padding = k // 2 if padding is None else padding
    taps = 0 if resample_filter is None else resample_filter.shape[-1]
    if scale is not None and (up, down) != (1, 1):
        x, scale = scale_channels(x, scale, reuse), None
    if down > 1:
        before, after = padding + (taps - down + 1) // 2, padding + (taps - down) // 2
        # a 1×1 convolution strides before it convolves: a quarter of the pixels
        stride = down if k == 1 else 1
        x = upfirdn2d(x, resample_filter, down=stride, padding=(before, after, before, after))

    def convolve(x, weight, scale):
        if weight.ndim != 4 or weight.shape[1] != x.shape[1]:
            raise ValueError(f"weight {tuple(weight.shape)} does not fit an input of shape {tuple(x.shape)}")
        if up > 1:  # published weights of up-convolutions are stored for a plain transposed convolution (no flip)
            weight = weight.to(x.dtype)
            weight = weight.transpose(0, 1) if is_traced() or needs_grad(weight) else cached(weight, _swapped)
            return F.conv_transpose2d(x, weight, stride=up)
        if down > 1:
            return F.conv2d(x, weight.to(x.dtype), stride=1 if k == 1 else down)
        if k == 1 and padding == 0 and scale is not None and not is_traced():
            return _pointwise(x, weight.to(x.dtype), scale.to(x.dtype))
        return conv2d(x, weight.to(x.dtype), padding, scale=scale, reuse=reuse)

    x = by_rows(convolve, x, weight, scale)
    if demodulate:
        factors = x.new_ones(1, 1).expand(batch, channels) if styles is None else styles
        norm = by_rows(partial(_inverse_norm, energy=energy), factors, weight, norm_weight)
        output_scale = norm if output_scale is None else norm * output_scale
    # the scale is per channel, so it may follow the filter: one pass then scales, adds and activates
    then = Act(gain=1.0) if then is None else then
    then = then._replace(scale=output_scale)
    if up > 1:
        before, after = padding + (taps + up - 1) // 2 - (k - 1), padding + (taps - up) // 2 - (k - up)
        return upfirdn2d(x, resample_filter, padding=(before, after, before, after), gain=up * up, then=then)
    return bias_act(x, **then._asdict(), reuse=True)


def _pointwise(x, weight, scale) -> torch.Tensor:
    """Convolve `x · scale` 1×1, with the scale `[B, I]` on the small weights: `[B, O, H, W]` in the layout of `x`."""
    (batch, channels, height, width), out = x.shape, weight.shape[0]
    weights = weight.view(1, out, channels) * scale[:, None]  # [B, O, I]
    if not x.is_contiguous(memory_format=torch.channels_last):
        return (weights @ x.reshape(batch, channels, -1)).view(batch, out, height, width)
    pixels = x.permute(0, 2, 3, 1).view(batch, -1, channels)  # [B, H·W, I]
    return (pixels @ weights.mT).view(batch, height, width, out).permute(0, 3, 1, 2)


def _swapped(weight: torch.Tensor) -> torch.Tensor:
    """Return `[O, I, k, k]` as contiguous `[I, O, k, k]`; a transposed convolution would copy it in each call."""
    return weight.transpose(0, 1).contiguous()


def filter_energy(weight: torch.Tensor) -> torch.Tensor:
    """Sum the squares of `[O, I, k, k]` over k×k: `[O, I]`, in float32 since half precision overflows."""
    weight = weight.float() if weight.dtype != torch.float64 else weight
    return weight.square().sum((-2, -1))


def _inverse_norm(styles, weight, norm_weight, energy: torch.Tensor | None) -> torch.Tensor:
    """Return the demodulation factors 1 / ‖W[o] · s‖: `[B, O]`."""
    energy = filter_energy(weight if norm_weight is None else norm_weight) if energy is None else energy
    return (styles.to(energy.dtype).square() @ energy.t() + 1e-8).rsqrt()
