"""Training of whole GANs on limited data: G and D from given weights, dense or sparse.

Shape legend: B images, R resolution.
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator

from ..adapters import fingerprint
from ..adapters.ticket import sparsity_of
from ..data.datasets import InfiniteBatches
from ..methods.adv_aug import AdvAugConfig, discriminator_loss, generator_loss, undisturbed
from ..methods.lottery import Masks, SparseWeights, distillation_loss
from ..models.network import evaluating
from ..pipeline import FewShotGAN
from ..utils.hashing import hash_tensor
from ..utils.moving_average import MovingAverage
from ..utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, check_numbers
from .ada import ADA_RANGES, ADA_SETTINGS, Strength, gated_policy
from .augment import DiffAugment
from .loop import RUN_RANGES, TrainingRun, average_gradients, backward
from .report import Report

SAMPLES, COLUMNS = 64, 16
AUGMENTS = ("fixed", "ada")


@dataclass(frozen=True)
class LimitedConfig:
    """Settings of a run; the defaults are those of SNGAN. A resumed run must have the same, except for `MAY_CHANGE`.

    Attributes:
        output_dir: base, checkpoints, samples, logs and `report.html`.
        max_train_steps: generator steps.
        d_steps: discriminator steps per generator step.
        d_batch_size, g_batch_size: B of either, per process.
        learning_rate, d_learning_rate: of generator and discriminator (Adam, constant).
        adam_beta1, adam_beta2, adam_epsilon: of both.
        ema_decay: of the saved generator; 0 = none.
        ema_start: before this step the average is the generator itself.
        diffaugment: policy of DiffAugment (arXiv 2006.10738), e.g. "color,translation,cutout"; "" = none.
        augment: "fixed" makes every change of that policy, "ada" each with a probability that follows the
            discriminator's overfitting (ADA, arXiv 2006.06676); without a policy all changes of DiffAugment.
        ada_target, ada_kimg, ada_every: of "ada": mean sign of the logits of training images that is aimed at,
            thousands of images in which the probability can rise from 0 to 1, and steps between its adjustments.
        flip: mirror half of the real images.
        adv_steps, adv_gamma, adv_direction, adv_weight: AdvAug, see `AdvAugConfig`.
        distillation_weight: of the dense teacher's logits, where there is a teacher.
        checkpointing_steps, checkpoints_total_limit: how often and how many.
        sample_steps: sample grids every this many steps and at the end; 0 = none.
        seed: of everything random.
    """

    output_dir: str
    max_train_steps: int = 50_000
    d_steps: int = 5
    d_batch_size: int = 64
    g_batch_size: int = 128
    learning_rate: float = 2e-4
    d_learning_rate: float = 2e-4
    adam_beta1: float = 0.0
    adam_beta2: float = 0.9
    adam_epsilon: float = 1e-8
    ema_decay: float = 0.999
    ema_start: int = 0
    diffaugment: str = ""
    augment: str = field(default="fixed", metadata={"choices": list(AUGMENTS)})
    ada_target: float = 0.6
    ada_kimg: float = 500.0
    ada_every: int = 4
    flip: bool = False
    adv_steps: int = 0
    adv_gamma: float = 0.01
    adv_direction: str = "paper"
    adv_weight: float = 1.0
    distillation_weight: float = 0.0
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int = 1
    sample_steps: int = 1000
    seed: int = 0

    MAY_CHANGE = ("output_dir", "checkpointing_steps", "checkpoints_total_limit", "sample_steps")
    MAY_GROW = ("max_train_steps",)  # at least the steps that are done
    RANGES = RUN_RANGES | {
        **dict.fromkeys(("d_steps", "d_batch_size", "g_batch_size"), COUNT),
        **dict.fromkeys(("ema_start", "adv_steps", "adv_gamma"), NOT_NEGATIVE),
        "adam_epsilon": POSITIVE,
        **ADA_RANGES,
    }

    def __post_init__(self):
        check_numbers(self, self.RANGES)
        DiffAugment(self.diffaugment)
        if self.augment not in AUGMENTS:
            raise ValueError(f"unknown augment {self.augment!r}; known: {', '.join(AUGMENTS)}")
        self.adv_aug  # noqa: B018  checks its values

    @property
    def adv_aug(self) -> AdvAugConfig:
        return AdvAugConfig.of(self)


class LimitedTrainer(TrainingRun):
    """Train a generator against a discriminator with the hinge loss.

    Each process has its own batch statistics; those of the first are saved.

    Args:
        generator, discriminator: a `PlainGenerator` and a `PlainDiscriminator`; trained in place.
        images: uint8 `[N, 3, R, R]`.
        config: settings.
        accelerator: from Accelerate; several processes average their gradients.
        labels: int64 `[N]` of class-conditional networks; a single class needs none.
        masks: "generator" and perhaps "discriminator" → masks, see `methods.lottery`.
        teacher: trained dense discriminator whose logits are distilled.
        tag: in front of every name that trackers are told, e.g. "round-03/".

    Raises:
        ValueError: images or labels do not fit the networks, or masks belong to others.
    """

    def __init__(
        self,
        generator,
        discriminator,
        images: torch.Tensor,
        config: LimitedConfig,
        accelerator: Accelerator,
        labels: torch.Tensor | None = None,
        masks: dict[str, Masks] | None = None,
        teacher=None,
        tag: str = "",
    ):
        classes = generator.num_classes
        if classes == 1 and labels is None:
            labels = torch.zeros(len(images), dtype=torch.long, device="cpu")
        if images.shape[-1] != generator.resolution or generator.resolution != discriminator.resolution:
            raise ValueError(
                f"images of {images.shape[-1]} px, a generator of {generator.resolution} and a discriminator of "
                f"{discriminator.resolution}: all three must agree"
            )
        if (classes is None) != (labels is None) or classes != discriminator.num_classes:
            raise ValueError(
                f"a generator of {classes or 'no'} classes and a discriminator of "
                f"{discriminator.num_classes or 'no'}, with{'out' if labels is None else ''} labels: these must agree"
            )
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels go up to {int(labels.max())}, but the networks have {classes} classes")
        if config.distillation_weight and teacher is None:
            raise ValueError(f"distillation_weight={config.distillation_weight} needs a teacher discriminator")
        super().__init__(config, accelerator)
        # channels-last takes two thirds of the time per step on a CPU
        trained = (x.to(self.device, memory_format=torch.channels_last).train() for x in (generator, discriminator))
        self.generator, self.discriminator = (network.requires_grad_(True) for network in trained)
        self.teacher = None if teacher is None else teacher.to(self.device).eval().requires_grad_(False)
        self.masks = masks or {}
        self.start = {"theta_g": fingerprint(self.generator), "theta_d": fingerprint(self.discriminator)}
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.sparse = {name: SparseWeights(networks[name], of) for name, of in self.masks.items()}
        self.average = deepcopy(self.generator).requires_grad_(False).eval()
        self.ema = MovingAverage(self.generator, self.average, config.ema_decay, config.ema_start)
        common = {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}
        self.optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate, **common)
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), config.d_learning_rate, **common)
        rank = accelerator.process_index
        self.labels = labels
        self.batches = InfiniteBatches(images, config.d_batch_size, seed=config.seed + 7919 * rank)
        self.random = torch.Generator().manual_seed(config.seed + 104729 * rank + 1)
        torch.manual_seed(config.seed + 104729 * rank + 2)  # seeds the noise of layers
        self.strength = Strength.of(config)
        self.diffaugment = DiffAugment(config.diffaugment or (DiffAugment.EVERYTHING if self.strength else ""))
        self.report = self._report(tag)

    # ------------------------------------------------------------------ one step

    def augment(self, images: torch.Tensor, random: torch.Generator | None = None) -> torch.Tensor:
        """Return augmented `images` `[B, 3, R, R]`.

        Args:
            images: of either network.
            random: CPU generator of the draws; None: that of the run.
        """
        random = self.random if random is None else random
        if self.strength is None:
            return self.diffaugment(images, random)
        return gated_policy(self.diffaugment, images, self.strength.p, random)

    def _latents(self, batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        z = torch.randn(batch, self.generator.z_dim, generator=self.random, dtype=torch.float32, device="cpu").to(
            self.device
        )
        if self.labels is None:
            return z, None
        return z, torch.randint(self.generator.num_classes, (batch,), generator=self.random, device="cpu").to(
            self.device
        )

    def train_step(self) -> dict[str, float]:
        """Take `d_steps` discriminator steps and a generator step; return the losses of the last ones."""
        c, logs = self.config, {}
        for number in range(self.step * c.d_steps, (self.step + 1) * c.d_steps):
            real, rows = next(self.batches)
            real_labels = None if self.labels is None else self.labels[rows].to(self.device)
            if c.flip:
                mirrored = torch.rand(len(real), generator=self.random, dtype=torch.float32, device="cpu") < 0.5
                real = torch.where(mirrored[:, None, None, None], real.flip(3), real)
            with torch.no_grad():
                fake, fake_labels = self.draw(c.d_batch_size)
            pictures, draws = real.to(self.device), self.random.clone_state()
            real, fake, real_logits = self.augment(pictures), self.augment(fake), []
            losses = self.discriminator_losses(real, fake, real_labels, fake_labels, real_logits)
            if c.distillation_weight:
                losses["distillation"] = c.distillation_weight * self._distil(real, fake, real_labels, fake_labels)
            logs = self._update("discriminator", self.d_optimizer, losses)
            logs |= self.regularise_discriminator(pictures, draws, number)
            if self.strength is not None:
                self.strength.update(real_logits, len(real), self.accelerator)
                logs["ada_p"] = self.strength.p
        self.discriminator.requires_grad_(False)  # the generator step needs no gradients of its weights
        logs |= self._update("generator", self.optimizer, self.generator_losses())
        self.discriminator.requires_grad_(True)
        logs |= self.regularise_generator()
        self.ema.update(self.step)
        self.step += 1
        return logs

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `batch` generated images and their class labels."""
        z, labels = self._latents(batch)
        return self.generator(z, labels), labels

    def discriminator_losses(
        self, real: torch.Tensor, fake: torch.Tensor, real_labels, fake_labels, real_logits: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a discriminator step by name; adds the logits of `real` to `real_logits`."""
        labels = real_labels, fake_labels
        loss = discriminator_loss(self.discriminator, real, fake, self.config.adv_aug, *labels, real_logits)
        return {"d": loss}

    def generator_losses(self) -> dict[str, torch.Tensor]:
        """Return the losses of a generator step by name."""
        z, labels = self._latents(self.config.g_batch_size)
        c = self.config.adv_aug
        return {"g": generator_loss(self.generator, self.discriminator, z, self.augment, c, labels)}

    def regularise_discriminator(self, pictures: torch.Tensor, draws: torch.Generator, number: int) -> dict[str, float]:
        """Take a step of lazy regularisation, if it is time; return its losses.

        Args:
            pictures: training images `[B, 3, R, R]`, not augmented.
            draws: generator that augments them as the discriminator saw them.
            number: of the discriminator step, from 0.
        """
        return {}

    def regularise_generator(self) -> dict[str, float]:
        """Take a step of lazy regularisation, if it is time; return its losses."""
        return {}

    def _distil(self, real, fake, real_labels, fake_labels) -> torch.Tensor:
        labels = None if real_labels is None else torch.cat([real_labels, fake_labels])
        images = torch.cat([real, fake])
        if self.teacher is None:
            raise ValueError("distillation needs a teacher discriminator")
        with torch.no_grad():
            taught = self.teacher(images, labels)
        with undisturbed(self.discriminator):  # batch statistics already saw this batch
            return distillation_loss(self.discriminator(images, labels), taught)

    def _update(self, name: str, optimizer, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        rate = "d_learning_rate" if name == "discriminator" else "learning_rate"
        values = backward(losses, self.step, self.folder, getattr(self.config, rate), rate)
        average_gradients(self.accelerator, getattr(self, name).parameters())
        if sparse := self.sparse.get(name):
            sparse.mask_gradients()
        optimizer.step()
        if sparse:
            sparse.mask_weights()
        return values

    # ------------------------------------------------------------------ the run

    @property
    def result(self) -> FewShotGAN:
        """The networks as a base: the averaged generator and the discriminator."""
        usual = {"memory_format": torch.contiguous_format}  # the layout of loaded networks
        return FewShotGAN(*(deepcopy(x).eval().to(**usual) for x in (self.averaged, self.discriminator)))

    @property
    def averaged(self):
        """The moving average of the generator, or the generator itself if there is none."""
        return self.average if self.config.ema_decay else self.generator

    def write(self, result: FewShotGAN) -> None:
        result.save_pretrained(self.folder)
        self.report.saved("generator/*.safetensors", "discriminator/*.safetensors", "ticket*/*.safetensors")

    def _parts(self) -> dict:
        names = ("generator", "discriminator", "average", "optimizer", "d_optimizer", "batches")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        if self.strength is not None:
            state["strength"] = self.strength.state_dict()
        return state | {
            "random": self.random.get_state(),
            "torch": torch.get_rng_state(),
        }  # torch: noise of layers

    def load_state(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.strength is not None:
            self.strength.load_state_dict(state["strength"])
        self.random.set_state(state["random"])
        torch.set_rng_state(state["torch"])

    def settings(self) -> dict:
        """Return what a resumed run must share with its beginning."""
        masks = {name: [hash_tensor(m) for m in of.values()] for name, of in self.masks.items()}
        labels = None if self.labels is None else hash_tensor(self.labels)
        data = {"images": hash_tensor(self.batches.images), "labels": labels}
        taught = None if self.teacher is None else fingerprint(self.teacher)
        unused = () if self.strength is not None else ("augment", *ADA_SETTINGS)  # runs of older versions have none
        settings = {name: value for name, value in asdict(self.config).items() if name not in unused}
        return {**settings, **self.start, **data, "teacher": taught, "masks": masks}

    @torch.no_grad()
    def show_samples(self) -> None:
        """Write `samples/step-N.png`, always of the same latents and classes, and send it to the trackers."""
        random = torch.Generator().manual_seed(self.config.seed + 12345)
        z = torch.randn(SAMPLES, self.generator.z_dim, generator=random, dtype=torch.float32, device="cpu").to(
            self.device
        )
        labels = (
            None
            if self.labels is None
            else torch.arange(SAMPLES, device="cpu").to(self.device) % self.generator.num_classes
        )
        with evaluating(self.averaged) as network:
            images = network(z, class_labels=labels)
        self.report.show(self.step, images.split(COLUMNS))

    def _report(self, tag: str) -> Report:
        g, d = self.generator, self.discriminator
        title = f"{type(g).__name__} against {type(d).__name__}, from {len(self.batches.images)} images"
        report = Report(self.folder, self.accelerator, self.config.max_train_steps, title, tag)
        report.settings = asdict(self.config)
        report.facts = {
            "Start": f"generator {self.start['theta_g']}, discriminator {self.start['theta_d']} (fingerprints)",
            "Generator": f"{g.num_parameters():,} numbers, {g.resolution} px",
            "Discriminator": f"{d.num_parameters():,} numbers",
            "Pruned": ", ".join(f"{name} {sparsity_of(of):.2%}" for name, of in self.masks.items()) or "nothing",
            "Saved": "not yet",
        }
        report.images, report.data = self.batches.images, f"{len(self.batches.images)} images"
        return report
