"""Table and sheets of a bench, from the JSON files and picture strips of its cells alone: no network is loaded.

`write` makes `table.md` (a summary, then one table per look) and `sheets/LOOK.jpg` (a row per method between the source
and the true look; the same latents in each, but drawings have none).
"""

from __future__ import annotations

import json
from math import log, nan
from pathlib import Path
from statistics import mean

from PIL import Image, ImageDraw, ImageFont

from fewshot_gan.utils.files import replace_file, replace_text

BASELINES = ("transfergan-full", "freezed-full")
QUALITY, DIVERSITY = "kid_x1e3", "balanced_intra_cluster_distance"  # lower and higher is better
COLUMNS = {  # heading: path in a row of numbers
    "KID": "kid_x1e3",
    "ratio": "kid_x1e3_ratio",
    "Fréchet": "frechet",
    "unseen": "unseen_x1e3",
    "ratio ": "unseen_x1e3_ratio",
    "plain": "plain_x1e3",
    "ratio  ": "plain_x1e3_ratio",
    "distance": "spatial_distance",
    "to true": "spatial_distance_ratio",
    "intra": "intra_cluster_distance",
    "to true ": "intra_cluster_distance_ratio",
    "balanced": "balanced_intra_cluster_distance",
    "to true  ": "balanced_intra_cluster_distance_ratio",
    "source: edge": "correlation_with_source.edge",
    "luminance": "correlation_with_source.luminance",
    "truth: edge": "correlation_with_truth.edge",
    "luminance ": "correlation_with_truth.luminance",
    "pair distance": "distance_to_truth",
    "order": "identity_order",
    "landmarks": "landmarks.distance",
    "found": "landmarks.found",
}
COSTS = {
    "numbers": "parameters",
    "kB": "adapter_bytes",
    "s/step": "seconds_per_step",
    "peak MiB": "peak_mib",
    "GPU MiB": "peak_gpu_mib",
}
LEGEND = """\
KID × 1e3 and Fréchet distance to the true pictures in EfficientNet-Lite0 pooled features, which training may have
seen; *unseen*: KID × 1e3 in those of EfficientNet-Lite2, which no training signal comes from; *plain*: KID × 1e3 in
colour and gradient histograms and 16×16 greys, which no loss computes, though what some cells learn from colours and
lines pulls the same way. Their ratio is to the source: 0 is perfect, 1 is no adaptation. *distance*: mean LPIPS-like
distance of all pairs; *intra*, *balanced*: inside the clusters around the training images (balanced: 0 when all fall
into one). *to true*: over that of as many true pictures. *source*, *truth*: mean correlation of edges and luminance
with the source's and, of filters, the true picture of the same latent; *pair distance*: LPIPS-like, to the latter.
*order*: rank correlation of the distances between people before and after. *landmarks*: mean distance that eyes and
nose move, in distances between the eyes, of the faces that are still *found*.
s/step: between the last two checkpoints; peak memory: of the training process, on host and GPU. The row *true* is the
look on the judged latents (drawings: others again): what chance leaves of a perfect adapter.

All discriminators are heads on frozen features. transfergan, freezed, scratch and cdc have the terms of their papers
alone; lfs, d3t and hyperdomainnet have signals beside theirs (preset `few_images`); *signals* is transfergan with d3t's
signals and none of its own terms, in LeFT factors: what separates it from d3t-left is D3T."""
THUMBNAIL, MARGIN, FONT = 160, 270, 17  # px


def write(output: Path, order: list[str]) -> None:
    """Writes table.md and sheets/ of the bench in `output`; methods in the given order."""
    reports = sorted((output / "cells").glob("*/*/*/cell.json"))
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in reports]
    cells.sort(
        key=lambda cell: (order.index(method_of(cell)) if method_of(cell) in order else len(order), cell["cell"])
    )
    looks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((output / "looks").glob("*/look.json"))]
    of_look = {look["look"]: [cell for cell in cells if cell["judging"] == look["judging"]] for look in looks}
    text = "\n\n".join(["# Few-shot bench", *summary(of_look), *(table(look, of_look[look["look"]]) for look in looks)])
    left_out = [cell["cell"] for cell in cells if not any(cell in kept for kept in of_look.values())]
    if left_out:
        text += f"\n\nLeft out, as they were judged with other settings: {', '.join(left_out)}."
    if failed := failures(output):
        text += "\n\nFailed:\n\n" + "\n".join(f"- {name}, {stage}: {line}" for name, stage, line in failed)
    replace_text(output / "table.md", text + "\n")
    for look in looks:
        sheet(output, look["look"], of_look[look["look"]])


def failures(output: Path) -> list[tuple[str, str, str]]:
    """Name, stage and last line of every cell that failed and has not been done since."""
    paths = sorted((output / "cells").glob("*/*/*/failed.json"))
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in paths if not path.with_name("cell.json").exists()
    ]
    return [(record["cell"], record["stage"], record["last_line"]) for record in records]


def method_of(cell: dict) -> str:
    return cell["cell"].partition("/")[0]


# -------------------------------------------------------------------------------------------------------------- tables


def summary(of_look: dict[str, list[dict]]) -> list[str]:
    """In how many looks a method beats each baseline; seeds are averaged first."""
    found: dict[str, dict[str, dict[str, float]]] = {}  # method: look: {quality, diversity, and the ratio of each}
    for look, cells in of_look.items():
        for method in dict.fromkeys(map(method_of, cells)):
            rows = [cell["numbers"] for cell in cells if method_of(cell) == method]
            keys = (QUALITY, DIVERSITY, f"{QUALITY}_ratio", f"{DIVERSITY}_ratio")
            found.setdefault(method, {})[look] = {key: average([row[key] for row in rows]) for key in keys}
    if not found:
        return ["No cell is finished yet."]
    heads = ["method", "looks", "mean KID ratio"]
    wins = "KID <", "diversity >", "both:", "KID <, nearer:"
    heads += [f"{what} {name.partition('-')[0]}" for name in BASELINES for what in wins]
    lines = []
    for method, looks in found.items():
        line = [method, str(len(looks)), short(mean(row[f"{QUALITY}_ratio"] for row in looks.values()))]
        for baseline in BASELINES:
            shared = [(row, found[baseline][look]) for look, row in looks.items() if look in found.get(baseline, {})]
            nearer = [row[QUALITY] < other[QUALITY] for row, other in shared]
            richer = [row[DIVERSITY] > other[DIVERSITY] for row, other in shared]
            both = [a and b for a, b in zip(nearer, richer, strict=True)]
            truer = [off(row) < off(other) and a for (row, other), a in zip(shared, nearer, strict=True)]
            known = shared and method != baseline
            line += [f"{sum(wins)}/{len(shared)}" if known else "–" for wins in (nearer, richer, both, truer)]
        lines.append(line)
    words = (
        "In how many looks a method has a lower KID and a higher balanced intra-cluster distance (*nearer*: "
        "nearer to the true look's, as faceless silhouettes of high contrast are far apart too); seeds averaged."
    )
    return ["## Summary", words, markdown(heads, lines), LEGEND]


def average(values: list[float | None]) -> float:
    """Not a number, which wins no comparison, where one of them is not known."""
    return nan if None in values else mean(values)


def off(row: dict[str, float]) -> float:
    """How many times too far apart or too near to each other pictures are, as a logarithm."""
    return abs(log(max(row[f"{DIVERSITY}_ratio"], 1e-3)))


def table(look: dict, cells: list[dict]) -> str:
    """One look: source, true look, and every finished cell."""
    heads = ["", *COLUMNS, *COSTS]
    lines = [
        [name, *(value(row, path) for path in COLUMNS.values()), *[""] * len(COSTS)]
        for name, row in look["rows"].items()
    ]
    for cell in cells:
        costs = [value(cell["cost"], path, 1 / 1000 if path == "adapter_bytes" else 1) for path in COSTS.values()]
        method, _, seed = cell["cell"].split("/")
        name = f"{method}, seed {seed}, {cell['training']['max_train_steps']} steps"
        lines.append([name, *(value(cell["numbers"], path) for path in COLUMNS.values()), *costs])
    judging = look["judging"]
    words = (
        f"{judging['num']} judged pictures (seed {judging['seed']}), {judging['num_true']} true ones (seed "
        f"{judging['true_seed']}), {judging['spatial_images']} for diversity and pairs; psi "
        f"{judging['truncation_psi']}, {judging['side']} px; base {judging['base']} "
        f"({judging['base_fingerprint']}), features {judging['features_sha256'][:12]}."
    )
    return f"## {look['look']}\n\n{words}\n\n{markdown(heads, lines)}"


def value(row: dict, path: str, factor: float = 1) -> str:
    """The number at a dotted path, short; empty where there is none."""
    found = row
    for key in path.split("."):
        found = found.get(key) if found else None
    return "" if found is None else short(found * factor)


def short(number: float) -> str:
    """Three digits, and no exponent."""
    if isinstance(number, int) or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3f}" if abs(number) < 1 else f"{number:.3g}"


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# -------------------------------------------------------------------------------------------------------------- sheets


def sheet(output: Path, look: str, cells: list[dict]) -> None:
    """sheets/LOOK.jpg: source, the first finished seed of each method, the true look."""
    name = look.replace(":", "-")
    strips = {"source": output / "looks" / name / "source.png"}
    for cell in cells:
        strips.setdefault(method_of(cell), output / "cells" / cell["cell"] / "strip.png")
    paired = look.startswith("filter:")
    strips["true" if paired else "true (other drawings)"] = output / "looks" / name / "true.png"
    font = ImageFont.load_default(size=FONT)
    page = Image.new("RGB", (0, 0))
    for row, (label, path) in enumerate(strips.items()):
        with Image.open(path, formats=("PNG",)) as strip:
            count = strip.width // strip.height
            line = strip.convert("RGB").resize((count * THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        if row == 0:
            page = Image.new("RGB", (MARGIN + line.width, len(strips) * THUMBNAIL), "white")
        page.paste(line, (MARGIN, row * THUMBNAIL))
        middle = (MARGIN - 12, int((row + 0.5) * THUMBNAIL))
        ImageDraw.Draw(page).text(middle, label, fill="black", font=font, anchor="rm")
    replace_file(output / "sheets" / f"{name}.jpg", lambda temp: page.save(temp, quality=90))
