"""Looks whose truth is known: classical filters (each latent's true target can be computed) and DiceBear drawings.

A filter is a function of one image, so an adapter trained on ten filtered faces can be judged against the filter
itself. All lengths scale with the image side; the numbers in the code are for 256 px. Above 256 px the same look is
drawn finer: reduced to 256 px it resembles the filter of the reduced image, at full size its strokes are sharp.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import luminance
from .families import FAMILIES, look_of_family
from .image_filters import contours, gaussian_blur, places


def _pencil(x: Tensor) -> Tensor:
    """Dodge and burn: strokes where grey is darker than its surroundings, soft graphite tone, white paper."""
    unit = x.shape[-1] / 256
    grey = luminance(x)
    if unit > 1:  # dots of one pixel, a generator's grain, are no strokes; at 256 px and below every pixel counts
        grey = gaussian_blur(grey, 0.2 * math.sqrt(unit**2 - 1))
    # Colour dodge: grey / (1 - blurred negative) = grey / blurred grey; 0.08 keeps noise in black areas from turning
    # to grain.
    fine = ((grey + 0.08) / (gaussian_blur(grey, 2.0 * unit) + 0.08)).clamp_max(1)  # hair, lashes, contours
    broad = ((grey + 0.08) / (gaussian_blur(grey, 10.0 * unit) + 0.08)).clamp_max(1)  # form shadows
    tone = 1 - 0.2 * (1 - gaussian_blur(grey, 1.5 * unit)).square()  # dark areas keep a hint of grey, the rest is paper
    paper = (fine.pow(2.5) * broad.pow(0.7) * tone * 1.06).clamp(0, 1)
    return (paper - 0.3 * paper * (1 - paper)).expand_as(x)  # burn: darkens the middle, leaves paper and black alone


def _sepia(x: Tensor) -> Tensor:
    matrix = x.new_tensor([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return torch.einsum("oc,bchw->bohw", matrix, x).clamp(0, 1)


def _pixel(x: Tensor) -> Tensor:
    """Mosaic of 32 cells a side."""
    return F.interpolate(F.interpolate(x, size=(32, 32), mode="area"), size=x.shape[-2:], mode="nearest")


def _poster(x: Tensor) -> Tensor:
    """Five flat levels of lightness, saturated colour, dark contours."""
    unit = x.shape[-1] / 256
    for _ in range(2):
        x = gaussian_blur(_median(x, max(1, round(unit))), 0.8 * unit)
    grey = luminance(x)
    level = (grey.clamp_min(0.0).pow(0.75) * 4).round() / 4  # brighter than the input: print on white
    colour = (1.5 * (x - grey) * 4).round() / 4
    return (level + colour).clamp(0, 1) * contours(grey, 1.4 * unit, 80.0, 0.02)


def _ink(x: Tensor) -> Tensor:
    """Pen and ink: black contours (difference of Gaussians, as in Winnemöller et al. 2012) and solid black shadows."""
    unit = x.shape[-1] / 256
    grey = luminance(x)
    shadow = torch.sigmoid(40.0 * (gaussian_blur(grey, 1.2 * unit) - 0.22))
    # A wider blur leaves wider grey rims. Above 256 px the contours are sharper by `times`, about a difference of
    # -0.012: faint lines stay, and the share of black stays.
    times = math.sqrt(max(1.0, unit))
    return (contours(grey, 1.0 * unit, 220.0 * times, 0.012 + 0.008 / times) * shadow).expand_as(x)


PITCH = 8 / math.sqrt(2)  # px at a side of 256: distance of dots and lines, so that diagonal ones recur every 8 px


def _halftone(x: Tensor) -> Tensor:
    """Newspaper print: black dots on a grid turned by 45°, the larger the darker the picture is there."""
    unit = x.shape[-1] / 256
    grey = gaussian_blur(luminance(x), 1.0 * unit)
    across, down = places(x, 45.0)
    period = PITCH * unit
    screen = 0.5 + 0.25 * (torch.cos(2 * math.pi / period * across) + torch.cos(2 * math.pi / period * down))
    return torch.sigmoid(6.0 * unit * (1.15 * grey - screen + 0.02)).expand_as(x)  # an edge is one or two pixels wide


def _hatch(x: Tensor) -> Tensor:
    """Pen hatching: more directions of parallel lines the darker the picture is there, and contours."""
    unit = x.shape[-1] / 256
    grey = luminance(x)
    tone = gaussian_blur(grey, 2.0 * unit)
    paper = contours(grey, 1.0 * unit, 150.0 * math.sqrt(max(1.0, unit)), 0.015)
    for angle, darkest in ((45.0, 0.68), (135.0, 0.48), (90.0, 0.3), (0.0, 0.16)):
        across, _ = places(x, angle)
        lines = 0.5 + 0.5 * torch.cos(2 * math.pi / (PITCH * unit) * across)
        drawn = torch.sigmoid(8.0 * unit * (lines - 0.62)) * torch.sigmoid(25.0 * (darkest - tone))
        paper = paper * (1 - 0.85 * drawn)
    return paper.expand_as(x)


def _median(x: Tensor, step: int) -> Tensor:
    """Median of 3 x 3 pixels that lie `step` apart; borders are reflected."""
    height, width = x.shape[-2:]
    x = F.pad(x, (step, step, step, step), mode="reflect")
    # Sort each column of three once; the median of nine is the median of (largest low, median middle, smallest high).
    low, middle, high = _sort(*(x[..., i * step : i * step + height, :] for i in range(3)))
    columns = [[part[..., i * step : i * step + width] for i in range(3)] for part in (low, middle, high)]
    return _sort(_sort(*columns[0])[2], _sort(*columns[1])[1], _sort(*columns[2])[0])[1]


def _sort(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    low, c = torch.minimum(a, c), torch.maximum(a, c)
    return low, torch.minimum(b, c), torch.maximum(b, c)


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "pencil": _pencil,
    "sepia": _sepia,
    "pixel": _pixel,
    "poster": _poster,
    "ink": _ink,
    "halftone": _halftone,
    "hatch": _hatch,
}


def find_filter(name: str) -> Callable[[Tensor], Tensor]:
    """The filter of a name: float `[B, 3, H, W]` in [0, 1] to the same.

    Args:
        name: a key of `FILTERS`, or a family with a number, such as "duotone-17", see `families.FAMILIES`.

    Raises:
        ValueError: an unknown filter.
    """
    if name in FILTERS:
        return FILTERS[name]
    family, _, number = name.partition("-")
    if family in FAMILIES and re.fullmatch("[0-9]{1,9}", number):
        look = look_of_family(family, int(number))
        return lambda x: look(x).clamp(0, 1).expand_as(x)
    raise ValueError(
        f"filter {name!r} is not known; choose one of {', '.join(sorted(FILTERS))}, or a family with a number, "
        f"such as duotone-17: {', '.join(FAMILIES)}"
    )


def apply_filter(images: Tensor, name: str) -> Tensor:
    """The look `name` of every image, each on its own: the result does not depend on the rest of the batch.

    Args:
        images: float `[B, 3, H, W]`, clamped to [-1, 1] first.
        name: see `find_filter`.

    Returns:
        float `[B, 3, H, W]` in [-1, 1]; three equal channels for pencil, ink, halftone and hatch.

    Raises:
        ValueError: an unknown filter.
    """
    return find_filter(name)((images.clamp(-1, 1) + 1) / 2).contiguous() * 2 - 1


def parse_style(style: str) -> tuple[str, str]:
    """`"filter:pencil" -> ("filter", "pencil")`, `"dicebear:lorelei" -> ("dicebear", "lorelei")`.

    Raises:
        ValueError: another form, or an unknown filter or DiceBear style.
    """
    kind, _, name = style.partition(":")
    if kind not in ("filter", "dicebear") or not name:
        raise ValueError(
            f"style {style!r} is not filter:NAME or dicebear:NAME; for example filter:pencil or dicebear:lorelei"
        )
    if kind == "filter":
        find_filter(name)
    if kind == "dicebear" and name not in dicebear_styles():
        raise ValueError(f"DiceBear style {name!r} is not known; choose one of {dicebear_styles()}")
    return kind, name


def dicebear_styles() -> list[str]:
    """Names of the drawing styles the installed `dicebear-styles` package carries.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        folder = files("dicebear_styles")
    except ImportError as error:
        raise ImportError(_DICEBEAR_MISSING) from error
    return sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json"))


def dicebear_licence(style: str) -> dict[str, str]:
    """`{"name", "url", "text"}` of the style's drawings as its author states it: CC0, CC BY or own terms.

    Raises:
        ValueError: an unknown style.
    """
    return dict(_dicebear_definition(style)["meta"]["license"])


def render_dicebear(style: str, num: int, resolution: int, seed: int, start: int = 0) -> Tensor:
    """Random drawings of a DiceBear style on white, rendered locally; text is left out (fonts differ by machine).

    Args:
        style: a name from `dicebear_styles()`.
        num: how many; image i depends on (style, seed, i) alone, so a longer run starts with the same images.
        resolution: side in px; lines are drawn at this size, not enlarged.
        seed: seed of the drawings.
        start: number i of the first image.

    Returns:
        uint8 `[num, 3, resolution, resolution]`.

    Raises:
        ValueError: an unknown style.
        ImportError: dicebear-core, dicebear-styles or resvg-py is not installed.
    """
    definition = _dicebear_definition(style)
    try:
        import resvg_py
        from dicebear import Avatar, Style
        from PIL import Image
    except ImportError as error:
        raise ImportError(_DICEBEAR_MISSING) from error
    drawing = Style(definition)
    images = torch.empty(num, 3, resolution, resolution, dtype=torch.uint8, device="cpu")
    for index in range(num):
        svg = Avatar(drawing, {"seed": f"{seed}-{start + index}", "size": resolution}).to_string()
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=resolution, height=resolution, background="white", skip_system_fonts=True
        )
        with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as image:
            images[index] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return images


_DICEBEAR_MISSING = "DiceBear styles need dicebear-core, dicebear-styles and resvg-py: pip install 'fewshot_gan[train]'"


def _dicebear_definition(style: str) -> dict[str, Any]:
    if style not in dicebear_styles():
        raise ValueError(f"DiceBear style {style!r} is not known; choose one of {dicebear_styles()}")
    return json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))
