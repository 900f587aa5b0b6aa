"""The loop that every training shares: steps, what is due after each, and an end by a signal that loses none."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..utils.ranges import COUNT, NOT_NEGATIVE, Range
from .checkpoints import latest_checkpoint
from .interrupt import Interrupted, installed
from .report import TrainingDiverged

RUN_RANGES = {  # of the settings that every run has
    **dict.fromkeys(("max_train_steps", "checkpointing_steps", "checkpoints_total_limit"), COUNT),
    **dict.fromkeys(("learning_rate", "d_learning_rate"), Range(0, above=True, example="0.001")),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(0, 1, below=True)),
    "ema_decay": Range(0, 1, below=True, example="0 (none) or 0.97"),
    "sample_steps": NOT_NEGATIVE,
}


def take_steps(trainer, name: str, stop_after: int | None = None, on_step: Callable | None = None) -> None:
    """Steps to `max_train_steps`, with the checkpoints, samples and pages that are due.

    Args:
        trainer: has `config`, `accelerator`, `report`, the number `step` of steps that are done, and `train_step()`,
            `_checkpoint()`, `_samples()`.
        name: of what it does, for the progress bar.
        stop_after: stop early at this step, without a checkpoint.
        on_step: called after each step with the trainer and the step's losses.

    Raises:
        Interrupted: SIGINT or SIGTERM came, see `interrupt`; the step at hand is done, and kept.
    """
    config, accelerator, report = trainer.config, trainer.accelerator, trainer.report
    main, total, kept_at = accelerator.is_main_process, config.max_train_steps, trainer.step
    end = total if stop_after is None else min(stop_after, total)
    bar = tqdm(total=total, initial=trainer.step, disable=not main, desc=name)
    with bar, asked_to_stop(accelerator) as asked:
        while trainer.step < end and not asked():
            logs = trainer.train_step()
            bar.update()
            bar.set_postfix({k: f"{v:.3f}" for k, v in logs.items()}, refresh=False)
            report.add(trainer.step, logs)
            kept, shown = due(config, trainer.step)
            if kept:
                trainer._checkpoint()
                kept_at = trainer.step
            if main and shown:
                trainer._samples()
            if kept or shown:
                report.write()
            if on_step is not None:
                on_step(trainer, logs)
        if number := asked():
            if trainer.step > kept_at:
                trainer._checkpoint()
            if main:
                where = f"step {trainer.step} of {total}"
                print(f"stopped at {where}; the same command goes on from there", file=sys.stderr)
            accelerator.end_training()
            raise Interrupted(number)


@contextmanager
def asked_to_stop(accelerator: Accelerator) -> Iterator[Callable[[], int | None]]:
    """Inside, the first SIGINT or SIGTERM only is what the yielded function says, in all processes alike."""
    stop = installed()
    if stop is None:
        yield lambda: None
        return

    def asked() -> int | None:
        number = stop.number or 0
        if accelerator.num_processes > 1:  # a launcher may have told them one after the other
            number = int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
        return number or None

    stop.deferred = True
    try:
        yield asked
    finally:
        stop.deferred = False


def due(config, step: int) -> tuple[bool, bool]:
    """Whether a checkpoint and whether samples are due after this step: every so many, and at the end."""
    last = step == config.max_train_steps
    kept = last or step % config.checkpointing_steps == 0
    return kept, bool(config.sample_steps) and (last or step % config.sample_steps == 0)


def backward(losses: dict[str, torch.Tensor], step: int, folder: Path, learning_rate: float) -> dict[str, float]:
    """Differentiate the sum of `losses`; returns their values.

    Raises:
        TrainingDiverged: one is not finite; nothing was differentiated.
    """
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            last = latest_checkpoint(folder)
            kept = f"the last good checkpoint is {last.name}" if last else "no checkpoint was written before it"
            raise TrainingDiverged(
                f"loss {name!r} became {value} at step {step}; {kept}; try a lower --learning_rate than "
                f"{learning_rate:g}"
            )
    sum(losses.values()).backward()
    return values


def average_gradients(accelerator: Accelerator, parameters) -> None:
    """Over all processes."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
