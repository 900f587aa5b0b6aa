"""The training loop of few-shot adaptation: data, steps, logging, sample grids, checkpoints and exact resume.

Only the adapter's factors and the objective's discriminator side are trained; the generator is never written to.
Shape legend: B images, L `ws`, D `w_dim`, R resolution.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from ..adapters import Adapter, AdapterBank
from ..data.datasets import InfiniteBatches
from ..methods.adv_aug import attack, undisturbed
from ..methods.objective import Batch, Objective, Views
from ..methods.pair import Latents, Pair
from ..methods.statistics import CONTENT_LEVELS
from ..models.labels import refuse_classes
from ..models.network import evaluating
from ..utils.hashing import hash_tensor
from ..utils.ranges import COUNT, NOT_NEGATIVE, Range, check_numbers
from .augment import DiffAugment, FewShotAugment, random_zoom
from .checkpoints import load_checkpoint, save_checkpoint
from .launch import PRECISIONS
from .loop import RUN_RANGES, average_gradients, backward, take_steps
from .report import Report, reported

AUGMENTS = ("fewshot", "diffaugment", "flip", "none")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run; a resumed run must have the same, but for those in `MAY_CHANGE`.

    A resumed run with more `max_train_steps` goes on as a run of that length: what falls over the run, the learning
    rate, is from then on as far as its share of the new length says.

    Attributes:
        output_dir: adapter, checkpoints, samples, logs and `report.html`.
        max_train_steps: generator steps.
        train_batch_size: B, per process.
        learning_rate: of the factors (Adam).
        adam_beta1, adam_beta2: of both optimisers.
        lr_warmup_steps: linear warm-up.
        lr_decay_start, lr_final: the rate falls linearly from this share of the run to this share of itself.
        d_learning_rate: of the discriminator side, which learns nothing where `adversarial_weight` is 0.
        ema_decay: of the saved factors; 0 = none.
        truncation_psi: of the training latents.
        augment: "fewshot" (flip, shift, mild colour), a policy of DiffAugment such as "color,cutout" ("diffaugment":
            all of it), "flip" or "none".
        real_zoom: training images are enlarged by factors up to this; for looks framed more widely than the base.
        mixed_precision: "no" or "bf16" (the generator's features; losses stay fp32).
        checkpointing_steps, checkpoints_total_limit: how often and how many.
        sample_steps: sample grids every this many steps and at the end; 0 = none.
        seed: of everything random.
    """

    output_dir: str
    max_train_steps: int = 400
    train_batch_size: int = 4
    learning_rate: float = 5e-3
    adam_beta1: float = 0.0
    adam_beta2: float = 0.99
    lr_warmup_steps: int = 10
    lr_decay_start: float = 0.6
    lr_final: float = 0.15
    d_learning_rate: float = 1e-3
    ema_decay: float = 0.97
    truncation_psi: float = 0.7
    augment: str = "fewshot"
    real_zoom: float = 1.0
    mixed_precision: str = "no"
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    sample_steps: int = 100
    seed: int = 0

    MAY_CHANGE = ("output_dir", "checkpointing_steps", "checkpoints_total_limit", "sample_steps")
    MAY_GROW = ("max_train_steps",)  # not below what is done
    RANGES = RUN_RANGES | {
        "train_batch_size": COUNT,
        "lr_warmup_steps": NOT_NEGATIVE,
        "lr_decay_start": NOT_NEGATIVE,
        "lr_final": NOT_NEGATIVE,
        "real_zoom": Range(1, 4, example="1 (none) or 1.5"),
    }

    def __post_init__(self):
        check_numbers(self, self.RANGES)
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}; known: {', '.join(PRECISIONS)}")
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
    def policy(self) -> str | None:
        """DiffAugment's, None where images are augmented otherwise."""
        if self.augment == "diffaugment":
            return DiffAugment.EVERYTHING
        return None if self.augment in AUGMENTS else self.augment


class Trainer:
    """Trains `adapter` inside `generator` for `objective` on a few images.

    Args:
        generator: frozen base; its weights are bit-identical before and after.
        adapter: fresh adapter made for it, or a hypernetwork, which the objective lets act.
        objective: losses.
        images: uint8 `[K, 3, R, R]`, R the generator's resolution; None for an objective without images of its own.
        config: settings.
        accelerator: from Accelerate; several processes average their gradients.
    """

    def __init__(self, generator, adapter, objective: Objective, images, config, accelerator: Accelerator):
        if generator.has_styles:
            refuse_classes(generator, "few-shot training")
        if config.policy and objective.compares_views:
            raise ValueError(
                f"augment={config.augment!r} moves each image on its own, so content and structure terms cannot "
                "compare it with its source; use augment='fewshot', or content_weight=0 and structure_weight=0"
            )
        if config.mixed_precision != "no" and objective.uses_images and objective.config.adv_aug.acts:
            raise ValueError(
                f"adv_steps={objective.config.adv_steps} moves styles by less than {config.mixed_precision} tells "
                "apart; use mixed_precision='no'"
            )
        if config.augment != "none" and not objective.uses_images:
            raise ValueError(f"augment={config.augment!r}: this objective's pictures are not augmented; use 'none'")
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        # channels-last: a seventh less time per step on a CPU, and what GPUs prefer
        self.generator = generator.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        self.generator.train(not generator.has_styles)  # those draw the noise of a layer anew each time
        self.adapter = adapter.to(self.device).train().requires_grad_(True)
        self.ema = deepcopy(adapter).requires_grad_(False) if config.ema_decay else None
        self.objective = objective.to(self.device).train()
        self.bank = AdapterBank(self.generator)
        if isinstance(adapter, Adapter):
            self.bank.add("training", self.adapter)
            if self.ema is not None:
                self.bank.add("ema", self.ema)
            self.bank.activate({"training": 1.0})
        self.pair = Pair(generator, self.bank, config.truncation_psi, config.mixed_precision == "bf16")
        betas = (config.adam_beta1, config.adam_beta2)
        groups = [{"params": list(self.adapter.parameters()), "rate": 1.0}]
        if isinstance(adapter, Adapter):
            groups = self.adapter.parameter_groups(config.learning_rate)
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, betas=betas)
        judged = objective.uses_images and objective.config.adversarial_weight > 0
        self.d_parameters = [p for p in self.objective.parameters() if p.requires_grad and judged]
        self.d_optimizer = None
        if self.d_parameters:
            self.d_optimizer = torch.optim.Adam(self.d_parameters, lr=config.d_learning_rate, betas=betas)
        rank = accelerator.process_index
        self.batches = None
        if images is not None:
            self.batches = InfiniteBatches(images, config.train_batch_size, seed=config.seed + 7919 * rank)
        self.random = torch.Generator().manual_seed(config.seed + 104729 * rank + 1)
        if self.generator.training:
            torch.manual_seed(config.seed + 104729 * rank + 2)  # noise of layers
        self.step = 0
        self.folder = Path(config.output_dir)
        self.fewshot, self.diffaugment = FewShotAugment(), DiffAugment(config.policy or "")
        if config.augment == "flip":
            self.fewshot = FewShotAugment(translation=0.0)
        self.report = self._report(images)

    # ------------------------------------------------------------------ one step

    def augment(self, images: torch.Tensor) -> tuple[Views, dict | None]:
        """Augmented views of `images`, and the draw that repeats the geometry on an aligned batch."""
        kind = self.config.augment
        if kind == "none":
            return Views(images, images), None
        if self.config.policy:
            return Views(self.diffaugment(images, self.random), images), None
        draw = self.fewshot.sample(len(images), self.random)
        plain = self.fewshot.apply(images, draw, colour=False)
        return Views(plain if kind == "flip" else self.fewshot.apply(images, draw), plain), draw

    def train_step(self) -> dict[str, float]:
        """One discriminator and one generator step on the same generated images; returns the losses."""
        config, objective, step = self.config, self.objective, self.step
        logs, losses = {}, {}
        objective.prepare(self.adapter, step)
        if objective.uses_images:
            batch = self._batch()
            if self.d_parameters:
                losses = objective.discriminator_losses(batch.detach())
                self.d_optimizer.zero_grad(set_to_none=True)
                logs |= self._backward(losses)
                self._apply(self.d_optimizer, self.d_parameters)
            objective.requires_grad_(False)  # no weight gradients on the judge's side
            losses = objective.generator_losses(batch)
            if objective.config.adv_aug.acts:
                self._attack(batch, losses)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * config.learning_rate * self._rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        if losses:
            logs |= self._backward(losses)
        for losses in objective.regularisers(self.pair, config.train_batch_size, step, self.random):
            logs |= self._backward(losses)
        own = self.adapter.penalty(step) if isinstance(self.adapter, Adapter) else None
        if own is not None:
            logs |= self._backward({"adapter": own})
        self._apply(self.optimizer, list(self.adapter.parameters()))
        for parameter in self.d_parameters:
            parameter.requires_grad_(True)
        if self.ema is not None:
            self._update_ema()
        self.step += 1
        return logs

    def _batch(self) -> Batch:
        config, objective, step = self.config, self.objective, self.step
        latents = objective.draw(self.pair, config.train_batch_size, step, self.random)
        drawn = self.pair.adapted(latents)
        fake, draw = self.augment(drawn.images)
        real = next(self.batches)[0]
        if config.real_zoom > 1:
            real = random_zoom(real, config.real_zoom, self.random)
        real, _ = self.augment(real.to(self.device))
        batch = Batch(step, step / config.max_train_steps, self.random, latents, drawn, fake, real)
        batch.fake_features = objective.observe(fake.colour, objective.levels)
        with torch.no_grad():
            batch.real_features = objective.observe(real.colour, objective.levels)
            if objective.needs_source:
                batch.source = self.pair.source(latents)
            if objective.compares_views:
                source = batch.source.images
                batch.source_view = source if draw is None else self.fewshot.apply(source, draw, colour=False)
                if objective.config.content_weight:
                    batch.source_features = objective.observe(batch.source_view, CONTENT_LEVELS)
        return batch

    def _attack(self, batch: Batch, losses: dict[str, torch.Tensor]) -> None:
        """AdvAug's generator side: add the adversarial loss of moved styles or maps, weighted with the clean one."""
        objective, c = self.objective, self.objective.config.adv_aug

        def loss(x):
            view, _ = self.augment(self.pair.body(x, batch.drawn))
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

    def _backward(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        return backward(losses, self.step, self.folder, self.config.learning_rate)

    def _apply(self, optimizer, parameters) -> None:
        average_gradients(self.accelerator, parameters)
        optimizer.step()

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for average, value in zip(self.ema.parameters(), self.adapter.parameters(), strict=True):
            average.lerp_(value, 1 - decay)

    # ------------------------------------------------------------------ the run

    @property
    def result(self) -> Adapter:
        """The adapter to keep: the average of the factors, or the factors themselves where there is none."""
        return self.adapter if self.ema is None else self.ema

    @reported
    def train(
        self,
        stop_after: int | None = None,
        on_step: Callable[["Trainer", dict[str, float]], None] | None = None,
        finish: Callable[[Adapter], Adapter] | None = None,
    ) -> Adapter:
        """Run from the last checkpoint, if there is one, to `max_train_steps` and write the adapter.

        Args:
            stop_after: stop early at this step without finishing (as a kill would, for tests).
            on_step: called after each step with this trainer and the step's losses. What it raises ends the run as a
                kill would: the same settings go on from the last checkpoint.
            finish: called by every process with the trained adapter; writes what else belongs to it, before the page
                says that the run is finished, and returns what to keep.

        Returns:
            The trained adapter, or what `finish` made of it.

        Raises:
            TrainingDiverged: a loss is not finite.
            ValueError: the folder holds a run with other settings or with more steps.
            FolderInUse: another run is at work in the folder.
            FileNotFoundError: somebody removed the folder meanwhile.
            Interrupted: inside `interruptible`, a signal came; the steps that were done are kept.
        """
        main, config = self.accelerator.is_main_process, self.config
        self._resume()
        last = self.step == config.max_train_steps  # then what was written last may not be there
        if main and config.sample_steps and (self.step == 0 or (last and self.report.lacks_samples(self.step))):
            self._samples()
        self.report.begin(self.step)
        take_steps(self, "adapting", stop_after, on_step)
        result = self.result
        if self.step < config.max_train_steps:
            self.report.end("stopped")
        else:
            result.round_to_half()  # half the bytes, and what is returned is what is stored
            if main:
                self.report.there()
                result.save_pretrained(self.folder)
                self.report_saved(result)
            if finish is not None:
                result = finish(result)
            self.report.end("finished")
        self.accelerator.wait_for_everyone()
        return result

    def _checkpoint(self) -> None:
        state = {
            "adapter": self.adapter.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "d_optimizer": self.d_optimizer and self.d_optimizer.state_dict(),
            "batches": self.batches and self.batches.state_dict(),
            "random": self.random.get_state(),
            "noise": torch.get_rng_state() if self.generator.training else None,
        }
        write, keep = self.result.save_pretrained, self.config.checkpoints_total_limit
        save_checkpoint(self.folder, self.step, state, self._settings(), self.accelerator, keep, write)

    def _settings(self) -> dict:
        """All that a resumed run must share with its beginning: settings, objective, adapter and images."""
        skipped = ("training", "base_model_name_or_path", "target_modules")
        adapter = {k: v for k, v in self.adapter.config.items() if k not in skipped and not k.startswith("_")}
        adapter = {"adapter_type": self.adapter.adapter_type, **adapter, "num_values": self.adapter.num_values()}
        if isinstance(self.adapter, Adapter):  # a hypernetwork's are batch statistics
            adapter |= {name: hash_tensor(fixed) for name, fixed in self.adapter.named_buffers()}
        settings = {**asdict(self.config), **self.objective.settings(), **adapter}
        if (self.adapter.config.get("training") or {}).get("scratch"):
            settings["scratch"] = True
        if self.batches is not None:
            settings["images"] = hash_tensor(self.batches.images)
        return settings

    def _resume(self) -> None:
        c = self.config
        state = load_checkpoint(self.folder, self._settings(), self.accelerator, c.MAY_CHANGE + c.MAY_GROW)
        if state is None:
            return
        self.adapter.load_state_dict(state["adapter"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        for part in ("d_optimizer", "batches"):
            if getattr(self, part) is not None:
                getattr(self, part).load_state_dict(state[part])
        self.random.set_state(state["random"])
        if self.generator.training:
            torch.set_rng_state(state["noise"])
        self.step = state["step"]

    @torch.no_grad()
    def _samples(self, num: int = 8) -> None:
        """`samples/step-N.png`: source above adapted for the same latents, also to the trackers."""
        z = torch.randn(
            num,
            self.generator.z_dim,
            generator=torch.Generator().manual_seed(self.config.seed + 12345),
            dtype=torch.float32,
            device="cpu",
        )
        rows, acting = [], [self.bank.using({})]
        if isinstance(self.adapter, Adapter):
            acting.append(self.bank.using({"training" if self.ema is None else "ema": 1.0}))
        else:
            acting += [self.bank.using_vectors(deltas) for deltas in self.objective.examples()]
        for looking in acting:
            with looking, evaluating(self.generator):
                chunks = z.split(self.config.train_batch_size)
                rows.append(torch.cat([self.pair.adapted(Latents(chunk)).images.cpu() for chunk in chunks]))
        grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
        self.report.show(self.step, grid)

    # ------------------------------------------------------------------ its report

    def _report(self, images) -> Report:
        of, kind = self.adapter.config, getattr(self.adapter, "adapter_type", "hypernetwork")
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
        """Tell the report what is in the folder now."""
        kind = getattr(adapter, "adapter_type", "hypernetwork")
        self.report.facts["Adapter"] = f"{kind}, {self._size(adapter)}"
        self.report.saved("adapter_model*.safetensors", "diffusion_pytorch_model*.safetensors")
