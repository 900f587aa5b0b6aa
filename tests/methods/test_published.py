"""The recipes of the released code of LFS-GAN and CDC: the numbers that `paper` resolves to, and their terms."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers.networks import tiny_mobile

from fewshot_gan.adapters import AdapterBank, LeFTAdapter
from fewshot_gan.methods.cdc import CDCConfig, CDCObjective, published_relation_loss, relation_loss
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
from fewshot_gan.methods.pair import Latents, Pair
from fewshot_gan.metrics import intra_cluster_distance
from fewshot_gan.models import GPGANGenerator
from fewshot_gan.training.config import make_run
from fewshot_gan.training.engine import Trainer, TrainingConfig
from fewshot_gan.utils.random import seeded

REAL = torch.rand(3, 3, 32, 32, generator=seeded(1)) * 2 - 1
RATES = {
    "train_batch_size": 4,
    "learning_rate": 0.0016,
    "d_learning_rate": pytest.approx(0.0018824, rel=1e-4),
    "adam_beta1": 0.0,
    "adam_beta2": pytest.approx(0.99**0.8),
    "lr_warmup_steps": 0,
    "lr_decay_start": 1.0,
    "truncation_psi": 1.0,
    "augment": "flip",
    "noise": "random",
    "real_zoom": 1.0,
}
TERMS = {
    "discriminator": "source",
    "adversarial_weight": 1.0,
    "r1_weight": 10.0,
    "r1_every": 16,
    "path_length_weight": 2.0,
    "path_length_every": 4,
    "style_mixing": 0.9,
    "anchor_every": 4,
    "anchor_sigma": 0.1,
    "statistics_weight": 0.0,
    "wasserstein_weight": 0.0,
    "content_weight": 0.0,
    "structure_weight": 0.0,
    "crops": 0,
}
PUBLISHED = {
    "lfs_gan": (
        {"max_train_steps": 3000, "ema_decay": 0.0},
        {"relation_weight": 0.0, "mode_seeking_weight": 1.0, "mode_seeking_every": 1, "mode_seeking_factor": 4},
        "left",
    ),
    "cdc": (
        {"max_train_steps": 5000, "ema_decay": pytest.approx(0.99778, abs=1e-5)},
        {"relation_weight": 1000.0, "relation_latents": 4},
        "full",
    ),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_preset_paper_has_the_released_numbers(method):
    steps, terms, adapter = PUBLISHED[method]
    run = make_run(method, preset="paper", data="pencil", output_dir="runs/x")
    assert run.adapter == adapter
    assert {name: getattr(run.training, name) for name in RATES | steps} == RATES | steps
    assert {name: getattr(run.objective, name) for name in TERMS | terms} == TERMS | terms
    given = make_run(method, preset="paper", data="pencil", output_dir="runs/x", max_train_steps=7, noise="const")
    assert (given.training.max_train_steps, given.training.noise) == (7, "const")
    few = make_run(method, data="pencil", output_dir="runs/x")
    assert (few.training.learning_rate, few.training.noise) != (0.0016, "random")


# --------------------------------------------------------------------------------------------------------------- terms


def released_relation(source, target, levels):
    """KLDivLoss() of the softmax of cosines, image by image: the mean over B (B − 1) numbers."""
    rows = [[], []]
    for i, level in enumerate(levels):
        for maps, row in zip((source, target), rows, strict=True):
            x = maps[level].flatten(1)
            row.append(torch.stack([F.cosine_similarity(x[i], x[j], dim=0) for j in range(len(levels)) if j != i]))
    p, q = (torch.stack(row).softmax(1) for row in rows)
    return F.kl_div(q.log(), p, reduction="none").mean()


def test_relation_of_the_released_code():
    random = seeded(3)
    source = [torch.randn(4, c, s, s, generator=random) for c, s in ((6, 4), (4, 8), (2, 16))]
    target = [x + 0.5 * torch.randn(x.shape, generator=random) for x in source]
    for levels in ((0, 1, 2, 1), (2, 2, 2, 2)):
        torch.testing.assert_close(
            published_relation_loss(source, target, levels), released_relation(source, target, levels)
        )
    one = published_relation_loss(source, target, (1, 1, 1, 1))
    torch.testing.assert_close(3 * one, relation_loss(source[1:2], target[1:2]))  # B − 1 times weaker
    assert published_relation_loss(source, target, (0, 1)) == 0


@pytest.fixture
def pair(perturbed):
    generator = tiny_mobile().requires_grad_(False)
    for name, strength in generator.named_parameters():
        if name.endswith("noise.strength"):
            strength.fill_(0.3)
    bank = AdapterBank(generator)
    bank.add("training", perturbed(LeFTAdapter.for_model(generator)))
    bank.activate({"training": 1.0})
    return Pair(generator, bank, fresh_noise=True)


def test_relation_has_latents_of_its_own(pair, features, discriminator):
    """The step's own images are not compared: they need no source, and anchors do not bend the similarities."""
    objective = CDCObjective(CDCConfig.paper(), REAL, 16, discriminator=discriminator, features=features)
    assert not objective.needs_source and objective.images_of_regularisers(2) == 4
    first, second = objective.regularisers(pair, 2, 4, seeded(5))  # an anchor step, and one with path length
    assert (set(first), set(second)) == ({"path_length"}, {"relation"})
    random, drawn = seeded(6), seeded(6)
    (losses,) = objective.regularisers(pair, 2, 5, random)
    latents = pair.with_noise(Latents(torch.randn(4, 16, generator=drawn)), drawn)
    maps = [list(x.features.values()) for x in (pair.source(latents), pair.adapted(latents))]
    levels = torch.randint(len(maps[0]), (4,), generator=drawn).tolist()
    torch.testing.assert_close(losses["relation"], 1000 * published_relation_loss(*maps, levels))
    with pytest.raises(ValueError, match=r"relation_latents=2: each image is compared with two others"):
        CDCConfig(relation_latents=2)


def test_mode_seeking_has_free_latents_on_anchor_steps_too(pair, features, discriminator, monkeypatch):
    objective = LFSObjective(LFSConfig.paper(), REAL, 16, discriminator=discriminator, features=features)
    seen = []
    honest = pair.adapted
    monkeypatch.setattr(pair, "adapted", lambda latents, **options: seen.append(latents) or honest(latents, **options))
    list(objective.regularisers(pair, 8, 0, seeded(5)))
    z = seen[-1].require_z()
    assert len(z) == 32 and torch.cdist(z, objective.anchors.anchors).min() > 1  # near one they would be .4 away


def test_clusters_by_a_perceptual_distance(features, discriminator):
    class Brightness(torch.nn.Module):  # the vector of a picture is its mean
        def spatial(self, images, size=None):
            return images.mean((1, 2, 3))[:, None]

        def parameters(self, recurse=True):
            return iter([torch.zeros(1)])

    real = torch.tensor([-0.8, 0.0, 0.7])[:, None, None, None].expand(3, 3, 32, 32)
    options = {"discriminator": discriminator, "features": features}
    objective = LFSObjective(LFSConfig.paper(), real, 16, perception=Brightness(), **options)
    images = torch.tensor([0.5, -0.1, -0.9, 0.3])[:, None, None, None].expand(4, 3, 32, 32)
    assert objective.clusters(images).tolist() == [2, 1, 0, 1]


def test_a_cluster_of_one_picture_is_left_out():
    to_references = torch.tensor([[0.0, 1], [0, 1], [1, 0]])
    pairwise = torch.tensor([[0.0, 0.5, 9], [0.5, 0, 9], [9, 9, 0]])
    assert intra_cluster_distance(to_references, pairwise) == 0.5  # not .25
    assert intra_cluster_distance(to_references[1:], pairwise[1:, 1:]) == 0  # no cluster has a pair


# --------------------------------------------------------------------------------------------------------------- noise


def test_adapted_picture_and_source_share_fresh_noise(pair):
    random = seeded(2)
    plain = Latents(torch.randn(2, 16, generator=random))
    latents = pair.with_noise(plain, random)
    adapted, again, source = pair.adapted(latents), pair.adapted(latents), pair.source(latents)
    assert torch.equal(adapted.images, again.images)
    with pair.bank.using({}):
        torch.testing.assert_close(pair.adapted(latents).images, source.images)  # the same maps
        assert not torch.allclose(pair.adapted(plain).images, source.images)  # not the stored ones
    other = pair.adapted(pair.with_noise(plain, random)).images
    assert not torch.allclose(other, adapted.images)  # drawn anew
    singly = pair.one_by_one(latents, 8)  # a picture's noise does not depend on the batch
    torch.testing.assert_close(singly.images, adapted.images, rtol=1e-4, atol=1e-5)
    assert torch.equal(singly.noise, latents.noise)
    torch.testing.assert_close(pair.body(adapted.ws, adapted), adapted.images)  # what AdvAug perturbs
    assert Pair(pair.generator, pair.bank).with_noise(plain, random) is plain


def test_networks_without_noise_maps_are_refused():
    with pytest.raises(ValueError, match=r"noise='random': a GPGANGenerator has no noise maps; use noise='const'"):
        Pair(GPGANGenerator((8, 8, 8, 6, 4), num_classes=3, z_dim=6, embedding_dim=4), None, fresh_noise=True)
    with pytest.raises(ValueError, match=r"unknown noise 'fresh'; known: const, random"):
        TrainingConfig("x", noise="fresh")


def test_a_run_with_fresh_noise_resumes_exactly(tmp_path, features):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=seeded(4))

    def trainer(folder, **more):
        generator = tiny_mobile()
        settings = {"max_train_steps": 4, "train_batch_size": 2, "checkpointing_steps": 2, "sample_steps": 0}
        objective = LFSObjective(LFSConfig.few_images(), images.float() / 127.5 - 1, 16, features=features)
        config = TrainingConfig(str(tmp_path / folder), **settings, **{"noise": "random", **more})
        torch.manual_seed(0)
        return Trainer(generator, LeFTAdapter.for_model(generator), objective, images, config, Accelerator(cpu=True))

    whole = trainer("whole").train().state_dict()
    trainer("killed").train(stop_after=2)
    with pytest.raises(ValueError, match="noise"):
        trainer("killed", noise="const").train()
    resumed = trainer("killed").train().state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
