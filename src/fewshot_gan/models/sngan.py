"""SNGAN for 32 px (arXiv 1802.05957, ResNet of appendix B.4): unconditional, spectral norm in the discriminator only.

Shape legend: B batch, C width, H/W size of the features.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from .network import Network
from .plain import (
    BatchNorm,
    Conv2d,
    Linear,
    PlainDiscriminator,
    PlainGenerator,
    fan_in_uniform,
    upsample_nearest,
    xavier,
)

EPS = 1e-12  # epsilon of spectral normalisation


class UpBlock(nn.Module):
    """Residual block to twice the size: norm, ReLU, upsample, convolve, norm, ReLU, convolve; plus a 1×1 skip.

    Initialises convolutions with Xavier's distribution and batch norm gains with N(1, 0.02²).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm0, self.norm1 = BatchNorm(channels), BatchNorm(channels)
        self.conv0, self.conv1 = (Conv2d(channels, channels, init=xavier) for _ in range(2))
        self.skip = Conv2d(channels, channels, 1, role="skip", init=xavier)
        for norm in (self.norm0, self.norm1):
            nn.init.normal_(norm.weight, 1.0, 0.02)

    def forward(self, x):  # [B, C, H, W] -> [B, C, 2H, 2W]
        y = self.conv0(upsample_nearest(F.relu(self.norm0(x))))
        return self.conv1(F.relu(self.norm1(y))) + self.skip(upsample_nearest(x))


class SNGANGenerator(PlainGenerator, Network):
    """SNGAN generator (arXiv 1802.05957): linear, blocks `b8`, `b16`, `b32`, image head; 4,276,739 parameters.

    Args:
        channels: width C.
        z_dim: size of z.
        resolution: image size in pixels, a power of two from 8.

    Raises:
        ValueError: the resolution is not such a power.
    """

    @register_to_config
    def __init__(self, channels: int = 256, z_dim: int = 128, resolution: int = 32):
        super().__init__()
        if resolution < 8 or resolution & (resolution - 1):
            raise ValueError(f"resolution={resolution}: give a power of two, 8 or more")
        self.z_dim, self.resolution, self.channels = z_dim, resolution, channels
        self.linear = Linear(z_dim, channels * 16, init=fan_in_uniform)
        self.resolutions = [2**i for i in range(3, resolution.bit_length())]
        for res in self.resolutions:
            setattr(self, f"b{res}", UpBlock(channels))
        self.norm = BatchNorm(channels)
        nn.init.normal_(self.norm.weight, 1.0, 0.02)
        self.to_rgb = Conv2d(channels, 3, role="to_rgb", init=xavier)

    def stem(self, z, labels=None):  # [B, z_dim] -> [B, C, 4, 4]
        return self.linear(z).view(len(z), self.channels, 4, 4)

    def body(self, x, z=None, labels=None):  # [B, C, 4, 4] -> [B, 3, R, R]
        for res in self.resolutions:
            x = self.run(getattr(self, f"b{res}"), x)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


class DiscriminatorBlock(nn.Module):
    """Two convolutions plus a skip, which is a 1×1 convolution where size or width changes.

    Args:
        in_channels, out_channels: widths.
        down: halve the size.
        first: the block takes the image: no activation before, and the skip is downsampled before its convolution.
        shortcut_after_relu: the skip takes ReLU(x) instead of x; see `BigGANDiscriminator`.
        options: `eps` and `init`, see `plain.Layer`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, down: bool, first: bool, shortcut_after_relu: bool = False, **options
    ):
        super().__init__()
        self.down, self.first, self.shortcut_after_relu = down, first, shortcut_after_relu
        role = "from_rgb" if first else "conv"
        self.conv0 = Conv2d(in_channels, out_channels, role=role, **options)
        self.conv1 = Conv2d(out_channels, out_channels, **options)
        has_skip_conv = down or in_channels != out_channels
        self.skip = Conv2d(in_channels, out_channels, 1, role="skip", **options) if has_skip_conv else None

    def forward(self, x):  # [B, C, H, W] -> [B, C', H, W], or half the size
        activated = x if self.first else F.relu(x)
        y = self.conv1(F.relu(self.conv0(activated)))
        if self.first:
            assert self.skip is not None  # it changes the width
            return F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))
        x = activated if self.shortcut_after_relu else x
        x = x if self.skip is None else self.skip(x)
        return F.avg_pool2d(x + y, 2) if self.down else x + y


class SNGANDiscriminator(PlainDiscriminator, Network):
    """SNGAN discriminator (arXiv 1802.05957): two downsampling blocks, two more, sum, linear; 1,053,824 parameters.

    Args:
        channels: width C.
        resolution: image size in pixels, a multiple of 4.
        spectral_norm: whether every weight is divided by its largest singular value.
    """

    @register_to_config
    def __init__(self, channels: int = 128, resolution: int = 32, spectral_norm: bool = True):
        super().__init__()
        self.resolution = resolution
        eps = EPS if spectral_norm else None
        for i in range(4):
            options = {"eps": eps, "init": xavier}
            block = DiscriminatorBlock(channels if i else 3, channels, down=i < 2, first=i == 0, **options)
            setattr(self, f"block{i}", block)
        self.out = Linear(channels, 1, bias=False, eps=eps, init=fan_in_uniform)

    def trunk(self, images):  # [B, 3, R, R] -> [B, C]
        x = images
        for i in range(4):
            x = getattr(self, f"block{i}")(x)
        return F.relu(x).sum((2, 3))

    def head(self, vectors, labels=None):  # [B, C] -> [B, 1]
        return self.out(vectors)
