"""The report of a training run: losses and sample grids go to trackers, to files and to one page, `report.html`.

The page is written at the start, at every sample and checkpoint, and at the end. `losses.jsonl` has one line per step;
a resumed run reads it to continue its curves. Only the main process writes files.
"""

import json
import os
import platform
import shlex
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property, wraps
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate import __version__ as accelerate_version
from PIL import Image

from ..data.grids import SHEET_TILE
from ..data.images import reduced, to_bytes
from ..utils.files import replace_file, replace_text
from ..utils.folder_lock import locked
from ..utils.numbered import numbered_paths
from ..version import __version__
from .page import render, thumbs

PAGE_NAME, LOSSES_NAME = "report.html", "losses.jsonl"


class TrainingDiverged(RuntimeError):
    """Raised when a loss is no longer finite. The last good checkpoint is on disk."""


def command() -> str:
    """Return the command line of this process, as one would type it again."""
    program, *rest = sys.orig_argv
    if rest and Path(rest[0]).name == "fewshot-gan":  # the console script: its interpreter comes first
        return shlex.join(["fewshot-gan", *rest[1:]])
    return shlex.join([Path(program).name, *rest])


def processes(accelerator: Accelerator) -> str:
    """Return the number of processes and their device in words, e.g. "2 processes on cpu, 1 thread of 4 cores each"."""
    count, device = accelerator.num_processes, accelerator.device
    words = f"{count} process{'es' if count > 1 else ''} on {device.type}"
    if device.type == "cuda":
        return f"{words} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{words}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} cores{' each' * (count > 1)}"


class Report:
    """The losses, sample grids and page of one run.

    A report with `rounds` has no losses of its own: its page compares the runs that these reports belong to.

    Args:
        folder: output folder of the run.
        accelerator: accelerator of the run; losses and pictures also go to its trackers.
        steps: number of training steps in all.
        title: what is trained, and by which method.
        tag: prefix of every name that is sent to trackers, e.g. "round-03/".
        shared: resolution of the pictures in the top row of each sample grid, which shows pictures of the source and
            so is the same in all grids; 0: there is no such row.

    Attributes:
        shared: height in pixels of the top row of the sample grids, whose pictures are at most 256 px; 0: see above.
        step: number of steps done; with `rounds`, the sum over them.
        state: None before `begin`, then "running", and in the end "finished", "stopped" or "diverged".
        message: why the run stopped or diverged.
        facts: name → text, about the base, the adapter and their sizes.
        settings: name → value of each setting.
        data: description of the training data, e.g. "10 images of data/ink".
        command: command line that started the run.
        images: training images, uint8 `[N, 3, R, R]`; the page shows the first of them.
        first_row: what the shared row of the sample grids shows.
        grid: what the sample grids show if they have no shared row.
        rounds: name → report of a run that is part of this one.
        part: what one of the rounds is called.
        parent: report that has this one among its rounds.
        curves: name of a loss → (steps, values); only the steps at which the loss was computed.
        seconds: duration of each step.
        there: raises FileNotFoundError if the locked folder was removed or replaced, see `folder_lock.locked`.
    """

    def __init__(
        self, folder, accelerator: Accelerator, steps: int, title: str = "training", tag: str = "", shared: int = 0
    ):
        self.folder, self.accelerator, self.steps = Path(folder), accelerator, steps
        self.title, self.tag, self.shared = title, tag, min(shared, SHEET_TILE)
        self.state: str | None = None
        self.message, self.data, self.command = "", "", command()
        self.facts: dict[str, str] = {}
        self.settings: dict = {}
        self.images: torch.Tensor | None = None
        self.first_row, self.part, self.grid = "the base", "round", "All grids show the same latents."
        self.rounds: dict[str, Report] = {}
        self.parent: Report | None = None
        self.curves: dict[str, tuple[array, array]] = {}
        self.seconds = array("d")
        self.there: Callable[[], None] = lambda: None
        self._step, self._clock = 0, time.perf_counter()

    # ------------------------------------------------------------------ the run

    @property
    def step(self) -> int:
        return sum(part.step for part in self.rounds.values()) if self.rounds else self._step

    @contextmanager
    def watched(self) -> Iterator["Report"]:
        """Lock the folder during the block. If the block raises, write the page with the reason.

        Raises:
            FolderInUse: another run uses the folder; its page is left as it is.
        """
        with locked(self.folder) if self._writes else nullcontext(self.there) as self.there:
            try:
                yield self
            except TrainingDiverged as error:
                self._fail("diverged", str(error))
                raise
            except BaseException as error:
                name = type(error).__name__
                message = str(error) if isinstance(error, SystemExit) else f"{name}: {error}"
                self._fail("stopped", "by hand" if isinstance(error, KeyboardInterrupt) else message)
                raise

    def begin(self, step: int = 0) -> None:
        """Start the run, or resume it at `step` with the curves up to there, and write the page."""
        self.state, self.message, self._step = "running", "", step
        if self.parent is not None and step < self.steps:  # a finished round is only looked up
            self.parent.state = "running"
        if self._writes:
            self.there()
            lines = self._read(step) if step else []
            replace_text(self.folder / LOSSES_NAME, "".join(f"{x}\n" for x in lines))
        self.write()

    def look_back(self) -> "Report":
        """Read the losses of a finished round for the page of its parent, and return the report; writes nothing."""
        self.state, self._step = "finished", self.steps
        self._read(self.steps)
        return self

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Log the losses of a step, whose duration is the time since the last call of `add` or `write`.

        Args:
            step: number of the step, from 1.
            losses: name → value.
        """
        now = time.perf_counter()
        row = {"step": step, "seconds": round(now - self._clock, 6), "losses": losses}
        self._clock = now
        self.there()
        self.accelerator.log({f"{self.tag}{name}": value for name, value in losses.items()}, step=step)
        self._step = step
        if self._writes:
            self._keep(row)
            with (self.folder / LOSSES_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def show(self, step: int, rows: Iterable[torch.Tensor]) -> None:
        """Write a sample grid to `samples/step-N.png` and send it to TensorBoard.

        Args:
            step: number of the step.
            rows: pictures of each row, `[N, 3, R, R]` with values −1 to 1. Pictures above 256 px are reduced to 256 px.
        """
        self.there()
        grid = torch.cat([torch.cat(list(reduced(row, SHEET_TILE)), 2) for row in rows], 1)  # [3, H, W]
        picture = to_bytes(grid.cpu()).permute(1, 2, 0).numpy()
        replace_file(self._samples_of(step), Image.fromarray(picture).save)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(f"{self.tag}samples", picture, step, dataformats="HWC")

    def lacks_samples(self, step: int) -> bool:
        """Return whether the sample grid of `step` is missing."""
        return not self._samples_of(step).is_file()

    def saved(self, *patterns: str) -> None:
        """List the files in the run's folder that match the glob patterns, with their sizes, on the page."""
        files = [file for pattern in patterns for file in sorted(self.folder.glob(pattern))]
        named = (f"{file.relative_to(self.folder).as_posix()}: {file.stat().st_size:,} bytes" for file in files)
        self.facts["Saved"] = ", ".join(named)

    def end(self, state: str, message: str = "") -> None:
        """Write the page for the last time.

        A run that never began writes nothing unless it finished: the page in the folder may be of another run.
        """
        if self.state is not None or state == "finished":
            self.state, self.message = state, message
            self.write()

    def write(self) -> None:
        """Replace `report.html` atomically, and the parent's page too once the parent has begun."""
        if self._writes:
            self.there()
            text = render(self)
            replace_text(self.folder / PAGE_NAME, text)
            if self.parent is not None and self.parent.state is not None:
                self.parent.write()
        self._clock = time.perf_counter()

    # ------------------------------------------------------------------ what the page shows

    def grids(self) -> list[tuple[int, Path]]:
        """Return step and file of each sample grid up to the current step."""
        files = numbered_paths(self.folder / "samples", "step-", ".png")
        return [(step, file) for step, file in files.items() if step <= self.step]

    def forget_samples(self, step: int) -> None:
        """Remove sample grids of an earlier run in the folder: those after `step`, or all if this run begins."""
        for number, file in numbered_paths(self.folder / "samples", "step-", ".png").items():
            if number > step or not step:
                file.unlink(missing_ok=True)

    @cached_property
    def thumbs(self) -> list[str]:
        """The first training images as data URIs."""
        return [] if self.images is None else thumbs(self.images)

    def versions(self) -> dict[str, str]:
        """Return name → version of the packages used, and the device."""
        return {
            "fewshot_gan": __version__,
            "torch": torch.__version__,
            "accelerate": accelerate_version,
            "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
            "Device": processes(self.accelerator),
        }

    # ------------------------------------------------------------------ inside

    @property
    def _writes(self) -> bool:
        return self.accelerator.is_main_process

    def _samples_of(self, step: int) -> Path:
        return self.folder / "samples" / f"step-{step:06d}.png"

    def _fail(self, state: str, message: str) -> None:
        with suppress(OSError):  # on a full disk, the run's own error matters more
            self.end(state, message)

    def _read(self, last: int) -> list[str]:
        """Read `losses.jsonl` up to the step `last` into the curves, and return the lines read."""
        path, lines = self.folder / LOSSES_NAME, []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # the process was killed while writing this line
                break
            if row["step"] <= last:
                self._keep(row)
                lines.append(line)
        return lines

    def _keep(self, row: dict) -> None:
        self.seconds.append(row["seconds"])
        for name, value in row["losses"].items():
            steps, values = self.curves.setdefault(name, (array("q"), array("d")))
            steps.append(row["step"])
            values.append(value)


def reported(train):
    """Decorate the `train` method of a class with a `report`: lock the folder, and write errors to the page."""

    @wraps(train)
    def run(self, *args, **kwargs):
        with self.report.watched():
            return train(self, *args, **kwargs)

    return run
