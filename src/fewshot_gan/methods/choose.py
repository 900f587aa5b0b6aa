"""Choose the method for a set of training pictures, from what they have in common with the base's own pictures.

Three questions decide (training/RESULTS.md, "The choice of the method"):

- Is the scene that of the base, in other colours or strokes? The self-similarity of feature maps, which ignores the
  look (`statistics.content_distance`), is then hardly further from the base's random pictures than theirs from each
  other.
- Otherwise, does the base have counterparts of the pictures? Their inversion comes much nearer than the mean picture.
- Is there a flat ground? The figures are then smaller than in the base's pictures, and training enlarges them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.images import reduced
from ..features import FeatureNetwork
from ..inversion import VIEW, invert, latent_statistics
from ..models.layers import as_ws
from ..utils.offloading import execution_device
from ..utils.random import seeded
from .pairs import counterpart_quality, has_flat_ground
from .statistics import CONTENT_LEVELS, self_similarity

SAMPLES = 16  # pictures of the base
PSI = 0.7  # their truncation
MOST = 16  # training pictures that are looked at

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
    quality = float(_qualities(pipe, images[:INVERTED], features, on_step).mean())
    is_smaller = has_flat_ground(images)  # the base's faces fill their pictures
    if quality >= COUNTERPART:
        reason = "the base can draw a face near to each picture, so it learns from pairs of them"
        zoom = {"real_zoom": 1.25} if is_smaller else {}
        return Choice("pairs", {"preset": "pairs"} | zoom, reason, scene, quality)
    reason = "the base draws nothing near to these pictures, so their shapes and colours are learned, not their pairs"
    zoom = {"real_zoom": 1.5} if is_smaller else {}
    return Choice("d3t", {"preset": "large_gap"} | zoom, reason, scene, quality)


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
