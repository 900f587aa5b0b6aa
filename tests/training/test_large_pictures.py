"""Trainings on pictures that are larger than what the losses see: views, crops, micro-batches, memory and time."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from helpers.networks import tiny_mobile, tiny_stylegan2

from fewshot_gan.adapters import AdapterBank, DomainVectorAdapter, LeFTAdapter
from fewshot_gan.data.images import reduced
from fewshot_gan.features.encoders import FeatureEncoder
from fewshot_gan.methods import pair as pair_module
from fewshot_gan.methods.cdc import CDCConfig, CDCObjective
from fewshot_gan.methods.d3t import D3TConfig
from fewshot_gan.methods.domains import HyperDomainConfig
from fewshot_gan.methods.hyperdomain import HyperDomainObjective
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
from fewshot_gan.methods.objective import ObjectiveConfig
from fewshot_gan.methods.pair import Latents
from fewshot_gan.metrics import native_crops
from fewshot_gan.training import engine
from fewshot_gan.training import estimate as estimates
from fewshot_gan.training.augment import FewShotAugment, random_zoom
from fewshot_gan.training.engine import Trainer, TrainingConfig
from fewshot_gan.training.estimate import check_memory, estimate, generator_graph, graph_bytes, predict_memory

R, S = 64, 32  # sides of the pictures and of what the losses see
IMAGES = torch.randint(0, 256, (3, 3, R, R), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
VIEWS = replace(LFSConfig.few_images(), view_size=S, crops=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def trainer(features, tmp_path):
    """`make(config, **settings)`: a fresh trainer of a 64 px generator."""

    def make(config=VIEWS, objective=LFSObjective, generator=None, cls=LeFTAdapter, out="run", **settings):
        settings = {"max_train_steps": 6, "train_batch_size": 3, "checkpointing_steps": 3, "sample_steps": 0} | settings
        generator = generator or tiny_mobile(block_channels=(16, 16, 16, 16))
        torch.manual_seed(0)
        adapter = cls.for_model(generator)
        judge = objective(config, IMAGES.float() / 127.5 - 1, 16, features=features)
        config = TrainingConfig(str(tmp_path / out), **settings)
        return Trainer(generator, adapter, judge, IMAGES, config, Accelerator(cpu=True))

    return make


def factors(run):
    return {name: value.detach().clone() for name, value in run.adapter.state_dict().items()}


# ------------------------------------------------------------------------------------------------------- what is seen


def test_a_reduced_pixel_is_the_mean_of_what_it_covers():
    x = torch.randn(2, 3, R, R, generator=seeded())
    want = x.view(2, 3, S, 2, S, 2).mean((3, 5))
    torch.testing.assert_close(reduced(x, S), want, rtol=0, atol=1e-6)
    assert reduced(x, R) is x and reduced(x, 2 * R) is x and reduced(x, 0) is x


def test_a_crop_is_a_part_of_the_augmented_picture():
    """Where no border is filled in, the crop equals the same place of the whole augmented picture, bit for bit."""
    augment, x = FewShotAugment(), torch.randn(8, 3, R, R, generator=seeded())
    draw = augment.sample(8, seeded(1))
    assert draw["flip"].any() and not draw["flip"].all()
    corners = torch.randint(8, R - S - 8, (8, 2, 2), generator=seeded(2))  # 8: the largest shift
    want = native_crops(augment.apply(x, draw, colour=False), corners, S)
    assert torch.equal(augment.crop(x, draw, corners, S), want)
    at_border = augment.crop(x, draw, torch.zeros(8, 1, 2, dtype=torch.long), S)
    assert at_border.shape == (8, 3, S, S) and at_border.isfinite().all()


def test_generated_source_and_training_picture_are_cropped_at_one_place(trainer):
    """A picture that says where its pixels are: each channel a ramp."""
    ramp = torch.linspace(-1, 1, R)
    places = torch.stack([ramp[:, None].expand(R, R), ramp.expand(R, R), torch.zeros(R, R)])
    run = trainer(replace(VIEWS, crops=2), augment="none")
    pictures = places.expand(3, -1, -1, -1)
    run.pair.adapted = lambda latents: _Drawn(pictures)
    run.pair.source = lambda latents, largest: _Drawn(pictures)
    run.batches = iter([(pictures, None)])
    batch, _ = run._batch()
    crops = batch.crops
    assert crops.fake.plain.shape == (6, 3, S, S) and batch.fake.plain.shape == (3, 3, S, S)
    for other in (crops.real.plain, crops.source_view):
        assert torch.equal(crops.fake.plain, other)
    assert len({tuple(corner.tolist()) for corner in crops.fake.plain[:, :2, 0, 0]}) > 3  # not all at one place
    steps = crops.fake.plain[:, 1, 0, 1] - crops.fake.plain[:, 1, 0, 0]
    torch.testing.assert_close(steps, torch.full((6,), 2 / (R - 1)))  # native scale


class _Drawn:
    def __init__(self, images):
        self.images, self.features = images, {}


def test_crops_and_views_are_of_the_enlarged_pictures(trainer, monkeypatch):
    """Stripes of 8 px: enlarged, there are fewer in a crop; a view is the enlarged picture reduced, not the reverse."""
    stripes = ((torch.arange(R) // 4) % 2 * 255).to(torch.uint8).expand(3, 3, R, R)
    zoomed, batches = [], []

    def watched(images, most, random):
        zoomed.append(random_zoom(images, most, random))
        return zoomed[-1]

    monkeypatch.setattr(engine, "random_zoom", watched)
    for zoom in (1.0, 4.0):
        run = trainer(augment="none", real_zoom=zoom)
        run.batches.images = stripes
        batches.append(run._batch()[0])
    edges = [(batch.crops.real.plain[:, 0, 0].sign().diff(dim=1) != 0).sum(1).float().mean() for batch in batches]
    assert edges[1] < 0.8 * edges[0]
    assert zoomed[0].shape[-1] == R and torch.equal(batches[1].real.plain, reduced(zoomed[0], S))


def test_every_signal_sees_crops_and_their_weight_scales_it(trainer):
    config = replace(VIEWS, statistics_weight=1.0, wasserstein_weight=1.0)
    logs = {weight: trainer(replace(config, crop_weight=weight)).train_step() for weight in (1.0, 0.5, 0.0)}
    judged = {"d", "g", "statistics", "wasserstein", "colour", "content", "structure"}
    assert set(logs[1.0]) == judged | {f"{name}_crops" for name in judged}
    assert set(logs[0.0]) == judged
    for name in judged - {"g"}:  # which follows the discriminator's step
        assert logs[0.5][name] == pytest.approx(logs[1.0][name], rel=1e-6)
    assert logs[0.5]["statistics_crops"] == pytest.approx(logs[1.0]["statistics_crops"] / 2, rel=1e-5)


def test_pictures_up_to_the_size_of_a_view_are_seen_as_before(trainer):
    plain = replace(VIEWS, view_size=0, crops=0)
    whole, same = trainer(plain), trainer(replace(VIEWS, view_size=R))
    assert whole.train_step() == same.train_step()
    assert all(torch.equal(value, same.adapter.state_dict()[name]) for name, value in factors(whole).items())
    assert whole.settings() == same.settings() and "crops" not in same.settings()  # an older run may be resumed


@pytest.mark.parametrize(
    "options, message",
    [
        ({"view_size": 16, "crops": 0}, "view_size=16: .*give 32 or more"),
        ({"view_size": 0, "crops": 1}, "crops=1: view_size=0 gives them no size"),
        ({"crops": -1}, "crops=-1"),
    ],
)
@pytest.mark.parametrize("config", [ObjectiveConfig, HyperDomainConfig])
def test_refused_views(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_source_discriminator_wants_whole_pictures(discriminator, features):
    config = replace(VIEWS, discriminator="source")
    with pytest.raises(ValueError, match="judges whole pictures of 64 px, but view_size=32 .*give view_size=0"):
        LFSObjective(config, torch.zeros(3, 3, R, R), 16, discriminator=discriminator, features=features)


def test_presets_for_few_images_see_crops_and_published_ones_do_not():
    for config in (LFSConfig, CDCConfig, D3TConfig, HyperDomainConfig):
        few = config.few_images()
        assert (few.view_size, few.crops, few.crop_weight) == (256, 1, 1.0)
    for config in (LFSConfig.paper(), CDCConfig.paper(), HyperDomainConfig.text(), HyperDomainConfig.image()):
        assert (config.view_size, config.crops) == (0, 0)


# ------------------------------------------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("config", ["views", "relation"])
def test_micro_batches_have_the_gradients_of_the_whole_batch(trainer, size, config):
    """Also through feature maps of the generator, which the relation loss of CDC compares."""
    chosen = {"views": (VIEWS, LFSObjective), "relation": (_relation(), CDCObjective)}[config]
    whole, parts = trainer(*chosen), trainer(*chosen, micro_batch_size=size)
    if size < 3:
        assert (whole.micro_batch_size, parts.micro_batch_size) == (None, size)
    first, second = whole.train_step(), parts.train_step()
    assert first.keys() == second.keys()
    for name, value in first.items():  # images drawn singly round differently
        assert second[name] == pytest.approx(value, rel=1e-4, abs=1e-4)
    largest = max(float(parameter.grad.abs().max()) for parameter in whole.adapter.parameters())
    assert largest > 0
    for name, parameter in whole.adapter.named_parameters():
        torch.testing.assert_close(
            parts.adapter.get_parameter(name).grad, parameter.grad, rtol=2e-3, atol=1e-5 * largest
        )


def _relation():
    return replace(CDCConfig.few_images(), view_size=S, crops=1, relation_weight=100.0)


@pytest.mark.parametrize("make", [tiny_mobile, tiny_stylegan2])
def test_parts_that_are_drawn_twice_get_the_same_noise_and_styles(trainer, make):
    generator = tiny_mobile(block_channels=(16, 16, 16, 16)) if make is tiny_mobile else tiny_stylegan2(resolution=R)
    runs = [trainer(generator=deepcopy(generator), cls=DomainVectorAdapter, micro_batch_size=n) for n in (1, 2)]
    for run in runs:
        run.train_step()
    for name, value in factors(runs[0]).items():  # the first Adam step is the sign of the gradient
        torch.testing.assert_close(runs[1].adapter.state_dict()[name], value, rtol=0, atol=1e-4)


def test_a_run_with_crops_and_micro_batches_continues_bit_for_bit(trainer):
    whole = trainer(micro_batch_size=1, out="whole")
    whole.train()
    trainer(micro_batch_size=1, out="killed").train(stop_after=4)
    torch.manual_seed(99)
    resumed = trainer(micro_batch_size=1, out="killed")
    resumed.train()
    assert all(torch.equal(value, resumed.adapter.state_dict()[name]) for name, value in factors(whole).items())
    with pytest.raises(ValueError, match="crops was 1, now 2"):
        trainer(replace(VIEWS, crops=2), micro_batch_size=1, out="killed").train()


# ---------------------------------------------------------------------------------------------------- memory and time


def test_graphs_are_measured_without_memory():
    """On "meta" autograd keeps as much as with real tensors."""
    generator = tiny_mobile(block_channels=(16, 16, 16, 16)).requires_grad_(True)
    weights = 4 * sum(parameter.numel() for parameter in generator.parameters())
    for batch in (1, 3):
        ws = torch.randn(batch, generator.num_ws, generator.w_dim)
        real = graph_bytes(lambda ws=ws: generator.synthesis(ws), generator)
        assert real > 4 * 16 * 32 * 32 * batch and generator_graph(generator, batch) == real + weights


def test_less_memory_is_predicted_for_fewer_pictures(trainer, monkeypatch):
    large, few = trainer(train_batch_size=6), trainer(train_batch_size=6, micro_batch_size=1)
    used = estimates.used_memory()
    monkeypatch.setattr(estimates, "used_memory", lambda: used)
    assert predict_memory(large) > predict_memory(trainer()) == predict_memory(large, batch=3)
    assert predict_memory(large) > predict_memory(few) > predict_memory(few, batch=3)
    assert few.graphs_kept(6) == 1 and few.graphs_kept(1) is None


def test_a_run_that_needs_more_memory_than_there_is_says_so(trainer, monkeypatch):
    run = trainer(train_batch_size=6, micro_batch_size=2)
    used = estimates.used_memory()
    monkeypatch.setattr(estimates, "used_memory", lambda: used)
    needed = predict_memory(run)
    ways = {
        predict_memory(run, micro_batch=1): r"give micro_batch_size=1 or train_batch_size=5$",
        predict_memory(run, 3): r"give train_batch_size=3$",
        used: r"close other programs, or use a machine with more$",
    }
    for limit, way in ways.items():
        assert limit < needed
        monkeypatch.setattr(estimates, "available_memory", lambda limit=limit: limit - used)
        with pytest.raises(ValueError, match=rf"would need .* GB of memory, but .* GB are available; {way}"):
            check_memory(run)
    monkeypatch.setattr(estimates, "available_memory", lambda: needed - used)
    assert check_memory(run) == (needed, needed)


def test_an_estimate_leaves_no_trace(trainer):
    """Losses and factors after it are those of a run without, bit for bit."""
    plain, measured = trainer(), trainer()
    predicted = estimate(measured)
    assert predicted.seconds > 0 and predicted.steps == 6 and measured.step == 0
    assert f"{predicted.seconds:.2f} s per step" in str(predicted) and "GB of memory" in str(predicted)
    for _ in range(3):
        assert measured.train_step() == plain.train_step()
    assert all(torch.equal(value, measured.adapter.state_dict()[name]) for name, value in factors(plain).items())
    assert all(torch.equal(value, measured.ema.state_dict()[name]) for name, value in plain.ema.state_dict().items())


def test_large_pictures_are_drawn_one_by_one(trainer, monkeypatch):
    """On a CPU each is a batch of its own, with and without the adapter; the pictures are the same up to rounding."""
    run, whole = trainer(), trainer(out="whole")
    latents = Latents(torch.randn(3, 16, generator=seeded()))
    together = run.pair.adapted(latents)
    monkeypatch.setattr(pair_module, "LARGEST_AT_ONCE", S)
    assert not run.pair.draws_at_once and run.graphs_kept(3) == 3
    sizes = []
    honest = run.pair.drawn
    monkeypatch.setattr(run.pair, "drawn", lambda ws, *rest: sizes.append(len(ws)) or honest(ws, *rest))
    singly, source = run.pair.one_by_one(latents, 8), run.pair.source(latents, 0)
    assert sizes == [1] * 6 and source.features == {} and list(singly.features) == ["b4", "b8"]
    scale = float(together.images.abs().max())
    torch.testing.assert_close(singly.images, together.images, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(singly.features["b8"], together.features["b8"], rtol=1e-4, atol=1e-4)
    run.micro_batch_size = run.graphs_kept(3)
    first = run.train_step()
    monkeypatch.undo()
    assert whole.micro_batch_size is None
    for name, value in whole.train_step().items():
        assert first[name] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_graphs_are_kept_up_to_a_budget(trainer, monkeypatch):
    run = trainer(train_batch_size=6)
    monkeypatch.setattr(pair_module, "LARGEST_AT_ONCE", S)
    graph = generator_graph(run.generator, 1)
    for budget, kept in ((graph // 2, 1), (2 * graph, 2), (100 * graph, 6)):
        monkeypatch.setattr(engine, "GRAPH_BUDGET", budget)
        assert run.graphs_kept(6) == kept
    monkeypatch.setattr(engine, "GRAPH_BUDGET", 1)
    assert trainer(train_batch_size=6, micro_batch_size=4).graphs_kept(6) == 4  # the user's choice


def test_a_domain_vector_sees_crops_too(features):
    """HyperDomainNet's comparison with a set of pictures: whole and at native scale, at the same places."""
    generator = tiny_mobile(block_channels=(16, 16, 16, 16)).requires_grad_(False)
    bank = AdapterBank(generator)
    bank.add("training", DomainVectorAdapter.for_model(generator))
    bank.activate({"training": 1.0})
    pair = pair_module.Pair(generator, bank)
    config = replace(HyperDomainConfig.few_images(), view_size=S, crops=2, crop_weight=0.5)
    references = IMAGES.float() / 127.5 - 1

    def losses(config):
        objective = HyperDomainObjective(config, FeatureEncoder(features), references=references, features=features)
        (step,) = objective.regularisers(pair, 3, 0, seeded())
        return {name: float(loss) for name, loss in step.items()}

    seen, whole = losses(config), losses(replace(config, crops=0))
    judged = {"statistics", "wasserstein", "colour", "content", "structure"}
    assert set(seen) - set(whole) == {f"{name}_crops" for name in judged}
    assert {name: seen[name] for name in whole} == whole
    double = losses(replace(config, crop_weight=1.0))
    assert double["colour_crops"] == pytest.approx(2 * seen["colour_crops"]) and seen["colour_crops"] > 0
    assert seen["structure_crops"] < 1e-4  # nothing has been learned, and both pictures are cropped alike
