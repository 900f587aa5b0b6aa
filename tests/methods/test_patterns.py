"""Looks that are a regular pattern: found by their spectrum, and learned without the source's fine lines."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from helpers.networks import tiny_mobile

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.data.datasets import load_images
from fewshot_gan.data.images import reduced, to_floats
from fewshot_gan.hub import embedded_datasets
from fewshot_gan.methods.choose import PATTERN, own_pictures
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
from fewshot_gan.methods.patterns import pattern_share
from fewshot_gan.methods.statistics import structure_distance
from fewshot_gan.training.config import make_run
from fewshot_gan.training.domains import apply_filter
from fewshot_gan.training.engine import Trainer, TrainingConfig
from fewshot_gan.utils.random import seeded


@pytest.fixture(scope="module")
def faces():
    return own_pictures(FewShotGAN.from_pretrained("ffhq-256"), "cpu")


@pytest.mark.parametrize("name", ["halftone", "hatch", "pixel"])
def test_patterns_are_found(faces, name):
    pictures = apply_filter(faces, name)
    assert pattern_share(pictures) > 1.5 * PATTERN
    large = torch.nn.functional.interpolate(faces, scale_factor=4, mode="bilinear")
    assert pattern_share(apply_filter(large, name)) > 1.5 * PATTERN  # reduced to 256 px
    assert pattern_share(apply_filter(faces[:2], name)) > 1.5 * PATTERN


@pytest.mark.parametrize("name", ["sepia", "poster", "pencil", "ink", None])
def test_strokes_and_photographs_are_none(faces, name):
    assert pattern_share(faces if name is None else apply_filter(faces, name)) < PATTERN / 4


@pytest.mark.parametrize("name", ["pencil", "toon"])
def test_embedded_sets_are_none(name):
    assert pattern_share(to_floats(load_images(str(embedded_datasets()[name]), 256))) < PATTERN / 4


def test_straight_edges_are_none():
    pictures = torch.full((12, 3, 256, 256), 0.6)
    for i, picture in enumerate(pictures):  # frames and bars here and there
        picture[:, 20 + i : 90 + 3 * i, 40 : 140 + 5 * i] = -0.5
        picture[:, 180 + i :] = 0.1
    assert pattern_share(pictures) < PATTERN / 2


def test_stripes_of_any_direction_and_plain_pictures():
    down, across = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    for x, y in ((0.9, 0.3), (0.0, 0.8), (1.1, -0.4)):
        stripes = (x * across + y * down).sin()[None, None].expand(2, 3, 256, 256)
        assert pattern_share(0.5 * stripes) > 0.9
    assert pattern_share(torch.zeros(2, 3, 256, 256)) == 0
    assert pattern_share(torch.rand(2, 3, 256, 256, generator=seeded(1)) * 2 - 1) < PATTERN / 4


def test_structure_is_compared_where_it_is_broad(features):
    """`structure_size`: whole pictures are reduced first, and crops are not compared."""
    random = seeded(4)
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=random)
    generator = tiny_mobile(block_channels=(16, 16, 16, 16))
    config = replace(LFSConfig.few_images(), view_size=32, crops=1, structure_weight=2.0, structure_size=16)

    def trainer(of):
        objective = LFSObjective(of, to_floats(pictures), 16, features=features)
        settings = TrainingConfig("unused", train_batch_size=2, augment="none", sample_steps=0)
        torch.manual_seed(0)
        return Trainer(
            generator, LeFTAdapter.for_model(generator), objective, pictures, settings, Accelerator(cpu=True)
        )

    run = trainer(config)
    batch, _ = run._batch()
    losses = run.objective.generator_losses(batch)
    wanted = 2 * structure_distance(*(reduced(x, 16) for x in (batch.fake.plain, batch.source_view)))
    torch.testing.assert_close(losses["structure"], wanted)
    assert "structure_crops" not in losses and "content_crops" in losses
    plain = trainer(replace(config, structure_size=0))
    losses = plain.objective.generator_losses(plain._batch()[0])
    assert "structure_crops" in losses
    assert "structure_size" in run.settings() and "structure_size" not in plain.settings()


def test_the_preset():
    pattern, usual = LFSConfig.pattern(), LFSConfig.few_images()
    assert pattern.structure_size == 48 and pattern.structure_weight < usual.structure_weight
    assert replace(pattern, structure_size=0, structure_weight=4.5, content_weight=40.0) == usual


def test_pictures_of_a_pattern_are_not_moved():
    run = make_run("lfs_gan", preset="pattern", adapter="lora", data="pencil", output_dir="x")
    assert run.training.augment == "none" and run.objective == LFSConfig.pattern()
    assert (
        run.training.learning_rate
        == make_run("lfs_gan", adapter="lora", data="x", output_dir="x").training.learning_rate
    )
