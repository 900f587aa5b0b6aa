"""A run from outside: signals, one run a folder, folders taken away, ends that failed, more steps, launchers."""

import errno
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import fields

import pytest
import torch
from helpers.folders import held_elsewhere
from helpers.networks import TinyFeatures, tiny_discriminator, tiny_stylegan2
from helpers.run_pages import check_run, read_losses, read_page
from PIL import Image

from fewshot_gan.adapters import LeFTAdapter, TicketAdapter
from fewshot_gan.catalogue import METHODS
from fewshot_gan.cli import app
from fewshot_gan.methods.adafm import AdaFMConfig
from fewshot_gan.methods.cdc import CDCConfig
from fewshot_gan.methods.d3t import D3TConfig
from fewshot_gan.methods.hyperdomain import HyperDomainConfig
from fewshot_gan.methods.lfs_gan import LFSConfig
from fewshot_gan.methods.losses import PathLength, r1_penalty
from fewshot_gan.methods.objective import Objective
from fewshot_gan.models.projected import ProjectedDiscriminator
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import adapt, hypernetwork, interrupt, launch, limited, lottery
from fewshot_gan.training.checkpoints import checkpoints
from fewshot_gan.training.command_line import parse
from fewshot_gan.training.engine import Trainer, TrainingConfig
from fewshot_gan.training.interrupt import ECHO, Interrupted, Stop, interruptible
from fewshot_gan.training.report import Report

IMAGES = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
RUN = ["--report_to=none", "--num_threads=1", "--sample_steps=0"]
BATCH = "--train_batch_size=2"


@pytest.fixture(autouse=True)
def one_core(tiny_features, monkeypatch):
    """Processes that share cores wait for each other's threads."""
    monkeypatch.setattr(launch.os, "cpu_count", lambda: 1)


@pytest.fixture
def data(tmp_path):
    """A folder of two domains of two images each."""
    for i, image in enumerate(IMAGES):
        folder = tmp_path / "data" / f"domain-{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return tmp_path / "data"


COMMANDS = ("adapt", "cli", "hypernetwork", "lottery")


@pytest.fixture
def run(base_folder, data, tmp_path, monkeypatch):
    """`run(command, folder, steps, …)`: one of `COMMANDS` in this process, without the steps that are timed before."""
    monkeypatch.setattr(adapt, "estimate", lambda trainer: "as long as it takes")

    def start(command, out="run", steps=6, *more):
        common = [f"--output_dir={tmp_path / out}", f"--max_train_steps={steps}", *RUN, *more]
        base, one = f"--base={base_folder}", f"--data={data / 'domain-0'}"
        if command == "adapt":
            return adapt.main("lfs_gan", [*common, base, one, BATCH])
        if command == "hypernetwork":
            return hypernetwork.main([*common, base, f"--data={data}", BATCH, "--width=16"])
        if command == "lottery":
            small = ["--d_steps=1", "--d_batch_size=4", "--g_batch_size=4", "--channels=8", "--d_channels=8"]
            return lottery.main([*common, f"--data={data / 'domain-0'}", *small])
        options = [f"--out={tmp_path / out}", f"--steps={steps}", base, "--batch-size=2"]
        return app(["adapt", str(data / "domain-0"), *options], standalone_mode=True)

    return start


def at_step(patch, number, call):
    """`call` happens during the `number`-th step of whatever is trained."""
    for cls in (Trainer, limited.LimitedTrainer):

        def step(self, original=cls.train_step):
            if self.step == number - 1:
                call()
            return original(self)

        patch.setattr(cls, "train_step", step)


def files(folder):
    """Name → bytes of what a run made, wherever it is."""
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors") if "checkpoint" not in str(p)}
    assert found
    return found


def trained(folder):
    """The folder in which the steps of a run were taken."""
    return folder / "round-00" if (folder / "round-00").is_dir() else folder


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_ends_a_run_with_a_checkpoint(run, tmp_path, monkeypatch, capfd, command, number, code):
    before = [signal.getsignal(n) for n in interrupt.SIGNALS]
    if command == "cli":  # exits also where all is well
        with pytest.raises(SystemExit) as end:
            run(command, "whole")
        assert end.value.code == 0
    else:
        run(command, "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as end:
            run(command)
    assert end.value.code == code and [signal.getsignal(n) for n in interrupt.SIGNALS] == before
    folder = trained(tmp_path / "run")
    assert [p.name for p in checkpoints(folder)] == ["checkpoint-000003"]  # the step at hand is not lost
    page = read_page(folder)
    assert page.state == "stopped" and f"by {number.name}" in page.text and "step 3 of 6" in page.text
    told = capfd.readouterr().err
    assert f"{number.name}: the run ends after this step with a checkpoint; again: at once" in told
    assert "stopped at step 3 of 6; the same command goes on from there" in told and "Traceback" not in told
    assert not (folder / "adapter_config.json").exists()
    try:
        run(command)
    except SystemExit as end:
        assert end.code == 0
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert read_losses(folder) == read_losses(trained(tmp_path / "whole"))


def test_twenty_steps_are_ten_a_signal_and_ten(run, tmp_path, monkeypatch):
    run("adapt", "whole", 20)
    with monkeypatch.context() as patch:
        at_step(patch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run("adapt", "run", 20)
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-000010"]
    run("adapt", "run", 20)
    states = [
        torch.load(tmp_path / x / "checkpoint-000020" / "state-0.pt", weights_only=True) for x in ("whole", "run")
    ]
    assert equal(*states) and files(tmp_path / "run") == files(tmp_path / "whole")
    assert check_run(tmp_path / "run", 20).polylines == check_run(tmp_path / "whole", 20).polylines


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_signal_before_the_first_step_or_after_the_last_ends_at_once(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(adapt.Run, "trainer", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
        with pytest.raises(Interrupted):
            run("adapt")
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr(
            adapt, "write_adapter_card", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5)
        )
        with pytest.raises(Interrupted):
            run("adapt")
    assert read_page(tmp_path / "run").state == "stopped" and not (tmp_path / "run" / "README.md").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", None)  # nothing is trained again
        run("adapt")
    assert check_run(tmp_path / "run", 6) and (tmp_path / "run" / "README.md").is_file()


def test_a_signal_right_after_a_checkpoint_writes_none_again(run, tmp_path, monkeypatch):
    written, save = [], adapt.Trainer._checkpoint
    monkeypatch.setattr(Trainer, "_checkpoint", lambda self: (written.append(self.step), save(self)))
    at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run("adapt", "run", 6, "--checkpointing_steps=2")
    assert written == [2, 4]


def test_a_second_signal_stops_at_once(monkeypatch):
    """One that follows at once is the first, told twice: `timeout` tells a process, then its group."""
    now, exits = [100.0], []
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interrupt.os, "_exit", exits.append)
    stop = Stop()
    stop.deferred = True
    stop(signal.SIGINT, None)
    now[0] += ECHO / 2
    stop(signal.SIGTERM, None)
    assert stop.number == signal.SIGINT and not exits
    now[0] += ECHO
    with pytest.raises(Interrupted) as end:
        stop(signal.SIGTERM, None)
    assert end.value.code == 143 and not exits
    now[0] += 2 * ECHO
    stop(signal.SIGINT, None)  # even if what cleans up hangs
    assert exits == [130]


@pytest.mark.parametrize("after", [None, ImportError("initialization failed"), SystemExit("error: of something else")])
def test_an_interruption_that_is_taken_for_something_else_is_one(after):
    """What is interrupted amid an import says that the import failed, and a callback says nothing."""
    with pytest.raises(SystemExit) as end, interruptible():
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        if after is not None:
            raise after
    assert end.value.code == 143
    with (
        pytest.raises(OSError, match="no space"),
        interruptible(),
    ):  # while the checkpoint was written: that is to be known
        interrupt.installed().deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError("no space left")


def test_a_second_signal_ends_a_step_that_hangs(run, tmp_path, monkeypatch):
    def hang():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(ECHO + 0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(30)

    at_step(monkeypatch, 2, hang)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run("adapt")
    assert time.monotonic() - began < 15 and not checkpoints(tmp_path / "run")


def test_threads_and_libraries_get_no_handlers(run, tmp_path, base_folder, data):
    """The demo trains in a thread, and whoever calls `run` has handlers of their own."""
    before, seen = [signal.getsignal(n) for n in interrupt.SIGNALS], []
    command = [f"--base={base_folder}", f"--data={data / 'domain-0'}", *RUN, BATCH, "--max_train_steps=2"]

    def look(trainer, losses):
        seen.append([signal.getsignal(n) for n in interrupt.SIGNALS])

    def work(out):
        with interruptible():
            adapt.run(parse("lfs_gan", [*command, f"--output_dir={tmp_path / out}"]), on_step=look)

    thread = threading.Thread(target=work, args=("thread",))
    thread.start(), thread.join()
    adapt.run(parse("lfs_gan", [*command, f"--output_dir={tmp_path / 'own'}"]), on_step=look)
    assert seen == [before] * 4 and interrupt.installed() is None


def test_what_a_shell_told_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert isinstance(signal.getsignal(signal.SIGTERM), Stop)
            with interruptible():  # one inside another is the other
                assert signal.getsignal(signal.SIGTERM) is interrupt.installed()
            assert isinstance(signal.getsignal(signal.SIGTERM), Stop)
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------- one run in a folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_run_in_a_folder_is_refused(run, tmp_path, command, capfd):
    with held_elsewhere(tmp_path / "run"):
        with pytest.raises(SystemExit) as end:
            run(command)
        assert os.listdir(tmp_path / "run") == [".lock"] and (command != "cli" or end.value.code == 2)
    told = f"error: another run is at work in {tmp_path / 'run'}; wait for its end, stop it, or choose another"
    assert told in (capfd.readouterr().err if command == "cli" else str(end.value))


def take_away(folder):
    shutil.rmtree(folder)


def replace(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("away", [take_away, replace], ids=["removed", "replaced"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("step", [2, 6], ids=["amid", "at the end"])
def test_a_folder_that_is_taken_away_ends_the_run_with_an_error(run, tmp_path, monkeypatch, command, away, step, capfd):
    at_step(monkeypatch, step, lambda: away(tmp_path / "run"))
    with pytest.raises(SystemExit) as end:
        run(command)
    told = capfd.readouterr().err if command == "cli" else str(end.value)
    assert "was removed, moved or replaced while a run was at work in it" in told and end.value.code not in (0, None)
    assert "Traceback" not in told
    assert not list(tmp_path.glob("run/*"))  # nothing is written beside what somebody else puts there


def test_a_folder_taken_away_while_the_card_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "write_adapter_card", lambda *args, **options: take_away(tmp_path / "run"))
    with pytest.raises(SystemExit, match="was removed, moved or replaced"):
        run("adapt")
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------- an end that failed


@pytest.mark.parametrize(
    "command, owner, name",
    [
        ("adapt", adapt, "write_adapter_card"),
        ("adapt", LeFTAdapter, "save_pretrained"),
        ("adapt", Report, "show"),
        ("hypernetwork", hypernetwork, "write_hypernetwork_card"),
        ("lottery", FewShotGAN, "save_pretrained"),
    ],
)
def test_an_end_that_failed_is_finished_by_the_same_command(run, tmp_path, monkeypatch, command, owner, name):
    more = ["--sample_steps=100"] if name == "show" else []
    run(command, "whole", 6, *more)
    original = getattr(owner, name)

    def full(self, first, *args, **options):
        """No space is left for what belongs to the end: pictures of step 6, and what is no checkpoint."""
        if first == 6 if name == "show" else "checkpoint" not in str(first):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, first, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(SystemExit, match="error: .*No space left on device"):
            run(command, "run", 6, *more)
    page = read_page(trained(tmp_path / "run"))
    assert page.state == "stopped" and "No space left on device" in page.text
    with monkeypatch.context() as patch:
        for cls in (Trainer, limited.LimitedTrainer):
            patch.setattr(cls, "train_step", None)  # it does not train again
        run(command, "run", 6, *more)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    pages = [check_run(trained(tmp_path / x), 6) for x in ("run", "whole")]
    assert pages[0].polylines == pages[1].polylines
    there = [{p.relative_to(tmp_path / x) for p in (tmp_path / x).rglob("*")} for x in ("run", "whole")]
    assert there[0] == there[1]


# ----------------------------------------------------------------------------------------------------------- more steps


CONSTANT = ["--lr_warmup_steps=0", "--lr_final=1"]


@pytest.mark.parametrize("command", ["adapt", "lottery"])
def test_a_run_may_be_made_longer(run, tmp_path, command):
    """What does not depend on its length is as if it had been that long from the beginning."""
    more = CONSTANT if command == "adapt" else []
    run(command, "whole", 8, *more)
    run(command, "run", 3, *more)
    run(command, "run", 8, *more)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    folder = trained(tmp_path / "run")
    assert check_run(folder, 8).curves == check_run(trained(tmp_path / "whole"), 8).curves
    with pytest.raises(
        SystemExit, match="a run of 8 steps, more than max_train_steps=7; give 8 or more, or start anew"
    ):
        run(command, "run", 7, *more)
    assert read_page(folder).state == "finished" and files(tmp_path / "run") == files(tmp_path / "whole")


def test_the_rate_is_that_of_a_run_of_the_new_length(run, tmp_path, monkeypatch):
    run("adapt", "run", 3)
    rates, step = {}, Trainer.train_step

    def watched(self):
        losses = step(self)
        rates[self.step] = self.optimizer.param_groups[0]["lr"] / self.config.learning_rate
        return losses

    monkeypatch.setattr(Trainer, "train_step", watched)
    run("adapt", "run", 10)
    # a warm-up over ten steps, and a fall from 0.6 of the run to 0.15 at its end, where the tenth step is at 0.9
    want = {n + 1: (n + 1) / 10 * (1 if n <= 6 else 1 - 0.85 * (n / 10 - 0.6) / 0.4) for n in range(3, 10)}
    assert rates == pytest.approx(want)


def test_rounds_that_were_pruned_keep_their_length(run, tmp_path):
    run("lottery", "run", 2, "--rounds=1")
    with pytest.raises(SystemExit, match="max_train_steps was 2, now 4.*use them again to resume, or start anew"):
        run("lottery", "run", 4, "--rounds=1")
    run("lottery", "run", 2, "--rounds=2")  # there may be more of them
    assert check_run(tmp_path / "run" / "round-02", 2)


def test_a_ticket_that_a_kill_left_half_written_is_written_again(run, tmp_path, monkeypatch):
    run("lottery", "whole", 2, "--rounds=1", "--prune=GD")
    save = TicketAdapter.save_pretrained

    def killed(self, folder):
        if folder.name == "ticket_discriminator":
            folder.mkdir(parents=True)
            raise KeyboardInterrupt
        save(self, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TicketAdapter, "save_pretrained", killed)
        run("lottery", "run", 2, "--rounds=1", "--prune=GD")
    run("lottery", "run", 2, "--rounds=1", "--prune=GD")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


# -------------------------------------------------------------------------------------------------------------- numbers


WRONG = ["nan", "inf", "-inf", "-1"]
BELOW_ZERO = ("truncation_psi",)  # may be
CASES = [
    (cls, option.name, value)
    for cls in (TrainingConfig, limited.LimitedConfig, LFSConfig, D3TConfig, CDCConfig, AdaFMConfig, HyperDomainConfig)
    for option in fields(cls)
    if option.type in (int, float)
    for value in WRONG
    if (option.type is float or value == "-1") and not (option.name in BELOW_ZERO and value == "-1")
]


@pytest.mark.parametrize("cls, name, value", CASES)
def test_every_number_of_every_config_has_a_range(cls, name, value):
    """Not finite, or below 0 where that means nothing: one sentence with the value and what to give."""
    own = {"output_dir": "run"} if cls in (TrainingConfig, limited.LimitedConfig) else {}
    number = int(value) if cls.__dataclass_fields__[name].type is int else float(value)
    with pytest.raises(ValueError, match=rf"^{name}={number}: give (a|\d).*[^.]$"):
        cls(**own, **{name: number})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_train_steps": 0}, "max_train_steps=0: give 1 or more"),
        ({"max_train_steps": 2.5}, "max_train_steps=2.5: give a whole number, 1 or more"),
        ({"learning_rate": "much"}, "learning_rate=much: give a number above 0, e.g. 0.001"),
        ({"seed": 2**63}, f"seed={2**63}: give a whole number from 0 to 2\\^63 - 1"),
        ({"adam_beta1": 1.0}, "adam_beta1=1.0: give 0 to below 1"),
        ({"real_zoom": 5}, "real_zoom=5: give 1 to 4, e.g. 1 \\(none\\) or 1.5"),
        ({"checkpoints_total_limit": True}, "checkpoints_total_limit=True: give 1 or more"),
    ],
)
def test_sentences_about_numbers(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainingConfig("run", **settings)


@pytest.mark.parametrize(
    "options",
    [
        ["--max_train_steps=0"],
        ["--learning_rate=nan"],
        ["--content_weight=-1"],
        ["--num_threads=-1"],
        ["--seed=-1"],
        ["--style_mixing=2"],
        ["--mixed_precision=fp16"],
    ],
)
def test_a_number_out_of_range_ends_a_script_before_anything_is_written(run, tmp_path, options):
    with pytest.raises(SystemExit, match=f"^error: .*{options[0].split('=')[1]}.*(give|known)"):
        run("adapt", "run", 2, *options)
    assert not (tmp_path / "run").exists()


def test_the_largest_seed_is_one(run, tmp_path):
    run("adapt", "run", 1, f"--seed={2**63 - 1}")
    run("lottery", "other", 1, f"--seed={2**63 - 1}")
    assert check_run(tmp_path / "run", 1)


# ------------------------------------------------------------------------------------------------ Accelerate's launcher


@pytest.mark.parametrize("command", ["adapt", "hypernetwork"])
def test_the_launchers_precision_is_the_runs(run, tmp_path, monkeypatch, command, capfd):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    halves, made = [], Trainer.__init__

    def watched(self, *args, **options):
        made(self, *args, **options)
        halves.append(self.pair.half)

    monkeypatch.setattr(Trainer, "__init__", watched)
    run(command, "run", 1)
    assert halves == [True] and "1 process on cpu, 1 thread of" in capfd.readouterr().out
    with pytest.raises(
        SystemExit, match="says mixed_precision bf16, the script's --mixed_precision no; give one of them"
    ):
        run(command, "other", 1, "--mixed_precision=no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what it says where nobody chose
    run(command, "third", 1, "--mixed_precision=bf16")
    assert halves == [True, True] and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "command, name, value, message",
    [
        (
            "adapt",
            "ACCELERATE_MIXED_PRECISION",
            "fp16",
            "says mixed_precision fp16, which is not offered here: no, bf16;",
        ),
        (
            "lottery",
            "ACCELERATE_MIXED_PRECISION",
            "bf16",
            "says mixed_precision bf16, but this script computes in float32",
        ),
        (
            "adapt",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "4",
            "says to accumulate gradients, which no script here does",
        ),
        ("lottery", "ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "says to compile with dynamo, which no script here does"),
    ],
)
def test_what_a_launcher_says_and_no_script_does_is_refused(run, tmp_path, monkeypatch, command, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^error: accelerate launch {message}"):
        run(command)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="session")
def stylegan2_base(tmp_path_factory):
    """A base with StyleGAN2's generator, its discriminator, and heads on the tiny features."""
    real = IMAGES.permute(0, 3, 1, 2).float() / 127.5 - 1
    heads = ProjectedDiscriminator.for_images(real, TinyFeatures(), Objective.HEADS, seed=9)
    folder = tmp_path_factory.mktemp("bases") / "stylegan2"
    FewShotGAN(tiny_stylegan2(), tiny_discriminator(), heads).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "method, preset", [(name, x) for name, entry in METHODS.items() for x in entry.load().presets if x != "text"]
)
def test_every_method_in_every_precision(stylegan2_base, tmp_path, data, method, preset):
    """All that `--mixed_precision` offers, on a base with StyleGAN2's generator."""
    losses = {}
    for precision in launch.PRECISIONS:
        argv = [
            f"--base={stylegan2_base}",
            f"--data={data / 'domain-0'}",
            f"--output_dir={tmp_path / precision}",
            BATCH,
        ]
        argv += [*RUN, f"--preset={preset}", f"--mixed_precision={precision}", "--max_train_steps=1"]
        argv += ["--projection_steps=1"] if (method == "d3t" and preset != "large_gap") or preset == "image" else []
        argv += ["--projection_steps=1", "--pair_quality=0"] if method == "pairs" else []
        argv += ["--adafm_start=0"] if (method, preset) == ("adafm", "paper") else []
        adapt.main(method, argv)
        ((_, losses[precision]),) = read_losses(tmp_path / precision)
    exact, half = losses["no"], losses["bf16"]
    assert exact.keys() == half.keys() and exact != half
    penalties = {"r1", "path_length"} & exact.keys()
    assert preset != "paper" or penalties or method in ("d3t", "hyperdomainnet")
    for name in penalties:  # computed in float32, of weights that no precision has taught yet
        assert half[name] == exact[name] > 0
    for name in exact.keys() - penalties:  # bfloat16 has 8 bits: 0.4 % of each feature, more of what nearly cancels
        assert half[name] == pytest.approx(exact[name], rel=0.2, abs=0.05)


def test_penalties_of_gradients_under_autocast():
    """R1 is the same in and out of autocast; path lengths of half precision are refused."""
    judge, real = tiny_discriminator(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want = r1_penalty(judge, real)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(r1_penalty(judge, real), want) and torch.equal(
            r1_penalty(judge, real.bfloat16().float()), r1_penalty(judge, real.bfloat16())
        )
    ws = torch.randn(2, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(
        ValueError, match="path lengths of torch.bfloat16 images of torch.bfloat16 styles: draw them in"
    ):
        PathLength()(ws.sum() * torch.ones(2, 3, 4, 4, dtype=torch.bfloat16), ws, None)
