"""Check seeds, and create random generators from them."""

import operator

import torch

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
