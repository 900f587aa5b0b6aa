"""ADA: p follows the signs of logits by the published rule, gates every change, and is kept in checkpoints."""

import pytest
import torch
from accelerate import Accelerator
from helpers.networks import tiny_mobile

from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
from fewshot_gan.models import SNGANDiscriminator, SNGANGenerator
from fewshot_gan.training.ada import Strength, gated_draw, gated_policy
from fewshot_gan.training.augment import DiffAugment, FewShotAugment
from fewshot_gan.training.engine import Trainer, TrainingConfig
from fewshot_gan.training.limited import LimitedConfig, LimitedTrainer
from fewshot_gan.utils.random import seeded

PICTURES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded(4))


def reference(signs, batch, every=4, kimg=500.0, target=0.6):
    """The rule of the released code: p = max(p + sign(mean of signs − target) · batch · every / (kimg · 1000), 0)."""
    p, path, sums = 0.0, [], []
    for step, sign in enumerate(signs, 1):
        sums.append(sign)
        if step % every == 0:
            mean = sum(float(s.sum()) for s in sums) / sum(s.numel() for s in sums)
            over = mean - target
            p = max(p + ((over > 0) - (over < 0)) * batch * every / (kimg * 1000), 0.0)
            sums = []
        path.append(p)
    return path


def test_the_trajectory_is_that_of_the_published_rule():
    random, strength, path, signs = seeded(1), Strength(kimg=0.5), [], []
    for step in range(80):
        logits = torch.randn(8, 1, generator=random) + (2.0 if step < 48 else -1.0)  # overfits first, then not
        signs.append(logits.sign())
        strength.update([logits], 8)
        path.append(strength.p)
    assert path == pytest.approx(reference(signs, 8, kimg=0.5), abs=1e-12)
    assert max(path) > 0.5 and path[-1] < max(path)
    high = Strength(kimg=0.01)
    for _ in range(8):
        high.update([torch.ones(8, 1)], 8)
    assert high.p == 1  # a probability


def test_p_rises_where_a_discriminator_overfits(tmp_path):
    """Four pictures and a generator that cannot follow: the discriminator knows them after some steps."""
    torch.manual_seed(0)
    networks = SNGANGenerator(8, resolution=32), SNGANDiscriminator(8, 32)
    settings = {"max_train_steps": 30, "d_steps": 2, "d_batch_size": 4, "g_batch_size": 4, "sample_steps": 0}
    config = LimitedConfig(
        str(tmp_path), **settings, learning_rate=1e-9, d_learning_rate=2e-3, augment="ada", ada_kimg=1.0
    )
    run, signs, path = LimitedTrainer(*networks, PICTURES, config, Accelerator(cpu=True)), [], []
    honest = run.strength.update

    def watched(logits, images, accelerator):
        signs.append(torch.cat([x.sign() for x in logits]))
        honest(logits, images, accelerator)
        path.append(run.strength.p)

    run.strength.update = watched
    for _ in range(30):
        logs = run.train_step()
    assert logs["ada_p"] == path[-1] and len(path) == 60
    assert path == pytest.approx(reference(signs, 4, kimg=1.0), abs=1e-12)
    assert path[-1] > 0.1


def test_every_change_is_gated():
    images = torch.rand(256, 3, 16, 16, generator=seeded(2)) * 2 - 1
    changes = DiffAugment()
    assert torch.equal(gated_policy(changes, images, 0.0, seeded(3)), images)
    assert (gated_policy(changes, images, 1.0, seeded(3)) != images).flatten(1).any(1).all()
    for name in changes.policy:  # each part by itself, for about a quarter of the images
        moved = gated_policy(DiffAugment(name), images, 0.25, seeded(3)) != images
        assert 0.15 < moved.flatten(1).any(1).float().mean() < 0.35, name
    plain = FewShotAugment()
    unchanged = plain.apply(images, gated_draw(plain, 256, 0.0, seeded(5)))
    torch.testing.assert_close(unchanged, images, rtol=0, atol=1e-6)  # grey + (x − grey)
    draw = gated_draw(plain, 256, 0.5, seeded(5))
    assert 0.4 < (draw["shift"] == 0).all(1).float().mean() < 0.6 and 0.65 < (~draw["flip"]).float().mean() < 0.85
    assert 0.4 < (draw["contrast"] == 1).float().mean() < 0.6


@pytest.fixture
def trainer(features):
    def make(folder, **settings):
        torch.manual_seed(0)
        generator = tiny_mobile()
        usual = {"max_train_steps": 6, "train_batch_size": 2, "checkpointing_steps": 3, "sample_steps": 0}
        objective = LFSObjective(LFSConfig.few_images(), PICTURES.float() / 127.5 - 1, 16, features=features)
        config = TrainingConfig(str(folder), **(usual | {"augment": "ada", "ada_kimg": 0.02} | settings))
        return Trainer(generator, LeFTAdapter.for_model(generator), objective, PICTURES, config, Accelerator(cpu=True))

    return make


def test_a_few_shot_run_keeps_its_strength(trainer, tmp_path):
    whole = trainer(tmp_path / "whole")
    adapter = whole.train().state_dict()
    trainer(tmp_path / "killed").train(stop_after=3)
    with pytest.raises(ValueError, match="ada_kimg"):
        trainer(tmp_path / "killed", ada_kimg=5.0).train()
    resumed = trainer(tmp_path / "killed")
    again = resumed.train().state_dict()
    assert resumed.strength == whole.strength and whole.strength.steps == 6
    assert all(torch.equal(again[name], value) for name, value in adapter.items())
    losses = (tmp_path / "whole" / "losses.jsonl").read_text(encoding="utf-8")
    assert "ada_p" in losses


def test_refusals(trainer, tmp_path, features):
    with pytest.raises(ValueError, match=r"ada_target=2: give 0 to 1"):
        trainer(tmp_path, ada_target=2)
    with pytest.raises(ValueError, match=r"ada_kimg=0: give a number above 0"):
        trainer(tmp_path, ada_kimg=0)
    with pytest.raises(ValueError, match=r"unknown augment 'sometimes'; known: fixed, ada"):
        LimitedConfig(str(tmp_path), augment="sometimes")
    from dataclasses import replace

    generator = tiny_mobile()
    silent = replace(LFSConfig.few_images(), adversarial_weight=0.0)
    objective = LFSObjective(silent, PICTURES.float() / 127.5 - 1, 16, features=features)
    config = TrainingConfig(str(tmp_path), augment="ada")
    with pytest.raises(ValueError, match=r"augment='ada' follows the discriminator, which does not learn here"):
        Trainer(generator, LeFTAdapter.for_model(generator), objective, PICTURES, config, Accelerator(cpu=True))
