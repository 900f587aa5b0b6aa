"""Reports: their numbers are those of the metrics, the same again, and not compared across protocols."""

import inspect
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.networks import tiny_mobile
from helpers.saved_models import tiny_clip
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN, hub, metrics
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.apps import evaluation
from fewshot_gan.cli import app
from fewshot_gan.data.datasets import load_images
from fewshot_gan.data.images import to_floats
from fewshot_gan.features import load_features
from fewshot_gan.features.encoders import load_encoder, templated
from fewshot_gan.hub import reports as card_results
from fewshot_gan.models import BigGANGenerator

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("true")
    pixels = torch.randint(256, (12, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{i:02d}.png")
    return folder


def test_numbers_are_those_of_the_metrics(pipe, data):
    report = evaluation.evaluate(pipe, data, num_images=10, seed=3, truncation_psi=0.8, batch_size=4)
    images = pipe(10, seed=3, truncation_psi=0.8, output_type="pt", batch_size=4).images * 2 - 1
    network, true = load_features(), to_floats(load_images(data, pipe.generator.resolution))
    drawn, real = network.pooled(images), network.pooled(true)
    found = report["results"]
    assert found["frechet"] == pytest.approx(metrics.frechet_distance(drawn, real), rel=1e-5)
    assert found["kid"] == pytest.approx(metrics.kernel_distance(drawn, real), rel=1e-5)
    prdc = metrics.precision_recall(real, drawn, 3)
    assert {name: found[name] for name in prdc} == pytest.approx(prdc, abs=1e-9)
    assert found["diversity"] == pytest.approx(metrics.spatial_distance(images, network), rel=1e-5)
    codes, references = (metrics.spatial_embedding(x, network) for x in (images, true))
    clusters = metrics.pairwise_distances(codes, references), metrics.pairwise_distances(codes)
    assert found["intra_cluster"] == pytest.approx(metrics.intra_cluster_distance(*clusters), rel=1e-5)
    assert report["protocol"]["features_sha256"] == network.sha256 and report["versions"]["torch"] == torch.__version__


def test_a_base_with_classes_draws_them_in_turn(data):
    pipe = FewShotGAN(BigGANGenerator((16, 16, 8), 1, chunk_dim=3, shared_dim=4, num_classes=3).eval())
    report = evaluation.evaluate(pipe, data, num_images=7, seed=3, batch_size=2)
    images = pipe(7, seed=3, class_labels=[0, 1, 2, 0, 1, 2, 0], output_type="pt").images * 2 - 1
    network = load_features()
    real = network.pooled(to_floats(load_images(data, pipe.generator.resolution)))
    assert report["results"]["kid"] == pytest.approx(metrics.kernel_distance(network.pooled(images), real), rel=1e-4)


def test_clip_as_judge(pipe, data, tmp_path):
    clip = str(tiny_clip(tmp_path / "clip"))
    report = evaluation.evaluate(pipe, data, num_images=10, seed=3, features=clip, text="pencil drawing", batch_size=4)
    images = pipe(10, seed=3, output_type="pt", batch_size=4).images * 2 - 1
    encoder, true = load_encoder(clip), to_floats(load_images(data, pipe.generator.resolution))
    drawn, real, found = encoder.image(images), encoder.image(true), report["results"]
    assert found["frechet"] == pytest.approx(metrics.frechet_distance(drawn, real), rel=1e-4)
    assert found["kid"] == pytest.approx(metrics.kernel_distance(drawn, real), rel=1e-4)
    words = templated(encoder, ["pencil drawing"])[0]
    assert found["clip_quality"] == pytest.approx(metrics.clip_quality(drawn, words), rel=1e-5)
    assert found["clip_diversity"] == pytest.approx(metrics.clip_diversity(drawn), rel=1e-5)
    assert found["diversity"] == pytest.approx(metrics.spatial_distance(images, load_features()), rel=1e-5)
    assert report["protocol"]["features_sha256"] == encoder.identity
    silent = evaluation.evaluate(pipe, data, num_images=10, seed=3, features=clip, batch_size=4)
    assert "clip_quality" not in silent["results"]
    with pytest.raises(ValueError, match="text 'pencil drawing' and 'not given'"):
        evaluation.compare(report, silent)


def test_what_is_held_does_not_grow_with_the_number_of_pictures(pipe, data, monkeypatch):
    monkeypatch.setattr(evaluation, "KEPT", 6)
    monkeypatch.setattr(evaluation, "DIVERSE", 5)
    held = {}
    for count in (8, 24):
        judge = evaluation._load_judge("efficientnet-lite0", None, None, "cpu")
        protocol = {"num_images": count, "seed": 0, "truncation_psi": 0.7}
        found = evaluation._drawn_statistics(pipe, judge, protocol, 4)
        assert found.moments.count == count
        held[count] = sum(len(rows) for rows in found.rows), sum(len(p) for p in found.pictures)
    assert held == {8: (6, 5), 24: (6, 5)}


def test_true_statistics_are_kept_by_what_they_depend_on(pipe, data, tmp_path, monkeypatch):
    first = evaluation.evaluate(pipe, data, num_images=6, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    seen = []
    pooled = type(load_features()).pooled
    monkeypatch.setattr(type(load_features()), "pooled", lambda self, x: (seen.append(len(x)), pooled(self, x))[1])
    again = evaluation.evaluate(pipe, data, num_images=6, cache_dir=tmp_path)
    assert sum(seen) == 6 and again == first  # the true pictures were not described again
    kept.write_bytes(kept.read_bytes()[:100])
    assert evaluation.evaluate(pipe, data, num_images=6, cache_dir=tmp_path) == first
    assert len(list(tmp_path.iterdir())) == 1 and kept.stat().st_size > 1000


def test_native_numbers_are_those_of_crops_and_part_of_the_protocol(pipe, data, tmp_path, monkeypatch):
    old = evaluation.evaluate(pipe, data, num_images=6, seed=3)
    assert not any("native" in name for name in old["results"]) and "crops" not in old["protocol"]
    monkeypatch.setattr(metrics, "CROP_SIZE", 16)
    report = evaluation.evaluate(pipe, data, num_images=6, seed=3, batch_size=4, cache_dir=tmp_path)
    assert {key: report["protocol"][key] for key in ("crops", "crop_size", "crop_seed")} == {
        "crops": 2,
        "crop_size": 16,
        "crop_seed": 0,
    }
    network, side = load_features(), pipe.generator.resolution
    images = pipe(6, seed=3, output_type="pt", batch_size=4).images * 2 - 1
    features = []
    for pictures in (images, to_floats(load_images(data, side))):
        places = metrics.crop_places(len(pictures), side, 2, 16)
        features.append(network.pooled(metrics.native_crops(pictures, places, 16)))
    expected = metrics.frechet_distance(*features)
    assert report["results"]["native_frechet"] == pytest.approx(expected, rel=1e-5)
    expected = metrics.crop_kernel_distance(*(x.unflatten(0, (-1, 2)) for x in features))
    assert report["results"]["native_kid"] == pytest.approx(expected, rel=1e-5)
    assert evaluation.evaluate(pipe, data, num_images=6, seed=3, batch_size=4, cache_dir=tmp_path) == report
    with pytest.raises(
        ValueError, match="crop_seed 'not given' and 0; crop_size 'not given' and 16; crops 'not given'"
    ):
        evaluation.compare(old, report)
    without = evaluation.evaluate(pipe, data, num_images=6, seed=3, crops=0)
    assert evaluation.differences(old, without) == []  # as reports of older versions were made
    lines = "\n".join(card_results.report_lines({"look": report}))
    assert "| KID of native crops × 1e3 |" in lines and "; native crops: 2 of 16 px from each picture; torch" in lines
    (shown,) = [r for r in card_results.eval_results(report) if r.metric_type == "native_kid"]
    assert shown.metric_name == "KID of native crops, judged by efficientnet-lite0" and shown.metric_args["crops"] == 2


def test_an_old_report_of_large_pictures_is_computed_again_without_crops(base_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "CROP_SIZE", 16)
    report, run = tmp_path / "report.json", CliRunner().invoke
    command = ["evaluate", str(data), "--base", str(base_folder)]
    made = run(app, [*command, "--num-images=6", "--crops=0", f"--out={report}"])
    assert made.exit_code == 0 and "native" not in made.output
    again = run(app, [*command, f"--protocol={report}"])
    assert again.exit_code == 0 and f"equal to {report}" in again.output
    with_crops = run(app, [*command, "--num-images=6", "--crops=1", f"--out={report}"])
    assert with_crops.exit_code == 0 and "native_kid" in with_crops.output
    again = run(app, [*command, f"--protocol={report}"])
    assert again.exit_code == 0 and "native_kid" in again.output


def test_other_protocols_and_networks_are_refused(pipe, data, perturbed):
    report = evaluation.evaluate(pipe, data, num_images=6)
    assert evaluation.differences(report, report) == []
    resized = json.loads(json.dumps(report))
    resized["protocol"]["resize"] = "squeezed, OpenCV bilinear"
    with pytest.raises(ValueError, match="do not compare: resize 'centre crop, Pillow Lanczos' and 'squeezed"):
        evaluation.compare(report, resized)
    with pytest.raises(ValueError, match="num_images 6 and 7"):
        evaluation.compare(report, evaluation.evaluate(pipe, data, num_images=7))
    pipe.bank.add("look", perturbed(LeFTAdapter.for_model(pipe.generator, rank=1), 0))
    pipe.set_adapters("look", 0.5)
    adapted = evaluation.evaluate(pipe, data, num_images=6)
    assert adapted["results"] != report["results"]
    assert set(evaluation.compare(report, adapted)) == set(report["results"])  # this is what it is for
    with pytest.raises(ValueError, match="another network: adapters"):
        evaluation.differences(report, adapted)
    renamed = json.loads(json.dumps(adapted).replace('"look"', '"mine"'))
    assert evaluation.differences(adapted, renamed) == []
    renamed["results"]["kid"] += 0.01
    assert len(evaluation.differences(adapted, renamed)) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_images": 1}, "give 2 or more"),
        ({"neighbour": 6}, "neighbour=6 of"),
        ({"crops": -1}, "crops=-1: give 0 for no native metrics, or 1 or more, typically 2"),
        ({"features": "resnet"}, "'resnet' is not known; choose one of"),
        ({"text": "pencil"}, "text 'pencil' is for CLIP, and 'efficientnet-lite0' is none; let it judge"),
        ({"text": " "}, "text=' ': name the look in words"),
        ({"neighbour": 2.5}, "neighbour=2.5: give a whole number, 1 or more"),
        ({"crops": 1.5}, "crops=1.5: give 0 for no native metrics"),
        ({"truncation_psi": "0.7"}, "truncation_psi='0.7': give a number such as 0.7"),
        ({"batch_size": 0}, "batch_size=0: give a whole number, 1 or more"),
    ],
)
def test_refusals(pipe, data, options, message, monkeypatch):
    monkeypatch.setattr(evaluation, "_real_statistics", None)  # nothing is measured before
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(pipe, data, **({"num_images": 6} | options))


def test_a_text_is_encoded_before_pictures_are_drawn(pipe, data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_real_statistics", None)
    clip = str(tiny_clip(tmp_path / "clip"))
    for text, message in (
        ("", "text='': name the look in words"),
        ("pencil " * 200, "tokens, .* reads .*; shorten it"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.evaluate(pipe, data, num_images=6, features=clip, text=text)


def test_numbers_of_numpy_and_names_of_embedded_sets(pipe, monkeypatch):
    monkeypatch.setattr(evaluation, "load_images", lambda source, side: load_images(source, side)[:5])
    plain = evaluation.evaluate(pipe, "pencil", num_images=5, truncation_psi=0.5, neighbour=2, crops=0)
    numbers = {"num_images": np.int64(5), "neighbour": np.int32(2), "crops": np.int64(0), "batch_size": np.int64(8)}
    folder = hub.embedded_datasets()["pencil"]
    assert evaluation.evaluate(pipe, folder, truncation_psi=np.float32(0.5), **numbers) == plain


def test_what_was_measured_is_never_lost(base_folder, data, tmp_path, monkeypatch):
    """Reports that do not compare are refused before a picture is drawn; what else they lack, after the report."""
    other, out, run = tmp_path / "other.json", tmp_path / "out.json", CliRunner().invoke
    command = ["evaluate", str(data), "--base", str(base_folder), "--num-images", "5"]
    assert run(app, [*command, "--out", str(other)]).exit_code == 0
    report = json.loads(other.read_text(encoding="utf-8"))
    assert report["protocol"]["dtype"] == "float32"
    del report["protocol"]["dtype"], report["results"]["kid"]  # as of an older version
    other.write_text(json.dumps(report), encoding="utf-8")
    lacking = run(app, [*command, "--out", str(out), "--beside", str(other)])
    assert lacking.exit_code == 2 and "the other report lacks kid" in lacking.output
    assert "kid" in json.loads(out.read_text(encoding="utf-8"))["results"]

    monkeypatch.setattr(evaluation, "_real_statistics", None)  # nothing is measured below
    refused = run(app, [*command, "--beside", str(other), "--seed", "1"])
    assert refused.exit_code == 2 and "seed 1 and 0" in refused.output
    report["network"]["base_fingerprint"] = "0"
    other.write_text(json.dumps(report), encoding="utf-8")
    refused = run(app, [*command, "--protocol", str(other)])
    assert refused.exit_code == 2 and "another network: base_fingerprint" in refused.output
    refused = run(app, [*command, "--out", str(other / "x" / "out.json")])
    assert refused.exit_code == 2 and f"lies below {other}, which is a file" in " ".join(refused.output.split())


def test_small_kids_and_other_types_of_numbers_differ(pipe, data):
    report = evaluation.evaluate(pipe, data, num_images=6)
    report["results"] = {"kid": 4.5e-4}
    assert evaluation.differences(report, report | {"results": {"kid": 3.6e-4}}) == [
        "kid is 0.00036 instead of 0.00045"
    ]
    assert evaluation.differences(report, report | {"results": {"kid": 4.5001e-4}}) == []
    halved = FewShotGAN(pipe.generator.to(torch.bfloat16))
    with pytest.raises(ValueError, match="dtype 'float32' and 'bfloat16'"):
        evaluation.compare(report, evaluation.evaluate(halved, data, num_images=6))


def test_whatever_a_refusal_names_is_an_option(base_folder, data, tmp_path):
    """Errors call settings by their names in Python; the command takes each, and the named way out works."""
    options = {name.replace("truncation_psi", "psi") for name in inspect.signature(evaluation.evaluate).parameters}
    taken = {option.name for option in get_command(app).commands["evaluate"].params}
    assert options - {"pipe", "check"} <= taken
    run, out = CliRunner().invoke, tmp_path / "report.json"
    command = ["evaluate", str(data), "--base", str(base_folder), "--num-images", "3", "--out", str(out)]
    refused = run(app, command)
    assert refused.exit_code == 2 and "neighbour=3 of 3 drawn and 12 true pictures: give fewer" in refused.output
    assert run(app, [*command, "--neighbour", "2"]).exit_code == 0
    assert json.loads(out.read_text(encoding="utf-8"))["protocol"]["neighbour"] == 2
    again = ["evaluate", str(data), "--base", str(base_folder), "--protocol", str(out)]
    assert run(app, again).exit_code == 0  # as the report says
    assert run(app, [*again, "--neighbour", "1"]).exit_code == 2  # another protocol


def test_a_published_report_is_computed_again(base_folder, data, tmp_path):
    report, run = tmp_path / "report.json", CliRunner().invoke
    done = run(app, ["evaluate", str(data), "--base", str(base_folder), "--num-images", "6", "--out", str(report)])
    assert done.exit_code == 0 and "frechet" in done.output
    assert str(tmp_path) not in report.read_text(encoding="utf-8") and str(data.parent) not in report.read_text(
        encoding="utf-8"
    )
    command = ["evaluate", str(data), "--base", str(base_folder), "--protocol", str(report)]
    again = run(app, command)
    assert again.exit_code == 0 and f"equal to {report}" in again.output and "not equal" not in again.output
    stored = json.loads(report.read_text(encoding="utf-8"))
    stored["results"]["recall"] += 0.5
    report.write_text(json.dumps(stored), encoding="utf-8")
    wrong = run(app, command)
    assert wrong.exit_code == 1 and "not equal" in wrong.output and "recall is" in wrong.output
    stored["protocol"]["features_resize"] = "torch nearest, to 224 px"
    report.write_text(json.dumps(stored), encoding="utf-8")
    assert run(app, command).exit_code == 2
    report.write_text("{}", encoding="utf-8")
    assert run(app, command).exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_report_whose_base_has_another_name_now(base_folder, data, tmp_path, monkeypatch):
    """Its fingerprint tells which embedded base it means, unless --base names one."""
    assets, mark = tmp_path / "assets", FewShotGAN.from_pretrained(base_folder).bank.fingerprint()
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", assets)
    shutil.copytree(base_folder, assets / "bases" / "faces-32")
    FewShotGAN(tiny_mobile(5)).save_pretrained(assets / "bases" / "faces")
    (assets / "bases" / "fingerprints.json").write_text(json.dumps({"faces-32": mark}), encoding="utf-8")
    report, run = tmp_path / "report.json", CliRunner().invoke
    done = run(app, ["evaluate", str(data), "--base", "faces-32", "--num-images", "6", "--out", str(report)])
    assert done.exit_code == 0, done.output
    stored = json.loads(report.read_text(encoding="utf-8"))
    stored["source"]["base"] = "faces"  # as it was called then
    report.write_text(json.dumps(stored), encoding="utf-8")
    again = ["evaluate", str(data), "--protocol", str(report)]
    assert f"equal to {report}" in run(app, again).output
    assert "report is of another network: base_fingerprint" in run(app, [*again, "--base", "faces"]).output


def test_reports_of_other_shapes_are_refused(pipe, data, tmp_path):
    path, report = tmp_path / "report.json", evaluation.evaluate(pipe, data, num_images=6)
    report["source"] = {"data": "d", "base": "b", "adapter": ["a"], "weight": ["1"]}
    path.write_text(json.dumps(report), encoding="utf-8")
    assert evaluation.read_report(path) == report
    odd = [None, True, 1, 0.5, "x", [], [1], {}, {"x": 1}]
    named = [(part, name) for part, kinds in card_results._KINDS.items() for name in kinds]
    for part, name in named + [("results", name) for name in report["results"]]:
        refused = 0
        for value in odd:
            path.write_text(json.dumps({**report, part: {**report[part], name: value}}), encoding="utf-8")
            try:
                evaluation.read_report(path)
            except ValueError as error:
                assert f"{path} is no report of fewshot-gan evaluate (" in str(error)
                refused += 1
        assert refused >= 4, (part, name)  # of the nine at most five are of a kind that is allowed somewhere
    for value in (*odd, "[" * 100_000):
        path.write_text(value if value == "[" * 100_000 else json.dumps(value), encoding="utf-8")
        with pytest.raises(ValueError, match="is no report of fewshot-gan evaluate"):
            evaluation.read_report(path)
    lacking = {**report, "results": {"kid": 0.0}}
    with pytest.raises(ValueError, match="the other report lacks balanced_intra_cluster, coverage"):
        evaluation.compare(report, lacking)


def test_two_processes_find_what_one_finds(base_folder, data, tmp_path):
    command = ["evaluate", str(data), "--base", str(base_folder), "--num-images", "7", "--out"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert CliRunner().invoke(app, [*command, str(one)]).exit_code == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "fewshot_gan.cli"]
    done = subprocess.run([sys.executable, *torchrun, *command, str(two)], env=ENV, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert evaluation.differences(*(evaluation.read_report(path) for path in (one, two))) == []
