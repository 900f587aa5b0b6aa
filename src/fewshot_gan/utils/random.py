"""Check seeds, create random generators from them, and initialise networks by them."""

import operator
import threading
from contextlib import contextmanager

import torch

_initialising = threading.RLock()  # layers draw initial values from the process's one generator
LIMIT = 2**63  # of torch's generators and of files that record a seed


def check_seed(seed, name: str = "seed") -> int:
    """Return `seed` as an int.

    Args:
        seed: any integer type, including those of NumPy and a tensor of one integer.
        name: name of the option, for the error message.

    Raises:
        ValueError: not an integer, negative, or 2^63 or more.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or isinstance(seed, bool) or not 0 <= number < LIMIT:
        raise ValueError(f"{name}={seed!r}: give a whole number from 0 to 2^63 - 1")
    return number


def seeded(seed) -> torch.Generator:
    """Return a random generator on the CPU, regardless of torch's default device.

    Raises:
        ValueError: see `check_seed`.
    """
    return torch.Generator(device="cpu").manual_seed(check_seed(seed))


@contextmanager
def initialised(seed):
    """Let networks that a `with` block makes on the CPU have initial values that depend on `seed` alone.

    Torch's generators, also those of GPUs, are as before afterwards. Other threads that initialise networks wait.

    Raises:
        ValueError: see `check_seed`.
    """
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(check_seed(seed))
        yield


@contextmanager
def float32_on_cpu():
    """Let networks that a `with` block makes have float32 on the CPU, whatever torch's defaults are."""
    default = torch.get_default_dtype()
    with _initialising, torch.device("cpu"):
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(default)
