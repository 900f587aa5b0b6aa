"""Pivotal tuning: an adapter with which a base draws given photos from fixed latents (arXiv 2106.05744).

Each photo has a pivot, a latent of `inversion.invert`, which stays fixed. The adapter learns to draw the photo there,
and to leave the pictures of latents between the pivot and random ones as they are (locality, §3.3). Differs from the
paper: an adapter is trained in place of all weights, on the features of EfficientNet in place of LPIPS's, and on native
crops besides the reduced picture.

Shape legend: P photos, L `num_ws` or 1, D `w_dim`, R resolution.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from ..data.images import reduced
from ..features import FeatureNetwork
from ..inversion import VIEW, PerceptualDistance
from ..metrics import native_crops
from ..models.layers import as_ws
from ..utils.frozen import Frozen
from ..utils.hashing import hash_tensor
from ..utils.ranges import COUNT, NOT_NEGATIVE, Range, check_numbers
from .objective import StepHooks
from .pair import Latents, Pair
from .views import draw_corners


@dataclass(frozen=True)
class PivotalConfig:
    """Weights of pivotal tuning.

    Attributes:
        perceptual_weight: of the perceptual distance to the photo, reduced to 256 px.
        view_size, crops, crop_weight: side and number of native crops in a step, and weight of their mean perceptual
            distance; without effect on photos up to `view_size`.
        l2_weight, l1_weight: of the mean squared and the mean absolute difference to the photo.
        locality_weight: of the mean squared change of pictures near the pivot.
        locality_every: locality is computed every n-th step, with n times its weight.
        locality_psi: how far towards a random w its latents lie.
    """

    perceptual_weight: float = 1.0
    view_size: int = VIEW
    crops: int = 1
    crop_weight: float = 0.25
    l2_weight: float = 12.0
    l1_weight: float = 0.5
    locality_weight: float = 0.5
    locality_every: int = 4
    locality_psi: float = 0.6

    RANGES = {
        **dict.fromkeys(
            ("perceptual_weight", "crop_weight", "l2_weight", "l1_weight", "locality_weight"), NOT_NEGATIVE
        ),
        **dict.fromkeys(("view_size", "locality_every"), COUNT),
        "crops": NOT_NEGATIVE,
        "locality_psi": Range(0, 2, example="0.6"),
    }

    def __post_init__(self):
        check_numbers(self, self.RANGES)


class PivotalObjective(StepHooks):
    """Losses of pivotal tuning, one photo in each step.

    Args:
        config: weights of the terms.
        photos: `[P, 3, R, R]` in [-1, 1].
        pivots: their latents w `[P, D]` or w+ `[P, L, D]`.
        features: frozen feature network.
    """

    # it has those parts of `Objective` that the trainer uses if `uses_images` is False
    uses_images = compares_views = needs_source = False

    def __init__(self, config: PivotalConfig, photos: torch.Tensor, pivots: torch.Tensor, features: FeatureNetwork):
        super().__init__()
        self.config, self.photos, self.pivots = config, photos, pivots
        self._features = Frozen(features)
        self._distances = Frozen([PerceptualDistance(features, photo[None]) for photo in photos])

    def settings(self) -> dict:
        """See `Objective.settings`."""
        return {**asdict(self.config), "photos": hash_tensor(self.photos), "pivots": hash_tensor(self.pivots)}

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """See `Objective.regularisers`; these are all losses of a step."""
        c, which = self.config, step % len(self.photos)
        photo, pivot = self.photos[which : which + 1], self.pivots[which : which + 1]
        drawn = pair.adapted(Latents(w=pivot)).images
        difference = drawn - photo
        losses = {
            "perceptual": c.perceptual_weight * self._distances.value[which](drawn).mean(),
            "l2": c.l2_weight * difference.square().mean(),
            "l1": c.l1_weight * difference.abs().mean(),
        }
        if c.crops and c.crop_weight and photo.shape[-1] > c.view_size:
            corners = draw_corners(1, c.crops, photo.shape[-1], c.view_size, random)
            crops = PerceptualDistance(self._features.value, native_crops(photo, corners, c.view_size))
            losses["crops"] = c.crop_weight * crops(native_crops(drawn, corners, c.view_size)).mean()
        yield losses
        if c.locality_weight and step % c.locality_every == 0:
            which = step // c.locality_every % len(self.photos)  # each photo in turn
            pivot = self.pivots[which : which + 1]
            with torch.no_grad(), pair.bank.using({}):
                w = pair.ws(pair.draw(1, random))
                near = torch.lerp(as_ws(pivot, *w.shape[1:]), w, c.locality_psi)
            latents = Latents(w=near)
            kept = reduced(pair.source(latents, 0).images, VIEW)
            change = reduced(pair.adapted(latents).images, VIEW) - kept
            yield {"locality": c.locality_every * c.locality_weight * change.square().mean()}
