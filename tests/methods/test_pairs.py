"""Pairs: the colours that follow, the places that count, which steps learn from them, and the choice of a method."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.tensors import seeded_normal

from fewshot_gan.adapters import AdapterBank, LeFTAdapter
from fewshot_gan.methods import choose as choosing
from fewshot_gan.methods.cdc import relation_loss
from fewshot_gan.methods.diversity import contrastive_loss
from fewshot_gan.methods.objective import Batch
from fewshot_gan.methods.pair import Pair
from fewshot_gan.methods.pairs import (
    CELLS,
    FINE,
    ColourMap,
    PairsConfig,
    PairsObjective,
    counterpart_quality,
    figure_share,
    landmark_share,
    landmark_weights,
    pair_distance,
    plain_cells,
    sure_cells,
)
from fewshot_gan.methods.views import Views
from fewshot_gan.models.layers import as_ws

REAL = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
LANDMARKS = {
    "left_eye_outer": [22, 15],
    "left_eye_inner": [18, 15],
    "right_eye_outer": [10, 15],
    "right_eye_inner": [14, 15],
    "nose": [16, 20],
}


def heads(colours, size=64, ground=1.0):
    """Squares of one colour on a flat ground, `[K, 3, size, size]`."""
    pictures = torch.full((len(colours), 3, size, size), ground)
    for picture, colour in zip(pictures, colours, strict=True):
        picture[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = torch.tensor(colour)[:, None, None]
    return pictures


COLOURS = [(-0.8, -0.8, -0.8), (0.2, 0.0, -0.2), (0.6, 0.5, 0.4), (-0.3, 0.1, 0.5)]


def test_a_colour_map_finds_which_colours_follow():
    source = torch.cat([x.expand(1, 3, 64, 64) for x in torch.tensor(COLOURS)[:, :, None, None].split(1)])
    look = heads([[0.5 * value + 0.2 for value in colour] for colour in COLOURS])
    colours = ColourMap(source, look)
    middle = slice(FINE // 4 + 1, 3 * FINE // 4 - 1)
    assert 0.4 < colours.slope[middle, middle].min() and colours.slope[middle, middle].max() <= 0.5  # shrunk a little
    assert colours.slope[0].abs().max() == 0 and colours.slope[:, -1].abs().max() == 0  # a ground follows nothing
    new = torch.tensor((0.0, 0.9, -0.5))[None, :, None, None].expand(1, 3, 64, 64)
    predicted = colours.predict(new)[0, :, FINE // 2, FINE // 2]
    assert torch.allclose(predicted, torch.tensor((0.2, 0.65, -0.05)), atol=0.06)
    assert torch.allclose(colours.predict(new)[0, :, 0, 0], torch.ones(3))
    painted = colours.recoloured(look[:1], source[:1], new)
    assert torch.allclose(painted[0, :, 32, 32], torch.tensor((0.2, 0.65, -0.05)), atol=0.08)
    assert torch.equal(painted[0, :, 0], look[0, :, 0])  # the ground stays
    figure = colours.weight[CELLS // 2, CELLS // 2]
    assert colours.weight[0, 0] == figure > 1  # a large ground takes no weight from the figure
    right, wrong = heads([predicted.tolist()]), heads([(0.9, -0.9, 0.9)])
    assert colours.distance(right, new) < 0.05 < 0.3 < colours.distance(wrong, new)


def test_a_ground_alone_keeps_a_bounded_weight():
    """All of the figure shows details, so no cell of it is sure."""
    look = heads(COLOURS)
    look[:, :, 16:48, 16:48] = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    colours = ColourMap(look, look)
    assert colours.weight.isfinite().all() and 0 < colours.weight.mean() < 11
    distant = colours.distance(torch.zeros_like(look), look)
    assert 0 < distant < 11


def test_figure_and_ground():
    share = figure_share(heads(COLOURS))
    assert share[CELLS // 2, CELLS // 2] == 1 and share[0].max() == 0
    figure, ground = sure_cells(share)
    assert figure[CELLS // 2, CELLS // 2] == 1 and ground[CELLS // 2, CELLS // 2] == 0
    assert figure[0, 0] == 0 and ground[0, 0] == 1
    assert figure[CELLS // 2, CELLS // 4] == ground[CELLS // 2, CELLS // 4] == 0  # at the side of the figure
    noisy = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert figure_share(noisy).min() == 1  # without a flat ground everything is figure
    assert sure_cells(torch.ones(CELLS, CELLS))[0].min() == 1


def test_cells_with_details_say_nothing_of_colours():
    pictures = heads(COLOURS)
    pictures[:, :, 20:24, 20:24] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)  # one cell
    plain = plain_cells(pictures)
    assert plain[5, 5] < 0.01 and plain[7, 7] == 1
    near = landmark_share(LANDMARKS, 32, CELLS)
    assert near.max() <= 1 and near[7, 5] > 0.9 and near[0, 0] < 0.01
    assert landmark_share(None, 32, CELLS).max() == 0
    weight = ColourMap(pictures, pictures, near).weight
    assert weight[7, 5] < 0.2 * weight[8, 8] and weight[5, 5] < 0.01


def test_eyes_and_mouth_count_more():
    weights = landmark_weights(LANDMARKS, 32, 16, 4.0)[0, 0]
    assert weights.mean() == pytest.approx(1)
    assert weights[7, 5] > 2 * weights[0, 0] and weights[11, 8] > 2 * weights[0, 0]  # an eye and the mouth
    assert landmark_weights(None, 32, 8, 4.0).unique().tolist() == [1.0]
    assert landmark_weights(LANDMARKS, 32, 8, 0.0).unique().tolist() == [1.0]


class OneMap:
    """A feature network whose maps are the pictures themselves."""

    def __call__(self, images, blocks):
        return [images for _ in blocks]


def test_pair_distance_is_weighted_and_relative():
    target, image = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    image[..., 0, 0] = 0.0
    even = pair_distance(OneMap(), image, target, lambda side: torch.ones(1, 1, side, side))
    assert even.item() == pytest.approx(1 / 64)
    heavy = torch.ones(1, 1, 8, 8)
    heavy[..., 0, 0] = 10.0
    assert pair_distance(OneMap(), image, target, lambda side: heavy).item() == pytest.approx(10 / 64)
    assert pair_distance(OneMap(), 2 * image, 2 * target, lambda side: heavy).item() == pytest.approx(10 / 64)


def test_quality_goes_from_the_mean_face_to_the_picture(features):
    mean = seeded_normal(1, 3, 32, 32, seed=1).clamp(-1, 1)
    between = (REAL + mean) / 2
    assert counterpart_quality(features, REAL, REAL, mean).tolist() == [1.0] * 3
    assert counterpart_quality(features, REAL, mean.expand(3, -1, -1, -1), mean).tolist() == [0.0] * 3
    quality = counterpart_quality(features, REAL, between, mean)
    assert 0.2 < quality.min() and quality.max() < 1


@pytest.fixture
def pair(mobile):
    bank = AdapterBank(mobile.requires_grad_(False))
    bank.add("training", LeFTAdapter.for_model(mobile).requires_grad_(True))
    bank.activate({"training": 1.0})
    return Pair(mobile, bank)


@pytest.fixture
def build(features, mobile):
    codes = mobile.mapping(seeded_normal(3, 16, seed=3)).detach()[:, 0]
    with torch.no_grad():
        counterparts = mobile(as_ws(codes, mobile.num_ws, mobile.w_dim), latent_space="w+").clamp(-1, 1)

    def make(quality=(0.5, 0.0, 0.5), **changes):
        config = replace(PairsConfig.pairs(), **{"pair_layer": 2, "pair_weight": 2.0} | changes)
        options = {
            "counterparts": counterparts,
            "quality": torch.tensor(quality),
            "landmarks": LANDMARKS,
        }
        return PairsObjective(config, REAL, codes=codes, w_std=torch.ones(16), features=features, steps=10, **options)

    return make


def batch_at(objective, pair, step):
    random = torch.Generator().manual_seed(step)
    latents = objective.draw(pair, 3, step, random)
    drawn, source = pair.adapted(latents), pair.source(latents)
    views = Views(drawn.images, drawn.images), Views(REAL, REAL)
    batch = Batch(step, step / 10, random, latents, drawn, *views, source=source, source_view=source.images)
    batch.fake_features = objective.observe(drawn.images, objective.levels)
    batch.real_features = objective.observe(REAL, objective.levels)
    batch.source_features = objective.observe(source.images, objective.source_levels)
    return batch


def test_steps_of_pairs_mix_latents_and_learn_the_picture(build, pair, mobile):
    objective = build(pair_start=0.4, pair_every=2, pair_pull=0.0)
    assert [step for step in range(10) if objective.draws_pairs(step, step / 10)] == [4, 6, 8]
    first = batch_at(objective, pair, 1)
    assert first.latents.origin is None
    assert "colour_map" in (losses := objective.generator_losses(first)) and "pairs" not in losses
    later = batch_at(objective, pair, 4)
    origin = later.latents.origin
    assert set(origin.tolist()) <= {0, 2}  # the counterpart of quality 0 is left out
    codes = as_ws(objective._required_codes()[origin], mobile.num_ws, mobile.w_dim)
    assert torch.equal(later.latents.w[:, :2], codes[:, :2]) and not torch.equal(later.latents.w[:, 2:], codes[:, 2:])
    losses = objective.generator_losses(later)
    assert {"pairs", "coarse", "colour_map"} <= set(losses)
    whole = build(pair_start=0.4, pair_every=2, pair_pull=0.0, pair_others=1.0).generator_losses(
        batch_at(objective, pair, 4)
    )
    assert losses["statistics"].item() == pytest.approx(
        objective.config.pair_others * whole["statistics"].item(), rel=1e-4
    )
    sum(losses.values()).backward()
    trained = pair.bank.adapters["training"]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


def test_too_few_counterparts_are_refused(build):
    with pytest.raises(ValueError, match=r"draws no faces like these pictures \(quality 0.50, 0.00, 0.00.*large_gap"):
        build(quality=(0.0, 0.5, 0.0))


def test_dcl_is_the_cross_entropy_of_cosines():
    source, target = seeded_normal(4, 3, 2, 2, seed=1), seeded_normal(4, 3, 2, 2, seed=2)
    cosines = torch.nn.functional.cosine_similarity(
        target.flatten(1)[:, None].double(), source.flatten(1)[None].double(), dim=2
    )
    wanted = -(cosines.diag() / 0.07 - (cosines / 0.07).logsumexp(1)).mean()
    assert contrastive_loss([source], [target]).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert contrastive_loss([source], [source]) < contrastive_loss([source], [target])
    assert contrastive_loss([source[:1]], [target[:1]]).item() == 0


def test_dcl_replaces_the_relation_loss(build, pair):
    own, dcl = build(), build(diversity="dcl", dcl_weight=0.5)
    losses = own.generator_losses(batch_at(own, pair, 1))
    assert "relation" in losses and not {"dcl", "dcl_d"} & set(losses)
    batch = batch_at(dcl, pair, 1)
    losses = dcl.generator_losses(batch)
    assert "relation" not in losses and {"dcl", "dcl_d"} <= set(losses)
    names = list(batch.drawn.features)
    wanted = contrastive_loss([batch.source.features[n] for n in names], [batch.drawn.features[n] for n in names])
    assert losses["dcl"].item() == pytest.approx(0.5 * wanted.item(), rel=1e-5)
    assert relation_loss([batch.source.images], [batch.source.images]).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="diversity='all': choose one of own, dcl"):
        build(diversity="all")


def squares(places, size=256):
    """Pictures of dark squares on white, one for each list of places (top, left)."""
    pictures = torch.ones(len(places), 3, size, size)
    for picture, corners in zip(pictures, places, strict=True):
        for top, left in corners:
            picture[:, top : top + 64, left : left + 64] = -0.5
    return pictures


def test_layouts_choose_the_method(monkeypatch):
    """The base draws two squares side by side, a little here or there."""
    from fewshot_gan.training import choice as training

    class Pipe:
        generator = SimpleNamespace(has_styles=True, device=torch.device("cpu"))

    random = torch.Generator().manual_seed(0)
    moved = torch.randint(-24, 25, (22, 2), generator=random).tolist()
    own = squares([[(96 + y, 40 + x), (96 + y, 150 + x)] for y, x in moved[:16]])
    monkeypatch.setattr(choosing, "own_pictures", lambda pipe, device: own)
    monkeypatch.setattr(training, "load_features", lambda **kwargs: Positions())

    def choose(pictures):
        return training.choose_for(Pipe(), ((pictures + 1) * 127.5).round().byte())

    alike = squares([[(96 + y, 40 + x), (96 + y, 150 + x)] for y, x in moved[16:]])
    choice = choose(-alike)  # in other colours
    assert (choice.method, choice.options) == ("lfs_gan", {"preset": "strokes", "adapter": "lora"})
    assert 0.5 < choice.scene < 1.45
    stripes = 0.3 * (0.9 * (torch.arange(256)[:, None] + torch.arange(256))).sin()
    choice = choose((0.6 * alike + stripes).clamp(-1, 1))
    assert (choice.method, choice.options) == ("lfs_gan", {"preset": "pattern", "adapter": "lora"})
    assert "regular pattern" in choice.reason
    other = squares([[(8 + y, 96 + x)] for y, x in [(0, 0), (2, 1), (1, 3), (3, 2)]])
    choice = choose(other)
    assert (choice.method, choice.options) == ("pairs", {"preset": "pairs", "real_zoom": 1.25})
    assert 1.45 < choice.scene < 1.85 and choice.mixture < 1
    monkeypatch.setattr(choosing, "OTHER_FACES", choice.scene - 0.01)
    choice = choose(other)
    assert (choice.method, choice.options) == ("d3t", {"preset": "large_gap", "adapter": "lora", "real_zoom": 1.5})
    assert "unlike" in choice.reason
    mixed = torch.cat([other[:2], squares([[(180, 8)], [(180, 180), (8, 8)]]), -own[:1]])
    monkeypatch.setattr(choosing, "SAME_SCENE", 0.0)
    monkeypatch.setattr(choosing, "MIXED", choose(mixed).mixture - 0.1)
    choice = choose(mixed)
    assert choice.method == "d3t" and choice.mixture > choose(other).mixture and "differ much" in choice.reason


class Positions:
    """A feature network whose maps are reduced pictures, with one channel more: a constant."""

    def __call__(self, images, levels):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 16)
        return [torch.cat([small, torch.full_like(small[:, :1], 0.1)], 1) for _ in levels]
