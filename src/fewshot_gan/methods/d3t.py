"""D3T-GAN: data-dependent domain transfer (arXiv 2205.06032).

Of this paper the abstract fixes what is transferred: training images are projected into the source generator and
reconstructed there, knowledge flows from these transformed samples to the generated ones, and the discriminator is
distilled at several levels on real and fake images. The formulas here are ours.

Shape legend: B images, K training images, L `ws`, D `w_dim`.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from ..inversion import PerceptualDistance, latent_statistics
from ..utils.hashing import hash_tensor
from ..utils.ranges import NOT_NEGATIVE, SHARE
from .cdc import relation_loss
from .method import Method, Run
from .objective import Batch, Objective, ObjectiveConfig, Views
from .pair import Latents, Pair
from .projections import ProjectionOptions, complete, project, recorded


def feature_transfer_loss(source: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """Σ_l mean((n(t_l) − n(s_l))²), n = instance normalisation: where things are is kept, how strong they are is free.

    Args:
        source, target: one map `[B, C_l, H_l, W_l]` per level, row i of both from the same latent.
    """
    pairs = zip(source, target, strict=True)
    return sum((F.instance_norm(t.float()) - F.instance_norm(s.detach().float())).square().mean() for s, t in pairs)


def distillation_loss(source_maps, source_logits, maps, logits, adapters) -> torch.Tensor:
    """Σ_l mean((φ_l(t_l) − s_l)²) / (mean(s_l²) + 1e-8) + 0.1·mean((logits_t − logits_s)²).

    Args:
        source_maps, maps: level → map `[B, C, H, W]` of the source's and of the trained discriminator.
        source_logits, logits: lists of maps of logits.
        adapters: level → φ, a 1×1 convolution.
    """
    loss = 0
    for name, wanted in source_maps.items():
        wanted = wanted.detach()
        loss = loss + (adapters[name](maps[name]) - wanted).square().mean() / (wanted.square().mean() + 1e-8)
    pairs = list(zip(source_logits, logits, strict=True))
    return loss + 0.1 * sum((t - s.detach()).square().mean() for s, t in pairs) / len(pairs)


def identity_convolution(channels: int) -> nn.Conv2d:
    """A 1×1 convolution that starts as the identity."""
    conv = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(channels, dtype=torch.float32, device="cpu")[:, :, None, None])
    return conv


@dataclass(frozen=True)
class D3TConfig(ObjectiveConfig):
    """Weights of the objective; 0 switches a term off.

    Attributes:
        feature_weight: λ_kt, of the generator's normalised feature maps.
        feature_resolution: largest block that they are taken from; 0 = every block below the picture's size.
        relation_weight: λ_rel, of the relation between a batch's samples at the same blocks.
        reconstruction_weight: perceptual distance of G_t(w*_i + noise) to its training image x_i; not in the abstract.
        distillation_weight, distillation_final: λ_kd at the start, and what it falls to by a cosine.
        transformed_every: every n-th step draws its latents from projected training images, the others freely; 0 = none
            does, and nothing has to be projected.
        code_sigma: noise on a projected code in units of the spread of w.
        mix_probability: probability that a code is a convex mix of two projected ones instead.
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

    RANGES = ObjectiveConfig.RANGES | {
        **dict.fromkeys(("feature_resolution", "distillation_final", "transformed_every", "code_sigma"), NOT_NEGATIVE),
        "mix_probability": SHARE,
    }

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
    def abstract(cls) -> "D3TConfig":
        """The terms that the abstract names, and no other, with a discriminator that sees through pretrained eyes."""
        return super().few_images()

    @classmethod
    def few_images(cls) -> "D3TConfig":
        """Signals that learn a look from ten images in few steps on a CPU (training/RESULTS.md).

        The relation keeps latents apart, deep moments find the look, content and structure keep hair and pose.
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
    def large_gap(cls) -> "D3TConfig":
        """For looks that the base cannot draw, such as line art: no codes, no distillation, features free to change."""
        return replace(
            cls.few_images(),
            adversarial_weight=0.5,
            colour_weight=2.0,
            transformed_every=0,
            distillation_weight=0.0,
            feature_weight=0.0,
        )

    @property
    def needs_latents(self) -> bool:
        """A term of the generator uses projected training images."""
        weights = self.feature_weight, self.relation_weight, self.reconstruction_weight
        return self.transformed_every > 0 and max(weights) > 0


class D3TObjective(Objective):
    """Transformed samples for the generator, multi-level distillation for the discriminator.

    Args:
        config, real, seed: see `Objective`.
        codes: projected training images, w `[K, D]` or w+ `[K, L, D]` (`inversion.invert`); None if nothing uses them.
        w_std: spread of w `[D]` (`inversion.latent_statistics`).
        discriminator, projected, features: see `Objective`. What is given is also the source D_s of the distillation.

    Raises:
        ValueError: there is nothing to distil from, or no codes though the generator's terms want them.
    """

    def __init__(self, config: D3TConfig, real, *, codes=None, w_std=None, projected=None, seed: int = 0, **options):
        super().__init__(config, real, projected=projected, seed=seed, **options)
        c = config
        if c.needs_latents and (codes is None or w_std is None):
            raise ValueError("knowledge transfer starts from projected training images: pass codes and w_std")
        self._codes, self._w_std, self._real = codes, w_std, real
        self._source = [None]  # in a list: frozen, so neither saved nor trained with this module
        if c.distillation_weight:
            if c.discriminator == "projected" and projected is None:
                raise ValueError(
                    "this base has no projected discriminator to distil from; use distillation_weight=0, or train one "
                    "with training/source_discriminator.py"
                )
            self._source = [deepcopy(self.discriminator).eval().requires_grad_(False)]
            one, device = real[:1], next(self.discriminator.parameters()).device
            seen = {k: x.to(device) for k, x in self.observe(one, self.levels).items()}
            maps, _ = self._look(self._source[0], Views(one, one).to(device), seen)
            self.adapters = nn.ModuleDict({name: identity_convolution(x.shape[1]) for name, x in maps.items()})

    def _apply(self, fn, recurse=True):
        """Whatever moves the discriminator moves its source too."""
        if self._source[0] is not None:
            self._source[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def settings(self) -> dict:
        return super().settings() | ({"codes": hash_tensor(self._codes)} if self.config.needs_latents else {})

    @property
    def needs_source(self) -> bool:
        return self.config.feature_weight > 0 or self.config.relation_weight > 0 or super().needs_source

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Codes ŵ = w*_i + σ·ε or a convex mix of two every `transformed_every`-th step, free latents otherwise."""
        c = self.config
        if not c.needs_latents or step % c.transformed_every:
            return super().draw(pair, batch, step, random)
        codes = self._codes
        first, second = torch.randint(len(codes), (2, batch), generator=random, device="cpu")
        shape = (batch, *[1] * (codes.ndim - 1))
        share = torch.rand(shape, generator=random, dtype=torch.float32, device="cpu")
        noise = (
            torch.randn(batch, *shape[1:-1], codes.shape[-1], generator=random, dtype=torch.float32, device="cpu")
            * c.code_sigma
        )
        mixed = torch.rand(batch, generator=random, dtype=torch.float32, device="cpu") < c.mix_probability
        near, between = codes[first] + noise * self._w_std, codes[first].lerp(codes[second], share)
        w = torch.where(mixed.view(shape), between, near)
        return Latents(w=w, origin=first.masked_fill(mixed, -1))

    def discriminator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().discriminator_losses(batch), self.config
        if c.distillation_weight:
            falling = (1 + torch.cos(torch.tensor(torch.pi * batch.progress, dtype=torch.float32, device="cpu"))) / 2
            weight = float(c.distillation_final + (c.distillation_weight - c.distillation_final) * falling)
            sides = (batch.real, batch.real_features), (batch.fake, batch.fake_features)
            losses["distillation"] = weight * sum(self._distil(*side) for side in sides)
        return losses

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().generator_losses(batch), self.config
        if c.feature_weight or c.relation_weight:
            largest = c.feature_resolution or batch.drawn.images.shape[-1] // 2
            names = [name for name in batch.drawn.features if int(name[1:]) <= largest]
            source, target = ([drawn.features[n] for n in names] for drawn in (batch.source, batch.drawn))
            if c.feature_weight:
                losses["transfer"] = c.feature_weight * feature_transfer_loss(source, target)
            if c.relation_weight:
                losses["relation"] = c.relation_weight * relation_loss(source, target)
        origin = batch.latents.origin
        if c.reconstruction_weight and origin is not None and (known := origin >= 0).any():
            targets = self._real[origin[known]].to(batch.drawn.images.device)
            distance = PerceptualDistance(self.require_features(), targets)(batch.drawn.images[known])
            losses["reconstruction"] = c.reconstruction_weight * distance.mean()
        return losses

    def _distil(self, views: Views, features: dict) -> torch.Tensor:
        maps, logits = self._look(self.discriminator, views, features)
        with torch.no_grad():
            source_maps, source_logits = self._look(self._source[0], views, features)
        return distillation_loss(source_maps, source_logits, maps, logits, self.adapters)

    def _look(self, discriminator, views: Views, features: dict):
        """Maps of a discriminator by name, and its list of logits."""
        if self.config.discriminator == "projected":
            logits, maps = discriminator(features, return_features=True)
            return maps, logits
        logits, maps = discriminator(views.colour, return_features=True)
        return maps, [logits]


class D3TMethod(Method):
    """D3T-GAN as a method."""

    name = "d3t"
    Config, Objective, Options, adapter = D3TConfig, D3TObjective, ProjectionOptions, "left"
    presets = ("few_images", "large_gap", "abstract", "paper")

    def complete(self, config: D3TConfig) -> None:
        self.options = complete(self.options, config)

    def record(self, run: Run) -> dict:
        return recorded(self.options) if run.config.needs_latents else {}

    def judges(self, run: Run) -> dict:
        judges = super().judges(run)
        if run.config.needs_latents:
            path, seed = run.folder / "projections.safetensors", run.training.seed
            with run.main_process_first():
                judges["codes"] = project(path, run.pipe, run.images, self.options, seed, run.dry)
            judges["w_std"] = latent_statistics(run.pipe.generator)[1].cpu()
        return judges
