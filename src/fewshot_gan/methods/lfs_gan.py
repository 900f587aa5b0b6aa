"""LFS-GAN: lifelong few-shot adaptation with anchors, a patch head and cluster-wise mode seeking (arXiv 2308.11917).

Shape legend: B images, L layers, D `w_dim`, K training images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .losses import hinge_d_loss, hinge_g_loss, logistic_d_loss, logistic_g_loss, r1_penalty
from .projected import ProjectedDiscriminator
from .statistics import colour_distance, content_distance, moment_distance, sliced_wasserstein, structure_distance


class AnchorSampler:
    """Latents near one fixed anchor per training image, or free ones (§3.3, after arXiv 2104.06820).

    Args:
        num_anchors: K.
        z_dim: size of z.
        every: each `every`-th step is an anchor step, judged by the image-level head; the others by the patch head.
        sigma: standard deviation around an anchor.
        seed: of the anchors.
    """

    def __init__(self, num_anchors: int, z_dim: int, every: int = 4, sigma: float = 0.1, seed: int = 0):
        self.anchors = torch.randn(num_anchors, z_dim, generator=torch.Generator().manual_seed(seed))
        self.every, self.sigma = every, sigma

    def is_anchor_step(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def sample(self, batch: int, step: int, generator: torch.Generator) -> torch.Tensor:
        """z `[batch, z_dim]` for this step."""
        noise = torch.randn(batch, self.anchors.shape[1], generator=generator)
        if not self.is_anchor_step(step):
            return noise
        picks = torch.randint(len(self.anchors), (batch,), generator=generator)
        return self.anchors[picks] + self.sigma * noise


class PatchHead(nn.Module):
    """Patch-level logits: one 3×3 convolution on an intermediate feature map of the discriminator (§3.3).

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


def mode_seeking_loss(z, w, images, features, clusters) -> torch.Tensor:
    """Cluster-wise mode seeking: the inverse of how far apart two samples of one cluster are kept (§3.4).

    R(i,j) = ‖w_i−w_j‖₁/‖z_i−z_j‖₁ + mean_l ‖F_l,i−F_l,j‖₁/‖w_i−w_j‖₁ + ‖x_i−x_j‖₁/‖w_i−w_j‖₁ with norms as means over
    elements; loss = 1 / (Σ_clusters Σ_pairs R / #clusters with a pair + 1e-5).

    Differs from the released code: pairs are of the members of a cluster (there: of positions 0…n−1 whatever the
    members), and without any pair the loss is 0 (there: a division by zero).

    Args:
        z: `[B, z_dim]`.
        w: `[B, D]`.
        images: `[B, 3, H, W]`.
        features: L feature maps `[B, C_l, H_l, W_l]` of the generator.
        clusters: `[B]` integer cluster of each image.

    Returns:
        Scalar, differentiable.
    """
    first, second = torch.triu_indices(len(z), len(z), 1, device=images.device)
    same = clusters[first] == clusters[second]
    first, second = first[same], second[same]
    if len(first) == 0:
        return images.sum() * 0

    def distance(x):  # mean absolute difference of each pair, [P]
        x = x.flatten(1)
        return torch.stack([(x[i] - x[j]).abs().mean() for i, j in zip(first, second, strict=True)])

    dz, dw = distance(z) + 1e-8, distance(w) + 1e-8
    ratio = dw / dz + torch.stack([distance(f) for f in features]).mean(0) / dw + distance(images) / dw
    return 1 / (ratio.sum() / clusters[first].unique().numel() + 1e-5)


def assign_clusters(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Nearest reference of each image by cosine distance, `[B, D]` and `[K, D]` feature vectors → `[B]`."""
    return (F.normalize(images, dim=1) @ F.normalize(references, dim=1).t()).argmax(1)


class PathLength(nn.Module):
    """Path-length regularisation (StyleGAN2 §3.2, arXiv 1912.04958), weight applied outside.

    Args:
        decay: of the running mean length.
    """

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros([]))

    def forward(self, images: torch.Tensor, ws: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """`images` `[B, 3, H, W]` made from `ws` `[B, L, D]`: mean squared deviation of ‖Jᵀy‖ from its running mean."""
        noise = torch.randn(images.shape, generator=generator).to(images.device) / (images[0, 0].numel() ** 0.5)
        (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        with torch.no_grad():
            self.mean.lerp_(lengths.mean(), self.decay)
        return (lengths - self.mean).square().mean()


@dataclass(frozen=True)
class LFSConfig:
    """Weights of the objective; `paper()` and `few_images()` are the two presets.

    Attributes:
        discriminator: "source" (the base's own, with the patch head) or "projected" (heads on frozen features).
        adversarial_weight: of the adversarial loss (logistic for "source", hinge for "projected").
        anchor_every, anchor_sigma: see `AnchorSampler`; 0 = no anchors.
        style_mixing: probability that a free latent's ws are mixed of two.
        r1_weight, r1_every: R1 on the source discriminator, lazily.
        path_length_weight, path_length_every: path-length regularisation, lazily.
        mode_seeking_weight, mode_seeking_every, mode_seeking_factor: cluster-wise mode seeking on factor·batch latents.
        statistics_weight, wasserstein_weight, colour_weight: distances of feature moments, sliced feature
            distributions, and colours between generated and real images.
        content_weight: distance of self-similarities between adapted and source image of one latent.
        structure_weight: distance of their lines and light; for looks that draw the same scene, 0 for others.
    """

    discriminator: str = "source"
    adversarial_weight: float = 1.0
    anchor_every: int = 4
    anchor_sigma: float = 0.1
    style_mixing: float = 0.9
    r1_weight: float = 10.0
    r1_every: int = 16
    path_length_weight: float = 2.0
    path_length_every: int = 4
    mode_seeking_weight: float = 1.0
    mode_seeking_every: int = 1
    mode_seeking_factor: int = 4
    statistics_weight: float = 0.0
    wasserstein_weight: float = 0.0
    colour_weight: float = 0.0
    content_weight: float = 0.0
    structure_weight: float = 0.0

    @classmethod
    def paper(cls) -> "LFSConfig":
        """The objective of arXiv 2308.11917."""
        return cls()

    @classmethod
    def few_images(cls) -> "LFSConfig":
        """What worked on a CPU in half an hour: a discriminator with pretrained eyes, statistics, and content."""
        return cls(
            discriminator="projected",
            adversarial_weight=0.5,
            style_mixing=0.0,
            r1_weight=0.0,
            path_length_weight=0.0,
            mode_seeking_weight=0.0,
            statistics_weight=0.5,
            wasserstein_weight=0.5,
            colour_weight=2.0,
            content_weight=40.0,
            structure_weight=4.5,
        )


@dataclass
class Views:
    """One batch as the objective sees it: `colour` `[B, 3, H, W]` fully augmented, `plain` with the geometry alone."""

    colour: torch.Tensor
    plain: torch.Tensor


class LFSObjective(nn.Module):
    """Losses of one step. Its parameters are the discriminator side; the adapter belongs to the trainer.

    Args:
        config: weights.
        real: the K training images `[K, 3, R, R]` in [−1, 1].
        z_dim: of the generator.
        discriminator: the base's, for `config.discriminator == "source"`; trained in place, so pass a copy.
        features: frozen feature network; needed for "projected", statistics, content and mode seeking.
        seed: of anchors and random projections.

    Raises:
        ValueError: the chosen discriminator or the features are missing.
    """

    CONTENT_LEVELS = (4, 10)
    MOMENT_LEVELS = (0, 2, 4, 7, 10)
    # level of the feature network: stride-2 convolutions. A run that also had level 14, which sees whole faces, drew
    # glasses where none were (one drawing of ten has some); dropped together with adding the structure term.
    HEADS = {0: 3, 2: 2, 4: 1, 10: 1}

    def __init__(self, config: LFSConfig, real, z_dim: int, discriminator=None, features=None, seed: int = 0):
        super().__init__()
        self.config = c = config
        if features is not None:
            features.to(memory_format=torch.channels_last)
        self._features = [features]  # in a list: frozen, so neither saved nor trained with this module
        self.needs_source = c.content_weight > 0 or c.structure_weight > 0
        # maps of every batch; mode seeking needs pooled vectors of its own images only
        self.uses_features = (
            c.discriminator == "projected" or max(c.statistics_weight, c.wasserstein_weight, c.content_weight) > 0
        )
        if (self.uses_features or c.mode_seeking_weight) and features is None:
            raise ValueError("this objective compares features: pass features=load_features()")
        self.anchors = AnchorSampler(len(real), z_dim, c.anchor_every, c.anchor_sigma, seed)
        self.path_length = PathLength()
        self.discriminator = self.patch_head = None
        if c.discriminator == "source":
            if discriminator is None:
                raise ValueError(
                    "this base has no discriminator: use discriminator='projected', or a base folder that has one"
                )
            self.discriminator = discriminator
            self.patch_block = f"b{discriminator.resolution // 4}"  # its output has R/8 pixels: 32 at 256
            with torch.no_grad():
                _, maps = discriminator(real[:1].to(next(discriminator.parameters()).device), return_features=True)
            self.patch_head = PatchHead(maps[self.patch_block].shape[1])
        elif c.discriminator == "projected":
            levels = sorted(self.HEADS)
            with torch.no_grad():
                maps = dict(zip(levels, features(real, levels), strict=True))
            # a map of 2^n pixels a side can be halved n times
            convs = {k: min(self.HEADS[k], x.shape[-1].bit_length() - 1) for k, x in maps.items()}
            self.discriminator = ProjectedDiscriminator({k: x.shape[1] for k, x in maps.items()}, convs, seed)
            self.discriminator.calibrate(maps)
        else:
            raise ValueError(f"unknown discriminator {c.discriminator!r}; known: source, projected")
        if c.mode_seeking_weight:
            self.register_buffer("real_vectors", features.pooled(real), persistent=False)

    def observe(self, images: torch.Tensor, levels) -> dict[int, torch.Tensor]:
        """Level → features of `images` `[B, 3, H, W]`; gradients reach the images."""
        if not self.uses_features:
            return {}
        images = images.contiguous(memory_format=torch.channels_last)
        return dict(zip(levels, self._features[0](images, levels), strict=True))

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(sorted({*self.HEADS, *self.MOMENT_LEVELS, *self.CONTENT_LEVELS}))

    def discriminator_losses(self, fake, fake_features, real: Views, real_features, step: int) -> dict:
        """Weighted losses of the discriminator side; `fake` views and features must be detached."""
        c = self.config
        if c.discriminator == "projected":
            logits = zip(self.discriminator(real_features), self.discriminator(fake_features), strict=True)
            return {"d": sum(hinge_d_loss(r, f) for r, f in logits) / len(self.discriminator.levels)}
        real_logits, fake_logits = self._judge(real.colour, step), self._judge(fake.colour, step)
        losses = {"d": logistic_d_loss(real_logits, fake_logits)}
        if c.r1_weight and step % c.r1_every == 0:
            losses["r1"] = c.r1_every * r1_penalty(self.discriminator, real.colour, c.r1_weight)
        return losses

    def generator_losses(
        self, fake: Views, fake_features, real: Views, real_features, source, source_features, step: int, generator
    ) -> dict:
        """Weighted losses of the generator side; gradients flow through `fake` and `fake_features`.

        `source` `[B, 3, R, R]` is the unadapted image with the geometry of `fake.plain`, None unless `needs_source`.
        """
        c, losses = self.config, {}
        if c.adversarial_weight:
            if c.discriminator == "projected":
                maps = self.discriminator(fake_features)
                adversarial = sum(map(hinge_g_loss, maps)) / len(maps)
            else:
                adversarial = logistic_g_loss(self._judge(fake.colour, step))
            losses["g"] = c.adversarial_weight * adversarial
        pairs = [(fake_features[k], real_features[k]) for k in self.MOMENT_LEVELS if k in fake_features]
        if c.statistics_weight:
            losses["statistics"] = c.statistics_weight * sum(moment_distance(a, b) for a, b in pairs)
        if c.wasserstein_weight:
            distances = [sliced_wasserstein(a, b, generator) for a, b in [*pairs, (fake.plain, real.plain)]]
            losses["wasserstein"] = c.wasserstein_weight * sum(distances)
        if c.colour_weight:
            losses["colour"] = c.colour_weight * colour_distance(fake.plain, real.plain)
        if c.content_weight:
            content = [content_distance(fake_features[k], source_features[k]) for k in self.CONTENT_LEVELS]
            losses["content"] = c.content_weight * sum(content) / len(content)
        if c.structure_weight:
            losses["structure"] = c.structure_weight * structure_distance(fake.plain, source)
        return losses

    def regularisers(self, synthesise, batch: int, z_dim: int, step: int, generator):
        """Yield (name, weighted loss) of the terms that draw their own latents; each may be differentiated at once.

        Args:
            synthesise: `z [N, z_dim]` → `(ws [N, L, D], images [N, 3, R, R], feature maps)` of the adapted generator;
                `ws_gradient=True` makes `ws` differentiable.
        """
        c = self.config
        if c.path_length_weight and step % c.path_length_every == 0:
            z = torch.randn(max(1, batch // 2), z_dim, generator=generator)
            ws, images, _ = synthesise(z, ws_gradient=True)
            penalty = self.path_length(images, ws, generator)
            yield "path_length", c.path_length_every * c.path_length_weight * penalty
        if c.mode_seeking_weight and step % c.mode_seeking_every == 0:
            z = self.anchors.sample(batch * c.mode_seeking_factor, step, generator)
            ws, images, maps = synthesise(z)
            clusters = assign_clusters(self._features[0].pooled(images.detach()), self.real_vectors)
            loss = mode_seeking_loss(z.to(images.device), ws[:, 0], images, maps, clusters)
            yield "mode_seeking", c.mode_seeking_every * c.mode_seeking_weight * loss

    def _judge(self, images, step):
        """Image-level logits on anchor steps, patch-level logits otherwise (§3.3)."""
        if self.anchors.is_anchor_step(step) or not self.anchors.every:
            return self.discriminator(images)
        return self.patch_head(self.discriminator(images, return_features=True)[1][self.patch_block])
