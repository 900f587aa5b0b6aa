"""bench_photo.py: numbers for each photo, their means, a sheet, and stand-ins that are the same each time."""

import json
from pathlib import Path

import pytest
from helpers.networks import tiny_mobile
from PIL import Image

from fewshot_gan import FewShotGAN

PHOTO = Path(__file__).parents[1] / "golden" / "astronaut.jpg"
POINTS = {"left_eye_outer": [21.5, 15.2], "left_eye_inner": [18.4, 15.4], "right_eye_outer": [10.4, 15.2]}
STAGES = ["w from the mean", "w", "w+", "person"]
POINTS |= {"right_eye_inner": [13.5, 15.4], "nose": [16.0, 21.3]}


@pytest.fixture
def bench(script, features, monkeypatch):
    module = script("bench_photo")
    monkeypatch.setattr(module, "load_features", lambda **options: features)
    for place in ("features", "training.personalize"):
        monkeypatch.setattr(f"fewshot_gan.{place}.load_features", lambda **options: features)
    return module


def test_a_report_of_two_photos(bench, tmp_path):
    FewShotGAN(tiny_mobile(), mean_landmarks=POINTS).save_pretrained(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(PHOTO.read_bytes())
    (tmp_path / "photos" / "notes.txt").write_text("no photo", encoding="utf-8")
    options = ["--steps=2", "--inversion_steps=2", "--num_threads=1", "--others=5", f"--base={tmp_path / 'base'}"]
    files = [f"--out={tmp_path / 'report.json'}", f"--sheet={tmp_path / 'sheet.png'}"]
    report = bench.main([*options, *files, "--photos", str(tmp_path / "photos")])
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert list(report["photos"]) == ["0: a.jpg", "1: b.jpg"] and list(report["mean"]) == STAGES
    for stage, means in report["mean"].items():
        values = [row[stage]["psnr"] for row in report["photos"].values()]
        assert ("change_of_others" in means) == (stage == "person") and means.get("change_of_others", 1) > 0
        assert means["psnr"] == pytest.approx(sum(values) / 2, abs=0.01) and values[0] == values[1]  # one photo twice
    assert Image.open(tmp_path / "sheet.png").size == (5 * 36 - 4, 2 * 36 - 4)


def test_one_person_is_nearer_than_another_face(bench):
    judge, photo = bench.Judge(), Image.open(PHOTO)
    face = photo.crop((120, 20, 320, 220)).resize((512, 512), Image.Resampling.LANCZOS)
    lit = face.point(lambda value: int(255 * (value / 255) ** 1.3))
    assert judge.distance(face, face) == 0 and judge.distance(face, lit) < 0.2
    pipe = FewShotGAN.from_pretrained("ffhq-256")
    assert judge.distance(face, pipe(1, seed=0).images[0]) > 0.5
    assert judge.distance(face, Image.new("RGB", (64, 64))) is None


def test_stand_ins_are_other_photos_of_the_same_faces(bench):
    pipe = FewShotGAN.from_pretrained("ffhq-256")
    first, second = bench.stand_ins(pipe, 2)
    assert first.tobytes() == bench.stand_ins(pipe, 1)[0].tobytes() and first.size == (256, 256)
    (source,) = pipe(1, seed=bench.STAND_IN_SEED, truncation_psi=0.7).images
    judge = bench.Judge()
    assert 0.02 < judge.distance(source, first) < judge.distance(source, second)
