"""Noise, bias, activation, gain and clamp in one call (StyleGAN2, arXiv 1912.04958)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .channel_scale import per_channel, times, tracked
from .dispatch import kernels_for, traced

_ACTIVATIONS = {  # name: (function of x and whether to write into x, gain that keeps the variance of a unit Gaussian)
    "linear": (lambda x, inplace: x, 1.0),
    "lrelu": (lambda x, inplace: F.leaky_relu(x, 0.2, inplace), math.sqrt(2)),
    "relu": (F.relu, math.sqrt(2)),
}


def activation_gain(activation: str) -> float:
    """The gain that `bias_act` applies for `activation` when none is given.

    Raises:
        ValueError: the activation is unknown.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[activation][1]


class Act(NamedTuple):
    """The arguments of `bias_act` besides its input, for an operation that ends with one."""

    bias: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    noise_strength: torch.Tensor | None = None
    activation: str = "linear"
    gain: float | None = None
    clamp: float | None = None
    scale: torch.Tensor | None = None


def bias_act(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    noise_strength: torch.Tensor | None = None,
    *,
    activation: str = "linear",
    gain: float | None = None,
    clamp: float | None = None,
    scale: torch.Tensor | None = None,
    reuse: bool = False,
) -> torch.Tensor:
    """`clamp(gain · act(x · scale + noise · noise_strength + bias))`.

    Args:
        x: `[B, C, ...]`.
        bias: `[C]`, one per sample `[B, C]`, or None.
        noise: added to every channel of an `x` `[B, C, H, W]`: `[H, W]`, `[1 or B, 1, H, W]`, or None.
        noise_strength: one number `[]`, or one per sample `[B]`; belongs to `noise`.
        activation: "linear", "lrelu" (slope 0.2) or "relu".
        gain: positive factor after the activation; None takes the activation's own (√2 for lrelu and relu).
        clamp: limit of the absolute value after the gain, or None.
        scale: `[C]`, one per sample `[B, C]`, or None for ones.
        reuse: nobody else needs `x`, so its memory may become the result's; gradients are the same.

    Returns:
        Same shape and dtype as `x`.

    Raises:
        ValueError: unknown activation, a gain of 0 or less, or `bias`, `scale` or `noise` does not fit `x`.
    """
    gain = activation_gain(activation) if gain is None else gain
    if gain <= 0:
        raise ValueError(f"gain={gain}: give a number above 0")
    for name, term in (("bias", bias), ("scale", scale)):
        if term is not None and term.shape not in (x.shape[1:2], x.shape[:2]):
            raise ValueError(f"{name} {tuple(term.shape)} fits neither [C] nor [B, C] of an input {tuple(x.shape)}")
    if noise is not None and (noise.shape[-2:] != x.shape[2:] or noise_strength is None):
        raise ValueError(
            f"noise {tuple(noise.shape)} needs a strength and an input of its height and width, got {tuple(x.shape)}"
        )
    if x.ndim > 2 and (kernels := kernels_for(x)) is not None:  # a matrix is too small to be worth a launch
        if scale is not None:
            x = times(x, scale, reuse)
        if bias is None and noise is None and (activation, gain, clamp) == ("linear", 1, None):
            return x
        options = {"activation": activation, "gain": gain, "clamp": clamp}
        return kernels.bias_act(x, bias, noise=noise, noise_strength=noise_strength, **options)
    terms = [] if bias is None else [per_channel(bias, x)]
    if noise is not None:
        terms = [(noise * noise_strength.reshape(-1, 1, 1, 1)).to(x.dtype), *terms]
    one_pass = scale is not None and terms and reuse and not (traced() or tracked(x, scale, *terms))
    if one_pass:  # with the gain in what is small
        terms, scale, gain = [term * gain for term in terms], scale * gain, 1
    if len(terms) == 2 and all(term.shape[0] == 1 < x.shape[0] for term in terms):  # one pass for all samples
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        terms = [terms[0].expand(-1, x.shape[1], -1, -1).contiguous(memory_format=layout).add_(terms[1])]
    if one_pass:
        first, *terms = terms
        x = torch.addcmul(first, x, per_channel(scale, x), out=x)
    elif scale is not None:
        x, reuse = times(x, scale, reuse), True
    for term in terms:
        x = x.add_(term) if reuse else x + term
        reuse = True  # what was just made is ours
    if gain != 1:  # before the activation, which is homogeneous: its gradient then needs nothing but its result
        x = x.mul_(gain) if reuse else x * gain
        reuse = True
    x = _ACTIVATIONS[activation][0](x, reuse)
    if clamp is None:
        return x
    return x.clamp_(-clamp, clamp) if reuse and not x.requires_grad else x.clamp(-clamp, clamp)
