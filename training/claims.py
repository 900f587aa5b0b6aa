"""Writes CLAIMS.md: what the five papers claim, and what stored results of this machine say about it.

    python training/claims.py                            # the page from training/results
    python training/claims.py --bench runs/bench         # first copies the bench's finished cells there
    python training/claims.py --limited advaug=runs/limited/limited_bench.json

A claim is a list of comparisons of two numbers. One holds if the first number is better by more than a margin of
10 %, which is what seeds of one setting differ by; a difference within the margin is a tie. A claim is *shown* if no
comparison contradicts it and at least half of them hold, *refuted* if none holds and at least half contradict it, and
*partly shown* otherwise. What is claimed and why it fails is written in `claimed.py`.
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
MARGIN = 0.1  # relative
DIGITS = 5
HOLDS, TIE, FAILS, OPEN = "yes", "tie", "no", "not run"


class Number(NamedTuple):
    """One number of a stored result."""

    name: str  # of the method, as the page calls it
    file: str  # in `RESULTS`
    path: tuple[str, ...]  # keys; "*" stands for every seed, whose numbers are averaged


class Comparison(NamedTuple):
    """Two numbers, of which the claim says that the first is better.

    Attributes:
        where: look, data or step, as the page calls it.
        quantity: what is compared, as the page calls it.
        better: "lower", "higher", or "near 1": nearer to 1, as a ratio.
        factor: of the second number. 1.25 where "nearly as good" is claimed: at most a quarter worse, without margin.
    """

    where: str
    quantity: str
    ours: Number
    theirs: Number
    better: str = "lower"
    factor: float = 1.0


class Claim(NamedTuple):
    """A headline claim of a paper and what was measured of it."""

    paper: str
    claim: str
    comparisons: tuple[Comparison, ...]
    remark: str = ""  # why, and what was tried


def number(wanted: Number, results: Path) -> float | None:
    """The stored number, averaged over seeds; None where it was not measured."""
    path = results / wanted.file
    found: list[Any] = [read_json(path)] if path.is_file() else []
    for key in wanted.path:
        found = [x for of in found if of for x in (of.values() if key == "*" else [of.get(key)])]
    return mean(found) if (found := [x for x in found if x is not None]) else None


def outcome(comparison: Comparison, ours: float | None, theirs: float | None) -> str:
    """One of `HOLDS`, `TIE`, `FAILS`, `OPEN`."""
    if ours is None or theirs is None:
        return OPEN
    if comparison.better == "near 1":
        ours, theirs = (1 + abs(log(max(x, 1e-6))) for x in (ours, theirs))
    theirs *= comparison.factor
    if comparison.better == "higher":
        ours, theirs = theirs, ours
    if comparison.factor == 1 and abs(ours - theirs) <= MARGIN * max(abs(ours), abs(theirs)):
        return TIE
    return HOLDS if ours < theirs else FAILS


def verdict(outcomes: list[str]) -> str:
    known = [x for x in outcomes if x != OPEN]
    if not known:
        return "not run"
    if FAILS not in known and 2 * known.count(HOLDS) >= len(known):
        return "shown"
    if HOLDS not in known and 2 * known.count(FAILS) >= len(known):
        return "refuted"
    return "no difference found" if set(known) == {TIE} else "partly shown"


def page(claims: list[Claim], results: Path = RESULTS) -> str:
    """The whole page."""
    summary, sections = [], []
    for count, claim in enumerate(claims, 1):
        lines, outcomes = [], []
        for c in claim.comparisons:
            values = number(c.ours, results), number(c.theirs, results)
            outcomes.append(outcome(c, *values))
            words = [c.where, c.quantity, *(f"{x.name} **{text(v)}**" for x, v in zip(c[2:4], values, strict=True))]
            words[3] += f" · {c.factor:g}" if c.factor != 1 else ""
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
        table = markdown(["where", "compared", "claimed to be better", "than", "holds"], lines)
        body = [f"## {count}. {claim.claim}", f"{claim.paper}. Here: **{said}**.", table, claim.remark]
        sections.append("\n\n".join(x for x in [*body, f"Numbers: {', '.join(files)}."] if x))
    head = [HEAD, markdown(["", "paper", "claim", "here"], summary)]
    return "\n\n".join([*head, *sections]) + "\n"


def text(value: float | None) -> str:
    return "–" if value is None else short(value)


HEAD = """\
# The papers' claims, and what is measured here

Made by `python training/claims.py` from the files in `results/`; do not edit it by hand. Each file has the commands
and versions that its numbers come from.

A comparison holds (*yes*) if the first number is better by more than 10 %, which is what two seeds of one setting
differ by. A smaller difference is a *tie*. A claim is *shown* if nothing contradicts it and at least half of its
comparisons hold, *refuted* if none holds and at least half contradict it. KID, unseen and plain are ratios to the
unadapted source (0 is perfect, 1 is no adaptation); *unseen* is the judge that no training signal comes from. Diversity
is the balanced intra-cluster distance over that of as many true pictures, and best at 1.

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


def keep(report: Path, name: str, results: Path = RESULTS) -> Path:
    """Copies a report of limited_bench.py to `results`/limited/`name`.json; its rows are named after their folders."""
    content = read_json(report)
    rows = {Path(row).name: numbers for row, numbers in content["results"].items()}
    write_json(path := results / "limited" / f"{name}.json", rounded(content | {"results": rows}))
    return path


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
    p.add_argument(
        "--limited", action="append", default=[], metavar="NAME=FILE", help="a report of limited_bench.py to keep"
    )
    args = p.parse_args(argv)
    for bench in args.bench:
        if not (bench / "looks").is_dir():
            p.error(f"{bench} has no folder `looks`; give the --output_dir of a bench")
        print(*collect(bench), sep="\n")
    for words in args.limited:
        name, _, file = words.partition("=")
        if not name or not user_path(file).is_file():
            p.error(f"--limited {words}: give a name and a file, like 1000-seed-0=runs/limited/limited_bench.json")
        print(keep(user_path(file), name))
    replace_text(PAGE, page(CLAIMS))
    print(PAGE)


if __name__ == "__main__":
    with script():
        main()
