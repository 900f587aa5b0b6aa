"""Choose the method for a set of training pictures, from what they have in common with the base's own pictures.

Three questions decide (training/RESULTS.md, "The choice of the method"):

- Is the scene that of the base, in other colours or strokes? The self-similarity of feature maps, which ignores the
  look (`statistics.content_distance`), is then hardly further from the base's random pictures than theirs from each
  other.
- Otherwise, does the base have counterparts of the pictures? Their inversion comes much nearer than the mean picture.
- Is there a flat ground, on which the figure is smaller than in the base's pictures (`framing`)?
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..features import FeatureNetwork
from ..inversion import VIEW, invert, latent_statistics
from ..models.layers import as_ws
from .framing import MOST, find_framing, layout_distances, layouts, own_pictures
from .pairs import counterpart_quality, has_flat_ground

SAME_SCENE = 1.35  # largest ratio of the distances of pictures of the base's scene
INVERTED = 4  # pictures that are inverted
INVERSION_STEPS = 30
COUNTERPART = 0.3  # least mean quality of counterparts from which pairs are learned


@dataclass(frozen=True)
class Choice:
    """A method with its settings.

    Attributes:
        method: name of the method.
        options: further options of `make_run`.
        reason: one sentence for the user.
        scene: distance of the pictures' layout from that of the base's, 1 for the base's own.
        quality: mean `counterpart_quality` of some pictures; None if it was not needed.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    scene: float = 1.0
    quality: float | None = None


@torch.no_grad()
def choose(
    pipe, images: torch.Tensor, features: FeatureNetwork, on_step: Callable[[int, torch.Tensor], None] | None = None
) -> Choice:
    """Choose the method that learns a look best from these pictures.

    Args:
        pipe: the base, a `FewShotGAN` with styles.
        images: training pictures `[K, 3, R, R]` in [-1, 1].
        features: frozen feature network.
        on_step: of `inversion.invert`; its exceptions end the choice.

    Returns:
        "lfs_gan", "pairs" or "d3t" with preset "large_gap". It depends on the base and the pictures alone.
    """
    own = layouts(features, own_pictures(pipe, images.device))
    between = layout_distances(own, own)
    apart = between[~torch.eye(len(between), dtype=torch.bool, device=between.device)].mean()
    scene = float(layout_distances(layouts(features, images[:MOST]), own).mean() / apart)
    if scene <= SAME_SCENE:
        reason = "the pictures show what the base draws, in other colours or strokes, so everything else is kept"
        return Choice("lfs_gan", reason=reason, scene=scene)
    has_ground = has_flat_ground(images)
    framing = find_framing(features, images, own, has_ground)
    quality = float(_qualities(pipe, framing.apply(images[:INVERTED]), features, on_step).mean())
    if quality >= COUNTERPART:
        reason = "the base can draw a face near to each picture, so it learns from pairs of them"
        return Choice("pairs", {"preset": "pairs"}, reason, scene, quality)
    reason = "the base draws nothing near to these pictures, so their shapes and colours are learned, not their pairs"
    zoom = {"real_zoom": 1.5} if has_ground and framing.zoom > 1 else {}
    return Choice("d3t", {"preset": "large_gap"} | zoom, reason, scene, quality)


def _qualities(pipe, images: torch.Tensor, features: FeatureNetwork, on_step) -> torch.Tensor:
    """Return `counterpart_quality` `[N]` of pictures after a short inversion."""
    generator = pipe.generator
    options = {"start": pipe.estimate(images), "perceptual": features, "progress": False, "on_step": on_step}
    batch_size = INVERTED if generator.resolution <= VIEW else 1  # one graph of 1024 px takes 1 GB
    with pipe.bank.using({}):
        found = invert(generator, images, steps=INVERSION_STEPS, batch_size=batch_size, **options)
        mean = latent_statistics(generator)[0][None].to(images)
        drawn = generator(as_ws(mean, generator.num_ws, generator.w_dim), latent_space="w+").float()
    return counterpart_quality(features, images, found.images.to(images), drawn)
