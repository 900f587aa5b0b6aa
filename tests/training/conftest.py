"""Trainings of two steps of tiny networks."""

import pytest
from helpers.short_runs import FAST, IMAGES
from PIL import Image

from fewshot_gan.features.encoders import FeatureEncoder
from fewshot_gan.training import adapt
from fewshot_gan.training.command_line import parse


@pytest.fixture
def tiny_features(features, monkeypatch):
    """The tiny network wherever the real one would be loaded."""
    for place in ("methods.method", "training.hypernetwork", "features", "features.encoders"):
        monkeypatch.setattr(f"fewshot_gan.{place}.load_features", lambda device="cpu", **kwargs: features.to(device))
    monkeypatch.setattr(type(features), "sha256", "0" * 64)
    monkeypatch.setattr("fewshot_gan.features.encoders._load", lambda name, device: FeatureEncoder(features.to(device)))


@pytest.fixture
def data(tmp_path):
    """A folder of three images."""
    folder = tmp_path / "data" / "ink"
    folder.mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def train(base_folder, data, tmp_path):
    """`train(method, *options)`: the adapter of a run of two steps in `tmp_path / "run"`."""

    def run(method, *options, out="run", shown=True):
        command = [*FAST, f"--base={base_folder}", f"--output_dir={tmp_path / out}", *options]
        command += [f"--data={data}"] if shown else []
        return adapt.run(parse(method, command))

    return run
