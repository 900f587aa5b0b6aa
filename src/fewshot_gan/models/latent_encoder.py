"""Estimate the latent w from which a generator draws a picture: a linear map of features of a frozen network.

The map is ridge regression on pictures that the generator drew itself, of a low rank (Izenman 1975). It starts the
search of `inversion.invert`, as the encoders of e4e (arXiv 2102.02766) and ReStyle (arXiv 2104.02699) do, in a
thousandth of their numbers.

Shape legend: B batch, F number of values that describe a picture, D `w_dim`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..data.images import reduced
from .network import Network

VIEW = 256  # px to which larger pictures are reduced for feature networks
BLOCKS = (4, 10, 14)  # of EfficientNet-Lite0: an eighth of the side down to a thirty-second
CELLS, COLOUR_CELLS = 8, 16  # a side: of each feature map, and of the picture itself
SLOPE = 0.2  # of the leaky ReLU at the end of mapping networks


def describe(images: torch.Tensor, features, blocks: Sequence[int] = BLOCKS) -> torch.Tensor:
    """Return features of pictures that say what is where: `[B, F]`.

    Args:
        images: `[B, 3, R, R]` in [-1, 1], R at least 32; larger ones than 256 px are reduced.
        features: a `FeatureNetwork`.
        blocks: blocks of the network; each map is averaged to 8 × 8 cells, and the picture to 16 × 16.
    """
    images = reduced(images, VIEW)
    maps = [F.adaptive_avg_pool2d(values, CELLS) for values in features(images, blocks)]
    return torch.cat([values.flatten(1) for values in (*maps, F.adaptive_avg_pool2d(images, COLOUR_CELLS))], 1)


class LatentEncoder(Network):
    """Estimate w; `training/latent_encoder.py` fits one for any style-based base.

    Args:
        num_features: F.
        w_dim: D.
        rank: of the map; at most `w_dim`.
        blocks: see `describe`.
    """

    @register_to_config
    def __init__(self, num_features: int, w_dim: int = 512, rank: int = 96, blocks: Sequence[int] = BLOCKS):
        super().__init__()
        self.num_features, self.w_dim, self.blocks = num_features, w_dim, tuple(blocks)
        self.down = nn.Linear(num_features, rank)
        self.up = nn.Linear(rank, w_dim)

    def forward(self, images: torch.Tensor, features) -> torch.Tensor:
        """Return w `[B, D]` of pictures.

        Args:
            images: `[B, 3, R, R]` in [-1, 1], as the generator draws them.
            features: the `FeatureNetwork` with which the map was fitted.
        """
        values = describe(images, features, self.blocks).to(self.down.weight.dtype)
        return F.leaky_relu(self.up(self.down(values)), SLOPE)
