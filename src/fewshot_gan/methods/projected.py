"""Projected discriminator: small trainable heads on frozen features (Projected GANs, arXiv 2111.01007, §3).

A discriminator that already sees needs only the look, not vision itself, from ten images. Differs from the paper: no
cross-scale mixing, only the per-level random 1×1 projection, because the heads here are few and the budget a CPU.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTH = 64


class LevelHead(nn.Module):
    """Fixed random 1×1 projection → spectral-norm 4×4 stride-2 convolutions → map of logits.

    Args:
        channels: of the feature level.
        num_convs: stride-2 convolutions.
        generator: draws the projection.
    """

    def __init__(self, channels: int, num_convs: int, generator: torch.Generator | None = None):
        super().__init__()
        projection = torch.randn(WIDTH, channels, 1, 1, generator=generator) / channels**0.5
        self.register_buffer("projection", projection)
        self.register_buffer("level_std", torch.ones([]))
        self.convs = nn.ModuleList(
            spectral_norm(nn.Conv2d(WIDTH, WIDTH, 4, stride=2, padding=1)) for _ in range(num_convs)
        )
        self.to_logit = spectral_norm(nn.Conv2d(WIDTH, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, H', W'] logits
        x = F.conv2d(x, self.projection / self.level_std)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        return self.to_logit(x)[:, 0]


class ProjectedDiscriminator(nn.Module):
    """One head per level of a frozen feature network.

    Args:
        channels: level → width of its features.
        num_convs: level → stride-2 convolutions of its head; more convolutions see more of the layout.
        seed: of the random projections.
    """

    def __init__(self, channels: dict[int, int], num_convs: dict[int, int], seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.levels = sorted(channels)
        self.heads = nn.ModuleDict(
            {str(level): LevelHead(channels[level], num_convs[level], generator) for level in self.levels}
        )

    @torch.no_grad()
    def calibrate(self, features: dict[int, torch.Tensor]) -> None:
        """Divide each level by its standard deviation over `features` (level → `[B, C, H, W]`) from now on."""
        for level in self.levels:
            self.heads[str(level)].level_std.copy_(features[level].std())

    def forward(self, features: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """Level → `[B, C, H, W]` features in, one logit map `[B, h, w]` per level out."""
        return [self.heads[str(level)](features[level]) for level in self.levels]
