"""Seeds and the generators that they start."""

import operator

import torch

LIMIT = 2**63  # what torch's generators and the files that record a seed can hold


def check_seed(seed, name: str = "seed") -> int:
    """`seed` as an int.

    Args:
        seed: of any integer type, those of NumPy and a tensor of one integer among them.
        name: of the option, for messages.

    Raises:
        ValueError: no integer, negative, or 2^63 or more.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or isinstance(seed, bool) or not 0 <= number < LIMIT:
        raise ValueError(f"{name}={seed!r}: give a whole number from 0 to 2^63 - 1")
    return number


def seeded(seed) -> torch.Generator:
    """A generator on the CPU, whatever torch's default device is.

    Raises:
        ValueError: as `check_seed`.
    """
    return torch.Generator(device="cpu").manual_seed(check_seed(seed))
