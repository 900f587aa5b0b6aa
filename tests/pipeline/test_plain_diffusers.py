"""Saved bases load with plain diffusers, and bases of earlier versions load here."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.every_pipeline import draw, piped
from helpers.hub_server import connected

from fewshot_gan import FewShotGAN

PLAIN = """
import json, sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
images = pipe(2, class_labels=pipe.some_labels(2), seed=0, output_type="np").images
parts = [type(part).__name__ for part in pipe.components.values()]
print(json.dumps([type(pipe).__module__, pipe.base_name, parts, float(images.sum(dtype="float64"))]))
"""


def by_plain_diffusers(base, home, **options) -> list:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(base), json.dumps(options)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["mobile", "biggan"])
def test_a_saved_base_loads_with_plain_diffusers(name, tmp_path):
    pipe = piped(name)
    pipe.save_pretrained(tmp_path / "base")
    parts = [type(part).__name__ for part in pipe.components.values()]
    images = pipe(2, class_labels=pipe.some_labels(2), seed=0, output_type="np").images
    want = ["fewshot_gan.pipeline", str(tmp_path / "base"), parts, float(images.sum(dtype="float64"))]
    for custom in ({}, {"custom_pipeline": str(tmp_path / "base")}):
        assert by_plain_diffusers(tmp_path / "base", tmp_path, trust_remote_code=True, **custom) == want


def test_a_pushed_base_loads_with_plain_diffusers(monkeypatch, tmp_path):
    pipe = piped("biggan")
    with connected(monkeypatch, tmp_path / "cache") as hub:
        pipe.push_to_hub("me/faces", token="write-me")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        module, base, parts, total = by_plain_diffusers("me/faces", tmp_path / "home", trust_remote_code=True)
    assert (module, base) == ("fewshot_gan.pipeline", "me/faces")
    assert parts == [type(part).__name__ for part in pipe.components.values()]
    assert total == float(pipe(2, class_labels=[0, 1], seed=0, output_type="np").images.sum(dtype="float64"))


def test_our_own_class_runs_no_file_of_a_base(tmp_path):
    pipe = piped("biggan")
    pipe.save_pretrained(tmp_path / "base")
    evil = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    for path in (tmp_path / "base").rglob("*.py"):
        path.write_text(evil, encoding="utf-8")
    assert torch.equal(draw(FewShotGAN.from_pretrained(tmp_path / "base")), draw(pipe))
    index = tmp_path / "base" / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8"))
    assert config["_class_name"] == ["pipeline", "FewShotGAN"] and config["generator"][0] == "fewshot_gan"
    for library in ("evil", "fewshot_gan.pipeline_files", "os"):
        (tmp_path / "base" / "generator" / f"{library}.py").write_text(evil, encoding="utf-8")
        index.write_text(json.dumps({**config, "generator": [library, "BigGANGenerator"]}), encoding="utf-8")
        with pytest.raises(ValueError, match="a base has networks of fewshot_gan alone"):
            FewShotGAN.from_pretrained(tmp_path / "base")
    assert not (tmp_path / "ran").exists()


def test_bases_of_before_load_and_derived_classes_are_saved_as_before(tmp_path):
    pipe = piped("sngan")
    pipe.save_pretrained(tmp_path / "base")
    for path in (tmp_path / "base").rglob("*.py"):
        path.unlink()
    index = tmp_path / "base" / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**config, "_class_name": "FewShotGAN"}), encoding="utf-8")
    loaded = FewShotGAN.from_pretrained(tmp_path / "base")
    assert torch.equal(draw(loaded), draw(pipe))

    class Mine(FewShotGAN):
        """As users derive one."""

    Mine(**pipe.components).save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "pipeline.py").exists()
    assert type(Mine.from_pretrained(tmp_path / "mine")) is Mine
