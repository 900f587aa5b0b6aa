"""Computes stored reports again and says whether they are equal: tables of RESULTS.md that cost three minutes or less.

    python training/check_results.py                                  # every report in training/results
    python training/check_results.py training/results/ffhq-256-sketch.json

A report is what `benchmark.py --out` wrote for an included look; it names base, adapter, style, seeds and numbers of
pictures, so that nothing else is needed. Numbers are equal within `--tolerance`, since machines round differently.
Exits with 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import benchmark

from fewshot_gan.faces import can_find_faces
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import user_path
from fewshot_gan.utils.json_files import read_json
from fewshot_gan.utils.threads import add_threads_option, set_threads

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 0.01


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("reports", nargs="*", type=user_path, help="default: those of included looks")
    p.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"relative (default: {TOLERANCE})")
    add_threads_option(p)
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    if not 0 <= args.tolerance < 1:
        p.error(f"--tolerance {args.tolerance} is not in 0 <= tolerance < 1; usual is {TOLERANCE}")
    differing = 0
    for path in args.reports or sorted(RESULTS.glob("*.json")):
        start, stored = time.perf_counter(), read_json(path)
        if not can_find_faces():
            stored.pop("landmarks", None)
        changes = differences(stored, again(stored), args.tolerance)
        differing += bool(changes)
        said = f"differs: {'; '.join(changes)}" if changes else "equal"
        print(f"{path.name}: {said}  ({time.perf_counter() - start:.0f} s)", flush=True)
    if differing:
        raise SystemExit(1)


def command(report: dict) -> list[str]:
    """The options of benchmark.py that a report was made with, without its files.

    Raises:
        ValueError: something of it is missing.
    """
    try:
        protocol = report["protocol"]
        options = {
            **{name: report[name] for name in ("base", "adapter", "style")},
            **{"num": protocol["num"], "seed": protocol["seed"]},
            **{"psi": protocol["truncation_psi"], "spatial-images": protocol["spatial_images"]},
        }
        if protocol["true_seed"] is not None:  # None where the truth is a folder
            options["true-seed"] = protocol["true_seed"]
        if isinstance(protocol["native"], dict):
            options["crops"] = protocol["native"]["crops"]
        elif protocol["native"] == "none: --crops 0":
            options["crops"] = 0
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no report of benchmark.py: it has no {error}") from None
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def again(report: dict) -> dict:
    """The report, computed anew."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        return json.loads(json.dumps(benchmark.main([*command(report), "--out", str(Path(folder) / "report.json")])))


def differences(stored: Any, computed: Any, tolerance: float, path: str = "") -> list[str]:
    """The numbers that differ by more than a share of the larger one, in words; versions do not count."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        names = [name for name in stored if name != "versions"]
        found = [differences(stored[name], computed.get(name), tolerance, f"{path}.{name}") for name in names]
        return [change for part in found for change in part]
    numbers = isinstance(stored, int | float) and isinstance(computed, int | float)
    if numbers and abs(stored - computed) <= tolerance * max(abs(stored), abs(computed)):
        return []
    return [] if stored == computed else [f"{path[1:]} was {stored}, now {computed}"]


if __name__ == "__main__":
    with script():
        main()
