"""SIGINT (Ctrl-C) and SIGTERM end a training after the step at hand and a checkpoint; once more, at once.

Light to import, so that a command can be ready for them before it loads anything.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds in which a second signal is the first: `timeout` and launchers tell a process and then its group


class Interrupted(SystemExit):
    """The process was told to end; its exit code is what a shell makes of the signal: 130 of SIGINT, 143 of SIGTERM."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"by {signal.Signals(self.number).name}"


class Stop:
    """What the two signals do to this process.

    Attributes:
        number: the signal that came first, None before.
        deferred: whether a signal waits for the end of the step at hand; else it ends what runs.
    """

    def __init__(self):
        self.number: int | None = None
        self.deferred = False
        self._raised, self._latest = False, 0.0

    def __call__(self, number: int, frame) -> None:
        now, first = time.monotonic(), self.number is None
        if not first and now - self._latest < ECHO:
            return
        self.number, self._latest = self.number or number, now
        if first and self.deferred:
            name = signal.Signals(number).name
            # neither print nor the logger: they may be what was interrupted
            os.write(2, f"\n{name}: the run ends after this step with a checkpoint; again: at once\n".encode())
        elif self._raised:
            os._exit(128 + number)  # whatever cleans up has had its second
        else:
            self._raised = True
            raise Interrupted(number)

    def insist(self) -> None:
        """End once more, if a signal was to end what ran at once, and whatever ran made something else of it.

        Code that is interrupted amid an import or a callback may take the exception for an error of its own.
        """
        if self._raised and self.number is not None:
            raise Interrupted(self.number) from None


_installed: Stop | None = None  # handlers belong to the process, and so does this


def installed() -> Stop | None:
    """What handles the signals of this process now; None outside of `interruptible`."""
    return _installed


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle the signals inside; for commands, not for libraries: it holds for the whole process.

    Inside another one, or in a thread (where Python has no handlers), it does nothing. A signal that the process
    ignores, as what a shell starts with & ignores Ctrl-C, stays ignored.
    """
    global _installed
    if _installed is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    stop, before = Stop(), {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    _installed = stop
    try:
        for number in before:
            signal.signal(number, stop)
        yield
        stop.insist()
    except Exception:
        stop.insist()
        raise
    except SystemExit as end:
        if not isinstance(end, Interrupted):
            stop.insist()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _installed = None
