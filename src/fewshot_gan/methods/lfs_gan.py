"""LFS-GAN: lifelong few-shot adaptation with anchors, a patch head and cluster-wise mode seeking (arXiv 2308.11917).

Shape legend: B images, L layers, D `w_dim`, K training images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F

from ..features import FeatureNetwork, load_features
from ..inversion import lpips_network
from ..metrics import pairwise_distances, spatial_embedding
from ..utils.frozen import Frozen
from ..utils.ranges import COUNT
from .cdc import RELEASED, CDCConfig, CDCMethod, CDCObjective
from .method import Run
from .pair import Pair


def mode_seeking_loss(z, w, images, features, clusters) -> torch.Tensor:
    """Return the cluster-wise mode-seeking loss: it falls as samples of the same cluster move apart (§3.4).

    R(i,j) = ‖w_i−w_j‖₁/‖z_i−z_j‖₁ + mean_l ‖F_l,i−F_l,j‖₁/‖w_i−w_j‖₁ + ‖x_i−x_j‖₁/‖w_i−w_j‖₁ with norms as means over
    elements; loss = 1 / (Σ_clusters Σ_pairs R / #clusters with a pair + 1e-5).

    Differs from the released code in two points. Pairs are made of the n members of a cluster; there, of the first n
    images of the batch, whichever cluster they belong to. Without any pair the loss is 0; there, it divides by zero.

    Args:
        z: `[B, z_dim]`.
        w: `[B, D]`.
        images: `[B, 3, H, W]`.
        features: L feature maps `[B, C_l, H_l, W_l]` of the generator.
        clusters: integer cluster of each image, `[B]`.

    Returns:
        Scalar, differentiable.
    """
    first, second = torch.triu_indices(len(z), len(z), 1, device=images.device)
    same = clusters[first] == clusters[second]
    first, second = first[same], second[same]
    if len(first) == 0:
        return images.sum() * 0
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))

    def distance(x):  # [B, …] -> mean absolute difference of each of P pairs, [P]
        x = x.flatten(1)
        return torch.stack([(x[i] - x[j]).abs().mean() for i, j in pairs])

    dz, dw = distance(z) + 1e-8, distance(w) + 1e-8
    ratio = dw / dz + torch.stack([distance(f) for f in features]).mean(0) / dw + distance(images) / dw
    return 1 / (ratio.sum() / clusters[first].unique().numel() + 1e-5)


def assign_clusters(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Return the index `[B]` of the nearest reference of each image, by cosine distance.

    Args:
        images: feature vectors `[B, D]`.
        references: feature vectors `[K, D]`.
    """
    return (F.normalize(images, dim=1) @ F.normalize(references, dim=1).t()).argmax(1)


@dataclass(frozen=True)
class LFSConfig(CDCConfig):
    """Weights of `CDCConfig`, whose anchors and patch head LFS-GAN shares (§3.3), and of mode seeking.

    Attributes:
        mode_seeking_weight: weight of `mode_seeking_loss`.
        mode_seeking_every: it is computed every n-th step.
        mode_seeking_factor: number of its latents, as a multiple of the batch size.
    """

    path_length_weight: float = 2.0
    relation_weight: float = 0.0
    mode_seeking_weight: float = 1.0
    mode_seeking_every: int = 1
    mode_seeking_factor: int = 4

    RANGES = CDCConfig.RANGES | dict.fromkeys(("mode_seeking_every", "mode_seeking_factor"), COUNT)

    @classmethod
    def few_images(cls) -> Self:
        """Return weights that learn ten images in half an hour on a CPU (training/RESULTS.md).

        A discriminator on pretrained features and feature statistics learn the look; content and structure are kept.
        """
        return replace(
            super().few_images(),
            adversarial_weight=0.5,
            mode_seeking_weight=0.0,
            statistics_weight=0.5,
            wasserstein_weight=0.5,
            colour_weight=2.0,
            content_weight=40.0,
            structure_weight=4.5,
        )

    @classmethod
    def strokes(cls) -> Self:
        """Return weights for an adapter that changes more than LeFT, such as LoRA, which holds faces by itself."""
        return replace(cls.few_images(), content_weight=20.0, structure_weight=2.0)

    @classmethod
    def pattern(cls) -> Self:
        """Return weights for looks that are a regular pattern, whose dots or lines are no lines of the source."""
        return replace(cls.few_images(), content_weight=10.0, structure_weight=1.5, structure_size=48)


class LFSObjective(CDCObjective):
    """Losses of `CDCObjective`, and mode seeking between generated images whose nearest training image is the same.

    Args:
        config, real, z_dim: see `CDCObjective`.
        perception: network whose spatial distance says which training image is nearest, e.g. LPIPS; None: the cosine
            of pooled `features`.
        options: `discriminator`, `projected`, `features` and `seed`, see `Objective`; mode seeking needs `features` or
            `perception`.
    """

    config: LFSConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # set once, in __init__
    real_vectors: torch.Tensor  # [K, D] pooled features, or [K, E] of `perception`

    def __init__(
        self, config: LFSConfig, real: torch.Tensor, z_dim: int, perception: FeatureNetwork | None = None, **options
    ):
        super().__init__(config, real, z_dim, **options)
        self._perception = Frozen(perception)
        if config.mode_seeking_weight:
            vectors = (
                self.require_features().pooled(real) if perception is None else spatial_embedding(real, perception)
            )
            self.register_buffer("real_vectors", vectors, persistent=False)

    def clusters(self, images: torch.Tensor) -> torch.Tensor:
        """Return the index `[B]` of the training image that is nearest to each of `images` `[B, 3, R, R]`."""
        if (perception := self._perception.value) is None:
            return assign_clusters(self.require_features().pooled(images), self.real_vectors)
        return pairwise_distances(spatial_embedding(images, perception), self.real_vectors).argmin(1)

    def images_of_regularisers(self, batch: int) -> int:
        c = self.config
        own = batch * c.mode_seeking_factor if c.mode_seeking_weight else 0
        return max(own, super().images_of_regularisers(batch))

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        yield from super().regularisers(pair, batch, step, random)
        c = self.config
        if c.mode_seeking_weight and step % c.mode_seeking_every == 0:
            latents = pair.with_noise(pair.draw(batch * c.mode_seeking_factor, random), random)
            drawn = pair.adapted(latents)
            clusters = self.clusters(drawn.images.detach())
            z, maps = latents.require_z().to(drawn.images.device), list(drawn.features.values())
            loss = mode_seeking_loss(z, drawn.ws[:, 0], drawn.images, maps, clusters)
            yield {"mode_seeking": c.mode_seeking_every * c.mode_seeking_weight * loss}


class LFSMethod(CDCMethod):
    """LFS-GAN (arXiv 2308.11917)."""

    name = "lfs_gan"
    Config, Objective, adapter = LFSConfig, LFSObjective, "left"
    presets = ("few_images", "strokes", "pattern", "paper")
    published: ClassVar = {
        "paper": {**RELEASED, "max_train_steps": 3000, "ema_decay": 0.0},
        "pattern": {"augment": "none"},  # a pattern has its place and its direction
    }

    def clusters_by_lpips(self, run: Run) -> bool:
        """Return whether LPIPS finds the nearest training image, as published; else pooled features do."""
        seeks = run.preset == "paper" and run.config.mode_seeking_weight > 0
        return seeks and lpips_network(str(run.device)) is not None

    def judges(self, run: Run) -> dict:
        perception = load_features("lpips-vgg", device=run.device) if self.clusters_by_lpips(run) else None
        return {**super().judges(run), "perception": perception}

    def record(self, run: Run) -> dict:
        return {**super().record(run), **({"clusters": "lpips-vgg"} if self.clusters_by_lpips(run) else {})}
