"""Lottery tickets of StyleGAN2: exact counts, masks after momentum, exact resume, lazy regularisation, AdvAug."""

import json

import pytest
import torch
from accelerate import Accelerator
from helpers.networks import tiny_stylegan2
from PIL import Image

from fewshot_gan.adapters import TicketAdapter
from fewshot_gan.adapters.ticket import magnitude_masks, prunable
from fewshot_gan.methods.losses import logistic_d_loss
from fewshot_gan.models import StyleGAN2Discriminator, StyleGAN2Generator
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import lottery
from fewshot_gan.training.limited_styles import StyleConfig, StyleTrainer

SMALL = ["--backbone=stylegan2", "--channels=8", "--d_channels=8", "--max_train_steps=2", "--d_batch_size=4"]
SMALL += ["--g_batch_size=4", "--report_to=none", "--num_threads=1", "--checkpointing_steps=1", "--sample_steps=2"]


def pictures(num=8):
    return torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make():
    def run(folder, masks=None, steps=6, **settings):
        torch.manual_seed(0)
        networks = tiny_stylegan2(), StyleGAN2Discriminator(32, 512, 16, mbstd_group_size=2)
        usual = {"d_batch_size": 4, "g_batch_size": 4, "sample_steps": 0, "checkpointing_steps": 3, "r1_every": 2}
        config = StyleConfig(str(folder), max_train_steps=steps, **(usual | {"path_length_every": 2} | settings))
        masks = masks and {name: masks(network) for name, network in zip(masks_of, networks, strict=True)}
        return StyleTrainer(*networks, pictures(), config, Accelerator(cpu=True), masks=masks)

    masks_of = "generator", "discriminator"
    return run


def test_counts_of_the_published_layout():
    """Convolutions of StyleGAN2 at 256 px with channel multiplier 2, ToRGB included."""
    with torch.device("meta"):
        networks = StyleGAN2Generator(256), StyleGAN2Discriminator(256)
    assert [sum(w.numel() for w in prunable(network).values()) for network in networks] == [23_454_336, 24_662_912]


def test_masks_stay_exact_after_momentum(make, tmp_path):
    run = make(tmp_path, masks=lambda network: magnitude_masks(network, 0.5), adam_beta1=0.5)
    for _ in range(5):
        logs = run.train_step()
    assert {"d", "g", "r1", "path_length"} == set(logs)  # the fifth step, number 4, has both regularisers
    for name in ("generator", "discriminator", "average"):
        masks = run.masks["generator" if name == "average" else name]
        moved = 0
        for path, weight in prunable(getattr(run, name)).items():
            assert not weight[~masks[path]].any()
            moved += int(weight[masks[path]].abs().sum() > 0)
        assert moved == len(masks)


def test_lazy_regularisation_and_mean_w(make, tmp_path):
    run = make(tmp_path)
    names = [set(run.train_step()) for _ in range(3)]
    assert names == [{"d", "g", "r1", "path_length"}, {"d", "g"}, {"d", "g", "r1", "path_length"}]
    base = run.result.generator
    z = torch.randn(4096, base.z_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(base.mapping.w_avg, base.mapping(z)[:, 0].mean(0).detach())
    off = make(tmp_path / "off", r1_weight=0.0, path_length_weight=0.0)
    assert set(off.train_step()) == {"d", "g"}


@pytest.mark.parametrize("settings", [{"diffaugment": "color,translation,cutout"}, {"augment": "ada"}])
def test_r1_is_that_of_pictures_before_their_augmentation(make, tmp_path, monkeypatch, settings):
    run = make(tmp_path / "a", **settings, flip=False)
    if run.strength is not None:
        run.strength.p = 0.7
    seen, losses_of = [], run.discriminator_losses

    def spy(real, *rest):
        seen.append(real)
        return losses_of(real, *rest)

    def watched(judge, images, weight):
        seen.append(images)
        logits = judge(images)
        torch.testing.assert_close(logits, run.discriminator(seen[0]))  # augmented by the same draws
        return logits.sum()

    run.discriminator_losses = spy
    monkeypatch.setattr("fewshot_gan.training.limited_styles.r1_penalty", watched)
    logs = run.train_step()
    augmented, images = seen
    known = pictures().float() / 127.5 - 1
    assert all((image == known).flatten(1).all(1).any() for image in images) and not torch.equal(images, augmented)
    off = make(tmp_path / "b", **settings, flip=False, r1_weight=0.0)
    if off.strength is not None:
        off.strength.p = 0.7
    assert logs["d"] == off.train_step()["d"] and torch.equal(run.random.get_state(), off.random.get_state())
    assert run.strength == off.strength


def test_killed_and_resumed_is_the_same_bit_for_bit(make, tmp_path):
    settings = {
        "masks": lambda network: magnitude_masks(network, 0.2),
        "adv_steps": 1,
        "augment": "ada",
        "ada_kimg": 0.1,
    }
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    make(tmp_path / "killed", **settings).train(stop_after=3)
    resumed = make(tmp_path / "killed", **settings)
    resumed.train()
    assert resumed.strength == whole.strength
    for name in ("generator", "discriminator", "average", "path_length"):
        a, b = (getattr(run, name).state_dict() for run in (whole, resumed))
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_adv_aug_perturbs_the_last_layer_and_the_styles(make, tmp_path):
    run = make(tmp_path, adv_steps=1, adv_gamma=0.05)
    real, fake = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    d, kept = run.discriminator, []
    loss = run.discriminator_losses(real, fake, None, None, kept)["d"]
    clean = logistic_d_loss(d(real), d(fake))
    torch.testing.assert_close(kept[0], d(real))
    inputs = []
    handle = d.b4.out.register_forward_pre_hook(lambda m, x: inputs.append(x[0]))
    d(real), d(fake)
    handle.remove()
    direction = torch.autograd.grad(d.b4.out(inputs[0]).sum(), inputs[0])[0].sign()
    moved = logistic_d_loss(d.b4.out(inputs[0] - 0.05 * direction), d.b4.out(inputs[1] + 0.05 * direction[:1]))
    torch.testing.assert_close(loss, (clean + moved) / 2)
    torch.manual_seed(3)
    assert run.generator_losses()["g"].requires_grad


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for i, image in enumerate(pictures(12)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    return folder


def find(faces, out, *options):
    return lottery.run(lottery.parse([f"--data={faces}", f"--output_dir={out}", *SMALL, *options]))


def test_rounds_rewind_and_prune(faces, tmp_path):
    folders = find(faces, tmp_path / "run", "--rounds=2", "--prune=GD", "--num=8")
    pipes = [FewShotGAN.from_pretrained(folder) for folder in folders]
    for k, pipe in enumerate(pipes[1:], 1):
        for part, network in (("ticket", pipe.generator), ("ticket_discriminator", pipe.discriminator)):
            ticket = TicketAdapter.from_pretrained(folders[k] / part)
            assert ticket.sparsity() == pytest.approx(1 - 0.8**k, abs=1e-3)
            weights = prunable(network)
            assert all(not weights[path][~mask].any() for path, mask in ticket.masks().items())
    assert len(pipes[-1](2, seed=0, truncation_psi=0.5).images) == 2
    (again,) = find(faces, tmp_path / "again", f"--ticket={folders[2]}", "--num=8", "--adv_steps=1", "--augment=ada")
    other, trained = (FewShotGAN.from_pretrained(folder).generator for folder in (again, folders[2]))
    for (path, a), b in zip(prunable(other).items(), prunable(trained).values(), strict=True):
        assert torch.equal(a != 0, b != 0), path


def test_a_converted_base_is_rewound_to(faces, tmp_path):
    """Tickets of pretrained weights: round 0 and round 1 start from the base's own."""
    torch.manual_seed(5)
    base = FewShotGAN(StyleGAN2Generator(32, 512, 8), StyleGAN2Discriminator(32, 512, 8, mbstd_group_size=2))
    base.save_pretrained(tmp_path / "base")
    own = [option for option in SMALL if "channels" not in option]
    args = [f"--data={faces}", f"--output_dir={tmp_path / 'run'}", f"--base={tmp_path / 'base'}", "--rounds=1", *own]
    lottery.run(lottery.parse(args))
    ticket = TicketAdapter.from_pretrained(tmp_path / "run" / "round-01" / "ticket")
    assert ticket.config.base_fingerprint == TicketAdapter.for_model(base.generator).config.base_fingerprint
    with pytest.raises(ValueError, match="is a StyleGAN2Generator; give --backbone stylegan2"):
        lottery.run(lottery.parse([x for x in args if "backbone" not in x and "rounds" not in x]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone=sngan", "--r1_weight=1"], "--r1_weight is of --backbone stylegan2; sngan has none"),
        (["--rounds=1", "--distil"], "--distil teaches logits of a hinge loss"),
        (["--style_mixing=1.5"], "style_mixing=1.5: give 0 to 1"),
        (["--augment=often"], "invalid choice|unknown augment"),
    ],
)
def test_bad_options(faces, tmp_path, options, message, capsys):
    try:
        with pytest.raises(ValueError, match=message):
            find(faces, tmp_path / "run", *options)
    except SystemExit:
        assert "invalid choice" in capsys.readouterr().err


def test_published_defaults():
    config = lottery.make_run(data="x", output_dir="y", backbone="stylegan2").training
    wanted = {
        **{"d_steps": 1, "r1_weight": 10.0, "r1_every": 16, "path_length_weight": 2.0, "path_length_every": 4},
        **{"style_mixing": 0.9, "adam_beta1": 0.0, "learning_rate": 0.0016, "flip": True},
    }
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.d_learning_rate == pytest.approx(0.0018824, rel=1e-4)
    assert config == StyleConfig("y")


def test_rates_and_beta2_follow_lazy_regularisation(make, tmp_path):
    """As published, each network has its own: 0.002 · n/(n + 1) and 0.99^(n/(n + 1))."""

    def rates(**settings):
        config = lottery.make_run(data="x", output_dir=str(tmp_path), backbone="stylegan2", **settings).training
        return config.learning_rate, config.adam_beta2, config.d_learning_rate, config.d_adam_beta2

    lazily = {n: (0.002 * n / (n + 1), 0.99 ** (n / (n + 1))) for n in (4, 8, 16)}
    assert rates() == pytest.approx((*lazily[4], *lazily[16]))
    assert rates(path_length_every=8, r1_every=4) == pytest.approx((*lazily[8], *lazily[4]))
    assert rates(path_length_weight=0.0, r1_weight=0.0) == (0.002, 0.99, 0.002, 0.99)
    assert rates(adam_beta2=0.9, learning_rate=1e-3)[:2] == (1e-3, 0.9) and rates(adam_beta2=0.9)[3] is None
    with pytest.raises(ValueError, match="r1_every=0: give 1 or more"):
        rates(r1_every=0)
    with pytest.raises(ValueError, match="d_adam_beta2=1.0: give 0 to below 1"):
        rates(d_adam_beta2=1.0)
    for d_beta2, want in ((0.5, 0.5), (None, 0.9)):
        run = make(tmp_path / "run", adam_beta2=0.9, d_adam_beta2=d_beta2)
        assert run.d_optimizer.param_groups[0]["betas"] == (0.0, want)
        assert run.optimizer.param_groups[0]["betas"] == (0.0, 0.9)


def test_a_run_of_an_older_version_goes_on_with_its_own_beta2(faces, tmp_path):
    options = ["--path_length_every=8", "--num=8", "--learning_rate=0.0016", f"--adam_beta2={0.99 ** (4 / 5)!r}"]
    (folder,) = find(faces, tmp_path / "run", *options, f"--d_learning_rate={0.002 * 16 / 17!r}")  # as it was
    config = folder / "checkpoint-000002" / "training_config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    assert record.pop("d_adam_beta2") is None
    config.write_text(json.dumps(record), encoding="utf-8")
    (config.parent / "sha256.json").unlink()
    assert find(faces, tmp_path / "run", *options[:2], "--max_train_steps=3") == [folder]
    assert (folder / "checkpoint-000003").is_dir()


def test_r1_counts_steps_of_the_discriminator(make, tmp_path):
    run = make(tmp_path, d_steps=2, r1_every=4, path_length_weight=0.0)
    update, names = run._update, []

    def spy(name, optimizer, losses):
        names.extend(losses)
        return update(name, optimizer, losses)

    run._update = spy
    for _ in range(6):
        run.train_step()
    steps = [name for name in names if name != "g"]
    assert [steps[:k].count("d") - 1 for k, name in enumerate(steps) if name == "r1"] == [0, 4, 8]
