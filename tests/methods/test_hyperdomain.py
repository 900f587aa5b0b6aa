"""HyperDomainNet: every loss against numbers done by hand, domains between domains, and objectives that descend."""

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import tiny_mobile, tiny_stylegan2
from helpers.saved_models import tiny_clip

from fewshot_gan import metrics
from fewshot_gan.adapters import AdapterBank, DomainHyperNetwork, DomainVectorAdapter, LeFTAdapter
from fewshot_gan.features.encoders import load_encoder, templated
from fewshot_gan.inversion import PerceptualDistance
from fewshot_gan.methods import directional as losses
from fewshot_gan.methods import domains
from fewshot_gan.methods import hyperdomain as hd
from fewshot_gan.methods.hyperdomain import HyperDomainConfig, HyperDomainObjective, HyperNetworkObjective
from fewshot_gan.methods.pair import Latents, Pair
from fewshot_gan.methods.statistics import colour_distance, content_distance, moment_distance, structure_distance

TEMPLATES = ("{}", "a photo of {}", "the {}")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def unit(*shape, seed=0):
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_encoder(str(tiny_clip(tmp_path_factory.mktemp("clip"))))


@pytest.fixture(scope="module")
def second_clip(tmp_path_factory):
    return load_encoder(str(tiny_clip(tmp_path_factory.mktemp("clip"), seed=1, dim=16)))


# -------------------------------------------------------------------------------------------------------------- losses


def test_direction():  # spec test 8
    source, move = unit(3, 8), normal(1, 8, seed=1)
    targets = unit(1, 4, 8, seed=2)
    origins = targets - move  # every template is the same move
    for sign, want in ((1, 0.0), (-1, 2.0)):
        assert losses.direction_loss(source + sign * move, source, targets, origins).item() == pytest.approx(
            want, abs=1e-6
        )
    adapted, targets, origins = unit(3, 8, seed=3), unit(3, 4, 8, seed=4), unit(1, 4, 8, seed=5)
    by_hand = [1 - cosine(adapted[b] - source[b], (targets[b] - origins[0]).mean(0)) for b in range(3)]
    assert losses.direction_loss(adapted, source, targets, origins).item() == pytest.approx(sum(by_hand) / 3, abs=1e-6)


def test_direction_has_a_bounded_gradient_where_nothing_has_moved_yet():
    source, targets, origins = unit(2, 8), unit(1, 3, 8, seed=1), unit(1, 3, 8, seed=2)
    norms = {}
    for step in (0.0, 1e-6, 0.05, 0.5):
        adapted = (source + step * unit(2, 8, seed=3)).requires_grad_()
        loss = losses.direction_loss(adapted, source, targets, origins)
        (gradient,) = torch.autograd.grad(loss * 2, adapted)
        norms[step] = gradient.norm(dim=1).max().item()
        if step < losses.SHORTEST:
            assert norms[step] == pytest.approx(1 / losses.SHORTEST, rel=1e-3)  # the loss is linear there
        if step == 0:
            assert loss.item() == 1
    assert norms[0.5] <= 2.001


def test_indomain():
    same = unit(4, 8)
    assert losses.indomain_loss(same, same).item() == 0
    pair = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert losses.indomain_loss(*pair).item() == pytest.approx(0.25)
    adapted, source = unit(4, 8, seed=1), unit(4, 8, seed=2)
    total = sum((source[i] @ source[j] - adapted[i] @ adapted[j]).item() ** 2 for i in range(4) for j in range(i))
    assert losses.indomain_loss(adapted, source).item() == pytest.approx(2 / (4 * 3) * total, rel=1e-5)
    assert losses.indomain_loss(adapted[:1], source[:1]).item() == 0


def test_tt_direction_leaves_equal_domains_out():
    adapted, targets = unit(4, 8), unit(4, 3, 8, seed=1)
    t = targets.mean(1)

    def pair(i, j):
        return 1 - cosine(adapted[j] - adapted[i], t[j] - t[i])

    loops = [pair(i, j) for i in range(4) for j in range(i)]
    assert losses.tt_direction_loss(adapted, targets).item() == pytest.approx(sum(loops) / 6, abs=1e-6)
    targets = targets[[0, 1, 1, 3]]  # as published, this pair would add a constant 1 and no gradient
    t = targets.mean(1)
    loops = [pair(i, j) for i in range(4) for j in range(i) if (i, j) != (2, 1)]
    assert losses.tt_direction_loss(adapted, targets).item() == pytest.approx(sum(loops) / 5, abs=1e-6)
    alone = adapted.clone().requires_grad_()
    loss = losses.tt_direction_loss(alone, targets[[1, 1, 1, 1]])
    loss.backward()
    assert loss.item() == 0 and not alone.grad.any()


def test_global_within_and_reference():
    adapted, source, targets = unit(3, 8), unit(3, 8, seed=1), unit(1, 4, 8, seed=2)
    loops = [1 - cosine(x, targets[0].mean(0)) for x in adapted]
    assert losses.global_loss(adapted, targets).item() == pytest.approx(sum(loops) / 3, abs=1e-6)
    reference, projected = unit(3, 8, seed=3), unit(3, 8, seed=4)
    loops = [1 - cosine(adapted[b] - reference[b], source[b] - projected[b]) for b in range(3)]
    assert losses.within_loss(adapted, source, reference, projected).item() == pytest.approx(sum(loops) / 3, abs=1e-6)
    shift = normal(8, seed=5)
    assert losses.within_loss(source + shift, source, projected + shift, projected).item() == pytest.approx(0, abs=1e-6)
    loops = [1 - cosine(a, b) for a, b in zip(adapted, reference, strict=True)]
    assert losses.reference_loss(adapted, reference).item() == pytest.approx(sum(loops) / 3, abs=1e-6)


def test_offsets():  # spec test 8: 17 layers at 1024 px
    deltas = [torch.full((c,), 0.1) for c in [512] * 9 + [512, 256, 256, 128, 128, 64, 64, 32]]
    assert sum(d.numel() for d in deltas) == 6048
    assert losses.offsets_l2(deltas).item() == pytest.approx(0.17)
    assert losses.offsets_l1(deltas).item() == pytest.approx(1.7)
    assert losses.offsets_l1([-d for d in deltas]).item() == pytest.approx(1.7)


# ----------------------------------------------------------------------------------------------- operations on domains


def test_convex_hull():  # spec test 9
    x, templates = unit(5, 8), unit(5, 3, 8, seed=1)
    torch.testing.assert_close(losses.convex_hull(x, torch.eye(5)), x)
    alphas = losses.dirichlet_alphas(5, seeded(3))
    assert alphas.shape == (5, 5) and (alphas >= 0).all()
    torch.testing.assert_close(alphas.sum(1), torch.ones(5))
    assert torch.equal(alphas, losses.dirichlet_alphas(5, seeded(3)))
    mixed = losses.convex_hull(templates, alphas)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(5, 3))
    by_hand = sum(alphas[2, j] * templates[j, 1] for j in range(5))
    torch.testing.assert_close(mixed[2, 1], by_hand / by_hand.norm())


def test_dirichlet_concentration():
    """Var of one entry of Dirichlet(2/B × B) is (1/B)(1 − 1/B) / (2 + 1)."""
    draws = torch.cat([losses.dirichlet_alphas(8, seeded(i)) for i in range(400)])  # 3200 rows
    torch.testing.assert_close(draws.mean(0), torch.full((8,), 1 / 8), rtol=0, atol=0.02)  # 4 standard errors
    assert draws.var().item() == pytest.approx(1 / 8 * 7 / 8 / 3, rel=0.1)


def test_resample_moves_templates_and_input_alike():  # spec test 9
    x, templates = unit(64, 1, 32), unit(64, 1, 32, seed=1) * 0.05 + unit(64, 7, 32, seed=2)
    near_x, near = losses.resample([x, templates], seeded(), 0.95)
    for old, new in ((x, near_x), (templates, near)):
        torch.testing.assert_close(new.norm(dim=-1), torch.ones(new.shape[:2]))
        moved = F.cosine_similarity(new, old, dim=-1)
        assert moved.min() >= 0.95 - 1e-6 and moved.max() <= 1 + 1e-6 and moved.min() < 0.96 < 0.99 < moved.max()
        torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=0, atol=1e-5)  # one angle per domain
    steps, near_steps = (
        near_x - F.cosine_similarity(near_x, x, dim=-1)[..., None] * x,
        near - F.normalize(templates, dim=-1),
    )
    assert F.cosine_similarity(steps, near_steps, dim=-1).mean() > 0.8  # and one direction
    assert torch.equal(losses.resample([x], seeded(), 0.95)[0], near_x)
    torch.testing.assert_close(losses.resample([x], seeded(), 1.0)[0], x)


def test_domains_are_drawn_without_repetition():
    for batch in (2, 5, 12):
        picks = losses.draw_each(5, batch, seeded(batch)).tolist()
        counts = [picks.count(n) for n in range(5)]
        assert len(picks) == batch and max(counts) - min(counts) <= 1
    assert len({tuple(losses.draw_each(5, 2, seeded(i)).tolist()) for i in range(20)}) > 5


def test_crops_cut_both_pictures_at_the_same_place():
    a = normal(6, 3, 20, 20)
    first, second = losses.random_crops((a, 2 * a), 0.8, seeded())
    assert first.shape == (6, 3, 16, 16) and torch.equal(second, 2 * first)
    assert len({tuple(c[0, 0].tolist()) for c in (first[i] - a[i, :, :16, :16] for i in range(6))}) > 1
    assert losses.random_crops((a,), 1.0, seeded())[0] is a


# ------------------------------------------------------------------------------------------------------------- metrics


def test_quality_and_diversity_equal_loops():  # spec test 13
    images, texts = normal(5, 8), normal(7, 8, seed=1)
    quality = sum(cosine(a, b) for a in images for b in texts) / 35
    diversity = sum(1 - cosine(images[i], images[j]) for i in range(5) for j in range(i)) / 10
    assert metrics.clip_quality(images, texts) == pytest.approx(quality, abs=1e-6)
    assert metrics.clip_diversity(images) == pytest.approx(diversity, abs=1e-6)
    assert metrics.clip_diversity(images[:1].expand(4, -1)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="take both from one encoder"):
        metrics.clip_quality(images, texts[:, :4])
    with pytest.raises(ValueError, match="have no pair"):
        metrics.clip_diversity(images[:1])


# ---------------------------------------------------------------------------------------------------------- one domain


class Run:
    """A generator with an active adapter, and what a step of the engine does."""

    def __init__(self, generator, adapter=None):
        self.generator = generator.requires_grad_(False)
        self.adapter = adapter or DomainVectorAdapter.for_model(generator)
        self.bank = AdapterBank(generator)
        self.bank.add("training", self.adapter)
        self.bank.activate({"training": 1.0})
        self.pair = Pair(generator, self.bank)

    def losses(self, objective, seed=0, batch=3):
        return {k: v for part in objective.regularisers(self.pair, batch, 0, seeded(seed)) for k, v in part.items()}

    def train(self, objective, parameters, steps, rate=0.05, batch=3):
        """Totals of each step, on the same latents."""
        optimizer, totals = torch.optim.Adam(parameters, rate), []
        for _ in range(steps):
            optimizer.zero_grad()
            totals.append(0.0)
            for part in objective.regularisers(self.pair, batch, 0, seeded()):
                total = sum(part.values())
                total.backward()
                totals[-1] += total.item()
            optimizer.step()
        return totals


@pytest.fixture
def run(make_generator, perturbed):
    generator = make_generator()
    return Run(generator, perturbed(DomainVectorAdapter.for_model(generator)))


def test_source_and_adapted_share_latents_mixing_and_noise(make_generator, clip):  # spec tests 2 and 11, pitfall 1
    run = Run(make_generator())
    latents = run.pair.draw(3, seeded(), 1.0)
    assert latents.other is not None and 1 <= latents.crossover < run.generator.num_ws
    first = run.pair.adapted(latents).images
    assert torch.equal(run.pair.adapted(latents).images, first)
    torch.testing.assert_close(run.pair.source(latents).images, first, rtol=0, atol=1e-5)
    objective = HyperDomainObjective(replace(HyperDomainConfig.text(), style_mixing=1.0), clip, target="ink")
    loss = run.losses(objective)["direction"]
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-3)  # nothing has moved
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in run.adapter.parameters())


def test_text_terms_are_those_of_the_paper(run, clip, second_clip):
    weights = {"direction_weight": 1.0, "indomain_weight": 0.5, "global_weight": 2.0, "offsets_l2_weight": 3.0}
    config = HyperDomainConfig(**weights, offsets_l1_weight=0.25, style_mixing=0.0)
    encoders = [clip, second_clip]
    objective = HyperDomainObjective(config, encoders, target="Ink", origin="Photo", templates=TEMPLATES)
    assert not list(objective.parameters()) and not objective.state_dict()
    got = run.losses(objective)
    want = dict.fromkeys(("direction", "indomain", "global"), 0.0)
    latents = run.pair.draw(3, seeded(), 0.0)
    for encoder in encoders:  # the losses of encoders add up
        adapted, source = (encoder.image(draw(latents).images) for draw in (run.pair.adapted, run.pair.source))
        targets, origins = (templated(encoder, [text], TEMPLATES) for text in ("Ink", "Photo"))
        want["direction"] += losses.direction_loss(adapted, source, targets, origins)
        want["indomain"] += 0.5 * losses.indomain_loss(adapted, source)
        want["global"] += 2 * losses.global_loss(adapted, targets)
    deltas = list(run.adapter.parameters())
    want |= {"offsets_l2": 3 * losses.offsets_l2(deltas), "offsets_l1": 0.25 * losses.offsets_l1(deltas)}
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_text_training_descends_and_touches_the_adapter_alone(make_generator, clip):
    run = Run(make_generator())
    before = {k: v.clone() for k, v in run.generator.state_dict().items()}
    objective = HyperDomainObjective(HyperDomainConfig.text(), clip, target="ink drawing", templates=TEMPLATES)
    totals = run.train(objective, run.adapter.parameters(), 12)
    assert totals[0] == pytest.approx(1, abs=1e-3) and totals[-1] < 0.8
    assert all(torch.equal(v, before[k]) for k, v in run.generator.state_dict().items())
    assert all(p.grad is None for p in [*run.generator.parameters(), *clip.parameters()])


def test_any_adapter_may_learn_a_domain(make_generator, clip):
    torch.manual_seed(0)
    generator = make_generator()
    run = Run(generator, LeFTAdapter.for_model(generator))
    objective = HyperDomainObjective(HyperDomainConfig(), clip, target="ink", templates=TEMPLATES)
    totals = run.train(objective, run.adapter.parameters(), 8, rate=0.02)
    assert totals[-1] < 0.95 * totals[0]
    sized = HyperDomainObjective(HyperDomainConfig(offsets_l2_weight=1.0), clip, target="ink", templates=TEMPLATES)
    with pytest.raises(ValueError, match="are of domain vectors, and none acts"):
        run.losses(sized)


@pytest.fixture
def shown(run):
    """Pictures of a domain `[4, 3, 32, 32]`, and latents that are theirs."""
    latents = normal(4, run.generator.num_ws, 16, seed=9) * 0.5
    with torch.no_grad():
        images = run.pair.source(Latents(w=latents)).images
    return (images * 0.5 - 0.3).clamp(-1, 1), latents


def test_picture_terms_are_those_of_the_paper(run, shown, clip, second_clip, features):
    references, latents = shown
    config, encoders = replace(HyperDomainConfig.image(), style_mixing=0.0), [clip, second_clip]
    options = {"references": references, "reference_latents": latents, "features": features}
    objective = HyperDomainObjective(config, encoders, **options)
    parts = list(objective.regularisers(run.pair, 3, 0, seeded()))
    assert [set(part) for part in parts] == [{"direction", "clip_within"}, {"clip_ref", "l2", "perceptual"}]
    random = seeded()
    z = run.pair.draw(3, random, 0.0)
    picks = losses.draw_each(4, 3, random)
    want = dict.fromkeys(("direction", "clip_within", "clip_ref"), 0.0)
    drawn = run.pair.adapted(Latents(w=latents[picks])).images
    for encoder in encoders:
        adapted, source = (encoder.image(draw(z).images) for draw in (run.pair.adapted, run.pair.source))
        seen = encoder.image(references)
        projected = encoder.image(run.pair.source(Latents(w=latents)).images)
        centres = [F.normalize(x.mean(0), dim=0)[None, None] for x in (seen, projected)]
        want["direction"] += losses.direction_loss(adapted, source, *centres)
        want["clip_within"] += 0.5 * losses.within_loss(adapted, source, seen[picks], projected[picks])
        want["clip_ref"] += 30 * losses.reference_loss(encoder.image(drawn), seen[picks]) / 2  # averaged, as published
    want["l2"] = 10 * (drawn - references[picks]).square().mean()
    want["perceptual"] = 10 * PerceptualDistance(features, references[picks])(drawn).mean()
    for name, value in want.items():
        torch.testing.assert_close({**parts[0], **parts[1]}[name], value, msg=name, rtol=1e-4, atol=1e-4)


def test_picture_training_descends(make_generator, clip, features):
    run = Run(make_generator())
    latents = normal(4, run.generator.num_ws, 16, seed=9) * 0.5
    with torch.no_grad():
        references = (run.pair.source(Latents(w=latents)).images * 0.5 - 0.3).clamp(-1, 1)
    options = {"references": references, "reference_latents": latents, "features": features}
    objective = HyperDomainObjective(HyperDomainConfig.image(), clip, **options)
    totals = run.train(objective, run.adapter.parameters(), 10)
    assert totals[-1] < 0.8 * totals[0]


def test_pictures_without_latents_and_an_encoder_without_text(make_generator, eyes, shown):
    """StyleGAN-NADA's way: free pictures of the source stand for it."""
    run, (references, _) = Run(make_generator()), shown
    objective = HyperDomainObjective(HyperDomainConfig(), eyes, references=references)
    first = run.losses(objective)["direction"].item()
    z = torch.randn(domains.SOURCE_SAMPLES, 16, generator=seeded())
    want = F.normalize(eyes.image(run.pair.source(Latents(z)).images).mean(0), dim=0)
    torch.testing.assert_close(objective.origins[0][0, 0], want)
    totals = run.train(objective, run.adapter.parameters(), 12)
    assert totals[0] == pytest.approx(first) and totals[-1] < 0.85 * first


def test_signals_of_the_set(run, shown, eyes, features):
    references, latents = shown
    names = ("statistics", "wasserstein", "colour", "content", "structure")
    config = HyperDomainConfig(**{f"{name}_weight": 2.0 for name in names}, direction_weight=0.0, style_mixing=0.0)
    objective = HyperDomainObjective(config, eyes, references=references, features=features)
    got, random = run.losses(objective), seeded()
    z = run.pair.draw(3, random, 0.0)
    adapted, source = run.pair.adapted(z).images, run.pair.source(z).images
    real = references[losses.draw_each(4, 3, random)]
    levels, kept = (0, 2, 4, 7, 10), (4, 10)
    moments = [moment_distance(a, b) for a, b in zip(features(adapted, levels), features(real, levels), strict=True)]
    content = [content_distance(a, b) for a, b in zip(features(adapted, kept), features(source, kept), strict=True)]
    want = {"statistics": 2 * sum(moments), "content": sum(content), "colour": 2 * colour_distance(adapted, real)}
    want["structure"] = 2 * structure_distance(adapted, source)
    assert set(got) == set(names) and got["wasserstein"] > 0
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)
    of_text = HyperDomainConfig(direction_weight=0.0, content_weight=2.0, style_mixing=0.0)
    alone = run.losses(HyperDomainObjective(of_text, eyes, references=references, features=features))
    torch.testing.assert_close(alone["content"], want["content"])


def test_lpips_is_preferred_where_it_is_installed(run, shown, eyes, monkeypatch):
    references, latents = shown

    class LPIPS(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, a, b):
            return self.weight * (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(domains, "lpips_network", lambda device: LPIPS().requires_grad_(False))
    config = HyperDomainConfig(direction_weight=0.0, perceptual_weight=2.0)
    objective = HyperDomainObjective(config, eyes, references=references[:1], reference_latents=latents[:1])
    assert not objective.state_dict() and not list(objective.parameters())
    drawn = run.pair.adapted(Latents(w=latents[:1])).images
    torch.testing.assert_close(run.losses(objective)["perceptual"], 2 * (drawn - references[:1]).abs().mean())


def test_large_pictures_are_compared_at_256():
    x = normal(1, 3, 512, 512)
    assert domains.at_most(x, 256).shape == (1, 3, 256, 256) and domains.at_most(x, 512) is x


@pytest.mark.parametrize(
    "config, options, message",
    [
        ({}, {}, "give target or references, not both"),
        ({}, {"target": "ink", "references": torch.zeros(1, 3, 32, 32)}, "not both"),
        ({}, {"target": "ink"}, "encoder 'features' reads no text"),
        ({"direction_weight": 0.0}, {"target": "ink"}, "every weight is 0"),
        ({"tt_direction_weight": 0.4}, {"target": "ink"}, "tt_direction_weight=0.4 is about several domains"),
        ({"convex_hull": True}, {"target": "ink"}, "convex_hull=True is about several domains"),
        ({"crop": 0.8}, {"target": "ink"}, "crop=0.8 is about several domains"),
        ({"clip_ref_weight": 1.0}, {"target": "ink"}, "clip_ref_weight=1.0 .* give reference_latents"),
        ({"l2_weight": 1.0}, {"references": torch.zeros(2, 3, 32, 32)}, "l2_weight=1.0 .* give reference_latents"),
        ({"colour_weight": 1.0}, {"target": "ink"}, "colour_weight=1.0 compares with reference pictures"),
        (
            {"content_weight": 1.0},
            {"target": "ink"},
            r"content_weight=1.0 compares features; pass features=load_features",
        ),
        (
            {"perceptual_weight": 1.0},
            {"references": torch.zeros(2, 3, 32, 32), "reference_latents": torch.zeros(2, 8, 16)},
            "needs the package lpips, or features",
        ),
        (
            {"l2_weight": 1.0},
            {"references": torch.zeros(2, 3, 32, 32), "reference_latents": torch.zeros(3, 8, 16)},
            "not one w\\+ for each reference picture",
        ),
    ],
)
def test_what_an_objective_refuses(config, options, message, eyes, clip):
    with pytest.raises(ValueError, match=message):
        # only the third case is to reach the encoder
        encoder = eyes if message.startswith("encoder") else clip
        HyperDomainObjective(HyperDomainConfig(**config), encoder, **options)


def test_config():
    for options in ({"resample": 1.5}, {"crop": 0.0}, {"style_mixing": -1.0}):
        with pytest.raises(ValueError, match=r"give (0|a number above 0) to 1$"):
            HyperDomainConfig(**options)
    image, many = HyperDomainConfig.image(), HyperDomainConfig.hypernetwork()
    published = {"clip_within_weight": 0.5, "clip_ref_weight": 30, "l2_weight": 10, "perceptual_weight": 10}
    assert all(getattr(image, name) == value for name, value in published.items())
    assert (many.direction_weight, many.tt_direction_weight, many.resample, many.convex_hull) == (1, 0.4, 0.95, True)
    text = HyperDomainConfig.text()
    on = {f.name for f in fields(text) if f.name.endswith("weight") and getattr(text, f.name)}
    assert on == {"direction_weight", "crop_weight"} and text.style_mixing == 0.9


# -------------------------------------------------------------------------------------------------------- many domains

DOMAINS = ("ink", "oil painting", "pixel art", "bronze", "marble", "comic")


@pytest.fixture(params=["mobile", "stylegan2"])
def many(request, clip):
    torch.manual_seed(0)
    generator = {"mobile": tiny_mobile, "stylegan2": tiny_stylegan2}[request.param]()
    run = Run(generator)
    run.network = DomainHyperNetwork.for_model(generator, clip, width=32, backbone_depth=2, head_depth=1).train()
    return run


def test_a_hypernetwork_learns_many_domains(many, clip):
    config = HyperDomainConfig.hypernetwork()
    objective = HyperNetworkObjective(config, many.network, clip, targets=DOMAINS, templates=TEMPLATES)
    assert not list(objective.parameters()) and objective.hypernetwork is many.network
    before = {k: v.clone() for k, v in many.generator.state_dict().items()}
    totals = many.train(objective, many.network.parameters(), 20, rate=5e-3, batch=4)
    assert totals[-1] < 0.9 * totals[0]
    assert all(torch.equal(v, before[k]) for k, v in many.generator.state_dict().items())
    frozen = [*many.generator.parameters(), *clip.parameters(), *many.adapter.parameters()]
    assert all(p.grad is None for p in frozen)  # the adapter that is active outside takes no part
    assert all(p.grad.abs().max() > 0 for n, p in many.network.named_parameters() if n.endswith("weight"))


def test_many_domains_terms(many, clip, second_clip):
    config = replace(HyperDomainConfig.hypernetwork(), convex_hull=False, resample=1.0, crop=1.0, style_mixing=0.0)
    config = replace(config, global_weight=0.5, offsets_l2_weight=2.0)
    options = {"targets": DOMAINS, "origins": ["photo"] * 5 + ["human"], "templates": TEMPLATES}
    objective = HyperNetworkObjective(config, many.network, [clip, second_clip], **options)
    got, random = many.losses(objective, batch=4), seeded()
    chosen = [DOMAINS[i] for i in losses.draw_each(6, 4, random)]
    origins = ["human" if name == "comic" else "photo" for name in chosen]
    latents = many.pair.draw(4, random, 0.0)
    deltas = many.network(clip.text(chosen))  # the bare words, of the first encoder
    with many.bank.using_vectors(deltas):
        images = many.pair.adapted(latents).images
    want = dict.fromkeys(("direction", "tt_direction", "global"), 0.0)
    for encoder in (clip, second_clip):
        e, source = encoder.image(images), encoder.image(many.pair.source(latents).images)
        targets, starts = (templated(encoder, texts, TEMPLATES) for texts in (chosen, origins))
        want["direction"] += losses.direction_loss(e, source, targets, starts)
        want["tt_direction"] += 0.4 * losses.tt_direction_loss(e, targets)
        want["global"] += 0.5 * losses.global_loss(e, targets)
    want["offsets_l2"] = 2 * losses.offsets_l2(deltas.values())
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name, rtol=1e-4, atol=1e-4)


def test_the_hypernetwork_reads_what_the_losses_want(many, clip, monkeypatch):
    """Hull and resampling move the input together with T (pitfall 5), and everything stays of unit length."""
    config = replace(HyperDomainConfig.hypernetwork(), tt_direction_weight=0.0)
    objective = HyperNetworkObjective(config, many.network, clip, targets=DOMAINS, templates=("{}",))
    seen = {}
    forward, direction = many.network.forward, losses.direction_loss
    monkeypatch.setattr(many.network, "forward", lambda x: forward(seen.setdefault("input", x)))
    monkeypatch.setattr(hd, "direction_loss", lambda e, s, t, o: direction(e, s, seen.setdefault("targets", t), o))
    many.losses(objective, batch=5)
    torch.testing.assert_close(seen["input"], seen["targets"][:, 0])  # with one bare template they are one
    torch.testing.assert_close(seen["input"].norm(dim=1), torch.ones(5))
    given = clip.text(DOMAINS)
    assert (seen["input"] @ given.T).max() < 0.9999  # between and beside the six


def test_many_domains_from_pictures(many, eyes, features):
    torch.manual_seed(0)
    network = DomainHyperNetwork.for_model(many.generator, eyes, width=32, backbone_depth=2, head_depth=1).train()
    latents = [normal(n, many.generator.num_ws, 16, seed=n) * 0.5 for n in (1, 2, 3)]
    with torch.no_grad():
        drawn = [many.pair.source(Latents(w=w)).images for w in latents]
    references = [
        (x * gain + offset).clamp(-1, 1)
        for x, gain, offset in zip(drawn, (0.5, 1.0, 0.3), (-0.4, 0.3, 0.4), strict=True)
    ]
    options = {"references": references, "reference_latents": latents, "features": features}
    objective = HyperNetworkObjective(HyperDomainConfig.hypernetwork_images(), network, eyes, **options)
    parts = list(objective.regularisers(many.pair, 3, 0, seeded()))
    assert [set(p) for p in parts] == [{"direction", "tt_direction", "offsets_l2"}, {"clip_ref", "l2", "perceptual"}]
    totals = many.train(objective, network.parameters(), 10, rate=5e-3)
    assert totals[-1] < 0.95 * totals[0]
    free = HyperNetworkObjective(HyperDomainConfig.hypernetwork(), network, eyes, references=references)
    assert set(many.losses(free)) == {"direction", "tt_direction"}


def test_each_row_is_compared_with_the_pictures_of_its_domain(many, eyes, features):
    network = DomainHyperNetwork.for_model(many.generator, eyes, width=32, backbone_depth=2, head_depth=1).train()
    references = [torch.full((n + 1, 3, 32, 32), value) for n, value in enumerate((-0.8, 0.1, 0.7))]
    config = HyperDomainConfig.hypernetwork_few_images()
    assert config.needs_features and not config.needs_latents
    objective = HyperNetworkObjective(config, network, eyes, references=references, features=features)
    got = many.losses(objective, batch=4)
    names = ("direction", "tt_direction", "statistics", "wasserstein", "colour", "content", "structure")
    assert set(got) == set(names)
    random = seeded()
    domains = losses.draw_each(3, 4, random)  # one of the three twice
    shown = objective._sample_inputs(domains, random)
    latents = many.pair.draw(4, random, 0.0)
    with many.bank.using_vectors(network(shown)):
        images = many.pair.adapted(latents).images
    groups = [images[domains == n] for n in domains.unique()]
    # all pictures of a domain are equal, so it does not matter which are picked: as many as rows, at least 2
    real = [references[n][:1].expand(max(2, len(x)), -1, -1, -1) for n, x in enumerate(groups)]
    colours = [colour_distance(*pair) for pair in zip(groups, real, strict=True)]
    torch.testing.assert_close(got["colour"], 2 * sum(colours) / 3, rtol=1e-4, atol=1e-4)
    levels = (0, 2, 4, 7, 10)
    moments = [
        moment_distance(a, b)
        for x, y in zip(groups, real, strict=True)
        for a, b in zip(features(x, levels), features(y, levels), strict=True)
    ]
    torch.testing.assert_close(got["statistics"], sum(moments) / 3, rtol=1e-4, atol=1e-4)


def test_a_domain_is_known_from_any_of_its_pictures(many, eyes, monkeypatch):
    network = DomainHyperNetwork.for_model(many.generator, eyes, width=32, backbone_depth=2, head_depth=1).train()
    references = [normal(count, 3, 32, 32, seed=count).clamp(-1, 1) for count in (1, 5)]
    objective = HyperNetworkObjective(HyperDomainConfig(), network, eyes, references=references)
    read, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda x: read.append(x.detach()) or forward(x))
    for seed in range(20):
        list(objective.regularisers(many.pair, 2, 0, seeded(seed)))
    read = torch.cat(read)
    single, many_of = (torch.cat([eyes.image(x[None]) for x in of]) for of in references)
    single = F.normalize(single, dim=1)
    is_single = (read - single).norm(dim=1) < 1e-5
    assert is_single.sum() == 20  # a domain of one picture is always read as that one
    others, units = read[~is_single], F.normalize(many_of, dim=1)
    alone = (torch.cdist(others, units) < 1e-5).any(1)
    assert 3 <= alone.sum() <= 17 and len({tuple(row.tolist()) for row in others}) > 10
    shares = torch.linalg.lstsq(many_of.T, others.T).solution  # non-negative and equal: means of some of its own
    torch.testing.assert_close(many_of.T @ shares, others.T, rtol=1e-4, atol=1e-5)
    shares = shares / shares.amax(0)
    assert ((shares.abs() < 1e-2) | ((shares - 1).abs() < 1e-2)).all()


def test_examples_are_what_users_get(many, clip):
    objective = HyperNetworkObjective(HyperDomainConfig.hypernetwork(), many.network, clip, targets=DOMAINS)
    examples = objective.examples(2)
    assert many.network.training and len(examples) == 2 and len(objective.examples(9)) == 6
    adapter = many.network.adapter(clip.text(DOMAINS)[1])
    for path, factors in adapter.factors().items():
        torch.testing.assert_close(examples[1][path], factors.delta[None])


def test_what_many_domains_refuse(many, clip, second_clip, eyes):
    config, network = HyperDomainConfig.hypernetwork(), many.network
    for options, message in (
        ({}, "0 domains for a hypernetwork"),
        ({"targets": ["ink"]}, "1 domains for a hypernetwork; give 2 or more"),
        ({"targets": DOMAINS, "origins": ["a", "b"]}, "2 origins for 6 targets"),
    ):
        with pytest.raises(ValueError, match=message):
            HyperNetworkObjective(config, network, clip, **options)
    for weights, message in (
        ({"indomain_weight": 1.0}, "indomain_weight=1.0 is about one domain"),
        ({"statistics_weight": 1.0}, "statistics_weight=1.0 compares with reference pictures"),
        ({"l2_weight": 1.0}, "l2_weight=1.0 compares with the latents"),
    ):
        with pytest.raises(ValueError, match=message):
            HyperNetworkObjective(replace(config, **weights), network, clip, targets=DOMAINS)
    between = replace(HyperDomainConfig.hypernetwork_few_images(), resample=0.95)
    with pytest.raises(
        ValueError, match="statistics_weight=1.0 compares with pictures, which domains in between do not have"
    ):
        pictures = {"references": list(torch.zeros(2, 1, 3, 32, 32)), "features": object()}
        HyperNetworkObjective(between, network, clip, **pictures)
    with pytest.raises(ValueError, match="resample draws domains that exist for one encoder only"):
        HyperNetworkObjective(config, network, [clip, second_clip], targets=DOMAINS)
    with pytest.raises(ValueError, match="use the former"):
        HyperNetworkObjective(config, network, second_clip, targets=DOMAINS)
    objective = HyperNetworkObjective(config, network, clip, targets=DOMAINS, templates=TEMPLATES)
    with pytest.raises(ValueError, match="batch norm cannot train on a single domain"):
        many.losses(objective, batch=1)
    other = Run(tiny_mobile(seed=7))
    with pytest.raises(ValueError, match=r"made for 'another base' \(fingerprint .*not for this generator"):
        other.losses(objective)


def test_half_precision_features(many, clip):
    """The generator computes in bfloat16, the losses in float32: two to three digits agree."""
    config = replace(HyperDomainConfig.hypernetwork(), crop=1.0)
    objective = HyperNetworkObjective(config, many.network, clip, targets=DOMAINS, templates=TEMPLATES)
    whole = many.losses(objective, batch=4)
    many.pair = Pair(many.generator, many.bank, half=True)
    half = many.losses(objective, batch=4)
    sum(half.values()).backward()
    assert all(p.grad.isfinite().all() for p in many.network.parameters())
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0.1)


def test_one_step_repeats_exactly(many, clip):
    objective = HyperNetworkObjective(HyperDomainConfig.hypernetwork(), many.network, clip, targets=DOMAINS)
    first, again, other = (many.losses(objective, seed=s, batch=4) for s in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first) and not torch.equal(
        first["direction"], other["direction"]
    )
