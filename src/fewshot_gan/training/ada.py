"""Adaptive discriminator augmentation (ADA, arXiv 2006.06676 §3): the strength follows the overfitting.

The discriminator of few images soon tells all of them from generated ones: the mean sign of its logits of training
images, r_t, nears 1. Each change of an image is made with probability p, and p moves towards where r_t is as wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..utils.ranges import COUNT, POSITIVE, Range
from .augment import DiffAugment, FewShotAugment

ADA_RANGES = {"ada_target": Range(0, 1, example="0.6"), "ada_kimg": POSITIVE, "ada_every": COUNT}
ADA_SETTINGS = tuple(ADA_RANGES)
NEUTRAL = {"flip": False, "shift": 0.0, "brightness": 0.0, "saturation": 1.0, "contrast": 1.0}  # change nothing


@dataclass
class Strength:
    """The probability p of a change, and the signs that it follows.

    p += sign(r_t − target) · images / (1000 kimg), every few steps, within 0 and 1; from 0 on. The paper adjusts it
    every 4 steps so that p can reach 1 within 500,000 images.

    Attributes:
        target: r_t that p aims at.
        kimg: thousands of training images in which p can rise from 0 to 1.
        every: discriminator steps from one adjustment to the next.
        p: the probability.
    """

    target: float = 0.6
    kimg: float = 500.0
    every: int = 4
    p: float = 0.0
    signs: float = 0.0  # sum, since the last adjustment
    logits: int = 0
    images: int = 0
    steps: int = 0

    @classmethod
    def of(cls, settings) -> Strength | None:
        """Return the strength of settings with ada_target, ada_kimg and ada_every; None if `augment` is not "ada"."""
        if settings.augment != "ada":
            return None
        return cls(settings.ada_target, settings.ada_kimg, settings.ada_every)

    def update(self, logits: Iterable[Tensor], images: int, accelerator: Accelerator | None = None) -> None:
        """Take in one discriminator step.

        Args:
            logits: those of the training images, of any shapes.
            images: number of training images that the discriminator saw, of this process.
            accelerator: of several processes, whose signs are added.
        """
        for maps in logits:
            self.signs += float(maps.detach().sign().sum())
            self.logits += maps.numel()
        self.images += images
        self.steps += 1
        if self.steps % self.every:
            return
        sums = torch.tensor([self.signs, self.logits, self.images], dtype=torch.float64, device="cpu")
        if accelerator is not None and accelerator.num_processes > 1:
            gathered: Any = accelerator.reduce(sums.float().to(accelerator.device), "sum")
            sums = gathered.double().cpu()
        signs, count, seen = sums.tolist()
        over = signs / max(count, 1) - self.target
        self.p = min(max(self.p + ((over > 0) - (over < 0)) * seen / (1000 * self.kimg), 0.0), 1.0)
        self.signs, self.logits, self.images = 0.0, 0, 0

    def state_dict(self) -> dict:
        """Return what a resumed run needs."""
        return {name: getattr(self, name) for name in ("p", "signs", "logits", "images", "steps")}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)


def gated_policy(changes: DiffAugment, images: Tensor, p: float, random: torch.Generator) -> Tensor:
    """Return images `[B, 3, H, W]`, each changed by each part of a policy of DiffAugment with probability p."""
    for name in changes.policy:
        made = torch.rand(len(images), generator=random, dtype=torch.float32, device="cpu") < p
        changed = DiffAugment(name)(images, random)
        images = torch.where(made.to(images.device)[:, None, None, None], changed, images)
    return images


def gated_draw(changes: FewShotAugment, batch: int, p: float, random: torch.Generator) -> dict[str, Tensor]:
    """Return a draw of `batch` images, see `FewShotAugment.sample`; each part of it acts with probability p."""
    draw = changes.sample(batch, random)
    for name, neutral in NEUTRAL.items():
        left_out = torch.rand(batch, generator=random, dtype=torch.float32, device="cpu") >= p
        draw[name][left_out] = neutral
    return draw
