"""Choose the method for a set of training pictures, from what they have in common with the base's own pictures.

Three questions decide (training/RESULTS.md, "The choice of the method"):

- Is the scene that of the base, in other colours or strokes? The self-similarity of feature maps, which ignores the
  look (`statistics.content_distance`), is then hardly further from the base's random pictures than theirs from each
  other.
- Otherwise, does the base have counterparts of the pictures? Their inversion comes much nearer than the mean picture.
- Is there a flat ground, on which the figure is smaller than in the base's pictures?
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.images import reduced
from ..features import FeatureNetwork
from ..inversion import VIEW, invert, latent_statistics
from ..models.latents import check_latents
from ..models.layers import as_ws
from ..utils.random import seeded
from .pairs import counterpart_quality, figure_share
from .statistics import CONTENT_LEVELS, self_similarity

SAMPLES = 16  # pictures of the base
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
def choose(pipe, images: torch.Tensor, features: FeatureNetwork) -> Choice:
    """Choose the method that learns a look best from these pictures.

    Args:
        pipe: the base, a `FewShotGAN` with styles.
        images: training pictures `[K, 3, R, R]` in [-1, 1].
        features: frozen feature network.

    Returns:
        "lfs_gan", "pairs" or "d3t" with preset "large_gap". It depends on the base and the pictures alone.
    """
    z = torch.randn(SAMPLES, pipe.generator.z_dim, generator=seeded(0), dtype=torch.float32, device="cpu")
    with pipe.bank.using({}):
        ws = pipe.generator.mapping(z.to(images.device), truncation_psi=0.7)
        own = torch.cat([reduced(pipe.generator(w, latent_space="w+").float(), VIEW) for w in ws.split(1)])
    between = _layout_distances(features, own, own)
    apart = between[~torch.eye(len(own), dtype=torch.bool, device=between.device)].mean()
    scene = float(_layout_distances(features, reduced(images, VIEW), own).mean() / apart)
    if scene <= SAME_SCENE:
        reason = "the pictures show what the base draws, in other colours or strokes, so everything else is kept"
        return Choice("lfs_gan", reason=reason, scene=scene)
    quality = float(_qualities(pipe, images[:INVERTED], features).mean())
    share = figure_share(images)
    options = {"real_zoom": 1.5} if share[:, [0, -1]].mean() < 0.25 else {}
    if quality >= COUNTERPART:
        reason = "the base can draw a face near to each picture, so it learns from pairs of them"
        return Choice("pairs", {"preset": "pairs"} | options, reason, scene, quality)
    reason = "the base draws nothing near to these pictures, so their shapes and colours are learned, not their pairs"
    return Choice("d3t", {"preset": "large_gap"} | options, reason, scene, quality)


def _layout_distances(features: FeatureNetwork, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of self-similarities of pictures `[A, …]` and `[B, …]`, `[A, B]`."""
    total = torch.zeros(len(a), len(b), device=a.device)
    maps = [[self_similarity(x) for x in features(pictures, CONTENT_LEVELS)] for pictures in (a, b)]
    for x, y in zip(*maps, strict=True):
        total += torch.stack([(row - y).square().mean((1, 2)) for row in x])
    return total


def _qualities(pipe, images: torch.Tensor, features: FeatureNetwork) -> torch.Tensor:
    """Return `counterpart_quality` `[N]` of pictures after a short inversion."""
    generator, start = pipe.generator, pipe.estimate(images)
    mean = check_latents(latent_statistics(generator)[0][None])
    with pipe.bank.using({}):
        found = invert(generator, images, steps=INVERSION_STEPS, start=start, perceptual=features, progress=False)
        drawn = generator(as_ws(mean, generator.num_ws, generator.w_dim).to(images), latent_space="w+").float()
    return counterpart_quality(features, images, found.images.to(images), drawn)
