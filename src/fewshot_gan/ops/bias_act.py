"""Bias, activation, gain and clamp in one call (StyleGAN2, arXiv 1912.04958)."""

import math

import torch
import torch.nn.functional as F

_ACTIVATIONS = {  # name: (function, gain that keeps the variance of a unit Gaussian)
    "linear": (lambda x: x, 1.0),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), math.sqrt(2)),
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


def bias_act(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "linear",
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """`clamp(gain · act(x + bias))`.

    Args:
        x: `[B, C, ...]`.
        bias: `[C]`, one per sample `[B, C]`, or None.
        activation: "linear", "lrelu" (slope 0.2) or "relu".
        gain: factor after the activation; None takes the activation's own (√2 for lrelu and relu).
        clamp: limit of the absolute value after the gain, or None.

    Returns:
        Same shape and dtype as `x`.

    Raises:
        ValueError: unknown activation, or `bias` does not fit `x`.
    """
    gain = activation_gain(activation) if gain is None else gain
    if bias is not None:
        if bias.shape not in (x.shape[1:2], x.shape[:2]):
            raise ValueError(f"bias {tuple(bias.shape)} fits neither [C] nor [B, C] of an input {tuple(x.shape)}")
        x = x + bias.to(x.dtype).reshape(*bias.shape, *[1] * (x.ndim - 2))
    x = _ACTIVATIONS[activation][0](x)
    if gain != 1:
        x = x * gain
    return x.clamp(-clamp, clamp) if clamp is not None else x
