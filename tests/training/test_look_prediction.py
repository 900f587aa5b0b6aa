"""A network that learns to predict looks from families of filters: its run, its resumption, and what it refuses."""

import pytest
import torch
from helpers.run_pages import check_run
from helpers.short_runs import FAST

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import HyperNetwork
from fewshot_gan.features.encoders import LookEncoder
from fewshot_gan.methods.look_prediction import LookPredictionConfig, LookPredictionObjective, relative_distance
from fewshot_gan.training import look_hypernetwork
from fewshot_gan.training.families import FAMILIES


@pytest.fixture
def command(base_folder, features, tmp_path, monkeypatch):
    monkeypatch.setattr(type(features), "sha256", "0" * 64)
    monkeypatch.setattr("fewshot_gan.training.look_hypernetwork.load_features", lambda device: features.to(device))
    monkeypatch.setattr(
        "fewshot_gan.features.encoders._load", lambda name, device: LookEncoder(features.to(device), name)
    )
    small = ["--width=16", "--depth=1", "--neck=8", "--checkpointing_steps=1"]
    return [*FAST, *small, f"--base={base_folder}", "--families", "tone", "dodge", "--learning_rate=0.01"]


def test_it_learns_resumes_and_predicts(command, base_folder, tmp_path, monkeypatch):
    out, again = tmp_path / "run", tmp_path / "resumed"
    network = look_hypernetwork.main([*command, f"--output_dir={out}"])
    stored = HyperNetwork.from_pretrained(out)
    assert stored.config.training["families"] == ["tone", "dodge"] and stored.config.encoder == "look"
    assert all(torch.equal(v, stored.state_dict()[k]) for k, v in network.state_dict().items())
    page = check_run(out, 2)
    assert "filters of 2 families: tone, dodge" in page.text
    original = look_hypernetwork.Trainer.train
    with monkeypatch.context() as patch:  # killed after one step
        patch.setattr(look_hypernetwork.Trainer, "train", lambda self, finish: original(self, stop_after=1))
        look_hypernetwork.main([*command, f"--output_dir={again}"])
    resumed = look_hypernetwork.main([*command, f"--output_dir={again}"])
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in network.state_dict().items())
    pipe = FewShotGAN.from_pretrained(base_folder)
    given = pipe(1, seed=3).images[0]
    given.save(tmp_path / "given.png")
    pipe.adapter_from_image(tmp_path / "given.png", out)
    assert pipe.active_adapters() == ["given"]
    assert f"{network.num_deltas:,} numbers" in (out / "README.md").read_text(encoding="utf-8")


def test_what_is_refused(command, tmp_path):
    for options, message in (
        (["--families", "oil"], "families oil are not known; choose from tone, duotone"),
        (["--neck=0"], "neck"),
        ([f"--{name}_weight=0" for name in ("pixel", "colour", "feature", "statistics")], "every weight is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            look_hypernetwork.parse([*command, f"--output_dir={tmp_path / 'x'}", *options])
    assert look_hypernetwork.parse(["--output_dir=x"]).options.families is None
    assert set(look_hypernetwork.RARE) < set(FAMILIES)


def test_a_perfect_picture_has_no_loss_and_a_better_one_less(features):
    objective = LookPredictionObjective.__new__(LookPredictionObjective)
    torch.nn.Module.__init__(objective)
    objective.config = LookPredictionConfig()
    from fewshot_gan.utils.frozen import Frozen

    objective._features = Frozen(features)
    wanted = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert sum(objective._losses(wanted, wanted).values()) == 0
    near, far = (sum(objective._losses(wanted + amount, wanted).values()) for amount in (0.1, 0.3))
    assert 0 < near < far
    assert relative_distance(wanted * 1.5, wanted) == pytest.approx(0.5, abs=1e-4)
