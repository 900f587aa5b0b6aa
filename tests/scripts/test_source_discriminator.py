"""Heads that know a base: trained without data, they tell its pictures from disturbed ones, and fit into its folder."""

import json

import pytest
import torch
from helpers.run_pages import check_run, read_events

from fewshot_gan.models.projected import ProjectedDiscriminator
from fewshot_gan.pipeline import FewShotGAN


def test_heads_learn_the_base_without_data(base_folder, features, tmp_path, script, monkeypatch):
    source_discriminator = script("source_discriminator")
    monkeypatch.setattr(source_discriminator, "load_features", lambda: features)

    def train(steps, out):
        options = [
            f"--base={base_folder}",
            "--disturbance=2",
            "--least_disturbance=0.06",
            "--learning_rate=0.01",
            "--held_out=4",
            "--num_threads=1",
        ]
        return source_discriminator.main([*options, f"--steps={steps}", f"--output_dir={tmp_path / out}"])

    report = train(120, "long")
    assert report["loss_of_last_quarter"] < 1.85  # 2 is guessing
    assert json.loads((tmp_path / "long" / "report.json").read_text(encoding="utf-8")) == report
    assert set(report["accuracy_of_each_level"]) == {"0", "2", "4", "10"}
    page = check_run(tmp_path / "long", 120)
    assert FewShotGAN.from_pretrained(base_folder).bank.fingerprint() in page.text and "no files" in page.text
    scalars, pictures = read_events(tmp_path / "long" / "logs")
    assert [step for step, _ in scalars["d"]] == list(range(1, 121)) and pictures["samples"] == [1, 51, 101, 120]
    torch.rand(7)  # what was drawn before does not matter
    train(2, "first"), train(2, "second")
    file = "projected_discriminator/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    judge = ProjectedDiscriminator.from_pretrained(tmp_path / "long" / "projected_discriminator")
    pipe = FewShotGAN.from_pretrained(base_folder, projected_discriminator=judge)
    pipe.save_pretrained(tmp_path / "base")  # from now on, part of the base
    kept = FewShotGAN.from_pretrained(tmp_path / "base").projected_discriminator.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in judge.state_dict().items())
    with pytest.raises(SystemExit, match="least_disturbance=3 is above disturbance=2; give at most that"):
        source_discriminator.main(
            [f"--base={base_folder}", "--disturbance=2", "--least_disturbance=3", "--output_dir=x"]
        )
