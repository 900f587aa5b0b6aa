"""How fast runs get near a look: judges every checkpoint of each run, and draws distance against steps.

    python training/curves.py --style filter:pencil --output_dir runs/curves adafm=runs/adafm finetune=runs/finetune

A run is any folder of `training/*.py` that keeps several checkpoints (`--checkpointing_steps 30
--checkpoints_total_limit 20`); NAME=FOLDER names its line, NAME:dashed=FOLDER draws it dashed, and names that are alike
up to a comma share a colour. The judge is the bench's (bench_looks.py): KID × 1e3 and Fréchet distance to true pictures
of other latents, and KID in features that no training signal comes from. What was judged stays, and the same command
goes on. Writes `points.json`, `table.md`, `curves.png`.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from bench_looks import Looks, difference, read_json, write_json
from bench_report import markdown, short
from matplotlib.figure import Figure  # no window system, and nothing global

from fewshot_gan.adapters.io import WEIGHTS_NAME
from fewshot_gan.training.checkpoints import checkpoints
from fewshot_gan.training.domains import parse_style
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.threads import set_threads, usual_threads

STYLES = ("solid", "dashed", "dotted")
TICKS = (-0.1, 0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5)
MEASURES = {"kid_x1e3": "KID", "frechet": "Fréchet", "unseen_x1e3": "unseen"}  # key of the judge: heading
DRAWN = {"kid_x1e3_ratio": "KID, share of the source's", "unseen_x1e3_ratio": "the same in unseen features"}


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="NAME:dashed=FOLDER for a dashed line")
    p.add_argument("--style", required=True, help="the true look, e.g. filter:pencil")
    p.add_argument("--base", default="ffhq-256")
    p.add_argument("--num", type=int, default=500, help="judged pictures (default: 500)")
    p.add_argument("--num_true", type=int, default=1000, help="true pictures (default: 1000)")
    p.add_argument("--every", type=int, default=1, help="judge each so many steps only")
    p.add_argument("--output_dir", type=user_path, required=True)
    p.add_argument("--num_threads", type=int, default=usual_threads(), help="CPU threads (default: %(default)s)")
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    if args.every < 1:
        p.error(f"--every {args.every}: give 1 or more")
    runs = {}
    for text in args.runs:
        name, _, folder = text.partition("=")
        if name in runs or name.partition(":")[2] not in ("", *STYLES):
            p.error(f"{text!r}: give each run a name of its own, perhaps with one of :{', :'.join(STYLES)}")
        if not (found := checkpoints(user_path(folder)) if folder else []):
            p.error(f"{text!r} is not NAME=FOLDER of a run with checkpoints")
        runs[name] = {step_of(path): path for path in found if step_of(path) % args.every == 0}
        if not runs[name]:
            p.error(f"{folder} has no checkpoint at a multiple of --every {args.every}")
    try:
        parse_style(args.style)
    except ValueError as error:
        p.error(str(error))
    looks = Looks(args.output_dir, args.base, args.num, args.num_true)
    try:
        points = judged(looks, args.style, runs, args.output_dir / "points.json")
    except ValueError as error:
        p.error(str(error))
    report(points, looks.rows(args.style, looks.references(args.style)), args.output_dir)
    return points


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def judged(looks: Looks, style: str, runs: dict[str, dict[int, Path]], path: Path) -> dict:
    """Run → step (a string, as JSON has it) → numbers, ascending; kept in `path` after each.

    Raises:
        ValueError: `path` has points of another protocol.
    """
    protocol = looks.protocol(style)
    known = read_json(path) or {"protocol": protocol, "points": {}}
    if changed := difference(known["protocol"], protocol):
        raise ValueError(f"{path} was judged otherwise ({changed}); choose another --output_dir")
    for name, found in runs.items():
        points = known["points"].setdefault(name, {})
        for step, checkpoint in found.items():
            weights = hashlib.sha256((checkpoint / WEIGHTS_NAME).read_bytes()).hexdigest()
            if points.get(str(step), {}).get("weights") != weights:
                points[str(step)] = {"weights": weights, **looks.judge(style, checkpoint)[0]}
                write_json(path, known)
    return {
        name: {str(step): known["points"][name][str(step)] for step in sorted(found)} for name, found in runs.items()
    }


def report(points: dict, rows: dict, output: Path) -> None:
    """Table and chart."""
    lines = [["", "step", *MEASURES.values()]]
    lines += [[name, "", *(short(row[key]) for key in MEASURES)] for name, row in rows.items()]
    for name, of in points.items():
        lines += [[name.partition(":")[0], step, *(short(row[key]) for key in MEASURES)] for step, row in of.items()]
    table = markdown(lines[0], lines[1:]) + "\n"
    replace_text(output / "table.md", table)
    print(table)
    figure = Figure((5.5 * len(DRAWN), 4), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(DRAWN)), DRAWN.items(), strict=True):
        colours = {}
        for name, of in points.items():
            label, _, style = name.partition(":")
            steps = [int(step) for step in of]
            line = {"marker": "o", "markersize": 3, "linestyle": style or "solid"}
            line["color"] = colours.setdefault(label.split(",")[0], f"C{len(colours)}")
            axis.plot([0, *steps], [1, *(row[key] for row in of.values())], label=label, **line)
        axis.set(xlabel="generator steps", title=title)
        low, high = axis.get_ylim()
        axis.set_yscale("symlog", linthresh=0.1)  # an unbiased estimate may be below 0
        axis.set_yticks(ticks := [tick for tick in TICKS if low <= tick <= high], map(str, ticks))
        axis.minorticks_off()
        measure = key.removesuffix("_ratio")
        if (best := rows["true"][measure] / rows["source"][measure]) > 0:
            axis.axhline(best, color="grey", linestyle="dotted", label="the true look itself")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    replace_file(output / "curves.png", lambda temp: figure.savefig(temp, dpi=110, format="png"))


if __name__ == "__main__":
    with script():
        main()
