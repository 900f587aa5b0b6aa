"""training/distill.py on a tiny teacher: it learns, resumes bit for bit after a signal, and shows its run."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from helpers.networks import tiny_mobile
from PIL import Image
from safetensors.torch import load_file

from fewshot_gan.data.grids import grid_size
from fewshot_gan.pipeline import FewShotGAN

OPTIONS = ["--source=x", "--resolution=16", "--num_train=8", "--num_val=8", "--train_blocks=1", "--batch_size=2"]
OPTIONS += ["--steps=6", "--d_steps=4", "--d_channel_base=128", "--d_channel_max=8", "--checkpointing_steps=3"]
OPTIONS += ["--d_every=2", "--report_to=none", "--num_threads=1", "--seed=3"]


@pytest.fixture
def distill(script, features, monkeypatch, tmp_path):
    """`distill("name", …)` runs the script with a work folder and an output of that name."""
    module = script("distill")
    monkeypatch.setattr(module, "convert_checkpoint", lambda source: {"generator": tiny_mobile()})
    monkeypatch.setattr(module, "load_features", lambda device=None: features)

    def run(name, *options):
        folders = [f"--work_dir={tmp_path / name}", f"--output_dir={tmp_path / name / 'pipeline'}"]
        module.main([*OPTIONS, *folders, *options])
        return FewShotGAN.from_pretrained(tmp_path / name / "pipeline", low_cpu_mem_usage=False)

    run.module = module
    return run


def weights(pipe):
    parts = {"g": pipe.generator, "d": pipe.discriminator}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def after(patch, module, name, calls, action):
    """`action` happens inside the `calls`-th call of a function of the script."""
    original, count = getattr(module, name), [0]

    def wrapped(*args, **kwargs):
        count[0] += 1
        if count[0] == calls:
            action()
        return original(*args, **kwargs)

    patch.setattr(module, name, wrapped)


def test_the_student_learns_and_the_run_is_shown(distill, tmp_path):
    pipe = distill("run")
    assert pipe.generator.resolution == 16 and pipe.discriminator.resolution == 16
    files = (tmp_path / "run" / "pipeline").rglob("*.safetensors")
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [3, 6] and all(row["val_psnr"] > 5 for row in rows)
    losses = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in losses] == list(range(1, 11))
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "step-000003.png",
        "step-000006.png",
    ]
    assert "finished" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("calls", [1, 2])  # R1 comes in the first step of the student, and in that of the discriminator
def test_a_signal_costs_no_step(distill, monkeypatch, tmp_path, calls):
    want = weights(distill("whole"))
    with monkeypatch.context() as patch:
        after(patch, distill.module, "r1_penalty", calls, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as end:
            distill("stopped")
        assert end.value.code == 143
    assert not (tmp_path / "stopped" / "pipeline").exists()
    resumed = weights(distill("stopped"))
    assert resumed.keys() == want.keys()
    assert all(torch.equal(resumed[name], want[name]) for name in want)


def test_pictures_of_other_settings_are_refused(distill, monkeypatch, tmp_path):
    run = partial(distill, "run", "--num_val=5")
    run()
    with pytest.raises(SystemExit, match=r"holds teacher images \(train\) of other .*num was 8, now 6.*; use these"):
        run("--num_train=6")
    with monkeypatch.context() as patch:
        patch.setattr(distill.module, "convert_checkpoint", lambda source: {"generator": tiny_mobile(seed=1)})
        with pytest.raises(SystemExit, match="teacher was .*, now "):
            run()
    run("--evaluate=6")
    report = tmp_path / "run" / "evaluation.json"
    assert json.loads(report.read_text(encoding="utf-8"))["protocol"].endswith("n=6")
    with Image.open(report.with_name("evaluation.png")) as sheet:
        assert sheet.size == grid_size(10, 8, 16, 16)  # five pairs, four in a row
    for done in ("evalA.done", "evalB.done"):  # as older versions wrote it
        (tmp_path / "run" / done).write_bytes(b"")
    with pytest.raises(SystemExit, match=r"\(evalA\) of other settings \(num was 6, now 5\)"):
        run("--evaluate=5")
    run("--evaluate=6")


def test_a_finished_run_may_be_improved(distill):
    distill("run")
    assert distill("run", "--steps=8").generator.resolution == 16
