"""The few-shot bench: what it judges, what it does again, and what it says, with trainings that take a second."""

import json
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import held_elsewhere
from helpers.networks import TinyFeatures
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.features.encoders import FeatureEncoder
from fewshot_gan.hub import embedded_adapters
from fewshot_gan.training.domains import apply_filter, gaussian_blur

SCRIPTS = Path(__file__).parents[2] / "training"
MODULES = ("benchmark", "bench_looks", "bench_report", "bench", "make_domain", "measured", "unseen_domains", "curves")
MODULES += ("check_results",)


class Eyes(TinyFeatures):
    """Tiny features on a device that a parameter tells, and a hash for protocols."""

    sha256 = "e" * 64

    def __init__(self):
        super().__init__()
        self.device_of = nn.Parameter(torch.zeros(1), requires_grad=False)


@pytest.fixture
def scripts(monkeypatch):
    """The training scripts as modules, fresh."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = {name: __import__(name) for name in MODULES}
    monkeypatch.setattr(modules["bench_looks"], "load_features", lambda *args, **kwargs: Eyes())
    yield type("Scripts", (), modules)
    for name in MODULES:
        sys.modules.pop(name, None)


def faces(num, seed=0, size=64):
    noise = torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (gaussian_blur(noise, 3.0) * 4).clamp(-1, 1)


# ------------------------------------------------------------------------------------------------------------ the judge


def judged(scripts, images, network, num=12):
    """Rows of the source and of `images` for the pencil look."""
    b = scripts.benchmark
    source, other = faces(num), faces(2 * num, seed=1)
    sets = [b.describe(x.split(7), network, network) for x in (images, apply_filter(other, "pencil"), source)]
    paired = b.describe([apply_filter(source, "pencil")], network, network)
    centres = b.spatial_embedding(apply_filter(faces(5, seed=2), "pencil"), network).half()
    return b.measure(*sets, paired, centres), b.measure(sets[2], *sets[1:], paired, centres)


def test_the_truth_may_be_a_folder(scripts, tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 40), (number, 50, 255)).save(tmp_path / f"{number}.png")
    kind, folder = scripts.benchmark.parse_truth(f"folder:{tmp_path}")
    assert (kind, folder) == ("folder", str(tmp_path))
    assert scripts.benchmark.parse_truth("filter:pencil") == ("filter", "pencil")
    with pytest.raises(ValueError, match="is not filter:NAME or dicebear:NAME"):
        scripts.benchmark.parse_truth("folder:")


def test_a_perfect_adapter_an_idle_one_and_a_collapsed_one(scripts):
    network = Eyes()
    true = apply_filter(faces(12), "pencil")
    perfect, source = judged(scripts, true, network)
    idle, _ = judged(scripts, faces(12), network)
    collapsed, _ = judged(scripts, true[:1].expand_as(true), network)
    assert idle == source and idle["correlation_with_source"] == pytest.approx({"edge": 1, "luminance": 1}, abs=1e-9)
    for key in ("kid_x1e3", "unseen_x1e3", "plain_x1e3"):  # unbiased: two samples of one distribution scatter around 0
        assert abs(perfect[key] / source[key]) < 0.1 and collapsed[key] > perfect[key]
    assert perfect["frechet"] < source["frechet"]
    assert perfect["correlation_with_truth"] == pytest.approx({"edge": 1, "luminance": 1}, abs=1e-9)
    assert perfect["distance_to_truth"] == 0 and source["distance_to_truth"] > 0.01
    for key in ("spatial_distance", "intra_cluster_distance", "balanced_intra_cluster_distance"):
        # equal rows: what float64 leaves of a difference of sums
        assert collapsed[key] < 1e-9 < 0.01 < perfect[key], key


def test_a_described_set_does_not_depend_on_its_chunks_and_keeps_only_the_first_pictures(scripts):
    b, network, x = scripts.benchmark, Eyes(), faces(9)
    whole, parts = b.describe([x], network, network, 5), b.describe(x.split(2), network, network, 5)
    assert len(whole.pooled) == len(whole.plain) == 9 and len(whole.spatial) == len(whole.pictures) == 5
    assert torch.equal(whole.pictures, parts.pictures) and torch.equal(whole.plain, parts.plain)
    # another batch size may pick another convolution kernel: float32 rounding, then float16
    torch.testing.assert_close(whole.pooled, parts.pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.spatial, parts.spatial, rtol=2e-3, atol=1e-5)
    assert b.describe([x], network, network, 0).pictures.numel() == 0
    assert b.as_pictures(torch.zeros(1, 3, 512, 512)).shape == (1, 3, 256, 256)


def described(scripts, images, crops=2):
    return scripts.benchmark.describe(images.split(5), Eyes(), Eyes(), 6, crops)


@pytest.fixture(scope="module")
def large():
    """Faces of 288 px, and their look, as itself and out of focus."""
    x = faces(8, size=288) + 0.1 * torch.randn(8, 3, 288, 288, generator=torch.Generator().manual_seed(2))
    true = apply_filter(x, "pencil")
    soft = nn.functional.interpolate(nn.functional.interpolate(true, size=(96, 96), mode="area"), size=(288, 288))
    return {"source": x, "true": true, "soft": soft, "other": apply_filter(faces(9, seed=1, size=288), "pencil")}


def test_native_numbers_tell_a_soft_copy_that_the_whole_picture_takes_for_the_truth(scripts, large):
    b, sets = scripts.benchmark, {name: described(scripts, x) for name, x in large.items()}
    rows = {name: b.measure(sets[name], sets["other"], sets["source"], sets["true"], None) for name in ("true", "soft")}
    for name in b.NATIVE:
        assert rows["soft"][name] != rows["true"][name]
    assert rows["soft"]["native_plain_x1e3"] > rows["true"]["native_plain_x1e3"] + 50
    # pencil leaves no crop blank: each has a correlation
    assert rows["true"]["native_correlation_with_truth"] == pytest.approx({"edge": 1, "luminance": 1}, abs=1e-9)
    assert rows["soft"]["native_correlation_with_truth"]["edge"] < 0.9
    report = b.judge(sets["source"], sets["soft"], sets["other"], sets["true"], None)
    found = report["native_plain_x1e3"]
    assert found["ratio"] == pytest.approx(found["adapted"] / found["source"])
    assert report["native_correlation_with_source"] == rows["soft"]["native_correlation_with_source"]


def test_a_ratio_to_nothing_is_null(scripts, large, monkeypatch):
    b, sets = scripts.benchmark, {name: described(scripts, x, 0) for name, x in large.items()}
    monkeypatch.setattr(b, "diversity", lambda images, centres: {"spatial_distance": 0.0})
    monkeypatch.setattr(b, "kernel_distance", lambda images, truth: 0.0)
    report = b.judge(sets["source"], sets["soft"], sets["other"], sets["true"], None)
    assert report["spatial_distance"] == {"adapted": 0.0, "source": 0.0, "true": 0.0, "ratio": None}
    assert report["kid_x1e3"]["ratio"] is None and report["frechet"]["ratio"] > 0


def test_native_crops_do_not_depend_on_the_chunks_and_are_cut_at_the_same_places(scripts, large):
    b, x = scripts.benchmark, large["source"]
    whole, parts = b.describe([x], Eyes(), Eyes(), 6), described(scripts, x)
    assert whole.native_pooled.shape[:2] == (8, 2) and whole.native_pictures.shape == (6, 2, 3, 256, 256)
    assert torch.equal(whole.native_pictures, parts.native_pictures)
    torch.testing.assert_close(whole.native_pooled, parts.native_pooled, rtol=1e-5, atol=1e-6)  # as above
    alone = b.Describer(Eyes(), Eyes(), 6, correlated=False)
    alone.add(x)
    assert torch.equal(alone.done().native_pooled, whole.native_pooled)
    assert alone.done().pictures.numel() == alone.done().native_pictures.numel() == 0
    top, left = b.crop_places(8, 288)[5, 1].tolist()
    assert torch.equal(whole.native_pictures[5, 1], b.to_bytes(x[5, :, top : top + 256, left : left + 256]))


def test_rows_grow_to_what_was_added(scripts):
    rows, parts = scripts.benchmark.Rows(), torch.arange(300.0).view(150, 2).split([60, 1, 40, 49])
    assert rows.tensor().numel() == 0
    for part in parts:
        rows.add(part)
    assert torch.equal(rows.tensor(), torch.cat(parts))


def test_without_crops_or_up_to_their_size_there_are_no_native_numbers_and_it_says_why(scripts, large):
    b, small = scripts.benchmark, described(scripts, faces(4))
    for none in (small, described(scripts, large["source"], crops=0)):
        assert none.native_pooled.numel() == none.native_pictures.numel() == 0
        assert not any("native" in key for key in b.measure(none, none, none, none, None))
    assert b.native_protocol(1024, 3) == {"crops": 3, "size": 256, "seed": 0}
    assert b.native_protocol(256, 2) == "none: pictures of 256 px are no larger than a crop of 256 px"
    assert b.native_protocol(1024, 0) == "none: --crops 0"
    assert [b.chunk_size(side) for side in (64, 256, 512, 4096)] == [64, 64, 4, 1]


def test_the_crop_sheet_shows_two_places_of_four_pictures_at_full_size(scripts):
    rows = [torch.randint(256, (8, 3, 1024, 1024), dtype=torch.uint8) for _ in range(2)]
    sheet = torch.from_numpy(np.array(scripts.benchmark.crop_sheet(rows))).permute(2, 0, 1)
    assert sheet.shape == (3, 2 * 256, 8 * 256)
    assert torch.equal(sheet[:, 256:, 3 * 256 : 4 * 256], rows[1][1, :, 348 : 348 + 256, 276 : 276 + 256])  # eyes


# ------------------------------------------------------------------------------------------------------------ the bench

FAKE = """
    import os, shutil, sys, time
    from pathlib import Path
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    folder = Path(options["--output_dir"])
    with open(folder / "calls.txt", "a") as file:
        file.write(" ".join(sys.argv[1:]) + "\\n")
    if options["--report_to"] == "fail":
        print("first line\\radapting: 3/9")
        sys.exit("error: the loss became nan at step 3")
    print("peak GPU memory: 1 MiB\\npeak GPU memory: 4711 MiB")
    memory = b"x" * (64 << 20)
    now = time.time()
    for step, ago in ((1, 1.0), (3, 0.0)):
        checkpoint = folder / f"checkpoint-{step:06d}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "state.pt").write_text("")
        os.utime(checkpoint / "state.pt", (now + 2 - ago, now + 2 - ago))
    if options["--report_to"] != "empty":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(Path(os.environ["FAKE_ADAPTER"]) / name, folder)
"""


@pytest.fixture
def bench(scripts, base_folder, tmp_path, monkeypatch, perturbed):
    """`bench(*options)` runs the bench on two looks with one training that works and two that do not."""
    from fewshot_gan import FewShotGAN

    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE), encoding="utf-8")
    adapter = perturbed(LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator), std=0.02)
    adapter.save_pretrained(tmp_path / "adapter")
    monkeypatch.setenv("FAKE_ADAPTER", str(tmp_path / "adapter"))
    module = scripts.bench
    methods = {
        "good-left": module.Method("d3t", str(script), "left", ("--projections", "{shared}/x"), 9),
        "bad-left": module.Method("lfs_gan", str(script), "left", ("--report_to", "fail"), 9),
        "empty-left": module.Method("lfs_gan", str(script), "left", ("--report_to", "empty"), 9),
    }
    monkeypatch.setattr(module, "METHODS", methods)
    monkeypatch.setattr(module, "LOOKS", ("filter:sepia", "filter:ink"))
    monkeypatch.setitem(module.PROFILES, "cpu", module.Profile(tuple(methods), 3, 6, (0,)))
    command = ["--profile=cpu", f"--output_dir={tmp_path / 'out'}", f"--base={base_folder}", "--num_true=8"]

    def run(*options):
        torch_threads = torch.get_num_threads()
        try:
            return scripts.benchmark.main([*command, "--num_threads=1", *options])
        finally:
            torch.set_num_threads(torch_threads)

    run.output = tmp_path / "out"
    return run


def calls(bench, cell):
    path = bench.output / "cells" / cell / "calls.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def report(bench, cell="good-left/filter-sepia/0"):
    return json.loads((bench.output / "cells" / cell / "cell.json").read_text(encoding="utf-8"))


def test_a_cell_is_trained_judged_and_never_done_again(bench, capsys):
    bench("--only", "good-left/filter-sepia/*")
    done = report(bench)
    numbers, cost = done["numbers"], done["cost"]
    rows = json.loads((bench.output / "looks" / "filter-sepia" / "look.json").read_text(encoding="utf-8"))["rows"]
    assert numbers["kid_x1e3_ratio"] == pytest.approx(numbers["kid_x1e3"] / rows["source"]["kid_x1e3"])
    ratio = numbers["balanced_intra_cluster_distance"] / rows["true"]["balanced_intra_cluster_distance"]
    assert numbers["balanced_intra_cluster_distance_ratio"] == pytest.approx(ratio)
    assert rows["true"]["correlation_with_truth"] == pytest.approx({"edge": 1, "luminance": 1}, abs=1e-9)
    assert 0 < numbers["distance_to_truth"] and numbers["correlation_with_source"]["edge"] < 1
    assert cost["seconds_per_step"] == pytest.approx(0.5, abs=1e-3)  # 1 s between steps 1 and 3, to file-time precision
    assert cost["peak_gpu_mib"] == 4711
    assert 64 < cost["peak_mib"] < 200  # 64 MiB of its own; this process, with torch, holds far more
    stored = bench.output / "cells" / "good-left" / "filter-sepia" / "0" / "adapter_model.safetensors"
    assert cost["adapter_bytes"] == stored.stat().st_size and cost["parameters"] > 0
    assert not list(stored.parent.glob("checkpoint-*"))
    protocol = {**done["training"], **done["judging"]}
    assert protocol["num"] == 6 and protocol["num_true"] == 8 and protocol["max_train_steps"] == 3
    assert len(protocol["data_sha256"]) == 64 and len(protocol["base_fingerprint"]) == 16
    assert done["command"][0] == "python" and done["command"][-1].endswith("shared/filter-sepia/0/x")
    assert len(calls(bench, "good-left/filter-sepia/0")) == 1

    before = stored.stat().st_mtime_ns, (stored.parent / "cell.json").stat().st_mtime_ns
    bench("--only", "good-left/filter-sepia/*")
    assert before == (stored.stat().st_mtime_ns, (stored.parent / "cell.json").stat().st_mtime_ns)
    assert len(calls(bench, "good-left/filter-sepia/0")) == 1
    capsys.readouterr()
    bench("--list", "--only", "good-*")
    assert capsys.readouterr().out == "done    good-left/filter-sepia/0\nopen    good-left/filter-ink/0\n"
    bench("--list", "--only", "good-left/filter-sepia/*", "--seeds", "3", "0", "3")
    assert capsys.readouterr().out == "open    good-left/filter-sepia/3\ndone    good-left/filter-sepia/0\n"


def test_other_settings_are_refused_and_done_anew_only_on_request(bench):
    only = ("--only", "good-left/filter-sepia/0")
    bench(*only)
    with pytest.raises(SystemExit, match=r"trained with other settings \(max_train_steps was 3, now 4\).*--overwrite"):
        bench(*only, "--max_train_steps=4")
    with pytest.raises(SystemExit, match=r"judged with other settings \(num was 6, now 5\)"):
        bench(*only, "--num=5")
    assert report(bench)["judging"]["num"] == 6  # refused: nothing was touched
    bench(*only, "--num=5", "--overwrite")
    assert report(bench)["judging"]["num"] == 5 and len(calls(bench, "good-left/filter-sepia/0")) == 1  # only judged
    with pytest.raises(SystemExit, match="trained with other settings"):  # may not train, so it may not clear
        bench(*only, "--num=5", "--max_train_steps=4", "--overwrite", "--judge_only")
    bench(*only, "--num=5", "--max_train_steps=4", "--overwrite")
    assert "--max_train_steps 4" in calls(bench, "good-left/filter-sepia/0")[0]  # a fresh folder, trained again
    assert report(bench)["training"]["max_train_steps"] == 4


def test_a_cell_of_other_defaults_is_no_longer_done(bench, monkeypatch):
    """A weight or a rate that nobody typed counts as much as one that somebody did."""
    from dataclasses import replace

    from fewshot_gan.catalogue import METHODS
    from fewshot_gan.methods import projections
    from fewshot_gan.methods.d3t import D3TConfig

    only, few_images = ("--only", "good-left/filter-sepia/0"), D3TConfig.few_images()
    bench(*only)
    training = report(bench)["training"]
    assert (training["relation_weight"], training["learning_rate"], training["preset"]) == (3000.0, 5e-3, "few_images")
    assert training["space"] == "w" and "output_dir" not in training
    with monkeypatch.context() as patch:
        patch.setattr(D3TConfig, "few_images", classmethod(lambda cls: replace(few_images, relation_weight=7.0)))
        with pytest.raises(SystemExit, match=r"other settings \(relation_weight was 3000.0, now 7.0\)"):
            bench(*only)
    with monkeypatch.context() as patch:
        patch.setitem(METHODS.load("d3t").settings, "learning_rate", 1.0)
        with pytest.raises(SystemExit, match=r"other settings \(learning_rate was 0.005, now 1.0\)"):
            bench(*only)
    with monkeypatch.context() as patch:
        patch.setitem(projections.DEFAULTS, "space", "w+")
        with pytest.raises(SystemExit, match=r"other settings \(space was w, now w\+\)"):
            bench(*only)
    bench(*only)
    assert len(calls(bench, "good-left/filter-sepia/0")) == 1


def test_failures_are_recorded_passed_over_and_tried_again(bench):
    with pytest.raises(SystemExit, match="2 of 3 cells failed: bad-left/filter-sepia/0, empty-left/filter-sepia/0"):
        bench("--only", "*/filter-sepia/0")
    failed = json.loads(
        (bench.output / "cells" / "bad-left/filter-sepia/0" / "failed.json").read_text(encoding="utf-8")
    )
    assert failed["exit_code"] == 1 and failed["last_line"] == "error: the loss became nan at step 3"
    empty = json.loads(
        (bench.output / "cells" / "empty-left/filter-sepia/0" / "failed.json").read_text(encoding="utf-8")
    )
    assert empty["exit_code"] == 0 and "no adapter_model.safetensors" in empty["last_line"]
    assert report(bench)["cell"] == "good-left/filter-sepia/0"  # the others went on
    with pytest.raises(SystemExit, match="1 of 1"):
        bench("--only", "bad-left/filter-sepia/0")
    assert len(calls(bench, "bad-left/filter-sepia/0")) == 2
    table = (bench.output / "table.md").read_text(encoding="utf-8")
    assert "- bad-left/filter-sepia/0, training: error: the loss became nan at step 3" in table
    assert "- empty-left/filter-sepia/0, training: ended well, but wrote no" in table


def test_a_damaged_adapter_fails_in_judging_and_is_judged_again_without_training(bench, scripts, monkeypatch):
    only = ("--only", "good-left/filter-sepia/0")
    weights = bench.output / "cells" / "good-left/filter-sepia/0" / "adapter_model.safetensors"
    train = scripts.bench.Bench.train

    def damage(self, cell):
        train(self, cell)
        weights.write_bytes(b"x" * 9)

    monkeypatch.setattr(scripts.bench.Bench, "train", damage)
    with pytest.raises(SystemExit, match="1 of 1 cells failed"):
        bench(*only)
    failed = json.loads((weights.parent / "failed.json").read_text(encoding="utf-8"))
    assert failed["stage"] == "judging" and failed["exit_code"] is None
    weights.write_bytes((Path(os.environ["FAKE_ADAPTER"]) / weights.name).read_bytes())
    bench(*only, "--judge_only")
    assert report(bench)["numbers"] and not (weights.parent / "failed.json").exists()
    assert len(calls(bench, "good-left/filter-sepia/0")) == 1


def test_judge_only_trains_nothing(bench):
    bench("--only", "good-left/filter-sepia/0", "--judge_only")
    assert not (bench.output / "cells").exists()


def test_every_way_to_train_is_a_run(scripts, tmp_path):
    looks = scripts.bench_looks.Looks(tmp_path, "ffhq-256", 5, 5)
    bench = scripts.bench.Bench(tmp_path, scripts.bench.PROFILES["claims"], looks, 1)
    for name, method in bench.methods.items():
        cell = scripts.bench.Cell(name, "filter:sepia", 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(looks), "data", lambda self, look: tmp_path)
            assert scripts.bench.parse(method.method, bench.options(cell)).adapter == method.adapter


def test_wrong_calls_end_in_one_sentence(bench, scripts, capsys):
    for options, message in (
        (["--only", "d3t/*"], "fits no cell; a cell is called good-left/filter-sepia/0"),
        (["--num", "2"], "--num 2 is below 3"),
    ):
        with pytest.raises(SystemExit):
            bench(*options)
        assert message in capsys.readouterr().err
    left = bench.output / "cells" / "good-left" / "filter-sepia" / "0"  # where a killed bench may have left a training
    for held in (bench.output, left):
        with held_elsewhere(held), pytest.raises(SystemExit, match=f"another run is at work in {held};"):
            bench("--only", "good-left/filter-sepia/0")
    data = bench.output / "data" / "filter-sepia"
    data.mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps({"style": "filter:sepia", "num": 9, "seed": 7}), encoding="utf-8")
    with pytest.raises(SystemExit, match="images of other settings"):
        bench("--only", "good-left/filter-sepia/0")


def test_pictures_of_a_seed_do_not_depend_on_the_chunks(bench, scripts, base_folder, monkeypatch):
    looks = scripts.bench_looks.Looks(bench.output, str(base_folder), 5, 5)
    whole = torch.cat(list(looks.render(3, 5)))
    monkeypatch.setattr(scripts.benchmark, "CHUNK", 2)
    assert [len(chunk) for chunk in looks.render(3, 5)] == [2, 2, 1]
    # another batch size may pick another convolution kernel: float32 rounding
    torch.testing.assert_close(torch.cat(list(looks.render(3, 5))), whole, rtol=0, atol=1e-5)


def test_the_bench_keeps_and_reads_native_numbers_of_a_large_base(scripts, tmp_path, base_folder, monkeypatch):
    make = scripts.bench_looks.Looks
    small = make(tmp_path, str(base_folder), 4, 6)
    assert small.native == {} and "native" not in small.protocol("filter:sepia")
    small.references("filter:sepia")
    for module in (scripts.benchmark, scripts.bench_looks):
        monkeypatch.setattr(module, "CROP_SIZE", 16)
    looks = make(tmp_path, str(base_folder), 4, 6)
    assert looks.protocol("filter:sepia")["native"] == {"crops": 2, "size": 16, "seed": 0}
    made, read = looks.references("filter:sepia"), make(tmp_path, str(base_folder), 4, 6).references("filter:sepia")
    assert len(list((tmp_path / "truth").iterdir())) == 6  # three of each protocol
    assert made.source.native_pictures.shape == (4, 2, 3, 16, 16) and made.truth.native_pooled.shape[:2] == (6, 2)
    assert torch.equal(made.source.native_plain, read.source.native_plain)
    row = looks.rows("filter:sepia", read)["source"]
    assert set(scripts.benchmark.NATIVE) <= row.keys() and "native_correlation_with_truth" in row


def test_drawings_have_no_pairs_but_a_truth(scripts, tmp_path, base_folder):
    pytest.importorskip("dicebear")
    pytest.importorskip("resvg_py")
    looks = scripts.bench_looks.Looks(tmp_path, str(base_folder), 4, 6)
    references = looks.references("dicebear:lorelei")
    assert not references.paired and len(references.truth.pooled) == 6 and len(references.twins.pooled) == 4
    rows = looks.rows("dicebear:lorelei", references)
    assert "correlation_with_truth" not in rows["true"] and rows["true"]["spatial_distance"] > 0
    assert "dicebear-styles" in looks.protocol("dicebear:lorelei")
    files = sorted((tmp_path / "truth").iterdir())
    stamps = [path.stat().st_mtime_ns for path in files]
    again = scripts.bench_looks.Looks(tmp_path, str(base_folder), 4, 6).references("dicebear:lorelei")
    assert all(torch.equal(a, b) for a, b in zip(again.truth, references.truth, strict=True))
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "truth").iterdir())] == stamps and len(files) == 3


def test_digest_and_difference(scripts):
    digest, difference = scripts.bench_looks.digest, scripts.bench_looks.difference
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert difference({"a": 1}, {"a": 1}) is None
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "b was None, now 2"


def test_measured_tells_exit_code_time_and_memory_of_that_process(scripts, tmp_path):
    ballast = bytearray(os.urandom(1 << 20) * 300)  # this process holds 300 MiB more than what it starts
    code = "import time; x = bytearray(40 << 20); time.sleep(0.2); raise SystemExit(7)"
    command = [sys.executable, str(SCRIPTS / "measured.py"), str(tmp_path / "u.json"), sys.executable, "-c", code]
    import subprocess

    began = time.time()
    assert subprocess.run(command).returncode == 7
    usage = json.loads((tmp_path / "u.json").read_text(encoding="utf-8"))
    assert usage["exit_code"] == 7 and 0.2 <= usage["seconds"] < time.time() - began
    assert 40 < usage["peak_mib"] < 150 < len(ballast) >> 20


def test_seconds_per_step_ignores_checkpoints_of_an_earlier_run(scripts, tmp_path):
    for step, stamp in ((50, 100.0), (75, 1000.0), (100, 1050.0)):
        (tmp_path / f"checkpoint-{step:06d}").mkdir()
        (tmp_path / f"checkpoint-{step:06d}" / "s").write_text("", encoding="utf-8")
        os.utime(tmp_path / f"checkpoint-{step:06d}" / "s", (stamp, stamp))
    assert scripts.bench.seconds_per_step(tmp_path, 900.0) == 2.0
    assert scripts.bench.seconds_per_step(tmp_path, 1020.0) is None  # resumed after step 75


# -------------------------------------------------------------------------------------------------- table and sheets


def finished(output, method, look, kid, balanced, seed=0, judging=None):
    """A finished cell of made-up numbers."""
    numbers = {"kid_x1e3": kid, "kid_x1e3_ratio": kid / 100, "balanced_intra_cluster_distance": balanced}
    numbers["balanced_intra_cluster_distance_ratio"] = balanced / 0.8  # the true look's
    folder = output / "cells" / method / look.replace(":", "-") / str(seed)
    folder.mkdir(parents=True)
    cost = {"parameters": 1234567, "adapter_bytes": 211100, "seconds_per_step": 2.512, "peak_mib": 1843.2}
    cell = {"cell": f"{method}/{look.replace(':', '-')}/{seed}", "numbers": numbers, "cost": cost}
    cell |= {"training": {"max_train_steps": 100}, "judging": judging or {**JUDGING, "look": look}}
    (folder / "cell.json").write_text(json.dumps(cell), encoding="utf-8")
    shade = min(255, int(kid))
    Image.new("RGB", (8 * 32, 32), (shade, 0, 0)).save(folder / "strip.png")


JUDGING = {"num": 500, "num_true": 1000, "seed": 1, "true_seed": 2, "spatial_images": 500, "truncation_psi": 0.7}
JUDGING |= {"side": 256, "base": "ffhq-256", "base_fingerprint": "f" * 16, "features_sha256": "a" * 64}


@pytest.fixture
def synthetic(tmp_path):
    for look in ("filter:ink", "dicebear:lorelei"):
        folder = tmp_path / "looks" / look.replace(":", "-")
        folder.mkdir(parents=True)
        rows = {"source": {"kid_x1e3": 100.0}, "true": {"kid_x1e3": -0.4}}
        content = {"look": look, "judging": {**JUDGING, "look": look}, "rows": rows}
        (folder / "look.json").write_text(json.dumps(content), encoding="utf-8")
        Image.new("RGB", (8 * 32, 32), (0, 0, 255)).save(folder / "source.png")
        Image.new("RGB", (8 * 32, 32), (0, 255, 0)).save(folder / "true.png")
    finished(tmp_path, "transfergan-full", "filter:ink", 50.0, 1.0)
    finished(tmp_path, "transfergan-full", "dicebear:lorelei", 60.0, 1.0)
    finished(tmp_path, "freezed-full", "filter:ink", 10.0, 0.5)
    finished(tmp_path, "d3t-left", "filter:ink", 30.0, 1.2)
    finished(tmp_path, "d3t-left", "filter:ink", 40.0, 1.4, seed=1)
    finished(tmp_path, "d3t-left", "dicebear:lorelei", 55.0, 0.9)
    return tmp_path


def row_of(text, start):
    return next(
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {start}")
    )


def test_the_table_counts_wins_on_quality_and_on_diversity(scripts, synthetic):
    finished(synthetic, "cdc-full", "filter:ink", 1.0, 9.0, judging={**JUDGING, "look": "filter:ink", "num": 20})
    scripts.bench_report.write(synthetic, ["transfergan-full", "freezed-full", "d3t-left"])
    text = (synthetic / "table.md").read_text(encoding="utf-8")
    # method, looks, KID ratio (seeds averaged first: (.35 + .55) / 2), then KID, diversity, both, and a
    # lower KID with a diversity nearer to the truth (.8; on ink 1.3 is farther than 1, on lorelei .9 is nearer)
    wins = ["2/2", "1/2", "1/2", "1/2", "0/1", "1/1", "0/1", "0/1"]
    assert row_of(text, "d3t-left |") == ["d3t-left", "2", "0.450", *wins]
    assert row_of(text, "transfergan-full |")[3:] == ["–"] * 4 + ["0/1", "1/1", "0/1", "0/1"]
    assert row_of(text, "freezed-full |") == ["freezed-full", "1", "0.100", "1/1", *["0/1"] * 3, *["–"] * 4]
    ink = text[text.index("## filter:ink") :]
    names = [line.split("|")[1].strip() for line in ink.splitlines() if line.startswith("| ")][2:]
    expected = ["transfergan-full, seed 0, 100 steps", "freezed-full, seed 0, 100 steps"]
    expected += [f"d3t-left, seed {seed}, 100 steps" for seed in (0, 1)]
    assert names == ["source", "true", *expected]
    cells = row_of(ink, "d3t-left, seed 1")
    assert cells[1:3] == ["40", "0.400"] and cells[-5:] == ["1,234,567", "211", "2.51", "1,843", ""]
    assert "Left out, as they were judged with other settings: cdc-full/filter-ink/0." in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (12, 28) for line in tables)  # every row as wide as its heading


def test_the_sheet_has_a_labelled_row_per_method(scripts, synthetic):
    report, methods = scripts.bench_report, ["transfergan-full", "freezed-full", "d3t-left"]
    report.write(synthetic, methods)
    side, margin = report.THUMBNAIL, report.MARGIN
    with Image.open(synthetic / "sheets" / "filter-ink.jpg") as page:
        assert page.size == (margin + 8 * side, 5 * side)
        colours = [page.getpixel((margin + side // 2, int((row + 0.5) * side))) for row in range(5)]
        labels = [page.crop((0, row * side, margin, (row + 1) * side)).convert("L").getextrema() for row in range(5)]
    expected = [(0, 0, 255), (50, 0, 0), (10, 0, 0), (30, 0, 0), (0, 255, 0)]  # of d3t-left the first seed
    for colour, wanted in zip(colours, expected, strict=True):
        assert max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= 6  # JPEG at quality 90
    assert all(dark < 100 and light > 250 for dark, light in labels)
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(size=report.FONT)
    assert all(
        draw.textlength(label, font=font) <= margin - 12
        for label in (*scripts.bench.METHODS, *scripts.bench.CLAIMS, "true (other drawings)")
    )
    with Image.open(synthetic / "sheets" / "dicebear-lorelei.jpg") as page:
        assert page.height == 4 * side


def test_an_empty_bench_has_a_table_too(scripts, tmp_path):
    scripts.bench_report.write(tmp_path, [])
    assert "No cell is finished yet." in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert scripts.bench_report.short(0.0123) == "0.012" and scripts.bench_report.short(12345.6) == "12,346"


def test_the_plan_of_each_profile(scripts, tmp_path):
    bench = scripts.bench
    for name, cells in (("cpu", 60), ("gpu", 180)):
        plan = bench.Bench(tmp_path, bench.PROFILES[name], None, 1)
        assert len({cell.name for cell in plan.cells()}) == cells
        assert [c.name for c in plan.cells(["d3t-left/filter-pencil/0"])] == ["d3t-left/filter-pencil/0"]
    assert bench.NUM_TRUE >= 1000 and set(scripts.bench_report.BASELINES) <= set(bench.METHODS)


# ------------------------------------------------------------------------------------------------------ unseen domains


def test_unseen_domains(scripts, base_folder, tmp_path, monkeypatch, capsys):
    """Every look gets a predicted and a trained vector, judged alike; the same command again trains nothing."""
    eyes = Eyes()
    for place in ("methods.method", "training.hypernetwork", "features.encoders"):
        monkeypatch.setattr(f"fewshot_gan.{place}.load_features", lambda *args, **kwargs: eyes)
    monkeypatch.setattr("fewshot_gan.features.encoders._load", lambda *args: FeatureEncoder(eyes))
    command = [f"--base={base_folder}", f"--output_dir={tmp_path}", "--max_train_steps=1", "--vector_steps=1"]
    command += ["--num=8", "--num_true=16", "--width=8", "--show_seen=1"]
    command += ["--seen", "filter:sepia", "filter:ink", "--held_out", "filter:pencil"]
    scripts.unseen_domains.main(command)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.startswith("Hypernetwork of ") and "numbers; embedding to adapter: " in table
    assert table in capsys.readouterr().out
    for line in ("filter:pencil | held out | predicted", "filter:pencil | held out | trained", "filter:sepia | seen"):
        assert f"| {line}" in table
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["filter-ink", "filter-sepia"]
    cell = json.loads((tmp_path / "cells" / "predicted-filter-pencil.json").read_text(encoding="utf-8"))
    assert cell["protocol"]["num"] == 8 and cell["numbers"]["kid_x1e3_ratio"] is not None
    assert Image.open(tmp_path / "sheet.png").size == (8 * 128, 4 * 128)
    before = {p: p.read_bytes() for p in tmp_path.glob("*/filter-*/adapter_model.safetensors")}
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cells/*")}
    assert len(before) == 4 and len(stamps) == 8
    (tmp_path / "predicted" / "filter-pencil" / "adapter_model.safetensors").unlink()  # killed while it was written
    scripts.unseen_domains.main(command)
    assert (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()[1:] == table.splitlines()[
        1:
    ]  # the first has a time
    assert before == {p: p.read_bytes() for p in before} and stamps == {p: p.stat().st_mtime_ns for p in stamps}
    network = tmp_path / "hypernetwork"
    shutil.rmtree(network)  # another one: what it predicts is judged anew
    scripts.unseen_domains.main([*command, "--learning_rate=0.1"])
    changed = {p.stem for p in stamps if p.stat().st_mtime_ns != stamps[p]}
    assert changed == {"predicted-filter-pencil", "predicted-filter-sepia"}
    judging = [f"--base={base_folder}", f"--output_dir={tmp_path / 'judged'}", "--num=8", "--num_true=16"]
    judging += [f"--network={network}", "--vector_steps=0", "--held_out", "filter:sepia", "filter:solarise-1000000"]
    scripts.unseen_domains.main(judging)
    table = (tmp_path / "judged" / "table.md").read_text(encoding="utf-8")
    assert "| filter:sepia | seen | predicted" in table and "| trained" not in table
    assert "| filter:solarise-1000000 | family held out | predicted" in table
    assert not (tmp_path / "judged" / "hypernetwork").exists()
    with pytest.raises(SystemExit):
        scripts.unseen_domains.main([*command, "filter:ink"])
    # a look that trained the hypernetwork cannot become one that it has never seen
    command.append("--learning_rate=0.1")
    others = ["--seen", "filter:sepia", "filter:poster", "--held_out", "filter:ink"]
    with pytest.raises(SystemExit, match="hypernetwork holds a run with other settings .*domains was "):
        scripts.unseen_domains.main([*command, *others])
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["filter-poster", "filter-sepia"]


# ----------------------------------------------------------------------------------------------------------- the curves


def test_curves_judge_each_checkpoint_once(scripts, base_folder, tmp_path, monkeypatch, capsys):
    from fewshot_gan import FewShotGAN

    generator = FewShotGAN.from_pretrained(base_folder).generator
    for run, steps in (("a", (2, 4)), ("b", (2, 4, 5))):
        for step in steps:
            adapter = LeFTAdapter.for_model(generator, rank=1)
            with torch.no_grad():
                for parameter in adapter.parameters():
                    parameter.add_(0.1 * step * torch.randn(parameter.shape))
            adapter.save_pretrained(folder := tmp_path / run / f"checkpoint-{step:06d}")
            (folder / "training_config.json").write_text("{}", encoding="utf-8")
    args = ["--style=filter:pencil", f"--base={base_folder}", "--num=6", "--num_true=6", "--num_threads=1"]
    args += [f"--output_dir={tmp_path / 'out'}", "--every=2"]
    judged, judge = [], scripts.bench_looks.Looks.judge
    monkeypatch.setattr(scripts.curves.Looks, "judge", lambda *a: judged.append(a[2].parent.name) or judge(*a))
    points = scripts.curves.main([*args, f"one={tmp_path / 'a'}"])
    assert judged == ["a", "a"] and points.keys() == {"one"} and points["one"].keys() == {"2", "4"}
    points = scripts.curves.main([*args, f"one={tmp_path / 'a'}", f"one, more:dashed={tmp_path / 'b'}"])
    assert judged == ["a", "a", "b", "b"] and points["one, more:dashed"].keys() == {"2", "4"}
    assert points["one"]["4"]["kid_x1e3"] != points["one"]["2"]["kid_x1e3"]
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| source |" in table and "| true |" in table and table.count("| one, more |") == 2
    with Image.open(tmp_path / "out" / "curves.png") as chart:
        assert chart.size == (1210, 440) and chart.convert("L").getextrema() == (0, 255)
    again = tmp_path / "a" / "checkpoint-000004" / "adapter_model.safetensors"
    again.write_bytes((tmp_path / "b" / "checkpoint-000004" / "adapter_model.safetensors").read_bytes())
    points = scripts.curves.main([*args, f"one={tmp_path / 'a'}"])
    assert judged == ["a", "a", "b", "b", "a"]  # another adapter is judged anew
    capsys.readouterr()
    for wrong, message in (
        (["--num=7", f"one={tmp_path / 'a'}"], "was judged otherwise (num was 6, now 7)"),
        ([f"one={tmp_path / 'a'}"] * 2, "give each run a name of its own"),
        ([f"one:wavy={tmp_path / 'a'}"], "perhaps with one of :solid, :dashed, :dotted"),
        ([f"one={tmp_path / 'a'}", "--every=0"], "--every 0: give 1 or more"),
        (["one=nowhere"], "'one=nowhere' is not NAME=FOLDER of a run with checkpoints"),
        (["one"], "'one' is not NAME=FOLDER"),
        ([f"one={tmp_path / 'a'}", "--every=3"], "no checkpoint at a multiple of --every 3"),
    ):
        with pytest.raises(SystemExit):
            scripts.curves.main([*args, *wrong])
        assert message in capsys.readouterr().err


def test_stored_reports_are_computed_again(scripts, tmp_path, base_folder, perturbed, capsys):
    """Equal, or a sentence for each number that is not."""
    adapter = perturbed(LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator), std=0.02)
    adapter.save_pretrained(tmp_path / "adapter")
    options = ["--base", str(base_folder), "--adapter", str(tmp_path / "adapter"), "--style", "filter:sepia", "--num=6"]
    report = tmp_path / "report.json"
    scripts.benchmark.main([*options, "--true-seed=7", "--spatial-images=4", f"--out={report}"])
    stored = json.loads(report.read_text(encoding="utf-8"))
    check = scripts.check_results
    assert "--true-seed 7" in " ".join(check.command(stored)) and "--crops" not in check.command(stored)
    without = {**stored, "protocol": {**stored["protocol"], "native": scripts.benchmark.native_protocol(1024, 0)}}
    without["protocol"]["true_seed"] = None  # as where the truth is a folder
    assert check.command(without)[-2:] == ["--crops", "0"] and "--true-seed" not in check.command(without)
    check.main([str(report)])
    assert "report.json: equal" in capsys.readouterr().out
    stored["kid_x1e3"]["ratio"] *= 1.05
    report.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(SystemExit, match="1"):
        check.main([str(report)])
    assert "report.json: differs: kid_x1e3.ratio was" in capsys.readouterr().out
    check.main([str(report), "--tolerance=0.2"])
    del stored["protocol"]
    with pytest.raises(ValueError, match="this is no report of benchmark.py: it has no 'protocol'"):
        check.command(stored)


def test_the_stored_reports_are_those_of_included_looks(scripts):
    paths = sorted(scripts.check_results.RESULTS.glob("*.json"))
    assert len(paths) >= 4
    for path in paths:
        report = json.loads(path.read_text(encoding="utf-8"))
        words = scripts.check_results.command(report)
        assert report["adapter"] in embedded_adapters(report["base"]) and words[words.index("--num") + 1].isdigit()


def test_landmarks_move_with_the_face(scripts):
    """dlib finds the face again where it was moved to; where there is none left, none is found."""
    pytest.importorskip("dlib")
    pipe = FewShotGAN.from_pretrained("ffhq-256")
    source = torch.stack([torch.as_tensor(np.asarray(x)).permute(2, 0, 1) for x in pipe(3, seed=0).images])
    moved = source.roll((4, 3), (2, 3))
    found = scripts.benchmark.landmark_distance(source, moved)
    assert found["found"] == 1
    assert found["distance"] == pytest.approx(5 / 62.8, rel=0.25)  # 5 px; the mean eyes are 62.8 px apart
    assert scripts.benchmark.landmark_distance(source, source)["distance"] == 0
    nothing = scripts.benchmark.landmark_distance(source, torch.full_like(source, 127))
    assert nothing == {"found": 0, "distance": None}
