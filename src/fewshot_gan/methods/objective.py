"""What few-shot objectives share: a judge, the look of the images at hand, the content of the source.

`Objective` is plain adversarial fine-tuning; each method adds its terms in a file of its own.

Shape legend: B images, K training images, R resolution.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from ..models.labels import refuse_classes
from ..models.plain import PlainDiscriminator
from ..models.projected import ProjectedDiscriminator
from ..utils.ranges import COUNT, NOT_NEGATIVE, SHARE, check_numbers
from .adv_aug import AdvAugConfig, attack, tapped, undisturbed
from .losses import PathLength, hinge_d_loss, hinge_g_loss, logistic_d_loss, logistic_g_loss, r1_penalty
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


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms that every method may use; 0 switches one off.

    Attributes:
        discriminator: "source" (the base's own) or "projected" (heads on frozen features).
        adversarial_weight: of the adversarial loss (logistic for "source", hinge for "projected").
        freeze_d: this many of the discriminator's lower layers keep their weights (FreezeD, arXiv 2002.10964): blocks
            of "source" from the image on, convolutions of each head of "projected".
        style_mixing: probability that free latents are mixed of two.
        r1_weight, r1_every: R1 on the source discriminator, lazily.
        path_length_weight, path_length_every: path-length regularisation, lazily.
        statistics_weight, wasserstein_weight, colour_weight: distances of feature moments, sliced feature
            distributions, and colours between generated and real images.
        deepest_level: the deepest block of the feature network of which moments and distributions are compared: 10 sees
            parts of faces, 14 whole ones.
        content_weight: distance of self-similarities between adapted and source image of one latent.
        structure_weight: distance of their lines and light; for looks that draw the same scene, 0 for others.
        adv_steps, adv_gamma, adv_direction, adv_weight: AdvAug of the adversarial loss, see `AdvAugConfig`: what the
            discriminator's last layers see is moved, and the generator's styles or first map.
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
    adv_steps: int = 0
    adv_gamma: float = 0.01
    adv_direction: str = "paper"
    adv_weight: float = 1.0

    RANGES = {  # no field
        **dict.fromkeys(("r1_every", "path_length_every"), COUNT),
        **dict.fromkeys(("freeze_d", "deepest_level", "adv_steps", "adv_gamma"), NOT_NEGATIVE),
        "style_mixing": SHARE,
    }

    def __post_init__(self):
        check_numbers(self, self.RANGES)
        if self.adv_aug.acts and not self.adversarial_weight:
            raise ValueError(f"adv_steps={self.adv_steps} attacks the adversarial loss, but adversarial_weight is 0")

    @property
    def adv_aug(self) -> AdvAugConfig:
        return AdvAugConfig.of(self)

    @classmethod
    def paper(cls) -> "ObjectiveConfig":
        """The method as published, on the base's own discriminator."""
        return cls()

    @classmethod
    def few_images(cls) -> "ObjectiveConfig":
        """The method with a discriminator that sees through pretrained eyes: for few steps, and bases without one."""
        return cls(discriminator="projected", style_mixing=0.0, r1_weight=0.0, path_length_weight=0.0)

    @property
    def needs_latents(self) -> bool:
        """A term uses latents that draw the training images."""
        return False


@dataclass
class Views:
    """One batch as the objective sees it: `colour` `[B, 3, H, W]` fully augmented, `plain` with the geometry alone."""

    colour: torch.Tensor
    plain: torch.Tensor

    def detach(self) -> "Views":
        return Views(self.colour.detach(), self.plain.detach())

    def to(self, device) -> "Views":
        return Views(self.colour.to(device), self.plain.to(device))


@dataclass
class Batch:
    """One step's images. `source` is None, and its view and maps are empty, unless the objective `needs_source`.

    Attributes:
        step, progress: of the run, the latter as a share from 0 to 1.
        random: CPU generator of whatever a loss draws.
        latents: of the generated images.
        drawn, source: adapted and unadapted images of the same latents, before augmentation.
        fake, real: augmented views; `real` has B of the K training images.
        fake_features, real_features: level of the feature network → map of `colour`.
        source_view: `[B, 3, R, R]`, the source with the geometry of `fake.plain`.
        source_features: its maps at `statistics.CONTENT_LEVELS`.
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

    def detach(self) -> "Batch":
        """For the discriminator: nothing reaches the generator."""
        seen = {k: v.detach() for k, v in self.fake_features.items()}
        return replace(self, fake=self.fake.detach(), fake_features=seen, source=None, source_view=None)


class Objective(nn.Module):
    """Losses of one step. Its parameters are the discriminator side; the adapter belongs to the trainer.

    Args:
        config: weights.
        real: the K training images `[K, 3, R, R]` in [−1, 1].
        discriminator: the base's, for `config.discriminator == "source"`; trained in place, so pass a copy.
        projected: the base's heads on frozen features, for "projected"; None starts from random ones. Pass a copy.
        features: frozen feature network; needed for "projected" and every term that compares features.
        seed: of whatever is drawn here.

    Raises:
        ValueError: the chosen discriminator or the features are missing, `freeze_d` exceeds its layers, or it is a
            StyleGAN2's with classes.
    """

    # level of the feature network: stride-2 convolutions of a head
    HEADS = {0: 3, 2: 2, 4: 1, 10: 1}
    uses_images = True  # a step compares generated with real images

    def __init__(self, config: ObjectiveConfig, real, discriminator=None, projected=None, features=None, seed: int = 0):
        super().__init__()
        self.config = c = config
        self._features = [features]  # in a list: frozen, so neither saved nor trained with this module
        looks = c.statistics_weight, c.wasserstein_weight, c.content_weight
        self.uses_features = c.discriminator == "projected" or max(looks) > 0
        if self.uses_features:
            self.require_features()
        self.path_length = PathLength()
        if c.discriminator == "source":
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
        """What a resumed run must share with its beginning, as JSON has it: weights, and what else the losses see."""
        return asdict(self.config)

    def require_features(self):
        """The feature network.

        Raises:
            ValueError: there is none.
        """
        if self._features[0] is None:
            raise ValueError("this objective compares features: pass features=load_features()")
        return self._features[0]

    @property
    def compares_views(self) -> bool:
        """A term compares the augmented image with the source under the same augmentation."""
        return self.config.content_weight > 0 or self.config.structure_weight > 0

    @property
    def needs_source(self) -> bool:
        """A term looks at the unadapted images or feature maps of the same latents."""
        return self.compares_views

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(sorted({*self.HEADS, *CONTENT_LEVELS, *self.moment_levels}))

    @property
    def moment_levels(self) -> tuple[int, ...]:
        return tuple(level for level in MOMENT_LEVELS if level <= self.config.deepest_level)

    def observe(self, images: torch.Tensor, levels) -> dict[int, torch.Tensor]:
        """Level → features of `images` `[B, 3, H, W]`; gradients reach the images."""
        if not self.uses_features:
            return {}
        images = images.contiguous(memory_format=torch.channels_last)
        return dict(zip(levels, self._features[0](images, levels), strict=True))

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Latents of this step."""
        return pair.draw(batch, random, self.config.style_mixing)

    def looks(self, bank, name: str) -> list:
        """Contexts in which sample pictures are drawn, a row each.

        Args:
            bank: of the generator.
            name: of the adapter in it.
        """
        return [bank.using({name: 1.0})]

    def prepare(self, adapter, step: int) -> None:
        """Choose what of the adapter learns in this step; all of it here."""

    def logits(self, views: Views, features: dict, step: int) -> list[torch.Tensor]:
        """Maps of logits for a batch: one of a source discriminator, one per level of a projected one."""
        if self.config.discriminator == "projected":
            return self.discriminator(features)
        return [self.discriminator(views.colour)]

    def last_layers(self, step: int) -> list[nn.Module]:
        """What turns features into the logits of this step."""
        return self.discriminator.last_layers

    def _judged(self, views: Views, features: dict, step: int, direction: int) -> tuple[list, list]:
        """Logits, and those of features that AdvAug moved along `direction` (1: towards higher logits), if it acts."""
        c = self.config.adv_aug
        if not c.acts:
            return self.logits(views, features, step), []
        with tapped(self.last_layers(step)) as seen:
            clean = self.logits(views, features, step)
        with undisturbed(self):
            shifts = [attack(x, lambda y, f=f: direction * f(y).sum(), c.steps, c.gamma) for f, x in seen]
            return clean, [f(x + shift) for (f, x), shift in zip(seen, shifts, strict=True)]

    def discriminator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted losses of the discriminator side, for a batch that was detached."""
        c = self.config
        loss = hinge_d_loss if c.discriminator == "projected" else logistic_d_loss
        real, moved_real = self._judged(batch.real, batch.real_features, batch.step, c.adv_aug.helping)
        fake, moved_fake = self._judged(batch.fake, batch.fake_features, batch.step, 1)
        losses = {"d": sum(map(loss, real, fake)) / len(real)}
        if moved_real:
            losses["d"] = c.adv_aug.mean(losses["d"], sum(map(loss, moved_real, moved_fake)) / len(real))
        if c.discriminator == "source" and c.r1_weight and batch.step % c.r1_every == 0:
            losses["r1"] = c.r1_every * r1_penalty(self.discriminator, batch.real.colour, c.r1_weight)
        return losses

    def adversarial_loss(self, views: Views, features: dict, step: int) -> torch.Tensor:
        """The generator's, unweighted."""
        loss = hinge_g_loss if self.config.discriminator == "projected" else logistic_g_loss
        maps = self.logits(views, features, step)
        return sum(map(loss, maps)) / len(maps)

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted losses of the generator side; gradients flow through `drawn`, `fake` and `fake_features`."""
        c, losses, real, fake = self.config, {}, batch.real, batch.fake
        if c.adversarial_weight:
            losses["g"] = c.adversarial_weight * self.adversarial_loss(fake, batch.fake_features, batch.step)
        levels = [k for k in self.moment_levels if k in batch.fake_features]
        pairs = [(batch.fake_features[k], batch.real_features[k]) for k in levels]
        if c.statistics_weight:
            losses["statistics"] = c.statistics_weight * sum(moment_distance(a, b) for a, b in pairs)
        if c.wasserstein_weight:
            distances = [sliced_wasserstein(a, b, batch.random) for a, b in [*pairs, (fake.plain, real.plain)]]
            losses["wasserstein"] = c.wasserstein_weight * sum(distances)
        if c.colour_weight:
            losses["colour"] = c.colour_weight * colour_distance(fake.plain, real.plain)
        if c.content_weight:
            losses["content"] = c.content_weight * content_loss(batch.fake_features, batch.source_features)
        if c.structure_weight:
            losses["structure"] = c.structure_weight * structure_distance(fake.plain, batch.source_view)
        return losses

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """Weighted losses that draw their own latents; each dict yielded may be differentiated at once."""
        c = self.config
        if c.path_length_weight and step % c.path_length_every == 0:
            latents = Latents(
                torch.randn(
                    max(1, batch // 2), pair.generator.z_dim, generator=random, dtype=torch.float32, device="cpu"
                )
            )
            drawn = pair.adapted(latents, ws_gradient=True, precise=True)
            penalty = self.path_length(drawn.images, drawn.ws, random)
            yield {"path_length": c.path_length_every * c.path_length_weight * penalty}
