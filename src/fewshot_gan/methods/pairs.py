"""Learn from pairs: each training picture and the face that the base draws nearest to it, its counterpart.

Training pictures that show faces are inverted to w. Ten such pairs show which colours become which. `ColourMap` is a
regression from the colours of the counterparts to those of the pictures. It predicts how dark the hair and skin of any
face are in the look, and the adapted generator learns that beside the terms of D3T-GAN.

With `pair_weight` it also learns to draw each picture from its counterpart, as JoJoGAN does (arXiv 2112.11641). Style
mixing gives many latents of one counterpart: their lower layers, which decide pose, shape and expression, are the
counterpart's, the upper ones a random latent's. Differs from the paper: it learns an adapter, on the features of
EfficientNet.

Shape legend: B images, K training images, L `num_ws`, D `w_dim`, R resolution.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F

from ..data.images import reduced
from ..features import FeatureNetwork
from ..inversion import PerceptualDistance, latent_statistics
from ..models.layers import as_ws
from ..utils.ranges import COUNT, NOT_NEGATIVE, SHARE
from .checks import required
from .d3t import D3TConfig, D3TMethod, D3TObjective
from .losses import total
from .method import Run
from .objective import Batch
from .pair import Latents, Pair
from .parts import eyes_and_mouth
from .projections import DEFAULTS, as_layers, complete

BLOCKS = (0, 2, 4, 10, 14)  # of EfficientNet-Lite0
CELLS = 16  # larger places, in which colours are compared
FINE = 64  # places of `ColourMap` along a side
GROUND = 0.1  # largest difference of a colour in [-1, 1] from that of its flat ground
COARSE = 64  # px of the reduced pictures whose colours a pair compares
DETAIL = 0.15  # spread of a colour in [-1, 1] within a cell, with which the cell counts 1/e
LANDMARK_SPREAD = 0.08  # standard deviation of the weight around an eye or the mouth, as a share of the side


class ColourMap:
    """Predict the colours of the look from those of the source, place by place.

    It is a linear regression over the K pairs with one slope for each place: 0 where the pictures are alike whatever
    the counterparts are, as on a white ground or in the whites of eyes, and up to 1 where their colours follow.

    Args:
        counterparts, pictures: `[K, 3, R, R]` in [-1, 1].
        features: share of an eye or the mouth in each cell, see `landmark_share`; such cells do not count.

    Attributes:
        slope: of each place, `[FINE, FINE]`.
        weight: how much each cell counts, `[CELLS, CELLS]`, see `sure_cells` and `plain_cells`; the mean over all cells
            of those in the figure is 1, to which the ground adds at most 10.
    """

    def __init__(self, counterparts: torch.Tensor, pictures: torch.Tensor, features: torch.Tensor | float = 0.0):
        figure, ground = sure_cells(figure_share(pictures))
        figure = figure * plain_cells(pictures) * (1 - features)
        least = (0.1 * ground.mean()).clamp_min(1e-8)  # a figure without sure cells leaves the ground alone
        self.weight = (figure + ground) / figure.mean().clamp_min(least)
        source, look = _places(counterparts), _places(pictures)
        self.source_mean, self.look_mean = source.mean(0), look.mean(0)
        source, look = source - self.source_mean, look - self.look_mean
        # neighbours share their sums: ten pairs are few for one place
        both, own = (F.avg_pool2d(x.sum((0, 1))[None, None], 3, 1, 1)[0, 0] for x in (source * look, source.square()))
        self.slope = (both / (own + 0.1 * own.mean() + 1e-8)).clamp(0, 1)

    def predict(self, source: torch.Tensor) -> torch.Tensor:
        """Return the colours `[B, 3, FINE, FINE]` that pictures `[B, 3, R, R]` of the source have in the look."""
        to = source.device
        return self.look_mean.to(to) + self.slope.to(to) * (_places(source) - self.source_mean.to(to))

    def recoloured(self, pictures: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return `pictures` with the change of colours that goes with a change of the source.

        Args:
            pictures: `[B, 3, S, S]` in [-1, 1].
            before, after: pictures of the source, `[B, 3, R, R]`.
        """
        shift = _blurred(_places(after) - _places(before))  # colours, not contours that moved
        shift = F.interpolate(self.slope.to(after.device) * shift, size=pictures.shape[-2:], mode="bilinear")
        return (pictures + shift).clamp(-1, 1)

    def distance(self, images: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return the mean weighted absolute difference of the colours of cells from those predicted of `source`.

        Args:
            images, source: `[B, 3, R, R]`, row i of both from the same latent.
        """
        difference = F.adaptive_avg_pool2d(_places(images) - self.predict(source), CELLS)
        return (difference.abs() * self.weight.to(difference.device)).mean()


def _places(images: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(images.float(), FINE)


def _blurred(places: torch.Tensor) -> torch.Tensor:
    """Return colours `[B, 3, FINE, FINE]`, each averaged over a cell around it."""
    size = FINE // CELLS
    padded = F.pad(places, (size // 2, size - 1 - size // 2) * 2, mode="replicate")
    return F.avg_pool2d(padded, size, 1)


def figure_share(pictures: torch.Tensor) -> torch.Tensor:
    """Return how much of each cell shows the figure, not a flat ground, as the mean over pictures.

    The ground of a picture is the median colour of its upper border. It counts if most of the border has it, in most
    pictures; otherwise everything is figure.

    Args:
        pictures: `[K, 3, R, R]` in [-1, 1].

    Returns:
        `[CELLS, CELLS]` in [0, 1].
    """
    if not has_flat_ground(pictures):
        return torch.ones(CELLS, CELLS, dtype=torch.float32, device=pictures.device)
    fine = _places(pictures)
    ground, is_flat = _grounds(fine)
    differs = (fine[is_flat] - ground[is_flat][:, :, None, None]).abs().amax(1) > GROUND
    return F.avg_pool2d(differs.float().mean(0)[None, None], FINE // CELLS)[0, 0]


def has_flat_ground(pictures: torch.Tensor) -> bool:
    """Return whether most pictures `[K, 3, R, R]` in [-1, 1] show a figure on a flat ground, see `figure_share`."""
    return bool(_grounds(_places(pictures))[1].float().mean() > 0.5)


def _grounds(fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the colour `[K, 3]` of each picture's ground, and whether it is flat, `[K]`."""
    half = FINE // 2
    border = torch.cat([fine[:, :, 0], fine[:, :, :half, 0], fine[:, :, :half, -1]], 2)  # [K, 3, n]
    ground = border.median(2).values
    return ground, ((border - ground[:, :, None]).abs().amax(1) < GROUND).float().mean(1) > 0.6


def sure_cells(share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 for cells in the figure of most pictures and 0 for others, and the same for the ground.

    Cells at the side of the figure do not count: there, other faces have a ground, whose colour does not follow.

    Args:
        share: of `figure_share`.
    """
    is_figure, is_ground = share > 0.8, share < 0.1
    inside = F.max_pool2d((~is_figure).float()[None, None], (1, 3), 1, (0, 1))[0, 0] == 0
    return inside.float(), is_ground.float()


def plain_cells(pictures: torch.Tensor) -> torch.Tensor:
    """Return how plain pictures `[K, 3, R, R]` are in each cell, `[CELLS, CELLS]`: 1 for one colour, 0 for details.

    The colour of a cell with an eye or brows says nothing of faces that have them elsewhere.
    """
    cells = _places(pictures).unfold(2, FINE // CELLS, FINE // CELLS).unfold(3, FINE // CELLS, FINE // CELLS)
    detail = cells.flatten(4).std(4, correction=0).mean((0, 1))
    return torch.exp(-(detail / DETAIL).square())


def landmark_share(landmarks, resolution: int, size: int) -> torch.Tensor:
    """Return how near each position is to an eye or the mouth, `[size, size]` in [0, 1].

    Args:
        landmarks: `mean_landmarks` of a base, in px of pictures of `resolution`; None gives 0.
        resolution: of these pictures.
        size: side of the map.
    """
    nearest = torch.zeros(size, size, dtype=torch.float32, device="cpu")
    if landmarks is None:
        return nearest
    eyes, mouth, _ = eyes_and_mouth(landmarks, resolution)
    places = (torch.arange(size, device="cpu") + 0.5) / size
    for x, y in (*eyes, mouth):
        distance = (places[None, :] - x).square() + (places[:, None] - y).square()
        nearest = torch.maximum(nearest, torch.exp(-distance / (2 * LANDMARK_SPREAD**2)))
    return nearest


def landmark_weights(landmarks, resolution: int, size: int, weight: float) -> torch.Tensor:
    """Return the weight of each position in a comparison, `[1, 1, size, size]` with mean 1.

    Args:
        landmarks, resolution, size: see `landmark_share`; without landmarks the weights are equal.
        weight: how much more an eye or the mouth counts than other places; 0 gives equal weights.
    """
    weights = 1 + weight * landmark_share(landmarks, resolution, size)
    return (weights / weights.mean())[None, None]


def pair_distance(features: FeatureNetwork, images: torch.Tensor, targets: torch.Tensor, weights) -> torch.Tensor:
    """Return the mean perceptual distance of pictures to their targets, both `[B, 3, H, W]`.

    Args:
        features: frozen feature network.
        images, targets: in [-1, 1], at most 256 px wide.
        weights: function from the side of a map to its weights `[1, 1, side, side]`, see `landmark_weights`.
    """
    with torch.no_grad():
        goal = features(targets, BLOCKS)
    terms = []
    for a, b in zip(features(images, BLOCKS), goal, strict=True):
        energy = b.square().mean((1, 2, 3)) + 1e-8
        terms.append((((a - b).square() * weights(a.shape[-1]).to(a.device)).mean((1, 2, 3)) / energy).mean())
    return total(terms) / len(terms)


@torch.no_grad()
def counterpart_quality(features: FeatureNetwork, pictures, counterparts, mean) -> torch.Tensor:
    """Return how much nearer each counterpart is to its picture than the mean face is, `[K]`.

    1 − d(counterpart, picture) / d(mean face, picture), with the perceptual distance d of `inversion`: 1 for the
    picture itself, 0 for a counterpart no nearer than the mean face.

    Args:
        features: frozen feature network.
        pictures, counterparts: `[K, 3, R, R]` in [-1, 1].
        mean: picture of the mean w, `[1, 3, R, R]`.
    """
    values = []
    for picture, counterpart in zip(pictures.split(1), counterparts.split(1), strict=True):
        distance = PerceptualDistance(features, picture)
        values.append(1 - distance(counterpart) / distance(mean))
    return torch.cat(values).cpu()


@dataclass(frozen=True)
class PairsConfig(D3TConfig):
    """Weights of `D3TConfig` and those of pairs.

    Attributes:
        pair_weight: weight of `pair_distance` between pictures of mixed latents and their training picture.
        coarse_weight: weight of the mean absolute difference of these pictures at 64×64 px, times `pair_weight`.
        pair_start: share of the run after which steps draw mixed latents.
        pair_every: from then on, every n-th step does.
        pair_layer: first layer of w+ that comes from a random latent.
        pair_pull: largest share of the random latent in the layers below.
        pair_others: factor on all other terms of such a step.
        landmark_weight: how much more eyes and mouth count, on a base with `mean_landmarks`.
        colour_map_weight: weight of `ColourMap.distance`.
        pair_quality: least quality of a counterpart, from 0, the mean face, to 1, the picture itself; others are left
            out of the pairs.
    """

    pair_weight: float = 0.0
    coarse_weight: float = 0.5
    pair_start: float = 0.5
    pair_every: int = 1
    pair_layer: int = 8
    pair_pull: float = 0.15
    pair_others: float = 0.3
    landmark_weight: float = 4.0
    colour_map_weight: float = 20.0
    pair_quality: float = 0.1

    RANGES = D3TConfig.RANGES | {
        **dict.fromkeys(
            ("pair_weight", "coarse_weight", "pair_others", "landmark_weight", "colour_map_weight"), NOT_NEGATIVE
        ),
        **dict.fromkeys(("pair_start", "pair_pull", "pair_quality"), SHARE),
        **dict.fromkeys(("pair_every", "pair_layer"), COUNT),
    }
    NO_TERMS = (*D3TConfig.NO_TERMS, "coarse_weight", "landmark_weight")

    def __post_init__(self):
        super().__post_init__()
        if not self.pair_weight and not self.colour_map_weight:
            raise ValueError(
                "pair_weight=0 and colour_map_weight=0 learn nothing from pairs; use the method d3t, or give one"
            )
        if self.pair_weight and self.pair_start == 1:
            raise ValueError("pair_start=1: no step learns from pairs; give less, e.g. 0.5, or pair_weight=0")
        if self.reconstruction_weight:
            raise ValueError(
                f"reconstruction_weight={self.reconstruction_weight} has the aim of pair_weight; give that alone"
            )

    @classmethod
    def pairs(cls) -> Self:
        """Return D3T's weights for far looks, with eyes and mouth of the look (training/RESULTS.md)."""
        return replace(super().large_gap(), part_weight=1.0)

    @property
    def needs_latents(self) -> bool:
        return self.pair_weight > 0 or self.colour_map_weight > 0 or super().needs_latents


class PairsObjective(D3TObjective):
    """Losses of D3T-GAN and those of pairs.

    Args:
        config, real, options: see `D3TObjective`; `codes` are those of all training pictures.
        counterparts: pictures of the source at `codes`, `[K, 3, R, R]` in [-1, 1].
        quality: `[K]`, see `counterpart_quality`.
        steps: of the run.
    """

    config: PairsConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # set once, in __init__

    def __init__(
        self,
        config: PairsConfig,
        real: torch.Tensor,
        *,
        counterparts: torch.Tensor,
        quality: torch.Tensor,
        steps: int,
        landmarks=None,
        **options,
    ):
        super().__init__(config, real, landmarks=landmarks, **options)
        self.require_features()
        self.steps, self._resolution, self._landmarks = steps, real.shape[-1], landmarks
        self._weights: dict[int, torch.Tensor] = {}
        self.paired = (quality >= config.pair_quality).nonzero().flatten().cpu()  # numbers of the pictures with a pair
        if len(self.paired) < 2:
            best = ", ".join(f"{value:.2f}" for value in quality.sort(descending=True).values.tolist())
            raise ValueError(
                f"the base draws no faces like these pictures (quality {best}; pairs need {config.pair_quality}): use "
                "--method d3t --preset large_gap"
            )
        near = landmark_share(landmarks, real.shape[-1], CELLS)
        self.colour_map = ColourMap(counterparts[self.paired], real[self.paired], near.to(real.device))
        self._counterparts = reduced(counterparts, config.view_size)

    def weights(self, size: int) -> torch.Tensor:
        """Return `landmark_weights` of a map with this side."""
        if size not in self._weights:
            weight = self.config.landmark_weight
            self._weights[size] = landmark_weights(self._landmarks, self._resolution, size, weight)
        return self._weights[size]

    @property
    def needs_source(self) -> bool:
        return self.config.colour_map_weight > 0 or super().needs_source

    def draws_pairs(self, step: int, progress: float) -> bool:
        """Return whether a step draws mixed latents."""
        c = self.config
        return c.pair_weight > 0 and progress >= c.pair_start and step % c.pair_every == 0

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Sample latents; steps of pairs mix those of counterparts with random ones."""
        if not self.draws_pairs(step, step / self.steps):
            return super().draw(pair, batch, step, random)
        c = self.config
        which = self.paired[torch.randint(len(self.paired), (batch,), generator=random, device="cpu")]
        with torch.no_grad(), pair.bank.using({}):
            ws = pair.ws(pair.draw(batch, random)).cpu()
        own = as_ws(self._required_codes()[which].to(ws), *ws.shape[1:])
        pull = c.pair_pull * torch.rand(batch, 1, 1, generator=random, dtype=torch.float32, device="cpu")
        mixed = torch.cat([torch.lerp(own, ws, pull)[:, : c.pair_layer], ws[:, c.pair_layer :]], 1)
        return Latents(w=mixed, origin=which)

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().generator_losses(batch), self.config
        if c.colour_map_weight:
            distance = self.colour_map.distance(batch.drawn.images, batch.require_source().images)
            losses["colour_map"] = c.colour_map_weight * distance
        if self.draws_pairs(batch.step, batch.progress):
            losses = {name: c.pair_others * loss for name, loss in losses.items()}
            origin = required(batch.latents.origin, "steps of pairs draw latents of training pictures")
            images = reduced(batch.drawn.images, c.view_size)
            source = batch.require_source().images
            targets = self._real[origin].to(images.device)
            targets = self.colour_map.recoloured(targets, self._counterparts[origin].to(source), source)
            distance = pair_distance(self.require_features(), images, targets, self.weights)
            losses["pairs"] = c.pair_weight * distance
            difference = F.adaptive_avg_pool2d(images - targets, COARSE).abs()
            weighted = difference * self.weights(COARSE).to(images.device)
            losses["coarse"] = c.pair_weight * c.coarse_weight * weighted.mean()
        return losses


class PairsMethod(D3TMethod):
    """Pairs of training pictures and their counterparts in the base (after arXiv 2112.11641)."""

    name, adapter = "pairs", "lora"
    Config, Objective = PairsConfig, PairsObjective
    presets = ("pairs",)
    settings = {"max_train_steps": 200}

    def complete(self, config: D3TConfig) -> None:
        self.options = complete(self.options, config, DEFAULTS | {"projection_steps": 50})

    def judges(self, run: Run) -> dict:
        images, generator = required(run.images, "pairs learn from images; give --data"), run.pipe.generator
        if run.config.pair_weight and run.config.pair_layer >= generator.num_ws:
            raise ValueError(
                f"pair_layer={run.config.pair_layer}: {run.base} has {generator.num_ws} layers; give less, e.g. "
                f"{generator.num_ws // 2}"
            )
        generator.to(run.device)
        judges = super().judges(run)
        with torch.no_grad(), run.pipe.bank.using({}):
            mean = latent_statistics(generator)[0][None]
            latents = torch.cat([as_layers(codes, generator) for codes in (judges["codes"], mean)])
            drawn = torch.cat([generator(w, latent_space="w+").float() for w in latents.split(1)]).clamp(-1, 1)
        quality = counterpart_quality(judges["features"], images, drawn[:-1], drawn[-1:])
        if run.dry:  # nothing was projected
            quality = torch.ones(len(images), dtype=torch.float32, device="cpu")
        else:
            run.print("counterparts: quality " + " ".join(f"{value:.2f}" for value in quality.tolist()))
        return judges | {
            "counterparts": drawn[:-1],
            "quality": quality,
            "steps": run.training.max_train_steps,
        }
