"""Loss curves as inline SVG: matplotlib draws them, the style sheet of the page colours them."""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

MAX_POINTS = 500  # points of a curve; in longer runs each point is the mean of several steps
WIDTH, HEIGHT = 360, 190  # size of a chart in pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 24  # margins in pixels; they hold the numbers at the axes
LOG_SCALE_DECADES = 1.5  # losses that span more than this many powers of ten get a logarithmic scale
SVG = "{http://www.w3.org/2000/svg}"

Curve = tuple[Sequence[int], Sequence[float]]  # steps, and the loss at each of them


@dataclass(frozen=True)
class Chart:
    """One loss as a picture.

    Attributes:
        svg: the `<svg>` element.
        points: label → the drawn `(steps, values)`.
        logarithmic: whether the vertical scale is logarithmic.
    """

    svg: Markup
    points: dict[str, tuple[list[float], list[float]]]
    logarithmic: bool


@dataclass(frozen=True)
class _Line:
    label: str
    kind: str  # CSS class: "raw" or "smooth"
    steps: np.ndarray
    values: np.ndarray
    colour: str | None  # None: the colour of the style sheet


def chart(name: str, curves: dict[str, Curve], colours: dict[str, str] | None = None) -> Chart:
    """Draw the curves of one loss.

    Equal curves give equal bytes, so the page of a resumed run equals that of an uninterrupted one.

    Args:
        name: name of the loss.
        curves: label → steps and values. A single run has the one label "".
        colours: label → CSS colour, one smoothed line per label. None: one run, drawn as logged and smoothed.
    """
    lines = []
    for label, (steps, values) in curves.items():
        # copies: a view would forbid the run to append to its curve for as long as matplotlib keeps the figure
        steps, values = np.array(steps, dtype=float), np.array(values, dtype=float)
        if colours is None:
            lines.append(_Line(label, "raw", *thin_out(steps, values), None))
        colour = None if colours is None else colours[label]
        lines.append(_Line(label, "smooth", *thin_out(steps, smooth(values)), colour))
    low, high = min(line.values.min() for line in lines), max(line.values.max() for line in lines)
    logarithmic = bool(low > 0 and math.log10(high / low) > LOG_SCALE_DECADES)
    shown = "raw" if colours is None else "smooth"
    points = {line.label: (line.steps.tolist(), line.values.tolist()) for line in lines if line.kind == shown}
    ends = (f"{x.label} {format_number(x.values[-1])}".strip() for x in lines if x.kind == "smooth")
    first, last = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)
    title = f"Loss {name} from step {first:,.0f} to {last:,.0f}; smoothed, it ends at {', '.join(ends)}"
    return Chart(_inline(_draw(lines, logarithmic), title, lines), points, logarithmic)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the exponential moving average over a twentieth of the run (at least five values), bias-corrected."""
    decay = 1 - 1 / max(5.0, len(values) / 20)
    averages, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values.tolist()):
        total, weight = decay * total + value, decay * weight + 1
        averages[i] = total / weight
    return averages


def thin_out(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `MAX_POINTS` points: means of neighbouring values, each at the last of their steps.

    Curves with fewer points are returned as they are.
    """
    if len(values) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(values), MAX_POINTS + 1).round().astype(int)
    return steps[edges[1:] - 1], np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def format_number(value: float) -> str:
    """Return a loss with three significant digits, four from 1000 on."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return the numbers at an axis with three significant digits, or with as many as they need to differ."""
    labels: list[str] = []
    for digits in range(3, 17):
        labels = [f"{value:.{max(digits, 3 if abs(value) < 1000 else 4)}g}" for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


# ------------------------------------------------------------------ matplotlib


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress matplotlib's warnings about a home directory without write access and about building its font cache."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _draw(lines: list[_Line], logarithmic: bool) -> str:
    """Return the SVG file that matplotlib writes. Every curve is a group whose id is its index in `lines`."""
    with _quiet():  # imported here because it takes a third of a second, and only pages with curves need it
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    # matplotlib's defaults, so that a matplotlibrc file of the user changes nothing; restored afterwards
    settings: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "fewshot_gan", "path.simplify": False, "font.size": 11}
    text = StringIO()
    with _quiet(), matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)  # SVG has 72 dots per inch
        box = (LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT)
        axes = figure.add_axes(box, frameon=False)
        for i, line in enumerate(lines):
            # a single point is a line of length 0, which the style sheet gives round ends
            steps, values = (np.repeat(x, 2) if len(x) == 1 else x for x in (line.steps, line.values))
            axes.plot(steps, values, gid=str(i), clip_on=False)
        first, last = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)
        low, high = min(line.values.min() for line in lines), max(line.values.max() for line in lines)
        if logarithmic:
            axes.set_yscale("log")
            room = (high / low) ** 0.04
            axes.set_ylim(low / room, high * room)
            subs = (1, 2, 5) if high / low < 300 else (1,)  # within few powers of ten they alone are too few numbers
            axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
            axes.set_ylim(low - room, high + room)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        low, high = axes.get_ylim()
        ticks = [float(value) for value in axes.yaxis.get_majorticklocs() if low <= value <= high]
        axes.set_yticks(ticks, tick_labels(ticks))
        if first == last:
            axes.set_xlim(first - 1, last + 1)
            axes.xaxis.set_major_locator(FixedLocator([first]))
        else:
            axes.set_xlim(first, last)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.tick_params(left=False, bottom=False)
        axes.grid(axis="y")
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()


def _inline(file: str, title: str, lines: list[_Line]) -> Markup:
    """Return what a chart needs of matplotlib's SVG file: curves, grid lines and numbers, with classes for colours."""
    drawn = ElementTree.fromstring(file)
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"})
    ElementTree.SubElement(svg, "title").text = title
    for path in drawn.iter(f"{SVG}path"):
        if path.get("clip-path"):  # only the grid lines are clipped
            ElementTree.SubElement(svg, "path", {"class": "grid", "d": _compact(path)})
    groups = {group.get("id"): group for group in drawn.iter(f"{SVG}g")}
    for i, line in enumerate(lines):
        [path] = groups[str(i)].iter(f"{SVG}path")
        attributes = {"class": line.kind if len(line.values) > 1 else f"{line.kind} dot", "d": _compact(path)}
        if line.colour:
            attributes["style"] = f"stroke: {line.colour}"
        ElementTree.SubElement(svg, "path", attributes)
    for text in drawn.iter(f"{SVG}text"):
        anchor = re.search(r"text-anchor: (\w+)", text.get("style", ""))
        where = {key: _rounded(text.get(key, "0")) for key in ("x", "y")}
        where["text-anchor"] = anchor[1] if anchor else "start"
        ElementTree.SubElement(svg, "text", where).text = text.text
    return Markup(ElementTree.tostring(svg, encoding="unicode"))  # ElementTree escapes every text


def _compact(path: ElementTree.Element) -> str:
    return _rounded(" ".join(path.get("d", "").split()))


def _rounded(coordinates: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", coordinates)
