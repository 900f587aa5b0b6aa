"""Background work of the demo: its progress, its pictures, and how it ends."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from PIL import Image

from ..utils.errors import explain, is_bug

logger = logging.getLogger(__name__)

Captioned = list[tuple[str, Image.Image]]  # captions and pictures
PATIENCE = 600.0  # seconds after which a job stops that nobody watches


class Stopped(Exception):
    """Raised inside a job whose visitor stopped it or left."""


class Job:
    """Background work that reports its progress and can be stopped between two steps.

    Args:
        kind: "photo", "look" or "film".
        steps: number of steps in all.
        done: number of steps that an earlier job has done.

    Attributes:
        done: number of steps done.
        began: number of steps that an earlier job has done.
        state: "waiting", "running", "done", "stopped" or "failed".
        pictures: captions and pictures to show now. The list is replaced, never changed.
        history: values of each loss so far, by its name.
        note: what the visitor may know of the way it works, in one sentence, or empty.
        error: why the job failed, in one sentence; empty unless `state` is "failed".
        watched: time at which somebody last watched the job, from `time.monotonic`.
    """

    def __init__(self, kind: str, steps: int, done: int = 0):
        self.kind, self.steps, self.done, self.state, self.error = kind, steps, done, "waiting", ""
        self.began = done
        self.note = ""
        self.pictures: Captioned = []
        self.history: dict[str, list[float]] = {}
        self.watched = time.monotonic()
        self._first_step: tuple[int, float] | None = None  # its number, and the time at which it was done
        self._latest_step = 0.0
        self._stop, self._keep = threading.Event(), threading.Event()
        self._beginning = threading.Lock()  # a job that waits begins or is stopped, not both

    @property
    def over(self) -> bool:
        """Whether the job has ended, for whatever reason."""
        return self.state in ("done", "stopped", "failed")

    @property
    def stopping(self) -> bool:
        """Whether the job was told to stop and still finishes a step."""
        return (self._stop.is_set() or self.keeping) and not self.over

    @property
    def keeping(self) -> bool:
        """Whether the job was told to make the current step its last one and to keep what it has made."""
        return self._keep.is_set()

    def stop(self, keep: bool = False) -> None:
        """Ask the job to end after the current step; if `keep`, with what it has made so far.

        A job that still waits has made nothing, so it is "stopped" at once.
        """
        (self._keep if keep else self._stop).set()
        with self._beginning:
            if self.state == "waiting":
                self.state = "stopped"

    def go_on(self) -> None:
        """Check between two steps whether to go on.

        Raises:
            Stopped: the job was told to stop, or nobody has watched it for `PATIENCE` seconds.
        """
        if self._stop.is_set() or time.monotonic() - self.watched > PATIENCE:
            raise Stopped

    def report(self, done: int, pictures: Captioned | None = None, losses: Mapping[str, float] | None = None) -> None:
        """Record a step.

        Args:
            done: number of steps done.
            pictures: captions and pictures to show from now on; None keeps the current ones.
            losses: value of each loss in this step.

        Raises:
            Stopped: see `go_on`.
        """
        self.done, self._latest_step = done, time.monotonic()
        self._first_step = self._first_step or (done, self._latest_step)
        self.pictures = self.pictures if pictures is None else pictures
        for name, value in (losses or {}).items():
            self.history.setdefault(name, []).append(value)
        self.go_on()

    def run(self, work: Callable[["Job"], None]) -> None:
        """Do the work, unless the job is over. Errors are not raised but recorded in `state` and `error`."""
        try:
            with self._beginning:
                if self.over:
                    return
                self.go_on()
                self.state = "running"
            work(self)
            self.state = "done"
        except Stopped:
            self.state = "stopped"
        except Exception as error:  # nothing above this in the thread could report it
            if not isinstance(error, ValueError | OSError | ImportError):
                logger.exception("a job of the demo failed")
            self.error, self.state = explain(error, is_bug(error)), "failed"

    def pace(self) -> float | None:
        """Return the seconds per step, or None before two steps are done."""
        if self._first_step is None or self.done <= self._first_step[0]:
            return None
        number, time_then = self._first_step
        return (self._latest_step - time_then) / (self.done - number)

    def remaining(self) -> float | None:
        """Return the estimated seconds until the job is done, or None before two steps are done."""
        pace = self.pace()
        return None if pace is None else pace * (self.steps - self.done)
