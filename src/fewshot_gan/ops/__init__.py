"""The operations of StyleGAN-family networks in plain torch, the reference for every faster version.

`dispatch` chooses the kernel package that replaces them on a GPU.
"""

from .bias_act import Act, activation_gain, bias_act
from .bits import pack_bits, unpack_bits
from .channel_scale import scale_channels
from .conv import conv2d
from .dispatch import kernel_mapping, set_kernels
from .haar import haar, inverse_haar
from .modulated_conv import filter_energy, modulated_conv2d
from .row_weights import RowWeights, by_rows, scale_weight
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
    "scale_channels",
    "scale_weight",
    "set_kernels",
    "setup_filter",
    "unpack_bits",
    "upfirdn2d",
    "upsample2d",
]
