"""Checks and conversions of what calls of a pipeline accept."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch

from .data.images import check_signed, read_squares, to_floats
from .utils.random import seeded

MOST_PSI = 1000  # of truncation, far beyond any use; larger ones overflow


def check_whole_number(name: str, value, least: int = 1) -> None:
    """Refuse a count that is no whole number or below `least`.

    Raises:
        ValueError: names the option `name`, its value and the limit.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name}={value!r}: give a whole number, {least} or more")


def check_psi(psi) -> None:
    """Refuse a truncation ψ that is no number, or too large.

    Raises:
        ValueError: names the value and the limits.
    """
    if not isinstance(psi, Real) or not abs(float(psi)) <= MOST_PSI:  # refuses NaN too
        raise ValueError(
            f"truncation_psi={psi!r}: give a number such as 0.7, -{MOST_PSI} to {MOST_PSI}; 1 is no truncation"
        )


def choose_generator(seed: int | None, generator):
    """Return the source of random numbers of a call: a fresh generator for a seed, else the one given.

    Args:
        seed: of a fresh generator on the CPU, or None.
        generator: a `torch.Generator`, a list of one per image, or None for torch's default generator.

    Raises:
        ValueError: both are given, or the seed is out of range.
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    return generator if seed is None else seeded(seed)


def noise_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return a new generator for the noise of one image, seeded by a number drawn from `generator`."""
    return seeded(torch.randint(2**62, (), generator=generator, dtype=torch.int64, device="cpu"))


def is_per_image(value) -> bool:
    """Return whether an option of a call holds one value per image rather than one for all images."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and type(value) is not str


def as_floats(images, resolution: int) -> torch.Tensor:
    """Return pictures as floats `[N, 3, H, W]` in [-1, 1].

    Args:
        images: a PIL image, path or NumPy array, or several: cropped to the centre square and resized. A uint8 tensor
            is scaled; a float tensor is returned as it is.
        resolution: side in px of pictures that are no tensors.

    Raises:
        ValueError: pictures that cannot be read, or floats out of range.
        FileNotFoundError: a path without a file.
    """
    if not isinstance(images, torch.Tensor):
        images = read_squares(images, resolution)
    elif images.dtype != torch.uint8 and images.numel():
        check_signed(images)
    return to_floats(images) if images.dtype == torch.uint8 else images
