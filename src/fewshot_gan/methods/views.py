"""What the losses see of a batch of pictures: the whole pictures, reduced, and crops at native scale.

A feature network of photographs sees a 1024 px picture only reduced, so strokes finer than the reduced pixels teach
nothing. Crops of the same size at native scale show them (any-resolution training, arXiv 2204.07156).

Shape legend: B images, n crops of each, R resolution, S side of reduced pictures and of crops.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..utils.ranges import NOT_NEGATIVE
from .losses import r1_penalty

SMALLEST_VIEW = 32  # px; what feature networks take
VIEW_RANGES = dict.fromkeys(("view_size", "crops", "crop_weight"), NOT_NEGATIVE)


def reduces(config, resolution: int) -> bool:
    """Return whether losses with these settings see pictures of `resolution` px reduced to `view_size`."""
    return 0 < config.view_size < resolution


def num_crops(config, resolution: int) -> int:
    """Return the number of native crops that losses with these settings see of each picture of `resolution` px."""
    return config.crops if config.crop_weight and reduces(config, resolution) else 0


def check_views(config) -> None:
    """Refuse a `view_size` that feature networks cannot see, and `crops` without it.

    Raises:
        ValueError: in one sentence.
    """
    if 0 < config.view_size < SMALLEST_VIEW:
        raise ValueError(
            f"view_size={config.view_size}: feature networks see nothing in so small a picture; give {SMALLEST_VIEW} "
            "or more, e.g. 256, or 0 to reduce no picture"
        )
    if config.crops and not config.view_size:
        raise ValueError(f"crops={config.crops}: view_size=0 gives them no size; give view_size, e.g. 256")


@dataclass
class Views:
    """Two augmentations of the same images, `[B, 3, H, W]` each.

    Attributes:
        colour: fully augmented images, for discriminators and feature statistics.
        plain: images with geometric augmentation alone, for losses on colours and edges; with DiffAugment, the images
            themselves.
        pictures: the images before augmentation; None: `colour` is not augmented.
        augment: function that augments `pictures` again as `colour` was.
    """

    colour: torch.Tensor
    plain: torch.Tensor
    pictures: torch.Tensor | None = None
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None

    def detach(self) -> "Views":
        """Return the same views without gradients."""
        pictures = None if self.pictures is None else self.pictures.detach()
        return Views(self.colour.detach(), self.plain.detach(), pictures, self.augment)

    def r1_penalty(self, discriminator: Callable, weight: float) -> torch.Tensor:
        """Return R1 with respect to the images before augmentation, as StyleGAN2-ADA and DiffAugment have it.

        Args:
            discriminator: function from augmented images to logits.
            weight: see `losses.r1_penalty`.
        """
        if self.pictures is None or (augment := self.augment) is None:
            return r1_penalty(discriminator, self.colour, weight)
        return r1_penalty(lambda images: discriminator(augment(images)), self.pictures, weight)

    def to(self, device) -> "Views":
        """Return the views on `device`."""
        return Views(self.colour.to(device), self.plain.to(device))


def draw_corners(num: int, crops: int, resolution: int, size: int, random: torch.Generator) -> torch.Tensor:
    """Draw where to crop pictures: upper left corners (y, x), uniform inside the picture.

    Args:
        num: number B of pictures.
        crops: number n of crops of each.
        resolution: side of the pictures in pixels.
        size: side of a crop in pixels.
        random: CPU generator.

    Returns:
        int64 `[B, n, 2]`, as `metrics.native_crops` takes them.
    """
    return torch.randint(resolution - size + 1, (num, crops, 2), generator=random, device="cpu")
