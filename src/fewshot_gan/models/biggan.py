"""BigGAN (arXiv 1809.11096): class-conditional batch norm fed with chunks of z, projection discriminator.

Every weight is spectrally normalised and initialised orthogonally. `biggan_config` returns published layouts.

Shape legend: B batch, C width, H/W size of the features, E size of a block's condition.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from .network import Network
from .plain import (
    BatchNorm,
    ConditionalBatchNorm,
    Conv2d,
    Embedding,
    Linear,
    PlainDiscriminator,
    PlainGenerator,
    SelfAttention,
    published_layout,
    upsample_nearest,
)
from .sngan import DiscriminatorBlock

EPS = 1e-6  # epsilon of spectral normalisation
LAYOUTS = {  # resolution: arguments of generator and discriminator
    32: {
        "generator": {"block_channels": [384] * 4, "attention_after": 2, "chunk_dim": 20, "num_classes": 10},
        "discriminator": {
            "block_channels": [192] * 4,
            "down": [True, True, False, False],
            "attention_after": 1,
            "num_classes": 10,
        },
    },
    64: {
        "generator": {
            "block_channels": [1280, 1280, 640, 320, 160],
            "attention_after": 3,
            "chunk_dim": 20,
            "num_classes": 200,
        },
        "discriminator": {
            "block_channels": [160, 320, 640, 1280, 1280],
            "down": [True, True, True, True, False],
            "attention_after": 1,
            "num_classes": 200,
        },
    },
    128: {
        "generator": {
            "block_channels": [1536, 1536, 768, 384, 192, 96],
            "attention_after": 4,
            "chunk_dim": 20,
            "num_classes": 1000,
            "norm_eps": 1e-5,
        },
        "discriminator": {
            "block_channels": [96, 192, 384, 768, 1536, 1536],
            "down": [True, True, True, True, True, False],
            "attention_after": 1,
            "num_classes": 1000,
        },
    },
}


def biggan_config(resolution: int, network: str, **changes) -> dict:
    """Return the arguments of a published layout: CIFAR (32 px), Tiny-ImageNet (64 px) or ImageNet (128 px).

    Args:
        resolution: image size in pixels.
        network: "generator" or "discriminator".
        changes: arguments to replace, e.g. `num_classes`.

    Raises:
        ValueError: no layout has this resolution.
    """
    size = {"resolution": resolution} if network == "discriminator" else {}
    return {**published_layout("BigGAN", LAYOUTS, resolution)[network], **size, **changes}


class GeneratorBlock(nn.Module):
    """Residual block: norm, ReLU, upsample, convolve, norm, ReLU, convolve; plus an upsampled 1×1 skip."""

    def __init__(self, in_channels: int, out_channels: int, size: int, norm_eps: float):
        super().__init__()
        self.norm0 = ConditionalBatchNorm(in_channels, size, norm_eps, EPS)
        self.norm1 = ConditionalBatchNorm(out_channels, size, norm_eps, EPS)
        self.conv0, self.conv1 = Conv2d(in_channels, out_channels, eps=EPS), Conv2d(out_channels, out_channels, eps=EPS)
        self.skip = Conv2d(in_channels, out_channels, 1, role="skip", eps=EPS)

    def forward(self, x, condition):  # [B, C, H, W], [B, E] -> [B, C', 2H, 2W]
        y = self.conv0(upsample_nearest(F.relu(self.norm0(x, condition))))
        return self.conv1(F.relu(self.norm1(y, condition))) + self.skip(upsample_nearest(x))


class BigGANGenerator(PlainGenerator, Network):
    """BigGAN generator (arXiv 1809.11096); z is split in chunks: one for the 4×4 start and one per block.

    Args:
        block_channels: width of the 4×4 start, then of each block; images have `4·2^blocks` pixels a side.
        attention_after: number of blocks before self-attention; 0 means no attention.
        chunk_dim: size of a chunk of z; `z_dim = chunk_dim · (blocks + 1)`.
        shared_dim: size of the class embedding that all blocks share.
        num_classes: number of classes.
        norm_eps: epsilon of batch normalisation.

    Raises:
        ValueError: there is no block, or `attention_after` exceeds the number of blocks.
    """

    @register_to_config
    def __init__(
        self,
        block_channels: Sequence[int] = (384, 384, 384, 384),
        attention_after: int = 2,
        chunk_dim: int = 20,
        shared_dim: int = 128,
        num_classes: int = 10,
        norm_eps: float = 1e-4,
    ):
        super().__init__()
        blocks = check_blocks(len(block_channels) - 1, attention_after)
        self.resolution, self.z_dim, self.num_classes = 4 * 2**blocks, chunk_dim * (blocks + 1), num_classes
        self.width, self.chunk_dim = block_channels[0], chunk_dim
        self.shared = Embedding(num_classes, shared_dim)
        self.linear = Linear(chunk_dim, self.width * 16, eps=EPS)
        self.resolutions = [8 * 2**i for i in range(blocks)]
        for i, res in enumerate(self.resolutions):
            block = GeneratorBlock(block_channels[i], block_channels[i + 1], shared_dim + chunk_dim, norm_eps)
            setattr(self, f"b{res}", block)
        self.attention_at = 4 * 2**attention_after if attention_after else None
        self.attention = SelfAttention(block_channels[attention_after], EPS) if attention_after else None
        self.norm = BatchNorm(block_channels[-1], norm_eps)
        self.to_rgb = Conv2d(block_channels[-1], 3, role="to_rgb", eps=EPS)

    def layer_resolution(self, path: str) -> int:
        if self.attention_at is not None and path.startswith("attention"):
            return self.attention_at
        return super().layer_resolution(path)

    def stem(self, z, labels):  # [B, z_dim] -> [B, C, 4, 4]
        return self.linear(z[:, : self.chunk_dim]).view(len(z), self.width, 4, 4)

    def body(self, x, z, labels):  # [B, C, 4, 4], [B, z_dim], [B] -> [B, 3, R, R]
        shared = self.shared(labels).to(x.dtype)
        for res, chunk in zip(self.resolutions, z.split(self.chunk_dim, 1)[1:], strict=True):
            x = self.run(getattr(self, f"b{res}"), x, torch.cat([shared, chunk], 1))
            if self.attention is not None and res == self.attention_at:
                x = self.run(self.attention, x)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


class BigGANDiscriminator(PlainDiscriminator, Network):
    """BigGAN discriminator (arXiv 1809.11096): residual blocks, sum, linear plus projection on the class (1802.05637).

    Args:
        block_channels: width of each block.
        down: whether each block halves the size; the first must.
        attention_after: number of blocks before self-attention; 0 means no attention.
        num_classes: number of classes.
        resolution: image size in pixels.
        shortcut_after_relu: the skips of all blocks but the first take ReLU(x) instead of x. Networks that were trained
            with an in-place ReLU need it: StudioGAN and its forks, such as the checkpoints of arXiv 2103.00397.

    Raises:
        ValueError: the lists differ in length, or `attention_after` exceeds the number of blocks.
    """

    @register_to_config
    def __init__(
        self,
        block_channels: Sequence[int] = (192, 192, 192, 192),
        down: Sequence[bool] = (True, True, False, False),
        attention_after: int = 1,
        num_classes: int = 10,
        resolution: int = 32,
        shortcut_after_relu: bool = False,
    ):
        super().__init__()
        if len(down) != len(block_channels):
            raise ValueError(f"{len(block_channels)} widths and {len(down)} entries of down; give one per block")
        self.num_blocks = check_blocks(len(block_channels), attention_after)
        self.resolution, self.num_classes, self.attention_after = resolution, num_classes, attention_after
        for i, (width, halve) in enumerate(zip(block_channels, down, strict=True)):
            before = block_channels[i - 1] if i else 3
            options = {"shortcut_after_relu": shortcut_after_relu, "eps": EPS}
            setattr(self, f"block{i}", DiscriminatorBlock(before, width, down=halve, first=i == 0, **options))
        self.attention = SelfAttention(block_channels[attention_after - 1], EPS) if attention_after else None
        self.out = Linear(block_channels[-1], 1, eps=EPS)
        self.embedding = Embedding(num_classes, block_channels[-1], eps=EPS)

    def trunk(self, images):  # [B, 3, R, R] -> [B, C]
        x = images
        for i in range(self.num_blocks):
            x = getattr(self, f"block{i}")(x)
            if self.attention is not None and i + 1 == self.attention_after:
                x = self.attention(x)
        return F.relu(x).sum((2, 3))

    def head(self, vectors, labels):  # [B, C], [B] -> [B, 1]
        return self.out(vectors) + (self.embedding(labels).to(vectors.dtype) * vectors).sum(1, keepdim=True)


def check_blocks(blocks: int, attention_after: int) -> int:
    """Return `blocks` after checking both numbers.

    Raises:
        ValueError: `blocks` is below 1, or `attention_after` is not from 0 to `blocks`.
    """
    if blocks < 1 or not 0 <= attention_after <= blocks:
        raise ValueError(f"attention_after={attention_after} of {blocks} blocks: give one block or more, and 0 to that")
    return blocks
