"""Pictures and tensors of seeded noise."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image


def smooth_picture(width=40, height=48, seed=0):
    """Smooth, so that lossy formats keep it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def random_pictures(num: int, height: int = 16, width: int | None = None, seed: int = 0) -> torch.Tensor:
    """Uniform noise in [-1, 1), `[num, 3, height, width]`."""
    shape = (num, 3, height, width or height)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded_normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal_source(seed: int = 0) -> Callable[..., torch.Tensor]:
    """A function of a shape whose results follow one another in one random stream."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float32)
