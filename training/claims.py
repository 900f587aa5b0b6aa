"""Writes CLAIMS.md: what the five papers claim, and what stored results of this machine say about it.

    python training/claims.py                            # the page from training/results
    python training/claims.py --bench runs/bench         # first copies the bench's finished cells there

A claim is a list of comparisons of two numbers, see `Comparison` for when one holds. A claim is *shown* if no
comparison contradicts it and at least half of them hold, and *partly shown* if fewer hold or one contradicts it. Where
none holds, it is *refuted* if at least half contradict it, *not shown* if fewer do, and *no difference found* if none
does. What is claimed and why it fails is written in `claimed.py`.
"""

from __future__ import annotations

import argparse
from math import log
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from bench_looks import difference, folder_name, write_json
from bench_report import markdown, short

from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.json_files import read_json

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE / "CLAIMS.md"
MARGIN = 0.15  # relative; two seeds of one setting of the bench differ by up to 14 %
DIGITS = 5
HOLDS, TIE, FAILS, OPEN = "yes", "tie", "no", "not run"


class Number(NamedTuple):
    """One number of a stored result."""

    name: str  # of the method, as the page calls it
    file: str  # in `RESULTS`
    path: tuple[str, ...]  # keys; "*" stands for every seed, whose numbers are averaged


class Comparison(NamedTuple):
    """Two numbers, of which the claim says that the first is better.

    It holds if the first is better by more than the margin, and fails if it is worse by more than the margin. Between
    these, and where seeds of both overlap, it is a tie.

    Attributes:
        where: look, data or step, as the page calls it.
        quantity: what is compared, as the page calls it.
        better: "lower", "higher", "near 1" (1 + |log| is lower), or "zero" (the first number is 0).
        margin: share of the larger number.
        parity: whether "as good" is claimed, so that a tie holds.
    """

    where: str
    quantity: str
    ours: Number
    theirs: Number
    better: str = "lower"
    margin: float = MARGIN
    parity: bool = False


class Claim(NamedTuple):
    """A headline claim of a paper and what was measured of it."""

    paper: str
    claim: str
    comparisons: tuple[Comparison, ...]
    remark: str = ""  # why, and what was tried


def numbers(wanted: Number, results: Path) -> list[float]:
    """The stored number of each seed; none where it was not measured."""
    path = results / wanted.file
    found: list[Any] = [read_json(path)] if path.is_file() else []
    for key in wanted.path:
        found = [x for of in found if of for x in (of.values() if key == "*" else [of.get(key)])]
    return [x for x in found if x is not None]


def outcome(comparison: Comparison, ours: list[float], theirs: list[float]) -> str:
    """One of `HOLDS`, `TIE`, `FAILS`, `OPEN`, for the numbers of all seeds."""
    c = comparison
    if not ours or not theirs:
        return OPEN
    if c.better == "zero":
        return FAILS if any(ours) else HOLDS
    if c.better == "near 1":
        ours, theirs = ([1 + abs(log(max(x, 1e-6))) for x in side] for side in (ours, theirs))
    if c.better == "higher":
        ours, theirs = theirs, ours
    first, second = mean(ours), mean(theirs)
    overlap = min(len(ours), len(theirs)) > 1 and min(ours) <= max(theirs) and min(theirs) <= max(ours)
    if overlap or abs(first - second) <= c.margin * max(abs(first), abs(second)):
        return HOLDS if c.parity else TIE
    return HOLDS if first < second else FAILS


def verdict(outcomes: list[str]) -> str:
    """The verdict on a claim, see the module; comparisons that were not run do not count."""
    known = [x for x in outcomes if x != OPEN]
    if not known:
        return "not run"
    if FAILS not in known and 2 * known.count(HOLDS) >= len(known):
        return "shown"
    if HOLDS in known:
        return "partly shown"
    if FAILS not in known:
        return "no difference found"
    return "refuted" if 2 * known.count(FAILS) >= len(known) else "not shown"


def page(claims: list[Claim], results: Path = RESULTS) -> str:
    """The whole page."""
    summary, sections = [], []
    for count, claim in enumerate(claims, 1):
        lines, outcomes = [], []
        for c in claim.comparisons:
            values = numbers(c.ours, results), numbers(c.theirs, results)
            outcomes.append(outcome(c, *values))
            words = [c.where, c.quantity, *(f"{x.name} **{text(v)}**" for x, v in zip(c[2:4], values, strict=True))]
            lines.append([*words, outcomes[-1]])
        said = verdict(outcomes) + (", so far" if OPEN in outcomes and set(outcomes) != {OPEN} else "")
        counts = ", ".join(f"{outcomes.count(x)} {x}" for x in (HOLDS, TIE, FAILS, OPEN) if x in outcomes)
        summary.append([str(count), claim.paper, claim.claim, f"**{said}** ({counts})"])
        files = sorted(
            {
                f"`results/{x.file}`"
                for c in claim.comparisons
                for x in (c.ours, c.theirs)
                if (results / x.file).is_file()
            }
        )
        parity = any(c.parity for c in claim.comparisons)
        table = markdown(
            [
                "where",
                "compared",
                *(("claimed to be as good", "as") if parity else ("claimed to be better", "than")),
                "holds",
            ],
            lines,
        )
        body = [f"## {count}. {claim.claim}", f"{claim.paper}. Here: **{said}**.", table, claim.remark]
        sections.append("\n\n".join(x for x in [*body, f"Numbers: {', '.join(files)}."] if x))
    head = [HEAD, markdown(["", "paper", "claim", "here"], summary)]
    return "\n\n".join([*head, *sections]) + "\n"


def text(values: list[float]) -> str:
    """The mean over seeds, and how many there are if there are several."""
    if not values:
        return "–"
    return short(mean(values)) + (f" ({len(values)} seeds)" if len(values) > 1 else "")


HEAD = """\
# The papers' claims, and what is measured here

Made by `python training/claims.py` from the files in `results/`; do not edit it by hand. The files in `results/bench`
have the commands and versions that their numbers come from. `results/printed/tables.json` has numbers as
`training/RESULTS.md` prints them, under the heading that the file names; commands, seeds and protocol stand there.

A comparison holds (*yes*) if the first number is better by more than a margin: 15 % in the bench, where two seeds of
one setting differ by up to 14 %; 40 % for SNGANs, whose seeds differ by up to 44 %; 25 % where "nearly as good" is
claimed. A smaller difference is a *tie*, and so are seeds that overlap. Where "as good" is claimed, a tie is a *yes*.
A claim is *shown* if nothing contradicts it and at least half of its comparisons hold, and *partly shown* if fewer hold
or one contradicts it. Where none holds, it is *refuted* if at least half contradict it, *not shown* if fewer do, and
*no difference found* if none does. KID, unseen and plain are ratios to the unadapted source (0 is perfect, 1 is no
adaptation); *unseen* is the judge that no training signal comes from. Diversity is the balanced intra-cluster distance
over that of as many true pictures. It is best at 1, and its difference is that of 1 + |log|.

The trainings are those of two CPU cores: in the bench 100 steps of batch 4 on `ffhq-256`, where the papers have
thousands. A claim that is refuted here is refuted at this scale, not at the paper's."""


# ---------------------------------------------------------------------------------------------------- stored results


def collect(bench: Path, results: Path = RESULTS) -> list[Path]:
    """Copies numbers, costs and commands of a bench's finished cells to `results`/bench, one file for each look.

    Raises:
        ValueError: cells of this look were stored with other judged pictures.
    """
    written = []
    for look_path in sorted((bench / "looks").glob("*/look.json")):
        look = read_json(look_path)
        path = results / "bench" / f"{folder_name(look['look'])}.json"
        stored = read_json(path) if path.is_file() else {"cells": {}}
        if "judging" in stored and (changed := difference(stored["judging"], look["judging"])):
            raise ValueError(f"{path} was judged otherwise ({changed}); judge the cells alike, or delete the file")
        stored = {"look": look["look"], "judging": look["judging"], "rows": look["rows"], "cells": stored["cells"]}
        for cell_path in sorted(bench.glob(f"cells/*/{folder_name(look['look'])}/*/cell.json")):
            cell = read_json(cell_path)
            if cell["judging"] != look["judging"]:
                continue
            method, _, seed = cell["cell"].split("/")
            command = " ".join(cell["command"]).replace(str(bench), "runs/bench")
            kept = {name: cell[name] for name in ("numbers", "cost", "environment")} | {"command": command}
            stored["cells"].setdefault(method, {})[seed] = kept
        stored["cells"] = dict(sorted(stored["cells"].items()))
        write_json(path, rounded(stored))
        written.append(path)
    return written


def rounded(value: Any) -> Any:
    """All floats at `DIGITS` significant digits: the files stay small, and no judge is surer than that."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> None:
    from claimed import CLAIMS

    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bench", type=user_path, action="append", default=[], help="folder of benchmark.py --output_dir")
    args = p.parse_args(argv)
    for bench in args.bench:
        if not (bench / "looks").is_dir():
            p.error(f"{bench} has no folder `looks`; give the --output_dir of a bench")
        print(*collect(bench), sep="\n")
    replace_text(PAGE, page(CLAIMS))
    print(PAGE)


if __name__ == "__main__":
    with script():
        main()
