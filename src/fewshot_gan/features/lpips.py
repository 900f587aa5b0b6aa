"""LPIPS (arXiv 1801.03924) from the package `lpips`, whose weights are downloaded once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import check_floats, reduced
from .base import FeatureNetwork
from .weights import FETCHING, fault_of_cache, hash_of_weights


class LPIPSFeatures(FeatureNetwork):
    """LPIPS (arXiv 1801.03924) as vectors: the squared distance of two vectors is the LPIPS of their pictures.

    It has no `pooled` features. The vector of a picture of 256 px takes 16 MB with VGG, 1.3 MB with AlexNet.

    Args:
        net: "vgg" or "alex".

    Raises:
        ImportError: `lpips` or torchvision is not installed.
        FileNotFoundError: the weights, which torchvision downloads, are missing.
    """

    spatial_side, spatial_resize = 256, "area, to 256 px at most"
    net: Any  # a class of the package `lpips`

    def __init__(self, net: str = "vgg"):
        super().__init__()
        self.net = load_lpips(net)
        self.sha256 = hash_of_weights(self.net)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def spatial(self, images: Tensor, size: int | None = None) -> Tensor:
        """Return float16 `[B, E]` of images `[B, 3, H, W]` in [-1, 1], reduced to `size` px (None: 256) if larger."""
        check_floats(images)
        images = reduced(images, size or self.spatial_side)
        vectors = []
        for maps, linear in zip(self.net.net(self.net.scaling_layer(images.float())), self.net.lins, strict=True):
            weight = linear.model[-1].weight.clamp_min(0).sqrt()  # [1, C, 1, 1]; training keeps it at 0 or above
            maps = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10) * weight
            vectors.append(maps.flatten(1) / (maps.shape[2] * maps.shape[3]) ** 0.5)
        return torch.cat(vectors, 1).half()


def load_lpips(net: str = "vgg") -> nn.Module:
    """Load LPIPS from the package `lpips`, frozen: two `[B, 3, H, W]` in [-1, 1] → `[B, 1, 1, 1]`.

    Args:
        net: "vgg" or "alex".

    Raises:
        ImportError: `lpips` or torchvision is not installed.
        FileNotFoundError: the weights, which torchvision downloads once, are missing.
    """
    try:
        import lpips  # pyright: ignore[reportMissingImports]  of the extra metrics
    except ImportError as error:  # of lpips, or of torchvision inside it
        raise ImportError("LPIPS needs lpips: pip install 'fewshot_gan[metrics]'") from error
    try:
        return lpips.LPIPS(net=net, verbose=False).requires_grad_(False)
    except FETCHING as error:
        what = fault_of_cache(error) or f"cannot fetch its weights ({error})"
        raise FileNotFoundError(f"LPIPS {what}") from error


LPIPS = {f"lpips-{net}": partial(LPIPSFeatures, net) for net in ("vgg", "alex")}
