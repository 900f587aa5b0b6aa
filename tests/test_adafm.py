"""AdaFM transfer: what is kept, what is modulated and when, what is retrained (spec tests a to i, l)."""

from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator

from fewshot_gan.adapters import AdaFMAdapter, AdapterBank, FullAdapter, LeFTAdapter, fingerprint
from fewshot_gan.adapters.adafm import SPECIFIC_RATE, AdaFMFactors
from fewshot_gan.methods.adafm import AdaFMConfig, AdaFMObjective, parse_groups, split_generator
from fewshot_gan.methods.losses import r1_penalty
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.training import adapt
from fewshot_gan.training.engine import Trainer, TrainingConfig


def images(num=4):
    return torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def adapter_for(generator, groups="G3"):
    modulated, specific = split_generator(generator, parse_groups(groups)[0])
    return AdaFMAdapter.for_model(generator, target_modules=modulated, layers_to_save=specific)


@pytest.mark.parametrize(
    ("text", "want"), [("G4D2", (4, 2)), ("G0D0", (0, 0)), ("G5", (5, None)), ("G12D10", (12, 10))]
)
def test_groups(text, want):
    assert parse_groups(text) == want


@pytest.mark.parametrize("text", ["", "4", "D2", "g4d2", "G4D", "G4 D2", "G-1"])
def test_bad_groups(text):
    with pytest.raises(ValueError, match="is not of the form GmDn; for example G4D2"):
        AdaFMConfig(groups=text)


def test_every_layer_is_modulated_retrained_or_kept(make_generator):
    generator = make_generator()
    layers = dict(adaptable_layers(generator))
    for kept in range(4):
        modulated, specific = split_generator(generator, kept)
        assert not {*modulated} & {*specific} and {*modulated, *specific} <= {*layers}
        left = {path: layers[path].role for path in layers if path not in {*modulated, *specific}}
        assert {*left.values()} <= {"to_rgb"} and bool(left) == (kept > 0)
        filters = {generator.layer_resolution(path) for path, x in layers.items() if x.role in ("conv", "depthwise")}
        sizes = {generator.layer_resolution(path) for path in modulated}
        assert sizes == {*sorted(filters, reverse=True)[: max(0, kept - 1)]}
    adapter = adapter_for(generator)
    modulated, specific = split_generator(generator, 3)
    kinds = {path: isinstance(factors, AdaFMFactors) for path, factors in adapter.factors().items()}
    assert kinds == {**dict.fromkeys(modulated, True), **dict.fromkeys(specific, False)}
    with pytest.raises(ValueError, match="keeps 9 groups, this .* has .*; give G0 to G"):
        split_generator(generator, 9)


def test_fresh_transfer_is_the_identity_and_folds(make_generator, perturbed):  # a and g
    generator = make_generator()
    z = torch.randn(2, generator.z_dim)
    bank = AdapterBank(generator)
    with torch.no_grad():
        want = generator(z)
        bank.add("fresh", adapter_for(generator))
        bank.activate({"fresh": 1.0})
        assert torch.equal(generator(z), want)
        bank.add("trained", perturbed(adapter_for(generator)))
        bank.activate({"trained": 1.0})
        adapted = generator(z)
        assert not torch.allclose(adapted, want, atol=1e-2)
        bank.fuse()
        assert torch.allclose(generator(z), adapted, atol=1e-5)


def trained(generator, discriminator, folder, steps=4, **options):
    config = AdaFMConfig(**{"groups": "G3D2", "adafm_start": 2, "r1_every": 1, **options})
    adapter = adapter_for(generator, config.groups)
    objective = AdaFMObjective(config, images().float() / 127.5 - 1, discriminator=deepcopy(discriminator))
    settings = {"max_train_steps": steps, "train_batch_size": 2, "sample_steps": 0, "ema_decay": 0.0, "augment": "flip"}
    run = TrainingConfig(str(folder), **settings)
    return Trainer(generator, adapter, objective, images(), run, Accelerator(cpu=True))


def test_what_is_kept_is_bit_equal_and_modulation_waits(stylegan2, discriminator, tmp_path):  # f
    before, mark = deepcopy(discriminator.state_dict()), fingerprint(stylegan2)
    trainer = trained(stylegan2, discriminator, tmp_path)
    factors = trainer.adapter.factors()
    modulated = {path: f for path, f in factors.items() if isinstance(f, AdaFMFactors)}
    retrained = {path: f for path, f in factors.items() if not isinstance(f, AdaFMFactors)}
    assert modulated and retrained
    for step in range(4):
        before_step = {path: [p.detach().clone() for p in f.tensors()] for path, f in retrained.items()}
        trainer.train_step()
        # whatever is retrained learns from the first step on, also below a kept convolution
        assert all(f.weight_delta.grad is not None for f in retrained.values())
        moved = [p for p, f in retrained.items() if not all(map(torch.equal, f.tensors(), before_step[p]))]
        assert any(".affine" in path for path in moved)
        learned = any((f.gamma != 1).any() or (f.beta != 0).any() for f in modulated.values())
        assert learned == (step >= 2)
    assert all((f.gamma != 1).any() for f in modulated.values())
    assert fingerprint(stylegan2) == mark
    after = trainer.objective.discriminator.state_dict()
    kept = [k for k in before if torch.equal(before[k], after[k])]
    first = f"b{discriminator.block_resolutions[0]}."
    assert {k for k in before if k.startswith(first)} <= {*kept}  # D2: fromRGB and the first block
    assert any(not torch.equal(before[k], after[k]) for k in before if not k.startswith(first))
    kept_d = [n for n, p in trainer.objective.discriminator.named_parameters() if not p.requires_grad]
    assert all(n.startswith(first) for n in kept_d)


@pytest.mark.parametrize(("groups", "kept"), [("G3D0", 0), ("G3", 0), ("G3D1", 1), ("G3D3", 3)])
def test_groups_of_the_discriminator(discriminator, groups, kept):
    objective = AdaFMObjective(AdaFMConfig(groups=groups), images().float(), discriminator=deepcopy(discriminator))
    frozen = {n.rpartition(".")[0] for n, p in objective.discriminator.named_parameters() if not p.requires_grad}
    resolutions = discriminator.block_resolutions
    want = {f"b{resolutions[0]}.from_rgb"} if kept else set()
    for res in resolutions[: max(0, kept - 1)]:
        want |= {n.rpartition(".")[0] for n, _ in discriminator.named_parameters() if n.startswith(f"b{res}.")}
    assert frozen == want


def test_more_groups_than_there_are(discriminator, features):
    with pytest.raises(ValueError, match="D9 keeps 9 groups, this discriminator has 4; give D0 to D4"):
        AdaFMObjective(AdaFMConfig(groups="G3D9"), images().float(), discriminator=discriminator)
    with pytest.raises(ValueError, match="kept anyway; give groups='G3'"):
        config = AdaFMConfig(groups="G3D2", discriminator="projected")
        AdaFMObjective(config, images().float() / 127.5 - 1, features=features)


def test_penalty_of_real_and_fake(stylegan2, discriminator, tmp_path):  # i
    real = trained(stylegan2, discriminator, tmp_path / "a").train_step()
    trainer, seen = trained(stylegan2, discriminator, tmp_path / "b", penalty="real_fake"), []
    losses_of = trainer.objective.discriminator_losses

    def spy(batch):
        seen.append(batch.fake.colour.detach().clone())
        return losses_of(batch)

    trainer.objective.discriminator_losses = spy
    both = trainer.train_step()
    assert "r1" in real and "r1_fake" not in real
    want = r1_penalty(discriminator, seen[0], AdaFMConfig().r1_weight)  # of the discriminator as it was then
    assert both["r1_fake"] == pytest.approx(float(want), rel=1e-3)
    assert AdaFMConfig.paper().r1_weight / 2 == 10  # 10 · mean ‖∇D‖²
    for options, message in (({"penalty": "fake"}, "known: real, real_fake"), ({"freeze_d": 1}, "says what is kept")):
        with pytest.raises(ValueError, match=message):
            AdaFMConfig(**options)


def test_whole_weights_have_a_rate_of_their_own(stylegan2):
    for adapter, rates in (
        (adapter_for(stylegan2), {1.0, SPECIFIC_RATE}),
        (LeFTAdapter.for_model(stylegan2), {1.0}),
        (FullAdapter.for_model(stylegan2), {1.0}),
    ):
        groups = adapter.parameter_groups(0.5)
        assert {group["rate"] for group in groups} == rates
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in adapter.parameters()}
        assert all(group["lr"] == 0.5 * group["rate"] for group in groups)


def test_the_script(base_folder, tmp_path, features, monkeypatch):
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(images()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(data / f"{i}.png")
    monkeypatch.setattr(adapt, "load_features", lambda device="cpu": features)
    common = [f"--base={base_folder}", f"--data={data}", "--report_to=none", "--num_threads=1", "--max_train_steps=2"]
    common += ["--train_batch_size=2", "--sample_steps=0"]
    adapt.main("adafm", [*common, f"--output_dir={tmp_path / 'run'}", "--groups=G3"])
    saved = AdaFMAdapter.from_pretrained(tmp_path / "run")
    assert saved.config.modules_to_save and saved.config.training["groups"] == "G3"
    for options, message in (
        (["--adapter=left"], "AdaFM transfer trains an adafm adapter"),
        (["--groups=G9"], "G9 keeps 9 groups"),
        (["--groups=four"], "not of the form GmDn"),
        (["--groups=G3", "--adafm_start=2"], "adafm_start=2 of 2 steps: scales and shifts would never learn"),
    ):
        with pytest.raises(SystemExit, match=message):
            adapt.main("adafm", [*common, f"--output_dir={tmp_path / 'bad'}", *options])
