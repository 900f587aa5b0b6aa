"""Sizes, widths and architectures of StyleGAN2 (arXiv 1912.04958)."""

import math

ARCHITECTURES = ("orig", "skip", "resnet")
HALF = math.sqrt(0.5)  # factor of both paths of a residual block
FIR_TAPS = (1, 3, 3, 1)  # the 2-D kernel has multiples of 1/64: exact in float16 and bfloat16


def block_resolutions(resolution: int) -> list[int]:
    """Return `[4, 8, …, resolution]`.

    Raises:
        ValueError: `resolution` is not a power of two from 16 to 1024.
    """
    if resolution not in (16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"resolution={resolution} is not a power of two from 16 to 1024")
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def check_architecture(name: str) -> str:
    """Return `name` if it is an architecture.

    Raises:
        ValueError: it is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return name


def block_channels(resolution: int, channel_base: int, channel_max: int) -> int:
    """Return the width of the features at `resolution`: `min(channel_base // resolution, channel_max)`."""
    return min(channel_base // resolution, channel_max)
