"""AdvAug: feature-level adversarial augmentation of generator and discriminator (arXiv 2103.00397 §3.3).

Both networks are cut in two: D = head ∘ trunk, G = body ∘ stem. The features at the cut are perturbed by steps along
the sign of a gradient, and the losses of perturbed and clean features are averaged. Generators with a mapping network
have no stem; their styles are perturbed.

Shape legend: B images, C width of the features.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..models.spectral import is_spectral_norm
from .losses import hinge_d_loss, hinge_g_loss

DIRECTIONS = ("paper", "repo")


@dataclass(frozen=True)
class AdvAugConfig:
    """Size and direction of the perturbation.

    Attributes:
        steps: number of gradient steps; 0 switches AdvAug off.
        gamma: γ, the change of each coordinate per step, so that ‖δ‖∞ ≤ steps · γ; 0.01 on CIFAR, 0.001 on ImageNet.
        direction: "paper" perturbs against the network that is trained: for the discriminator towards lower logits of
            real and higher logits of fake images, for the generator towards lower logits. "repo" does what the released
            code does: towards higher logits in all three cases, which helps on real images and in the generator.
        weight: λ in the loss (L + λ L_adv) / (1 + λ).

    Raises:
        ValueError: a number is out of range or the direction is unknown.
    """

    steps: int = 0
    gamma: float = 0.01
    direction: str = "paper"
    weight: float = 1.0

    def __post_init__(self):
        if self.steps < 0 or not self.gamma >= 0 or not self.weight >= 0:
            raise ValueError(
                f"adv_steps={self.steps}, adv_gamma={self.gamma}, adv_weight={self.weight}: give 0 or more each"
            )
        if self.direction not in DIRECTIONS:
            raise ValueError(f"unknown adv_direction {self.direction!r}; known: {', '.join(DIRECTIONS)}")

    @classmethod
    def of(cls, settings) -> "AdvAugConfig":
        """Return the config of settings with fields adv_steps, adv_gamma, adv_direction and adv_weight."""
        return cls(settings.adv_steps, settings.adv_gamma, settings.adv_direction, settings.adv_weight)

    @property
    def acts(self) -> bool:
        """Whether features are perturbed at all."""
        return self.steps > 0 and self.gamma > 0 and self.weight > 0

    @property
    def helping(self) -> int:
        """1 if real images and the generator are perturbed towards higher logits, −1 towards lower ones."""
        return -1 if self.direction == "paper" else 1

    def mean(self, clean: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of the loss of clean and that of perturbed features."""
        return (clean + self.weight * moved) / (1 + self.weight)


def attack(features: torch.Tensor, score: Callable, steps: int, gamma: float) -> torch.Tensor:
    """Return the perturbation δ of `features` `[B, …]` that raises `score`, of the same shape.

    It takes `steps` steps of γ·sign(∂ score / ∂ features), without random start and without projection.

    Args:
        features: starting point; no gradients flow into it.
        score: function from features to a scalar.
        steps, gamma: see `AdvAugConfig`.
    """
    start = moved = features.detach()
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(moved), moved)
        moved = moved.detach() + gamma * gradient.sign()
    return moved - start


@contextmanager
def tapped(layers: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, torch.Tensor]]]:
    """Record the calls of `layers` in a `with` block, as a list of (layer, its input) in the order of the calls."""
    calls: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda m, inputs: calls.append((m, inputs[0]))) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Let forward passes in training mode change no buffers: no running statistics and no power iteration."""
    norms = [m for model in models for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    sigmas = [(m, m.training) for model in models for m in model.modules() if is_spectral_norm(m)]
    try:
        for norm in norms:
            norm.track_running_stats = not norm.training  # training with batch statistics, evaluation with running ones
        for module, _ in sigmas:
            module.training = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, training in sigmas:
            module.training = training


def judged(
    logits: Callable[[], list[torch.Tensor]],
    layers: Iterable[nn.Module],
    discriminator: nn.Module,
    config: AdvAugConfig,
    direction: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return logit maps, and those of perturbed features, which are empty without AdvAug.

    Args:
        logits: computes the maps.
        layers: the last layers of the discriminator, whose inputs are perturbed.
        discriminator: module whose buffers the attack must not change.
        config: the perturbation.
        direction: 1 perturbs towards higher logits, −1 towards lower ones.
    """
    if not config.acts:
        return logits(), []
    with tapped(layers) as calls:
        clean = logits()
    with undisturbed(discriminator):
        shifts = [attack(x, lambda y, f=f: direction * f(y).sum(), config.steps, config.gamma) for f, x in calls]
        return clean, [f(x + shift) for (f, x), shift in zip(calls, shifts, strict=True)]


def discriminator_loss(
    discriminator,
    real: torch.Tensor,
    fake: torch.Tensor,
    config: AdvAugConfig,
    real_labels: torch.Tensor | None = None,
    fake_labels: torch.Tensor | None = None,
    real_logits: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the discriminator's hinge loss, averaged over clean and perturbed features.

    Args:
        discriminator: a `PlainDiscriminator`.
        real, fake: augmented images `[B, 3, R, R]`, as many of both.
        config: the perturbation.
        real_labels, fake_labels: int64 `[B]`, for class-conditional networks.
        real_logits: list to which the logits `[B, 1]` of `real` are added, without gradient; None: they are not kept.

    Raises:
        ValueError: only one side has labels.
    """
    if real_labels is None or fake_labels is None:
        if real_labels is not fake_labels:
            raise ValueError("one of real_labels and fake_labels is None; give both or neither")
        labels = None
    else:
        labels = torch.cat([real_labels, fake_labels])
    vectors = discriminator.trunk(torch.cat([real, fake]))
    half = len(real)
    if not config.acts:
        logits = discriminator.head(vectors, labels)
        if real_logits is not None:
            real_logits.append(logits[:half].detach())
        return hinge_d_loss(logits[:half], logits[half:])

    def score(x):
        logits = discriminator.head(x, labels)
        if config.direction == "paper":
            return logits[half:].sum() - logits[:half].sum()
        # the released SNGAN raises every logit, the released BigGAN only logits below 1
        return logits.sum() if labels is None else -F.relu(1 - logits).sum()

    with undisturbed(discriminator):
        delta = attack(vectors, score, config.steps, config.gamma)
    both = None if labels is None else labels.repeat(2)
    clean, moved = discriminator.head(torch.cat([vectors, vectors + delta]), both).split(2 * half)
    if real_logits is not None:
        real_logits.append(clean[:half].detach())
    return config.mean(hinge_d_loss(clean[:half], clean[half:]), hinge_d_loss(moved[:half], moved[half:]))


def generator_loss(
    generator, discriminator, z: torch.Tensor, augment: Callable, config: AdvAugConfig, labels=None
) -> torch.Tensor:
    """Return the generator's hinge loss, averaged over clean and perturbed first feature maps.

    Args:
        generator: a `PlainGenerator`.
        discriminator: a `PlainDiscriminator`. Its weights get gradients too; ignore them.
        z: latents `[B, z_dim]`.
        augment: function that augments images for the discriminator; it is also called in each step of the attack.
        config: the perturbation.
        labels: int64 `[B]`, for class-conditional networks.
    """

    def logits(x):
        return discriminator(augment(generator.body(x, z, labels)), labels)

    start = generator.stem(z, labels)
    clean = hinge_g_loss(logits(start))
    if not config.acts:
        return clean
    with undisturbed(generator, discriminator):
        delta = attack(start, lambda x: config.helping * logits(x).sum(), config.steps, config.gamma)
        return config.mean(clean, hinge_g_loss(logits(start + delta)))
