"""The training loop of few-shot adaptation: data, steps, logging, sample grids, checkpoints and exact resume.

Only the adapter's factors and the objective's discriminator side are trained; the generator is never written to.
Shape legend: B images, L `ws`, D `w_dim`, R resolution.
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters import AdapterBank
from ..adapters.trainable import Trainable
from ..data.datasets import InfiniteBatches
from ..data.grids import SHEET_TILE
from ..data.images import reduced
from ..methods.adv_aug import attack, undisturbed
from ..methods.importance import FilterImportance
from ..methods.objective import Batch
from ..methods.pair import Latents, Pair
from ..methods.views import draw_corners, reduces
from ..models.labels import refuse_classes
from ..models.network import evaluating
from ..utils.hashing import hash_tensor
from ..utils.moving_average import MovingAverage
from ..utils.ranges import COUNT, NOT_NEGATIVE, Range, check_numbers
from .ada import ADA_RANGES, ADA_SETTINGS, Strength
from .augment import DiffAugment, random_zoom
from .augmenter import AUGMENTS, Augmenter, policy_of
from .estimate import generator_graph
from .launch import PRECISIONS
from .loop import RUN_RANGES, TrainingRun, average_gradients, backward
from .micro_batches import MicroBatches
from .report import Report

NOISES = ("const", "random")
VIEW_SETTINGS = ("view_size", "crops", "crop_weight")  # without effect on images up to `view_size`
IMPORTANCE_SETTINGS = ("keep_filters", "prune_filters", "importance_every")
GRAPH_BUDGET = 5 * 2**29  # bytes of activations that are kept of images drawn one by one


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run. A resumed run must have the same ones, except for `MAY_CHANGE` and `MAY_GROW`.

    A run may be resumed with more `max_train_steps`. Its learning rate then follows the schedule of the new length.

    Attributes:
        output_dir: adapter, checkpoints, samples, logs and `report.html`.
        max_train_steps: generator steps.
        train_batch_size: B, per process.
        micro_batch_size: number of images whose activations are in memory for the backward pass; the others are drawn
            twice. The gradients are the same up to rounding. 0: all up to 256 px and on GPUs; otherwise as many as
            take 2.5 GiB.
        learning_rate: of the factors (Adam).
        adam_beta1, adam_beta2: of both optimisers.
        lr_warmup_steps: linear warm-up.
        lr_decay_start, lr_final: the rate falls linearly from this share of the run to this share of itself.
        d_learning_rate: of the discriminator side, which learns nothing where `adversarial_weight` is 0.
        ema_decay: of the saved factors; 0 = none.
        truncation_psi: of the training latents.
        noise: "const" (the maps that the generator stores) or "random" (new ones for each picture, which adapted
            picture and source share).
        augment: "fewshot" (flip, shift, mild colour), "ada" (the same, each with a probability that follows the
            discriminator's overfitting, arXiv 2006.06676), a policy of DiffAugment such as "color,cutout"
            ("diffaugment": all of it), "flip" or "none".
        ada_target, ada_kimg, ada_every: of "ada": mean sign of the logits of training images that is aimed at,
            thousands of images in which the probability can rise from 0 to 1, and steps between its adjustments.
        real_zoom: training images are enlarged by factors up to this; for looks framed more widely than the base.
        mixed_precision: "no" or "bf16" (the generator's features; losses stay fp32).
        keep_filters: share of the filters of each convolution, the most important ones, that keep the base's weights
            (AdAM, RICK); for adapters `full` and `adafm`.
        prune_filters: share of them, the least important ones, that become zero by the end.
        importance_every: steps from one choice of these filters to the next.
        checkpointing_steps, checkpoints_total_limit: how often and how many.
        sample_steps: sample grids every this many steps and at the end; 0 = none.
        seed: of everything random.
    """

    output_dir: str
    max_train_steps: int = 400
    train_batch_size: int = 4
    micro_batch_size: int = 0
    learning_rate: float = 5e-3
    adam_beta1: float = 0.0
    adam_beta2: float = 0.99
    lr_warmup_steps: int = 10
    lr_decay_start: float = 0.6
    lr_final: float = 0.15
    d_learning_rate: float = 1e-3
    ema_decay: float = 0.97
    truncation_psi: float = 0.7
    noise: str = field(default="const", metadata={"choices": list(NOISES)})
    augment: str = "fewshot"
    ada_target: float = 0.6
    ada_kimg: float = 500.0
    ada_every: int = 4
    real_zoom: float = 1.0
    mixed_precision: str = "no"
    keep_filters: float = 0.0
    prune_filters: float = 0.0
    importance_every: int = 50
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    sample_steps: int = 100
    seed: int = 0

    MAY_CHANGE = ("output_dir", "checkpointing_steps", "checkpoints_total_limit", "sample_steps")
    MAY_GROW = ("max_train_steps",)  # at least the steps that are done
    RANGES = RUN_RANGES | {
        "train_batch_size": COUNT,
        "micro_batch_size": NOT_NEGATIVE,
        "lr_warmup_steps": NOT_NEGATIVE,
        "lr_decay_start": NOT_NEGATIVE,
        "lr_final": NOT_NEGATIVE,
        "real_zoom": Range(1, 4, example="1 (none) or 1.5"),
        "keep_filters": Range(0, 1, below=True, example="0 (none) or 0.5"),
        "prune_filters": Range(0, 1, below=True, example="0 (none) or 0.03"),
        "importance_every": COUNT,
        **ADA_RANGES,
    }

    def __post_init__(self):
        check_numbers(self, self.RANGES)
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}; known: {', '.join(PRECISIONS)}")
        if self.noise not in NOISES:
            raise ValueError(f"unknown noise {self.noise!r}; known: {', '.join(NOISES)}")
        if not self.augment.strip(" ,"):
            raise ValueError(f"augment={self.augment!r} names nothing; give 'none' for no augmentation")
        if self.augment not in AUGMENTS:
            try:
                DiffAugment(self.augment)
            except ValueError as error:
                raise ValueError(
                    f"unknown augment {self.augment!r}; known: {', '.join(AUGMENTS)}, or {error}"
                ) from None

    @property
    def chooses_filters(self) -> bool:
        """Whether filters are kept or pruned by their importance."""
        return self.keep_filters > 0 or self.prune_filters > 0


class Trainer(TrainingRun):
    """Train an adapter of a frozen generator on a few images.

    Args:
        generator: frozen base; its weights are bit-identical before and after.
        adapter: fresh adapter made for it, or a hypernetwork, which the objective lets act.
        objective: losses.
        images: uint8 `[K, 3, R, R]`, R the generator's resolution; None for an objective without images of its own.
        config: settings.
        accelerator: from Accelerate; several processes average their gradients.
    """

    name = "adapting"

    def __init__(self, generator, adapter: Trainable, objective: Any, images, config, accelerator: Accelerator):
        if generator.has_styles:
            refuse_classes(generator, "few-shot training")
        if policy_of(config.augment) and objective.compares_views:
            raise ValueError(
                f"augment={config.augment!r} moves each image on its own, so content, structure and dcl terms cannot "
                "compare it with its source; use augment='fewshot', or content_weight=0, structure_weight=0 and "
                "diversity='own'"
            )
        if config.mixed_precision != "no" and objective.uses_images and objective.config.adv_aug.acts:
            raise ValueError(
                f"adv_steps={objective.config.adv_steps} moves styles by less than {config.mixed_precision} tells "
                "apart; use mixed_precision='no'"
            )
        if config.augment != "none" and not objective.uses_images:
            raise ValueError(f"augment={config.augment!r}: this objective's pictures are not augmented; use 'none'")
        if config.micro_batch_size and not objective.uses_images:
            raise ValueError(
                f"micro_batch_size={config.micro_batch_size}: this objective has its own way to draw; leave it out"
            )
        super().__init__(config, accelerator)
        # channels-last takes a seventh less time per step on a CPU, and GPUs prefer it
        self.generator = generator.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        self.generator.train(not generator.has_styles)  # they draw new noise in each step
        self.adapter = adapter.to(self.device).train().requires_grad_(True)
        self.ema = deepcopy(adapter).requires_grad_(False) if config.ema_decay else None
        self.average = None
        if self.ema is not None:
            self.average = MovingAverage(self.adapter, self.ema, config.ema_decay, warmup=True)
        self.objective = objective.to(self.device).train()
        self.bank = AdapterBank(self.generator)
        self.adapter.attach(self.bank, "training")
        if self.ema is not None:
            self.ema.attach(self.bank, "ema")
        if "training" in self.bank.adapters:
            self.bank.activate({"training": 1.0})
        halved, fresh = config.mixed_precision == "bf16", config.noise == "random"
        self.pair = Pair(generator, self.bank, config.truncation_psi, halved, fresh)
        self.micro_batch_size = self.graphs_kept(config.train_batch_size)
        betas = (config.adam_beta1, config.adam_beta2)
        groups = self.adapter.parameter_groups(config.learning_rate)
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, betas=betas)
        self.importance = None
        if config.chooses_filters:
            choice = config.keep_filters, config.prune_filters, config.importance_every, config.max_train_steps
            self.importance = FilterImportance(self.adapter, self.generator, *choice)
        judged = objective.uses_images and objective.config.adversarial_weight > 0
        self.d_parameters = [p for p in self.objective.parameters() if p.requires_grad and judged]
        self.d_optimizer = None
        if config.augment == "ada" and not self.d_parameters:
            raise ValueError(
                "augment='ada' follows the discriminator, which does not learn here; use augment='fewshot'"
            )
        if self.d_parameters:
            self.d_optimizer = torch.optim.Adam(self.d_parameters, lr=config.d_learning_rate, betas=betas)
        rank = accelerator.process_index
        self.batches = None
        if images is not None:
            self.batches = InfiniteBatches(images, config.train_batch_size, seed=config.seed + 7919 * rank)
        self.random = torch.Generator().manual_seed(config.seed + 104729 * rank + 1)
        if self.generator.training:
            torch.manual_seed(config.seed + 104729 * rank + 2)  # seeds the noise of layers
        self.strength = Strength.of(config)
        self.augmenter = Augmenter(config.augment, self.strength, self.random)
        self.report = self._report(images)

    def graphs_kept(self, batch: int, micro_batch: int | None = None) -> int | None:
        """Return how many of `batch` images keep their activations for the backward pass.

        Args:
            batch: number of images.
            micro_batch: `micro_batch_size`, see `TrainingConfig`; None: that of the run.

        Returns:
            None if the batch is drawn at once; otherwise its images are drawn one by one.

        Raises:
            ValueError: the generator cannot draw the images of a batch one by one.
        """
        size = self.config.micro_batch_size if micro_batch is None else micro_batch
        if not self.generator.has_styles:
            if 0 < size < batch:
                raise ValueError(
                    f"micro_batch_size={size}: a {type(self.generator).__name__} normalises over the whole batch of "
                    f"{batch}; leave it out"
                )
            return None
        if self.pair.draws_at_once and not 0 < size < batch:
            return None
        if not self.objective.uses_images:
            return batch
        return min(batch, size or max(1, GRAPH_BUDGET // generator_graph(self.generator, 1)))

    # ------------------------------------------------------------------ one step

    def train_step(self) -> dict[str, float]:
        """Take a discriminator step and a generator step on the same generated images; return the losses."""
        config, objective, step = self.config, self.objective, self.step
        logs, losses, parts = {}, {}, None
        objective.prepare(self.adapter, step)
        if objective.uses_images:
            batch, parts = self._batch()
            if self.d_optimizer is not None:
                losses = objective.discriminator_losses(batch.detach())
                self.d_optimizer.zero_grad(set_to_none=True)
                logs |= self._backward(losses, "d_learning_rate")
                self._apply(self.d_optimizer, self.d_parameters)
                if self.strength is not None:
                    self.strength.update(batch.real_logits, len(batch.latents), self.accelerator)
                    logs["ada_p"] = self.strength.p
            objective.requires_grad_(False)  # the generator step needs no gradients of the discriminator's weights
            losses = objective.generator_losses(batch)
            if objective.config.adv_aug.acts:
                self._attack(batch, losses)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * config.learning_rate * self._rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        if losses:
            logs |= self._backward(losses)
            if parts is not None:
                parts.backward()
        for losses in objective.regularisers(self.pair, config.train_batch_size, step, self.random):
            logs |= self._backward(losses)
        if (penalty := self.adapter.penalty(step)) is not None:
            logs |= self._backward({"adapter": penalty})
        self._apply(self.optimizer, list(self.adapter.parameters()), self.importance)
        for parameter in self.d_parameters:
            parameter.requires_grad_(True)
        if self.average is not None:
            self.average.update(step)
        if self.importance is not None:
            self.importance.enforce(self.adapter)
            if self.ema is not None:
                self.importance.enforce(self.ema)
        self.step += 1
        return logs

    def _batch(self) -> tuple[Batch, MicroBatches | None]:
        """Return the images of this step, and how they were drawn; None if they were drawn at once."""
        config, objective, step = self.config, self.objective, self.step
        latents, parts = objective.draw(self.pair, config.train_batch_size, step, self.random), None
        latents = self.pair.with_noise(latents, self.random)
        if self.micro_batch_size is not None:
            parts = MicroBatches(self.pair, latents, self.micro_batch_size, objective.largest_map)
        drawn = self.pair.adapted(latents) if parts is None else parts.drawn
        size = objective.config.view_size
        fake, draw = self.augmenter.views(reduced(drawn.images, size))
        if self.batches is None:
            raise ValueError("this objective compares generated with real images; give the trainer images")
        pictures = next(self.batches)[0].to(self.device)
        if config.real_zoom > 1:  # at full size: crops are of the enlarged pictures, and views keep their detail
            pictures = random_zoom(pictures, config.real_zoom, self.random)
        real, real_draw = self.augmenter.views(reduced(pictures, size))
        batch = Batch(step, step / config.max_train_steps, self.random, latents, drawn, fake, real)
        if objective.needs_source:  # as every objective that compares views does
            batch.source = self.pair.source(latents, objective.largest_map)
        source = batch.source.images if objective.compares_views and batch.source is not None else None
        if source is not None:
            batch.source_view = self.augmenter.aligned(reduced(source, size), draw)
        self._observe(batch)
        if crops := objective.cropped(self.generator.resolution):
            corners = draw_corners(len(latents), crops, self.generator.resolution, size, self.random)
            pairs = (drawn.images, draw), (pictures, real_draw)
            views = [self.augmenter.crops(x, d, corners, size) for x, d in pairs]
            crops_only = {"source_view": None, "source_features": {}, "is_crop": True}
            batch.crops = replace(batch, fake=views[0], real=views[1], **crops_only)
            if source is not None:
                batch.crops.source_view = self.augmenter.crops(source, draw, corners, size).plain
            self._observe(batch.crops)
        return batch, parts

    def _observe(self, batch: Batch) -> None:
        """Fill in the feature maps of what `batch` shows."""
        objective = self.objective
        batch.fake_features = objective.observe(batch.fake.colour, objective.levels)
        with torch.no_grad():
            batch.real_features = objective.observe(batch.real.colour, objective.levels)
            if batch.source_view is not None and (levels := objective.source_levels):
                batch.source_features = objective.observe(batch.source_view, levels)

    def _attack(self, batch: Batch, losses: dict[str, torch.Tensor]) -> None:
        """Add AdvAug's generator loss: the adversarial loss of perturbed styles or feature maps."""
        objective, c = self.objective, self.objective.config.adv_aug

        def loss(x):
            view, _ = self.augmenter.views(reduced(self.pair.body(x, batch.drawn), objective.config.view_size))
            seen = objective.observe(view.colour, objective.levels)
            return objective.adversarial_loss(view, seen, batch.step)

        with undisturbed(objective):
            start = self.pair.stem(batch.drawn)
            shift = attack(start, lambda x: -c.helping * loss(x), c.steps, c.gamma)
            moved = objective.config.adversarial_weight * loss(start + shift)
        losses["g"] = losses["g"] / (1 + c.weight)
        losses["adv_aug"] = moved * c.weight / (1 + c.weight)

    def _rate(self, step: int) -> float:
        c, progress = self.config, step / max(1, self.config.max_train_steps)
        warmup = min(1.0, (step + 1) / max(1, c.lr_warmup_steps))
        if progress <= c.lr_decay_start or c.lr_decay_start >= 1:
            return warmup
        return warmup * (1 - (1 - c.lr_final) * (progress - c.lr_decay_start) / (1 - c.lr_decay_start))

    def _backward(self, losses: dict[str, torch.Tensor], rate: str = "learning_rate") -> dict[str, float]:
        return backward(losses, self.step, self.folder, getattr(self.config, rate), rate)

    def _apply(self, optimizer, parameters, importance: FilterImportance | None = None) -> None:
        average_gradients(self.accelerator, parameters)
        if importance is not None:
            importance.before_update(optimizer, self.step)
        optimizer.step()

    # ------------------------------------------------------------------ the run

    @property
    def result(self) -> Trainable:
        """The adapter to save: the moving average, or the adapter itself if there is none."""
        return self.adapter if self.ema is None else self.ema

    def before_write(self, result) -> None:
        if (training := result.config.get("training")) and self.config.max_train_steps != training["max_train_steps"]:
            result.register_to_config(training={**training, "max_train_steps": self.config.max_train_steps})
        result.round_to_half()  # halves the file, and makes the returned adapter equal to the stored one

    def write(self, result) -> None:
        result.save_pretrained(self.folder)
        self.report_saved(result)

    def write_beside_checkpoint(self):
        return self.result.save_pretrained

    def _lacks_samples(self, at_end: bool) -> bool:
        return self.step == 0 or super()._lacks_samples(at_end)

    def state(self) -> dict:
        return {
            "adapter": self.adapter.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "d_optimizer": self.d_optimizer and self.d_optimizer.state_dict(),
            "importance": self.importance and self.importance.state_dict(),
            "strength": self.strength and self.strength.state_dict(),
            "batches": self.batches and self.batches.state_dict(),
            "random": self.random.get_state(),
            "noise": torch.get_rng_state() if self.generator.training else None,
        }

    def load_state(self, state: dict) -> None:
        self.adapter.load_state_dict(state["adapter"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        for part in ("d_optimizer", "batches", "importance", "strength"):
            if getattr(self, part) is not None:
                getattr(self, part).load_state_dict(state[part])
        self.random.set_state(state["random"])
        if self.generator.training:
            torch.set_rng_state(state["noise"])

    def settings(self) -> dict:
        """Return what a resumed run must share with its beginning: settings, objective, adapter and images."""
        skipped = ("training", "base_model_name_or_path", "target_modules")
        adapter = {k: v for k, v in self.adapter.config.items() if k not in skipped and not k.startswith("_")}
        adapter = {"adapter_type": self.adapter.adapter_type, **adapter, "num_values": self.adapter.num_values()}
        adapter |= {name: hash_tensor(tensor) for name, tensor in self.adapter.fixed_tensors().items()}
        settings = {**asdict(self.config), **self.objective.settings(), **adapter}
        unused = ("micro_batch_size",) if self.micro_batch_size is None else ()
        unused += () if self.strength is not None else ADA_SETTINGS
        unused += () if self.config.noise != "const" else ("noise",)
        unused += () if self.config.chooses_filters else IMPORTANCE_SETTINGS  # runs of older versions have none
        if not reduces(self.objective.config, self.generator.resolution):
            unused += VIEW_SETTINGS
        settings = {name: value for name, value in settings.items() if name not in unused}
        training = self.adapter.config.get("training") or {}
        if training.get("scratch"):
            settings["scratch"] = True
        for name in ("start_from", "previous"):  # adapters that the run began with
            if known := training.get(f"{name}_sha256"):
                settings[name] = known
        if self.batches is not None:
            settings["images"] = hash_tensor(self.batches.images)
        return settings

    @torch.no_grad()
    def show_samples(self, num: int = 8) -> None:
        """Write `samples/step-N.png`, source above adapted pictures of the same latents, and log it."""
        random = torch.Generator().manual_seed(self.config.seed + 12345)
        z = torch.randn(num, self.generator.z_dim, generator=random, dtype=torch.float32, device="cpu")
        name, rows = "training" if self.ema is None else "ema", []
        for look in [self.bank.using({}), *self.objective.looks(self.bank, name)]:
            with look, evaluating(self.generator):
                chunks = z.split(self.config.train_batch_size)
                drawn = (self.pair.adapted(Latents(chunk)).images for chunk in chunks)
                rows.append(torch.cat([reduced(images, SHEET_TILE).cpu() for images in drawn]))
        self.report.show(self.step, rows)

    # ------------------------------------------------------------------ its report

    def _report(self, images) -> Report:
        of, kind = self.adapter.config, self.adapter.adapter_type
        base = of.base_model_name_or_path or "a base without a name"
        title = f"{of.get('method') or type(self.objective).__name__}: {kind} of {base}"
        steps = self.config.max_train_steps
        report = Report(self.folder, self.accelerator, steps, title, shared=self.generator.resolution)
        report.settings = asdict(self.config) | self.objective.settings() | (of.training or {})
        numbers = self.adapter.num_values()
        report.facts = {
            "Base": f"{base}, fingerprint {of.base_fingerprint}",
            "Adapter": f"{kind}, {self._size(self.adapter)}",
            "Saved": f"not yet; about {2 * numbers:,} bytes",  # in half precision
        }
        if images is not None:
            report.images, report.data = images, f"{len(images)} images"
        return report

    def _size(self, adapter) -> str:
        numbers, whole = adapter.num_values(), self.generator.num_parameters()
        return f"{numbers:,} numbers, {numbers / whole:.2%} of the generator's {whole:,}"

    def report_saved(self, adapter) -> None:
        """Show the saved files on the page of the run."""
        self.report.facts["Adapter"] = f"{adapter.adapter_type}, {self._size(adapter)}"
        self.report.saved("adapter_model*.safetensors", "diffusion_pytorch_model*.safetensors")
