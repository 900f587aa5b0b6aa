"""GP-GAN's residual networks (arXiv 1801.04406, "GAN_stability"), the base of AdaFM transfer (arXiv 2002.11810).

No normalisation layers; residual branches are scaled by 0.1. `gp_gan_config` returns published layouts.

Shape legend: B batch, C width, H/W size of the features, S scales.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from .network import Network
from .plain import (
    Conv2d,
    Embedding,
    Linear,
    PlainDiscriminator,
    PlainGenerator,
    fan_in_uniform,
    published_layout,
    upsample_nearest,
)

SLOPE = 0.2  # of leaky ReLU
BRANCH = 0.1  # factor of a residual branch
LAYOUTS = {  # resolution: arguments of both networks
    128: {"channels": [1024, 1024, 1024, 512, 256, 128, 64], "num_classes": 1000},
    256: {
        "channels": [1024, 1024, 1024, 512, 256, 128, 64, 64],
        "blocks_per_scale": 1,
        "image_kernel": 7,
        "num_classes": 1,
    },
}

GENERATORS = {128: {}, 256: {"embedding_dim": 1, "normalise_embedding": False}}


def gp_gan_config(resolution: int, network: str, **changes) -> dict:
    """Return the arguments of a published layout: ImageNet (128 px) or CelebA (256 px).

    Args:
        resolution: image size in pixels.
        network: "generator" or "discriminator".
        changes: arguments to replace, e.g. `num_classes`.

    Raises:
        ValueError: no layout has this resolution.
    """
    shared = published_layout("GP-GAN", LAYOUTS, resolution)
    return {**shared, **(GENERATORS[resolution] if network == "generator" else {}), **changes}


def act(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, SLOPE)


class ResidualBlock(nn.Module):
    """skip(x) + 0.1·conv1(a(conv0(a(x)))) with a = leaky ReLU; the inner width is the smaller of the two.

    Args:
        in_channels, out_channels: widths; the skip is a 1×1 convolution without bias where they differ.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        inner = min(in_channels, out_channels)
        self.conv0 = Conv2d(in_channels, inner, init=fan_in_uniform)
        self.conv1 = Conv2d(inner, out_channels, init=fan_in_uniform)
        options = {"bias": False, "role": "skip", "init": fan_in_uniform}
        self.skip = Conv2d(in_channels, out_channels, 1, **options) if in_channels != out_channels else None

    def forward(self, x):  # [B, C, H, W] -> [B, C', H, W]
        y = self.conv1(act(self.conv0(act(x))))
        return (x if self.skip is None else self.skip(x)) + BRANCH * y


class GPGANGenerator(PlainGenerator, Network):
    """Residual generator: linear, scales `b4` … `bR`, image convolution (100,535,747 parameters at 128 px).

    Args:
        channels: width of the 4×4 start, then of each of S scales; images have `4·2^(S−1)` pixels a side.
        blocks_per_scale: residual blocks per scale; the first one changes the width.
        num_classes: number of classes; with 1, labels may be left out.
        z_dim, embedding_dim: sizes of z and of the class embedding.
        normalise_embedding: divide the embedding by its length.
        image_kernel: kernel size of the last convolution, odd.

    Raises:
        ValueError: `channels` has fewer than two entries.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (1024, 1024, 1024, 512, 256, 128, 64),
        blocks_per_scale: int = 2,
        num_classes: int = 1000,
        z_dim: int = 256,
        embedding_dim: int = 256,
        normalise_embedding: bool = True,
        image_kernel: int = 3,
    ):
        super().__init__()
        self.resolutions, self.resolution = scale_resolutions(channels)
        self.z_dim, self.num_classes, self.width = z_dim, num_classes, channels[0]
        self.normalise_embedding = normalise_embedding
        self.embedding = Embedding(num_classes, embedding_dim, init=nn.init.normal_)
        self.linear = Linear(z_dim + embedding_dim, self.width * 16, init=fan_in_uniform)
        for i, res in enumerate(self.resolutions):
            setattr(self, f"b{res}", make_scale(channels[i], channels[i + 1], blocks_per_scale, widen=False))
        self.to_rgb = Conv2d(channels[-1], 3, image_kernel, role="to_rgb", init=fan_in_uniform)

    def stem(self, z, labels):  # [B, z_dim], [B] -> [B, C, 4, 4]
        embedded = self.embedding(labels).to(z.dtype)
        if self.normalise_embedding:
            embedded = F.normalize(embedded, dim=1)
        return self.linear(torch.cat([z, embedded], 1)).view(len(z), self.width, 4, 4)

    def body(self, x, z=None, labels=None):  # [B, C, 4, 4] -> [B, 3, R, R]
        for res in self.resolutions:
            x = self.run(getattr(self, f"b{res}"), x if res == 4 else upsample_nearest(x))
        return torch.tanh(self.to_rgb(act(x)))


class GPGANDiscriminator(PlainDiscriminator, Network):
    """Residual discriminator: image convolution, scales `bR` … `b4`, one logit per class; returns the label's.

    Args:
        channels: widths from 4×4 to the image's size, as in the generator.
        blocks_per_scale: residual blocks per scale; the last one changes the width.
        num_classes: number of classes; with 1, labels may be left out.
        image_kernel: kernel size of the first convolution, odd.

    Raises:
        ValueError: `channels` has fewer than two entries.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (1024, 1024, 1024, 512, 256, 128, 64),
        blocks_per_scale: int = 2,
        num_classes: int = 1000,
        image_kernel: int = 3,
    ):
        super().__init__()
        resolutions, self.resolution = scale_resolutions(channels)
        self.num_classes = num_classes
        self.from_rgb = Conv2d(3, channels[-1], image_kernel, role="from_rgb", init=fan_in_uniform)
        self.resolutions = resolutions[::-1]  # R, …, 4
        for i, res in enumerate(resolutions):
            setattr(self, f"b{res}", make_scale(channels[i + 1], channels[i], blocks_per_scale, widen=True))
        self.out = Linear(channels[0] * 16, num_classes, init=fan_in_uniform)

    @property
    def last_layers(self) -> list[nn.Module]:
        """Return the layers that turn feature vectors into logits."""
        return [self.out]

    @property
    def groups(self) -> list[nn.Module]:
        """Return the parts that GmDn counts (arXiv 2002.11810), from the image on: convolution, then the scales."""
        return [self.from_rgb, *(getattr(self, f"b{res}") for res in self.resolutions)]

    def trunk(self, images):  # [B, 3, R, R] -> [B, C·16]
        x = self.from_rgb(images)
        for res in self.resolutions:
            x = getattr(self, f"b{res}")(x if res == self.resolution else F.avg_pool2d(x, 3, 2, 1))
        return act(x.flatten(1))

    def head(self, vectors, labels):  # [B, C·16], [B] -> [B, 1]
        assert labels is not None
        return self.out(vectors).gather(1, labels[:, None])


def scale_resolutions(channels) -> tuple[list[int], int]:
    """Return the resolutions of the scales, from 4 up, and that of the image.

    Raises:
        ValueError: `channels` has fewer than two entries.
    """
    if len(channels) < 2:
        raise ValueError(f"channels={list(channels)}: give the width of the start and of one scale or more")
    resolutions = [4 * 2**i for i in range(len(channels) - 1)]
    return resolutions, resolutions[-1]


def make_scale(in_channels: int, out_channels: int, blocks: int, widen: bool) -> nn.Sequential:
    """Return the residual blocks of one resolution; `widen`: the last one changes the width instead of the first."""
    changing = blocks - 1 if widen else 0
    widths = [in_channels if i <= changing else out_channels for i in range(blocks)] + [out_channels]
    return nn.Sequential(*(ResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))
