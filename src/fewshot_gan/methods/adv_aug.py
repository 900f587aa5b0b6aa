"""AdvAug: feature-level adversarial augmentation of generator and discriminator (arXiv 2103.00397 §3.3).

Both networks are cut in two: D = head ∘ trunk, G = body ∘ stem. What lies between is moved by the sign of a gradient,
and the losses of the moved features are averaged with the clean ones. Generators with a mapping network have
no stem: their styles are moved.

Shape legend: B images, C width of the features.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from .losses import hinge_d_loss, hinge_g_loss

DIRECTIONS = ("paper", "repo")


@dataclass(frozen=True)
class AdvAugConfig:
    """How far and which way features move.

    Attributes:
        steps: of the attack; 0 = none.
        gamma: length of each in every coordinate, so that ‖δ‖∞ ≤ steps · γ; 0.01 on CIFAR, 0.001 on ImageNet.
        direction: "paper" always attacks: down with D of real, up with D of fake, down with D(G) of the generator.
            "repo" does what the released code does: it attacks the fake side of the discriminator alone, and helps the
            two others.
        weight: λ of the adversarial losses beside the clean ones; (L + λ L_adv) / (1 + λ).

    Raises:
        ValueError: a number out of range or an unknown direction.
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
        """From settings that have these fields under the names adv_steps, adv_gamma, adv_direction, adv_weight."""
        return cls(settings.adv_steps, settings.adv_gamma, settings.adv_direction, settings.adv_weight)

    @property
    def acts(self) -> bool:
        return self.steps > 0 and self.gamma > 0 and self.weight > 0

    @property
    def helping(self) -> int:
        """Sign of what real pictures and the generator are moved along: −1 against themselves, 1 in their favour."""
        return -1 if self.direction == "paper" else 1

    def mean(self, clean: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        return (clean + self.weight * moved) / (1 + self.weight)


def attack(features: torch.Tensor, score: Callable, steps: int, gamma: float) -> torch.Tensor:
    """How far `features` `[B, …]` go in `steps` steps of γ·sign(∂ score / ∂ features); no random start, no other limit.

    Args:
        features: taken as a constant.
        score: features → a number that is to rise.
        steps, gamma: see `AdvAugConfig`.

    Returns:
        δ, of the shape of `features`.
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
    """The list of (layer, what it was given), in the order of the calls of any of `layers` inside."""
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda m, given: seen.append((m, given[0]))) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Forwards in training mode that leave no trace: no running statistics, no power iteration."""
    norms = [m for model in models for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    sigmas = [(m, m.training) for model in models for m in model.modules() if isinstance(m, _SpectralNorm)]
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


def discriminator_loss(
    discriminator, real, fake, config: AdvAugConfig, real_labels=None, fake_labels=None
) -> torch.Tensor:
    """Hinge loss of images `[B, 3, R, R]`, as the discriminator sees them, clean and with moved features.

    Args:
        discriminator: a `PlainDiscriminator`.
        real, fake: already augmented; of one number.
        config: the attack.
        real_labels, fake_labels: int64 `[B]` of class-conditional networks.
    """
    labels = None if real_labels is None else torch.cat([real_labels, fake_labels])
    vectors = discriminator.trunk(torch.cat([real, fake]))
    half = len(real)
    if not config.acts:
        logits = discriminator.head(vectors, labels)
        return hinge_d_loss(logits[:half], logits[half:])

    def score(x):
        logits = discriminator.head(x, labels)
        if config.direction == "paper":
            return logits[half:].sum() - logits[:half].sum()
        # the released SNGAN raises every logit, its BigGAN those of which a hinge at 1 is active
        return logits.sum() if labels is None else -F.relu(1 - logits).sum()

    with undisturbed(discriminator):
        delta = attack(vectors, score, config.steps, config.gamma)
    both = None if labels is None else labels.repeat(2)
    clean, moved = discriminator.head(torch.cat([vectors, vectors + delta]), both).split(2 * half)
    return config.mean(hinge_d_loss(clean[:half], clean[half:]), hinge_d_loss(moved[:half], moved[half:]))


def generator_loss(generator, discriminator, z, augment: Callable, config: AdvAugConfig, labels=None) -> torch.Tensor:
    """Hinge loss of pictures of z `[B, z_dim]`, clean and from a moved first feature map.

    Args:
        generator: a `PlainGenerator`.
        discriminator: its weights get gradients too; keep them out.
        z: latents.
        augment: pictures → what the discriminator sees; called once per picture batch, the attack's included.
        config: the attack.
        labels: int64 `[B]` of class-conditional networks.
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
