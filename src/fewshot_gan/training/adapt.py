"""Adapt a base to about ten images by any of the methods; behind the scripts, `fewshot-gan adapt` and the demo."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters import Adapter, load_adapter
from ..adapters.trainable import Trainable
from ..catalogue import METHODS
from ..data.datasets import load_images, provenance
from ..data.images import to_floats
from ..hub import data_source, portable_name
from ..hub.cards import write_adapter_card
from ..pipeline import FewShotGAN
from ..utils.hashing import hash_tensors
from .checkpoints import PROJECTED, begun_config, latest_checkpoint, refuse_other_settings
from .command_line import parse
from .config import JUDGED, RunConfig
from .engine import Trainer, TrainingConfig
from .estimate import check_memory, describe, estimate
from .launch import command, holding, start, start_trackers


class Run:
    """The state of an adaptation that the hooks of a method see; implements `methods.method.Run`.

    Args:
        config: all settings.
        accelerator: from Accelerate.

    Raises:
        ValueError, OSError: bad data or base, each with one sentence.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator):
        self.settings, self.accelerator = config, accelerator
        self.device: torch.device = accelerator.device
        self.method, self.config, self.training = config.method, config.objective, config.training
        self.adapter_kind, self.preset, self.dry, self.quiet = config.adapter, config.preset, config.dry_run, False
        self.push_to_hub, self.folder = config.tracking.push_to_hub, Path(config.output_dir)
        self.base, self.pipe = config.base, FewShotGAN.from_pretrained(config.base)
        self.method.prepare_base(self)
        self._refuse_missing_discriminator()
        self.pictures: torch.Tensor | None = None  # uint8 [K, 3, R, R]
        self.images: torch.Tensor | None = None  # the same in [-1, 1]
        self.data = "" if config.data is None else data_source(config.data)
        if self.data:
            self.pictures = load_images(self.data, self.pipe.generator.resolution, self.method.least_images)
            self.images = to_floats(self.pictures).to(self.device)
        self.start: Any = load_adapter(config.start_from) if config.start_from else None
        self.record = self._record()

    def _refuse_missing_discriminator(self) -> None:
        """Refuse a base that lacks the discriminator which the losses start from, before minutes of preparations."""
        if getattr(self.config, "discriminator", None) == "source" and self.pipe.discriminator is None:
            raise ValueError(
                f"the losses of preset {self.preset!r} start from the base's own discriminator, and {self.base!r} has "
                "none; use a projected one (--preset few_images, or --discriminator projected of the scripts), or the "
                "folder of a base that has one"
            )

    def _record(self) -> dict:
        """Return what the adapter's config records of its training."""
        record = {**asdict(self.config), **asdict(self.training), "preset": self.preset}
        if self.pictures is None:
            record["text"] = self.method.options.text
        else:
            record |= {"num_images": len(self.pictures), **provenance(self.data)}
        record |= self.method.record(self)
        for name in ("output_dir", *(() if self.method.Objective.uses_images else JUDGED)):
            record.pop(name)
        previous = getattr(self.settings.adapter_options, "previous", None)
        begun = begun_config(self.folder).get("training") or {}
        for name, place in (("start_from", self.settings.start_from), ("previous", previous)):
            if place:
                record[name] = portable_name(place)
                if name not in begun or f"{name}_sha256" in begun:  # runs of older versions have no hash
                    adapter = self.start if name == "start_from" else Adapter.from_pretrained(place)
                    record[f"{name}_sha256"] = hash_tensors(adapter.state_dict())
        return record

    def print(self, text: str) -> None:
        if not self.quiet:
            self.accelerator.print(text)

    def new_adapter(self, **options) -> Any:
        settings = {"method": self.method.name, "training": self.record, "base_model_name_or_path": self.base}
        options = {**settings, **options}
        adapter: Any = self.settings.adapter_class.fresh(self.pipe.generator, self.settings.adapter_options, **options)
        if start := self.settings.start_from:
            copied = adapter.start_from(self.start)
            self.print(f"{copied} of {len(adapter.factors())} layers start from {start}")
        return adapter

    def main_process_first(self) -> AbstractContextManager:
        return self.accelerator.main_process_first()

    @property
    def shown(self) -> str:
        """Describe what the look is learned from."""
        return repr(self.method.options.text) if self.pictures is None else f"{len(self.pictures)} images"

    def trainer(self) -> Trainer:
        """Make the trainer of a new adapter."""
        adapter = self.method.prepare_adapter(self)
        objective = self.method.build_objective(self)
        whole = self.pipe.generator.num_parameters()
        self.print(
            f"{self.adapter_kind}: {adapter.num_values():,} numbers, {adapter.num_values() / whole:.2%} of the "
            f"generator's {whole:,}; {self.shown}; {self.training.max_train_steps} steps"
        )
        trainer = Trainer(self.pipe.generator, adapter, objective, self.pictures, self.training, self.accelerator)
        described = METHODS[self.method.name].described
        trainer.report.title = f"{described}: a {self.adapter_kind} adapter of {self.base}"
        trainer.report.data = (
            f"the words {self.method.options.text!r}"
            if self.pictures is None
            else f"{len(self.pictures)} images of {self.settings.data}"
        )
        return trainer


def run(config: RunConfig, on_step: Callable[[Trainer, dict[str, float]], None] | None = None) -> Trainable:
    """Train, write the adapter with its card, and push it if asked.

    Args:
        config: of `config.make_run`; of a dry run only an estimate is printed.
        on_step: of `Trainer.train`: to watch a run, or to end it.

    Returns:
        The trained adapter, or, of a dry run, the fresh one.

    Raises:
        ValueError, OSError, ImportError: bad data, base, packages or folder, each with one sentence.
        TrainingDiverged, Interrupted: as of `Trainer.train`.
    """
    tracking, training = config.tracking, config.training
    accelerator = start(
        config.output_dir,
        seed=training.seed,
        mixed_precision=training.mixed_precision,
        report_to="none" if config.dry_run else tracking.report_to,
        num_threads=tracking.num_threads,
    )
    if config.dry_run:
        trainer = Run(config, accelerator).trainer()
        accelerator.print(describe(trainer))
        return trainer.adapter
    with holding(config.output_dir, accelerator):
        if config.objective.needs_latents:
            rehearse(config, accelerator)
        return train(Run(config, accelerator), on_step)


def rehearse(config: RunConfig, accelerator: Accelerator) -> None:
    """Refuse what a run refuses before its pictures are projected, which takes minutes: with the mean w in their place.

    Raises:
        ValueError: as of `run`.
    """
    with torch.random.fork_rng():
        prepared = Run(config, accelerator)
        prepared.dry = prepared.quiet = True
        trainer = prepared.trainer()
        check_memory(trainer)
        if trainer.last_state(except_for=PROJECTED) is None:
            return
        begun = begun_config(prepared.folder).get("training") or {}
        now = {name: value for name, value in prepared.method.record(prepared).items() if name in begun}
        refuse_other_settings(prepared.folder, {name: begun[name] for name in now}, now)


def train(prepared: Run, on_step: Callable[[Trainer, dict[str, float]], None] | None = None) -> Trainable:
    """Train in a folder that is locked; see `run`."""
    accelerator, config, tracking = prepared.accelerator, prepared.settings, prepared.settings.tracking
    trainer = prepared.trainer()
    trainer.last_state()  # refuses a folder of other settings, before anything is written
    if latest_checkpoint(trainer.folder) is None:
        accelerator.print(f"expected: {estimate(trainer)}")
    else:
        check_memory(trainer)
    start_trackers(accelerator, prepared.method.name, tracking.report_to, config.flat())
    if accelerator.is_main_process:
        prepared.method.after_save(prepared)
    name, grid = prepared.folder.name, trainer.folder / "samples"

    def finish(trained: Trainable) -> Trainable:
        nonlocal grid
        stored = trained.finished()
        if stored is not trained:
            grid = None  # it was drawn before the adapter was compressed
            accelerator.print(f"compressed: {stored.num_values():,} of {trained.num_values():,} numbers")
            if accelerator.is_main_process:
                stored.save_pretrained(config.output_dir)
            trainer.report_saved(stored)
        if accelerator.is_main_process:
            write_adapter_card(stored, config.output_dir, name, grid=grid)
        return stored

    adapter: Any = trainer.train(on_step=on_step, finish=finish)
    if accelerator.device.type == "cuda":
        accelerator.print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    if accelerator.is_main_process and tracking.push_to_hub:
        adapter.push_to_hub(tracking.hub_model_id or name, grid=grid)
    accelerator.end_training()
    return adapter


def main(method: str, argv: list[str] | None = None) -> None:
    """Entry point of the scripts, see `launch.command`."""
    with command():
        run(parse(method, argv))


__all__ = ["Run", "TrainingConfig", "main", "run", "train"]
