"""The few-shot bench: every method on every look, each trained in its own process, all judged alike.

    python training/benchmark.py --profile cpu --output_dir runs/bench
    python training/benchmark.py --profile cpu --output_dir runs/bench --only 'd3t-*/filter-pencil/*'
    python training/benchmark.py --profile cpu --output_dir runs/bench --list          # or --table, --judge_only

A cell is METHOD-ADAPTER/LOOK/SEED. The same command again goes on where it stopped: what is finished stays, what failed
is tried again. Writes

    data/LOOK/          the ten training images (`make_domain.py`, seed 7)
    truth/              the source's and the true pictures as the judges see them, made once
    looks/LOOK/         numbers and first pictures of the source and of the true look
    shared/LOOK/SEED/   projections of the training images, for D3T-GAN
    cells/NAME/         the adapter, train.log, cell.json (numbers, cost, complete protocol) or failed.json
    table.md, sheets/   see bench_report.py

True pictures, 1,000 a look, come from other latents than the judged ones; pairs (filters only) from the same.
Seconds per step are the time between the last two checkpoints over the steps between them, so start-up, projections and
warm-up do not count; peak memory: of the training process alone (measured.py), on a GPU what it says itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import bench_report
import torch
from bench_looks import Looks, difference, folder_name, read_json, write_json, write_strip
from benchmark import versions

from fewshot_gan import catalogue
from fewshot_gan.methods.d3t import D3TConfig
from fewshot_gan.methods.projections import recorded
from fewshot_gan.training.command_line import parse
from fewshot_gan.training.engine import TrainingConfig
from fewshot_gan.training.launch import command
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import user_path
from fewshot_gan.utils.folder_lock import LOCK_NAME, locked
from fewshot_gan.utils.threads import set_threads, usual_threads

logger = logging.getLogger("bench")


class Method(NamedTuple):
    """One way to train."""

    method: str  # of training.adapt
    script: str  # of this folder
    adapter: str  # what is trained
    extra: tuple[str, ...]  # what else the script is told; {shared} is a folder of the look and seed
    paper_steps: int


# Minutes, and alike whatever is trained then.
PROJECTED = ("--projections", "{shared}/projections.safetensors", "--projection_steps", "60")
SIGNALS = tuple(  # what D3T's few_images adds to the terms of its paper, on their own
    f"--{name}={getattr(D3TConfig.few_images(), name)}"
    for name in (
        *("adversarial_weight", "statistics_weight", "wasserstein_weight", "colour_weight", "content_weight"),
        *("structure_weight", "deepest_level"),
    )
)
METHODS = {
    "transfergan-full": Method("finetune", "finetune.py", "full", (), 5000),
    "freezed-full": Method("finetune", "finetune.py", "full", ("--freeze_d", "1"), 5000),
    "scratch-full": Method("finetune", "finetune.py", "full", ("--scratch",), 5000),
    "signals-left": Method("finetune", "finetune.py", "left", SIGNALS, 3000),
    "cdc-full": Method("cdc", "cdc.py", "full", (), 5000),
    "lfs-left": Method("lfs_gan", "lfs.py", "left", (), 3000),
    "d3t-left": Method("d3t", "d3t.py", "left", PROJECTED, 3000),
    "d3t-full": Method("d3t", "d3t.py", "full", PROJECTED, 3000),
    "d3t-domain_vector": Method("d3t", "d3t.py", "domain_vector", PROJECTED, 3000),
    "hyperdomainnet-domain_vector": Method("hyperdomainnet", "hyperdomainnet.py", "domain_vector", (), 300),
}
# what the papers claim, each term on its own, and later work
CLAIMS = {
    "lfs-seeking-left": Method("lfs_gan", "lfs.py", "left", ("--mode_seeking_weight=1",), 3000),
    "cdc-dcl-full": Method("cdc", "cdc.py", "full", ("--diversity=dcl",), 5000),
    "importance-full": Method(
        "finetune", "finetune.py", "full", ("--keep_filters=0.5", "--prune_filters=0.03", "--importance_every=10"), 5000
    ),
    "d3t-transfer-left": Method("d3t", "d3t.py", "left", (*PROJECTED, "--distillation_weight=0"), 3000),
    "d3t-distillation-left": Method(
        "d3t", "d3t.py", "left", ("--feature_weight=0", "--relation_weight=0", "--transformed_every=0"), 3000
    ),
    "d3t-abstract-left": Method("d3t", "d3t.py", "left", (*PROJECTED, "--preset=abstract"), 3000),
    "d3t-dcl-left": Method("d3t", "d3t.py", "left", (*PROJECTED, "--diversity=dcl"), 3000),
    "d3t-delta_w": Method("d3t", "d3t.py", "delta_w", PROJECTED, 3000),
    "d3t-lora": Method("d3t", "d3t.py", "lora", PROJECTED, 3000),
    "pairs-left": Method("pairs", "pairs.py", "left", PROJECTED, 3000),
    "pairs-lora": Method("pairs", "pairs.py", "lora", PROJECTED, 3000),
    "pairs-full": Method("pairs", "pairs.py", "full", PROJECTED, 3000),
    "hdn-angle.5-domain_vector": Method(
        "hyperdomainnet", "hyperdomainnet.py", "domain_vector", ("--indomain_weight=0.5",), 300
    ),
    "hdn-angle1.5-domain_vector": Method(
        "hyperdomainnet", "hyperdomainnet.py", "domain_vector", ("--indomain_weight=1.5",), 300
    ),
    "hdn-delta_w": Method("hyperdomainnet", "hyperdomainnet.py", "delta_w", (), 300),
    "hdn-left": Method("hyperdomainnet", "hyperdomainnet.py", "left", (), 300),
    "hdn-full": Method("hyperdomainnet", "hyperdomainnet.py", "full", (), 300),
}
PLUGIN_STEPS = 3000


def with_plugins() -> dict[str, Method]:
    """The ways to train, and one for each method of a plugin with the adapter that it usually trains."""
    others = {name: entry.load().adapter for name, entry in catalogue.METHODS.items()}
    own = set(catalogue.METHODS.own())
    added = {
        f"{name}-{adapter}": Method(name, f"adapt.py {name}", adapter, (), PLUGIN_STEPS)
        for name, adapter in others.items()
        if name not in own
    }
    return METHODS | CLAIMS | added


LOOKS = (
    "filter:pencil",
    "filter:ink",
    "filter:poster",
    "dicebear:lorelei",
    "dicebear:notionists",
    "dicebear:avataaars",
)


class Profile(NamedTuple):
    """How much of everything."""

    methods: tuple[str, ...]
    steps: int | None  # None: the paper's
    num: int  # judged pictures per cell
    seeds: tuple[int, ...]


PROFILES = {
    "cpu": Profile(tuple(METHODS), 100, 500, (0,)),
    "gpu": Profile(tuple(METHODS), None, 5000, (0, 1, 2)),
    "claims": Profile((*METHODS, *CLAIMS), 100, 500, (0,)),
}
NUM_TRUE = 1000
BATCH = 4
HERE = Path(__file__).parent


class Cell(NamedTuple):
    """One training run of the bench."""

    method: str
    look: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}/{folder_name(self.look)}/{self.seed}"


class CellFailed(Exception):
    """A cell could not be trained or judged; the bench goes on."""

    def __init__(self, stage: str, exit_code: int | None, last_line: str):
        super().__init__(f"{stage}: {last_line}")
        self.record = {"stage": stage, "exit_code": exit_code, "last_line": last_line}


@dataclass
class Bench:
    """Plans, trains and judges cells in one folder.

    Attributes:
        output: the folder.
        profile: how much of everything.
        looks: of the same folder.
        threads: CPU threads, of training and of judging.
    """

    output: Path
    profile: Profile
    looks: Looks
    threads: int

    @property
    def methods(self) -> dict[str, Method]:
        """Name → way to train."""
        return with_plugins()

    def cells(self, patterns: list[str] | None = None) -> list[Cell]:
        """Those whose name fits a pattern, look by look, so that a table is complete as early as can be."""
        methods = (*self.profile.methods, *(name for name in self.methods if name not in METHODS | CLAIMS))
        every = [Cell(m, look, s) for look in LOOKS for s in self.profile.seeds for m in methods]
        return [cell for cell in every if not patterns or any(fnmatchcase(cell.name, p) for p in patterns)]

    def folder(self, cell: Cell) -> Path:
        return self.output / "cells" / cell.name

    def state(self, cell: Cell) -> str:
        """ "done", "failed", "trained" or "open"."""
        for file, state in (("cell.json", "done"), ("failed.json", "failed"), ("trained.json", "trained")):
            if (self.folder(cell) / file).is_file():
                return state
        return "open"

    def training(self, cell: Cell) -> dict:
        """All that the trained adapter depends on: also every rate and weight that its script makes of the options."""
        method = self.methods[cell.method]
        run = parse(method.method, self.options(cell))
        settings = {**asdict(run.training), **asdict(run.objective), "preset": run.preset}
        if run.objective.needs_latents:
            settings |= recorded(run.method.options)
        return {
            **{name: value for name, value in settings.items() if name not in TrainingConfig.MAY_CHANGE},
            "method": cell.method,
            "script": method.script,
            "adapter": method.adapter,
            "extra": list(method.extra),
            "look": cell.look,
            "base": self.looks.base,
            "base_fingerprint": self.looks.base_fingerprint,
            "data_sha256": self.looks.data_sha256(cell.look),
        }

    def refuse_left_behind(self) -> None:
        """A training that a killed bench left behind may still be at work.

        Raises:
            FolderInUse: it is.
        """
        for lock in (self.output / "cells").rglob(LOCK_NAME):
            with locked(lock.parent):
                pass

    def check(self, cells: list[Cell], overwrite: bool = False, judge_only: bool = False) -> None:
        """Clears what `overwrite` has to do again.

        Raises:
            ValueError: a cell was made with other settings, and may not be done again.
        """
        for cell in cells:
            folder = self.folder(cell)
            trained, judged = read_json(folder / "run.json"), read_json(folder / "cell.json")
            retrain = trained and difference(trained["training"], self.training(cell))
            rejudge = judged and difference(judged["judging"], self.looks.protocol(cell.look))
            if (retrain or rejudge) and not (overwrite and not (retrain and judge_only)):
                raise ValueError(
                    f"cell {cell.name} was {'trained' if retrain else 'judged'} with other settings "
                    f"({retrain or rejudge}); use them again, or another --output_dir, or --overwrite to do it anew"
                )
            if retrain:
                shutil.rmtree(folder)
            elif rejudge:
                (folder / "cell.json").unlink()

    def run(self, cells: list[Cell], judge_only: bool = False) -> list[str]:
        """Trains and judges what is not done yet; returns the names of the cells that failed."""
        failed = []
        for count, cell in enumerate(cells, 1):
            trained = (self.folder(cell) / "trained.json").is_file()
            if self.state(cell) == "done" or (judge_only and not trained):
                continue
            try:
                if not trained:
                    logger.info(f"{count}/{len(cells)} training {cell.name}")
                    self.train(cell)
                logger.info(f"{count}/{len(cells)} judging {cell.name}")
                self.judge(cell)
                (self.folder(cell) / "failed.json").unlink(missing_ok=True)
            except CellFailed as error:
                logger.info(f"{cell.name} failed: {error}")
                write_json(self.folder(cell) / "failed.json", {"cell": cell.name, **error.record})
                failed.append(cell.name)
            bench_report.write(self.output, list(self.methods))
        return failed

    def command(self, cell: Cell) -> list[str]:
        """The command line of a cell's training, as one would type it."""
        return ["python", *f"training/{self.methods[cell.method].script}".split(), *self.options(cell)]

    def options(self, cell: Cell) -> list[str]:
        """Options of a cell's training."""
        method = self.methods[cell.method]
        steps = self.profile.steps or method.paper_steps
        options = {
            "base": self.looks.base,
            "data": self.looks.data(cell.look),
            "output_dir": self.folder(cell),
            "adapter": method.adapter,
            "max_train_steps": steps,
            "train_batch_size": BATCH,
            "seed": cell.seed,
            "sample_steps": steps,  # the first and the last
            "checkpointing_steps": max(1, steps // 4),
            "report_to": "none",
            "num_threads": self.threads,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        shared = self.output / "shared" / folder_name(cell.look) / str(cell.seed)
        words += [word.replace("{shared}", str(shared)) for word in method.extra]
        return words

    def train(self, cell: Cell) -> None:
        """Runs the script; what it says goes to train.log.

        Raises:
            CellFailed: it ended with an error, or without an adapter.
        """
        folder, command = self.folder(cell), self.command(cell)
        script, *named = self.methods[cell.method].script.split()
        executable = [sys.executable, str(HERE / script), *named, *self.options(cell)]
        usage_path, log_path = folder / "usage.json", folder / "train.log"
        write_json(folder / "run.json", {"training": self.training(cell), "command": command})
        usage_path.unlink(missing_ok=True)
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "measured.py"), str(usage_path), *executable],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait()
            finally:  # interrupted: no training stays behind
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
        usage = read_json(usage_path) or {"exit_code": process.returncode}
        if usage["exit_code"] != 0:
            raise CellFailed("training", usage["exit_code"], last_line(log_path))
        if not (folder / "adapter_model.safetensors").is_file():
            raise CellFailed("training", 0, "ended well, but wrote no adapter_model.safetensors")
        cost = {"seconds_per_step": seconds_per_step(folder, usage["began"])}
        cost |= {"seconds": usage["seconds"], "peak_mib": usage["peak_mib"]}
        said = re.findall(r"peak GPU memory: (\d+) MiB", log_path.read_text(encoding="utf-8", errors="replace"))
        cost["peak_gpu_mib"] = int(said[-1]) if said else None
        environment = {"versions": versions(), "threads": self.threads, "machine": platform.machine()}
        environment["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        write_json(folder / "trained.json", {"cost": cost, "command": command, "environment": environment})
        for checkpoint in folder.glob("checkpoint-*"):  # of a full adapter some hundred MB with its optimisers
            shutil.rmtree(checkpoint)

    def judge(self, cell: Cell) -> None:
        """Draws the cell's pictures and writes its cell.json.

        Raises:
            CellFailed: the adapter cannot be loaded or compared.
        """
        folder = self.folder(cell)
        protocol, trained = self.looks.protocol(cell.look), read_json(folder / "trained.json")
        try:
            numbers, parameters, pictures = self.looks.judge(cell.look, folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise CellFailed("judging", None, " ".join(str(error).split()) or type(error).__name__) from error
        stored = (folder / "adapter_model.safetensors").stat().st_size
        report = {
            "cell": cell.name,
            "numbers": numbers,
            "cost": {"parameters": parameters, "adapter_bytes": stored, **trained["cost"]},
            "training": self.training(cell),
            "judging": protocol,
            "command": trained["command"],
            "environment": trained["environment"] | {"judged_with": versions()},
        }
        write_strip(folder / "strip.png", pictures)
        write_json(folder / "cell.json", report)


def last_line(log: Path) -> str:
    """What a process said last; a progress bar rewrites its line, so carriage returns end one too."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def seconds_per_step(folder: Path, began: float) -> float | None:
    """From the checkpoints of a run that began then; None where it left fewer than two, e.g. resumed near its end."""
    stamps = {}
    for path in folder.glob("checkpoint-*"):
        newest = max((file.stat().st_mtime for file in path.iterdir()), default=0.0)
        if newest >= began:
            stamps[int(path.name.rpartition("-")[2])] = newest
    if len(stamps) < 2:
        return None
    first, last = sorted(stamps)[-2:]
    return (stamps[last] - stamps[first]) / (last - first)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu")
    parser.add_argument("--output_dir", type=user_path, required=True)
    parser.add_argument("--base", default="ffhq-256", help="base generator (default: ffhq-256)")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="cells like 'd3t-*/filter-pencil/0'")
    parser.add_argument("--list", action="store_true", help="name the cells and how far they are, and stop")
    parser.add_argument("--table", action="store_true", help="write table and sheets of what is done, and stop")
    parser.add_argument("--judge_only", action="store_true", help="train nothing")
    parser.add_argument("--overwrite", action="store_true", help="do cells again that were made with other settings")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="of training; default: the profile's")
    parser.add_argument("--max_train_steps", type=int, help="default: the profile's")
    parser.add_argument("--num", type=int, help="judged pictures per cell; default: the profile's")
    parser.add_argument("--num_true", type=int, default=NUM_TRUE, help=f"true pictures per look (default: {NUM_TRUE})")
    parser.add_argument("--num_threads", type=int, default=usual_threads(), help="CPU threads (default: %(default)s)")
    args = parser.parse_args(argv)
    for name, least in (("max_train_steps", 1), ("num", 3), ("num_true", 2), ("num_threads", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"--{name} {value} is below {least}; leave it out for the usual")
    profile = PROFILES[args.profile]
    profile = profile._replace(steps=args.max_train_steps or profile.steps, num=args.num or profile.num)
    profile = profile._replace(seeds=tuple(dict.fromkeys(args.seeds or profile.seeds)))
    looks = Looks(args.output_dir, args.base, profile.num, args.num_true)
    bench = Bench(args.output_dir, profile, looks, args.num_threads)
    if not (cells := bench.cells(args.only)):
        parser.error(
            f"--only {' '.join(args.only)} fits no cell; a cell is called {bench.cells()[0].name}, for example"
        )
    if args.list:
        for cell in cells:
            print(f"{bench.state(cell):8}{cell.name}")
        return

    logging.basicConfig(format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    failed = []
    if not args.table:
        set_threads(args.num_threads)
        with command(), locked(args.output_dir):
            bench.refuse_left_behind()
            bench.check(cells, args.overwrite, args.judge_only)
            failed = bench.run(cells, args.judge_only)
    bench_report.write(args.output_dir, list(bench.methods))
    if failed:
        raise SystemExit(
            f"error: {len(failed)} of {len(cells)} cells failed: {', '.join(failed)}; see their failed.json"
        )


if __name__ == "__main__":
    with script():
        main()
