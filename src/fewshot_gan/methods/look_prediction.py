"""Train a network that predicts looks from pictures, on photo filters: the true picture of each latent is known.

Each step draws new looks. The network sees one face in each look, and must draw another face in it as the filter does.
HyperDomainNet (arXiv 2210.08884, §4) trains on fixed domains without known pictures; this is regression instead.

Shape legend: B pictures, E size of an embedding, R resolution.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from ..adapters.look_hypernetwork import LookHyperNetwork
from ..data.images import reduced
from ..features import FeatureNetwork
from ..features.encoders import Encoder
from ..metrics import native_crops
from ..utils.frozen import Frozen
from ..utils.random import seeded
from ..utils.ranges import check_numbers
from .checks import check_terms
from .losses import total
from .objective import StepHooks
from .pair import Pair
from .views import VIEW_RANGES, check_views, draw_corners, num_crops

LEVELS = (0, 2, 4, 7, 10)  # blocks of the feature network whose statistics are compared
ALIGNED_LEVELS = (0, 2, 4, 7)  # those whose maps are compared position by position
BLUR = 8  # px of the squares over which colours are averaged
FIRST_LOOKS = 64  # looks that decide how embeddings are scaled
EXAMPLES = 4  # looks of sample images

Look = Callable[[torch.Tensor], torch.Tensor]  # pictures [B, 3, H, W] in [-1, 1] -> the same


@dataclass(frozen=True)
class LookPredictionConfig:
    """Weights of the distances between the drawn picture and the true one.

    Attributes:
        pixel_weight: of the mean absolute difference of pixels.
        colour_weight: of the mean absolute difference of means of 8×8 pixels.
        feature_weight: of the mean absolute differences of feature maps, each divided by the mean magnitude of the true
            map; the sum over four levels.
        statistics_weight: of those of means and standard deviations of each picture's feature maps, over five levels.
        view_size, crops, crop_weight: as of `ObjectiveConfig`.
    """

    pixel_weight: float = 2.0
    colour_weight: float = 4.0
    feature_weight: float = 0.5
    statistics_weight: float = 1.0
    view_size: int = 256
    crops: int = 1
    crop_weight: float = 1.0

    def __post_init__(self):
        check_numbers(self, {**VIEW_RANGES})
        check_views(self)
        check_terms(self, ("crop_weight",), "pixel_weight=1")


class LookPredictionObjective(StepHooks):
    """Losses of a `LookHyperNetwork`; each step trains a batch of different looks.

    Args:
        config: weights of the terms.
        hypernetwork: the network to train; its parameters are not parameters of this module.
        encoder: the one that it was made for.
        features: frozen feature network.
        draw_look: returns a random look, by a CPU generator.
        name: what `draw_look` draws from; a resumed run must have the same.

    Raises:
        ValueError: the encoder is not the one that the hypernetwork was made for.
    """

    uses_images = compares_views = needs_source = False  # each step draws its own images, see `regularisers`
    levels = LEVELS

    def __init__(
        self,
        config: LookPredictionConfig,
        hypernetwork: LookHyperNetwork,
        encoder: Encoder,
        features: FeatureNetwork,
        draw_look: Callable[[torch.Generator], Look],
        name: str,
    ):
        super().__init__()
        hypernetwork.check_encoder(encoder)
        self.config, self.draw_look, self.name = config, draw_look, name
        self._hypernetwork, self._encoder, self._features = Frozen(hypernetwork), Frozen(encoder), Frozen(features)
        self._examples: torch.Tensor | None = None  # embeddings [EXAMPLES, E]

    @property
    def features(self) -> FeatureNetwork:
        """See `Objective.features`."""
        return self._features.value

    def settings(self) -> dict:
        """See `Objective.settings`."""
        return {**asdict(self.config), "looks": self.name, "encoder": self._encoder.value.identity}

    def cropped(self, resolution: int) -> int:
        """See `Objective.cropped`."""
        return num_crops(self.config, resolution)

    def images_of_regularisers(self, batch: int) -> int:
        """See `Objective.images_of_regularisers`; the images of a step are counted elsewhere."""
        return 0

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """See `Objective.regularisers`; these are all losses of a step."""
        if step == 0:  # by the same looks in every process
            self._hypernetwork.value.standardise(self._embedded(pair, FIRST_LOOKS, seeded(0)))
        looks = [self.draw_look(random) for _ in range(batch)]
        inputs = self._embedded_in(pair, looks, random)
        latents = pair.with_noise(pair.draw(batch, random), random)
        with torch.no_grad():
            wanted = in_looks(pair.source(latents).images, looks)
        with pair.bank.using_vectors(self._hypernetwork.value(inputs)):
            drawn = pair.adapted(latents).images
        c = self.config
        losses = self._losses(reduced(drawn, c.view_size), reduced(wanted, c.view_size))
        if crops := self.cropped(drawn.shape[-1]):
            corners = draw_corners(batch, crops, drawn.shape[-1], c.view_size, random)
            seen = self._losses(*(native_crops(x, corners, c.view_size) for x in (drawn, wanted)))
            losses |= {f"{name}_crops": c.crop_weight * loss for name, loss in seen.items()}
        yield losses

    def _losses(self, drawn: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        c, losses = self.config, {}
        if c.pixel_weight:
            losses["pixel"] = c.pixel_weight * (drawn - wanted).abs().mean()
        if c.colour_weight:
            losses["colour"] = c.colour_weight * F.avg_pool2d(drawn - wanted, BLUR).abs().mean()
        if not (c.feature_weight or c.statistics_weight):
            return losses
        maps = self.features(drawn, LEVELS)
        with torch.no_grad():
            true_maps = self.features(wanted, LEVELS)
        pairs = dict(zip(LEVELS, zip(maps, true_maps, strict=True), strict=True))
        if c.feature_weight:
            losses["feature"] = c.feature_weight * total(relative_distance(*pairs[k]) for k in ALIGNED_LEVELS)
        if c.statistics_weight:
            distances = (relative_distance(*map(picture_moments, pairs[k])) for k in LEVELS)
            losses["statistics"] = c.statistics_weight * total(distances)
        return losses

    @torch.no_grad()
    def _embedded(self, pair: Pair, num: int, random: torch.Generator) -> torch.Tensor:
        """Return the embeddings `[num, E]` of one picture each of random looks."""
        chunks = (min(4, num - start) for start in range(0, num, 4))
        return torch.cat([self._embedded_in(pair, [self.draw_look(random) for _ in range(n)], random) for n in chunks])

    @torch.no_grad()
    def _embedded_in(self, pair: Pair, looks: list[Look], random: torch.Generator) -> torch.Tensor:
        """Return the embeddings `[B, E]` of one face in each look."""
        faces = pair.source(pair.draw(len(looks), random)).images
        return self._encoder.value.image(in_looks(faces, looks))

    def looks(self, bank, name: str) -> list:
        """See `StepHooks.looks`; one row for each of `EXAMPLES` random looks, predicted from a face in it."""
        network, examples = self._hypernetwork.value, self._examples
        if examples is None:
            random = torch.Generator().manual_seed(0)
            pair = Pair(bank.model, bank, truncation_psi=0.7)
            examples = self._examples = self._embedded(pair, EXAMPLES, random)
        was_training = network.training
        try:
            with torch.no_grad():
                deltas = network.eval()(examples)
        finally:
            network.train(was_training)
        rows = [{path: delta[i : i + 1] for path, delta in deltas.items()} for i in range(EXAMPLES)]
        return [bank.using_vectors(row) for row in rows]


def in_looks(images: torch.Tensor, looks: list[Look]) -> torch.Tensor:
    """Return pictures `[B, 3, R, R]`, each in its look."""
    return torch.cat([look(image) for look, image in zip(looks, images.clamp(-1, 1).split(1), strict=True)])


def picture_moments(x: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation of each channel of each picture, `[B, C, H, W]` → `[B, 2, C]`."""
    return torch.stack([x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt()], 1)


def relative_distance(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of each picture over the mean magnitude of `wanted`, then their mean."""
    difference, magnitude = ((x.abs().flatten(1).mean(1)) for x in (drawn - wanted, wanted))
    return (difference / (magnitude + 1e-6)).mean()
