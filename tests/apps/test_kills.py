"""Commands that are killed at any moment, each time started again: nothing is unreadable, and the end is the same.

A case is what one types, what to look at after each kill, and what has to be equal in the end; another command is one
more entry of `CASES`. Children are forked from a server that has everything imported, so that a kill takes no longer
than what it kills. `pytest -m slow tests/apps/test_kills.py` kills more often.
"""

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.networks import tiny_discriminator, tiny_stylegan2
from PIL import Image

PRELOADED = ["fewshot_gan.training.adapt", "fewshot_gan.training.lottery", "fewshot_gan.cli", "test_kills"]
PRELOADED += ["matplotlib.backends.backend_svg", "matplotlib.ticker"]  # what the page of a run imports
FEW, MANY = 3, 25  # kills of a case in CI, and where somebody asks for slow tests
OPERATIONS = ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync")  # of os: what changes folders


@dataclass(frozen=True)
class Case:
    """A command that goes on where it was killed.

    Attributes:
        command: called with the folder of inputs and the folder to write; in a child.
        check: called with the folder after each kill, in this process; raises where something cannot be read.
        result: of the finished folder, what is equal however often the command was killed.
        prepare: makes the inputs.
    """

    command: Callable[[Path, Path], None]
    check: Callable[[Path], None]
    result: Callable[[Path], object]
    prepare: Callable[[Path], None]


# ---------------------------------------------------------------------------------------------------------------- adapt


def prepare_a_base(inputs: Path) -> None:
    """A base of 16 px with a discriminator, and three pictures."""
    from fewshot_gan.pipeline import FewShotGAN

    FewShotGAN(tiny_stylegan2(resolution=16), tiny_discriminator(resolution=16)).save_pretrained(inputs / "base")
    pictures = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    (inputs / "pictures").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture.numpy()).save(inputs / "pictures" / f"{i}.png")


def adapt(inputs: Path, out: Path) -> None:
    """TransferGAN as published, with checkpoints, samples and a card; twenty-four steps."""
    from fewshot_gan.methods import method
    from fewshot_gan.training import adapt

    method.load_features = lambda device: None  # this method uses none, and the real ones take a while to load
    command = [f"--base={inputs / 'base'}", f"--data={inputs / 'pictures'}", f"--output_dir={out}", "--preset=paper"]
    command += ["--max_train_steps=24", "--train_batch_size=2", "--checkpointing_steps=3", "--sample_steps=10"]
    adapt.main("finetune", [*command, "--report_to=none", "--num_threads=1", "--r1_every=4"])


def check_a_run(folder: Path) -> None:
    """Whatever has its name is whole."""
    from fewshot_gan.adapters import read_adapter
    from fewshot_gan.training.checkpoints import check_checkpoint, checkpoints

    for path in checkpoints(folder):
        check_checkpoint(path)
        torch.load(path / "state-0.pt", weights_only=True)
        read_adapter(path)
    if (folder / "adapter_config.json").is_file():
        read_adapter(folder)
    for path in folder.glob("samples/step-*.png"):
        Image.open(path).load()
    for name in ("report.html", "README.md"):
        if (folder / name).is_file():
            assert (folder / name).read_text(encoding="utf-8").endswith(("</html>\n", ".\n"))


def result_of_a_run(folder: Path) -> dict:
    """What is in every file, but for how long steps took and where the folder is; of checkpoints, the newest."""
    from fewshot_gan.training.checkpoints import checkpoints

    found, older = {}, checkpoints(folder)[:-1]  # a run that was told to end has one of that step
    for path in (p for p in folder.rglob("*") if p.is_file() and p.parent not in older):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".pt":
            found[name] = content(torch.load(path, weights_only=True))
        elif path.name == "training_config.json":
            found[name] = json.loads(path.read_text(encoding="utf-8")) | {"output_dir": None}
        elif path.name == "losses.jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = [(row["step"], row["losses"]) for row in rows]
        elif path.name in ("report.html", "sha256.json"):
            found[name] = "there"
        else:
            found[name] = path.read_bytes()
    return found


def content(x):
    """A state with the bytes of its tensors in their places."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), x.contiguous().numpy().tobytes()
    if isinstance(x, dict):
        return {key: content(value) for key, value in x.items()}
    return [content(value) for value in x] if isinstance(x, list | tuple) else x


# ------------------------------------------------------------------------------------- generate, save_adapter, convert


def run_cli(*arguments) -> None:
    from fewshot_gan.cli import app

    app([str(argument) for argument in arguments], standalone_mode=False)


def generate(inputs: Path, out: Path) -> None:
    run_cli(
        "generate", "--base", inputs / "base", "--num-images", 60, "--batch-size", 4, "--format", "png", "--out", out
    )


def check_pictures(folder: Path) -> None:
    for path in folder.glob("[!.]*.png"):
        Image.open(path).load()


def prepare_adapters(inputs: Path) -> None:
    """A base and two adapters whose config and weights tell which is which."""
    from fewshot_gan import FewShotGAN, LeFTAdapter

    prepare_a_base(inputs)
    generator = FewShotGAN.from_pretrained(inputs / "base").generator
    for seed in (1, 2):
        adapter = LeFTAdapter.for_model(generator, training={"seed": seed})
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.fill_(seed)
        adapter.save_pretrained(inputs / f"look-{seed}")


def save_adapter(inputs: Path, out: Path) -> None:
    """One adapter over the other, again and again."""
    from fewshot_gan.adapters import read_adapter

    looks = [read_adapter(inputs / f"look-{seed}") for seed in (1, 2)]
    for turn in range(10):
        looks[turn % 2].save_pretrained(out)


def check_an_adapter(folder: Path) -> None:
    from fewshot_gan.adapters import read_adapter

    if any((folder / name).exists() for name in ("adapter_config.json", ".replacing")):
        adapter = read_adapter(folder)
        assert {float(p.detach().mean()) for p in adapter.parameters()} == {adapter.config.training["seed"]}


def prepare_a_checkpoint(inputs: Path) -> None:
    from helpers.stylegan2_checkpoints import W, pt_generator

    state = {"g_ema": pt_generator(1), "latent_avg": torch.zeros(W)}
    torch.save(state, inputs / "published.pt")


def convert(inputs: Path, out: Path) -> None:
    if not out.exists():  # a whole base is refused, not written again
        run_cli("convert", inputs / "published.pt", out)


def check_a_base(folder: Path) -> None:
    from fewshot_gan.pipeline import FewShotGAN

    FewShotGAN.from_pretrained(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything with a name; what a kill left under hidden ones is nobody's."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(".")}


CASES = {
    "adapt": Case(adapt, check_a_run, result_of_a_run, prepare_a_base),
    "generate": Case(generate, check_pictures, files_of, prepare_a_base),
    "save_adapter": Case(save_adapter, check_an_adapter, files_of, prepare_adapters),
    "convert": Case(convert, check_a_base, files_of, prepare_a_checkpoint),
}


# ------------------------------------------------------------------------------------------------------- the machinery


def child(name: str, inputs: Path, out: Path, log: Path, operation: int | None, began) -> None:
    """The command of a case in a process of its own; `operation`: it is killed at its n-th change of a folder."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if operation is not None:
        left = operation

        def counted(original):
            def call(*args, **options):
                nonlocal left
                left -= 1
                if left == 0 and random.random() < 0.5:  # before it, or after it
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **options)
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for each in OPERATIONS:
            setattr(os, each, counted(getattr(os, each)))
    from fewshot_gan.training.interrupt import interruptible

    with interruptible():
        began.set()
        CASES[name].command(inputs, out)
        os._exit(0)  # what ends Python is not to be told to end


class Killer:
    """Starts the command of a case again and again, and ends it at random moments.

    Args:
        name: of the case.
        folder: of inputs and outputs.
        seed: of the moments.
    """

    def __init__(self, name: str, folder: Path, seed: int = 0):
        self.name, self.case, self.folder, self.random = name, CASES[name], folder, random.Random(seed)
        self.log, self.inputs, self.seconds = folder / "log.txt", folder / "inputs", math.inf
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.inputs.mkdir()
        self.case.prepare(self.inputs)

    def start(self, out: Path, operation: int | None = None):
        """A child at work; None as `operation`: it is killed by nobody but the caller."""
        began = self.context.Event()
        process = self.context.Process(
            target=child, args=(self.name, self.inputs, out, self.log, operation, began), daemon=True
        )
        process.start()
        assert began.wait(60), self.said()
        return process

    def said(self) -> str:
        """What the children said last."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def finish(self, out: Path) -> object:
        """The command until it ends well; what it made."""
        start = time.monotonic()
        process = self.start(out)
        process.join()
        self.seconds = min(self.seconds, time.monotonic() - start)
        assert process.exitcode == 0, self.said()
        self.case.check(out)
        return self.case.result(out)

    def kill(self, out: Path, number: int) -> int:
        """The command, ended by signal `number` at a random moment; its exit code, 0 where it was done before."""
        operation = None
        if number == signal.SIGKILL and self.random.random() < 0.5:
            operation = self.random.randrange(1, 150)
        start, process = time.monotonic(), self.start(out, operation)
        process.join(None if operation else self.random.uniform(0, self.seconds))
        if process.is_alive():
            os.kill(process.pid, number)
            process.join()
        elif process.exitcode == 0 and not operation:
            self.seconds = min(self.seconds, time.monotonic() - start)
        if out.exists():
            self.case.check(out)
        return process.exitcode


OFTEN = pytest.mark.parametrize("times", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


@pytest.mark.skipif(sys.platform == "win32", reason="no forkserver")
@pytest.mark.parametrize("name", CASES)
@OFTEN
def test_killed_at_random_moments(name, tmp_path, times):
    """So many SIGKILLs; what was done before one came is compared, and the next begins anew."""
    killer = Killer(name, tmp_path)
    want = killer.finish(tmp_path / "whole" / "out")
    killed, number, out = 0, 0, tmp_path / "run-0" / "out"
    while killed < times:
        code = killer.kill(out, signal.SIGKILL)
        assert code in (0, -signal.SIGKILL), f"{code}: {killer.said()}"
        killed += code != 0
        if code == 0:
            assert killer.case.result(out) == want
            number, out = number + 1, tmp_path / f"run-{number + 1}" / "out"
    assert killer.finish(out) == want


@pytest.mark.skipif(sys.platform == "win32", reason="no forkserver")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@OFTEN
def test_told_to_end_at_random_moments(number, tmp_path, times):
    """A training keeps every step that it took, and says 130 or 143."""
    from fewshot_gan.training.checkpoints import latest_checkpoint

    killer = Killer("adapt", tmp_path)
    want = killer.finish(tmp_path / "whole" / "out")
    told, runs, out = 0, 0, tmp_path / "run-0" / "out"
    while told < times:
        code = killer.kill(out, number)
        assert code in (0, 128 + number), f"{code}: {killer.said()}"
        told += code != 0
        if code == 0:
            assert killer.case.result(out) == want
            runs, out = runs + 1, tmp_path / f"run-{runs + 1}" / "out"
        elif (out / "losses.jsonl").is_file() and (lines := (out / "losses.jsonl").read_text("utf-8").splitlines()):
            kept = latest_checkpoint(out)
            assert kept is not None and int(kept.name.partition("-")[2]) == json.loads(lines[-1])["step"]
    assert killer.finish(out) == want


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun ends processes by signals")
def test_two_processes_are_told_to_end(tmp_path):
    """torchrun passes the signal on; both processes stop after one step, and both states are kept."""
    from fewshot_gan.training.checkpoints import latest_checkpoint

    prepare_a_base(tmp_path)
    script = Path(__file__).parents[2] / "training" / "finetune.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    options = [f"--base={tmp_path / 'base'}", f"--data={tmp_path / 'pictures'}", "--preset=paper", "--report_to=none"]
    options += ["--max_train_steps=60", "--train_batch_size=2", "--checkpointing_steps=100", "--num_threads=1"]

    def start(out: str):
        command = [*torchrun, *options, f"--output_dir={tmp_path / out / 'out'}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    whole = start("whole")
    assert "2 processes on cpu" in whole.communicate()[0] and whole.returncode == 0
    told, losses = start("told"), tmp_path / "told" / "out" / "losses.jsonl"
    while told.poll() is None and not (losses.is_file() and len(losses.read_text(encoding="utf-8").splitlines()) > 3):
        time.sleep(0.05)
    told.send_signal(signal.SIGTERM)
    said = told.communicate()[0]
    assert told.returncode != 0 and said.count("stopped at step") == 1, said
    kept = latest_checkpoint(losses.parent)
    assert 3 < int(kept.name.partition("-")[2]) < 60 and len([*kept.glob("state-*.pt")]) == 2
    again = start("told")
    assert again.communicate() and again.returncode == 0
    weights = [(tmp_path / x / "out" / "adapter_model.safetensors").read_bytes() for x in ("whole", "told")]
    assert weights[0] == weights[1]
