"""The computations of `launch` in plain torch, without derivatives: functions of the same names and arguments.

Shape legend: B batch, C channels, H/W height and width, O/I outputs and inputs of a weight, k kernel size, r rank.
"""

import torch
import torch.nn.functional as F

from .options import Act, Fir, WeightChange


def act(x, bias, noise, strength, how: Act):
    """Add noise and bias to `x` `[B, C, H, W]` and activate; the other tensors broadcast to `x` or are None."""
    if noise is not None:
        x = x + (noise * strength).to(x.dtype)
    if bias is not None:
        x = x + bias.to(x.dtype)
    if how.activation != "linear":
        x = F.leaky_relu(x, 0.2) if how.activation == "lrelu" else F.relu(x)
    x = x * how.gain
    return x if how.clamp is None else x.clamp(-how.clamp, how.clamp)


def act_grad(g, y, how: Act):
    """Turn the gradient `g` of the result `y` into that of the activation's input; `y` may be None where unneeded."""
    g = g * how.gain
    if how.activation != "linear":
        slope = 0.2 if how.activation == "lrelu" else 0.0
        g = torch.where(y * how.gain > 0, g, g * slope)
    return g if how.clamp is None else torch.where(y.abs() < how.clamp, g, 0)


def upfirdn(x, f, how: Fir, bias, noise, strength, then: Act):
    """Filter `[B, C, H, W]` to `[B, C, *how.size(x, f)]`, then apply `act`."""
    b, c, h, w = x.shape
    left, right, top, bottom = how.padding
    if how.up > 1:
        x = F.pad(x.reshape(b, c, h, 1, w, 1), (0, how.up - 1, 0, 0, 0, how.up - 1))
        x = x.reshape(b, c, h * how.up, w * how.up)
    x = F.pad(x, (left, right, top, bottom))
    f = (f * how.gain).to(x.dtype)
    f = f if how.flip else f.flip(0, 1)
    x = F.conv2d(x, f.expand(c, 1, *f.shape), stride=how.down, groups=c)
    return act(x, bias, noise, strength, then)


def inverse_haar(x, style):
    """Turn bands `[B, 4C, H, W]`, times a style `[B, 4C]` or None, into `[B, C, 2H, 2W]`."""
    x = x if style is None else x * style.to(x.dtype)[:, :, None, None]
    b, c4, h, w = x.shape
    bands = x[:, c4 // 4 :].reshape(b, c4 // 4, 3, h, w)
    ll, (lh, hl, hh) = x[:, : c4 // 4], bands.unbind(2)
    top, bottom = [(ll + lh) / 2, (hl + hh) / 2], [(ll - lh) / 2, (hl - hh) / 2]
    rows = [torch.stack([low + high, low - high], -1) for low, high in (top, bottom)]  # [B, C, H, W, 2]
    return torch.stack(rows, 3).reshape(b, c4 // 4, 2 * h, 2 * w)


def haar(x):
    """Turn `[B, C, 2H, 2W]` into bands `[B, 4C, H, W]`: the inverse and the transpose of `inverse_haar`."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    bands = torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], 2).flatten(1, 2)
    return torch.cat([a + b + c + d, bands], 1) / 2


def expand_bits(packed, count: int):
    """Unpack uint8 `[ceil(count / 8)]`, lowest bit first, into bool `[count]`."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> places) & 1).bool().flatten()[:count]


def modulate(weight, change: WeightChange, dtype):
    """Return the effective weight `[O, I, k, k]` in `dtype`, and its energy `[O, I]` float32 for demodulation."""
    w = weight.float()
    if change.mul_in is not None:
        assert change.mul_core is not None and change.add_in is not None and change.add_kernel is not None
        gamma = torch.einsum("is,sok->oik", change.mul_in.float(), change.mul_core.float())
        beta = change.add_in.float() @ change.add_kernel.float().t()
        w = w * gamma.reshape(w.shape) + beta.reshape(w.shape[1:])
    if change.scale is not None:
        w = w * change.scale.float()[..., None, None]
    if change.shift is not None:
        w = w + change.shift.float()[..., None, None]
    if change.mask is not None:
        w = w * expand_bits(change.mask, w.numel()).reshape(w.shape)
    energy = w.square().sum((2, 3))
    if change.gain is not None:
        w = w * change.gain.float()[..., None, None]
    return w.to(dtype), energy
