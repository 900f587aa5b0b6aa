"""The operations with exact first and second derivatives: each backward pass is one of the operations again.

Tensors on a GPU go to a Triton kernel, others and float64 to the plain torch of `reference`. If a kernel fails, one
warning is logged and `reference` replaces it from then on. `TRITON_INTERPRET=1`, set before the first use, runs the
kernels on a CPU, slowly.

Shape legend: B batch, C channels, H/W height and width, T filter taps, O/I outputs and inputs of a weight.
"""

import logging
import os

import torch
from torch.autograd import Function

from . import reference
from .options import ACTIVATIONS, Act, Fir, WeightChange

logger = logging.getLogger(__name__)

MAX_TAPS = 8
failures: dict[str, Exception] = {}  # errors of kernels that failed and are not tried again


def _run(name: str, x: torch.Tensor, *args):
    """Call `launch.<name>`, or `reference.<name>` where that cannot run."""
    on_triton = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if on_triton and name not in failures and x.dtype != torch.float64 and x.numel():
        try:
            from . import launch

            with torch.cuda.device_of(x):  # Triton launches on the current device
                return getattr(launch, name)(x, *args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failures[name] = error
            logger.warning("the Triton kernel %r failed, plain torch takes its place: %r", name, error)
    return getattr(reference, name)(x, *args)


def _sum_to(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sum `t` over the dimensions broadcast from `like`, in float32 or wider; returns the dtype of `like`."""
    dims = [d for d in range(t.ndim) if like.shape[d] == 1 and t.shape[d] != 1]
    wide = torch.promote_types(t.dtype, torch.float32)
    return (t.sum(dims, keepdim=True, dtype=wide) if dims else t).to(like.dtype)


class _FirAct(Function):
    """FIR filter (unless `fir` is None), noise, bias, activation; all tensors have 4 dimensions and broadcast."""

    @staticmethod
    def forward(ctx, x, f, bias, noise, strength, fir: Fir | None, how: Act):
        if fir is None:
            y = _run("act", x, bias, noise, strength, how)
        else:
            y = _run("upfirdn", x, f, fir, bias, noise, strength, how)
        needs_y = how.activation != "linear" or how.clamp is not None
        ctx.save_for_backward(y if needs_y else None, f, bias, noise, strength)
        ctx.fir, ctx.how, ctx.back = fir, how, None if fir is None else fir.transposed(x, f)
        return y

    @staticmethod
    def backward(ctx, *gradients):
        (g,) = gradients
        y, f, bias, noise, strength = ctx.saved_tensors
        needs = dict(zip(("x", "f", "bias", "noise", "strength"), ctx.needs_input_grad, strict=False))
        g = _ActGrad.apply(g, y, ctx.how)
        dx = g
        if ctx.fir is not None and needs["x"]:
            dx = _FirAct.apply(g, f, None, None, None, ctx.back, Act())
        dbias = _sum_to(g, bias) if needs["bias"] else None
        dnoise = dstrength = None
        if needs["noise"] or needs["strength"]:
            pixels = g.sum(1, keepdim=True, dtype=torch.promote_types(g.dtype, torch.float32))
            dnoise = _sum_to(pixels * strength, noise) if needs["noise"] else None
            dstrength = _sum_to(pixels * noise, strength) if needs["strength"] else None
        return dx, None, dbias, dnoise, dstrength, None, None


class _ActGrad(Function):
    """`reference.act_grad`: linear in the gradient and piecewise constant in y."""

    @staticmethod
    def forward(ctx, g, y, how: Act):
        ctx.save_for_backward(y)
        ctx.how = how
        return _run("act_grad", g, y, how)

    @staticmethod
    def backward(ctx, *gradients):
        (y,) = ctx.saved_tensors
        return _ActGrad.apply(*gradients, y, ctx.how), None, None


class _InverseHaar(Function):
    @staticmethod
    def forward(ctx, x, style):
        ctx.save_for_backward(x if style is not None and ctx.needs_input_grad[1] else None, style)
        return _run("inverse_haar", x, style)

    @staticmethod
    def backward(ctx, *gradients):
        x, style = ctx.saved_tensors
        bands: torch.Tensor = _Haar.apply(*gradients)
        dx = bands if style is None else bands * style.to(bands.dtype)[:, :, None, None]
        return dx, None if x is None or style is None else _sum_to(bands * x, style[:, :, None, None]).flatten(1)


class _Haar(Function):
    @staticmethod
    def forward(ctx, x):
        return _run("haar", x)

    @staticmethod
    def backward(ctx, *gradients):
        return _InverseHaar.apply(*gradients, None)


def _four(x: torch.Tensor) -> torch.Tensor:
    """Reshape `[B, C, …]` to `[B, C, H, W]`."""
    return x.flatten(3) if x.ndim > 4 else x[(...,) + (None,) * (4 - x.ndim)]


def _broadcast(shape, bias, noise, strength) -> list[torch.Tensor | None]:
    """Reshape bias `[C]` or `[B, C]`, noise `[H, W]` or `[B, 1, H, W]`, strength `[]` or `[B]` to 4 dimensions."""
    if bias is not None:
        bias = bias.reshape(-1, bias.shape[-1], 1, 1)
    if noise is not None:
        noise = noise.reshape(-1, 1, *noise.shape[-2:])
        strength = strength.reshape(-1, 1, 1, 1)
    for name, t in (("bias", bias), ("noise", noise), ("noise strength", strength)):
        if t is not None and any(n not in (1, m) for n, m in zip(t.shape, shape, strict=True)):
            raise ValueError(f"a {name} of shape {tuple(t.shape)} does not fit {tuple(shape)}")
    return [bias, noise, strength]


def _act_of(activation: str, gain: float | None, clamp: float | None) -> Act:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    default_gain = 1.0 if activation == "linear" else 2**0.5
    return Act(activation, float(default_gain if gain is None else gain), None if clamp is None else float(clamp))


def bias_act(x, bias=None, *, noise=None, noise_strength=None, activation="linear", gain=None, clamp=None):
    """Return `clamp(gain · activation(x + noise · noise_strength + bias))`, computed in one pass.

    Args:
        x: `[B, C, …]`.
        bias: `[C]`, `[B, C]` or None.
        noise: `[H, W]`, `[1 or B, 1, H, W]`, or None; only for a four-dimensional `x`.
        noise_strength: a scalar tensor `[]`, or `[B]`; required with `noise`.
        activation: "linear", "lrelu" (slope 0.2) or "relu".
        gain: factor after the activation; None means √2 for lrelu and relu, 1 for linear.
        clamp: largest absolute value, or None for no limit.

    Returns:
        Same shape and dtype as `x`. Differentiable to any order in x, bias, noise and its strength.

    Raises:
        ValueError: the activation is unknown, or the shapes do not fit.
    """
    how, four = _act_of(activation, gain, clamp), _four(x)
    operands = _broadcast(four.shape, bias, noise, noise_strength)
    return _FirAct.apply(four, None, *operands, None, how).reshape(x.shape)


def upfirdn2d(
    x,
    f,
    *,
    up=1,
    down=1,
    padding: int | tuple[int, int, int, int] = 0,
    flip_filter=False,
    gain=1.0,
    bias=None,
    noise=None,
    noise_strength=None,
    activation="linear",
    act_gain=None,
    clamp=None,
):
    """Insert zeros, pad or crop, filter, keep every `down`-th pixel, then apply `bias_act`, in one pass.

    Args:
        x: `[B, C, H, W]`.
        f: `[T, T]` filter, up to 8×8; it gets no gradient.
        up, down: whole numbers from 1.
        padding: one value for all sides, or `(left, right, top, bottom)` in upsampled pixels; negative values crop.
        flip_filter: False = convolution, True = correlation.
        gain: factor on the filtered image.
        bias, noise, noise_strength, activation, clamp: see `bias_act`; `act_gain` is its `gain`.

    Returns:
        `[B, C, (H·up + top + bottom − T) // down + 1, (W·up + left + right − T) // down + 1]`. Differentiable to any
        order in x, bias, noise and its strength.

    Raises:
        ValueError: the padded image is smaller than the filter, the filter is too large, or the shapes do not fit.
    """
    left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
    fir = Fir(up, down, (left, right, top, bottom), flip_filter, float(gain))
    how = _act_of(activation, act_gain, clamp)
    if max(f.shape) > MAX_TAPS:
        raise ValueError(f"a filter of {tuple(f.shape)} is larger than {MAX_TAPS}×{MAX_TAPS}")
    shape = (*x.shape[:2], *fir.size(x, f))
    if min(shape[2:]) < 1:
        raise ValueError(
            f"padding {(left, right, top, bottom)} of an image {tuple(x.shape)} leaves nothing for the filter"
        )
    return _FirAct.apply(x, f, *_broadcast(shape, bias, noise, noise_strength), fir, how)


def inverse_haar(x, style=None):
    """Apply one level of the inverse orthonormal Haar transform to `x · style`.

    Args:
        x: `[B, 4C, H, W]`: C low-pass channels, then (lh, hl, hh) of each channel.
        style: `[B, 4C]`, or None for ones.

    Returns:
        `[B, C, 2H, 2W]`. Differentiable to any order in both.

    Raises:
        ValueError: the shapes do not fit.
    """
    if x.ndim != 4 or x.shape[1] % 4 or (style is not None and style.shape != x.shape[:2]):
        given = "" if style is None else f" and a style {tuple(style.shape)}"
        raise ValueError(f"bands are [B, 4C, H, W] and a style [B, 4C], got {tuple(x.shape)}{given}")
    return _InverseHaar.apply(x, style)


def haar(x):
    """Turn `[B, C, 2H, 2W]` into bands `[B, 4C, H, W]`, the inverse of `inverse_haar`.

    Raises:
        ValueError: height or width is odd.
    """
    if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"a picture [B, C, H, W] of even height and width, not {tuple(x.shape)}")
    return _Haar.apply(x)


def expand_bits(packed, count: int):
    """Unpack uint8 `[ceil(count / 8)]`, the first of each eight in the lowest bit, into bool `[count]`."""
    return _run("expand_bits", packed, count)


def modulate_weight(weight, *, dtype=None, **change):
    """Apply an adapter to a weight and compute its energy for demodulation, in one pass.

    Args:
        weight: `[O, I, k, k]`.
        dtype: dtype of the result; None means that of `weight`.
        change: fields of `WeightChange`: `scale`, `shift` and `gain` `[O, I]` (either may be 1), `mask` packed as for
            `expand_bits`, and of LeFT `mul_in`, `add_in` `[I, r]`, `mul_core` `[r, O, k²]`, `add_kernel` `[k², r]`.

    Returns:
        the effective weight Ŵ `[O, I, k, k]` and its energy Σ_κ Ŵ² `[O, I]` in float32. The demodulation factors of
        styles s are then `(s² @ energyᵀ + 1e-8).rsqrt()`. Where a gradient is needed, plain torch computes both.
    """
    change, dtype = WeightChange(**change), weight.dtype if dtype is None else dtype
    tensors = [t for t in (weight, *change) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return reference.modulate(weight, change, dtype)
    return _run("modulate", weight, change, dtype)
