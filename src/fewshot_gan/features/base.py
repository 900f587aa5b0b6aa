"""Base class of frozen feature networks, for losses, projected discriminators and metrics.

Shape legend: B batch, N images, C channels, D size of a feature vector, E size of an embedding for distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureNetwork(nn.Module):
    """Base class: networks are frozen, in fp32 and evaluation mode, and take float images `[B, 3, H, W]` in [-1, 1].

    Attributes:
        sha256: hash of the weights, for protocols: values from two checkpoints cannot be compared.
        resize, spatial_resize: how `pooled` and `spatial` resize images, in words, for protocols.
        spatial_side: px to which `spatial` resizes by default.
    """

    sha256: str = ""
    resize: str = ""
    spatial_side: int = 128
    spatial_resize: str = "torch bilinear, antialiased, to 128 px"

    def forward(self, images: Tensor, blocks: Sequence[int] = (), resize: int | None = None) -> list[Tensor]:
        """Return the feature maps after `blocks`, in the given order, differentiable with respect to `images`."""
        raise NotImplementedError(
            f"{type(self).__name__} gives no feature maps; use load_features(), EfficientNet-Lite0"
        )

    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Return one vector per image `[N, D]`, without gradient, for distances between distributions."""
        raise NotImplementedError(f"{type(self).__name__} compares pairs and nothing else")

    def channels(self, blocks: Sequence[int]) -> list[int]:
        """Return the numbers of channels of the maps that `forward(images, blocks)` returns."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> FeatureNetwork:
        return super().train(False)

    def spatial(self, images: Tensor, size: int | None = None) -> Tensor:
        """Return one vector per image `[B, E]`; the squared distance of two vectors is the distance of the images.

        LPIPS-like (arXiv 1801.03924, without its learnt channel weights): at each position of blocks 2, 4 and 10 the
        channels are scaled to unit length; the squared difference is averaged over positions and summed over the
        blocks. E is about 42,000 at 128 px.

        Args:
            images: float `[B, 3, H, W]` in [-1, 1].
            size: px to which they are resized; None: `spatial_side`.
        """
        maps = self(images, blocks=(2, 4, 10), resize=size or self.spatial_side)
        return torch.cat([F.normalize(m, dim=1).flatten(1) / math.sqrt(m.shape[2] * m.shape[3]) for m in maps], 1)
