"""The operations StyleGAN-family networks are made of, in plain torch: what every faster version must equal."""

from .bias_act import activation_gain, bias_act
from .modulated_conv import modulated_conv2d
from .rows import RowWeights, by_rows, scaled
from .upfirdn2d import downsample2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "RowWeights",
    "activation_gain",
    "bias_act",
    "by_rows",
    "downsample2d",
    "modulated_conv2d",
    "scaled",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
