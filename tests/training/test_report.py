"""The page of a run: its curves are the logged losses, also after a kill; nothing in it runs or is fetched."""

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.run_pages import Page, check_run, read_events, read_losses, read_page
from PIL import Image

from fewshot_gan.data.images import to_bytes
from fewshot_gan.training import charts, page
from fewshot_gan.training.report import LOSSES_NAME, PAGE_NAME, Report, TrainingDiverged, reported

EVIL = "</script><script>alert(1)</script>\"'><img src=http://x.example/y onerror=z>"


def points_of(path: str) -> np.ndarray:
    """Return x and y `[2, N]` of a path "M x y L x y …"."""
    return np.array([float(number) for number in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2).T


def numbers_at_axes(drawn: charts.Chart) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn.svg)


@pytest.fixture
def make(tmp_path):
    """Return `make(steps, name, …)`, which makes a report in a folder of its own."""

    def report(steps=20, name="run", **options):
        new = Report(tmp_path / name, Accelerator(cpu=True), steps, **options)
        new.data, new.settings = "10 images", {"seed": 0}
        new.images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
        return new

    return report


def told(step: int) -> dict[str, float]:
    """Return losses of a step: one falls by three powers of ten, one changes its sign, one comes every fourth step."""
    losses = {"d": 1000 * math.exp(-step / 3), "g": math.sin(step) - 0.5}
    return losses | ({"r1": 0.1 / step} if step % 4 == 0 else {})


def fill(report, first, last):
    for step in range(first, last + 1):
        report.add(step, told(step))


# ---------------------------------------------------------------------------------------------------------- the curves


def test_the_drawn_points_are_the_losses(make):
    report = make()
    report.begin()
    fill(report, 1, 20)
    report.end("finished")
    found = check_run(report.folder, 20)
    assert [(step, told(step)) for step in range(1, 21)] == read_losses(report.folder)
    assert found.curves["r1"][""] == [[4, 8, 12, 16, 20], [0.1 / step for step in (4, 8, 12, 16, 20)]]
    raws = [a["d"] for tag, a in found.polylines if a["class"] == "raw"]
    assert len(raws) == 3 and len(found.polylines) == 6
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    for (name, series), points in zip(found.curves.items(), raws, strict=True):
        x, y = points_of(points)
        steps, values = (np.array(numbers) for numbers in series[""])
        np.testing.assert_allclose(x, left + (right - left) * (steps - steps[0]) / (steps[-1] - steps[0]), atol=0.006)
        assert (y >= charts.TOP).all() and (y <= charts.HEIGHT - charts.BOTTOM).all()
        # the height falls linearly with the value, or with its logarithm if the losses span several powers of ten
        shown = np.log10(values) if name == "d" else values
        slope, start = np.polyfit(shown, y, 1)
        np.testing.assert_allclose(y, start + slope * shown, atol=0.02)
        assert slope < 0
    assert found.text.count("log scale") == 1


def test_smoothing_and_scales():
    assert charts.smooth(np.full(50, 3.0)) == pytest.approx(3.0)
    noisy = np.random.default_rng(0).normal(5, 1, 400)
    assert charts.smooth(noisy)[100:].std() < 0.3 and charts.smooth(noisy)[0] == noisy[0]
    steps, values = charts.thin_out(np.arange(1.0, 1201), np.arange(1200.0))
    assert len(steps) == charts.MAX_POINTS and steps[-1] == 1200 and values.mean() == pytest.approx(599.5, abs=1)
    short = np.arange(7.0)
    assert all(a is b for a, b in zip(charts.thin_out(short, short), (short, short), strict=True))
    linear = charts.chart("g", {"": (range(401), np.linspace(-0.03, 0.11, 401))})
    assert numbers_at_axes(linear) == ["0", "100", "200", "300", "400", "0", "0.05", "0.1"]
    decades = charts.chart("g", {"": (range(401), np.logspace(-2.1, 1.2, 401))})
    assert numbers_at_axes(decades)[5:] == ["0.01", "0.1", "1", "10"]
    two_decades = charts.chart("g", {"": (range(401), np.logspace(-1.3, 0.3, 401))})
    assert numbers_at_axes(two_decades)[5:] == ["0.05", "0.1", "0.2", "0.5", "1", "2"]
    assert [page.duration(x) for x in (2.5, 600, 7500)] == ["2.5 s", "10 min", "2 h 5 min"]
    narrow = charts.chart("g", {"": (range(401), 1000 + np.arange(401) / 1000)})
    assert numbers_at_axes(narrow)[5:] == ["1000", "1000.1", "1000.2", "1000.3", "1000.4"]
    for values in ([2.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 5.0]):  # one step, a constant, zero, both signs
        drawn = charts.chart("g", {"": (range(1, len(values) + 1), values)})
        assert drawn.points == {"": (list(range(1, len(values) + 1)), values)}
        assert not drawn.logarithmic and "nan" not in drawn.svg
        lines = re.findall(r'class="(?:raw|smooth)( dot)?" d="([^"]+)"', drawn.svg)
        assert len(lines) == 2 and all(bool(dot) == (len(values) == 1) for dot, _ in lines)


def test_charts_leave_matplotlib_and_the_terminal_alone(tmp_path):
    """No display, no home to write to, a matplotlibrc with other settings: the same chart, and not a word."""
    program = """
import importlib, sys, numpy as np
from fewshot_gan.training import charts
for name in sys.argv[2:]:
    importlib.import_module(name)
assert "matplotlib" not in sys.modules
curve = {"": (range(1, 21), np.exp(-np.arange(20.0)))}
svg = charts.chart("d", curve).svg
import matplotlib
assert "matplotlib.pyplot" not in sys.modules
before = dict(matplotlib.rcParams)
assert charts.chart("d", curve).svg == svg and dict(matplotlib.rcParams) == before
assert before["lines.marker"] == sys.argv[1]
print(svg)
"""
    home, settings = tmp_path / "home", tmp_path / "matplotlibrc"
    home.write_text("a file: no folder can be made in it, not even by root", encoding="utf-8")
    settings.write_text("lines.marker: o\nsvg.fonttype: path\ntext.usetex: True\n", encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if k != "DISPLAY" and not k.startswith(("MPL", "XDG_", "MATPLOTLIB"))}
    charts_drawn = []
    for changed, arguments in (
        ({}, ["None", "fewshot_gan.training.report"]),
        ({"HOME": str(home), "MPLBACKEND": "tkagg"}, ["None"]),
        ({"HOME": str(home), "MPLCONFIGDIR": str(home / "config"), "MATPLOTLIBRC": str(settings)}, ["o"]),
    ):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, env=clean | changed, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0 and done.stderr == ""
        charts_drawn.append(done.stdout)
    assert charts_drawn[0].startswith("<svg") and len(set(charts_drawn)) == 1


def test_every_loss_of_the_methods_has_a_meaning():
    root, names = Path(page.__file__).parents[1], set()
    for file in [*(root / "methods").glob("*.py"), *(root / "training").glob("*.py")]:
        names |= set(re.findall(r'losses\["(\w+)"\] \+?=|yield {"(\w+)":', file.read_text(encoding="utf-8")))
    names = {first or second for first, second in names}
    assert {"colour", "path_length", "relation"} <= names <= set(page.MEANING)


def test_a_resumed_run_goes_on_with_its_curves(make):
    whole = make(name="whole")
    whole.begin()
    fill(whole, 1, 20)
    whole.end("finished")
    killed = make(name="killed")
    killed.begin()
    fill(killed, 1, 13)  # three steps after its checkpoint
    with (killed.folder / LOSSES_NAME).open("a", encoding="utf-8") as file:
        file.write('{"step": 14, "sec')
    resumed = make(name="killed")
    resumed.begin(10)
    assert read_losses(resumed.folder) == read_losses(whole.folder)[:10]
    fill(resumed, 11, 20)
    resumed.end("finished")
    assert read_losses(resumed.folder) == read_losses(whole.folder)
    first, second = check_run(whole.folder, 20), check_run(resumed.folder, 20)
    assert first.polylines == second.polylines and first.curves == second.curves
    anew = make(name="killed")
    anew.begin()
    assert read_losses(anew.folder) == [] and not anew.curves


# ------------------------------------------------------------------------------------------------------------ the page


def test_whatever_a_run_is_called_is_text(make, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", "training/hyperdomainnet.py", "--text", EVIL])
    report = make(name="a <b> & 'c'", title=EVIL)
    report.facts, report.data, report.settings = {EVIL: EVIL}, EVIL, {EVIL: [EVIL]}
    report.begin()
    report.add(1, {"</title><script>x": 1.0, EVIL: 2.0})
    report.end("diverged", EVIL)
    found = read_page(report.folder)  # which refuses scripts, handlers and addresses
    assert found.text.count("<script>alert(1)</script>") >= 7 and "a <b> & 'c'" in found.text
    assert set(found.curves) == {"</title><script>x", EVIL} and not found.links
    assert "training/hyperdomainnet.py --text '</script>" in found.text


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (TrainingDiverged("loss 'g' became nan at step 3"), "diverged", "loss 'g' became nan at step 3"),
        (KeyboardInterrupt(), "stopped", "by hand"),
        (OSError("disk full"), "stopped", "OSError: disk full"),
    ],
)
def test_a_run_that_fails_says_so(make, error, state, why):
    class Run:
        report = make()

        @reported
        def train(self):
            self.report.begin()
            fill(self.report, 1, 2)
            raise error

    with pytest.raises(type(error)):
        Run().train()
    found = read_page(Run.report.folder)
    assert found.state == state and why in found.text and "step 2 of 20" in found.text


def test_a_run_that_never_began_leaves_the_page_of_another(make):
    report = make()
    report.begin()
    fill(report, 1, 1)
    report.end("finished")
    before = (report.folder / PAGE_NAME).read_bytes()
    with pytest.raises(ValueError), make().watched():
        raise ValueError("holds a run with other settings")
    assert (report.folder / PAGE_NAME).read_bytes() == before
    assert sorted(path.name for path in report.folder.iterdir()) == [".lock", LOSSES_NAME, PAGE_NAME]


def test_pictures_over_time(make):
    report = make(400, shared=32)
    report.begin()
    base = torch.rand(8, 3, 32, 32) * 2 - 1
    report.show(0, [base, base])
    report.write()
    fresh = Page((report.folder / PAGE_NAME).read_text(encoding="utf-8"))
    assert fresh.state == "running" and "Pictures of the same latents at step 0" in fresh.images
    for step in range(10, 410, 10):
        report.add(step, {"d": 1.0})
        report.show(step, [base, torch.rand(8, 3, 32, 32) * 2 - 1])
    report.end("finished")
    found = read_page(report.folder)
    assert Image.open(report.folder / "samples" / "step-000400.png").size == (256, 64)
    strips = [x for x in found.images if "latent" in x]
    assert strips[0] == "Pictures of the base, one column per latent" and len(strips) <= 1 + page.MAX_GRIDS
    assert strips[-1].endswith("at step 400") and not any(x.endswith("at step 0") for x in strips)  # as the base
    assert [x for x in found.images if x.startswith("training")] == [f"training image {i}" for i in range(1, 13)]
    resumed = make(400, shared=32)
    resumed.begin(200)  # what came after belongs to another past
    assert max(step for step, _ in resumed.grids()) == 200


def test_large_pictures_are_reduced_in_sample_grids(make):
    report = make(2, shared=512)
    report.begin()
    base, drawn = (torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    for step in (0, 1):
        report.show(step, [base, drawn * step + base * (1 - step)])
        report.add(step + 1, {"d": 1.0})
    report.end("finished")
    grid = Image.open(report.folder / "samples" / "step-000001.png")
    assert grid.size == (2 * 256, 2 * 256)
    area = to_bytes(base[1].unflatten(2, (256, 2)).unflatten(1, (256, 2)).mean((2, 4)))  # each pixel the mean of four
    left = torch.from_numpy(np.array(grid))[:256, 256:].permute(2, 0, 1)
    assert (left.int() - area.int()).abs().max() <= 1
    strips = [x for x in read_page(report.folder).images if "latent" in x]  # the base's row alone, and step 1 without
    assert strips[0].startswith("Pictures of the base") and [x[-1] for x in strips[1:]] == ["1"]


def test_the_page_stays_small_and_is_written_fast(make):
    report = make(400, shared=256)
    report.images = torch.randint(0, 256, (12, 3, 256, 256), dtype=torch.uint8)
    report.begin()
    began = time.perf_counter()
    for step in range(1, 401):
        report.add(step, {name: told(step)["d"] for name in "abcdefghij"})
    each = (time.perf_counter() - began) / 400
    noise = torch.rand(3, 6, 3, 256, 256) * 2 - 1  # pictures that no JPEG makes small
    for step in (200, 300, 400):
        report.show(step, noise)
    report.end("finished")
    assert (report.folder / PAGE_NAME).stat().st_size < 3_000_000
    assert each < 0.05  # seconds; 0.001 on an idle core, and a step of the smallest real run takes a second
    times = []
    for _ in range(3):
        began = time.process_time()
        report.write()
        times.append(time.process_time() - began)
    assert min(times) < 3  # seconds for ten losses; 0.2 on an idle core, 1.1 on a slow one that others share


def test_a_chart_that_is_kept_does_not_stop_the_run(make, monkeypatch):
    """matplotlib keeps figures until Python collects cycles, at any time."""
    kept, draw = [], charts._draw
    monkeypatch.setattr(charts, "_draw", lambda lines, logarithmic: kept.append(lines) or draw(lines, logarithmic))
    report = make()
    report.begin()
    fill(report, 1, 5)
    report.write()
    fill(report, 6, 7)
    report.end("finished")
    assert kept and len(report.curves["d"][0]) == 7


def test_rounds_share_a_page(make):
    whole = make(8, name="run", title="lottery")
    for number in range(2):
        part = make(4, name=f"run/round-0{number}", tag=f"round-0{number}/")
        part.parent, part.facts["Pruned"] = whole, f"generator {number * 20}.00%"
        whole.rounds[f"round-0{number}"] = part
        part.begin()
        fill(part, 1, 4)
        part.end("finished")
    assert read_page(whole.folder).state == "running"
    whole.end("finished")
    found = read_page(whole.folder)
    assert found.state == "finished" and "step 8 of 8" in found.text and "generator 20.00%" in found.text
    assert found.links == ["round-00/report.html", "round-01/report.html"]
    assert all(set(series) == {"round-00", "round-01"} for series in found.curves.values())
    assert found.curves["d"]["round-01"][1] == charts.smooth(np.array([told(s)["d"] for s in range(1, 5)])).tolist()
    assert not (whole.folder / LOSSES_NAME).exists()


# -------------------------------------------------------------------------------------------------------- every script


def test_distillation_keeps_a_report(script, features, tmp_path, monkeypatch):
    from helpers.networks import tiny_mobile

    from fewshot_gan.pipeline import FewShotGAN

    distill = script("distill")
    monkeypatch.setattr(distill, "load_features", lambda **kwargs: features)
    monkeypatch.setattr(distill, "convert_checkpoint", lambda source: {"generator": tiny_mobile()})
    work, out = tmp_path / "work", tmp_path / "pipeline"
    options = [f"--work_dir={work}", f"--output_dir={out}", "--source=teacher", "--resolution=16", "--steps=4"]
    options += ["--num_train=128", "--num_val=8", "--train_blocks=1", "--checkpointing_steps=2", "--d_steps=3"]
    options += ["--d_channel_base=64", "--d_channel_max=8", "--num_threads=1", "--adversarial_start=0"]
    save = torch.save

    def kill(state, path):
        save(state, path)
        if state["step"] == 4:  # the checkpoint is not in its place yet
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            distill.main(options)
    assert read_page(work).state == "stopped" and not out.exists()
    distill.main(options)
    found = read_page(work)
    assert found.state == "finished" and "step 7 of 7" in found.text
    losses = read_losses(work)
    assert [step for step, _ in losses] == list(range(1, 8))
    assert all(set(values) == {"d"} for _, values in losses[4:]) and "pixel" in losses[3][1]
    assert FewShotGAN.from_pretrained(out).generator.resolution == 16
    scalars, pictures = read_events(work)
    assert [step for step, _ in scalars["pixel"]] == [1, 2, 3, 4, 3, 4] and pictures["samples"] == [2, 4]
    assert "Pictures of the teacher, one column per latent" in found.images
