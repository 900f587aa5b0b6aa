"""AdaFM transfer: what is kept, what is modulated and when, what is retrained (spec tests a to i, l)."""

import shutil
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import AdaFMAdapter, AdapterBank, FullAdapter, LeFTAdapter, fingerprint
from fewshot_gan.adapters.adafm import WEIGHT_RATE, AdaFMFactors
from fewshot_gan.methods.adafm import AdaFMConfig, AdaFMObjective, parse_groups, split_generator
from fewshot_gan.methods.losses import r1_penalty
from fewshot_gan.models import GPGANDiscriminator, GPGANGenerator
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
    assert both["r1_fake"] == pytest.approx(float(want.detach()), rel=1e-3)
    assert AdaFMConfig.paper().r1_weight / 2 == 10  # 10 · mean ‖∇D‖²
    for options, message in (({"penalty": "fake"}, "known: real, real_fake"), ({"freeze_d": 1}, "says what is kept")):
        with pytest.raises(ValueError, match=message):
            AdaFMConfig(**options)


def test_whole_weights_have_a_rate_of_their_own(stylegan2):
    for adapter, rates in (
        (adapter_for(stylegan2), {1.0, WEIGHT_RATE}),
        (LeFTAdapter.for_model(stylegan2), {1.0}),
        (FullAdapter.for_model(stylegan2), {1.0}),
    ):
        groups = adapter.parameter_groups(0.5)
        assert {group["rate"] for group in groups} == rates
        slow = {id(p) for group in groups if group["rate"] == WEIGHT_RATE for p in group["params"]}
        assert slow == {id(p) for n, p in adapter.named_parameters() if 1.0 != min(rates) and not n.endswith("gamma")}
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in adapter.parameters()}
        assert all(group["lr"] == 0.5 * group["rate"] for group in groups)


def test_the_script(base_folder, data, tmp_path, features, monkeypatch):
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda device="cpu": features)
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


# ------------------------------------------------------------------------------------------ a GP-GAN and its own part


def gp_gan(discriminator=True):
    torch.manual_seed(5)
    g = GPGANGenerator((8, 8, 8, 6, 4), num_classes=3, z_dim=6, embedding_dim=4)  # 4 to 32 px
    return FewShotGAN(g, GPGANDiscriminator((8, 8, 8, 6, 4), num_classes=3) if discriminator else None)


@pytest.fixture
def data(tmp_path):
    (folder := tmp_path / "data").mkdir()
    for i, image in enumerate(images()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def transfer(tmp_path, data, features, monkeypatch):
    """`transfer(folder, *options)` runs the script on a tiny GP-GAN, and returns the trainer it used."""
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda device="cpu": features)
    gp_gan().save_pretrained(tmp_path / "source")
    made = []
    monkeypatch.setattr(adapt, "Trainer", lambda *args: made.append(Trainer(*args)) or made[-1])

    def run(folder, *options):
        common = [f"--base={tmp_path / 'source'}", f"--data={data}", "--report_to=none", "--num_threads=1"]
        common += ["--preset=paper", "--groups=G3D2", "--train_batch_size=2", "--sample_steps=2", "--matcher_gain=10"]
        common += ["--adafm_start=2", "--max_train_steps=4", "--checkpointing_steps=2", "--ema_decay=0"]
        adapt.main("adafm", [*common, f"--output_dir={tmp_path / folder}", *options])
        return made[-1]

    return run


def test_transfer_of_a_gp_gan(transfer, tmp_path):
    trainer, source = transfer("run", "--learning_rate=0.01"), gp_gan()  # what float16 tells from 1
    theirs, judge = source.generator.state_dict(), source.discriminator.state_dict()
    pipe = FewShotGAN.from_pretrained(tmp_path / "run" / "base")
    own = pipe.generator.state_dict()
    kept = {name for name in own if pipe.generator.is_kept(name)}
    assert {name.split(".")[0] for name in kept} == {"b16", "b32", "to_rgb"}
    assert all(torch.equal(own[name], theirs[name]) for name in kept)
    # the adapter: γ and β of kept filters, everything of the specific part, nothing else
    adapter = AdaFMAdapter.from_pretrained(tmp_path / "run")
    layers = {path: layer.role for path, layer in adaptable_layers(pipe.generator)}
    modulated = {path for path, f in adapter.factors().items() if isinstance(f, AdaFMFactors)}
    assert modulated == {path for path in layers if pipe.generator.is_kept(path) and layers[path] == "conv"}
    assert {*adapter.config.modules_to_save} == {path for path in layers if not pipe.generator.is_kept(path)}
    assert all(f.gamma.ne(1).any() for path, f in adapter.factors().items() if path in modulated)
    assert all(f.weight_delta.ne(0).any() for path, f in adapter.factors().items() if path not in modulated)
    # the discriminator: D2 bit-equal, the rest learned, its last layer new
    after = trainer.objective.discriminator.state_dict()
    same = {name for name in after if after[name].shape == judge[name].shape and torch.equal(after[name], judge[name])}
    assert same == {name for name in judge if name.startswith(("from_rgb.", "b32."))}
    assert after["out.weight"].shape[0] == 1
    # loaded on the base that lies beside it
    images = pipe(2, seed=0, output_type="pt").images
    pipe.load_adapter(tmp_path / "run", "new")
    assert not torch.allclose(pipe(2, seed=0, output_type="pt").images, images, atol=1e-3)


def test_transfer_of_a_gp_gan_waits_and_resumes(transfer, tmp_path):
    whole = transfer("whole")
    first = torch.load(tmp_path / "whole" / "checkpoint-000002" / "state-0.pt", weights_only=True)["adapter"]
    gammas = [name for name in first if name.endswith("gamma")]
    assert gammas and all((first[name] == 1).all() for name in gammas)  # γ and β learn from step 2 on
    shutil.copytree(tmp_path / "whole" / "checkpoint-000002", tmp_path / "again" / "checkpoint-000002")
    again = transfer("again", "--sample_steps=1")  # noise of layers is drawn anew each step, and sampling takes none
    for a, b in ((whole.adapter, again.adapter), (whole.objective, again.objective)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert whole.generator.training


def test_the_base_of_a_finished_run_stays(transfer, tmp_path):
    transfer("run")
    with pytest.raises(SystemExit, match=r"holds a run with other settings \(base_fingerprint was .* start anew"):
        transfer("run", "--matcher_gain=7")
    FewShotGAN.from_pretrained(tmp_path / "run" / "base").load_adapter(tmp_path / "run")
    record = AdaFMAdapter.from_pretrained(tmp_path / "run").config.training
    assert record["source"] == "source" and record["matcher_gain"] == 10 and record["z_dim"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset=few_images"], "--preset few_images does not fit a GP-GAN .*; give --preset paper"),
        (["--truncation_psi=0.5"], "--truncation_psi 0.5 does not fit a GP-GAN"),
        (["--content_weight=5"], "--content_weight 5.0 does not fit"),
        (["--z_dim=0"], "z_dim=0: give 1 or more"),
        (["--matcher_gain=nan"], "matcher_gain=nan: give a number above 0"),
        (["--weight_rate=0"], "weight_rate=0.0: give a number above 0"),
        (["--push_to_hub"], "the adapter of a GP-GAN needs the base that this run saves beside it"),
        (["--path_length_weight=2"], "--path_length_weight 2.0 does not fit"),
        (["--groups=G9"], "G9 of a network with 4 scales"),
        (["--groups=G3D9"], "D9 keeps 9 groups, this discriminator has 5; give D0 to D5"),
    ],
)
def test_refused_of_a_gp_gan(transfer, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        transfer("bad", *options)
    assert not (tmp_path / "bad" / "base").exists()


def test_who_cannot_be_transferred(transfer, base_folder, data, tmp_path):
    gp_gan(discriminator=False).save_pretrained(tmp_path / "alone")
    for options, message in (
        ([f"--base={tmp_path / 'alone'}"], "has no discriminator to transfer"),
        ([f"--base={base_folder}", "--preset=few_images", "--groups=G3"], "configure the new layers of a GP-GAN"),
    ):
        with pytest.raises(SystemExit, match=message):
            transfer("bad", *options)
    common = [f"--base={tmp_path / 'source'}", f"--data={data}", "--report_to=none", f"--output_dir={tmp_path / 'bad'}"]
    with pytest.raises(SystemExit, match="is a GPGANGenerator; these methods adapt style-based"):
        adapt.main("finetune", common)


def test_the_published_rates(transfer):
    trainer = transfer("run")
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-4]  # scales, shifts and weights alike
    assert trainer.config.learning_rate == 1e-4


def test_attack_of_a_tailored_generator(transfer):
    trainer = transfer("run", "--adv_steps=1", "--r1_every=1", "--penalty=real_fake", "--z_dim=4")
    assert trainer.generator.z_dim == 4 and trainer.train_step().keys() == {"d", "r1", "r1_fake", "g", "adv_aug"}
