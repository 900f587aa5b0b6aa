"""Projected discriminator: small trainable heads on frozen features (Projected GANs, arXiv 2111.01007, §3).

A discriminator that already sees needs only the look, not vision itself, from ten images. Differs from the paper: no
cross-scale mixing, only the per-level random 1×1 projection, because the heads here are few and the budget a CPU.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import remove_parametrizations

from .network import Network, answer
from .pickling import Picklable

WIDTH = 64


class HeadConv(Picklable, nn.Conv2d):
    """A convolution whose spectral norm may be pickled."""


class LevelHead(nn.Module):
    """Fixed random 1×1 projection → spectral-norm 4×4 stride-2 convolutions → map of logits.

    Args:
        channels: of the feature level.
        num_convs: stride-2 convolutions.
    """

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
        channels: level → width of its features.
        num_convs: level → stride-2 convolutions of its head; more convolutions see more of the layout.
        seed: of every starting weight.
    """

    @register_to_config
    def __init__(self, channels: dict[int, int], num_convs: dict[int, int], seed: int = 0):
        super().__init__()
        channels, num_convs = ({int(k): v for k, v in x.items()} for x in (channels, num_convs))  # JSON has str keys
        self.levels = sorted(channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleDict({str(k): LevelHead(channels[k], num_convs[k]) for k in self.levels})

    @classmethod
    def for_images(cls, images, features, num_convs: dict[int, int], seed: int = 0) -> "ProjectedDiscriminator":
        """Heads for `images` `[N, 3, R, R]`, calibrated on them; no head has more convolutions than its map halvings.

        Args:
            features: frozen `FeatureNetwork`.
            num_convs: level → at most this many convolutions.
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
        """Divide each level by its standard deviation over `features` (level → `[B, C, H, W]`) from now on."""
        for level in self.levels:
            self.heads[str(level)].level_std.copy_(features[level].std())

    def freeze_lower(self, num: int) -> None:
        """Keep the first `num` convolutions of each head as they are now (FreezeD, arXiv 2002.10964).

        Its last convolution still learns, so a head of one keeps none; below them all lie the frozen features.

        Raises:
            ValueError: no head has more than `num`.
        """
        most = max(len(head.convs) for head in self.heads.values()) - 1
        if not 0 <= num <= most:
            raise ValueError(f"freeze_d={num}: the heads have {most} convolutions below their last; give 0 to {most}")
        for head in self.heads.values():
            for conv in head.convs[: min(num, len(head.convs) - 1)]:
                remove_parametrizations(conv, "weight")  # the normalised weight itself: no estimate of a norm goes on
                conv.requires_grad_(False)

    @property
    def last_layers(self) -> list[nn.Module]:
        """What turns features into logits, a layer per head."""
        return [self.heads[str(level)].to_logit for level in self.levels]

    def forward(
        self, features: dict[int, torch.Tensor], return_features: bool = False, return_dict: bool | None = None
    ):
        """Level → `[B, C, H, W]` features in, one logit map `[B, h, w]` per level out.

        With `return_features` a pair of that list and `{"0_1": [B, 64, h, w], …}`, each convolution's output;
        `return_dict` as of `StyleGAN2Discriminator`.
        """
        logits, maps = [], {}
        for level in self.levels:
            *between, last = self.heads[str(level)](features[level])
            maps |= {f"{level}_{i}": x for i, x in enumerate(between)}
            logits.append(last)
        return answer(logits, maps if return_features else None, return_dict)
