"""Projected discriminator: small trainable heads on frozen features (Projected GANs, arXiv 2111.01007, §3).

With pretrained features, ten images are enough to train a discriminator. Differs from the paper: each level has its
random 1×1 projection, but there is no cross-scale mixing, since the heads are few and must run on a CPU.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations

from ..utils.random import initialised
from .network import Network, network_output
from .pickling import Picklable
from .spectral import spectral_norm

WIDTH = 64


class HeadConv(Picklable, nn.Conv2d):
    """A convolution that can be pickled with its spectral norm."""


class LevelHead(nn.Module):
    """Fixed random 1×1 projection → spectral-norm 4×4 stride-2 convolutions → map of logits.

    Args:
        channels: number of channels of the feature level.
        num_convs: number of stride-2 convolutions.
    """

    projection: torch.Tensor
    level_std: torch.Tensor

    def __init__(self, channels: int, num_convs: int):
        super().__init__()
        self.register_buffer("projection", torch.randn(WIDTH, channels, 1, 1) / channels**0.5)
        self.register_buffer("level_std", torch.ones([]))
        self.convs = nn.ModuleList(
            spectral_norm(HeadConv(WIDTH, WIDTH, 4, stride=2, padding=1)) for _ in range(num_convs)
        )
        self.to_logit = spectral_norm(HeadConv(WIDTH, 1, 1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # [B, C, H, W] -> maps, then [B, H', W'] logits
        x, maps = F.conv2d(x, self.projection / self.level_std), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            maps.append(x)
        return [*maps, self.to_logit(x)[:, 0]]


class ProjectedDiscriminator(Network):
    """One head per level of a frozen feature network.

    Args:
        channels: level → number of channels of its features.
        num_convs: level → number of stride-2 convolutions of its head; more of them see larger parts of the image.
        seed: seed of the initial weights.
    """

    @register_to_config
    def __init__(self, channels: dict[int, int], num_convs: dict[int, int], seed: int = 0):
        super().__init__()
        channels, num_convs = ({int(k): v for k, v in x.items()} for x in (channels, num_convs))  # JSON has str keys
        self.levels = sorted(channels)
        with initialised(seed):
            self.heads = nn.ModuleDict({str(k): LevelHead(channels[k], num_convs[k]) for k in self.levels})

    @classmethod
    def for_images(cls, images, features, num_convs: dict[int, int], seed: int = 0) -> "ProjectedDiscriminator":
        """Return a discriminator for images of this size, calibrated on `images`.

        Args:
            images: `[N, 3, R, R]`.
            features: frozen `FeatureNetwork`.
            num_convs: level → largest number of convolutions; a head has no more than its feature map can be halved.
            seed: seed of the initial weights.
        """
        levels = sorted(num_convs)
        with torch.no_grad():
            maps = dict(zip(levels, features(images, levels), strict=True))
        convs = {k: min(num_convs[k], x.shape[-1].bit_length() - 1) for k, x in maps.items()}
        new = cls({k: x.shape[1] for k, x in maps.items()}, convs, seed)
        new.calibrate(maps)
        return new

    @torch.no_grad()
    def calibrate(self, features: dict[int, torch.Tensor]) -> None:
        """Normalise each level by its standard deviation over `features` (level → `[B, C, H, W]`)."""
        for level in self.levels:
            self._head(level).level_std.copy_(features[level].std())

    def freeze_lower(self, num: int) -> None:
        """Freeze the first `num` convolutions of each head (FreezeD, arXiv 2002.10964).

        The last convolution of a head is always trained, so a head of one convolution freezes none.

        Raises:
            ValueError: no head has more than `num` convolutions.
        """
        heads = [self._head(level) for level in self.levels]
        limit = max(len(head.convs) for head in heads) - 1
        if not 0 <= num <= limit:
            raise ValueError(f"freeze_d={num}: the heads have {limit} convolutions below their last; give 0 to {limit}")
        for head in heads:
            for conv in head.convs[: min(num, len(head.convs) - 1)]:
                remove_parametrizations(conv, "weight")  # keep the normalised weight, and stop estimating its norm
                conv.requires_grad_(False)

    def _head(self, level: int) -> LevelHead:
        head = self.heads[str(level)]
        assert isinstance(head, LevelHead)
        return head

    @property
    def last_layers(self) -> list[nn.Module]:
        """Return the layers that turn features into logits, one per head."""
        return [self._head(level).to_logit for level in self.levels]

    def forward(
        self, features: dict[int, torch.Tensor], return_features: bool = False, return_dict: bool | None = None
    ):
        """Return one logit map `[B, h, w]` per level.

        Args:
            features: level → `[B, C, H, W]`.
            return_features: also return the output of each convolution, `{"0_1": [B, 64, h, w], …}`.
            return_dict: see `StyleGAN2Discriminator.forward`.
        """
        logits, maps = [], {}
        for level in self.levels:
            *conv_outputs, logit_map = self._head(level)(features[level])
            maps |= {f"{level}_{i}": x for i, x in enumerate(conv_outputs)}
            logits.append(logit_map)
        return network_output(logits, maps if return_features else None, return_dict)
