# Triton's stubs take a kernel launch for a call of the Python function, and compile-time options for its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""The Triton kernels and the functions that launch them; `reference` has the same functions in plain torch.

Every kernel walks over the elements of its result in memory order and reads its operands by their strides, so any
memory layout works without a copy. Arithmetic is float32. Offsets have 64 bits where a tensor needs them.

Shape legend: B batch, C channels, H/W height and width, O/I outputs and inputs of a weight, k kernel size, r rank.
"""

import torch
import triton
import triton.language as tl

from .options import Act, Fir, WeightChange

BLOCK = 512
FIXED = {"BLOCK": BLOCK, "enable_fp_fusion": True}  # compile-time options of every launch over elements


@triton.jit
def _elements(WIDE: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _place(i, size, LAST: tl.constexpr):
    """Return (b, c, h, w) of the i-th element in memory; LAST: channels last."""
    if LAST:
        c = i % size[1]
        i = i // size[1]
    w = i % size[3]
    i = i // size[3]
    h = i % size[2]
    i = i // size[2]
    if LAST:
        return i, c, h, w  # pyright: ignore[reportPossiblyUnboundVariable]  # LAST is a constant
    else:
        return i // size[1], i % size[1], h, w


@triton.jit
def _load(x, at, stride, live):
    """Load the elements of `x` at (b, c, h, w) as float32; zero where not `live`."""
    return tl.load(x + at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2] + at[3] * stride[3], live, 0).to(
        tl.float32
    )


@triton.jit
def _activate(
    v, at, live, bias, bias_stride, noise, noise_stride, strength, strength_stride, gain, clamp, KIND: tl.constexpr
):
    if noise is not None:
        v += _load(noise, at, noise_stride, live) * _load(strength, at, strength_stride, live)
    if bias is not None:
        v += _load(bias, at, bias_stride, live)
    if KIND == "lrelu":  # comparisons, which keep NaN
        v = tl.where(v < 0, v * 0.2, v)
    if KIND == "relu":
        v = tl.where(v < 0, 0.0, v)
    v = v * gain
    if clamp is not None:
        v = tl.where(v > clamp, clamp, v)
        v = tl.where(v < -clamp, -clamp, v)
    return v


@triton.jit
def _act_kernel(
    x, x_stride, bias, bias_stride, noise, noise_stride, strength, strength_stride, y, size, count, gain, clamp,
    KIND: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = _elements(WIDE, BLOCK)
    live = i < count
    at = _place(i, size, LAST)
    v = _load(x, at, x_stride, live)
    v = _activate(
        v, at, live, bias, bias_stride, noise, noise_stride, strength, strength_stride, gain, clamp, KIND
    )  # fmt: skip
    tl.store(y + i, v.to(y.dtype.element_ty), live)


@triton.jit
def _act_grad_kernel(
    g, g_stride, y, y_stride, dx, size, count, gain, clamp,
    KIND: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = _elements(WIDE, BLOCK)
    live = i < count
    at = _place(i, size, LAST)
    v = _load(g, at, g_stride, live) * gain
    if y is not None:
        result = _load(y, at, y_stride, live)
        if KIND == "lrelu":
            v = tl.where(result * gain > 0, v, v * 0.2)
        if KIND == "relu":
            v = tl.where(result * gain > 0, v, 0.0)
        if clamp is not None:  # rounded like the clamped results
            limit = (tl.zeros([BLOCK], tl.float32) + clamp).to(y.dtype.element_ty).to(tl.float32)
            v = tl.where(tl.abs(result) < limit, v, 0.0)
    tl.store(dx + i, v.to(dx.dtype.element_ty), live)


@triton.jit
def _upfirdn_kernel(
    x, x_stride, f, bias, bias_stride, noise, noise_stride, strength, strength_stride, y, size, count,
    height, width, left, top, left_phase, top_phase, fir_gain, gain, clamp,
    UP: tl.constexpr, DOWN: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, FLIP: tl.constexpr,
    KIND: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = _elements(WIDE, BLOCK)
    live = i < count
    at = _place(i, size, LAST)
    # Every UP-th row of the zero-stuffed image is a row of x: start at the first tap on such a row, then step by UP
    # taps. `top_phase` is −top modulo UP, since in Triton the remainder of a negative number is negative.
    tap_y = (UP - (at[2] * DOWN + top_phase) % UP) % UP
    tap_x = (UP - (at[3] * DOWN + left_phase) % UP) % UP
    row, column = (at[2] * DOWN - top + tap_y) // UP, (at[3] * DOWN - left + tap_x) // UP
    v = tl.zeros([BLOCK], tl.float32)
    for j in range(0, TAPS_H, UP):  # unrolled in one direction only: 64 taps would take minutes to compile
        for k in tl.static_range(0, TAPS_W, UP):
            h, w, ty, tx = row + j // UP, column + k // UP, tap_y + j, tap_x + k
            here = live & (h >= 0) & (h < height) & (w >= 0) & (w < width) & (ty < TAPS_H) & (tx < TAPS_W)
            if not FLIP:
                ty, tx = TAPS_H - 1 - ty, TAPS_W - 1 - tx
            v += _load(x, (at[0], at[1], h, w), x_stride, here) * tl.load(f + ty * TAPS_W + tx, here, 0).to(tl.float32)
    v = _activate(
        v * fir_gain, at, live, bias, bias_stride, noise, noise_stride, strength, strength_stride, gain, clamp, KIND
    )  # fmt: skip
    tl.store(y + i, v.to(y.dtype.element_ty), live)


@triton.jit
def _band(x, x_stride, style, style_stride, b, c, h, w, live):
    v = _load(x, (b, c, h, w), x_stride, live)
    if style is not None:
        v *= tl.load(style + b * style_stride[0] + c * style_stride[1], live, 0).to(tl.float32)
    return v


@triton.jit
def _inverse_haar_kernel(
    x, x_stride, style, style_stride, y, size, count, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    i = _elements(WIDE, BLOCK)
    live = i < count
    b, c, row, column = _place(i, size, LAST)
    h, w, first = row // 2, column // 2, size[1] + 3 * c
    lower, right = 1.0 - 2.0 * (row % 2), 1.0 - 2.0 * (column % 2)  # signs
    v = _band(x, x_stride, style, style_stride, b, c, h, w, live)
    v += lower * _band(x, x_stride, style, style_stride, b, first, h, w, live)
    high = _band(x, x_stride, style, style_stride, b, first + 1, h, w, live)
    high += lower * _band(x, x_stride, style, style_stride, b, first + 2, h, w, live)
    tl.store(y + i, ((v + right * high) * 0.5).to(y.dtype.element_ty), live)


@triton.jit
def _haar_kernel(x, x_stride, y, size, count, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    i = _elements(WIDE, BLOCK)
    live = i < count
    b, band, h, w = _place(i, size, LAST)
    channels = size[1] // 4
    detail = band - channels  # (lh, hl, hh) of each channel after all low passes
    low = detail < 0
    c = tl.where(low, band, detail // 3)
    which = tl.where(low, 0, detail % 3 + 1)
    lower, right = tl.where(which % 2 == 1, -1.0, 1.0), tl.where(which >= 2, -1.0, 1.0)  # signs
    v = _load(x, (b, c, 2 * h, 2 * w), x_stride, live) + right * _load(x, (b, c, 2 * h, 2 * w + 1), x_stride, live)
    v += lower * _load(x, (b, c, 2 * h + 1, 2 * w), x_stride, live)
    v += lower * right * _load(x, (b, c, 2 * h + 1, 2 * w + 1), x_stride, live)
    tl.store(y + i, (v * 0.5).to(y.dtype.element_ty), live)


@triton.jit
def _bits_kernel(packed, y, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    i = _elements(WIDE, BLOCK)
    live = i < count
    byte = tl.load(packed + i // 8, live, 0).to(tl.int32)
    tl.store(y + i, ((byte >> (i % 8).to(tl.int32)) & 1).to(tl.int8), live)


@triton.jit
def _modulate_kernel(
    w, w_stride, y, energy, mul_in, mul_core, add_in, add_kernel, scale, scale_stride, shift, shift_stride, mask,
    gain, gain_stride, outputs, inputs, width,
    TAPS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    o, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i = blocks * BLOCK + tl.arange(0, BLOCK)
    live = i < inputs
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(TAPS):
        place = (o * inputs + i) * TAPS + k
        at = w + o * w_stride[0] + i * w_stride[1] + (k // width) * w_stride[2] + (k % width) * w_stride[3]
        v = tl.load(at, live, 0).to(tl.float32)
        if mul_in is not None:
            gamma, beta = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            for s in range(RANK):
                inner = tl.load(mul_core + (s * outputs + o) * TAPS + k).to(tl.float32)
                gamma += tl.load(mul_in + i * RANK + s, live, 0).to(tl.float32) * inner
                added = tl.load(add_kernel + k * RANK + s).to(tl.float32)
                beta += tl.load(add_in + i * RANK + s, live, 0).to(tl.float32) * added
            v = v * gamma + beta
        if scale is not None:
            v *= tl.load(scale + o * scale_stride[0] + i * scale_stride[1], live, 0).to(tl.float32)
        if shift is not None:
            v += tl.load(shift + o * shift_stride[0] + i * shift_stride[1], live, 0).to(tl.float32)
        if mask is not None:
            byte = tl.load(mask + place // 8, live, 0).to(tl.int32)
            v = tl.where(((byte >> (place % 8).to(tl.int32)) & 1) == 1, v, 0.0)
        total += v * v
        if gain is not None:
            v *= tl.load(gain + o * gain_stride[0] + i * gain_stride[1], live, 0).to(tl.float32)
        tl.store(y + place, v.to(y.dtype.element_ty), live)
    tl.store(energy + o * inputs + i, total, live)


# ------------------------------------------------------------------------------------------------------------ launches


def _result(x: torch.Tensor, shape) -> tuple[torch.Tensor, bool]:
    """Allocate a result in the memory layout of `x`; also return whether that is channels last."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format), last


def _wide(*tensors: torch.Tensor | None) -> bool:
    """Return whether an offset, or an index past the end in the last block, needs more than 32 bits."""
    return any(
        sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + BLOCK >= 2**31
        for t in tensors
        if t is not None
    )


def _strides(t: torch.Tensor | None, shape):
    return None if t is None else t.expand(shape).stride()


def _flat(y: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(y.numel(), BLOCK),)


def _operands(shape, *tensors):
    """List each tensor, followed by its strides."""
    return [part for t in tensors for part in (t, _strides(t, shape))]


def act(x, bias, noise, strength, how: Act):
    y, last = _result(x, x.shape)
    operands = _operands(x.shape, x, bias, noise, strength)
    numbers = (tuple(x.shape), x.numel(), how.gain, how.clamp)
    _act_kernel[_flat(y)](*operands, y, *numbers, KIND=how.activation, LAST=last, WIDE=_wide(x, y, noise), **FIXED)
    return y


def act_grad(g, y, how: Act):
    dx, last = _result(g if y is None else y, g.shape)
    numbers = (tuple(g.shape), g.numel(), how.gain, how.clamp)
    operands = _operands(g.shape, g, y)
    _act_grad_kernel[_flat(dx)](*operands, dx, *numbers, KIND=how.activation, LAST=last, WIDE=_wide(g, y, dx), **FIXED)
    return dx


def upfirdn(x, f, how: Fir, bias, noise, strength, then: Act):
    y, last = _result(x, (*x.shape[:2], *how.size(x, f)))
    left, _, top, _ = how.padding
    _upfirdn_kernel[_flat(y)](
        x, x.stride(), f.contiguous(), *_operands(y.shape, bias, noise, strength), y, tuple(y.shape), y.numel(),
        x.shape[2], x.shape[3], left, top, -left % how.up, -top % how.up, how.gain, then.gain, then.clamp,
        UP=how.up, DOWN=how.down, TAPS_H=f.shape[0], TAPS_W=f.shape[1], FLIP=how.flip,
        KIND=then.activation, LAST=last, WIDE=_wide(x, y, noise), **FIXED,
    )  # fmt: skip
    return y


def inverse_haar(x, style):
    b, c4, h, w = x.shape
    y, last = _result(x, (b, c4 // 4, 2 * h, 2 * w))
    stride = None if style is None else style.stride()
    _inverse_haar_kernel[_flat(y)](
        x, x.stride(), style, stride, y, tuple(y.shape), y.numel(), LAST=last, WIDE=_wide(x, y), **FIXED
    )
    return y


def haar(x):
    b, c, h, w = x.shape
    y, last = _result(x, (b, 4 * c, h // 2, w // 2))
    _haar_kernel[_flat(y)](x, x.stride(), y, tuple(y.shape), y.numel(), LAST=last, WIDE=_wide(x, y), **FIXED)
    return y


def expand_bits(packed, count: int):
    y = torch.empty(count, dtype=torch.bool, device=packed.device)
    _bits_kernel[_flat(y)](packed.contiguous(), y.view(torch.int8), count, WIDE=_wide(y), **FIXED)
    return y


def modulate(weight, change: WeightChange, dtype):
    outputs, inputs, height, width = weight.shape
    y = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    energy = torch.empty(outputs, inputs, dtype=torch.float32, device=weight.device)
    left = [None if t is None else t.contiguous() for t in change[:4]]
    block = min(BLOCK, triton.next_power_of_2(inputs))
    _modulate_kernel[outputs, triton.cdiv(inputs, block)](
        weight, weight.stride(), y, energy, *left, *_operands((outputs, inputs), change.scale, change.shift),
        None if change.mask is None else change.mask.contiguous(), *_operands((outputs, inputs), change.gain),
        outputs, inputs, width,
        TAPS=height * width, RANK=1 if left[0] is None else left[0].shape[1], **FIXED | {"BLOCK": block},
    )  # fmt: skip
    return y, energy
