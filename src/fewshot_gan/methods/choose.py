"""Choose the method for a set of training pictures by their layout.

The layout of a picture is the self-similarity of its feature maps (`statistics.self_similarity`), which ignores the
look. It is compared with that of random pictures of the base, of the pictures as they are and blurred: a blur removes
dots and hatching. Distances are relative to those of the base's pictures from each other (training/RESULTS.md, "The
choice of the method").

- Pictures at about the distance of the base's own show its scenes in other colours or strokes.
- Pictures that differ among themselves far more than the base's do show different things.
- Others are other faces if they are not too far away, and something else beyond.

Of pictures that show the base's scenes some are a regular pattern, see `patterns`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from ..data.images import reduced
from ..features import FeatureNetwork
from ..inversion import VIEW
from ..utils.offloading import execution_device
from ..utils.random import seeded
from .pairs import has_flat_ground
from .patterns import pattern_share
from .statistics import CONTENT_LEVELS, self_similarity

SAMPLES = 16  # pictures of the base
PSI = 0.7  # their truncation
MOST = 16  # training pictures that are looked at
BLURRED = 40  # px, to which blurred pictures are reduced before they are enlarged again
SAME_SCENE = 1.45  # largest distance of pictures of the base's scenes; of seven filters 1.08 to 1.30
OTHER_FACES = 1.85  # largest distance of other faces; of 3D heads 1.66, of robots 1.92, of flat drawings 2.07 and more
PATTERN = 0.2  # least share of a pattern; of dots and hatching .64 and more, of drawings and strokes up to .01
MIXED = 2.4  # distance among the pictures above which they show different things; of one kind of drawing up to 2.06


@dataclass(frozen=True)
class Choice:
    """A method with its settings.

    Attributes:
        method: name of the method.
        options: further options of `make_run`.
        reason: one sentence for the user.
        scene: distance of the pictures' layout from that of the base's; those of the base have 1.
        mixture: distance of the pictures' layouts from each other, in the same unit.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    scene: float = 1.0
    mixture: float = 1.0


@torch.no_grad()
def choose(pipe, images: torch.Tensor, features: FeatureNetwork) -> Choice:
    """Choose the method that learns a look best from these pictures.

    Args:
        pipe: the base, a `FewShotGAN` with styles.
        images: training pictures `[K, 3, R, R]` in [-1, 1], two or more; the first `MOST` are looked at.
        features: frozen feature network.

    Returns:
        "lfs_gan", "pairs" or "d3t" with preset "large_gap". It depends on the base and the pictures alone.
    """
    images, own = images[:MOST], own_pictures(pipe, images.device)
    scenes, mixture = [], 1.0
    for change in (_unchanged, _blurred):
        theirs, ours = (layouts(features, change(reduced(pictures, VIEW))) for pictures in (images, own))
        unit = _among(ours)
        scenes.append(float(layout_distances(theirs, ours).mean() / unit))
        mixture = float(_among(theirs) / unit)
    scene = min(scenes)
    # faces on a flat ground are smaller than those of a base, which fill their pictures
    is_smaller = has_flat_ground(images)
    if scene <= SAME_SCENE:
        preset = "strokes"
        reason = "the pictures show what the base draws, in other colours or strokes, so everything else is kept"
        if pattern_share(images) >= PATTERN:
            preset = "pattern"
            reason = (
                "the pictures show what the base draws in a regular pattern, so lines are kept where they are broad"
            )
        return Choice("lfs_gan", {"preset": preset, "adapter": "lora"}, reason, scene, mixture)
    if mixture <= MIXED and scene <= OTHER_FACES:
        reason = "the pictures show other faces, so colours of skin and hair are learned to follow the base's faces"
        return Choice("pairs", {"preset": "pairs"} | _zoom(1.25, is_smaller), reason, scene, mixture)
    reason = "the pictures are unlike what the base draws, so shapes and colours are learned, not kept"
    if mixture > MIXED:
        reason = "the pictures differ much from each other, so what they share is learned; one look does better"
    return Choice("d3t", {"preset": "large_gap", "adapter": "lora"} | _zoom(1.5, is_smaller), reason, scene, mixture)


def own_pictures(pipe, device: torch.device | str) -> torch.Tensor:
    """Return random pictures of a base, reduced to 256 px, `[SAMPLES, 3, 256, 256]`; the same in every call."""
    z = torch.randn(SAMPLES, pipe.generator.z_dim, generator=seeded(0), dtype=torch.float32, device="cpu")
    generator = pipe.generator
    with pipe.bank.using({}):
        ws = generator.mapping(z.to(execution_device(generator), generator.dtype), truncation_psi=PSI)
        drawn = [reduced(generator(w, latent_space="w+").float(), VIEW) for w in ws.split(1)]
    return torch.cat(drawn).to(device)


def layouts(features: FeatureNetwork, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the self-similarities of pictures `[B, 3, H, W]` at `CONTENT_LEVELS`, each `[B, P, P]`."""
    return [self_similarity(x) for x in features(images, CONTENT_LEVELS)]


def layout_distances(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean squared difference of `layouts` of A and of B pictures, summed over levels, `[A, B]`."""
    levels = [torch.stack([(row - y).square().mean((1, 2)) for row in x]) for x, y in zip(a, b, strict=True)]
    return torch.stack(levels).sum(0)


def _among(of: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean distance of different pictures of one set."""
    distances = layout_distances(of, of)
    return distances.sum() / (len(distances) * (len(distances) - 1))


def _unchanged(images: torch.Tensor) -> torch.Tensor:
    return images


def _blurred(images: torch.Tensor) -> torch.Tensor:
    small = F.adaptive_avg_pool2d(images, BLURRED)
    return F.interpolate(small, size=images.shape[-2:], mode="bicubic").clamp(-1, 1)


def _zoom(factor: float, is_smaller: bool) -> dict[str, float]:
    return {"real_zoom": factor} if is_smaller else {}
