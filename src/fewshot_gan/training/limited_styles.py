"""Training of StyleGAN2 on limited data, dense or sparse: logistic loss, lazy regularisation, style mixing.

The recipe is that of arXiv 1912.04958 §B: R1 and path length in steps of their own. AdvAug (arXiv 2103.00397) perturbs
the input of the discriminator's last layer, and the styles of the generator.

Shape legend: B images, L `num_ws`, D `w_dim`, R resolution.
"""

from dataclasses import dataclass

import torch

from ..inversion import latent_statistics
from ..methods.adv_aug import attack, judged, undisturbed
from ..methods.losses import PathLength, logistic_d_loss, logistic_g_loss, r1_penalty
from ..models.labels import refuse_classes
from ..models.layers import mix_styles
from ..pipeline import FewShotGAN
from ..utils.ranges import COUNT, SHARE, check_number
from .limited import LimitedConfig, LimitedTrainer

RATE, BETA2 = 0.002, 0.99  # of Adam, before they are adapted to lazy regularisation


@dataclass(frozen=True)
class StyleConfig(LimitedConfig):
    """Settings of `LimitedConfig`, by default those of StyleGAN2, and of its regularisation.

    Rates and β2 are those of `lazy_adam` for the intervals below.

    Attributes:
        adam_beta2: of the generator.
        d_adam_beta2: of the discriminator; None: that of the generator, as in runs of older versions.
        style_mixing: probability of style mixing.
        r1_weight, r1_every: weight γ of R1, and the number of discriminator steps between two evaluations.
        path_length_weight, path_length_every: the same for path-length regularisation, in generator steps.
    """

    max_train_steps: int = 100_000
    d_steps: int = 1
    d_batch_size: int = 16
    g_batch_size: int = 16
    learning_rate: float = RATE * 4 / 5
    d_learning_rate: float = RATE * 16 / 17
    adam_beta2: float = BETA2 ** (4 / 5)
    d_adam_beta2: float | None = BETA2 ** (16 / 17)
    ema_decay: float = 0.5 ** (32 / 10_000)
    flip: bool = True
    style_mixing: float = 0.9
    r1_weight: float = 10.0
    r1_every: int = 16
    path_length_weight: float = 2.0
    path_length_every: int = 4

    RANGES = LimitedConfig.RANGES | {"style_mixing": SHARE, "r1_every": COUNT, "path_length_every": COUNT}

    def __post_init__(self):
        super().__post_init__()
        if self.d_adam_beta2 is not None:
            check_number("d_adam_beta2", self.d_adam_beta2, self.RANGES["adam_beta2"])


def lazy_adam(weight: float, every: int) -> tuple[float, float]:
    """Return rate and β2 of a network that is regularised each n steps: 0.002 · n/(n + 1) and 0.99^(n/(n + 1)).

    Args:
        weight: of the regularisation; without it both stay as they are.
        every: n.
    """
    return (RATE * every / (every + 1), BETA2 ** (every / (every + 1))) if weight and every > 0 else (RATE, BETA2)


class StyleTrainer(LimitedTrainer):
    """Train a StyleGAN2 generator against its discriminator with the logistic loss.

    Args:
        generator, discriminator: a `StyleGAN2Generator` and a `StyleGAN2Discriminator` without classes; trained in
            place.
        images: uint8 `[N, 3, R, R]`.
        config: settings.
        accelerator, labels, masks, teacher, tag: see `LimitedTrainer`; there are no labels.

    Raises:
        ValueError: the networks have classes, or see `LimitedTrainer`.
    """

    config: StyleConfig

    def __init__(self, generator, discriminator, images, config: StyleConfig, accelerator, *rest, **options):
        refuse_classes(generator, "training from limited data")
        super().__init__(generator, discriminator, images, config, accelerator, *rest, **options)
        if config.d_adam_beta2 is not None:
            for group in self.d_optimizer.param_groups:
                group["betas"] = (config.adam_beta1, config.d_adam_beta2)
        self.path_length = PathLength().to(self.device)

    def styles(self, batch: int) -> torch.Tensor:
        """Return the styles `[B, L, D]` of `batch` random latents, mixed with probability `style_mixing`."""
        z, _ = self._latents(batch)
        ws = self.generator.mapping(z)
        if torch.rand((), generator=self.random, dtype=torch.float32, device="cpu") >= self.config.style_mixing:
            return ws
        crossover = int(torch.randint(1, self.generator.num_ws, (), generator=self.random, device="cpu"))
        return mix_styles(ws, self.generator.mapping(self._latents(batch)[0]), crossover)

    def images_of(self, ws: torch.Tensor) -> torch.Tensor:
        """Return images `[B, 3, R, R]` of styles, with new noise."""
        return self.generator.synthesis(ws, "random")

    def draw(self, batch: int):
        return self.images_of(self.styles(batch)), None

    def discriminator_losses(self, real, fake, real_labels, fake_labels, real_logits):
        c, d = self.config.adv_aug, self.discriminator
        judge = [
            judged(lambda x=x: [d(x)], d.last_layers, d, c, direction)
            for x, direction in ((real, c.helping), (fake, 1))
        ]
        (of_real, moved_real), (of_fake, moved_fake) = judge
        real_logits += [logits.detach() for logits in of_real]
        loss = logistic_d_loss(of_real[0], of_fake[0])
        return {"d": c.mean(loss, logistic_d_loss(moved_real[0], moved_fake[0])) if c.acts else loss}

    def generator_losses(self):
        c, ws = self.config.adv_aug, self.styles(self.config.g_batch_size)

        def logits(x):
            return self.discriminator(self.augment(self.images_of(x)))

        clean = logistic_g_loss(logits(ws))
        if not c.acts:
            return {"g": clean}
        with undisturbed(self.generator, self.discriminator):
            shift = attack(ws, lambda x: c.helping * logits(x).sum(), c.steps, c.gamma)
            return {"g": c.mean(clean, logistic_g_loss(logits(ws + shift)))}

    def regularise_discriminator(self, pictures, draws, number):
        c = self.config
        if not c.r1_weight or number % c.r1_every:
            return {}
        # the gradient is that of the pictures: their augmentation lies inside (arXiv 2006.06676, 2006.10738)
        penalty = r1_penalty(lambda x: self.discriminator(self.augment(x, draws)), pictures, c.r1_weight)
        return self._update("discriminator", self.d_optimizer, {"r1": c.r1_every * penalty})

    def regularise_generator(self):
        c = self.config
        if not c.path_length_weight or self.step % c.path_length_every:
            return {}
        ws = self.styles(max(1, c.g_batch_size // 2))  # half the batch, as published
        penalty = self.path_length(self.images_of(ws), ws, self.random)
        weight = c.path_length_every * c.path_length_weight
        return self._update("generator", self.optimizer, {"path_length": weight * penalty})

    def _parts(self) -> dict:
        return {**super()._parts(), "path_length": self.path_length}

    @property
    @torch.no_grad()
    def result(self) -> FewShotGAN:
        """The networks as a base, with the mean w that truncation needs."""
        base = super().result
        base.generator.mapping.w_avg.copy_(latent_statistics(base.generator)[0])
        return base
