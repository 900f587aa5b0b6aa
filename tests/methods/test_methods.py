"""Losses against what the mathematics says: loops, closed forms, invariances."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from helpers.tensors import seeded_normal
from torch.nn import functional as F

from fewshot_gan.adapters import AdapterBank, LeFTAdapter
from fewshot_gan.methods.cdc import AnchorSampler, CDCConfig, CDCObjective, PatchHead, relation_loss
from fewshot_gan.methods.d3t import D3TConfig
from fewshot_gan.methods.finetune import FinetuneConfig, FinetuneObjective
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective, assign_clusters, mode_seeking_loss
from fewshot_gan.methods.losses import (
    PathLength,
    hinge_d_loss,
    hinge_g_loss,
    logistic_d_loss,
    logistic_g_loss,
    r1_penalty,
)
from fewshot_gan.methods.objective import Batch, Views
from fewshot_gan.methods.pair import Latents, Pair
from fewshot_gan.methods.statistics import (
    CONTENT_LEVELS,
    colour_distance,
    content_distance,
    moment_distance,
    self_similarity,
    sliced_wasserstein,
    structure_distance,
)
from fewshot_gan.models.projected import ProjectedDiscriminator


def random_state(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ adversarial losses


def test_adversarial_losses_at_known_points():
    zero, two = torch.zeros(3, 1), torch.full((3, 1), 2.0)
    assert float(logistic_g_loss(zero)) == pytest.approx(math.log(2))
    assert float(logistic_d_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(logistic_g_loss(two)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(logistic_d_loss(two, -two)) == pytest.approx(2 * math.log(1 + math.exp(-2)))
    assert float(hinge_g_loss(two)) == -2
    assert float(hinge_d_loss(zero, zero)) == 2
    assert float(hinge_d_loss(two, -two)) == 0
    assert float(hinge_d_loss(-two, two)) == 6


def test_r1_of_a_linear_discriminator():
    a, x = seeded_normal(3, 4, 4), seeded_normal(5, 3, 4, 4, seed=1)
    got = r1_penalty(lambda x: (x * a).sum((1, 2, 3)), x, weight=3.0)
    torch.testing.assert_close(got, 1.5 * a.square().sum())
    half = r1_penalty(lambda x: (x.square() / 2).sum((1, 2, 3)), x, weight=2.0)  # the gradient is x itself
    torch.testing.assert_close(half, x.square().sum((1, 2, 3)).mean())
    assert not x.requires_grad


def test_r1_reaches_the_discriminators_weights(discriminator):
    r1_penalty(discriminator, seeded_normal(2, 3, 32, 32)).backward()
    gradients = [p.grad for n, p in discriminator.named_parameters() if n.endswith("weight")]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


# ------------------------------------------------------------------------------------------------------- mode seeking


def mode_seeking_by_loops(z, w, images, features, clusters):
    total, used = 0.0, 0
    for cluster in clusters.unique():
        members = (clusters == cluster).nonzero().flatten().tolist()
        used += len(members) > 1
        for n, i in enumerate(members):
            for j in members[n + 1 :]:
                dz, dw = (z[i] - z[j]).abs().mean(), (w[i] - w[j]).abs().mean()
                maps = sum((f[i] - f[j]).abs().mean() for f in features) / len(features)
                total += dw / dz + maps / dw + (images[i] - images[j]).abs().mean() / dw
    return 1 / (total / used + 1e-5)


@pytest.fixture
def samples():
    return (
        seeded_normal(6, 8),
        seeded_normal(6, 5, seed=1),
        seeded_normal(6, 3, 8, 8, seed=2),
        [seeded_normal(6, 4, 4, 4, seed=3), seeded_normal(6, 2, 8, 8, seed=4)],
    )


@pytest.mark.parametrize("clusters", [[0] * 6, [0, 1, 0, 1, 0, 2], [3, 3, 7, 7, 7, 7], [0, 1, 2, 3, 4, 0]])
def test_mode_seeking_equals_loops(samples, clusters):
    clusters = torch.tensor(clusters)
    torch.testing.assert_close(mode_seeking_loss(*samples, clusters), mode_seeking_by_loops(*samples, clusters))


def test_mode_seeking_without_a_pair_is_zero(samples):
    z, w, images, features = samples
    images.requires_grad_(True)
    loss = mode_seeking_loss(z, w, images, features, torch.arange(6))
    loss.backward()
    assert loss.item() == 0 and not images.grad.any()


def test_mode_seeking_ignores_the_order(samples):
    z, w, images, features = samples
    clusters, order = torch.tensor([0, 1, 0, 1, 0, 2]), torch.tensor([4, 2, 5, 0, 1, 3])
    permuted = mode_seeking_loss(z[order], w[order], images[order], [f[order] for f in features], clusters[order])
    torch.testing.assert_close(permuted, mode_seeking_loss(*samples, clusters))


def test_mode_seeking_prefers_spread(samples):
    z, w, images, features = samples
    clusters = torch.zeros(6, dtype=torch.long)
    assert mode_seeking_loss(z, w, 2 * images, features, clusters) < mode_seeking_loss(z, w, images, features, clusters)


def test_clusters_are_the_nearest_by_angle():
    references, images = seeded_normal(4, 7), seeded_normal(9, 7, seed=1)
    want = [max(range(4), key=lambda k: float(F.cosine_similarity(x, references[k], dim=0))) for x in images]
    assert assign_clusters(images * 5, references).tolist() == want


# ---------------------------------------------------------------------------------------------- anchors, patches, path


def test_anchors():
    sampler = AnchorSampler(3, 16, every=4, sigma=0.1, seed=0)
    assert [s for s in range(9) if sampler.is_anchor_step(s)] == [0, 4, 8]
    near, free = sampler.sample(512, 4, random_state()), sampler.sample(512, 5, random_state())
    assert near.shape == free.shape == (512, 16)
    distance = torch.cdist(near, sampler.anchors)
    assert set(distance.argmin(1).tolist()) == {0, 1, 2}
    residual = near - sampler.anchors[distance.argmin(1)]
    assert residual.std() == pytest.approx(0.1, rel=0.05) and free.std() == pytest.approx(1, rel=0.05)  # n = 8192
    assert torch.equal(near, sampler.sample(512, 8, random_state()))
    assert torch.equal(sampler.anchors, AnchorSampler(3, 16, seed=0).anchors)
    assert not torch.equal(sampler.anchors, AnchorSampler(3, 16, seed=1).anchors)
    assert not any(AnchorSampler(3, 16, every=0).is_anchor_step(s) for s in range(9))


def test_patch_head_is_an_equalised_convolution():
    torch.manual_seed(0)
    head, x = PatchHead(6), seeded_normal(2, 6, 5, 5)
    want = F.conv2d(x, head.weight / math.sqrt(54), padding=1).reshape(2, 25)
    torch.testing.assert_close(head(x), want)


def test_the_patch_head_depends_on_the_seed_alone(features, discriminator):
    heads = []
    for seed, others in ((0, 5), (0, 6), (1, 6)):
        torch.manual_seed(others)
        options = {"discriminator": deepcopy(discriminator), "features": features, "seed": seed}
        heads.append(CDCObjective(CDCConfig.paper(), REAL, 16, **options).patch_head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


def test_path_length_of_a_linear_generator():
    """x = Σ_l A_l w_l, so that Jᵀy has the rows A_lᵀ y."""
    a, decay = seeded_normal(4, 3 * 8 * 8, 5), 0.25  # [L, pixels, D]
    ws = seeded_normal(2, 4, 5, seed=1).requires_grad_(True)
    module = PathLength(decay)
    images = torch.einsum("lpd,bld->bp", a, ws).reshape(2, 3, 8, 8)
    got = module(images, ws, random_state(7))
    y = seeded_normal(2, 3, 8, 8, seed=7).flatten(1) / 8
    lengths = torch.einsum("lpd,bp->bld", a, y).square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(module.mean, decay * lengths.mean())
    torch.testing.assert_close(got, (lengths - module.mean).square().mean())
    module(images, ws, random_state(7))
    torch.testing.assert_close(module.mean, (1 - (1 - decay) ** 2) * lengths.mean())


# ---------------------------------------------------------------------------------------------------------- statistics


def wasserstein(a, b):
    return sliced_wasserstein(a, b, random_state())


@pytest.mark.parametrize("distance", [moment_distance, wasserstein, content_distance, colour_distance])
def test_distances_are_zero_on_equal_input_and_teach_the_fake_side_alone(distance):
    x, y = (
        seeded_normal(3, 3, 8, 8),
        2 * seeded_normal(3, 3, 8, 8, seed=1) + torch.tensor([1.0, 2.0, 3.0])[None, :, None, None],
    )
    assert float(distance(x, x.clone())) == pytest.approx(0, abs=1e-6)
    fake, real = x.clone().requires_grad_(True), y.clone().requires_grad_(True)
    loss = distance(fake, real)
    loss.backward()
    assert loss.item() > 0.01 and torch.isfinite(fake.grad).all() and fake.grad.any()
    if distance is not colour_distance:  # its callers pass data there
        assert real.grad is None
    closer = distance(x + 0.9 * (y - x), y)
    assert closer < loss


def test_moment_distance_is_relative():
    real = seeded_normal(4, 5, 8, 8) + 3
    assert float(moment_distance(2 * real, real)) == pytest.approx(2, rel=1e-5)  # means and deviations both double
    assert float(moment_distance(20 * real, 10 * real)) == pytest.approx(2, rel=1e-5)
    shift = torch.arange(5.0)[None, :, None, None]
    want = 2 / float(real.mean((0, 2, 3)).abs().mean())
    assert float(moment_distance(real + shift, real)) == pytest.approx(want, rel=1e-4)


def test_colour_distance_sees_saturation():
    grey = seeded_normal(2, 1, 8, 8).expand(-1, 3, -1, -1)
    tint = grey + torch.tensor([0.3, 0.0, -0.3])[None, :, None, None]
    chroma = math.sqrt((0.3**2 + 0.3**2) / 3) - 1e-4  # grey counts as √1e-8
    want = 0.2 + 0 + chroma
    assert float(colour_distance(tint, grey)) == pytest.approx(want, rel=1e-3)


def test_sliced_wasserstein_ignores_positions():
    fake, real = seeded_normal(2, 6, 8, 8), seeded_normal(2, 6, 8, 8, seed=1)
    order = torch.randperm(64, generator=random_state(3))
    shuffled = fake.flatten(2)[:, :, order].reshape(fake.shape).flip(0)
    torch.testing.assert_close(wasserstein(shuffled, real), wasserstein(fake, real))
    assert wasserstein(fake + 1, real) > wasserstein(fake, real)
    few = sliced_wasserstein(fake[:1], real, random_state(), num_positions=10)  # unequal numbers of positions
    assert torch.isfinite(few)


def test_content_is_layout_whatever_gain_offset_or_rotation_of_the_channels():
    x = seeded_normal(2, 5, 8, 8)
    rotation = torch.linalg.qr(seeded_normal(5, 5, seed=1)).Q
    for changed in (3 * x, x + seeded_normal(1, 5, 1, 1, seed=2), torch.einsum("dc,bchw->bdhw", rotation, x)):
        torch.testing.assert_close(self_similarity(changed), self_similarity(x), rtol=0, atol=1e-5)
    stretched = x * torch.tensor([5.0, 1, 1, 1, 1])[None, :, None, None]  # a gain per channel changes angles
    assert content_distance(stretched, x) > 0.01
    assert content_distance(x.flip(3), x) > 0.01
    s = self_similarity(x)
    torch.testing.assert_close(s.diagonal(dim1=1, dim2=2), torch.ones(2, 64))
    assert self_similarity(seeded_normal(1, 4, 40, 40)).shape == (1, 256, 256)


def test_structure_ignores_brightness_and_contrast_but_not_where_lines_are():
    x = seeded_normal(2, 3, 32, 32)
    assert float(structure_distance(0.5 * x + 0.2, x)) == pytest.approx(0, abs=1e-4)  # eps under the edge's root
    assert float(structure_distance(-x, x)) == pytest.approx(1, abs=1e-4)  # light inverted (½·2), lines in place
    moved = structure_distance(x.roll(5, 3).requires_grad_(True), x)
    assert moved > 1.5  # nothing correlates: 1 + ½ + ½
    flat = torch.zeros_like(x).requires_grad_(True)  # no edge at all: no NaN
    (gradient,) = torch.autograd.grad(structure_distance(flat, x), flat)
    assert torch.isfinite(gradient).all()


# ------------------------------------------------------------------------------------------------------------ projected


def test_projected_discriminator_shapes_and_calibration():
    widths, convs = {0: 4, 3: 6}, {0: 2, 3: 1}
    torch.manual_seed(0)
    d = ProjectedDiscriminator(widths, convs, seed=1).eval()  # eval: power iterations stand still
    x = {0: seeded_normal(2, 4, 16, 16), 3: seeded_normal(2, 6, 8, 8, seed=1)}
    assert [tuple(y.shape) for y in d(x)] == [(2, 4, 4), (2, 4, 4)]
    want = d({k: v / v.std() for k, v in x.items()})
    d.calibrate(x)
    for got, logits in zip(d(x), want, strict=True):
        torch.testing.assert_close(got, logits)
    assert all(not n.endswith("projection") for n, _ in d.named_parameters())
    again = ProjectedDiscriminator(widths, convs, seed=1)
    assert all(torch.equal(again.heads[k].projection, d.heads[k].projection) for k in ("0", "3"))


# ------------------------------------------------------------------------------------------------------------ objective


REAL = (seeded_normal(4, 3, 32, 32, seed=9) * 0.3).clamp(-1, 1)


def build(config, features, discriminator=None, cls=LFSObjective, **options):
    torch.manual_seed(0)
    options |= {"z_dim": 16} if issubclass(cls, CDCObjective) else {}
    return cls(config, REAL, discriminator=discriminator, features=features, **options)


def a_batch(objective, pair, step, latents=None):
    """What the trainer hands to an objective, without augmentation."""
    random = random_state(step)
    latents = latents or objective.draw(pair, 3, step, random)
    drawn, source = pair.adapted(latents), pair.source(latents)
    fake, real = Views(drawn.images, drawn.images), Views(REAL[:3], REAL[:3])
    return Batch(
        *(step, 0.0, random, latents, drawn, fake, real, source, source.images),
        objective.observe(drawn.images, objective.levels),
        objective.observe(REAL[:3], objective.levels),
        objective.observe(source.images, CONTENT_LEVELS),
    )


@pytest.fixture
def pair(mobile, perturbed):
    """A tiny generator under a LeFT adapter that is not the identity."""
    bank = AdapterBank(mobile.requires_grad_(False))
    bank.add("training", perturbed(LeFTAdapter.for_model(mobile)))
    bank.activate({"training": 1.0})
    return Pair(mobile, bank)


def losses_of(objective, pair, step):
    batch = a_batch(objective, pair, step)
    d, g = objective.discriminator_losses(batch.detach()), objective.generator_losses(batch)
    r = {k: v for losses in objective.regularisers(pair, 2, step, random_state()) for k, v in losses.items()}
    adapter = pair.bank.adapters["training"].requires_grad_(True)
    adapter.zero_grad()
    sum(g.values()).backward()
    gradients = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(x).all() for x in gradients) and any(x.any() for x in gradients)
    assert all(torch.isfinite(v) for v in (*d.values(), *g.values(), *r.values()))
    return set(d), set(g), set(r)


def test_few_images_preset(features, pair):
    objective = build(LFSConfig.few_images(), features)
    terms = {"g", "statistics", "wasserstein", "colour", "content", "structure"}
    for step in (0, 1):
        assert losses_of(objective, pair, step) == ({"d"}, terms, set())


def test_paper_preset(features, discriminator, pair):
    objective = build(LFSConfig.paper(), features, discriminator)
    assert losses_of(objective, pair, 0) == ({"d", "r1"}, {"g"}, {"path_length", "mode_seeking"})
    assert losses_of(objective, pair, 1) == ({"d"}, {"g"}, {"mode_seeking"})
    assert not objective.observe(REAL, objective.levels)  # no map of the frozen network is needed


@pytest.mark.parametrize("preset", ["paper", "few_images"])
def test_baselines(features, discriminator, pair, preset):
    plain = build(getattr(FinetuneConfig, preset)(), features, discriminator, FinetuneObjective)
    assert losses_of(plain, pair, 1) == ({"d"}, {"g"}, set())
    related = build(getattr(CDCConfig, preset)(), features, discriminator, CDCObjective)
    assert losses_of(related, pair, 1) == (
        ({"d"}, {"g"}, {"relation"}) if preset == "paper" else ({"d"}, {"g", "relation"}, set())
    )


def test_anchor_steps_use_the_image_head_and_others_the_patch_head(features, discriminator):
    objective = build(LFSConfig.paper(), features, discriminator)
    logits, maps = discriminator(REAL[:2], return_features=True)
    views = Views(REAL[:2], REAL[:2])
    torch.testing.assert_close(objective.logits(views, {}, 4)[0], logits)
    (patch,) = objective.logits(views, {}, 5)
    assert patch.shape == (2, 16)  # R/8 pixels a side
    torch.testing.assert_close(patch, objective.patch_head(maps["b8"]))


def test_free_latents_are_mixed_and_anchors_are_not(features, discriminator, pair):
    objective = build(CDCConfig(style_mixing=1.0), features, discriminator, CDCObjective)
    assert objective.draw(pair, 2, 4, random_state()).other is None
    mixed = objective.draw(pair, 2, 5, random_state())
    assert mixed.other is not None and 1 <= mixed.crossover < pair.generator.num_ws


def test_relation_loss_equals_loops():
    source, target = (
        [seeded_normal(4, 3, 5, 5), seeded_normal(4, 2, 2, 2, seed=1)],
        [seeded_normal(4, 3, 5, 5, seed=2), seeded_normal(4, 2, 2, 2, seed=3)],
    )

    def row(x, i):
        others = [j for j in range(4) if j != i]
        return torch.stack([F.cosine_similarity(x[i].flatten(), x[j].flatten(), dim=0) for j in others]).softmax(0)

    pairs = zip(source, target, strict=True)
    want = [(row(s, i) * (row(s, i) / row(t, i)).log()).sum() for s, t in pairs for i in range(4)]
    torch.testing.assert_close(relation_loss(source, target), sum(want) / 8)
    assert float(relation_loss(source, [3 * s for s in source])) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss([source[0][:2]], [target[0][:2]])) == 0  # a pair has one relation, whatever it is


def test_the_source_is_drawn_from_the_same_latents(pair):
    latents = pair.draw(2, random_state(), style_mixing=1.0)
    adapted, source = pair.adapted(latents), pair.source(latents)
    torch.testing.assert_close(pair.source(latents).images, source.images, rtol=0, atol=0)
    assert (adapted.images - source.images).abs().max() > 1e-3 and not source.images.requires_grad
    with pair.bank.using({}):
        torch.testing.assert_close(pair.adapted(latents).images, source.images, rtol=0, atol=0)
    w = source.ws[:, 0]
    torch.testing.assert_close(pair.source(Latents(w=w)).ws, w[:, None].expand(-1, pair.generator.num_ws, -1))


def test_freezing_the_lower_layers(features, discriminator, pair):
    """FreezeD: their weights stay, the others move."""
    for preset in ("paper", "few_images"):
        config = replace(getattr(FinetuneConfig, preset)(), freeze_d=1)
        objective = build(config, features, deepcopy(discriminator), FinetuneObjective)
        before = {k: v.clone() for k, v in objective.named_parameters()}
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], 0.1)
        sum(objective.discriminator_losses(a_batch(objective, pair, 1).detach()).values()).backward()
        optimizer.step()
        moved = {k for k, v in objective.named_parameters() if not torch.equal(v, before[k])}
        lower = (
            ("discriminator.b32.",) if preset == "paper" else tuple(f"discriminator.heads.{k}.convs.0." for k in (0, 2))
        )
        assert moved and not [k for k in moved if k.startswith(lower)]
        assert [k for k in before if k.startswith(lower)]
        if preset == "few_images":  # and of every head a convolution learns
            heads = {k.split(".")[2] for k in moved if ".convs." in k}
            assert heads == {k.split(".")[2] for k in before if ".convs." in k} and len(heads) > 2
    with pytest.raises(ValueError, match="freeze_d=9: this discriminator has 3 blocks; give 0 to 3"):
        build(FinetuneConfig(freeze_d=9), features, discriminator, FinetuneObjective)
    with pytest.raises(ValueError, match="freeze_d=9: the heads have 2 convolutions below their last; give 0 to 2"):
        build(replace(FinetuneConfig.few_images(), freeze_d=9), features, None, FinetuneObjective)


def test_the_frozen_network_is_neither_trained_nor_saved(features, discriminator):
    for objective in (build(LFSConfig.few_images(), features), build(LFSConfig.paper(), features, discriminator)):
        frozen = {t.data_ptr() for t in features.buffers()}
        assert not [n for n, t in objective.state_dict().items() if t.data_ptr() in frozen or "real_vectors" in n]
        assert list(objective.parameters())


@pytest.mark.parametrize(
    "config, option, value, least",
    [
        (FinetuneConfig, "r1_every", 0, 1),
        (FinetuneConfig, "path_length_every", 0, 1),
        (FinetuneConfig, "deepest_level", -1, 0),
        (LFSConfig, "mode_seeking_every", 0, 1),
        (LFSConfig, "mode_seeking_factor", 0, 1),
    ],
)
def test_options_out_of_range(config, option, value, least):
    with pytest.raises(ValueError, match=f"{option}={value}: give {least} or more"):
        replace(config.paper(), **{option: value})


@pytest.mark.parametrize(
    "config, weights",
    [
        (FinetuneConfig.few_images(), {"adversarial_weight": 0}),
        (FinetuneConfig.paper(), {"adversarial_weight": 0}),
        (CDCConfig.few_images(), {"adversarial_weight": 0, "relation_weight": 0}),
        (LFSConfig(), {"adversarial_weight": 0, "path_length_weight": 0, "mode_seeking_weight": 0}),
        (D3TConfig.abstract(), {"adversarial_weight": 0, "feature_weight": 0, "relation_weight": 0}),
    ],
)
def test_weights_that_teach_nothing(config, weights):
    with pytest.raises(ValueError, match="every weight is 0, so there is nothing to learn; give one, for example adv"):
        replace(config, **weights)
    for name in weights:  # each is enough
        assert replace(config, **{**weights, name: 1.0})
    assert replace(config, **weights, diversity="dcl") and replace(config, **weights, colour_weight=1.0)


def test_what_an_objective_needs(features, discriminator):
    with pytest.raises(ValueError, match="has no discriminator: use discriminator='projected'"):
        build(LFSConfig.paper(), features)
    for config in (LFSConfig.few_images(), LFSConfig.paper()):
        with pytest.raises(ValueError, match="compares features: pass features="):
            build(config, None, discriminator)
    with pytest.raises(ValueError, match="unknown discriminator 'both'; known: source, projected"):
        build(LFSConfig(discriminator="both"), features, discriminator)
