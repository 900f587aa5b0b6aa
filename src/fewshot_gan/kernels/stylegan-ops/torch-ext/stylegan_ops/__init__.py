"""Operations of StyleGAN-family networks as Triton kernels, each beside the plain torch that it equals.

`op` has the functions and their derivatives, `reference` what they compute, `launch` the kernels (it alone imports
Triton, at the first tensor on a GPU), `layers` the same for `kernels.kernelize`. On a CPU everything is plain torch.
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
