"""What every frozen feature network is: the eyes of losses, projected discriminators and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureNetwork(nn.Module):
    """Contract of every feature network: frozen, fp32, no train mode, images float `[B, 3, H, W]` in [-1, 1].

    Attributes:
        sha256: hash of the weights, for protocols: numbers from two checkpoints do not compare.
        resize, spatial_resize: what `pooled` and `spatial` do to pictures first, in words, for protocols.
        spatial_side: px to which `spatial` resizes if nothing else is asked for.
    """

    sha256: str = ""
    resize: str = ""
    spatial_side: int = 128
    spatial_resize: str = "torch bilinear, antialiased, to 128 px"

    def forward(self, images: Tensor, blocks: Sequence[int] = (), resize: int | None = None) -> list[Tensor]:
        """Feature maps after `blocks`, in the order asked for, differentiable with respect to `images`."""
        raise NotImplementedError(
            f"{type(self).__name__} gives no feature maps; use load_features(), EfficientNet-Lite0"
        )

    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """One vector per image `[N, D]`, without gradient: what distribution distances compare."""
        raise NotImplementedError(f"{type(self).__name__} compares pairs and nothing else")

    def channels(self, blocks: Sequence[int]) -> list[int]:
        """Widths of the maps that `forward(images, blocks)` returns."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> FeatureNetwork:
        return super().train(False)

    def spatial(self, images: Tensor, size: int | None = None) -> Tensor:
        """One vector per image `[B, E]`; the squared distance of two is how much the images differ, place by place.

        LPIPS-like (arXiv 1801.03924, without its learnt channel weights): at each position of blocks 2, 4 and 10 the
        channels are scaled to unit length; the squared difference is averaged over positions and summed over the
        levels. E is about 42,000 at 128 px.
        """
        maps = self(images, blocks=(2, 4, 10), resize=size or self.spatial_side)
        return torch.cat([F.normalize(m, dim=1).flatten(1) / math.sqrt(m.shape[2] * m.shape[3]) for m in maps], 1)
