"""Heads that know a base: trained without data, they tell its pictures from disturbed ones, and fit into its folder."""

import json
import shutil
import sys
from pathlib import Path

import torch

from fewshot_gan.methods.projected import ProjectedDiscriminator
from fewshot_gan.pipeline import FewShotGAN

SCRIPTS = Path(__file__).parents[1] / "training"


def test_heads_learn_the_base_without_data(base_folder, features, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    sys.modules.pop("source_discriminator", None)
    import source_discriminator

    monkeypatch.setattr(source_discriminator, "load_features", lambda: features)
    before = {k: v.clone() for k, v in FewShotGAN.from_pretrained(base_folder).generator.state_dict().items()}
    options = [f"--base={base_folder}", "--disturbance=2", "--learning_rate=0.01", "--held_out=64"]
    reports = {
        steps: source_discriminator.main([*options, f"--steps={steps}", f"--output_dir={tmp_path / str(steps)}"])
        for steps in (1, 80)
    }
    mean = {steps: sum(report["accuracy_of_each_level"].values()) / 4 for steps, report in reports.items()}
    assert mean[80] > 0.58 > mean[1]  # 0.5 is chance
    assert json.loads((tmp_path / "80" / "report.json").read_text()) == reports[80]
    folder = shutil.copytree(base_folder, tmp_path / "base")
    shutil.copytree(tmp_path / "80" / "projected_discriminator", folder / "projected_discriminator")
    judge = ProjectedDiscriminator.from_pretrained(folder / "projected_discriminator")
    assert all(torch.isfinite(p).all() for p in judge.parameters())
    after = FewShotGAN.from_pretrained(base_folder).generator.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
