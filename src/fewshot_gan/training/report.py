"""What a run tells: losses and sample grids, to trackers, files, and one page that needs nothing else, `report.html`.

The page is written anew at the start, at every sample and checkpoint, and at the end; `losses.jsonl`, a line per step,
lets a resumed run go on with its curves. Only the main process writes.
"""

import json
import os
import platform
import shlex
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property, wraps
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate import __version__ as accelerate_version
from PIL import Image

from ..data.images import to_bytes
from ..utils.files import replace_file, replace_text
from ..utils.folder_lock import locked
from ..utils.numbered import numbered_paths
from ..version import __version__
from .page import render, thumbs

PAGE_NAME, LOSSES_NAME = "report.html", "losses.jsonl"


class TrainingDiverged(RuntimeError):
    """A loss stopped being finite; the last good checkpoint is on disk."""


def command() -> str:
    """What started this process, as one would type it again."""
    program, *rest = sys.orig_argv
    if rest and Path(rest[0]).name == "fewshot-gan":  # the console script, found by its interpreter
        return shlex.join(["fewshot-gan", *rest[1:]])
    return shlex.join([Path(program).name, *rest])


def processes(accelerator: Accelerator) -> str:
    """How many processes run, and on what, in words."""
    count, device = accelerator.num_processes, accelerator.device
    words = f"{count} process{'es' if count > 1 else ''} on {device.type}"
    if device.type == "cuda":
        return f"{words} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{words}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} cores{' each' * (count > 1)}"


class Report:
    """The losses, pictures and page of one run; or, with `rounds`, the page over the reports of several.

    Args:
        folder: of the run.
        accelerator: of the run; its trackers are told too.
        steps: how many there will be.
        title: what is trained, and how.
        tag: in front of every name that trackers are told, e.g. "round-03/".
        shared: height in pixels of what is the same in every sample grid, at its top: pictures of the source.

    Attributes:
        step: of the run; of several, their sum.
        state: None before `begin`, then "running", and in the end "finished", "stopped" or "diverged".
        message: why it was stopped or diverged.
        facts: name → text, of base, adapter and sizes.
        settings: name → value.
        data: what the run learns from, in a few words.
        command: that made it.
        images: its first images, uint8 `[N, 3, R, R]`.
        first_row: what is the same in every sample grid.
        grid: what a sample grid shows, where it has no such row.
        rounds: name → report of a run that is part of this one.
        part: what such a run is called.
        parent: report that this one is a round of.
        curves: loss → (steps, values), every step that had it.
        seconds: of each step.
        there: raises FileNotFoundError once the folder that is held was removed or replaced, see `folder_lock.locked`.
    """

    def __init__(
        self, folder, accelerator: Accelerator, steps: int, title: str = "training", tag: str = "", shared: int = 0
    ):
        self.folder, self.accelerator, self.steps = Path(folder), accelerator, steps
        self.title, self.tag, self.shared = title, tag, shared
        self.state: str | None = None
        self.message, self.data, self.command = "", "", command()
        self.facts: dict[str, str] = {}
        self.settings: dict = {}
        self.images: torch.Tensor | None = None
        self.first_row, self.part, self.grid = "the base", "round", "The same latents every time."
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
        """Hold the folder; however the block ends, the page says so.

        Raises:
            FolderInUse: another run is at work there; the page stays that run's.
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
        """Take up the curves that the run had at `step`, and write the page."""
        self.state, self.message, self._step = "running", "", step
        if self.parent is not None and step < self.steps:  # not to look at a round that is there
            self.parent.state = "running"
        if self._writes:
            self.there()
            lines = self._read(step) if step else []
            replace_text(self.folder / LOSSES_NAME, "".join(f"{x}\n" for x in lines))
        self.write()

    def look_back(self) -> "Report":
        """Show a run of `steps` that is over, on the page of several; writes nothing."""
        self.state, self._step = "finished", self.steps
        self._read(self.steps)
        return self

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Losses of a step, counted from 1, which took the time since the last call of this or `write`."""
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

    def show(self, step: int, grid: torch.Tensor) -> None:
        """Keep pictures `[3, H, W]` as `samples/step-N.png`, and show them to trackers."""
        self.there()
        picture = to_bytes(grid.cpu()).permute(1, 2, 0).numpy()
        replace_file(self._samples_of(step), Image.fromarray(picture).save)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(f"{self.tag}samples", picture, step, dataformats="HWC")

    def lacks_samples(self, step: int) -> bool:
        """Whether there is no sample grid of `step`."""
        return not self._samples_of(step).is_file()

    def saved(self, *patterns: str) -> None:
        """Name the files of the run's folder that hold what was learned, with their bytes."""
        files = [file for pattern in patterns for file in sorted(self.folder.glob(pattern))]
        named = (f"{file.relative_to(self.folder).as_posix()}: {file.stat().st_size:,} bytes" for file in files)
        self.facts["Saved"] = ", ".join(named)

    def end(self, state: str, message: str = "") -> None:
        """Write the page for the last time; of what never began nothing: the folder may hold another run's."""
        if self.state is not None or state == "finished":
            self.state, self.message = state, message
            self.write()

    def write(self) -> None:
        """`report.html`, whole or as it was."""
        if self._writes:
            self.there()
            text = render(self)
            replace_text(self.folder / PAGE_NAME, text)
            if self.parent is not None and self.parent.state is not None:
                self.parent.write()
        self._clock = time.perf_counter()

    # ------------------------------------------------------------------ what the page shows

    def grids(self) -> list[tuple[int, Path]]:
        """Steps and files of the sample grids so far."""
        found = numbered_paths(self.folder / "samples", "step-", ".png")
        return [(step, file) for step, file in found.items() if step <= self.step]

    @cached_property
    def thumbs(self) -> list[str]:
        """The first training images."""
        return [] if self.images is None else thumbs(self.images)

    def versions(self) -> dict[str, str]:
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
        with suppress(OSError):  # a full disk is what the run itself fails of
            self.end(state, message)

    def _read(self, last: int) -> list[str]:
        """Take up the steps to `last`; their lines."""
        path, lines = self.folder / LOSSES_NAME, []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # torn by a kill
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
    """`train` of something with a `report`, which says how it ended also where an error ends it."""

    @wraps(train)
    def run(self, *args, **kwargs):
        with self.report.watched():
            return train(self, *args, **kwargs)

    return run
