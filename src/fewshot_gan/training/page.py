"""A run as one HTML page: curves as inline SVG, pictures as data URIs, no script, and nothing that is loaded.

Every text of the run is escaped, and the page's own policy lets a browser neither run nor fetch anything.
"""

import base64
import io
import json
import math
import time
from functools import lru_cache
from html import escape
from pathlib import Path
from statistics import median
from urllib.parse import quote

import numpy as np
from PIL import Image

MOST_POINTS = 500  # of a curve; beyond, each stands for the mean of several steps
MOST_GRIDS, GRID_WIDTH, GRID_BYTES = 10, 1536, 1_900_000  # sample grids, pixels across, and bytes of all their JPEGs
MOST_THUMBS, THUMB = 12, 176
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 46, 12, 10, 24  # of a chart and of what its axes take
DECADES = 1.5  # from which span on a scale is logarithmic

MEANING = {
    "d": "discriminator",
    "g": "generator against the discriminator",
    "adv_aug": "generator, with moved styles (AdvAug)",
    "adapter": "the adapter's own penalty",
    "anchor": "likeness near fixed latents",
    "clip_ref": "embedding of the reference",
    "clip_within": "directions within the look",
    "colour": "colours of the training images",
    "content": "content of the source picture",
    "direction": "direction from source to target embeddings",
    "distillation": "answers of the teacher",
    "feature": "frozen features of the teacher's pictures",
    "global": "nearness to the target embedding",
    "indomain": "variety within the look",
    "l2": "pixels of the reference",
    "mode_seeking": "different latents, different pictures",
    "offsets_l1": "size of the domain vector",
    "offsets_l2": "size of the domain vector",
    "path_length": "path length of the generator",
    "perceptual": "perceptual distance to the reference",
    "pixel": "pixels of the teacher's pictures",
    "r1": "gradient penalty at real images",
    "r1_fake": "gradient penalty at generated images",
    "reconstruction": "training images from their latents",
    "relation": "relations between pictures kept",
    "statistics": "feature statistics of the training images",
    "structure": "light and dark of the source picture",
    "transfer": "feature maps of the source",
    "tt_direction": "direction between targets",
    "wasserstein": "feature distributions of the training images",
}

STYLE = """
:root { color-scheme: light dark; --text: #1d2330; --soft: #5b6475; --line: #d9dee7; --back: #ffffff; --card: #f5f7fa;
  --curve: #1f6feb; --good: #1a7f37; --bad: #c62828; --wait: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ef; --soft: #a3adbd; --line: #353d4a; --back: #12161c;
  --card: #1b212a; --curve: #6cb0ff; --good: #56d364; --bad: #ff8a80; --wait: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 40px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 34px 0 8px; }
p { margin: 0 0 10px; overflow-wrap: anywhere; } .soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.state { font-weight: 600; border: 1px solid; border-radius: 99px; padding: 1px 10px; margin-right: 6px; }
.finished { color: var(--good); } .diverged { color: var(--bad); } .running, .stopped { color: var(--wait); }
progress { width: 100%; height: 8px; accent-color: var(--curve); }
figure { margin: 0; } figcaption b { color: var(--text); font-size: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 14px; }
.charts figure { background: var(--card); border-radius: 8px; padding: 10px 10px 4px; display: flex;
  flex-direction: column; justify-content: space-between; gap: 6px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: 1; } polyline { fill: none; stroke: var(--curve); stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .5; } .smooth { stroke-width: 2; } circle { fill: var(--curve); }
.scroll { overflow-x: auto; border-radius: 8px; } .scroll:focus-visible { outline: 2px solid var(--curve); }
.strips { min-width: 760px; } .strips img { display: block; width: 100%; }
.strips figcaption { position: sticky; left: 0; width: max-content; padding: 6px 0 2px; }
.small img { image-rendering: pixelated; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); gap: 6px;
  margin: 8px 0 0; padding: 0; list-style: none; }
.thumbs img { display: block; width: 100%; border-radius: 6px; border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 4px; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td { overflow-wrap: anywhere; } .facts th { width: 11rem; }
.numbers { width: auto; margin-top: 14px; } .numbers td, .numbers th { white-space: nowrap; padding-right: 18px; }
.numbers td, .numbers th + th { text-align: right; }
pre { background: var(--card); border-radius: 8px; padding: 12px; margin: 0; font-size: .875rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.chip { display: inline-block; width: 22px; height: 3px; border-radius: 2px; margin: 0 8px 4px 0; }
summary { cursor: pointer; color: var(--soft); } a { color: var(--curve); }
@media (max-width: 500px) { .facts th { width: 7rem; } main { padding-top: 14px; }
  .numbers { font-size: .8125rem; } .numbers td, .numbers th { padding-right: 12px; } }
@media print { .scroll { overflow: visible; } .strips { min-width: 0; } }
"""


def render(report) -> str:
    """The page of a `fewshot_gan.training.report.Report`, or of its `rounds`."""
    name = report.folder.resolve().name
    parts = [
        _head(report, name),
        _rounds(report) if report.rounds else _samples(report),
        _losses(report),
        _facts(report),
        _data(report),
        _making(report),
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{escape(name)}: {escape(report.state or '')}</title>",
            f"<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *(part for part in parts if part),
            "</main>\n</body>\n</html>\n",
        ]
    )


# ------------------------------------------------------------------ parts of the page


def _head(report, name: str) -> str:
    spent = [*report.seconds, *(second for part in report.rounds.values() for second in part.seconds)]
    line = f"step {report.step:,} of {report.steps:,}"
    if spent:
        usual, together = median(spent), "so far" if report.state == "running" else "in all"
        line += f" · {usual:.3g} s a step, {duration(sum(spent))} {together}"
        if report.state == "running":
            line += f", about {duration(usual * (report.steps - report.step))} to go"
    written = f"Written {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"
    if report.state == "running":
        written += "; it is written anew at every sample and checkpoint: reload to see more"
    why = f"<p>{escape(report.message)}</p>" if report.message else ""
    bar = ""
    if report.state != "finished":
        bar = f'<progress max="{report.steps}" value="{report.step}" aria-label="steps done"></progress>'
    return (
        f"<header><h1>{escape(name)}</h1>\n<p>{escape(report.title)}</p>\n"
        f'<p><span class="state {report.state}">{report.state}</span> {line}</p>\n{why}{bar}'
        f'<p class="soft">{written}.</p></header>'
    )


def _samples(report) -> str:
    grids = report.grids()
    if not grids:
        return ""
    if len(grids) > MOST_GRIDS:
        grids = [grids[round(i * (len(grids) - 1) / (MOST_GRIDS - 1))] for i in range(MOST_GRIDS)]
    if report.shared and len(grids) > 1 and unlearned(grids[0][1], grids[0][1].stat().st_mtime_ns, report.shared):
        grids = grids[1:]
    shown = [(step, picture_uri(file, file.stat().st_mtime_ns, report.shared, None)) for step, file in grids]
    while sum(len(uri) for _, uri in shown) > GRID_BYTES * 4 / 3 and len(shown) > 2:
        shown = [*shown[:-1][::2], shown[-1]] if len(shown) > 3 else [shown[0], shown[-1]]
    strips = []
    if report.shared:
        first = grids[0][1]
        uri = picture_uri(first, first.stat().st_mtime_ns, 0, report.shared)
        of = report.first_row
        strips += [_strip(of, f"Pictures of {of}, a column for each latent", uri)]
    what = "Pictures of the same latents" if report.shared else "Sample pictures"
    strips += [_strip(f"step {step:,}", f"{what} at step {step}", uri) for step, uri in shown]
    shows = f"A column is one latent; the first row is {report.first_row}." if report.shared else report.grid
    return _section(
        "Samples", f'<p class="soft">{escape(shows)}</p>' + _scroll("sample pictures over time", strips, report)
    )


def _strip(label: str, alt: str, uri: str) -> str:
    return f'<figure><figcaption>{escape(label)}</figcaption><img src="{uri}" alt="{escape(alt)}"></figure>'


def _scroll(label: str, strips: list[str], report) -> str:
    side = (report.images.shape[-1] if report.images is not None else 0) or 256
    small = " small" if side < 64 else ""
    inside = "\n".join(strips)
    return (
        f'<div class="scroll{small}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<div class="strips">\n{inside}\n</div></div>'
    )


def _rounds(report) -> str:
    losses = list(dict.fromkeys(name for part in report.rounds.values() for name in part.curves))
    pruned = ["pruned"] if any("Pruned" in part.facts for part in report.rounds.values()) else []
    heads = [report.part, *pruned, "steps", "s a step", *(f"{name}, last tenth" for name in losses), "state"]
    rows, strips = [], []
    for i, (name, part) in enumerate(report.rounds.items()):
        link = f'<a href="{quote(name)}/report.html">{escape(name)}</a>'
        cells = [
            *(part.facts["Pruned"] for _ in pruned),
            f"{part.step:,}",
            f"{median(part.seconds):.3g}" if part.seconds else "",
            *(number(last_tenth(part.curves[x][1])) if x in part.curves else "" for x in losses),
            part.state or "",
        ]
        chip = f'<span class="chip" style="background:{hue(i, len(report.rounds))}"></span>'
        rows.append(f'<th scope="row">{chip}{link}</th>' + "".join(f"<td>{escape(c)}</td>" for c in cells))
        for step, file in part.grids()[-1:]:
            changed = file.stat().st_mtime_ns
            if part.shared and not strips:
                uri = picture_uri(file, changed, 0, part.shared)
                strips.append(_strip(part.first_row, f"Pictures of {part.first_row}", uri))
            uri = picture_uri(file, changed, part.shared, None)
            strips.append(_strip(f"{name}, step {step:,}", f"Sample pictures of {name} at step {step}", uri))
    table = _table(f"The chip of a {report.part} is the colour of its curves.", heads, rows, "numbers")
    parts = _section(f"{report.part.capitalize()}s", table)
    if strips:
        note = f'<p class="soft">The newest of each {report.part}; the same latents in all.</p>'
        newest = _scroll(f"newest sample pictures of each {report.part}", strips, report)
        parts += "\n" + _section("Samples", note + newest)
    return parts


def _losses(report) -> str:
    parts = report.rounds or {"": report}
    names = list(dict.fromkeys(name for part in parts.values() for name in part.curves))
    if not names:
        return ""
    figures, rows, points = [], [], {}
    for name in names:
        series = {label: part.curves[name] for label, part in parts.items() if name in part.curves}
        drawn, points[name], scale = chart(name, series, len(report.rounds))
        meaning = MEANING.get(name, "")
        figures.append(
            f"<figure><figcaption><b>{escape(name)}</b> {escape(meaning)}{scale}</figcaption>\n{drawn}</figure>"
        )
        steps, values = next(reversed(series.values()))
        low = int(np.argmin(values))
        cells = [number(values[0]), number(last_tenth(values)), f"{number(values[low])} ({steps[low]:,})"]
        rows.append(f'<th scope="row">{escape(name)}</th>' + "".join(f"<td>{x}</td>" for x in cells))
    caption = f"Of the latest {report.part}:" if report.rounds else ""
    table = _table(caption, ["loss", "first", "last tenth", "lowest (step)"], rows, "numbers")
    shown = f"one curve per {report.part}, smoothed" if report.rounds else "thin: as it was; thick: smoothed"
    note = f"Each term as it enters the sum, its weight included, against the step; {shown}."
    data = json.dumps(points, separators=(",", ":")).replace("<", "\\u003c")
    return _section(
        "Losses",
        f'<p class="soft">{note}</p>\n<div class="charts">\n' + "\n".join(figures) + f"\n</div>\n{table}"
        f'\n<script type="application/json" id="curves">{data}</script>',
    )


def _facts(report) -> str:
    rows = [f'<th scope="row">{escape(k)}</th><td>{escape(str(v))}</td>' for k, v in report.facts.items() if v]
    return _section("What is made", _table("", [], rows, "facts")) if rows else ""


def _data(report) -> str:
    if not report.data:
        return ""
    thumbs = ""
    if report.images is not None:
        items = [f'<li><img src="{x}" alt="training image {i}"></li>' for i, x in enumerate(report.thumbs, 1)]
        thumbs = f'<ul class="thumbs">{"".join(items)}</ul>'
        if len(report.images) > MOST_THUMBS:
            thumbs += f'<p class="soft">The first {MOST_THUMBS}.</p>'
    return _section("Data", f"<p>{escape(report.data)}</p>{thumbs}")


def _making(report) -> str:
    versions = [f'<th scope="row">{escape(k)}</th><td>{escape(v)}</td>' for k, v in report.versions().items()]
    parts = [
        _section("Command", f"<pre><code>{escape(report.command)}</code></pre>"),
        _section("Versions", _table("", [], versions, "facts")),
    ]
    if report.settings:
        rows = [
            f'<th scope="row">{escape(k)}</th><td>{escape(_plain(v))}</td>' for k, v in sorted(report.settings.items())
        ]
        table = _table("", ["setting", "value"], rows, "facts")
        parts.insert(1, _section("Settings", f"<details><summary>All {len(rows)}</summary>{table}</details>"))
    return "\n".join(parts)


def _plain(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>"


def _table(caption: str, heads: list[str], rows: list[str], kind: str) -> str:
    head = "".join(f'<th scope="col">{escape(x)}</th>' for x in heads)
    head = f"<thead><tr>{head}</tr></thead>" if heads else ""
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="{kind}">{said}{head}<tbody>\n{body}\n</tbody></table>'
    label = escape(f"table: {', '.join(heads)}")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>' if heads else table


# ------------------------------------------------------------------ curves


def chart(name: str, series: dict, rounds: int) -> tuple[str, dict, str]:
    """A loss as SVG.

    Args:
        name: of the loss.
        series: label → (steps, values); of a single run its one label is "".
        rounds: how many lines share the colours; 0: one run, drawn as it was and smoothed.

    Returns:
        The `<svg>`; label → the points drawn, `[steps, values]`; what the caption says of the scale.
    """
    lines = []  # label, class, steps, values
    for label, (steps, values) in series.items():
        steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        if not rounds:
            lines.append((label, "raw", *thinned(steps, values)))
        lines.append((label, "smooth", *thinned(steps, smooth(values))))
    low, high = (f(f(line[3]) for line in lines) for f in (min, max))
    logarithmic = low > 0 and math.log10(high / low) > DECADES
    first, last = min(line[2][0] for line in lines), max(line[2][-1] for line in lines)
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def across(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * (0.5 if last == first else (step - first) / (last - first))

    def down(value):
        value = math.log10(value) if logarithmic else value
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    said = ", ".join(f"{label} {number(values[-1])}".strip() for label, kind, _, values in lines if kind == "smooth")
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>Loss {escape(name)} from step {first:.0f} to '
        f"{last:.0f}; smoothed, it ends at {escape(said)}</title>"
    ]
    for value in log_ticks(low, high) if logarithmic else ticks(low, high, 5):
        y = down(value)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.2f}" text-anchor="end">{number(value)}</text>')
    for step in [first] if first == last else ticks(first, last, 5):
        if step == int(step):
            out.append(f'<text x="{across(step):.2f}" y="{HEIGHT - 6}" text-anchor="middle">{step:,.0f}</text>')
    labels = list(series)
    for label, kind, steps, values in lines:
        points = [(across(x), down(y)) for x, y in zip(steps, values, strict=True)]
        colour = f' style="stroke:{hue(labels.index(label), rounds)}"' if rounds else ""
        if len(points) == 1:
            fill = colour.replace("stroke", "fill")
            out.append(f'<circle class="{kind}" cx="{points[0][0]:.2f}" cy="{points[0][1]:.2f}" r="3"{fill}/>')
        else:
            path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
            out.append(f'<polyline class="{kind}"{colour} points="{path}"/>')
    shown = "smooth" if rounds else "raw"
    drawn = {label: [x.tolist(), y.tolist()] for label, kind, x, y in lines if kind == shown}
    return "\n".join([*out, "</svg>"]), drawn, ", log scale" if logarithmic else ""


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a twentieth of the run, at least five values, without the pull of its start."""
    keep = 1 - 1 / max(5.0, len(values) / 20)
    out, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values.tolist()):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS`: means of neighbours, each at their last step; shorter curves as they are."""
    if len(values) <= MOST_POINTS:
        return steps, values
    edges = np.linspace(0, len(values), MOST_POINTS + 1).round().astype(int)
    return steps[edges[1:] - 1], np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def last_tenth(values) -> float:
    return float(np.mean(values[-max(1, len(values) // 10) :]))


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside, about `count` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= count)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the logarithms, at most five."""
    powers = range(math.ceil(low), math.floor(high) + 1)
    return [10.0**p for p in powers if p % max(1, math.ceil(len(powers) / 5)) == 0]


def hue(i: int, count: int) -> str:
    """Colour of the i-th of `count` lines, blue to orange, of one lightness for both themes."""
    return f"hsl({215 - 190 * i / max(1, count - 1):.0f} 70% 52%)"


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------ pictures


@lru_cache(maxsize=64)
def picture_uri(file: Path, changed: int, top: int, bottom: int | None) -> str:
    """Rows `top` to `bottom` of a picture file as a JPEG in a URI; `changed` is its time, by which it is remembered."""
    with Image.open(file, formats=("PNG",)) as image:  # as `Report.show` writes them
        image = image.convert("RGB").crop((0, top, image.width, bottom or image.height))
    if image.width > GRID_WIDTH:
        image = image.resize((GRID_WIDTH, max(1, round(image.height * GRID_WIDTH / image.width))))
    return _uri(image)


@lru_cache(maxsize=64)
def unlearned(file: Path, changed: int, shared: int) -> bool:
    """Whether a sample grid shows the same, but for rounding, below its first row, `shared` pixels high."""
    with Image.open(file, formats=("PNG",)) as image:
        rows = np.asarray(image.convert("RGB"), dtype=int)
    return all(np.abs(rows[top : top + shared] - rows[:shared]).mean() < 1 for top in range(0, len(rows), shared))


def thumbs(images) -> list[str]:
    """The first of uint8 `[N, 3, R, R]` as small JPEGs in URIs."""
    pictures = [Image.fromarray(x.permute(1, 2, 0).cpu().numpy()) for x in images[:MOST_THUMBS]]
    return [_uri(x if x.width <= THUMB else x.resize((THUMB, THUMB))) for x in pictures]


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
