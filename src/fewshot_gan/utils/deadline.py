"""Give up waiting for calls that have no time limit of their own."""

import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def within(seconds: float, call: Callable[[], _Result]) -> _Result:
    """`call()`, or a TimeoutError after `seconds`; the call itself cannot be stopped and may still end later."""
    outcome: list = []

    def run():
        try:
            outcome.append((call(), None))
        except BaseException as error:  # whoever waits for it gets it
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name="within")  # daemon: a program that ends does not wait
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
