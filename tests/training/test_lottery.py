"""Lottery tickets and AdvAug: the twelve tests of the paper's specification, resume, and the script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers.limited_runs import N, biggan, config, images, sngan, trainer
from helpers.run_pages import check_run, read_events, read_losses, read_page
from PIL import Image
from torch import nn

from fewshot_gan.adapters import TicketAdapter, fingerprint, magnitude_masks
from fewshot_gan.adapters.ticket import prunable, sparsity_of
from fewshot_gan.data.datasets import choose_subset, load_labelled
from fewshot_gan.methods.adv_aug import AdvAugConfig, attack, discriminator_loss, generator_loss, undisturbed
from fewshot_gan.methods.losses import hinge_d_loss
from fewshot_gan.methods.lottery import SparseWeights, distillation_loss, prune_randomly
from fewshot_gan.models import (
    GPGANDiscriminator,
    GPGANGenerator,
    SNGANGenerator,
    TailoredGenerator,
)
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import lottery
from fewshot_gan.training.limited import LimitedConfig, LimitedTrainer
from fewshot_gan.training.report import TrainingDiverged

# ------------------------------------------------------------------------------------------------------------- pruning


def test_ten_rounds_leave_the_published_numbers():  # 1
    torch.manual_seed(0)
    model, masks = SNGANGenerator(), None
    left = [2993971, 2395177, 1916142, 1532914, 1226331, 981065, 784852, 627882, 502306, 401845]
    for k, wanted in enumerate(left, 1):
        new = magnitude_masks(model, 0.2, masks=masks)
        assert sum(int(m.sum()) for m in new.values()) == wanted
        assert masks is None or all(not (new[p] & ~masks[p]).any() for p in new)  # nested
        assert abs(sparsity_of(new) - (1 - 0.8**k)) < 1e-6
        masks = new
    weights = prunable(model)
    kept = torch.cat([weights[p].detach().abs()[m] for p, m in masks.items()])
    gone = torch.cat([weights[p].detach().abs()[~m] for p, m in masks.items()])
    assert kept.min() >= gone.max()  # one ranking over the network


def test_random_masks_keep_as_many():  # 12
    g, _ = sngan()
    by_size, anywhere = magnitude_masks(g, 0.67), prune_randomly(g, 0.67, torch.Generator().manual_seed(0))
    assert sparsity_of(by_size) == sparsity_of(anywhere)
    assert not all(torch.equal(by_size[p], anywhere[p]) for p in by_size)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_bad_sparsity(share):
    g, _ = sngan()
    for prune in (magnitude_masks, prune_randomly):
        with pytest.raises(ValueError, match="is not in 0 ≤ sparsity < 1"):
            prune(g, share)


def test_masks_of_another_network_are_refused():
    g, d = sngan()
    masks = magnitude_masks(SNGANGenerator(4, 6, 16), 0.5)
    for refuse in (lambda: SparseWeights(g, masks), lambda: magnitude_masks(g, 0.2, masks=masks)):
        with pytest.raises(ValueError, match="belong to another network, which differs in b16.conv0"):
            refuse()
    with pytest.raises(ValueError, match="belong to another network"):
        SparseWeights(d, magnitude_masks(g, 0.5))


# ------------------------------------------------------------------------------------------------------ sparse training


@pytest.mark.parametrize("make", [sngan, biggan])
def test_a_sparse_run_starts_from_the_first_weights(make, tmp_path):  # 2
    g0, d0 = make()
    masks = {"generator": magnitude_masks(g0, 0.5), "discriminator": magnitude_masks(d0, 0.5)}
    run = trainer(tmp_path, make, masks)
    for name, start in (("generator", g0), ("discriminator", d0)):
        have, weights = getattr(run, name).state_dict(), prunable(getattr(run, name))
        for path, first in prunable(start).items():
            assert torch.equal(weights[path], first * masks[name][path])
        masked = {id(w) for w in weights.values()}
        dense = [n for n, p in getattr(run, name).named_parameters() if id(p) not in masked]
        for key in [*dense, *(n for n, _ in getattr(run, name).named_buffers())]:
            assert torch.equal(have[key], start.state_dict()[key])
    assert not run.optimizer.state and not run.d_optimizer.state


@pytest.mark.parametrize("make", [sngan, biggan])
def test_pruned_weights_stay_exactly_zero(make, tmp_path):  # 3 and 9
    g0, d0 = make()
    masks = {"generator": magnitude_masks(g0, 0.5), "discriminator": magnitude_masks(d0, 0.5)}
    run = trainer(tmp_path, make, masks, adam_beta1=0.5, learning_rate=0.1, d_learning_rate=0.1, max_train_steps=6)
    pipe = run.train()
    moved = 0
    for network, name in (
        (run.generator, "generator"),
        (run.discriminator, "discriminator"),
        (run.average, "generator"),
    ):
        for path, weight in prunable(network).items():
            mask = masks[name][path]
            assert weight[~mask].abs().max() == 0
            moved += int((weight[mask] != 0).sum())
    assert moved > 0
    norm = next(m for m in run.average.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean.abs().max() > 0 and norm.num_batches_tracked > 0
    assert torch.equal(
        norm.running_mean, next(m.running_mean for m in run.generator.modules() if m.__class__ is norm.__class__)
    )
    assert not pipe.generator.training


def test_momentum_leaks_where_gradients_alone_are_masked():
    """What the spec warns of: an optimiser that goes on from dense training moves pruned weights."""
    g, _ = sngan()
    optimizer = torch.optim.Adam(g.parameters(), 0.1, betas=(0.5, 0.999))
    z = torch.randn(4, 6)
    g(z).square().mean().backward()
    optimizer.step()
    sparse = SparseWeights(g, magnitude_masks(g, 0.5))
    optimizer.zero_grad(set_to_none=True)
    g(z).square().mean().backward()
    sparse.mask_gradients()
    optimizer.step()
    leaked = max(float(w.detach()[~m].abs().max()) for w, m in sparse.pairs)
    assert leaked > 0.01
    sparse.mask_weights()
    assert max(float(w.detach()[~m].abs().max()) for w, m in sparse.pairs) == 0


def test_spectral_norm_is_that_of_the_masked_weight():  # 4
    _, d = sngan()
    SparseWeights(d, magnitude_masks(d, 0.5))
    layer = d.block1.conv0.train()
    with torch.no_grad():
        for _ in range(300):
            used = layer.weight
    stored = layer.stored()[0]
    assert (stored == 0).any() and used[stored == 0].abs().max() == 0
    assert torch.allclose(used, stored / torch.linalg.matrix_norm(stored.flatten(1), 2), atol=1e-4)


def test_distillation_is_zero_between_equals(tmp_path):  # 12
    logits = torch.randn(7, 1)
    assert distillation_loss(logits, logits).abs() < 1e-6
    other = torch.randn(7, 1)
    s, t = logits.sigmoid(), other.sigmoid()
    want = (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()).mean() / 2
    assert torch.allclose(distillation_loss(logits, other), want, atol=1e-6)
    _, teacher = sngan(1)
    taught = trainer(tmp_path / "a", teacher=teacher, distillation_weight=1.0)
    assert taught.train_step()["distillation"] > 0
    with pytest.raises(ValueError, match="needs a teacher"):
        trainer(tmp_path / "b", distillation_weight=1.0)


# --------------------------------------------------------------------------------------------------------------- AdvAug


def judged(make):
    _, d = make()
    d.eval()
    x = torch.randn(8, 3, 16, 16)
    labels = None if d.num_classes is None else torch.arange(8) % 3
    with torch.no_grad():
        return d, d.trunk(x), labels


@pytest.mark.parametrize("gamma", [0.01, 0.5])
def test_what_the_released_code_adds_to_logits(gamma):  # 5
    d, vectors, _ = judged(sngan)
    delta = attack(vectors, lambda h: d.head(h).sum(), 1, gamma)
    with torch.no_grad():
        rise = d.head(vectors + delta) - d.head(vectors)
        assert torch.allclose(rise, (gamma * d.out.weight.abs().sum()).expand_as(rise), rtol=1e-4, atol=1e-6)
    d, vectors, labels = judged(biggan)
    vectors[:4] -= (
        100 * (d.out.weight + d.embedding.weight[labels[:4]]).detach().sign()
    )  # far below and above the hinge
    vectors[4:] += 100 * (d.out.weight + d.embedding.weight[labels[4:]]).detach().sign()
    with torch.no_grad():
        assert (d.head(vectors, labels)[:4] < 1).all() and (d.head(vectors, labels)[4:] > 1).all()
    delta = attack(vectors, lambda h: -F.relu(1 - d.head(h, labels)).sum(), 1, gamma)
    with torch.no_grad():
        rise = d.head(vectors + delta, labels) - d.head(vectors, labels)
        want = gamma * (d.out.weight + d.embedding.weight[labels]).abs().sum(1, keepdim=True)
    assert torch.allclose(rise[:4], want[:4], rtol=1e-3) and rise[4:].abs().max() == 0


def captured(monkeypatch, make, direction):
    """Logits of real and fake, clean and moved, and the clean and moved generator loss."""
    from fewshot_gan.methods import adv_aug

    g, d = make()
    d.eval()
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(adv_aug, "hinge_d_loss", lambda real, fake: seen.append((real, fake)) or hinge_d_loss(real, fake))
        patch.setattr(adv_aug, "hinge_g_loss", lambda x: seen.append(-x.mean()) or -x.mean())
        options = AdvAugConfig(1, 0.01, direction)
        labels = None if d.num_classes is None else torch.arange(4) % 3
        real, fake = (torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
        discriminator_loss(d, real, fake, options, labels, labels)
        z = torch.randn(4, g.z_dim, generator=torch.Generator().manual_seed(2))
        generator_loss(g, d, z, lambda x: x, options, labels)
    return seen


@pytest.mark.parametrize("make", [sngan, biggan])
def test_directions(monkeypatch, make):  # 6
    (real, fake), (real2, fake2), g, g2 = captured(monkeypatch, make, "paper")
    assert (real2 < real).all() and (fake2 > fake).all() and g2 > g
    (real, fake), (real2, fake2), g, g2 = captured(monkeypatch, make, "repo")
    assert (real2 > real).all() and (fake2 > fake).all() and g2 < g


def test_no_step_or_no_length_is_no_attack():  # 7
    g, d = sngan()
    d.eval()
    real, fake, z = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.randn(4, 6)
    clean = hinge_d_loss(d(real), d(fake))
    for off in (AdvAugConfig(0), AdvAugConfig(2, 0.0), AdvAugConfig(2, weight=0.0)):
        assert not off.acts
        assert torch.allclose(discriminator_loss(d, real, fake, off), clean, atol=1e-6)
        assert torch.allclose(generator_loss(g, d, z, lambda x: x, off), -d(g(z)).mean(), atol=1e-5)
    vectors = d.trunk(real)
    for steps in (1, 3):
        delta = attack(vectors, lambda h: d.head(h).sum(), steps, 0.01)
        assert 0 < delta.abs().max() <= steps * 0.01 + 1e-7
    weight = d.block0.conv0.stored()[0]
    (clean_gradient,) = torch.autograd.grad(clean, weight)
    only = AdvAugConfig(1, 0.01, weight=1e6)  # all but the moved features' loss vanishes
    discriminator_loss(d, real, fake, only).backward()
    assert weight.grad.norm() > 0.5 * clean_gradient.norm()  # reaches the trunk through the moved features


def test_attacks_leave_no_trace():  # 8
    g, d = sngan()
    norms = [m for m in g.modules() if isinstance(m, nn.BatchNorm2d)]
    before = {k: v.clone() for k, v in d.state_dict().items()}
    z = torch.randn(4, 6)
    d.requires_grad_(False)
    generator_loss(g, d, z, lambda x: x, AdvAugConfig(2)).backward()
    assert all(norm.num_batches_tracked == 1 for norm in norms)  # the clean forward alone
    assert all(p.grad is None for p in d.parameters())
    moved = [k for k, v in d.state_dict().items() if not torch.equal(v, before[k])]
    assert moved and all(k.endswith(("_u", "_v")) for k in moved)  # the clean forward's power iteration
    before = {k: v.clone() for m in (g, d) for k, v in m.state_dict().items()}
    with undisturbed(g, d):
        d(g(z))
    assert all(torch.equal(v, before[k]) for m in (g, d) for k, v in m.state_dict().items())
    g.eval()
    with undisturbed(g), torch.no_grad():
        one, many = g(z[:1]), g(z)[:1]
    assert torch.allclose(one, many, atol=1e-5)  # in evaluation it stays with running statistics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adv_steps": -1}, "adv_steps=-1"),
        ({"adv_gamma": -0.1}, "adv_gamma=-0.1: give 0 or more"),
        ({"adv_direction": "up"}, "unknown adv_direction 'up'; known: paper, repo"),
        ({"diffaugment": "blur"}, "augmentation policy 'blur' is not known"),
        ({"d_steps": 0}, "d_steps=0: give 1 or more"),
        ({"learning_rate": 0}, "learning_rate=0: give a number above 0"),
        ({"ema_decay": 1}, "ema_decay=1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        LimitedConfig("run", **options)


# -------------------------------------------------------------------------------------------------------------- the run


@pytest.mark.parametrize("make", [sngan, biggan])
def test_killed_and_resumed_is_the_same_bit_for_bit(make, tmp_path):
    options = {"adv_steps": 1, "diffaugment": "color,translation", "flip": True, "checkpointing_steps": 2}
    masks = {"generator": magnitude_masks(make()[0], 0.5)}
    whole = trainer(tmp_path / "whole", make, masks, **options).train()
    trainer(tmp_path / "killed", make, masks, **options).train(stop_after=3)
    again = trainer(tmp_path / "killed", make, masks, **options)
    pipe = again.train()
    for name in ("generator", "discriminator"):
        want, have = getattr(whole, name).state_dict(), getattr(pipe, name).state_dict()
        assert all(torch.equal(have[k], v) for k, v in want.items())
    with pytest.raises(ValueError, match="run with other settings .adv_steps was 1, now 0.*masks"):
        trainer(tmp_path / "killed", make, **{**options, "adv_steps": 0}).train()
    loaded = FewShotGAN.from_pretrained(tmp_path / "killed")
    labels = loaded.some_labels(2)
    assert torch.equal(
        loaded(2, seed=0, class_labels=labels, output_type="pt").images,
        pipe(2, seed=0, class_labels=labels, output_type="pt").images,
    )


@pytest.mark.parametrize("losses, option", [("discriminator", "d_learning_rate"), ("generator", "learning_rate")])
def test_a_loss_that_is_not_finite_names_its_own_rate(tmp_path, losses, option):
    run = trainer(tmp_path, learning_rate=1e-4, d_learning_rate=3e-4)
    setattr(run, f"{losses}_losses", lambda *args: {"x": torch.tensor(float("inf"))})
    with pytest.raises(TrainingDiverged, match=f"lower --{option} than {getattr(run.config, option):g}$"):
        run.train()


def test_networks_images_and_labels_must_fit(tmp_path):
    (g, d), (bg, bd) = sngan(), biggan()
    run = lambda *a, **k: LimitedTrainer(*a, config(tmp_path), Accelerator(cpu=True), **k)  # noqa: E731
    for call, message in (
        (lambda: run(g, d, images(size=32)), "images of 32 px, a generator of 16"),
        (lambda: run(g, bd, images()), "no classes and a discriminator of 3"),
        (lambda: run(bg, bd, images()), "without labels"),
        (lambda: run(g, d, images(), labels=torch.zeros(N).long()), "with labels"),
        (lambda: run(bg, bd, images(), labels=torch.full((N,), 3)), "labels go up to 3, but the networks have 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for i, image in enumerate(images(size=32)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    return folder


SMALL = ["--max_train_steps=2", "--d_steps=1", "--d_batch_size=4", "--g_batch_size=4", "--report_to=none"]
SMALL += ["--channels=8", "--d_channels=8", "--num_threads=1", "--checkpointing_steps=1", "--sample_steps=2"]


def find(faces, out, *options, own=True):
    small = [x for x in SMALL if own or "channels" not in x]
    args = [f"--data={faces}", f"--output_dir={out}", *small, *options]
    return lottery.run(lottery.parse(args))


@pytest.mark.parametrize("which", ["G", "GD"])
def test_rounds_of_the_script(faces, tmp_path, which, monkeypatch):
    out = tmp_path / "run"
    folders = find(faces, out, "--rounds=2", f"--prune={which}", "--num=8")
    pipes = [FewShotGAN.from_pretrained(folder) for folder in folders]
    assert len(pipes) == 3 and not (out / "round-00" / "ticket").exists()
    first, second = (TicketAdapter.from_pretrained(out / f"round-0{k}" / "ticket") for k in (1, 2))
    assert first.sparsity() == pytest.approx(0.2, abs=1e-3) and second.sparsity() == pytest.approx(0.36, abs=1e-3)
    for path, mask in second.masks().items():
        assert not (mask & ~first.masks()[path]).any()
    assert (out / "round-02" / "ticket_discriminator").is_dir() == (which == "GD")
    for pipe, ticket in zip(pipes[1:], (first, second), strict=True):
        weights = prunable(pipe.generator)
        assert all(weights[path][~mask].abs().max() == 0 for path, mask in ticket.masks().items())
    assert (out / "round-02" / "samples" / "step-000002.png").is_file()
    page, rounds = read_page(out), [check_run(folder, 2) for folder in folders]
    assert page.state == "finished" and "step 6 of 6" in page.text and "generator 36.0" in page.text
    assert page.links == [f"round-0{k}/report.html" for k in range(3)] and "generator 20.0" in rounds[1].text
    assert {name: list(series) for name, series in page.curves.items()} == dict.fromkeys(
        "dg", [f.name for f in folders]
    )
    assert len([x for x in page.images if x.startswith("Sample pictures of round-")]) == 3
    with monkeypatch.context() as patch:
        patch.setattr(LimitedTrainer, "train_step", None)  # everything is there: nothing is trained again
        assert find(faces, out, "--rounds=2", f"--prune={which}", "--num=8") == folders
    assert read_page(out).polylines == page.polylines
    before = {p.relative_to(out): p.read_bytes() for p in out.glob("round-*/ticket*/*")}
    for changed in (["--prune_rate=0.5"], ["--prune=GD" if which == "G" else "--prune=G"], ["--channels=16"]):
        with pytest.raises(ValueError, match="run with other settings"):
            find(faces, out, "--rounds=2", f"--prune={which}", "--num=8", *changed)
    assert before == {p.relative_to(out): p.read_bytes() for p in out.glob("round-*/ticket*/*")}
    assert read_page(out).state == "finished"
    assert find(faces, out, "--rounds=2", f"--prune={which}", "--num=8") == folders


def test_a_refused_ticket_leaves_nothing_in_a_finished_run(faces, tmp_path):
    out = tmp_path / "run"
    folders = find(faces, out, "--rounds=1")
    before = {p.relative_to(out): p.read_bytes() for p in out.glob("round-*/**/*") if p.is_file()}
    with pytest.raises(ValueError, match=r"run with other settings \(masks was "):
        find(faces, out, "--ticket=random:0.5")
    search = lottery.parse([f"--data={faces}", f"--output_dir={out}", *SMALL])
    masks = TicketAdapter.from_pretrained(out / "round-01" / "ticket").masks()
    with pytest.raises(ValueError, match="tickets of a run with other settings"):  # also if nothing else is compared
        lottery.write_tickets(folders[0], search, None, {"generator": masks}, N, Accelerator(cpu=True))
    assert before == {p.relative_to(out): p.read_bytes() for p in out.glob("round-*/**/*") if p.is_file()}
    assert find(faces, out, "--rounds=1") == folders


def test_rounds_have_curves_of_their_own(faces, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: told.append((sorted(values), step)))
    find(faces, tmp_path / "run", "--rounds=1")
    assert told == [([f"round-0{k}/d", f"round-0{k}/g"], step) for k in (0, 1) for step in (1, 2)]


def test_trackers_are_told_losses_and_pictures(faces, tmp_path):
    find(faces, tmp_path / "run", "--rounds=1", "--report_to=tensorboard")
    scalars, pictures = read_events(tmp_path / "run" / "logs")
    for k in (0, 1):
        assert pictures[f"round-0{k}/samples"] == [2]
        for step, values in read_losses(tmp_path / "run" / f"round-0{k}"):
            for name, value in values.items():
                assert scalars[f"round-0{k}/{name}"][step - 1] == (step, pytest.approx(value, rel=1e-6))


def test_a_ticket_belongs_to_its_first_weights(faces, tmp_path):  # 10
    find(faces, tmp_path / "run", "--rounds=1")
    ticket = tmp_path / "run" / "round-01"
    (again,) = find(faces, tmp_path / "again", f"--ticket={ticket}")
    same = FewShotGAN.from_pretrained(again)
    assert (again / "ticket" / "adapter_model.safetensors").is_file()
    one = FewShotGAN.from_pretrained(ticket)
    assert torch.equal(same.generator.to_rgb.weight, one.generator.to_rgb.weight)  # seed + mask is the ticket
    with pytest.raises(ValueError, match="was drawn from weights θ₀ with fingerprint .*--allow_other_init"):
        find(faces, tmp_path / "other", f"--ticket={ticket}", "--seed=1")
    (twin,) = find(faces, tmp_path / "twin", f"--ticket={ticket}", "--seed=1", "--init_seed=0")  # the same θ₀
    assert not torch.equal(FewShotGAN.from_pretrained(twin).generator.to_rgb.weight, one.generator.to_rgb.weight)
    (folder,) = find(faces, tmp_path / "other", f"--ticket={ticket}", "--seed=1", "--allow_other_init")
    other = FewShotGAN.from_pretrained(folder)
    assert sparsity_of({p: w != 0 for p, w in prunable(other.generator).items()}) >= 0.2
    (folder,) = find(faces, tmp_path / "random", "--ticket=random:0.5")
    anywhere = FewShotGAN.from_pretrained(folder)
    assert sparsity_of({p: w != 0 for p, w in prunable(anywhere.generator).items()}) == pytest.approx(0.5, abs=1e-3)


def test_distilled_rounds_and_a_base_to_rewind_to(faces, tmp_path):
    find(faces, tmp_path / "dense")
    base = tmp_path / "dense" / "round-00"
    with pytest.raises(ValueError, match="of new networks, --base has its own"):
        find(faces, tmp_path / "run", f"--base={base}")
    again = find(faces, tmp_path / "weighted", "--rounds=1", "--distil", "--distillation_weight=0.5")
    settings = [
        json.loads(next(x.glob("checkpoint-*/training_config.json")).read_text(encoding="utf-8")) for x in again
    ]
    assert [x["distillation_weight"] for x in settings] == [0.0, 0.5]
    pipes = find(faces, tmp_path / "run", "--rounds=1", "--distil", f"--base={base}", own=False)
    first = TicketAdapter.from_pretrained(tmp_path / "run" / "round-01" / "ticket")
    dense = FewShotGAN.from_pretrained(tmp_path / "dense" / "round-00")
    assert first.config.base_fingerprint == fingerprint(dense.generator) and len(pipes) == 2
    settings = json.loads(
        next((tmp_path / "run" / "round-01").glob("checkpoint-*/training_config.json")).read_text(encoding="utf-8")
    )
    assert settings["distillation_weight"] == 1.0


FRESH = """
import json, sys
sys.path.insert(0, {tests!r})
from helpers.limited_runs import sngan, trainer
from fewshot_gan.adapters import Adapter, fingerprint
ticket = Adapter.from_pretrained({ticket!r})
run = trainer({out!r}, masks={{"generator": ticket.masks()}}, max_train_steps=10)
assert ticket.config.base_fingerprint == fingerprint(sngan()[0])
print(json.dumps([run.train_step() for _ in range(10)]))
"""


def test_a_ticket_retrained_in_a_fresh_process_has_the_same_losses(tmp_path):
    g0, _ = sngan()
    masks = magnitude_masks(g0, 0.5)
    TicketAdapter.for_model(g0, masks=masks).save_pretrained(tmp_path / "ticket")
    run = trainer(tmp_path / "a", masks={"generator": masks}, max_train_steps=10)
    here = [run.train_step() for _ in range(10)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    code = FRESH.format(tests=str(Path(__file__).parents[1]), ticket=str(tmp_path / "ticket"), out=str(tmp_path / "b"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **threads})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds=-1"], "rounds=-1: give 0"),
        (["--rounds=1", "--prune_rate=1"], "prune_rate=1.0 is not in 0 < prune_rate < 1"),
        (["--rounds=1", "--ticket=random:0.5"], "give one of them"),
        (["--ticket=random:1"], "sparsity=1.0 is not in"),
        (["--ticket=random:much"], "give the sparsity, e.g. random:0.67"),
        (["--distil"], "give --rounds"),
        (["--num=13"], "a subset of 13 images of 12"),
        (["--num=3", "--percent=10"], "give one of them"),
        (["--backbone=biggan"], "class-conditional; give a folder of folders"),
        (["--backbone=biggan", "--resolution=48"], "not 48"),
        (["--ticket=nowhere"], "nowhere"),
        (["--channels=12"], "channels=12: give a multiple of 8"),
        (["--base=nowhere", "--init_seed=1"], "--init_seed are of new networks"),
        (["--prune=GD"], "are of --rounds, which find a ticket"),
        (["--ticket=random:0.5", "--prune_rate=0.5"], "are of --rounds, which find a ticket"),
        (["--rounds=1", "--distillation_weight=0.5"], "is of --distil; give both or neither"),
        (["--rounds=1", "--distil", "--distillation_weight=0"], "with --distil teaches nothing; give a weight"),
        (["--ada_kimg=1"], "--ada_kimg 1.0 acts only with --augment ada; give that too, or leave --ada_kimg out"),
        (["--backbone=stylegan2", "--r1_weight=0", "--r1_every=4"], "--r1_every 4 acts only with --r1_weight above 0"),
    ],
)
def test_bad_options_end_in_one_sentence(faces, tmp_path, options, message):
    args = [f"--data={faces}", f"--output_dir={tmp_path / 'run'}", *SMALL, *options]
    with pytest.raises(SystemExit, match=message):
        lottery.main(args)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- the data


def test_classes_are_folders(tmp_path, faces):
    root = tmp_path / "root"
    for name, count in (("cats", 3), ("apes", 2)):
        (root / name).mkdir(parents=True)
        for i, path in enumerate(sorted(faces.iterdir())[:count]):
            (root / name / f"{i}.png").write_bytes(path.read_bytes())
    found, labels, names = load_labelled(root, 32)
    assert names == ["apes", "cats"] and labels.tolist() == [0, 0, 1, 1, 1] and found.shape == (5, 3, 32, 32)
    assert torch.equal(found[0], found[2])
    (root / "odd.png").write_bytes((root / "cats" / "0.png").read_bytes())
    with pytest.raises(ValueError, match="images beside folders of images .apes"):
        load_labelled(root, 32)
    assert load_labelled(faces, 32)[1] is None


def test_subsets_are_exact_and_nested():
    small, large = choose_subset(100, 10, None, 3), choose_subset(100, None, 33, 3)
    assert len(small) == 10 and len(large) == 33 and {*small.tolist()} <= {*large.tolist()}
    assert small.tolist() == sorted(small.tolist()) and not torch.equal(small, choose_subset(100, 10, None, 4))
    assert choose_subset(5, None, None, 0).tolist() == [0, 1, 2, 3, 4]
    for num, percent in ((0, None), (101, None), (None, 0), (None, 101), (None, 0.1)):
        with pytest.raises(ValueError, match="give"):
            choose_subset(100, num, percent, 0)


def test_labelled_data_trains_networks_with_and_without_classes(faces, tmp_path, capsys):
    for i, path in enumerate(sorted(faces.iterdir())):
        (faces / f"class-{i % 2}").mkdir(exist_ok=True)
        path.rename(faces / f"class-{i % 2}" / path.name)
    (folder,) = find(faces, tmp_path / "sngan")
    assert FewShotGAN.from_pretrained(folder).generator.num_classes is None
    (folder,) = find(faces, tmp_path / "biggan", "--backbone=biggan", "--max_train_steps=1")
    assert "the average begins at step 1000, after the 1 of the run; give --ema_start" in capsys.readouterr().out
    generator = FewShotGAN.from_pretrained(folder).generator
    assert generator.num_classes == 2 and list(generator.config.block_channels) == [8] * 4


def test_classes_of_base_and_data_must_agree(faces, tmp_path):
    for i, path in enumerate(sorted(faces.iterdir())):
        (faces / f"class-{i % 2}").mkdir(exist_ok=True)
        path.rename(faces / f"class-{i % 2}" / path.name)
    for classes, plain in ((3, False), (2, True)):
        torch.manual_seed(0)
        networks = GPGANGenerator((8, 8, 8, 8, 8), 1, classes, 4, 2), GPGANDiscriminator((8, 8, 8, 8, 8), 1, classes)
        FewShotGAN(*networks).save_pretrained(tmp_path / f"base-{classes}")
        data, has = (faces / "class-0", "no") if plain else (faces, 2)
        with pytest.raises(ValueError, match=f"has {has} classes, the networks have {classes}; use data of as many"):
            find(data, tmp_path / "run", f"--base={tmp_path / f'base-{classes}'}", own=False)


def test_a_single_class_needs_no_label(faces, tmp_path):
    networks = GPGANGenerator((8, 8, 8, 8, 8), 1, 1, 4, 1), GPGANDiscriminator((8, 8, 8, 8, 8), 1, 1)
    FewShotGAN(*networks).save_pretrained(tmp_path / "base")
    (folder,) = find(faces, tmp_path / "run", f"--base={tmp_path / 'base'}", own=False)
    assert FewShotGAN.from_pretrained(folder)(2, seed=0).images


def test_a_base_without_a_plain_generator(faces, base_folder, tmp_path):
    with pytest.raises(ValueError, match="is a MobileStyleGANGenerator with StyleGAN2Discriminator; tickets are found"):
        find(faces, tmp_path / "run", f"--base={base_folder}", own=False)
    tiny = tmp_path / "tiny"
    FewShotGAN(*sngan()).save_pretrained(tiny)
    from fewshot_gan.training import adapt

    with pytest.raises(SystemExit, match="is a SNGANGenerator; these methods adapt style-based generators"):
        adapt.main("finetune", [f"--base={tiny}", f"--data={faces}", f"--output_dir={tmp_path / 'x'}"])


def test_noise_of_layers_goes_on_after_a_kill(tmp_path):
    def make():
        torch.manual_seed(0)
        return TailoredGenerator((8, 4), 1, 3, 1, 6, 5, 2, gain=3.0), sngan()[1]

    whole = trainer(tmp_path / "whole", make, checkpointing_steps=2).train()
    trainer(tmp_path / "killed", make, checkpointing_steps=2).train(stop_after=3)
    torch.randn(7)
    again = trainer(tmp_path / "killed", make, checkpointing_steps=2).train()
    assert all(torch.equal(v, again.generator.state_dict()[k]) for k, v in whole.generator.state_dict().items())


REPLICA = """
import json, sys
from fewshot_gan.adapters import fingerprint
from fewshot_gan.training import limited, lottery
train = limited.LimitedTrainer.train
def traced(self):
    pipe = train(self)
    networks = {"g": self.generator, "d": self.discriminator, "average": self.average}
    prints = {name: fingerprint(n, dict(n.named_parameters())) for name, n in networks.items()}  # not batch statistics
    order = self.batches._order[:3].tolist()
    place = self.folder.parent.parent / f"{self.folder.name}-{self.accelerator.process_index}.json"
    place.write_text(json.dumps([prints, order]))
    return pipe
limited.LimitedTrainer.train = traced
lottery.main(sys.argv[1:])
"""


def test_two_processes_stay_replicas(faces, tmp_path):
    """Each has batches of its own, and both the same networks; a ticket is written once."""
    (code := tmp_path / "replica.py").write_text(REPLICA, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(code)]
    options = [f"--data={faces}", f"--output_dir={tmp_path / 'run'}", *SMALL, "--rounds=1", "--adv_steps=1"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *options], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for name in ("round-00", "round-01"):
        one, two = (json.loads((tmp_path / f"{name}-{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
        assert one[0] == two[0] and one[1] != two[1]
        assert (tmp_path / "run" / name / "model_index.json").is_file()
        assert "2 processes on cpu" in check_run(tmp_path / "run" / name, 2).text
        assert len([*(tmp_path / "run" / name).glob("checkpoint-*/state-*.pt")]) == 2
    assert TicketAdapter.from_pretrained(tmp_path / "run" / "round-01" / "ticket").sparsity() == pytest.approx(
        0.2, abs=0.01
    )
