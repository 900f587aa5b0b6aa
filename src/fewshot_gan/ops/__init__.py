"""The operations StyleGAN-family networks are made of, in plain torch: what every faster version must equal.

`dispatch` chooses where a faster version runs instead.
"""

from .bias_act import Act, activation_gain, bias_act
from .bits import pack_bits, unpack_bits
from .channel_scale import times
from .conv import conv2d
from .dispatch import kernel_mapping, set_kernels
from .haar import haar, inverse_haar
from .modulated_conv import filter_energy, modulated_conv2d
from .row_weights import RowWeights, by_rows, scaled
from .upfirdn2d import downsample2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "Act",
    "RowWeights",
    "activation_gain",
    "bias_act",
    "by_rows",
    "conv2d",
    "downsample2d",
    "filter_energy",
    "haar",
    "inverse_haar",
    "kernel_mapping",
    "modulated_conv2d",
    "pack_bits",
    "scaled",
    "set_kernels",
    "setup_filter",
    "times",
    "unpack_bits",
    "upfirdn2d",
    "upsample2d",
]
