"""D3T-GAN as properties: the source costs nothing, λ = 0 is plain fine-tuning, distillation sees real and fake."""

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers.tensors import seeded_normal
from PIL import Image

from fewshot_gan.adapters import AdapterBank, LeFTAdapter, read_adapter
from fewshot_gan.methods.d3t import (
    D3TConfig,
    D3TObjective,
    distillation_loss,
    feature_transfer_loss,
    identity_convolution,
)
from fewshot_gan.methods.finetune import FinetuneConfig, FinetuneObjective
from fewshot_gan.methods.objective import Batch, Views
from fewshot_gan.methods.pair import Pair
from fewshot_gan.models.projected import ProjectedDiscriminator
from fewshot_gan.training import adapt
from fewshot_gan.training.command_line import parse
from fewshot_gan.training.engine import Trainer, TrainingConfig

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
REAL = IMAGES.float() / 127.5 - 1
OFF = {"feature_weight": 0.0, "relation_weight": 0.0, "reconstruction_weight": 0.0, "distillation_weight": 0.0}


@pytest.fixture
def build(features, discriminator):
    """`build(preset, …)`: an objective with codes, and a source of either kind to distil from."""

    def make(preset="abstract", codes=None, **changes):
        config = replace(getattr(D3TConfig, preset)(), **changes)
        projected = ProjectedDiscriminator.for_images(REAL, features, D3TObjective.HEADS, seed=5)
        codes = seeded_normal(3, 16, seed=8) * 0.5 if codes is None else codes
        judges = {"discriminator": deepcopy(discriminator), "projected": projected}
        return D3TObjective(config, REAL, codes=codes, w_std=torch.full((16,), 0.5), features=features, **judges)

    return make


@pytest.fixture
def pair(mobile):
    bank = AdapterBank(mobile.requires_grad_(False))
    adapter = LeFTAdapter.for_model(mobile).requires_grad_(True)
    bank.add("training", adapter)
    bank.activate({"training": 1.0})
    return Pair(mobile, bank)


def a_batch(objective, pair, step=0, progress=0.0):
    random = torch.Generator().manual_seed(step)
    latents = objective.draw(pair, 4, step, random)
    drawn, source = pair.adapted(latents), pair.source(latents)
    fake, real = Views(drawn.images, drawn.images), Views(REAL[[0, 1, 2, 0]], REAL[[0, 1, 2, 0]])
    batch = Batch(step, progress, random, latents, drawn, fake, real, source, source.images)
    batch.fake_features = objective.observe(fake.colour, objective.levels)
    batch.real_features = objective.observe(real.colour, objective.levels)
    return batch


# -------------------------------------------------------------------------------------------------------- the generator


def test_nothing_is_lost_while_the_generator_is_the_source(build, pair):
    objective = build(adversarial_weight=0.0, feature_weight=1.0, relation_weight=1.0)
    same = objective.generator_losses(a_batch(objective, pair))
    assert set(same) == {"transfer", "relation"}
    assert same["transfer"].item() == pytest.approx(0, abs=1e-8)  # the effective weight is W·1 + 0, exactly W
    assert same["relation"].item() == pytest.approx(0, abs=1e-6)
    adapter = pair.bank.adapters["training"]
    with torch.no_grad():
        adapter.factors()["synthesis.b16.conv1.conv"].mul_out.mul_(torch.linspace(0.2, 1.8, 16)[:, None])
    moved = objective.generator_losses(a_batch(objective, pair))
    assert moved["transfer"].item() > 1e-4 and moved["relation"].item() > 1e-9
    sum(moved.values()).backward()
    assert all(p.grad is None for p in (*pair.generator.parameters(), *objective.parameters()))
    assert any(p.grad is not None and p.grad.any() for p in adapter.parameters())


def test_feature_transfer_leaves_strength_free_and_holds_places():
    x = [seeded_normal(2, 3, 8, 8), seeded_normal(2, 4, 16, 16, seed=1)]
    scaled = [m * torch.tensor(2.0) + 3 for m in x]  # gain and offset per channel: style
    assert float(feature_transfer_loss(x, scaled)) == pytest.approx(0, abs=1e-4)  # eps of the normalisation
    other = [seeded_normal(2, 3, 8, 8, seed=2), seeded_normal(2, 4, 16, 16, seed=3)]

    def normalised(m):
        return (m - m.mean((2, 3), keepdim=True)) / (m.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()

    want = sum((normalised(a) - normalised(b)).square().mean() for a, b in zip(x, other, strict=True))
    torch.testing.assert_close(feature_transfer_loss(x, other), want)
    assert float(feature_transfer_loss(x, [m.flip(3) for m in x])) > 1


def test_codes_come_from_the_training_images_every_nth_step(build, pair):
    codes = seeded_normal(3, 16, seed=8) * 10  # far apart, so that rows tell where they came from
    objective = build(codes=codes, transformed_every=3, mix_probability=0.5, code_sigma=0.01)
    for step in range(6):
        latents = objective.draw(pair, 200, step, torch.Generator().manual_seed(step))
        if step % 3:
            assert latents.w is None and latents.z.shape == (200, 16)
            continue
        near = latents.origin >= 0
        assert 60 < int(near.sum()) < 140 and set(latents.origin.tolist()) == {-1, 0, 1, 2}
        off = (latents.w[near] - codes[latents.origin[near]]) / 0.5
        assert float(off.std()) == pytest.approx(0.01, rel=0.1)
        between = latents.w[~near]  # on a segment between two codes: the distances to its ends add up
        a, ends = torch.cdist(between.double(), codes.double()), torch.cdist(codes.double(), codes.double())
        gaps = [(a[:, i] + a[:, j] - ends[i, j]).abs() for i in range(3) for j in range(i, 3)]
        assert float(torch.stack(gaps).min(0).values.max()) < 1e-3
    plus = build(codes=seeded_normal(3, pair.generator.num_ws, 16))
    assert plus.draw(pair, 5, 0, torch.Generator().manual_seed(0)).w.shape == (5, pair.generator.num_ws, 16)


def test_reconstruction_is_of_the_image_a_code_came_from(build, pair, features):
    """With the codes of known pictures the perceptual distance is 0, and grows with any other training image."""
    codes = seeded_normal(3, 16, seed=8) * 0.5
    drawn = pair.generator.synthesis(codes[:, None].expand(-1, pair.generator.num_ws, -1)).detach()
    options = {"adversarial_weight": 0.0, "reconstruction_weight": 2.0, "mix_probability": 0.0, "code_sigma": 0.0}
    objective = build(codes=codes, **{**OFF, **options})
    objective._real = drawn
    batch = a_batch(objective, pair)
    assert objective.generator_losses(batch)["reconstruction"].item() == pytest.approx(0, abs=1e-6)
    objective._real = drawn.roll(1, 0)
    assert objective.generator_losses(batch)["reconstruction"].item() > 1e-3
    free = a_batch(objective, pair, step=1)
    assert "reconstruction" not in objective.generator_losses(free)


# ---------------------------------------------------------------------------------------------------- the discriminator


@pytest.mark.parametrize("preset", ["paper", "abstract"])
def test_distillation_is_zero_at_the_source_and_uses_real_and_fake(build, pair, preset):
    objective = build(preset, distillation_weight=1.0)
    batch = a_batch(objective, pair).detach()
    objective.eval()  # power iterations stand still
    assert objective.discriminator_losses(batch)["distillation"].item() == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        for p in objective.discriminator.parameters():
            p.add_(0.05 * seeded_normal(*p.shape, seed=p.numel()))
    whole = objective.discriminator_losses(batch)["distillation"]
    sides = [objective._distil(batch.real, batch.real_features), objective._distil(batch.fake, batch.fake_features)]
    assert min(map(float, sides)) > 1e-6
    torch.testing.assert_close(whole, sum(sides))
    half = objective.discriminator_losses(replace(batch, progress=0.5))["distillation"]
    torch.testing.assert_close(half, whole * (0.01 + 0.99 / 2), rtol=1e-5, atol=0)
    end = objective.discriminator_losses(replace(batch, progress=1.0))["distillation"]
    torch.testing.assert_close(end, whole * 0.01, rtol=1e-4, atol=0)
    whole.backward()
    frozen = objective._source.value
    assert all(p.grad is None for p in frozen.parameters()) and not any("source" in k for k in objective.state_dict())
    assert all(p.grad is not None for p in objective.adapters.parameters())


def test_distillation_equals_its_formula():
    wanted, got = (
        {"a": seeded_normal(2, 3, 4, 4), "b": seeded_normal(2, 2, 2, 2, seed=1)},
        {"a": seeded_normal(2, 3, 4, 4, seed=2), "b": seeded_normal(2, 2, 2, 2, seed=3)},
    )
    phi = {"a": identity_convolution(3), "b": identity_convolution(2)}
    logits = [seeded_normal(2, 5, seed=4)], [seeded_normal(2, 5, seed=5)]
    levels = sum(((got[k] - wanted[k]) ** 2).mean() / (wanted[k] ** 2).mean() for k in wanted)
    want = levels + 0.1 * ((logits[1][0] - logits[0][0]) ** 2).mean()
    torch.testing.assert_close(distillation_loss(wanted, logits[0], got, logits[1], phi), want)


def test_what_it_needs(build, features):
    with pytest.raises(ValueError, match="no projected discriminator to distil from; use .*weight=0") as error:
        D3TObjective(D3TConfig.abstract(), REAL, codes=seeded_normal(3, 16), w_std=seeded_normal(16), features=features)
    with pytest.raises(ValueError, match="starts from projected training images: pass codes and w_std"):
        D3TObjective(replace(D3TConfig.abstract(), distillation_weight=0.0), REAL, features=features)
    assert (Path(__file__).parents[2] / re.search(r"with (training/\S+)", str(error.value))[1]).is_file()
    with pytest.raises(ValueError, match="transformed_every=-1: give 0"):
        build(transformed_every=-1)
    with pytest.raises(ValueError, match="reconstruction_weight=1.0 is of steps .* transformed_every=0"):
        D3TConfig(reconstruction_weight=1.0, transformed_every=0)
    config = D3TConfig(transformed_every=0)
    assert not config.needs_latents and D3TConfig().needs_latents and not D3TConfig.large_gap().needs_latents
    with pytest.raises(ValueError, match="feature_resolution=2: the smallest block is 4"):
        build(feature_resolution=2)


@pytest.mark.parametrize("preset", ["paper", "abstract"])
def test_the_source_of_the_distillation_is_where_the_discriminator_is(build, discriminator, features, preset):
    """Also when the images are elsewhere at first: a base is loaded to the CPU, whatever trains it."""
    objective = build(preset).double()
    assert {p.dtype for p in objective._source.value.parameters()} == {torch.float64}
    assert not objective._source.value.training and not any(
        p.requires_grad for p in objective._source.value.parameters()
    )
    heads = ProjectedDiscriminator.for_images(REAL, features, D3TObjective.HEADS).to("meta")
    judges = {"discriminator": discriminator.to("meta"), "projected": heads}
    options = {"codes": seeded_normal(3, 16), "w_std": seeded_normal(16), "features": features}
    elsewhere = D3TObjective(getattr(D3TConfig, preset)(), REAL, **judges, **options)
    want = {name: phi.weight.shape for name, phi in objective.adapters.items()}
    assert {name: phi.weight.shape for name, phi in elsewhere.adapters.items()} == want


def test_other_codes_are_another_run(build):
    first, same, other = build(), build(), build(codes=seeded_normal(3, 16, seed=9))
    assert first.settings() == same.settings() != other.settings()
    assert build(**OFF).settings() == build(**OFF, codes=seeded_normal(3, 16, seed=9)).settings()  # used by no term


# -------------------------------------------------------------------------------------------------------------- the run


@pytest.mark.parametrize("preset", ["paper", "abstract"])
def test_without_its_weights_it_is_plain_fine_tuning(build, mobile, features, discriminator, tmp_path, preset):
    def train(name, objective):
        torch.manual_seed(0)
        generator = deepcopy(mobile)
        config = TrainingConfig(str(tmp_path / name), max_train_steps=3, train_batch_size=2, sample_steps=0)
        adapter = LeFTAdapter.for_model(generator)
        trainer = Trainer(generator, adapter, objective, IMAGES, config, Accelerator(cpu=True))
        trainer.train()
        return {**trainer.adapter.state_dict(), **objective.discriminator.state_dict()}

    projected = ProjectedDiscriminator.for_images(REAL, features, D3TObjective.HEADS, seed=5)
    options = {"discriminator": deepcopy(discriminator), "projected": projected, "features": features}
    plain = train(
        "plain",
        FinetuneObjective(
            (FinetuneConfig.paper() if preset == "paper" else FinetuneConfig.few_images()), REAL, **options
        ),
    )
    same, other = train("same", build(preset, **OFF)), train("other", build(preset))
    assert all(torch.equal(v, same[k]) for k, v in plain.items())
    assert any(not torch.equal(v, other[k]) for k, v in plain.items())


def test_the_script_projects_once(base_folder, features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda **kwargs: features)
    monkeypatch.setattr("fewshot_gan.features.load_features", lambda **kwargs: features)
    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(data / f"{i}.png")
    command = [f"--base={base_folder}", f"--data={data}", "--max_train_steps=2", "--train_batch_size=2"]
    command += ["--projection_steps=2", "--distillation_weight=0", "--report_to=none", "--sample_steps=0"]
    first = adapt.run(parse("d3t", [*command, f"--output_dir={tmp_path / 'a'}"]))
    assert "projected 3 images" in capsys.readouterr().out
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["method"], config["adapter_type"]) == ("d3t", "left")
    shared = tmp_path / "a" / "projections.safetensors"
    command += [f"--projections={shared}", f"--output_dir={tmp_path / 'b'}"]
    second = adapt.run(parse("d3t", command))
    assert "projected" not in capsys.readouterr().out
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert read_adapter(tmp_path / "b").config.training["transformed_every"] == 3
    other = [*command[:-1], f"--output_dir={tmp_path / 'c'}", "--seed=1"]  # another seed is another projection
    before = shared.read_bytes()
    with pytest.raises(ValueError, match="holds projections of other images, another base or other settings"):
        adapt.run(parse("d3t", other))
    assert shared.read_bytes() == before
    adapt.run(parse("d3t", [*other, f"--projections={tmp_path / 'other.safetensors'}"]))
    assert "projected 3 images" in capsys.readouterr().out
