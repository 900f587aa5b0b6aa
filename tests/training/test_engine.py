"""The training loop: exact resume, frozen base, no forgetting, clear refusals, nothing half-written."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from helpers.run_pages import check_run, read_page
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import catalogue
from fewshot_gan.adapters import (
    AdaFMAdapter,
    Adapter,
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    GANMemoryAdapter,
    LeFTAdapter,
    read_adapter,
    trainable_types,
)
from fewshot_gan.cli import app
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
from fewshot_gan.methods.pair import Latents
from fewshot_gan.training.augment import DiffAugment
from fewshot_gan.training.augmenter import Augmenter
from fewshot_gan.training.checkpoints import checkpoints
from fewshot_gan.training.config import trainable
from fewshot_gan.training.engine import Trainer, TrainingConfig
from fewshot_gan.training.report import TrainingDiverged

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
EVERYTHING = DiffAugment.EVERYTHING
OBJECTIVES = {
    "projected": LFSConfig.few_images(),
    "source": replace(LFSConfig.paper(), r1_every=2, path_length_every=2, mode_seeking_factor=2),
}


@pytest.fixture
def trainer(mobile, features, discriminator):
    """`make(folder, objective, adapter class, settings…)` with everything fresh, as a new process would have it."""

    def make(folder, objective="projected", cls=LeFTAdapter, images=IMAGES, generator=None, options=None, **settings):
        settings = {"max_train_steps": 6, "train_batch_size": 2, "checkpointing_steps": 3, "sample_steps": 0} | settings
        generator = deepcopy(mobile) if generator is None else generator
        torch.manual_seed(0)
        adapter = cls.for_model(generator, **(options or {}))
        config = OBJECTIVES[objective] if isinstance(objective, str) else objective
        real = images.float() / 127.5 - 1
        judge = LFSObjective(config, real, 16, discriminator=deepcopy(discriminator), features=features)
        return Trainer(
            generator, adapter, judge, images, TrainingConfig(str(folder), **settings), Accelerator(cpu=True)
        )

    return make


def state_of(folder, step=6):
    return torch.load(folder / f"checkpoint-{step:06d}" / "state-0.pt", weights_only=True)


def assert_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def draw(generator, adapter=None):
    bank = AdapterBank(generator)
    if adapter is not None:
        bank.add("a", adapter)
        bank.activate({"a": 1.0})
    with torch.no_grad():
        images = generator(torch.randn(2, 16, generator=torch.Generator().manual_seed(3)))
    bank.activate({})
    return images


# -------------------------------------------------------------------------------------------------------------- resume


def test_an_augmentation_that_breaks_alignment_is_refused(trainer, tmp_path):
    with pytest.raises(ValueError, match="augment='diffaugment' moves each image on its own"):
        trainer(tmp_path, "projected", LeFTAdapter, augment="diffaugment")


@pytest.mark.parametrize(
    "objective, cls, settings",
    [
        ("projected", LeFTAdapter, {}),
        ("projected", DomainVectorAdapter, {"augment": "none", "ema_decay": 0.0}),
        ("source", LeFTAdapter, {"augment": "flip"}),
        ("source", DomainVectorAdapter, {"augment": "diffaugment"}),
        ("projected", AdaFMAdapter, {}),
        ("projected", GANMemoryAdapter, {}),
        ("projected", FullAdapter, {}),
    ],
)
def test_a_killed_run_continues_bit_for_bit(trainer, tmp_path, objective, cls, settings):
    whole = trainer(tmp_path / "whole", objective, cls, **settings)
    whole.train()
    trainer(tmp_path / "killed", objective, cls, **settings).train(stop_after=4)  # one step after its checkpoint
    assert [p.name for p in checkpoints(tmp_path / "killed")] == ["checkpoint-000003"]
    assert not (tmp_path / "killed" / "adapter_config.json").exists()
    torch.manual_seed(99)  # nothing may hang on the global generator of the new process
    resumed = trainer(tmp_path / "killed", objective, cls, **settings)
    resumed.train()
    first, second = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert first["step"] == 6 and (first["ema"] is None) == (settings.get("ema_decay") == 0.0)
    assert_equal(first, second)
    assert_equal(dict(whole.objective.state_dict()), dict(resumed.objective.state_dict()))
    pages = [check_run(tmp_path / name, 6) for name in ("whole", "killed")]
    assert pages[0].curves == pages[1].curves and pages[0].polylines == pages[1].polylines
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    moved = state_of(tmp_path / "whole", 3)
    assert any(not torch.equal(v, moved["adapter"][k]) for k, v in first["adapter"].items())
    assert any(not torch.equal(v, moved["objective"][k]) for k, v in first["objective"].items())


def test_whoever_watches_can_end_a_run(trainer, tmp_path):
    """`on_step` sees every step; what it raises is a kill, from which the run goes on as if nothing had been."""
    seen = []

    def watch(run, logs):
        seen.append((run.step, sorted(logs)))
        if run.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "watched").train(on_step=watch)
    assert [step for step, _ in seen] == [1, 2, 3, 4] and all({"d", "g"} <= set(names) for _, names in seen)
    assert not (tmp_path / "watched" / "adapter_config.json").exists()
    resumed = trainer(tmp_path / "watched").train(on_step=lambda run, logs: seen.append((run.step, [])))
    assert [step for step, _ in seen[4:]] == [4, 5, 6]  # from the checkpoint of step 3
    assert_equal(dict(resumed.state_dict()), dict(trainer(tmp_path / "whole").train().state_dict()))


def test_a_run_that_ends_early_is_whole_and_can_go_on(trainer, tmp_path):
    """`end_now` leaves what a run of so many steps leaves, and more steps go on from there."""

    def end(run, logs):
        if run.step == 4:
            run.end_now()

    early = trainer(tmp_path / "early", lr_decay_start=1.0, sample_steps=3)
    early.train(on_step=end)
    trainer(tmp_path / "planned", lr_decay_start=1.0, sample_steps=3, max_train_steps=4).train()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "early" / name).read_bytes() == (tmp_path / "planned" / name).read_bytes()
    assert_equal(state_of(tmp_path / "early", 4), state_of(tmp_path / "planned", 4))
    assert (tmp_path / "early" / "samples" / "step-000004.png").is_file()
    check_run(tmp_path / "early", 4)
    trainer(tmp_path / "early", lr_decay_start=1.0, sample_steps=3).train()
    trainer(tmp_path / "whole", lr_decay_start=1.0, sample_steps=3).train()
    assert_equal(state_of(tmp_path / "early"), state_of(tmp_path / "whole"))


def test_a_finished_run_stays_as_it_is(trainer, tmp_path):
    result = trainer(tmp_path, max_train_steps=2).train()
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    again = trainer(tmp_path, max_train_steps=2)
    assert_equal(dict(again.train().state_dict()), dict(result.state_dict()))
    assert again.step == 2 and (tmp_path / "adapter_model.safetensors").read_bytes() == before
    assert_equal(dict(read_adapter(tmp_path).state_dict()), dict(result.state_dict()))  # returned = stored


def test_changed_settings_are_refused(trainer, tmp_path):
    trainer(tmp_path).train(stop_after=3)
    other = torch.flip(IMAGES, (0,))
    for changes, message in (
        ({"learning_rate": 1e-3}, "learning_rate was 0.005, now 0.001"),
        ({"objective": replace(OBJECTIVES["projected"], content_weight=1.0)}, "content_weight was 40.0, now 1.0"),
        ({"options": {"rank": 2}}, "rank was 1, now 2"),
        ({"cls": DomainVectorAdapter}, "adapter_type was left, now domain_vector"),
        ({"images": other}, "images was .*, now "),
    ):
        with pytest.raises(
            ValueError,
            match=f"run with other settings .*{message}.*use them again to resume, or start anew: choose another",
        ):
            trainer(tmp_path, **changes).train()
    resumed = trainer(tmp_path, checkpointing_steps=2, checkpoints_total_limit=5)  # these may change
    resumed.train(stop_after=4)
    assert [p.name[-1] for p in checkpoints(tmp_path)] == ["3", "4"]


def test_a_half_written_checkpoint_is_ignored(trainer, tmp_path):
    trainer(tmp_path).train(stop_after=3)
    torn = tmp_path / ".checkpoint-000006.tmp"
    torn.mkdir()
    (torn / "training_config.json").write_text("{}", encoding="utf-8")
    (torn / "state-0.pt").write_bytes(b"half")
    unfinished = tmp_path / "checkpoint-000005"  # no config yet
    unfinished.mkdir()
    run = trainer(tmp_path)
    run._resume()
    assert run.step == 3
    run.train()
    assert not torn.exists() and state_of(tmp_path)["step"] == 6


def test_checkpoint_limit(trainer, tmp_path):
    trainer(tmp_path, checkpointing_steps=1, checkpoints_total_limit=2).train()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-000005", "checkpoint-000006"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".lock"]


# --------------------------------------------------------------------------------------------------- what may not move


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_base_never_moves_and_nothing_is_forgotten(trainer, mobile, tmp_path, objective):
    mobile.to(memory_format=torch.channels_last)  # as the trainer does: another order of sums rounds differently
    source = {k: v.clone() for k, v in mobile.state_dict().items()}
    base = draw(mobile)
    a = trainer(tmp_path / "a", objective, generator=mobile, max_train_steps=2, learning_rate=0.05).train()
    after_a = draw(mobile, a)
    trainer(tmp_path / "b", objective, images=255 - IMAGES, generator=mobile, max_train_steps=2, seed=1).train()
    assert_equal({k: v.clone() for k, v in mobile.state_dict().items()}, source)
    assert torch.equal(draw(mobile, a), after_a)
    assert torch.equal(draw(mobile, Adapter.from_pretrained(tmp_path / "a")), after_a)
    assert torch.equal(draw(mobile), base) and (after_a - base).abs().max() > 1e-3
    assert not any(p.requires_grad or p.grad is not None for p in mobile.parameters())


def test_two_trainings_differ_by_their_seed_alone(trainer, tmp_path):
    runs = [trainer(tmp_path / str(i), max_train_steps=2, seed=s).train() for i, s in enumerate((0, 0, 1))]
    first, same, other = (dict(r.state_dict()) for r in runs)
    assert_equal(first, same)
    assert any(not torch.equal(first[k], other[k]) for k in first)


# ------------------------------------------------------------------------------------------------------------ messages


def test_a_loss_that_is_not_finite_stops_the_run(trainer, tmp_path):
    trainer(tmp_path).train(stop_after=3)
    good = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint-000003").iterdir()}
    run = trainer(tmp_path)
    honest = run.objective.generator_losses
    run.objective.generator_losses = lambda *args: (
        honest(*args) | ({"content": torch.tensor(float("nan"))} if run.step == 4 else {})
    )
    with pytest.raises(TrainingDiverged, match="'content' became nan at step 4; .*-000003; try a lower --learning"):
        run.train()
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint-000003").iterdir()} == good
    assert not (tmp_path / "adapter_config.json").exists()
    page = read_page(tmp_path)
    assert page.state == "diverged" and "'content' became nan at step 4" in page.text and "step 4 of 6" in page.text
    trainer(tmp_path).train()
    assert state_of(tmp_path)["step"] == 6 and check_run(tmp_path, 6)
    run = trainer(tmp_path / "early")
    run.objective.discriminator_losses = lambda *args: {"d": torch.tensor(float("inf"))}
    with pytest.raises(TrainingDiverged, match="'d' .* at step 0; no checkpoint .* lower --d_learning_rate than 0.001"):
        run.train()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_train_steps": 0}, "max_train_steps=0: give 1 or more"),
        ({"train_batch_size": 0}, "train_batch_size=0"),
        ({"checkpointing_steps": 0}, "checkpointing_steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: give a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"augment": "mirror"}, "unknown augment 'mirror'; known: fewshot"),
        ({"real_zoom": 0.5}, "real_zoom=0.5: give 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig("out", **settings)


def test_features_of_the_source_are_computed_for_content_alone(trainer, tmp_path, features, monkeypatch):
    for content, times in ((40.0, 3), (0.0, 2)):  # of fake, real and, for content, source images
        run = trainer(tmp_path / str(content), replace(OBJECTIVES["projected"], content_weight=content))
        seen, observe = [], run.objective.observe
        monkeypatch.setattr(run.objective, "observe", lambda *args, o=observe, s=seen: s.append(args) or o(*args))
        assert ("content" in run.train_step()) == (content > 0) and len(seen) == times


# ------------------------------------------------------------------------------------------------------------- outputs


def test_sample_grids_show_the_source_above_the_adapted(trainer, tmp_path):
    run = trainer(tmp_path, max_train_steps=2, sample_steps=2, learning_rate=0.05)
    run.train()
    page = check_run(tmp_path, 2)
    assert "Pictures of the same latents at step 2" in page.images and "training image 3" in page.images
    numbers, file = run.result.num_values(), tmp_path / "adapter_model.safetensors"
    assert f"left, {numbers:,} numbers" in page.text and f"{file.name}: {file.stat().st_size:,} bytes" in page.text
    assert run.bank.fingerprint() in page.text
    first, last = (Image.open(tmp_path / "samples" / f"step-{s:06d}.png") for s in (0, 2))
    assert first.size == last.size == (8 * 32, 2 * 32)
    top, bottom = (0, 0, 256, 32), (0, 32, 256, 64)
    assert first.crop(top).tobytes() == last.crop(top).tobytes()
    difference = [abs(a - b) for a, b in zip(first.crop(top).tobytes(), first.crop(bottom).tobytes(), strict=True)]
    assert max(difference) <= 1  # a fresh adapter is the identity up to rounding
    assert first.crop(bottom).tobytes() != last.crop(bottom).tobytes()


def test_learning_rate_warms_up_and_falls(trainer, tmp_path):
    run = trainer(tmp_path, max_train_steps=100, lr_warmup_steps=10, lr_decay_start=0.6, lr_final=0.2)
    rates = [run._rate(s) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[60] == 1
    assert rates[80] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)


def test_a_finished_checkpoint_is_an_adapter(trainer, tmp_path):
    run = trainer(tmp_path)
    run.train(stop_after=3)
    stored = read_adapter(tmp_path / "checkpoint-000003")
    assert_equal(dict(stored.state_dict()), dict(run.ema.state_dict()))
    settings = json.loads((tmp_path / "checkpoint-000003" / "training_config.json").read_text(encoding="utf-8"))
    assert settings["max_train_steps"] == 6 and settings["content_weight"] == 40.0
    with pytest.raises(FileNotFoundError, match="not an adapter folder"):
        read_adapter(tmp_path / "nowhere")


def test_bf16_keeps_factors_and_losses_in_full_precision(trainer, tmp_path):
    run = trainer(tmp_path, max_train_steps=2, mixed_precision="bf16")
    logs = run.train_step()
    assert all(torch.isfinite(torch.tensor(v)) for v in logs.values())
    assert {p.dtype for p in run.adapter.parameters()} == {torch.float32}
    assert run.pair.adapted(Latents(torch.zeros(1, 16))).features["b4"].dtype == torch.bfloat16


def test_the_command_line_offers_every_trainable_kind():
    shown = " ".join(CliRunner().invoke(app, ["adapt", "--help"], env={"COLUMNS": "400"}).output.split())
    assert f"One of {', '.join(catalogue.METHODS.own())}, or of a plugin." in shown
    assert f"One of {', '.join(trainable())}, or of a plugin." in shown
    assert set(trainable()) == set(trainable_types())
    assert set(trainable_types()) == {"adafm", "delta_w", "domain_vector", "full", "gan_memory", "left", "lora"}


# -------------------------------------------------------------------------------------- augmentation of every objective


@pytest.mark.parametrize("objective", ("source", "projected"))
@pytest.mark.parametrize(("direction", "d_real", "g"), [("paper", -1, 1), ("repo", 1, -1)])
def test_adv_aug_attacks_both_sides(trainer, tmp_path, objective, direction, d_real, g):
    """Where what is moved goes: the logits of real and generated pictures, and the generator's loss."""
    config = replace(OBJECTIVES[objective], adv_steps=2, adv_direction=direction, adv_gamma=0.001)
    run = trainer(tmp_path, config, augment="none")
    judge, batch = run.objective, run._batch()[0]
    assert objective == "projected" or [judge._active_patch_head(step) is not None for step in (0, 1)] == [False, True]
    for step in (0, 1):  # of "source": the image-level head, then the patch-level one
        helping = config.adv_aug.helping
        for views, seen, sign in (
            (batch.real, batch.real_features, helping),
            (batch.fake, batch.fake_features, 1),
        ):
            clean, moved = judge._judged(views, seen, step, sign)
            want = sign if seen is batch.fake_features else d_real
            assert len(clean) == len(moved) == len(judge.logits(views, seen, step)) and sign == want
            assert all(torch.sign(b.sum() - a.sum()) == want for a, b in zip(clean, moved, strict=True))
    losses = {"g": judge.adversarial_loss(batch.fake, batch.fake_features, 0) * config.adversarial_weight}
    clean, before = float(losses["g"].detach()), {k: v.clone() for k, v in judge.state_dict().items()}
    run._attack(batch, losses)
    assert_equal(before, dict(judge.state_dict()))  # no power iteration either
    assert float(losses["g"].detach()) == pytest.approx(clean / 2)
    assert (float(losses["adv_aug"].detach()) - clean / 2) * g > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in run.adapter.parameters())
    sigmas = [k for k in before if k.endswith(("_u", "_v"))]
    assert (objective == "source") == (not sigmas)
    logs = trainer(tmp_path / "run", config).train_step()
    assert logs.keys() >= {"d", "g", "adv_aug"}


def test_adv_aug_of_no_length_changes_nothing(trainer, tmp_path):
    plain = trainer(tmp_path / "a", "projected").train_step()
    for i, off in enumerate(({"adv_steps": 1, "adv_gamma": 0.0}, {"adv_steps": 0}, {"adv_steps": 1, "adv_weight": 0})):
        assert trainer(tmp_path / f"b{i}", replace(OBJECTIVES["projected"], **off)).train_step() == plain
    with pytest.raises(ValueError, match="adversarial_weight is 0"):
        replace(OBJECTIVES["projected"], adv_steps=1, adversarial_weight=0.0)
    with pytest.raises(ValueError, match="unknown adv_direction 'up'; known: paper, repo"):
        replace(OBJECTIVES["projected"], adv_direction="up")


def test_parts_of_diffaugment(trainer, tmp_path):
    logs = trainer(tmp_path / "a", "source", augment="cutout").train_step()
    assert logs != trainer(tmp_path / "b", "source", augment="cutout,color").train_step()
    every = [trainer(tmp_path / k, "source", augment=k).train_step() for k in ("diffaugment", EVERYTHING)]
    assert every[0] == every[1]
    for empty in ("", " , "):
        with pytest.raises(ValueError, match="names nothing; give 'none' for no augmentation"):
            TrainingConfig(str(tmp_path), augment=empty)
    with pytest.raises(ValueError, match="unknown mixed_precision 'fp16'; known: no, bf16"):
        TrainingConfig(str(tmp_path), mixed_precision="fp16")
    with pytest.raises(ValueError, match="adv_steps=1 moves styles by less than bf16 tells apart"):
        trainer(tmp_path, replace(OBJECTIVES["projected"], adv_steps=1), mixed_precision="bf16")
    with pytest.raises(
        ValueError, match="unknown augment 'blur'; known: fewshot, ada, diffaugment, flip, none, or .*cutout"
    ):
        TrainingConfig(str(tmp_path), augment="blur")


@pytest.mark.parametrize("augment", ["fewshot", "ada", "flip", "color,translation,cutout", "none"])
def test_r1_is_that_of_pictures_before_their_augmentation(trainer, tmp_path, augment):
    run = trainer(tmp_path, "source", augment=augment)
    if run.strength is not None:
        run.strength.p = 0.7
    losses_of, want = run.objective.discriminator_losses, []

    def spy(batch):
        real, d = batch.real, run.objective.discriminator
        images = (real.colour if augment == "none" else real.pictures).clone().requires_grad_(True)
        again = images if augment == "none" else real.augment(images)
        assert torch.equal(again, real.colour) and all((x == known).flatten(1).all(1).any() for x in images)
        (gradient,) = torch.autograd.grad(d(again).sum(), images)
        want.append(gradient.square().sum((1, 2, 3)).mean() * run.objective.config.r1_weight / 2)
        return losses_of(batch)

    known = IMAGES.float() / 127.5 - 1
    run.objective.discriminator_losses = spy
    assert run.train_step()["r1"] == pytest.approx(2 * float(want[0]), rel=1e-4)  # r1_every


def test_r1_leaves_out_what_was_cut_out():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.1
    views, _ = Augmenter("cutout", None, torch.Generator().manual_seed(1)).views(images)
    kept = int((views.colour != 0).sum())
    assert 0 < kept < images.numel()
    assert float(views.r1_penalty(lambda x: x.sum((1, 2, 3)), 2.0)) == pytest.approx(kept / 4)
