"""Operations of StyleGAN-family networks as Triton kernels, each with a reference in plain torch.

`op` holds the functions and their derivatives, `reference` the same computations in plain torch, `launch` the Triton
kernels and `layers` modules for `kernels.kernelize`. Only `launch` imports Triton; it is imported for the first tensor
on a GPU. On a CPU everything runs in plain torch.
"""

from . import layers
from .op import (
    bias_act,
    expand_bits,
    failures,
    haar,
    inverse_haar,
    modulate_weight,
    upfirdn2d,
)

__all__ = [
    "bias_act",
    "expand_bits",
    "failures",
    "haar",
    "inverse_haar",
    "layers",
    "modulate_weight",
    "upfirdn2d",
]
