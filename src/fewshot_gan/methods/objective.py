"""The losses that few-shot methods share: adversarial loss, statistics of the training images, content of the source.

`Objective` is plain adversarial fine-tuning. Each method subclasses it in a file of its own and adds its terms.

Shape legend: B images, K training images, R resolution.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import nn

from ..data.images import reduced
from ..features import FeatureNetwork
from ..models.labels import refuse_classes
from ..models.plain import PlainDiscriminator
from ..models.projected import ProjectedDiscriminator
from ..utils.frozen import Frozen
from ..utils.ranges import COUNT, NOT_NEGATIVE, SHARE, check_numbers
from .adv_aug import AdvAugConfig, judged
from .checks import check_terms, required
from .diversity import DIVERSITIES, LARGEST_MAP, contrastive_loss
from .losses import PathLength, hinge_d_loss, hinge_g_loss, logistic_d_loss, logistic_g_loss, total
from .pair import Drawn, Latents, Pair
from .statistics import (
    CONTENT_LEVELS,
    MOMENT_LEVELS,
    colour_distance,
    content_loss,
    moment_distance,
    sliced_wasserstein,
    structure_distance,
)
from .views import VIEW_RANGES, Views, check_views, num_crops, reduces


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms that every method has; 0 switches a term off.

    Attributes:
        discriminator: "source" (the base's own) or "projected" (heads on frozen features).
        adversarial_weight: weight of the adversarial loss, logistic for "source" and hinge for "projected".
        freeze_d: number of lower layers of the discriminator that keep their weights (FreezeD, arXiv 2002.10964):
            blocks of "source", counted from the image, or convolutions of each head of "projected".
        style_mixing: probability of style mixing of randomly sampled latents.
        r1_weight, r1_every: weight of R1 on the source discriminator, and the number of steps between two evaluations.
        path_length_weight, path_length_every: the same for path-length regularisation.
        statistics_weight, wasserstein_weight, colour_weight: weights of the distances between generated and real
            images: feature moments, sliced feature distributions, colours.
        deepest_level: deepest block of the feature network whose moments and distributions are compared; the
            receptive field of 10 covers parts of a face, that of 14 a whole face.
        content_weight: weight of the distance of self-similarities between the adapted and source image of a latent.
        structure_weight: weight of the distance of edges and brightness between these images; 0 for looks that change
            the scene.
        structure_size: side in pixels to which whole pictures are reduced for that distance, without their crops; for
            looks that are a pattern, whose dots or lines are no edges of the source. 0: as they are seen.
        view_size: side in pixels at which the losses see pictures: larger ones are reduced to it; 0 reduces none.
        crops: number of crops of that size, at native scale, that the losses also see of each picture. Generated,
            training and source pictures are cropped at the same place. 0 = none.
        crop_weight: weight of the losses on crops, relative to those on whole pictures.
        diversity: "own": the relation loss of the method, if it has one; "dcl": `diversity.contrastive_loss` in its
            place, on feature maps of the generator up to 64 px and of the discriminator (DCL, arXiv 2203.03190).
        dcl_weight: weight of that loss.
        adv_steps, adv_gamma, adv_direction, adv_weight: AdvAug of the adversarial loss, see `AdvAugConfig`. It perturbs
            the input of the discriminator's last layers, and the generator's styles or first feature map.
    """

    discriminator: str = "source"
    adversarial_weight: float = 1.0
    freeze_d: int = 0
    style_mixing: float = 0.9
    r1_weight: float = 10.0
    r1_every: int = 16
    path_length_weight: float = 0.0
    path_length_every: int = 4
    statistics_weight: float = 0.0
    wasserstein_weight: float = 0.0
    colour_weight: float = 0.0
    deepest_level: int = 10
    content_weight: float = 0.0
    structure_weight: float = 0.0
    structure_size: int = 0
    view_size: int = 0
    crops: int = 0
    crop_weight: float = 1.0
    diversity: str = field(default="own", metadata={"choices": list(DIVERSITIES)})
    dcl_weight: float = 0.5
    adv_steps: int = 0
    adv_gamma: float = 0.01
    adv_direction: str = "paper"
    adv_weight: float = 1.0

    RANGES = {  # without annotation, so no field of the dataclass
        **dict.fromkeys(("r1_every", "path_length_every"), COUNT),
        **dict.fromkeys(("freeze_d", "deepest_level", "structure_size", "adv_steps", "adv_gamma"), NOT_NEGATIVE),
        **VIEW_RANGES,
        "dcl_weight": NOT_NEGATIVE,
        "style_mixing": SHARE,
    }
    NO_TERMS = ("adv_weight", "crop_weight", "dcl_weight", "r1_weight")  # weights that alone teach no generator

    def __post_init__(self):
        check_numbers(self, self.RANGES)
        if not self.contrasts:
            check_terms(self, self.NO_TERMS, "adversarial_weight=1")
        if self.adv_aug.acts and not self.adversarial_weight:
            raise ValueError(f"adv_steps={self.adv_steps} attacks the adversarial loss, but adversarial_weight is 0")
        check_views(self)
        if self.diversity not in DIVERSITIES:
            raise ValueError(f"diversity={self.diversity!r}: choose one of {', '.join(DIVERSITIES)}")
        if self.diversity == "dcl" and not self.dcl_weight:
            raise ValueError("diversity='dcl' with dcl_weight=0 does nothing; give dcl_weight, e.g. 0.5, or 'own'")

    @property
    def contrasts(self) -> bool:
        """Whether pictures are contrasted with those of the source."""
        return self.diversity == "dcl"

    @property
    def adv_aug(self) -> AdvAugConfig:
        """The settings of AdvAug."""
        return AdvAugConfig.of(self)

    @classmethod
    def paper(cls) -> Self:
        """Return the published terms and weights, on the base's own discriminator."""
        return cls()

    @classmethod
    def few_images(cls) -> Self:
        """Return weights for a discriminator on pretrained features: for few steps, and bases without discriminator."""
        return cls(
            discriminator="projected",
            style_mixing=0.0,
            r1_weight=0.0,
            path_length_weight=0.0,
            view_size=256,
            crops=1,
        )

    @property
    def needs_latents(self) -> bool:
        """Whether a term uses training images projected into the latent space."""
        return False


class Discriminator(Protocol):
    """The part of a discriminator that objectives use; `StyleGAN2Discriminator` and `ProjectedDiscriminator` have it.

    Calling it returns logits; with `return_features=True` a pair of logits and feature maps by name. A discriminator of
    images takes `[B, 3, R, R]`, a projected one takes features by level and returns a list of logit maps.
    """

    def __call__(self, *args: Any, **options: Any) -> Any: ...

    @property
    def last_layers(self) -> list[nn.Module]: ...

    def freeze_lower(self, num: int) -> None: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


@dataclass
class Batch:
    """The images of one training step, for all losses.

    `fake`, `real`, `source_view` and the features show whole pictures, reduced to `view_size`; those of `crops` show
    native crops of the same pictures.

    Attributes:
        step: number of the step, from 0.
        progress: share of the run that is done, from 0 to 1.
        random: CPU generator for all random numbers of the losses.
        latents: latents of the generated images.
        drawn: images of the adapted generator, at full size, before augmentation.
        fake, real: augmented views of `drawn` and of B of the K training images.
        source: images of the generator without adapter for the same latents; None unless the objective sets
            `needs_source`.
        source_view: `[B, 3, R, R]`, `source` with the geometric augmentation of `fake.plain`; None unless the
            objective sets `compares_views`.
        fake_features, real_features: level of the feature network → feature map of `fake.colour`, `real.colour`.
        source_features: level → feature map of `source_view`, at `Objective.source_levels`.
        real_logits: logit maps of the training images, which the discriminator's step adds.
        is_crop: whether it shows native crops.
        crops: the batch of native crops; None if the objective has no `crops`, or pictures no larger than `view_size`.
    """

    step: int
    progress: float
    random: torch.Generator
    latents: Latents
    drawn: Drawn
    fake: Views
    real: Views
    source: Drawn | None = None
    source_view: torch.Tensor | None = None
    fake_features: dict[int, torch.Tensor] = field(default_factory=dict)
    real_features: dict[int, torch.Tensor] = field(default_factory=dict)
    source_features: dict[int, torch.Tensor] = field(default_factory=dict)
    real_logits: list[torch.Tensor] = field(default_factory=list)
    is_crop: bool = False
    crops: "Batch | None" = None

    def detach(self) -> "Batch":
        """Return the batch for the discriminator's step, where no gradients reach the generator."""
        fake_features = {level: features.detach() for level, features in self.fake_features.items()}
        crops = None if self.crops is None else self.crops.detach()
        fake = self.fake.detach()
        return replace(self, fake=fake, fake_features=fake_features, source=None, source_view=None, crops=crops)

    def require_source(self) -> Drawn:
        """Return `source`.

        Raises:
            ValueError: it was not drawn.
        """
        return required(self.source, "this batch has no source images; the objective must set needs_source")


class StepHooks(nn.Module):
    """What a trainer asks of every objective besides its losses; the defaults suit an adapter that always acts."""

    def looks(self, bank, name: str) -> list:
        """Return one context per row of sample images; the row is drawn inside it.

        Args:
            bank: adapter bank of the generator.
            name: name of the trained adapter in the bank.
        """
        return [bank.using({name: 1.0})]

    def prepare(self, adapter, step: int) -> None:
        """Switch `requires_grad` of the adapter's parameters before a step; by default all of them are trained."""


class Objective(StepHooks):
    """The losses of one training step; subclasses add terms.

    Terms on what is seen of the pictures belong into `view_losses` and `discriminator_view_losses`, which are called
    for the whole pictures and for their crops; other terms into `generator_losses` and `discriminator_losses`.

    The trainable parameters of this module are the discriminator's. The adapter belongs to the trainer, which calls, in
    each step: `prepare`, `draw`, `discriminator_losses`, `generator_losses`, `regularisers`.

    Args:
        config: weights of the terms.
        real: the K training images `[K, 3, R, R]` in [−1, 1].
        discriminator: the base's discriminator, for `config.discriminator == "source"`; pass a copy, since it is
            trained in place.
        projected: the base's projected discriminator, for "projected"; pass a copy. None starts from random heads.
        features: frozen feature network; needed for "projected" and every term that compares features.
        seed: seed of newly initialised parameters.

    Raises:
        ValueError: the chosen discriminator or the feature network is missing, the discriminator is unknown, has
            classes (a StyleGAN2's), or has fewer layers than `freeze_d`; or a "source" discriminator would see reduced
            pictures.
    """

    HEADS = {0: 3, 2: 2, 4: 1, 10: 1}  # level of the feature network → stride-2 convolutions of its head
    uses_images = True  # whether a step compares generated with training images
    config: Any  # the weights; subclasses declare their own dataclass
    discriminator: Discriminator

    def __init__(
        self,
        config: ObjectiveConfig,
        real: torch.Tensor,
        discriminator: Discriminator | None = None,
        projected: ProjectedDiscriminator | None = None,
        features: FeatureNetwork | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config = c = config
        self._features = Frozen(features)
        feature_weights = c.statistics_weight, c.wasserstein_weight, c.content_weight
        self.uses_features = c.discriminator == "projected" or max(feature_weights) > 0
        if self.uses_features:
            self.require_features()
        self.path_length = PathLength()
        resolution, real = real.shape[-1], reduced(real, c.view_size)
        if c.discriminator == "source":
            if reduces(c, resolution):
                raise ValueError(
                    f"discriminator='source' judges whole pictures of {resolution} px, but view_size={c.view_size} "
                    "reduces them; give view_size=0 and crops=0, or discriminator='projected'"
                )
            if discriminator is None:
                raise ValueError(
                    "this base has no discriminator: use discriminator='projected', or a base folder that has one"
                )
            if not isinstance(discriminator, PlainDiscriminator):
                refuse_classes(discriminator, "few-shot training")
            self.discriminator = discriminator
        elif c.discriminator == "projected":
            self.discriminator = projected or ProjectedDiscriminator.for_images(real, features, self.HEADS, seed)
        else:
            raise ValueError(f"unknown discriminator {c.discriminator!r}; known: source, projected")
        if c.freeze_d:
            self.discriminator.freeze_lower(c.freeze_d)

    def settings(self) -> dict:
        """Return JSON values that a resumed run must have in common with its start: weights and other inputs."""
        unused = () if self.config.contrasts else ("diversity", "dcl_weight")  # runs of older versions have none
        unused += () if self.config.structure_size else ("structure_size",)
        return {name: value for name, value in asdict(self.config).items() if name not in unused}

    @property
    def features(self) -> FeatureNetwork | None:
        """The feature network, if the losses use it."""
        return self._features.value if self.uses_features else None

    def require_features(self) -> FeatureNetwork:
        """Return the feature network.

        Raises:
            ValueError: there is none.
        """
        return required(self._features.value, "this objective compares features: pass features=load_features()")

    def cropped(self, resolution: int) -> int:
        """Return the number of native crops that the losses see of each picture of `resolution` px."""
        return num_crops(self.config, resolution)

    @property
    def largest_map(self) -> int:
        """Largest resolution of the generator's feature maps that terms compare; 0: none are."""
        return LARGEST_MAP if self.config.contrasts else 0

    @property
    def compares_views(self) -> bool:
        """Whether a term compares the augmented image with the source image under the same augmentation."""
        return self.config.content_weight > 0 or self.config.structure_weight > 0 or self.config.contrasts

    @property
    def needs_source(self) -> bool:
        """Whether a term uses images or feature maps of the generator without adapter, for the same latents."""
        return self.compares_views

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels of the feature network that losses use, in order."""
        return tuple(sorted({*self.HEADS, *CONTENT_LEVELS, *self.moment_levels}))

    @property
    def moment_levels(self) -> tuple[int, ...]:
        """The levels whose moments and distributions are compared."""
        return tuple(level for level in MOMENT_LEVELS if level <= self.config.deepest_level)

    @property
    def source_levels(self) -> tuple[int, ...]:
        """The levels of the source's feature maps that terms compare."""
        own = {*CONTENT_LEVELS} if self.config.content_weight else set()
        contrasted = {*self.HEADS} if self.config.contrasts and self.config.discriminator == "projected" else set()
        return tuple(sorted(own | contrasted))

    def observe(self, images: torch.Tensor, levels) -> dict[int, torch.Tensor]:
        """Return level → feature map of `images` `[B, 3, H, W]`, differentiable; empty if no term uses features."""
        if not self.uses_features:
            return {}
        images = images.contiguous(memory_format=torch.channels_last)
        return dict(zip(levels, self.require_features()(images, levels), strict=True))

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Sample the `batch` latents of this step."""
        return pair.draw(batch, random, self.config.style_mixing)

    def logits(self, views: Views, features: dict, step: int) -> list[torch.Tensor]:
        """Return the logit maps of a batch: one for a source discriminator, one per level for a projected one."""
        if self.config.discriminator == "projected":
            return self.discriminator(features)
        return [self.discriminator(views.colour)]

    def run_discriminator(self, discriminator: Discriminator, views: Views, features: dict):
        """Return feature maps by name, and the list of logit maps."""
        if self.config.discriminator == "projected":
            logits, maps = discriminator(features, return_features=True)
            return maps, logits
        logits, maps = discriminator(views.colour, return_features=True)
        return maps, [logits]

    def last_layers(self, step: int) -> list[nn.Module]:
        """Return the layers that compute the logits of this step from features."""
        return self.discriminator.last_layers

    def _judged(self, views: Views, features: dict, step: int, direction: int) -> tuple[list, list]:
        """Return the logit maps, and those of perturbed features, which are empty without AdvAug.

        Args:
            views, features, step: see `logits`.
            direction: 1 perturbs the inputs of the last layers towards higher logits, −1 towards lower ones.
        """
        logits = partial(self.logits, views, features, step)
        return judged(logits, self.last_layers(step), self, self.config.adv_aug, direction)

    def discriminator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the weighted losses of the discriminator by name, for a detached batch."""
        return self._of_all_views(self.discriminator_view_losses, batch)

    def _of_all_views(self, losses_of: Callable[[Batch], dict[str, torch.Tensor]], batch: Batch) -> dict:
        """Return the losses of whole pictures, and those of crops, whose names end in "_crops"."""
        losses = losses_of(batch)
        if batch.crops is not None:
            for name, loss in losses_of(batch.crops).items():
                losses[f"{name}_crops"] = self.config.crop_weight * loss
        return losses

    def discriminator_view_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the weighted losses of the discriminator on whole pictures, or on the crops that `batch` shows."""
        c = self.config
        loss = hinge_d_loss if c.discriminator == "projected" else logistic_d_loss
        real, moved_real = self._judged(batch.real, batch.real_features, batch.step, c.adv_aug.helping)
        batch.real_logits += [logits.detach() for logits in real]
        fake, moved_fake = self._judged(batch.fake, batch.fake_features, batch.step, 1)
        losses = {"d": total(map(loss, real, fake)) / len(real)}
        if moved_real:
            losses["d"] = c.adv_aug.mean(losses["d"], total(map(loss, moved_real, moved_fake)) / len(real))
        if c.discriminator == "source" and c.r1_weight and batch.step % c.r1_every == 0:
            losses["r1"] = c.r1_every * batch.real.r1_penalty(self.discriminator, c.r1_weight)
        return losses

    def adversarial_loss(self, views: Views, features: dict, step: int) -> torch.Tensor:
        """Return the generator's adversarial loss, without its weight."""
        loss = hinge_g_loss if self.config.discriminator == "projected" else logistic_g_loss
        maps = self.logits(views, features, step)
        return total(map(loss, maps)) / len(maps)

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the weighted losses of the generator by name.

        Gradients reach the adapter through `batch.drawn`, `batch.fake` and `batch.fake_features`.
        """
        losses = self._of_all_views(self.view_losses, batch)
        if self.config.contrasts:
            pair = batch.require_source(), batch.drawn
            source, target = (list(drawn.small(LARGEST_MAP).features.values()) for drawn in pair)
            losses["dcl"] = self.config.dcl_weight * contrastive_loss(source, target)
        return losses

    def view_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the weighted losses of the generator on whole pictures, or on the crops that `batch` shows."""
        c, losses, real, fake = self.config, {}, batch.real, batch.fake
        if c.adversarial_weight:
            losses["g"] = c.adversarial_weight * self.adversarial_loss(fake, batch.fake_features, batch.step)
        levels = [k for k in self.moment_levels if k in batch.fake_features]
        pairs = [(batch.fake_features[k], batch.real_features[k]) for k in levels]
        if c.statistics_weight:
            losses["statistics"] = c.statistics_weight * total(moment_distance(a, b) for a, b in pairs)
        if c.wasserstein_weight:
            distances = [sliced_wasserstein(a, b, batch.random) for a, b in [*pairs, (fake.plain, real.plain)]]
            losses["wasserstein"] = c.wasserstein_weight * total(distances)
        if c.colour_weight:
            losses["colour"] = c.colour_weight * colour_distance(fake.plain, real.plain)
        if c.content_weight:
            losses["content"] = c.content_weight * content_loss(batch.fake_features, batch.source_features)
        if c.structure_weight and not (c.structure_size and batch.is_crop):
            source = required(batch.source_view, "this batch has no source images; the objective must set needs_source")
            pair = (reduced(images, c.structure_size) for images in (fake.plain, source))
            losses["structure"] = c.structure_weight * structure_distance(*pair)
        if c.contrasts:
            view = required(batch.source_view, "this batch has no source images; the objective must set needs_source")
            sides = (Views(view, view), batch.source_features), (fake, batch.fake_features)
            of_source, of_fake = (self.run_discriminator(self.discriminator, *side)[0].values() for side in sides)
            losses["dcl_d"] = c.dcl_weight * contrastive_loss(list(of_source), list(of_fake))
        return losses

    def images_of_regularisers(self, batch: int) -> int:
        """Return the number of images, 0 or more, whose graphs `regularisers` keeps at once."""
        return max(1, batch // 2) if self.config.path_length_weight else 0

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """Yield dicts of weighted losses that draw images of their own.

        The trainer differentiates each dict before it asks for the next one, so that its graph can be freed.

        Args:
            pair: generator with and without adapter.
            batch: batch size of the run.
            step: number of the step.
            random: CPU generator for all random numbers.
        """
        c = self.config
        if c.path_length_weight and step % c.path_length_every == 0:
            latents = pair.with_noise(pair.draw(max(1, batch // 2), random), random)
            drawn = pair.adapted(latents, ws_gradient=True, precise=True)
            penalty = self.path_length(drawn.images, drawn.ws, random)
            yield {"path_length": c.path_length_every * c.path_length_weight * penalty}
