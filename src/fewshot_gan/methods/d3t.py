"""D3T-GAN: data-dependent domain transfer (arXiv 2205.06032).

The abstract of the paper says what is transferred. Training images are projected into the latent space of the source
generator and reconstructed by it; the adapted generator learns from these transformed samples; and the discriminator is
distilled at several levels on real and fake images. The formulas here are ours.

Shape legend: B images, K training images, L `num_ws`, D `w_dim`.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from ..data.images import reduced
from ..inversion import PerceptualDistance, latent_statistics
from ..models.bounds import MAX_RESOLUTION
from ..models.projected import ProjectedDiscriminator
from ..utils.frozen import Frozen
from ..utils.hashing import hash_tensor
from ..utils.ranges import NOT_NEGATIVE, SHARE
from .cdc import relation_loss
from .checks import required
from .losses import total
from .method import Method, Run
from .objective import Batch, Discriminator, Objective, ObjectiveConfig
from .pair import Latents, Pair
from .parts import PartStatistics
from .projections import ProjectionOptions, complete, project, recorded
from .views import Views


def feature_transfer_loss(source: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """Compare normalised feature maps: Σ_l mean((n(t_l) − n(s_l))²) with n = instance normalisation.

    The positions of structures are kept, while mean and strength of each channel are free.

    Args:
        source, target: one feature map `[B, C_l, H_l, W_l]` per level; row i of both comes from the same latent.
    """
    pairs = zip(source, target, strict=True)
    return total((F.instance_norm(t.float()) - F.instance_norm(s.detach().float())).square().mean() for s, t in pairs)


def distillation_loss(
    source_maps: Mapping[str, torch.Tensor],
    source_logits: list[torch.Tensor],
    maps: Mapping[str, torch.Tensor],
    logits: list[torch.Tensor],
    adapters: nn.ModuleDict,
) -> torch.Tensor:
    """Distil the source discriminator at several levels.

    Σ_l mean((φ_l(t_l) − s_l)²) / (mean(s_l²) + 1e-8) + 0.1·mean((logits_t − logits_s)²).

    Args:
        source_maps, maps: level → feature map `[B, C, H, W]` of the source and of the trained discriminator.
        source_logits, logits: logit maps of both.
        adapters: level → φ, a 1×1 convolution.
    """
    terms = []
    for name, source_map in source_maps.items():
        source_map = source_map.detach()
        difference = (adapters[name](maps[name]) - source_map).square().mean()
        terms.append(difference / (source_map.square().mean() + 1e-8))
    pairs = list(zip(source_logits, logits, strict=True))
    return total(terms) + 0.1 * total((t - s.detach()).square().mean() for s, t in pairs) / len(pairs)


def identity_convolution(channels: int) -> nn.Conv2d:
    """Return a 1×1 convolution that is the identity."""
    conv = nn.Conv2d(channels, channels, 1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(channels, dtype=torch.float32, device="cpu")[:, :, None, None])
    return conv


@dataclass(frozen=True)
class D3TConfig(ObjectiveConfig):
    """Weights of `ObjectiveConfig` and those of D3T-GAN; 0 switches a term off.

    Attributes:
        feature_weight: λ_kt, weight of `feature_transfer_loss` on the generator's feature maps.
        feature_resolution: largest resolution of these maps, 4 or more; 0 takes all below the size of the image.
        relation_weight: λ_rel, weight of `cdc.relation_loss` on the same maps.
        reconstruction_weight: weight of the perceptual distance of G_t(w*_i + noise) to its training image x_i; not in
            the abstract.
        distillation_weight, distillation_final: λ_kd at the start and at the end of the run; it falls along a cosine.
        transformed_every: every n-th step samples its latents around projected training images, the other steps at
            random; 0 means no step does, and no image is projected.
        code_sigma: standard deviation of the noise on a projected latent, in units of the standard deviation of w.
        mix_probability: probability of a convex combination of two projected latents instead of noise.
        part_weight: weight of `PartStatistics.distance` of eyes and mouth, on a base with `mean_landmarks`; not in the
            paper.
    """

    feature_weight: float = 1.0
    feature_resolution: int = 0
    relation_weight: float = 100.0
    reconstruction_weight: float = 0.0
    distillation_weight: float = 0.1
    distillation_final: float = 0.01
    transformed_every: int = 2
    code_sigma: float = 0.1
    mix_probability: float = 0.5
    part_weight: float = 0.0

    RANGES = ObjectiveConfig.RANGES | {
        **dict.fromkeys(
            ("feature_resolution", "distillation_final", "transformed_every", "code_sigma", "part_weight"), NOT_NEGATIVE
        ),
        "mix_probability": SHARE,
    }
    NO_TERMS = (*ObjectiveConfig.NO_TERMS, "distillation_weight")

    def __post_init__(self):
        super().__post_init__()
        if 0 != self.feature_resolution < 4:
            raise ValueError(
                f"feature_resolution={self.feature_resolution}: the smallest block is 4; give that or more, or 0 = all"
            )
        if self.reconstruction_weight and not self.transformed_every:
            raise ValueError(
                f"reconstruction_weight={self.reconstruction_weight} is of steps that start from projected images, but "
                "transformed_every=0 has none; give transformed_every 1 or more"
            )

    @classmethod
    def abstract(cls) -> Self:
        """Return the terms of the abstract and no others, with a discriminator on pretrained features."""
        return super().few_images()

    @classmethod
    def few_images(cls) -> Self:
        """Return weights that learn a look from ten images in few steps on a CPU (training/RESULTS.md).

        The relation loss keeps samples diverse, moments of deep features learn the look, content and structure keep
        hair and pose.
        """
        return replace(
            cls.abstract(),
            statistics_weight=1.0,
            wasserstein_weight=1.0,
            colour_weight=0.5,
            deepest_level=14,
            content_weight=20.0,
            structure_weight=0.4,
            feature_resolution=64,
            relation_weight=3000.0,
            transformed_every=3,
        )

    @classmethod
    def large_gap(cls) -> Self:
        """Return weights for looks far from the base, such as line art.

        Projected images, distillation and feature transfer are off, so that features are free to change.
        """
        return replace(
            cls.few_images(),
            adversarial_weight=0.5,
            colour_weight=2.0,
            transformed_every=0,
            distillation_weight=0.0,
            feature_weight=0.0,
        )

    @property
    def relates(self) -> bool:
        """Whether the relation loss acts."""
        return self.relation_weight > 0 and self.diversity == "own"

    @property
    def needs_latents(self) -> bool:
        """Whether a term uses training images projected into the latent space."""
        weights = self.feature_weight, self.relation_weight * self.relates, self.reconstruction_weight
        return self.transformed_every > 0 and max(weights) > 0


class D3TObjective(Objective):
    """Losses of transformed samples for the generator, and multi-level distillation for the discriminator.

    Args:
        config, real, seed: see `Objective`.
        codes: projected training images, w `[K, D]` or w+ `[K, L, D]` (`inversion.invert`); None if no term uses them.
        w_std: standard deviation of w `[D]` (`inversion.latent_statistics`); None if no term uses `codes`.
        projected: see `Objective`.
        landmarks: `mean_landmarks` of the base, or None.
        options: `discriminator` and `features`, see `Objective`. The chosen discriminator is also the frozen source D_s
            of the distillation.

    Raises:
        ValueError: there is no discriminator to distil from, or no `codes` for the terms that need them.
    """

    config: D3TConfig

    def __init__(
        self,
        config: D3TConfig,
        real: torch.Tensor,
        *,
        codes: torch.Tensor | None = None,
        w_std: torch.Tensor | None = None,
        projected: ProjectedDiscriminator | None = None,
        landmarks=None,
        seed: int = 0,
        **options,
    ):
        super().__init__(config, real, projected=projected, seed=seed, **options)
        c = config
        self._parts: PartStatistics | None = None
        if c.part_weight and landmarks is not None:
            self.require_features()
            self.uses_features = True
            self._parts = PartStatistics(lambda x: self.observe(x, self.moment_levels), real, landmarks)
        if c.needs_latents and (codes is None or w_std is None):
            raise ValueError("knowledge transfer starts from projected training images: pass codes and w_std")
        self._codes, self._w_std, self._real = codes, w_std, reduced(real, c.view_size)
        self._source: Frozen[Discriminator | None] = Frozen(None)
        if c.distillation_weight:
            if c.discriminator == "projected" and projected is None:
                raise ValueError(
                    "this base has no projected discriminator to distil from; use distillation_weight=0, a base that "
                    "has one such as 'ffhq-256', or train one with training/source_discriminator.py"
                )
            source = deepcopy(self.discriminator).eval().requires_grad_(False)
            self._source = Frozen(source)
            image, device = self._real[:1], next(self.discriminator.parameters()).device
            features = {level: x.to(device) for level, x in self.observe(image, self.levels).items()}
            maps, _ = self.run_discriminator(source, Views(image, image).to(device), features)
            self.adapters = nn.ModuleDict({name: identity_convolution(x.shape[1]) for name, x in maps.items()})

    def _apply(self, fn, recurse=True):
        """Move or cast the source discriminator together with this module."""
        if isinstance(source := self._source.value, nn.Module):
            source._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _required_codes(self) -> torch.Tensor:
        return required(self._codes, "this objective has no projected training images: pass codes")

    def settings(self) -> dict:
        settings = super().settings()
        if not self.config.part_weight:  # runs of older versions have none
            del settings["part_weight"]
        codes = {"codes": hash_tensor(self._required_codes())} if self.config.needs_latents else {}
        return settings | codes

    @property
    def needs_source(self) -> bool:
        return self.config.feature_weight > 0 or self.config.relates or super().needs_source

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Sample latents; every `transformed_every`-th step samples them around projected training images.

        These are ŵ = w*_i + σ·ε, or a convex combination of two w*.
        """
        c = self.config
        if not c.needs_latents or not c.transformed_every or step % c.transformed_every:
            return super().draw(pair, batch, step, random)
        codes, w_std = self._required_codes(), required(self._w_std, "pass w_std, the standard deviation of w")
        first, second = torch.randint(len(codes), (2, batch), generator=random, device="cpu")
        shape = (batch, *[1] * (codes.ndim - 1))
        share = torch.rand(shape, generator=random, dtype=torch.float32, device="cpu")
        noise = (
            torch.randn(batch, *shape[1:-1], codes.shape[-1], generator=random, dtype=torch.float32, device="cpu")
            * c.code_sigma
        )
        mixed = torch.rand(batch, generator=random, dtype=torch.float32, device="cpu") < c.mix_probability
        near, between = codes[first] + noise * w_std, codes[first].lerp(codes[second], share)
        w = torch.where(mixed.view(shape), between, near)
        return Latents(w=w, origin=first.masked_fill(mixed, -1))

    @property
    def largest_map(self) -> int:
        c = self.config
        own = (c.feature_resolution or MAX_RESOLUTION) if c.feature_weight or c.relates else 0
        return max(own, super().largest_map)

    def discriminator_view_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().discriminator_view_losses(batch), self.config
        if c.distillation_weight:
            falling = (1 + torch.cos(torch.tensor(torch.pi * batch.progress, dtype=torch.float32, device="cpu"))) / 2
            weight = float(c.distillation_final + (c.distillation_weight - c.distillation_final) * falling)
            sides = (batch.real, batch.real_features), (batch.fake, batch.fake_features)
            losses["distillation"] = weight * total(self._distil(*side) for side in sides)
        return losses

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().generator_losses(batch), self.config
        if c.feature_weight or c.relates:
            largest = c.feature_resolution or batch.drawn.images.shape[-1] // 2
            pair = batch.require_source(), batch.drawn
            source, target = (list(drawn.small(largest).features.values()) for drawn in pair)
            if c.feature_weight:
                losses["transfer"] = c.feature_weight * feature_transfer_loss(source, target)
            if c.relates:
                losses["relation"] = c.relation_weight * relation_loss(source, target)
        if self._parts is not None:
            losses["parts"] = c.part_weight * self._parts.distance(batch.drawn.images, batch.random)
        origin = batch.latents.origin
        if c.reconstruction_weight and origin is not None and (has_target := origin >= 0).any():
            targets = self._real[origin[has_target]].to(batch.drawn.images.device)
            images = reduced(batch.drawn.images[has_target], c.view_size)
            distance = PerceptualDistance(self.require_features(), targets)(images)
            losses["reconstruction"] = c.reconstruction_weight * distance.mean()
        return losses

    def _distil(self, views: Views, features: dict) -> torch.Tensor:
        """Return the distillation loss on real or on fake images."""
        maps, logits = self.run_discriminator(self.discriminator, views, features)
        source = required(self._source.value, "there is no source to distil from; distillation_weight was 0")
        with torch.no_grad():
            source_maps, source_logits = self.run_discriminator(source, views, features)
        return distillation_loss(source_maps, source_logits, maps, logits, self.adapters)


class D3TMethod(Method):
    """D3T-GAN (arXiv 2205.06032)."""

    name = "d3t"
    Config, Objective, Options, adapter = D3TConfig, D3TObjective, ProjectionOptions, "left"
    presets = ("few_images", "large_gap", "abstract", "paper")

    def complete(self, config: D3TConfig) -> None:
        self.options = complete(self.options, config)

    def record(self, run: Run) -> dict:
        return recorded(self.options) if run.config.needs_latents else {}

    def judges(self, run: Run) -> dict:
        judges = super().judges(run) | {"landmarks": run.pipe.config.mean_landmarks}
        if run.config.needs_latents:
            images = required(run.images, "D3T-GAN learns from images; give --data")
            path, seed = run.folder / "projections.safetensors", run.training.seed
            with run.main_process_first():
                judges["codes"] = project(path, run.pipe, images, self.options, seed, run.dry)
            judges["w_std"] = latent_statistics(run.pipe.generator)[1].cpu()
        return judges
