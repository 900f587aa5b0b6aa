"""Noise, bias, activation, gain and clamp in one call (StyleGAN2, arXiv 1912.04958)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .channel_scale import broadcast_channels, needs_grad, scale_channels
from .dispatch import is_exported, is_traced, kernels_for

_ACTIVATIONS = {  # name: (function of (x, in place?), gain that keeps the variance of a unit Gaussian)
    "linear": (lambda x, inplace: x, 1.0),
    "lrelu": (lambda x, inplace: F.leaky_relu(x, 0.2, inplace), math.sqrt(2)),
    "relu": (F.relu, math.sqrt(2)),
}


def activation_gain(activation: str) -> float:
    """Return the gain that `bias_act` applies for `activation` by default.

    Raises:
        ValueError: the activation is unknown.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[activation][1]


class Act(NamedTuple):
    """The arguments of a `bias_act` that another operation applies to its result; see there."""

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
    """Return `clamp(gain · act(x · scale + noise · noise_strength + bias))`.

    Args:
        x: `[B, C, ...]`.
        bias: `[C]`, one per sample `[B, C]`, or None.
        noise: added to every channel of an `x` `[B, C, H, W]`: `[H, W]`, `[1 or B, 1, H, W]`, or None.
        noise_strength: a scalar tensor `[]`, or one value per sample `[B]`; required with `noise`.
        activation: "linear", "lrelu" (slope 0.2) or "relu".
        gain: factor above 0 after the activation; None means `activation_gain(activation)`, √2 for lrelu and relu.
        clamp: largest absolute value after the gain, or None for no limit.
        scale: `[C]`, one per sample `[B, C]`, or None for ones.
        reuse: `x` may be overwritten, since no one else reads it; gradients are the same.

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
            x = scale_channels(x, scale, reuse)
        if bias is None and noise is None and (activation, gain, clamp) == ("linear", 1, None):
            return x
        options = {"activation": activation, "gain": gain, "clamp": clamp}
        return kernels.bias_act(x, bias, noise=noise, noise_strength=noise_strength, **options)
    terms = [] if bias is None else [broadcast_channels(bias, x)]
    if noise is not None and noise_strength is not None:
        terms = [(noise * noise_strength.reshape(-1, 1, 1, 1)).to(x.dtype), *terms]
    fused_scale = None  # [B or 1, C, 1, …], multiplied in the pass that adds the first term
    if scale is not None and terms and reuse and not (is_traced() or needs_grad(x, scale, *terms)):
        # the gain goes into the small tensors instead of the feature map
        terms, fused_scale, gain = [term * gain for term in terms], broadcast_channels(scale * gain, x), 1
    # the same for all samples: add the two once; an exported file would store the sum, as large as the feature map
    if len(terms) == 2 and not is_exported() and all(term.shape[0] == 1 < x.shape[0] for term in terms):
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        terms = [terms[0].expand(-1, x.shape[1], -1, -1).contiguous(memory_format=layout).add_(terms[1])]
    if fused_scale is not None:
        first, *terms = terms
        x = torch.addcmul(first, x, fused_scale, out=x)
    elif scale is not None:
        x, reuse = scale_channels(x, scale, reuse), True
    for term in terms:
        x = x.add_(term) if reuse else x + term
        reuse = True  # a new tensor, which no one else reads
    if gain != 1:  # before the activation, which is homogeneous: its gradient then needs only its result
        x = x.mul_(gain) if reuse else x * gain
        reuse = True
    x = _ACTIVATIONS[activation][0](x, reuse)
    if clamp is None:
        return x
    return x.clamp_(-clamp, clamp) if reuse and not x.requires_grad else x.clamp(-clamp, clamp)
