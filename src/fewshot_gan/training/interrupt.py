"""Handle SIGINT (Ctrl-C) and SIGTERM: end a training after the current step with a checkpoint.

A second signal ends the process at once. This module imports quickly, so that a command handles signals before it loads
anything else.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds in which a second signal is a copy of the first: `timeout` signals a process and then its group


class Interrupted(SystemExit):
    """Raised by a signal. The exit code follows the shell's convention: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"by {signal.Signals(self.number).name}"


class Stop:
    """The handler of both signals in this process.

    Attributes:
        number: the first signal that came; None: there was none.
        deferred: whether a signal waits for the end of the current step; otherwise it raises at once.
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
            os._exit(128 + number)  # clean-up had its time
        else:
            self._raised = True
            raise Interrupted(number)

    def insist(self) -> None:
        """Raise `Interrupted` again if other code swallowed or replaced it.

        Code that is interrupted during an import or a callback may treat the exception as an error of its own.
        """
        if self._raised and self.number is not None:
            raise Interrupted(self.number) from None


_installed: Stop | None = None  # handlers belong to the process, and so does this


def installed() -> Stop | None:
    """Return the active handler of this process; None outside of `interruptible`."""
    return _installed


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT and SIGTERM inside the block. For commands only, because handlers belong to the whole process.

    It does nothing inside another such block or in a thread, where Python allows no handlers. Signals that the process
    ignores stay ignored, for example Ctrl-C in a process that a shell started with &.
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
