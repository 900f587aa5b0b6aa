"""The field's protocol from one command, end to end on stand-ins: tiny StyleGAN2, networks with random trunks."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.networks import TinyFeatures, tiny_discriminator, tiny_stylegan2
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import metrics
from fewshot_gan.apps import reproduction
from fewshot_gan.cli import app
from fewshot_gan.features import registry
from fewshot_gan.methods import cdc
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training.config import make_run


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Folders of base, ten pictures and the whole domain; networks that measure have random trunks."""
    networks = {name: TinyFeatures for name in ("inception-v3", "lpips-vgg")}
    monkeypatch.setattr(registry, "NETWORKS", {**registry.NETWORKS, **networks})
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda device="cpu", **options: TinyFeatures())
    registry._load.cache_clear()
    rows = dict(reproduction.PROTOCOLS["cdc10"].rows)  # the discriminator of 32 px has three blocks
    rows["freezed"] = replace(rows["freezed"], options={**rows["freezed"].options, "freeze_d": 2})
    small = replace(reproduction.PROTOCOLS["cdc10"], rows=rows, resolution=32, num_diverse=24)
    monkeypatch.setitem(reproduction.PROTOCOLS, "cdc10", small)
    FewShotGAN(tiny_stylegan2(), tiny_discriminator()).save_pretrained(tmp_path / "base")
    random = torch.Generator().manual_seed(4)
    for name, num in (("ten", 10), ("all", 30)):
        (tmp_path / name).mkdir()
        for i, x in enumerate(torch.randint(0, 256, (num, 32, 32, 3), dtype=torch.uint8, generator=random)):
            Image.fromarray(x.numpy()).save(tmp_path / name / f"{i:02d}.png")
    yield tmp_path
    registry._load.cache_clear()


def command(folder, *options):
    args = ["reproduce", f"--base={folder / 'base'}", f"--target={folder / 'ten'}", f"--truth={folder / 'all'}"]
    args += [f"--out={folder / 'out'}", "--steps=2", "--num-images=24", "--num-threads=1"]
    return CliRunner().invoke(app, [*args, *options])


def test_the_table_of_all_methods(stand_ins, monkeypatch):
    done = command(stand_ins)
    assert done.exit_code == 0, done.output
    report = json.loads((stand_ins / "out" / "reproduction.json").read_text(encoding="utf-8"))
    assert list(report["rows"]) == list(reproduction.PROTOCOLS["cdc10"].rows)
    for row in report["rows"].values():
        assert row["results"]["fid"] > 0 and row["results"]["intra_lpips"] > 0 and row["numbers"] > 0
    assert len({row["adapter_sha256"] for row in report["rows"].values()}) == len(report["rows"])
    text = (stand_ins / "out" / "table.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 9 and all(line.count("|") == 5 for line in lines) and "2 steps" in text
    trained, measured = [], []
    monkeypatch.setattr(reproduction, "measure", lambda *rest: measured.append(rest))
    from fewshot_gan.training.engine import Trainer

    monkeypatch.setattr(Trainer, "train_step", lambda self: trained.append(self))
    again = command(stand_ins)  # everything is there: nothing is trained or measured again
    assert again.exit_code == 0 and not trained and not measured
    other = command(stand_ins, "--seed=1")
    assert other.exit_code == 2 and "has results with another seed; use the same options" in other.output


def test_a_row_without_the_whole_domain(stand_ins):
    out = stand_ins / "few"
    options = {"methods": ["lfs"], "steps": 2, "num_images": 12, "say": lambda line: None}
    report = reproduction.reproduce("cdc10", str(stand_ins / "base"), str(stand_ins / "ten"), out, **options)
    assert set(report["rows"]["lfs"]["results"]) == {"intra_lpips"} and "not measured" in reproduction.table(report)
    assert report["protocol"]["num_diverse"] == 12


def test_a_truth_may_come_later(stand_ins, monkeypatch):
    out, base, ten = stand_ins / "later", str(stand_ins / "base"), str(stand_ins / "ten")
    options = {"methods": ["lfs"], "steps": 2, "num_images": 12, "say": lambda line: None}
    before = reproduction.reproduce("cdc10", base, ten, out, **options)["rows"]["lfs"]["results"]
    from fewshot_gan.training.engine import Trainer

    monkeypatch.setattr(Trainer, "train_step", None)
    after = reproduction.reproduce("cdc10", base, ten, out, truth=str(stand_ins / "all"), **options)
    assert after["rows"]["lfs"]["results"]["fid"] > 0 and "truth" in after["protocol"]["sha256"]
    assert after["rows"]["lfs"]["results"]["intra_lpips"] == pytest.approx(before["intra_lpips"])
    for other in ({"truth": ten}, {}):
        with pytest.raises(ValueError, match="has results with another truth; use the same options"):
            reproduction.reproduce("cdc10", base, ten, out, **other, **options)
    (stand_ins / "ten" / "00.png").write_bytes((stand_ins / "all" / "00.png").read_bytes())
    with pytest.raises(ValueError, match="has results with another target, truth; use"):
        reproduction.reproduce("cdc10", base, ten, out, **options)


def test_what_cannot_be_measured_is_refused_before_the_training(stand_ins, monkeypatch):
    monkeypatch.setattr(reproduction, "run", None)
    (stand_ins / "three").mkdir()
    for i in range(3):
        shutil.copy(stand_ins / "all" / f"{i:02d}.png", stand_ins / "three")
    for options, message in (
        ({"num_images": 0}, "num_images=0: give a whole number, 4 or more"),
        ({"num_images": 3}, "num_images=3: give a whole number, 4 or more"),
        ({"batch_size": 0}, "batch_size=0: give a whole number, 1 or more"),
        ({"truth": str(stand_ins / "three")}, "three has 3 pictures; give 4 or more of the whole domain, or no truth"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduction.reproduce("cdc10", str(stand_ins / "base"), str(stand_ins / "ten"), stand_ins / "o", **options)


def test_intra_lpips_equals_the_metric_on_all_pictures():
    random = torch.Generator().manual_seed(2)
    pictures = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=random)
    references, network = torch.rand(3, 3, 32, 32, generator=random) * 2 - 1, TinyFeatures()
    drawn = metrics.spatial_embedding(pictures / 127.5 - 1, network)
    to_references = metrics.pairwise_distances(drawn, metrics.spatial_embedding(references, network))
    for most in (50, 3):
        whole = metrics.intra_cluster_distance(to_references, metrics.pairwise_distances(drawn), most)
        assert reproduction.intra_lpips(pictures, references, network, most) == pytest.approx(whole, rel=1e-5)


def test_rows_have_the_published_settings():
    for key, row in reproduction.PROTOCOLS["cdc10"].rows.items():
        run = make_run(row.method, data="pencil", output_dir="x", **{"preset": "paper", **row.options})
        assert run.training.max_train_steps == (3000 if key == "lfs" else 5000)
        assert {name: getattr(run.training, name) for name in cdc.RELEASED if name != "augment"} == {
            name: value for name, value in cdc.RELEASED.items() if name != "augment"
        }
        assert run.objective.discriminator == "source" and run.objective.path_length_weight == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol=cdc11"], "unknown protocol 'cdc11'; known: cdc10"),
        (["--method=stylegan-nada"], "cdc10 has no method 'stylegan-nada'; known: transfergan, freezed"),
        (["--target=all"], "has 30 pictures, and cdc10 learns from 10"),
    ],
)
def test_what_does_not_fit(stand_ins, monkeypatch, options, message):
    monkeypatch.chdir(stand_ins)
    done = command(stand_ins, *options)
    assert done.exit_code == 2 and message in done.output
    assert not (stand_ins / "out").exists()


def test_bases_that_do_not_fit(stand_ins):
    base = FewShotGAN.from_pretrained(stand_ins / "base")
    base.register_modules(discriminator=None)
    base.save_pretrained(stand_ins / "bare")
    for name, message in (("bare", "has no discriminator"), ("ffhq", "has no discriminator")):
        where = str(stand_ins / name) if name == "bare" else name
        with pytest.raises(ValueError, match=message):
            reproduction.reproduce("cdc10", where, str(stand_ins / "ten"), stand_ins / "out")
