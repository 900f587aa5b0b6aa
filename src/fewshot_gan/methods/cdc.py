"""Cross-domain correspondence: similarities between samples are kept as in the source (arXiv 2104.06820).

LFS-GAN also uses the anchors and the patch-level discriminator (§3.2), D3T-GAN the relation loss (§3.1).

Shape legend: B images, K training images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from ..models.bounds import MAX_RESOLUTION
from ..models.stylegan2 import StyleGAN2Discriminator
from ..utils.random import seeded
from ..utils.ranges import NOT_NEGATIVE, Range
from .losses import total
from .method import Method, Run
from .objective import Batch, Objective, ObjectiveConfig
from .pair import Latents, Pair
from .views import Views


class AnchorSampler:
    """Sample z near one fixed anchor per training image, or from the normal distribution (§3.2).

    Args:
        num_anchors: number of anchors K.
        z_dim: size of z.
        every: every `every`-th step is an anchor step; 0 means none. The image-level head of the discriminator judges
            anchor steps, the patch head all others.
        sigma: standard deviation around an anchor.
        seed: seed of the anchors.
    """

    def __init__(self, num_anchors: int, z_dim: int, every: int = 4, sigma: float = 0.1, seed: int = 0):
        self.anchors = torch.randn(num_anchors, z_dim, generator=seeded(seed), dtype=torch.float32, device="cpu")
        self.every, self.sigma = every, sigma

    def is_anchor_step(self, step: int) -> bool:
        """Return whether z of this step lies near anchors."""
        return self.every > 0 and step % self.every == 0

    def sample(self, batch: int, step: int, generator: torch.Generator) -> torch.Tensor:
        """Return z `[batch, z_dim]` for this step."""
        noise = torch.randn(batch, self.anchors.shape[1], generator=generator, dtype=torch.float32, device="cpu")
        if not self.is_anchor_step(step):
            return noise
        picks = torch.randint(len(self.anchors), (batch,), generator=generator, device="cpu")
        return self.anchors[picks] + self.sigma * noise


class PatchHead(nn.Module):
    """Compute patch-level logits by a 3×3 convolution on an intermediate feature map of the discriminator (§3.2).

    Args:
        channels: number of channels C of the feature map.
        seed: seed of the initial weights.
    """

    def __init__(self, channels: int, seed: int = 0):
        super().__init__()
        weight = torch.randn(1, channels, 3, 3, generator=seeded(seed), dtype=torch.float32, device="cpu")
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(1))
        self.gain = (channels * 9) ** -0.5  # equalised learning rate

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, H·W] logits
        return F.conv2d(features, self.weight * self.gain, self.bias, padding=1).flatten(1)


def relation_loss(source: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """Compare the similarities between the samples of a batch before and after adaptation (§3.1, eq. 1–2).

    KL(softmax_{j≠i} cos(s_i, s_j) ‖ softmax_{j≠i} cos(t_i, t_j)), mean over images i and levels.

    Args:
        source, target: one feature map `[B, …]` per level; row i of both comes from the same latent.

    Returns:
        Scalar; gradients reach `target`. It is 0 for fewer than three images, since a softmax over one number is 1.
    """
    if len(target[0]) < 3:
        return total(t.sum() for t in target) * 0
    losses = [
        F.kl_div(_similarities(t), _similarities(s.detach()), reduction="batchmean", log_target=True)
        for s, t in zip(source, target, strict=True)
    ]
    return total(losses) / len(losses)


def published_relation_loss(
    source: list[torch.Tensor], target: list[torch.Tensor], levels: Sequence[int]
) -> torch.Tensor:
    """Compare the similarities as the released code does: a level per image, mean over all pairs.

    The mean over the B − 1 others makes it B − 1 times weaker than `relation_loss`.

    Args:
        source, target: see `relation_loss`; at least one level.
        levels: index of the level at which image i is compared with the others, B of them.

    Returns:
        Scalar; gradients reach `target`. It is 0 for fewer than three images.
    """
    if len(levels) < 3:
        return total(t.sum() for t in target) * 0
    of_source, of_target = ([_similarities(x) for x in maps] for maps in ([s.detach() for s in source], target))
    pairs = [(of_target[level][i], of_source[level][i]) for i, level in enumerate(levels)]
    num = len(levels)
    return total(F.kl_div(t, s, reduction="sum", log_target=True) for t, s in pairs) / (num * (num - 1))


def _similarities(x: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities `[B, B − 1]` of the cosines of each row of `[B, …]` with the others."""
    x = F.normalize(x.float().flatten(1), dim=1)
    others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return (x @ x.t())[others].reshape(len(x), -1).log_softmax(1)


@dataclass(frozen=True)
class CDCConfig(ObjectiveConfig):
    """Weights of `ObjectiveConfig` and those of cross-domain correspondence.

    Attributes:
        anchor_every: every n-th step is an anchor step; 0 switches anchors and patch head off.
        anchor_sigma: standard deviation of z around an anchor.
        relation_weight: weight of `relation_loss`.
        relation_latents: number of latents that are drawn for the relation loss alone, which then compares each image
            at a level of its own, as the released code does. 0: the step's own images at one level.
    """

    anchor_every: int = 4
    anchor_sigma: float = 0.1
    relation_weight: float = 1000.0
    relation_latents: int = 0

    RANGES = ObjectiveConfig.RANGES | {
        **dict.fromkeys(("anchor_every", "anchor_sigma"), NOT_NEGATIVE),
        "relation_latents": Range(0, 64, example="0 (the step's own) or 4"),
    }

    def __post_init__(self):
        super().__post_init__()
        if 0 < self.relation_latents < 3:
            raise ValueError(
                f"relation_latents={self.relation_latents}: each image is compared with two others at least; give 3 or "
                "more, or 0 for the step's own images"
            )

    @classmethod
    def paper(cls) -> Self:
        """Return the terms and weights of the released code, on the base's own discriminator."""
        return replace(super().paper(), path_length_weight=2.0, relation_latents=4)

    @property
    def relates(self) -> bool:
        """Whether the relation loss acts."""
        return self.relation_weight > 0 and self.diversity == "own"


class CDCObjective(Objective):
    """Adversarial fine-tuning with anchors, a patch head and the relation loss.

    Args:
        config, real, discriminator, projected, features, seed: see `Objective`.
        z_dim: size of the generator's z.
    """

    config: CDCConfig

    def __init__(
        self,
        config: CDCConfig,
        real: torch.Tensor,
        z_dim: int,
        *,
        discriminator: StyleGAN2Discriminator | None = None,
        seed: int = 0,
        **options,
    ):
        super().__init__(config, real, discriminator=discriminator, seed=seed, **options)
        self.anchors = AnchorSampler(len(real), z_dim, config.anchor_every, config.anchor_sigma, seed)
        self.patch_head: PatchHead | None = None
        if config.discriminator == "source" and config.anchor_every and discriminator is not None:
            self.patch_block = f"b{discriminator.resolution // 4}"  # its output is R/8 pixels wide: 32 at 256
            with torch.no_grad():
                _, maps = discriminator(real[:1].to(next(discriminator.parameters()).device), return_features=True)
            self.patch_head = PatchHead(maps[self.patch_block].shape[1], seed)

    @property
    def relates_batch(self) -> bool:
        """Whether the relation loss compares the step's own images."""
        return self.config.relates and not self.config.relation_latents

    @property
    def needs_source(self) -> bool:
        return self.relates_batch or super().needs_source

    @property
    def largest_map(self) -> int:
        return MAX_RESOLUTION if self.relates_batch else super().largest_map

    def settings(self) -> dict:
        settings = super().settings()
        if not (self.config.relates and self.config.relation_latents):  # runs of older versions have none
            settings.pop("relation_latents", None)
        return settings

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Sample latents; only those of other steps than anchor steps get style mixing."""
        z = self.anchors.sample(batch, step, random)
        return pair.mixed(z, random, 0.0 if self.anchors.is_anchor_step(step) else self.config.style_mixing)

    def _active_patch_head(self, step: int) -> PatchHead | None:
        return None if self.anchors.is_anchor_step(step) else self.patch_head

    def logits(self, views: Views, features: dict, step: int) -> list[torch.Tensor]:
        """Return logits; a source discriminator's are image-level on anchor steps, patch-level on others (§3.2)."""
        if (patch_head := self._active_patch_head(step)) is None:
            return super().logits(views, features, step)
        return [patch_head(self.discriminator(views.colour, return_features=True)[1][self.patch_block])]

    def last_layers(self, step: int) -> list[nn.Module]:
        patch_head = self._active_patch_head(step)
        return super().last_layers(step) if patch_head is None else [patch_head]

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses = super().generator_losses(batch)
        if self.relates_batch:
            names = sorted(batch.drawn.features)  # as published, each step compares one random level
            name = names[int(torch.randint(len(names), (), generator=batch.random, device="cpu"))]
            relation = relation_loss([batch.require_source().features[name]], [batch.drawn.features[name]])
            losses["relation"] = self.config.relation_weight * relation
        return losses

    def images_of_regularisers(self, batch: int) -> int:
        own = self.config.relation_latents if self.config.relates else 0
        return max(own, super().images_of_regularisers(batch))

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        yield from super().regularisers(pair, batch, step, random)
        if self.config.relates and (num := self.config.relation_latents):
            latents = pair.with_noise(pair.draw(num, random), random)
            source, target = (list(x.features.values()) for x in (pair.source(latents), pair.adapted(latents)))
            levels = torch.randint(len(target), (num,), generator=random, device="cpu").tolist()
            loss = published_relation_loss(source, target, levels)
            yield {"relation": self.config.relation_weight * loss}


# of rosinality's StyleGAN2, which CDC and LFS-GAN start from: rates are those of lazy regularisation, 0.002 · n/(n + 1)
RELEASED = {
    "train_batch_size": 4,
    "learning_rate": 0.002 * 4 / 5,
    "d_learning_rate": 0.002 * 16 / 17,
    "adam_beta1": 0.0,
    "adam_beta2": 0.99 ** (4 / 5),  # the discriminator's is 0.99^(16/17) there
    "lr_warmup_steps": 0,
    "lr_decay_start": 1.0,
    "lr_final": 1.0,
    "truncation_psi": 1.0,
    "augment": "flip",
    "noise": "random",
}


class CDCMethod(Method):
    """Cross-domain correspondence (arXiv 2104.06820)."""

    name = "cdc"
    Config, Objective, adapter = CDCConfig, CDCObjective, "full"
    published: ClassVar = {"paper": {**RELEASED, "max_train_steps": 5000, "ema_decay": 0.5 ** (32 / 10_000)}}

    def judges(self, run: Run) -> dict:
        return {**super().judges(run), "z_dim": run.pipe.generator.z_dim}
