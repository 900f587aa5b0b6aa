"""Families of photo filters: each look has a family and a number, which decides all its settings.

Two hundred looks and more are needed to train a network that predicts looks, and others of the same families, or of
families that it has not seen, to judge it. All functions map pictures `[B, 3, H, W]` in [0, 1] to the same shape, or to
one channel, and may leave that range a little. Lengths are given in pixels at a side of 256 and scale with the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import luminance, sobel
from .image_filters import contours, gaussian_blur, places

Filter = Callable[[Tensor], Tensor]
KEEPS = 0.25  # probability that a drawing keeps some colour of the picture


class Draw(Random):
    """Random settings of a look. Python keeps the numbers of a seed the same in all versions."""

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def colour(self, lightness: float, chroma: float) -> Tensor:
        """Return an RGB colour `[3, 1, 1]` of a random hue."""
        hue = 2 * math.pi * self.random()
        thirds = (hue, hue - 2 * math.pi / 3, hue + 2 * math.pi / 3)
        values = [min(1.0, max(0.0, lightness + chroma * math.cos(angle))) for angle in thirds]
        return torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)

    def paper(self) -> Tensor:
        """Return white, or a light colour."""
        return self.colour(1, 0) if self.chance(0.5) else self.colour(self.uniform(0.8, 0.97), self.uniform(0, 0.15))

    def ink(self) -> Tensor:
        """Return black, or a dark colour."""
        return self.colour(0, 0) if self.chance(0.5) else self.colour(self.uniform(0, 0.35), self.uniform(0, 0.3))


def between(share: Tensor | float, dark: Tensor, light: Tensor) -> Tensor:
    """Return `dark` where `share` is 0 and `light` where it is 1."""
    dark, light = (c.to(share) if isinstance(share, Tensor) else c for c in (dark, light))
    return dark + (light - dark) * share


def saturated(x: Tensor, amount: float) -> Tensor:
    """Return `x` with its colours strengthened: 0 is grey, 1 leaves them."""
    grey = luminance(x)
    return (grey + amount * (x - grey)).clamp(0, 1)


def steepened(x: Tensor, amount: float) -> Tensor:
    """Return `x` with more contrast in the middle tones, or less where `amount` is below 0."""
    return x + amount * (x * x * (3 - 2 * x) - x)


def unit(x: Tensor) -> float:
    """Return how many pixels of `x` one pixel at a side of 256 is."""
    return x.shape[-1] / 256


def _tone(draw: Draw) -> Filter:
    """Make a tone curve for each channel, with less or more colour, and tints of black and white."""
    gamma, tinted = draw.uniform(0.6, 1.7), draw.chance(0.7)
    gammas = [gamma * (draw.uniform(0.7, 1.4) if tinted else 1) for _ in range(3)]
    contrast, amount = draw.uniform(-0.5, 1.5), draw.uniform(0, 1.9)
    dark = draw.colour(draw.uniform(0, 0.15), draw.uniform(0, 0.12))
    light = draw.colour(draw.uniform(0.8, 1), draw.uniform(0, 0.15))

    def look(x: Tensor) -> Tensor:
        x = saturated(x, amount).clamp_min(1e-4) ** x.new_tensor(gammas).view(3, 1, 1)
        x = steepened(x, contrast)
        return between(x, dark, light) if tinted else x

    return look


def _duotone(draw: Draw) -> Filter:
    """Make two inks, or three, for the tones of a grey picture."""
    dark = draw.colour(draw.uniform(0, 0.3), draw.uniform(0, 0.35))
    light = draw.colour(draw.uniform(0.75, 1), draw.uniform(0, 0.3))
    middle = draw.colour(draw.uniform(0.35, 0.65), draw.uniform(0, 0.5)) if draw.chance(0.5) else None
    contrast, gamma, negative = draw.uniform(-0.3, 1.5), draw.uniform(0.6, 1.6), draw.chance(0.1)

    def look(x: Tensor) -> Tensor:
        grey = steepened(luminance(x).clamp_min(1e-4) ** gamma, contrast)
        grey = 1 - grey if negative else grey
        if middle is None:
            return between(grey, dark, light)
        return torch.where(grey < 0.5, between(2 * grey, dark, middle), between(2 * grey - 1, middle, light))

    return look


def _posterise(draw: Draw) -> Filter:
    """Make flat levels of tone and colour, in many looks with contours."""
    levels, amount, gamma = draw.randint(2, 6), draw.uniform(0, 1.9), draw.uniform(0.6, 1.3)
    sigma, width, outlined = draw.uniform(0.8, 2.5), draw.uniform(1, 2), draw.chance(0.6)
    inked, dark, light = draw.chance(0.3), draw.ink(), draw.paper()

    def look(x: Tensor) -> Tensor:
        x = gaussian_blur(x, sigma * unit(x))
        grey = luminance(x)
        flat = (grey.clamp_min(0) ** gamma * levels).round() / levels
        flat = between(flat, dark, light) if inked else flat + (amount * (x - grey) * levels).round() / levels
        return flat.clamp(0, 1) * contours(grey, width * unit(x), 80.0, 0.02) if outlined else flat

    return look


def _contour(draw: Draw) -> Filter:
    """Make pen lines along edges, in many looks with filled shadows."""
    sigma, sharpness, offset = draw.uniform(0.7, 2), draw.uniform(80, 300), draw.uniform(0.004, 0.02)
    shadow = draw.uniform(0.05, 0.4) if draw.chance(0.7) else None
    ink, paper, kept = draw.ink(), draw.paper(), draw.uniform(0.3, 1) if draw.chance(KEEPS) else 0.0

    def look(x: Tensor) -> Tensor:
        grey = luminance(x)
        line = contours(grey, sigma * unit(x), sharpness, offset)
        if shadow is not None:
            line = line * torch.sigmoid(40.0 * (gaussian_blur(grey, 1.2 * unit(x)) - shadow))
        return between(line, ink, paper.to(x) + kept * (x - paper.to(x)))

    return look


def _dodge(draw: Draw) -> Filter:
    """Make pencil strokes where a picture is darker than its surroundings (dodge and burn)."""
    fine, fine_power = draw.uniform(1.2, 4), draw.uniform(0.8, 3.5)
    broad, broad_power = draw.uniform(6, 16), draw.uniform(0, 1.3)
    shading, burn = draw.uniform(0, 0.45), draw.uniform(0, 0.5)
    ink, paper, kept = draw.ink(), draw.paper(), draw.uniform(0.2, 0.9) if draw.chance(KEEPS) else 0.0

    def look(x: Tensor) -> Tensor:
        grey = luminance(x)
        strokes = 1 - shading * (1 - gaussian_blur(grey, 1.5 * unit(x))).square()
        for sigma, power in ((fine, fine_power), (broad, broad_power)):
            strokes = strokes * ((grey + 0.08) / (gaussian_blur(grey, sigma * unit(x)) + 0.08)).clamp_max(1) ** power
        strokes = (1.05 * strokes).clamp(0, 1)
        strokes = strokes - burn * strokes * (1 - strokes)
        return between(strokes, ink, paper) * (1 - kept + kept * x)

    return look


def _halftone(draw: Draw) -> Filter:
    """Make dots on a turned grid, the larger the darker the picture is there."""
    period, angle, ink, paper = draw.uniform(4.5, 10), draw.uniform(0, 90), draw.ink(), draw.paper()

    def look(x: Tensor) -> Tensor:
        waves = (torch.cos(2 * math.pi / (period * unit(x)) * along) for along in places(x, angle))
        screen = 0.5 + 0.25 * sum(waves)
        return between(torch.sigmoid(6 * unit(x) * (1.15 * gaussian_blur(luminance(x), unit(x)) - screen)), ink, paper)

    return look


def _hatch(draw: Draw) -> Filter:
    """Make parallel lines, in more directions the darker the picture is there, and contours."""
    period, first, count = draw.uniform(4.5, 9), draw.uniform(0, 90), draw.randint(1, 4)
    ink, paper = draw.ink(), draw.paper()

    def look(x: Tensor) -> Tensor:
        grey = luminance(x)
        tone, sheet = gaussian_blur(grey, 2 * unit(x)), contours(grey, unit(x), 150.0, 0.015)
        for turn, darkest in ((90, 0.68), (45, 0.48), (135, 0.3), (0, 0.16))[:count]:
            lines = 0.5 + 0.5 * torch.cos(2 * math.pi / (period * unit(x)) * places(x, first + turn)[0])
            drawn = torch.sigmoid(8 * unit(x) * (lines - 0.62)) * torch.sigmoid(25 * (darkest - tone))
            sheet = sheet * (1 - 0.85 * drawn)
        return between(sheet, ink, paper)

    return look


def _mosaic(draw: Draw) -> Filter:
    """Make square cells of one colour each."""
    cells, amount = draw.randint(16, 64), draw.uniform(0.4, 1.6)

    def look(x: Tensor) -> Tensor:
        flat = F.interpolate(F.interpolate(x, size=(cells, cells), mode="area"), size=x.shape[-2:], mode="nearest")
        return saturated(flat, amount)

    return look


def _glow(draw: Draw) -> Filter:
    """Make a picture out of focus, or one with a glow."""
    sigma, share, screened = draw.uniform(1, 6), draw.uniform(0.3, 1), draw.chance(0.5)
    amount, gamma = draw.uniform(0.3, 1.6), draw.uniform(0.8, 1.6)

    def look(x: Tensor) -> Tensor:
        soft = gaussian_blur(x, sigma * unit(x)).clamp(0, 1)
        soft = 1 - (1 - x) * (1 - soft) if screened else soft
        return saturated((x + share * (soft - x)).clamp_min(1e-4) ** gamma, amount)

    return look


def _paint(draw: Draw) -> Filter:
    """Make brush dabs: the mean of the calmest of four neighbouring squares (Kuwahara et al. 1976)."""
    radius, amount, levels = draw.randint(2, 5), draw.uniform(0.6, 1.7), draw.randint(6, 20)

    def look(x: Tensor) -> Tensor:
        side, (height, width) = max(1, round(radius * unit(x))), x.shape[-2:]
        padded = F.pad(x, (side,) * 4, mode="reflect")
        grey = luminance(padded)
        mean, mean_grey, mean_square = (F.avg_pool2d(p, side + 1, 1) for p in (padded, grey, grey.square()))
        spread = mean_square - mean_grey.square()
        corners = [(i, j) for i in (0, side) for j in (0, side)]
        means, spreads = (
            torch.stack([p[..., i : i + height, j : j + width] for i, j in corners]) for p in (mean, spread)
        )
        calmest = spreads.argmin(0, keepdim=True).expand(1, *x.shape)
        return saturated((means.gather(0, calmest)[0] * levels).round() / levels, amount)

    return look


def _grain(draw: Draw) -> Filter:
    """Make the grain of paper or film, the same in all pictures."""
    seed, scale, strength = draw.randrange(2**31), draw.uniform(0.6, 3), draw.uniform(0.03, 0.1)
    amount, light = draw.uniform(0, 1.2), draw.paper()
    dark = draw.colour(draw.uniform(0, 0.25), draw.uniform(0, 0.15))

    def look(x: Tensor) -> Tensor:
        noise = torch.randn(
            *(1, 1, *x.shape[-2:]), generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu"
        )
        noise = gaussian_blur(noise.to(x), scale * unit(x))
        return between((saturated(x, amount) + strength * noise / noise.std()).clamp(0, 1), dark, light)

    return look


def _neon(draw: Draw) -> Filter:
    """Make bright edges on a dark ground."""
    sigma, power, own = draw.uniform(0.6, 2.5), draw.uniform(0.5, 1.2), draw.random()
    light = draw.colour(draw.uniform(0.6, 1), draw.uniform(0, 0.5))
    dark = draw.colour(draw.uniform(0, 0.2), draw.uniform(0, 0.2))

    def look(x: Tensor) -> Tensor:
        across, down = sobel(gaussian_blur(luminance(x), sigma * unit(x)))
        edges = (6 * unit(x) * (across.square() + down.square() + 1e-8).sqrt()).clamp(0, 1) ** power
        return between(edges, dark, light.to(x) + own * (saturated(x, 1.8).clamp_min(0.2) - light.to(x)))

    return look


def _emboss(draw: Draw) -> Filter:
    """Make a relief, lit from one side."""
    sigma, angle, strength = draw.uniform(0.7, 2), math.radians(draw.uniform(0, 360)), draw.uniform(2, 6)
    kept, ground = draw.uniform(0, 0.4), draw.colour(draw.uniform(0.4, 0.7), draw.uniform(0, 0.15))

    def look(x: Tensor) -> Tensor:
        across, down = sobel(gaussian_blur(luminance(x), sigma * unit(x)))
        slope = across * math.cos(angle) + down * math.sin(angle)
        return ground.to(x) + strength * unit(x) * slope + kept * (x - 0.5)

    return look


def _solarise(draw: Draw) -> Filter:
    """Make tones above a threshold negative (Sabattier effect)."""
    threshold, amount = draw.uniform(0.35, 0.7), draw.uniform(0.2, 1.5)

    def look(x: Tensor) -> Tensor:
        return saturated(((x - 2 * (x - threshold).clamp_min(0)) / threshold).clamp(0, 1), amount)

    return look


FAMILIES: dict[str, Callable[[Draw], Filter]] = {
    "tone": _tone,
    "duotone": _duotone,
    "posterise": _posterise,
    "contour": _contour,
    "dodge": _dodge,
    "halftone": _halftone,
    "hatch": _hatch,
    "mosaic": _mosaic,
    "glow": _glow,
    "paint": _paint,
    "grain": _grain,
    "neon": _neon,
    "emboss": _emboss,
    "solarise": _solarise,
}


def look_of_family(family: str, number: int) -> Filter:
    """Return a look of a family.

    Args:
        family: a key of `FAMILIES`.
        number: 0 or more; each has settings of its own, the same on every machine.
    """
    return FAMILIES[family](Draw(f"{family}-{number}"))
