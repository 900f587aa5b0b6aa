"""The loop of every training: steps, checkpoints, samples, exact resume, and an end by a signal."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..utils.ranges import COUNT, NOT_NEGATIVE, Range
from .checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from .interrupt import Interrupted, installed
from .report import Report, TrainingDiverged, reported

RUN_RANGES = {  # settings that every run has → allowed numbers
    **dict.fromkeys(("max_train_steps", "checkpointing_steps", "checkpoints_total_limit"), COUNT),
    **dict.fromkeys(("learning_rate", "d_learning_rate"), Range(0, above=True, example="0.001")),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(0, 1, below=True)),
    "ema_decay": Range(0, 1, below=True, example="0 (none) or 0.97"),
    "sample_steps": NOT_NEGATIVE,
}


class TrainingRun:
    """Base class of trainings: steps with checkpoints, sample pictures, a report and exact resume.

    Subclasses set `report` and implement `train_step`, `settings`, `state`, `load_state`, `show_samples`, `write` and
    `result`.

    Args:
        config: has `output_dir`, `max_train_steps`, `checkpointing_steps`, `checkpoints_total_limit`, `sample_steps`,
            `MAY_CHANGE` and `MAY_GROW`.
        accelerator: from Accelerate; several processes average their gradients.

    Attributes:
        step: steps that are done.
        keeps_length: whether a resumed run must have as many steps as before, because something was made of its end.
    """

    name = "training"  # label of the progress bar
    progress = True  # whether there is one
    report: Report

    def __init__(self, config, accelerator: Accelerator):
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.step, self.folder, self.keeps_length = 0, Path(config.output_dir), False

    def train_step(self) -> dict[str, float]:
        """Take one step; return the losses."""
        raise NotImplementedError

    def settings(self) -> dict:
        """Return what a resumed run must share with its beginning, as JSON values."""
        raise NotImplementedError

    def state(self) -> dict:
        """Return this process's part of a checkpoint."""
        raise NotImplementedError

    def load_state(self, state: dict) -> None:
        """Restore what `state` returned."""
        raise NotImplementedError

    def due(self) -> tuple[bool, bool]:
        """Return whether a checkpoint, and whether samples, are due after the step that was just taken."""
        config, last = self.config, self.step == self.config.max_train_steps
        keep = last or self.step % config.checkpointing_steps == 0
        return keep, bool(config.sample_steps) and (last or self.step % config.sample_steps == 0)

    def show_samples(self) -> None:
        """Draw sample pictures and hand them to the report."""
        raise NotImplementedError

    @property
    def result(self) -> Any:
        """What would be saved now."""
        raise NotImplementedError

    def write(self, result) -> None:
        """Write the trained `result` into the folder. Called in the main process only."""
        raise NotImplementedError

    def write_beside_checkpoint(self) -> Callable[[Path], None] | None:
        """Return a function that writes the result into the folder of a checkpoint; None: nothing is written."""
        return None

    @reported
    def train(
        self,
        stop_after: int | None = None,
        on_step: Callable[[Any, dict[str, float]], None] | None = None,
        finish: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Run from the last checkpoint, if there is one, to `max_train_steps` and write the result.

        Args:
            stop_after: stop early at this step without finishing (as a kill would, for tests).
            on_step: called after each step with this trainer and the step's losses. It may call `end_now`. What it
                raises ends the run as a kill would: the same settings go on from the last checkpoint.
            finish: called by every process with what was trained; writes what else belongs to it, before the page
                says that the run is finished, and returns what to keep.

        Returns:
            What was trained, or what `finish` made of it.

        Raises:
            TrainingDiverged: a loss is not finite.
            ValueError: the folder holds a run with other settings or with more steps.
            FolderInUse: another run is at work in the folder.
            FileNotFoundError: the folder was removed meanwhile.
            Interrupted: inside `interruptible`, a signal came; the steps that were done are kept.
        """
        main, total = self.accelerator.is_main_process, self.config.max_train_steps
        self._resume()
        if main:
            self.report.forget_samples(self.step)
        at_end = self.step == total  # a kill may have come before the last samples
        if main and self.config.sample_steps and self._lacks_samples(at_end):
            self.show_samples()
        self.report.begin(self.step)
        self._take_steps(stop_after, on_step)
        result = self.result
        if self.step < self.config.max_train_steps:
            self.report.end("stopped")
        else:
            if main:
                self.report.there()
            self.before_write(result)
            if main:
                self.write(result)
            if finish is not None:
                result = finish(result)
            self.report.end("finished")
        self.accelerator.wait_for_everyone()
        return result

    def end_now(self) -> None:
        """Make the step that was just taken the last one: the run finishes as if it had been planned so.

        Its folder can be resumed with more `max_train_steps`, as that of any finished run.
        """
        self.config = replace(self.config, max_train_steps=self.step)
        self.report.steps = self.step

    def _lacks_samples(self, at_end: bool) -> bool:
        return at_end and self.report.lacks_samples(self.step)

    def before_write(self, result) -> None:
        """Change the result before it is stored. Called in every process."""

    def _checkpoint(self) -> None:
        keep = self.config.checkpoints_total_limit
        beside = self.write_beside_checkpoint()
        save_checkpoint(self.folder, self.step, self.state(), self.settings(), self.accelerator, keep, beside)

    def last_state(self, except_for: tuple[str, ...] = ()) -> dict | None:
        """Return what the folder's last checkpoint has of this process; None: nothing was trained there.

        Args:
            except_for: settings that are not compared.

        Raises:
            ValueError: as of `train`.
        """
        may_change = self.config.MAY_CHANGE + (() if self.keeps_length else self.config.MAY_GROW) + except_for
        return load_checkpoint(self.folder, self.settings(), self.accelerator, may_change)

    def _resume(self) -> None:
        state = self.last_state()
        if state is not None:
            self.load_state(state)
            self.step = state["step"]

    def _take_steps(self, stop_after: int | None, on_step: Callable | None) -> None:
        """Take steps up to `max_train_steps`, and write checkpoints, samples and pages when they are due.

        Raises:
            Interrupted: SIGINT or SIGTERM came, see `interrupt`; the step at hand is done, and kept.
        """
        config, accelerator, report = self.config, self.accelerator, self.report
        main, total, kept_at = accelerator.is_main_process, config.max_train_steps, self.step
        end = total if stop_after is None else min(stop_after, total)
        bar = tqdm(total=total, initial=self.step, disable=not (main and self.progress), desc=self.name)
        with bar, asked_to_stop(accelerator) as asked:
            while self.step < end and not asked():
                logs = self.train_step()
                bar.update()
                bar.set_postfix({k: f"{v:.3f}" for k, v in logs.items()}, refresh=False)
                report.add(self.step, logs)
                kept, shown = self.due()
                if kept:
                    self._checkpoint()
                    kept_at = self.step
                if main and shown:
                    self.show_samples()
                if kept or shown:
                    report.write()
                if on_step is not None:
                    on_step(self, logs)
                if self.config.max_train_steps == self.step < total:  # by `end_now`
                    self._checkpoint()
                    if main and config.sample_steps and not shown:
                        self.show_samples()
                    break
            if number := asked():
                if self.step > kept_at:
                    self._checkpoint()
                if main:
                    where = f"step {self.step} of {total}"
                    print(f"stopped at {where}; the same command goes on from there", file=sys.stderr)
                accelerator.end_training()
                raise Interrupted(number)


@contextmanager
def asked_to_stop(accelerator: Accelerator) -> Iterator[Callable[[], int | None]]:
    """Defer the first SIGINT or SIGTERM: the yielded function returns its number, the same in all processes."""
    stop = installed()
    if stop is None:
        yield lambda: None
        return

    def asked() -> int | None:
        number = stop.number or 0
        if accelerator.num_processes > 1:  # a launcher signals them one after the other
            numbers: Any = accelerator.gather(torch.tensor([number], device=accelerator.device))
            number = int(numbers.max())
        return number or None

    stop.deferred = True
    try:
        yield asked
    finally:
        stop.deferred = False


def backward(
    losses: dict[str, torch.Tensor], step: int, folder: Path, rate: float, option: str = "learning_rate"
) -> dict[str, float]:
    """Differentiate the sum of `losses`, if there are any; return their values.

    Args:
        losses: scalars by name.
        step: number of the step, for the error message.
        folder: of the run's checkpoints.
        rate: learning rate of what these losses train.
        option: name of its setting.

    Raises:
        TrainingDiverged: one is not finite; nothing was differentiated.
    """
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            last = latest_checkpoint(folder)
            kept = f"the last good checkpoint is {last.name}" if last else "no checkpoint was written before it"
            raise TrainingDiverged(
                f"loss {name!r} became {value} at step {step}; {kept}; try a lower --{option} than {rate:g}"
            )
    if losses:
        total: Any = sum(losses.values())
        total.backward()
    return values


def average_gradients(accelerator: Accelerator, parameters) -> None:
    """Average gradients over all processes."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
