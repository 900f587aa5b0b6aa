"""`fewshot-gan restyle` and the face options of `invert`: a photo with a face becomes a grid, an adapter and photos."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import tiny_mobile
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN, LeFTAdapter
from fewshot_gan.apps.studio import Studio
from fewshot_gan.apps.uploads import read_photo
from fewshot_gan.cli import app
from fewshot_gan.data.images import as_image
from fewshot_gan.faces import read_faces

PHOTO = Path(__file__).parents[1] / "golden" / "astronaut.jpg"
POINTS = {"left_eye_outer": [21.5, 15.2], "left_eye_inner": [18.4, 15.4], "right_eye_outer": [10.4, 15.2]}
POINTS |= {"right_eye_inner": [13.5, 15.4], "nose": [16.0, 21.3]}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, features, perturbed):
    """A folder with a base of 32 px faces, two looks, and photos with one face, two and none."""
    monkeypatch.chdir(tmp_path)
    for module in ("features", "training.personalize"):
        monkeypatch.setattr(f"fewshot_gan.{module}.load_features", lambda **options: features)
    pipe = FewShotGAN(tiny_mobile(), mean_landmarks=POINTS)
    pipe.save_pretrained("base")
    for seed, name in enumerate(("ink", "oil")):
        perturbed(LeFTAdapter.for_model(pipe.generator), seed).save_pretrained(name)
    shutil.copy(PHOTO, "photo.jpg")
    photo = Image.open(PHOTO)
    two = Image.new("RGB", (800, 512), "grey")
    two.paste(photo, (0, 0))
    two.paste(photo.crop((140, 20, 320, 220)), (600, 150))
    two.save("two.png")
    Image.effect_noise((200, 150), 60).convert("RGB").save("none.png")


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == code, done.stderr
    return done.stdout if code == 0 else done.stderr


QUICK = ("--base", "base", "--steps", "3", "--num-threads", "1")


def test_a_photo_in_looks(tmp_path):
    looks = ("--adapter", "ink", "--adapter", "oil", "--weight", "1", "--weight", "0.5")
    said = run("restyle", "photo.jpg", *QUICK, *looks, "--keep", "me", "--paste-back", "--out", "me.png")
    assert said.startswith("me.png  (photo, likeness, ink, oil, adapter in me; ")
    grid = Image.open("me.png")
    assert grid.size == (4 * 32 + 3 * 4, 32)
    pipe = FewShotGAN.from_pretrained("base").load_adapter("me")
    pipe.load_adapter("ink").load_adapter("oil")
    drawn = pipe(person="me", adapter_names=["me", "ink", {"oil": 0.5}]).images
    for i, picture in enumerate(drawn, 1):
        shown = np.asarray(grid.crop((36 * i, 0, 36 * i + 32, 32))).astype(int)
        assert np.abs(shown - np.asarray(picture)).max() <= 1
    photo = np.asarray(Image.open("photo.jpg").convert("RGB")).astype(int)
    for name in ("likeness", "ink", "oil"):
        pasted = np.asarray(Image.open(f"me-{name}.png")).astype(int)
        assert pasted.shape == photo.shape and (pasted[300:] == photo[300:]).all()
        assert np.abs(pasted - photo)[60:140, 190:260].mean() > 2
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith("me")} == {
        *("me", "me.png", "me-likeness.png", "me-ink.png", "me-oil.png")
    }


def test_the_weight_of_the_person_in_looks():
    """The likeness has full weight; in a look the person has the given one."""
    run("restyle", "photo.jpg", *QUICK, "--adapter", "ink", "--likeness", "0.5", "--keep", "me", "--out", "half.png")
    pipe = FewShotGAN.from_pretrained("base").load_adapter("me").load_adapter("ink")
    drawn = pipe(person="me", adapter_names=["me", {"me": 0.5, "ink": 1}, {"me": 1, "ink": 1}]).images
    likeness, half, whole = (np.asarray(picture).astype(int) for picture in drawn)
    grid = np.asarray(Image.open("half.png")).astype(int)
    assert np.abs(grid[:, 36:68] - likeness).max() <= 1 and np.abs(grid[:, 72:104] - half).max() <= 1
    assert np.abs(half - whole).max() > 2


def test_a_kept_person_is_drawn():
    run("restyle", "photo.jpg", "two.png", *QUICK, "--keep", "me", "--out", "me.png")
    said = run("generate", "--base", "base", "--person", "me", "--adapter", "ink", "--compare", "--out", "we.png")
    assert said.startswith("we.png  (4 pictures, ")
    pipe = FewShotGAN.from_pretrained("base").load_adapter("ink").load_adapter("me")
    want = [
        *pipe(2, person="me", adapter_names=["me"] * 2).images,
        *pipe(2, person="me", adapter_names=["ink"] * 2).images,
    ]
    grid = np.asarray(Image.open("we.png")).astype(int)
    for i, picture in enumerate(want):
        top, left = i // 2 * 36, i % 2 * 36
        assert np.abs(grid[top : top + 32, left : left + 32] - np.asarray(picture)).max() <= 1
    short = ("--base", "base", "--person", "me")
    assert "--person draws a grid" in run("generate", *short, "--seeds", "1", code=2)
    assert "--person ink is a look" in run("generate", *short[:2], "--person", "ink", code=2)
    for command in (("generate",), ("walk",), ("mix",), ("evaluate", "photo.jpg"), ("export",)):
        assert "me is a person, who changes no other faces" in run(*command, *short[:2], "--adapter", "me", code=2)


def test_a_search_that_was_stopped_goes_on(monkeypatch):
    """What it left behind, a lock and the latents, is no other person's folder."""
    Path("me").mkdir()
    Path("me", ".lock").touch()
    quick = ("restyle", "photo.jpg", *QUICK, "--keep", "me", "--out", "me.png")
    with monkeypatch.context() as patch:
        patch.setattr("fewshot_gan.training.personalize._train", lambda *a: (_ for _ in ()).throw(ValueError("stop")))
        assert "stop" in run(*quick, code=2)
    assert {path.name for path in Path("me").iterdir()} == {".lock", "latents.safetensors"}
    run(*quick)
    assert Path("me", "adapter_config.json").is_file()


def test_several_photos_of_one_person():
    run("restyle", "photo.jpg", "two.png", *QUICK, "--adapter", "ink", "--keep", "me", "--out", "us.png")
    assert Image.open("us.png").size == (3 * 32 + 2 * 4, 2 * 32 + 4)
    assert FewShotGAN.from_pretrained("base").load_adapter("me").bank.adapters["me"].latents.shape[0] == 2


def test_refusals(tmp_path):
    Image.new("RGB", (20, 20)).save("small.png")
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, sentence in (
        (("none.png",), "no face was found in none.png (200x150 px)"),
        (("photo.jpg", "--face", "3"), "face=3: photo.jpg has 1 face; give a number below 1"),
        (("photo.jpg", "--no-align", "--paste-back"), "--paste-back needs the place of the face"),
        (("photo.jpg", "--keep", "ink"), "ink exists and is not an empty folder"),
        (("photo.jpg", "--out", "photo.jpg"), "is one of the photos; give another --out"),
        (("photo.jpg", "small.png", "--no-align"), "small.png is 20x20 px, below the limit"),
        (("nowhere.jpg",), "there is no picture 'nowhere.jpg'"),
        (("photo.jpg", "--likeness", "3"), "--likeness 3.0: give 0 to 2"),
        (("photo.jpg", "--steps", "0"), "--steps 0: give 1 to 10000"),
        (("photo.jpg", "--likeness", "0.5"), "--likeness 0.5 is the weight beside a look; give --adapter"),
    ):
        assert sentence in run("restyle", *QUICK[:2], *arguments, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_invert_takes_faces():
    said = run("invert", "two.png", "photo.jpg", *QUICK, "--all-faces", "--out", "all.safetensors")
    assert said.count("two.png") == 2 and said.count("photo.jpg") == 1
    assert Image.open("all-sheet.png").size == (3 * 36 - 4, 2 * 36 - 4)
    run("invert", "none.png", *QUICK, "--no-align", "--out", "none.safetensors")
    assert "no face was found" in run("invert", "none.png", *QUICK, "--out", "x.safetensors", code=2)


def test_the_demo_finds_the_face(tmp_path):
    """An upload is aligned as the command line does it; one without a face is refused in the page's words."""
    studio = Studio("base", folder=None)
    try:
        assert studio.aligns
        with pytest.raises(ValueError, match="^no face was found in the photo: choose one that shows a face from the"):
            studio.find_photo(studio.enter(None), "none.png")
        assert torch.equal(read_photo("photo.jpg", 32, POINTS).square, read_faces("photo.jpg", 32, POINTS)[0][0])
        assert (studio.look_at("photo.jpg").faces, studio.look_at("two.png").faces) == (1, 2)
        key = studio.enter(None)
        job = studio.find_photo(key, "photo.jpg", steps=2)
        while not job.over:
            time.sleep(0.02)
        want = as_image(read_faces("photo.jpg", 32, POINTS)[0][0])
        assert job.state == "done" and studio.visitor(key).photo.tobytes() == want.tobytes()
    finally:
        studio.close()
