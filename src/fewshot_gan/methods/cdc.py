"""Cross-domain correspondence: what differs in the source stays different (Ojha et al. 2021, arXiv 2104.06820).

Anchors and the patch-level judge (§3.2) are also LFS-GAN's; the relation between the samples of a batch (§3.1) is also
D3T-GAN's.

Shape legend: B images, K training images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.random import seeded
from ..utils.ranges import NOT_NEGATIVE
from .method import Method, Run
from .objective import Batch, Objective, ObjectiveConfig, Views
from .pair import Latents, Pair


class AnchorSampler:
    """Latents near one fixed anchor per training image, or free ones (§3.2).

    Args:
        num_anchors: K.
        z_dim: size of z.
        every: each `every`-th step is an anchor step, judged by the image-level head; the others by the patch head.
        sigma: standard deviation around an anchor.
        seed: of the anchors.
    """

    def __init__(self, num_anchors: int, z_dim: int, every: int = 4, sigma: float = 0.1, seed: int = 0):
        self.anchors = torch.randn(num_anchors, z_dim, generator=seeded(seed), dtype=torch.float32, device="cpu")
        self.every, self.sigma = every, sigma

    def is_anchor_step(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def sample(self, batch: int, step: int, generator: torch.Generator) -> torch.Tensor:
        """z `[batch, z_dim]` for this step."""
        noise = torch.randn(batch, self.anchors.shape[1], generator=generator, dtype=torch.float32, device="cpu")
        if not self.is_anchor_step(step):
            return noise
        picks = torch.randint(len(self.anchors), (batch,), generator=generator, device="cpu")
        return self.anchors[picks] + self.sigma * noise


class PatchHead(nn.Module):
    """Patch-level logits: one 3×3 convolution on an intermediate feature map of the discriminator (§3.2).

    Args:
        channels: of that map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(1))
        self.gain = (channels * 9) ** -0.5  # equalised learning rate

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, H·W] logits
        return F.conv2d(features, self.weight * self.gain, self.bias, padding=1).flatten(1)


def relation_loss(source: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """KL(softmax_{j≠i} cos(s_i, s_j) ‖ softmax_{j≠i} cos(t_i, t_j)), mean over images i and levels (§3.1, eq. 1–2).

    Args:
        source, target: one map `[B, …]` per level, row i of both from the same latent.

    Returns:
        Scalar; gradients reach `target`. 0 of fewer than three images, which have no relation to compare.
    """
    if len(target[0]) < 3:  # with two, the softmax is over one number
        return sum(t.sum() for t in target) * 0

    def similarities(x):  # [B, …] -> [B, B − 1]
        x = F.normalize(x.float().flatten(1), dim=1)
        others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        return (x @ x.t())[others].reshape(len(x), -1).log_softmax(1)

    losses = [
        F.kl_div(similarities(t), similarities(s.detach()), reduction="batchmean", log_target=True)
        for s, t in zip(source, target, strict=True)
    ]
    return sum(losses) / len(losses)


@dataclass(frozen=True)
class CDCConfig(ObjectiveConfig):
    """Weights of the objective.

    Attributes:
        anchor_every, anchor_sigma: see `AnchorSampler`; 0 = no anchors.
        relation_weight: of the cross-domain relation of a batch's samples.
    """

    anchor_every: int = 4
    anchor_sigma: float = 0.1
    relation_weight: float = 1000.0

    RANGES = ObjectiveConfig.RANGES | dict.fromkeys(("anchor_every", "anchor_sigma"), NOT_NEGATIVE)


class CDCObjective(Objective):
    """Adversarial fine-tuning with anchors, a patch head and the relation loss.

    Args:
        config, real, discriminator, projected, features, seed: see `Objective`.
        z_dim: of the generator.
    """

    def __init__(self, config: CDCConfig, real, z_dim: int, *, discriminator=None, seed: int = 0, **options):
        super().__init__(config, real, discriminator=discriminator, seed=seed, **options)
        self.anchors = AnchorSampler(len(real), z_dim, config.anchor_every, config.anchor_sigma, seed)
        self.patch_head = None
        if config.discriminator == "source" and config.anchor_every:
            self.patch_block = f"b{discriminator.resolution // 4}"  # its output has R/8 pixels: 32 at 256
            with torch.no_grad():
                _, maps = discriminator(real[:1].to(next(discriminator.parameters()).device), return_features=True)
            self.patch_head = PatchHead(maps[self.patch_block].shape[1])

    @property
    def needs_source(self) -> bool:
        return self.config.relation_weight > 0 or super().needs_source

    def draw(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Latents:
        """Anchors are used as they are, free latents are mixed."""
        z = self.anchors.sample(batch, step, random)
        return pair.mixed(z, random, 0.0 if self.anchors.is_anchor_step(step) else self.config.style_mixing)

    def _judges_patches(self, step: int) -> bool:
        return self.patch_head is not None and not self.anchors.is_anchor_step(step)

    def logits(self, views: Views, features: dict, step: int) -> list[torch.Tensor]:
        """Of a source discriminator: image-level logits on anchor steps, patch-level logits on others (§3.2)."""
        if not self._judges_patches(step):
            return super().logits(views, features, step)
        return [self.patch_head(self.discriminator(views.colour, return_features=True)[1][self.patch_block])]

    def last_layers(self, step: int) -> list[nn.Module]:
        return [self.patch_head] if self._judges_patches(step) else super().last_layers(step)

    def generator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses = super().generator_losses(batch)
        if self.config.relation_weight:
            names = sorted(batch.drawn.features)  # one level a step, as published
            name = names[int(torch.randint(len(names), (), generator=batch.random, device="cpu"))]
            relation = relation_loss([batch.source.features[name]], [batch.drawn.features[name]])
            losses["relation"] = self.config.relation_weight * relation
        return losses


class CDCMethod(Method):
    """Cross-domain correspondence as a method."""

    name = "cdc"
    Config, Objective, adapter = CDCConfig, CDCObjective, "full"

    def judges(self, run: Run) -> dict:
        return {**super().judges(run), "z_dim": run.pipe.generator.z_dim}
