"""Differentiable augmentation, drawn from a CPU `torch.Generator`: a seed gives the same result on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import luminance, native_crops

_POLICIES = ("color", "translation", "cutout")


def _uniform(generator: torch.Generator | None, batch: int, low: float, high: float) -> Tensor:
    return torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu") * (high - low) + low


def _whole(generator: torch.Generator | None, batch: int, low: int, high: int) -> Tensor:
    """Draw int64 `[batch]`, uniformly from `low` to `high` inclusive."""
    return torch.randint(low, high + 1, (batch,), generator=generator, dtype=torch.int64, device="cpu")


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).view(-1, 1, 1, 1)  # [B] -> [B, 1, 1, 1]


class DiffAugment:
    """DiffAugment (arXiv 2006.10738): random changes of real and generated images before the discriminator sees them.

    Policies: `color` (brightness ±0.5 of the [-1, 1] range's unit, saturation ×0-2, contrast ×0.5-1.5), `translation`
    (by whole pixels, uniform up to 1/8 of the side each way; the uncovered border is 0, i.e. mid grey), `cutout` (a
    window of half the side around a uniform pixel, cut off at the borders, is set to 0).

    Args:
        policy: names joined by commas, applied in this order; "" changes nothing.

    Raises:
        ValueError: an unknown policy name.
    """

    EVERYTHING = ",".join(_POLICIES)

    def __init__(self, policy: str = EVERYTHING):
        self.policy = [name.strip() for name in policy.split(",") if name.strip()]
        if unknown := [name for name in self.policy if name not in _POLICIES]:
            raise ValueError(
                f"augmentation policy {unknown[0]!r} is not known; join some of {', '.join(_POLICIES)} by commas"
            )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment `[B, 3, H, W]`, each image differently, differentiably; colour may leave [-1, 1], as published."""
        for name in self.policy:
            images = getattr(self, f"_{name}")(images, generator)
        return images

    @staticmethod
    def _color(x: Tensor, generator: torch.Generator | None) -> Tensor:
        x = x + _per_image(_uniform(generator, len(x), -0.5, 0.5), x)
        mean = x.mean(1, keepdim=True)
        x = mean + (x - mean) * _per_image(_uniform(generator, len(x), 0.0, 2.0), x)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * _per_image(_uniform(generator, len(x), 0.5, 1.5), x)

    @staticmethod
    def _translation(x: Tensor, generator: torch.Generator | None) -> Tensor:
        reach = [_share(side, 0.125) for side in x.shape[-2:]]
        shifts = torch.stack([_whole(generator, len(x), -most, most) for most in reach], 1)  # [B, 2], y and x
        return _move(x, shifts, reach, "constant")

    @staticmethod
    def _cutout(x: Tensor, generator: torch.Generator | None) -> Tensor:
        inside = []
        for side in x.shape[-2:]:
            window = _share(side, 0.5)
            # the centre of an even window lies between two pixels, and so has one place more than there are pixels
            centre = _whole(generator, len(x), 0, side - window % 2)
            offset = torch.arange(side, dtype=torch.int64, device="cpu") - (centre - window // 2)[:, None]  # [B, side]
            inside.append(((offset >= 0) & (offset < window)).to(x.device))
        rows, columns = inside
        return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def random_zoom(images: Tensor, most: float, generator: torch.Generator | None = None) -> Tensor:
    """Each of `[B, 3, H, H]` enlarged by its own factor from U[1, most], cut at a random place.

    For training images that are framed more widely than the base's: drawings whose head fills half the picture, beside
    faces that fill it. Without it the statistics of their white margins ask for heads with less hair.

    Raises:
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"zoom {most} is below 1; give 1 (none) or more, e.g. 1.5")
    side, rows = images.shape[-1], []
    for image in images:
        factor, top, left = _uniform(generator, 3, 0.0, 1.0).tolist()
        size = max(1, round(side / (1 + (most - 1) * factor)))
        top, left = (int(place * (side - size + 1)) for place in (top, left))
        part = image[None, :, top : top + size, left : left + size]
        rows.append(F.interpolate(part, size=(side, side), mode="bilinear", antialias=True))
    return torch.cat(rows)


class FewShotAugment:
    """Flip, translation with reflected borders, and mild colour changes; drawing and applying are separate steps.

    `sample` once and `apply` twice, and the adapted and the source image of one latent stay aligned (content terms
    compare them position by position), while `colour=False` leaves the colours of one of them alone.

    Args:
        translation: largest shift as a share of the side (1/8: 32 px at 256), filled by reflection.
        brightness: largest offset added to [-1, 1] images.
        saturation, contrast: ranges of the factors, around luminance and around the image mean.
        flip: mirror half of the images.
    """

    def __init__(
        self,
        translation: float = 0.125,
        brightness: float = 0.1,
        saturation: tuple[float, float] = (0.7, 1.3),
        contrast: tuple[float, float] = (0.85, 1.15),
        flip: bool = True,
    ):
        self.translation, self.brightness, self.flip = translation, brightness, flip
        self.saturation, self.contrast = saturation, contrast

    def sample(self, batch: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw on the CPU: `flip` bool `[batch]`, `shift` (y, x) `[batch, 2]` in [-1, 1], three factors `[batch]`."""
        return {
            "flip": (_uniform(generator, batch, 0.0, 1.0) < 0.5) & self.flip,
            "shift": _uniform(generator, 2 * batch, -1.0, 1.0).view(batch, 2),
            "brightness": _uniform(generator, batch, -self.brightness, self.brightness),
            "saturation": _uniform(generator, batch, *self.saturation),
            "contrast": _uniform(generator, batch, *self.contrast),
        }

    def apply(self, images: Tensor, params: dict[str, Tensor], colour: bool = True) -> Tensor:
        """Applies one draw.

        Args:
            images: float `[B, 3, H, W]` in [-1, 1]; any resolution, the shift scales with it.
            params: from `sample(B)`.
            colour: also change brightness, saturation and contrast; the geometry is the same either way.

        Returns:
            `[B, 3, H, W]`; with colour it may leave [-1, 1] a little: clamping would cut the gradient.

        Raises:
            ValueError: params of another batch size.
        """
        if len(params["flip"]) != len(images):
            raise ValueError(
                f"params are for {len(params['flip'])} images, not {len(images)}; sample({len(images)}) first"
            )
        x = torch.where(_per_image(params["flip"].float(), images) > 0, images.flip(3), images)
        x = _translate(x, params["shift"], "reflect", self.translation)
        return self.recolour(x, params) if colour else x

    def crop(self, images: Tensor, params: dict[str, Tensor], corners: Tensor, size: int) -> Tensor:
        """Return crops of the flipped and moved images, without computing the whole of them.

        Where a crop would show the border that `apply` fills, it is moved into the image instead.

        Args:
            images: float `[B, 3, R, R]`.
            params: from `sample(B)`.
            corners: upper left corners (y, x) of n crops of each augmented image, int64 `[B, n, 2]`.
            size: side S of the crops in pixels.

        Returns:
            `[B * n, 3, S, S]`, the n crops of an image one after another; colours unchanged.
        """
        room = images.shape[-1] - size
        top, left = (corners - _shifts(params["shift"], images.shape[-2:], self.translation)[:, None]).unbind(2)
        flip = params["flip"].cpu()[:, None].expand_as(left)
        left = torch.where(flip, room - left, left)
        crops = native_crops(images, torch.stack([top, left], 2).clamp(0, room), size)
        return torch.where(_per_image(flip.flatten().float(), crops) > 0, crops.flip(3), crops)

    def recolour(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return images `[B, 3, H, W]` with the brightness, saturation and contrast of one draw."""
        x = x + _per_image(params["brightness"], x)
        grey = luminance(x)
        x = grey + (x - grey) * _per_image(params["saturation"], x)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * _per_image(params["contrast"], x)


def _share(side: int, share: float) -> int:
    """Return a share of a side, rounded to whole pixels."""
    return int(side * share + 0.5)


def _translate(x: Tensor, shift: Tensor, mode: str, share: float = 0.125) -> Tensor:
    """Move image i by `shift[i] * share` of its side, rounded to pixels; positive values move down and right."""
    reach = [_share(side, share) for side in x.shape[-2:]]
    return _move(x, _shifts(shift, x.shape[-2:], share), reach, mode)


def _shifts(shift: Tensor, sides: Sequence[int], share: float) -> Tensor:
    """Return shifts (y, x) in whole pixels, int64 `[B, 2]`, of shares in [-1, 1] of the largest shift."""
    most = torch.tensor([_share(side, share) for side in sides], dtype=torch.float32, device="cpu")
    return (shift.cpu() * most).round().long()


def _move(x: Tensor, shifts: Tensor, reach: list[int], mode: str) -> Tensor:
    """Move image i of `[B, C, H, W]` by `shifts[i]`, whole pixels (y, x) within ±`reach`; `mode` fills the border."""
    height, width = x.shape[-2:]
    reach_y, reach_x = reach
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y), mode=mode)
    moved = [
        image[:, reach_y - dy : reach_y - dy + height, reach_x - dx : reach_x - dx + width]
        for image, (dy, dx) in zip(padded, shifts.tolist(), strict=True)
    ]
    return torch.stack(moved)
