"""Frame training pictures as the base frames its own: enlarge and shift all of them alike.

Cartoon heads often lie lower and smaller in their squares than faces in a base's pictures. A generator can hardly move
eyes, so pairs of pictures and faces need them at the same place. The layout, the self-similarity of feature maps
(`statistics.self_similarity`), tells how well a framing fits: it ignores the look.
"""

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..data.images import reduced
from ..features import FeatureNetwork
from ..inversion import VIEW
from ..utils.offloading import execution_device
from ..utils.random import seeded
from .statistics import CONTENT_LEVELS, self_similarity

SAMPLES = 16  # pictures of the base
MOST = 16  # training pictures
PSI = 0.7  # their truncation
ZOOMS, SHIFTS = (1.0, 1.15, 1.3, 1.45), (-0.09, -0.045, 0.0, 0.045, 0.09)
LEAST_GAIN = 0.1  # share of the distance by which another framing must be nearer than that of the pictures


class Framing(NamedTuple):
    """How pictures are framed anew.

    Attributes:
        zoom: factor by which they are enlarged around their middle.
        shift: by which they are then moved down, as a share of the side.
    """

    zoom: float = 1.0
    shift: float = 0.0

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Return reframed pictures `[B, 3, R, R]` in [-1, 1]; beyond their border its pixels are repeated."""
        if self == Framing():
            return images
        rows = [[1 / self.zoom, 0.0, 0.0], [0.0, 1 / self.zoom, -2 * self.shift / self.zoom]]
        matrix = torch.tensor(rows, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
        places = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, places, "bicubic", "border", align_corners=False).clamp(-1, 1)

    @property
    def shows_border(self) -> bool:
        """Whether places beyond the border of a picture come into sight."""
        return abs(self.shift) > (self.zoom - 1) / 2 + 1e-6


@torch.no_grad()
def own_pictures(pipe, device: torch.device | str) -> torch.Tensor:
    """Return random pictures of a base, reduced to 256 px, `[SAMPLES, 3, 256, 256]`; the same in every call."""
    z = torch.randn(SAMPLES, pipe.generator.z_dim, generator=seeded(0), dtype=torch.float32, device="cpu")
    generator = pipe.generator
    with pipe.bank.using({}):
        ws = generator.mapping(z.to(execution_device(generator), generator.dtype), truncation_psi=PSI)
        drawn = [reduced(generator(w, latent_space="w+").float(), VIEW) for w in ws.split(1)]
    return torch.cat(drawn).to(device)


@torch.no_grad()
def layouts(features: FeatureNetwork, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the self-similarities of pictures `[B, 3, R, R]` at `CONTENT_LEVELS`, each `[B, P, P]`."""
    return [self_similarity(x) for x in features(reduced(images, VIEW), CONTENT_LEVELS)]


def layout_distances(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean squared difference of `layouts` of A and of B pictures, summed over levels, `[A, B]`."""
    levels = [torch.stack([(row - y).square().mean((1, 2)) for row in x]) for x, y in zip(a, b, strict=True)]
    return torch.stack(levels).sum(0)


def find_framing(features: FeatureNetwork, images: torch.Tensor, own: list[torch.Tensor], flat_ground: bool) -> Framing:
    """Find the framing with which pictures are laid out most like the base's.

    Args:
        features: frozen feature network.
        images: training pictures `[K, 3, R, R]` in [-1, 1]; the first `MOST` are looked at.
        own: `layouts` of `own_pictures`.
        flat_ground: whether the ground around the figures is flat, so that more of it may come into sight.
    """
    small = reduced(images[:MOST], VIEW)
    found = {}
    for framing in (Framing(*values) for values in product(ZOOMS, SHIFTS)):
        if flat_ground or not framing.shows_border:
            found[framing] = float(layout_distances(layouts(features, framing.apply(small)), own).mean())
    best = min(found, key=lambda framing: found[framing])
    return best if found[best] <= (1 - LEAST_GAIN) * found[Framing()] else Framing()
