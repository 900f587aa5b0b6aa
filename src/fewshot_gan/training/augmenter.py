"""The augmentation of a few-shot training: views of images, native crops of them, and aligned source images.

Shape legend: B images, R resolution, S side of the views.
"""

from __future__ import annotations

from functools import partial

import torch

from ..methods.views import Views
from ..metrics import native_crops
from .ada import Strength, gated_draw
from .augment import DiffAugment, FewShotAugment

AUGMENTS = ("fewshot", "ada", "diffaugment", "flip", "none")


def policy_of(augment: str) -> str | None:
    """Return the policy of DiffAugment that a setting means; None if images are augmented in another way."""
    if augment == "diffaugment":
        return DiffAugment.EVERYTHING
    return None if augment in AUGMENTS else augment


class Augmenter:
    """Augment images as one setting says.

    Args:
        augment: see `TrainingConfig`.
        strength: of "ada"; None for the others.
        random: CPU generator of all draws.
    """

    def __init__(self, augment: str, strength: Strength | None, random: torch.Generator):
        self.kind, self.strength, self.random = augment, strength, random
        self.policy = policy_of(augment)
        self.diffaugment = DiffAugment(self.policy or "")
        self.fewshot = FewShotAugment(translation=0.0) if augment == "flip" else FewShotAugment()

    def views(self, images: torch.Tensor) -> tuple[Views, dict | None]:
        """Return augmented views of `images` `[B, 3, S, S]`, and the draw, which `aligned` and `crops` take.

        The draw is None if the images are not moved, or each by itself.
        """
        if self.kind == "none":
            return Views(images, images), None
        if self.policy:
            before = self.random.clone_state()
            colour = self.diffaugment(images, self.random)
            return Views(colour, images, images, lambda x: self.diffaugment(x, before.clone_state())), None
        if self.strength is None:
            draw = self.fewshot.sample(len(images), self.random)
        else:
            draw = gated_draw(self.fewshot, len(images), self.strength.p, self.random)
        plain = self.fewshot.apply(images, draw, colour=False)
        colour = plain if self.kind == "flip" else self.fewshot.recolour(plain, draw)
        return Views(colour, plain, images, partial(self.fewshot.apply, params=draw, colour=self.kind != "flip")), draw

    def aligned(self, images: torch.Tensor, draw: dict | None) -> torch.Tensor:
        """Return `images` `[B, 3, S, S]` moved as a draw moved others; their colours stay."""
        return images if draw is None else self.fewshot.apply(images, draw, colour=False)

    def crops(self, images: torch.Tensor, draw: dict | None, corners: torch.Tensor, size: int) -> Views:
        """Return native crops `[B * n, 3, S, S]` of `images` under a draw.

        Args:
            images: `[B, 3, R, R]`, not augmented.
            draw: of `views`.
            corners: places of n crops of each augmented image, `[B, n, 2]`.
            size: S.
        """
        if draw is not None:
            plain = self.fewshot.crop(images, draw, corners, size)
            of_crops = {name: values.repeat_interleave(corners.shape[1], 0) for name, values in draw.items()}
            return Views(plain if self.kind == "flip" else self.fewshot.recolour(plain, of_crops), plain)
        plain = native_crops(images, corners, size)
        return Views(self.diffaugment(plain, self.random) if self.policy else plain, plain)
