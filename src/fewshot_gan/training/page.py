"""The HTML page of a run: one file with inline curves and pictures, without scripts and without network access.

`report.html.j2` holds the markup and styles, `charts` draws the curves; this module collects what the page shows. Every
text of the run is escaped, and the page's Content-Security-Policy forbids browsers to run or fetch anything.
"""

import base64
import io
import time
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from .charts import MAX_POINTS, Curve, chart, format_number

if TYPE_CHECKING:
    from .report import Report

TEMPLATE_NAME = "report.html.j2"
MAX_GRIDS = 10  # sample grids on the page, spread over the run
GRID_WIDTH = 1536  # pixels
MAX_GRID_BYTES = 1_900_000  # of all sample grids together, as JPEG
MAX_THUMBS, THUMB_SIZE = 12, 176  # training images shown, and their side in pixels
JPEG_QUALITY = 82

# name of a loss → what it measures
MEANING = {
    "d": "discriminator",
    "g": "generator against the discriminator",
    "adv_aug": "generator, with perturbed styles (AdvAug)",
    "ada_p": "probability of each augmentation (ADA)",
    "adapter": "regularisation of the adapter",
    "clip_ref": "distance to the reference's embedding",
    "clip_within": "directions from the reference to other pictures of the domain",
    "coarse": "small training images from their counterparts",
    "colour": "colours of the training images",
    "colour_map": "colours of places, as the pairs predict them from the source",
    "parts": "features of eyes and mouth, as in the training images",
    "content": "content of the source picture",
    "crops": "perceptual distance of native crops to the reference",
    "dcl": "each picture nearest to its own source picture, in the generator",
    "dcl_d": "each picture nearest to its own source picture, in the discriminator",
    "direction": "direction from source to target embeddings",
    "distillation": "outputs of the teacher",
    "feature": "frozen features of the teacher's pictures",
    "global": "distance to the target embedding",
    "indomain": "variety within the target domain",
    "l1": "absolute pixel distance to the reference",
    "l2": "pixel distance to the reference",
    "locality": "pictures near the reference, as in the base",
    "mode_seeking": "different pictures for different latents",
    "offsets_l1": "size of the domain vector",
    "offsets_l2": "size of the domain vector",
    "pairs": "training images from their counterparts",
    "path_length": "path length of the generator",
    "perceptual": "perceptual distance to the reference",
    "pixel": "pixels of the teacher's pictures",
    "r1": "gradient penalty on real images",
    "r1_fake": "gradient penalty on generated images",
    "reconstruction": "training images from their latents",
    "relation": "similarities between pictures, as in the source",
    "statistics": "feature statistics of the training images",
    "structure": "lines and light of the source picture",
    "transfer": "feature maps of the source",
    "tt_direction": "direction between targets",
    "wasserstein": "feature distributions of the training images",
}


@dataclass(frozen=True)
class _Row:
    name: str
    cells: list[str]
    colour: str = ""
    link: str = ""


@dataclass(frozen=True)
class _Table:
    caption: str
    heads: list[str]
    rows: list[_Row]


def render(report: "Report") -> str:
    """Return the page of a report, or of a report's `rounds` where it has any."""
    return (
        _environment()
        .get_template(TEMPLATE_NAME)
        .render(
            report=report,
            name=report.folder.resolve().name,
            progress=_progress(report),
            written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            rounds=_rounds(report),
            samples=_newest_samples(report) if report.rounds else _samples(report),
            losses=_losses(report),
            facts=[(name, value) for name, value in report.facts.items() if value],
            settings=[(name, _plain(value)) for name, value in sorted(report.settings.items())],
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,  # an update of the package during a run must not change the run's page
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # and keep the losses in their order
    return environment


# ------------------------------------------------------------------ parts of the page


def _progress(report: "Report") -> list[str]:
    """Return steps and times, e.g. "step 20 of 100", "1.5 s a step", "30 s so far", "about 2 min to go"."""
    seconds = [*report.seconds, *(second for part in report.rounds.values() for second in part.seconds)]
    progress = [f"step {report.step:,} of {report.steps:,}"]
    if seconds:
        usual, running = median(seconds), report.state == "running"
        progress += [f"{usual:.3g} s a step", f"{duration(sum(seconds))} {'so far' if running else 'in all'}"]
        if running:
            progress.append(f"about {duration(usual * (report.steps - report.step))} to go")
    return progress


def _samples(report: "Report") -> dict[str, Any] | None:
    """Return sample grids spread over the run; the row that all of them share is shown once, at the top."""
    grids = report.grids()
    if not grids:
        return None
    if len(grids) > MAX_GRIDS:
        grids = [grids[round(i * (len(grids) - 1) / (MAX_GRIDS - 1))] for i in range(MAX_GRIDS)]
    if report.shared and len(grids) > 1 and unlearned(grids[0][1], _changed(grids[0][1]), report.shared):
        grids = grids[1:]
    shown = [(step, picture_uri(file, _changed(file), report.shared, None)) for step, file in grids]
    while sum(len(uri) for _, uri in shown) > MAX_GRID_BYTES * 4 / 3 and len(shown) > 2:
        shown = [*shown[:-1][::2], shown[-1]] if len(shown) > 3 else [shown[0], shown[-1]]
    pictures = []
    if report.shared:
        file, row = grids[0][1], report.first_row
        uri = picture_uri(file, _changed(file), 0, report.shared)
        pictures.append((row, f"Pictures of {row}, one column per latent", uri))
    what = "Pictures of the same latents" if report.shared else "Sample pictures"
    pictures += [(f"step {step:,}", f"{what} at step {step}", uri) for step, uri in shown]
    note = f"Each column shows one latent; the first row shows {report.first_row}." if report.shared else report.grid
    return {
        "note": note,
        "label": "sample pictures over time",
        "pictures": pictures,
        "pixelated": _pixelated(report),
    }


def _newest_samples(report: "Report") -> dict[str, Any] | None:
    """Return the newest sample grid of each round."""
    pictures = []
    for name, part in report.rounds.items():
        for step, file in part.grids()[-1:]:
            if part.shared and not pictures:
                uri = picture_uri(file, _changed(file), 0, part.shared)
                pictures.append((part.first_row, f"Pictures of {part.first_row}", uri))
            uri = picture_uri(file, _changed(file), part.shared, None)
            pictures.append((f"{name}, step {step:,}", f"Sample pictures of {name} at step {step}", uri))
    if not pictures:
        return None
    return {
        "note": f"The newest pictures of each {report.part}, all of the same latents.",
        "label": f"newest sample pictures of each {report.part}",
        "pictures": pictures,
        "pixelated": _pixelated(report),
    }


def _rounds(report: "Report") -> _Table | None:
    if not report.rounds:
        return None
    losses, colours = _loss_names(report.rounds), _colours(report)
    pruned = any("Pruned" in part.facts for part in report.rounds.values())
    rows = []
    for name, part in report.rounds.items():
        cells = [part.facts["Pruned"]] if pruned else []
        cells += [f"{part.step:,}", f"{median(part.seconds):.3g}" if part.seconds else ""]
        cells += [format_number(last_tenth(part.curves[x][1])) if x in part.curves else "" for x in losses]
        rows.append(_Row(name, [*cells, part.state or ""], colours[name], f"{quote(name)}/report.html"))
    heads = [report.part, *["pruned"] * pruned, "steps", "s a step", *(f"{x}, last tenth" for x in losses), "state"]
    return _Table(f"The line before each {report.part} has the colour of its curves.", heads, rows)


def _losses(report: "Report") -> dict[str, Any] | None:
    parts = report.rounds or {"": report}
    charts, points, rows, thinned = [], {}, [], False
    for name in _loss_names(parts):
        curves: dict[str, Curve] = {label: part.curves[name] for label, part in parts.items() if name in part.curves}
        drawn = chart(name, curves, _colours(report) if report.rounds else None)
        points[name] = drawn.points
        charts.append(
            {"name": name, "meaning": MEANING.get(name, ""), "svg": drawn.svg, "logarithmic": drawn.logarithmic}
        )
        steps, values = list(curves.values())[-1]
        lowest = int(np.argmin(values))
        cells = [format_number(values[0]), format_number(last_tenth(values))]
        rows.append(_Row(name, [*cells, f"{format_number(values[lowest])} ({steps[lowest]:,})"]))
        thinned = thinned or any(len(values) > MAX_POINTS for _, values in curves.values())
    if not charts:
        return None
    lines = f"one line per {report.part}, smoothed" if report.rounds else "thin line as logged, thick line smoothed"
    note = f"Each loss with its weight, against the training step: {lines}."
    if thinned:
        note += f" Longer curves have {MAX_POINTS} points, each the mean of several steps."
    caption = f"Of the latest {report.part}:" if report.rounds else ""
    table = _Table(caption, ["loss", "first", "last tenth", "lowest (step)"], rows)
    return {"note": note, "charts": charts, "table": table, "points": points}


def _loss_names(parts: "dict[str, Report]") -> list[str]:
    return list(dict.fromkeys(name for part in parts.values() for name in part.curves))


def _colours(report: "Report") -> dict[str, str]:
    """Return a CSS colour for each round, from blue to orange, of one lightness that is readable in both themes."""
    last = max(1, len(report.rounds) - 1)
    return {name: f"oklch(63% 0.16 {255 - 205 * i / last:.0f})" for i, name in enumerate(report.rounds)}


def _pixelated(report: "Report") -> bool:
    """Return whether the pictures are so small that a browser should enlarge them without smoothing."""
    return report.images is not None and 0 < report.images.shape[-1] < 64


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def last_tenth(values) -> float:
    """Return the mean of the last tenth of the values, at least of the last one."""
    return float(np.mean(values[-max(1, len(values) // 10) :]))


def duration(seconds: float) -> str:
    """Return a time in words, e.g. "2.5 s", "10 min" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------ pictures


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns


@lru_cache(maxsize=64)
def picture_uri(file: Path, changed: int, top: int, bottom: int | None) -> str:
    """Return a part of a PNG file as a JPEG data URI.

    Args:
        file: sample grid, as `Report.show` writes it.
        changed: modification time in nanoseconds; part of the cache key.
        top, bottom: first row of pixels, and the row after the last; None: to the end.
    """
    with Image.open(file, formats=("PNG",)) as opened:
        image = opened.convert("RGB").crop((0, top, opened.width, bottom or opened.height))
    if image.width > GRID_WIDTH:
        image = image.resize((GRID_WIDTH, max(1, round(image.height * GRID_WIDTH / image.width))))
    return _uri(image)


@lru_cache(maxsize=64)
def unlearned(file: Path, changed: int, shared: int) -> bool:
    """Return whether all rows of a sample grid show the same pictures, apart from rounding.

    Args:
        file: sample grid, as `Report.show` writes it.
        changed: modification time in nanoseconds; part of the cache key.
        shared: height of a row in pixels.
    """
    with Image.open(file, formats=("PNG",)) as image:
        rows = np.asarray(image.convert("RGB"), dtype=int)
    return all(np.abs(rows[top : top + shared] - rows[:shared]).mean() < 1 for top in range(0, len(rows), shared))


def thumbs(images: torch.Tensor) -> list[str]:
    """Return the first of the uint8 images `[N, 3, R, R]` as small JPEG data URIs."""
    pictures = [Image.fromarray(x.permute(1, 2, 0).cpu().numpy()) for x in images[:MAX_THUMBS]]
    return [_uri(x if x.width <= THUMB_SIZE else x.resize((THUMB_SIZE, THUMB_SIZE))) for x in pictures]


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
