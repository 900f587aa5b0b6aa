"""Time limits for calls that have none of their own."""

import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def call_with_timeout(seconds: float, call: Callable[[], _Result]) -> _Result:
    """Return `call()`, run in another thread, which cannot be stopped and may end after the timeout.

    Raises:
        TimeoutError: `call` takes longer than `seconds`.
    """
    outcome: list = []

    def run():
        try:
            outcome.append((call(), None))
        except BaseException as error:  # raised again in the waiting thread
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name="within")  # daemon: the program can end without it
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
