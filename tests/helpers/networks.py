"""Tiny networks for every test: 32 px, at most 16 channels, on the CPU, with noise and biases that matter."""

import torch
import torch.nn.functional as F
from torch import nn

from fewshot_gan.features import FeatureNetwork
from fewshot_gan.models import MobileStyleGANGenerator, StyleGAN2Discriminator, StyleGAN2Generator


def _disturb(model: nn.Module) -> nn.Module:
    """Noise strengths, biases and the mean w away from their zero initialisation, rounded to float16."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("noise.strength"):
                p.fill_(0.25)
            elif name.endswith("bias") and "affine" not in name:
                p.normal_(0, 0.1)
        if hasattr(model, "mapping"):
            model.mapping.w_avg.normal_(0, 0.1)
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half().float())  # as published weights are: representable in half precision
    return model.eval()


def tiny_mobile(seed: int = 0, block_channels=(16, 16, 16), w_dim: int = 16) -> MobileStyleGANGenerator:
    torch.manual_seed(seed)
    return _disturb(MobileStyleGANGenerator(block_channels, z_dim=16, w_dim=w_dim, num_mapping_layers=2))


def tiny_stylegan2(seed: int = 0, resolution: int = 32, w_dim: int = 16) -> StyleGAN2Generator:
    torch.manual_seed(seed)
    size = {"channel_base": 128, "channel_max": 12}
    return _disturb(StyleGAN2Generator(resolution, **size, z_dim=16, w_dim=w_dim, num_mapping_layers=2))


def tiny_discriminator(seed: int = 0, resolution: int = 32) -> StyleGAN2Discriminator:
    torch.manual_seed(seed)
    return _disturb(StyleGAN2Discriminator(resolution, channel_base=128, channel_max=12))


class TinyFeatures(FeatureNetwork):
    """Random frozen convolutions that answer to the block ids the objectives ask for."""

    STRIDES = {0: 2, 2: 2, 4: 2, 7: 1, 10: 1, 14: 2}
    WIDTH = 8

    def __init__(self, seed: int = 0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        widths = [3, *[self.WIDTH] * len(self.STRIDES)]
        for block, inn in zip(self.STRIDES, widths, strict=False):
            self.register_buffer(f"w{block}", torch.randn(self.WIDTH, inn, 3, 3, generator=g) / (inn * 4.5) ** 0.5)

    def forward(self, images, blocks=(0, 2, 4, 7, 10, 14), resize=None):
        x, maps = images, {}
        for block, stride in self.STRIDES.items():
            x = maps[block] = F.leaky_relu(F.conv2d(x, getattr(self, f"w{block}"), stride=stride, padding=1), 0.2)
        return [maps[b] for b in blocks]

    @torch.no_grad()
    def pooled(self, images, batch_size=32):
        return self(images, (14,))[0].mean((2, 3))

    def channels(self, blocks):
        return [self.WIDTH for _ in blocks]
