"""The mean landmarks of a base: means over its pictures, where a pipeline finds them, and refusals."""

import json

import numpy as np
import pytest

from fewshot_gan import FewShotGAN
from fewshot_gan.faces import LANDMARKS, Face


@pytest.fixture
def measure(script, monkeypatch):
    """The script, with points that follow the colour of a picture in place of dlib's."""
    module = script("mean_landmarks")

    def find(picture):
        red = picture.resize((1, 1)).getpixel((0, 0))[0]
        return [Face((0, 0, 1, 1), np.array([[red + i, 2 * red + i] for i in range(5)]))]

    monkeypatch.setattr(module, "find_faces", find)
    module.find = find
    return module


@pytest.fixture
def own_base(mobile, tmp_path):
    FewShotGAN(mobile).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_means_over_the_pictures(measure, own_base, capsys):
    options = [f"--base={own_base}", "--num=3", "--psi=0.5", "--seed=4"]
    points = measure.main(options)
    assert json.loads(capsys.readouterr().out) == points and list(points) == list(LANDMARKS)
    found = [measure.find(x) for x in FewShotGAN.from_pretrained(own_base)(3, seed=4, truncation_psi=0.5).images]
    for i, name in enumerate(LANDMARKS):
        want = [sum(faces[0].landmarks[i, k] for faces in found) / 3 for k in (0, 1)]
        assert points[name] == pytest.approx(want, abs=0.006)  # two decimals
    assert FewShotGAN.from_pretrained(own_base).config.mean_landmarks is None
    assert measure.main([*options, "--write"]) == points
    assert FewShotGAN.from_pretrained(own_base).config.mean_landmarks == points


def test_refusals(measure, own_base, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        measure.main(["--base=ffhq-256", "--write"])  # not those that ship with the package
    assert "ffhq-256 is no folder of a base" in capsys.readouterr().err
    monkeypatch.setattr(measure, "find_faces", lambda picture: [])
    with pytest.raises(ValueError, match="no face was found in picture 0, 1 of 2 at psi 0.5; take a base of faces"):
        measure.main([f"--base={own_base}", "--num=2"])
