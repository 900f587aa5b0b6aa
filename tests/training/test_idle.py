"""Options that cannot act beside the others are refused; those that act, switch off or go on are not."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from fewshot_gan.catalogue import METHODS
from fewshot_gan.training import hypernetwork, lottery
from fewshot_gan.training.command_line import parse
from fewshot_gan.training.config import make_run
from fewshot_gan.training.engine import TrainingConfig
from fewshot_gan.training.idle import NEEDS
from fewshot_gan.training.limited import LimitedConfig

COMMON = {"data": "pencil", "output_dir": "x"}
TRAINING = Path(__file__).parents[2] / "training"
SCRIPTS = {"lfs": "lfs_gan"} | {name: name for name in ("d3t", "pairs", "cdc", "adafm", "finetune", "hyperdomainnet")}


@pytest.mark.parametrize(
    "method, idle, needed, acting",
    [
        ("lfs_gan", {"ada_kimg": 1.0}, "--augment ada", {"augment": "ada"}),
        ("lfs_gan", {"ada_target": 0.5}, "--augment ada", {"augment": "ada"}),
        ("finetune", {"importance_every": 10}, "--keep_filters or --prune_filters above 0", {"prune_filters": 0.1}),
        ("cdc", {"dcl_weight": 1.0}, "--diversity dcl", {"diversity": "dcl"}),
        ("lfs_gan", {"mode_seeking_factor": 2}, "--mode_seeking_weight above 0", {"mode_seeking_weight": 1.0}),
        ("lfs_gan", {"mode_seeking_every": 2}, "--mode_seeking_weight above 0", {"preset": "paper"}),
        ("finetune", {"path_length_every": 2}, "--path_length_weight above 0", {"path_length_weight": 2.0}),
        ("finetune", {"adv_gamma": 0.1}, "--adv_steps above 0", {"adv_steps": 1}),
        ("finetune", {"adv_direction": "repo"}, "--adv_steps above 0", {"adv_steps": 1}),
        ("cdc", {"relation_latents": 4, "diversity": "dcl"}, "--relation_weight above 0", {"diversity": "own"}),
        ("lfs_gan", {"relation_latents": 4}, "--relation_weight above 0 and", {"relation_weight": 9.0}),
        ("finetune", {"structure_size": 48}, "--structure_weight above 0", {"structure_weight": 1.0}),
        ("pairs", {"landmark_weight": 2.0}, "--pair_weight above 0", {"pair_weight": 1.0}),
        ("pairs", {"pair_layer": 6}, "--pair_weight above 0", {"pair_weight": 1.0}),
        ("d3t", {"code_sigma": 0.2, "preset": "large_gap"}, "--transformed_every above 0", {"transformed_every": 2}),
        ("cdc", {"anchor_sigma": 0.2, "anchor_every": 0}, "--anchor_every above 0", {"anchor_every": 2}),
        ("finetune", {"r1_weight": 5.0}, "--discriminator source", {"preset": "paper"}),
        ("finetune", {"r1_every": 4, "r1_weight": 0.0, "preset": "paper"}, "--r1_weight above 0", {"r1_weight": 10.0}),
        ("adafm", {"penalty": "real_fake"}, "--discriminator source", {"preset": "paper"}),
        ("finetune", {"adv_steps": 1, "adv_gamma": 0.0}, "--adv_gamma above 0", {"adv_gamma": 0.1}),
        ("finetune", {"adv_steps": 2, "adv_weight": 0.0}, "--adv_weight above 0", {"adv_weight": 1.0}),
        ("finetune", {"lr_decay_start": 0.2, "lr_final": 1.0}, "--lr_final other than 1", {"lr_final": 0.5}),
        ("cdc", {"lr_decay_start": 0.5, "preset": "paper"}, "--lr_final other than 1", {"lr_decay_start": 1.0}),
        ("lfs_gan", {"d_learning_rate": 0.1, "adversarial_weight": 0}, "--adversarial", {"adversarial_weight": 1.0}),
    ],
)
def test_an_option_that_cannot_act(method, idle, needed, acting):
    name, value = next(iter(idle.items()))
    words = f"^--{name} {value} acts only with {needed}.*; give that too, or leave --{name} out$"
    common = COMMON | ({"max_train_steps": 20_000} if method == "adafm" else {})
    assert make_run(method, **common, **{**idle, **acting})
    with pytest.raises(ValueError, match=words):
        make_run(method, **common, **idle)


def test_switching_off_and_going_on(tmp_path):
    assert make_run("finetune", **COMMON, r1_weight=0.0, ada_kimg=None, structure_size=0)
    begun = tmp_path / "checkpoint-000001"
    begun.mkdir()
    options = {"data": "pencil", "output_dir": str(tmp_path), "ada_kimg": 1.0}
    with pytest.raises(ValueError, match="acts only with"):
        make_run("finetune", **options)
    (begun / "training_config.json").write_text("{}", encoding="utf-8")  # of a run that an older version began
    assert make_run("finetune", **options).training.ada_kimg == 1.0


@pytest.mark.parametrize(
    "idle, needed, acting",
    [
        ({"ema_start": 50, "max_train_steps": 50}, "--max_train_steps above --ema_start", {"max_train_steps": 51}),
        ({"ema_start": 100, "ema_decay": 0.0}, "--ema_decay above 0", {"ema_decay": 0.9}),
        ({"adv_steps": 1, "adv_gamma": 0.0}, "--adv_gamma above 0", {"adv_gamma": 0.1}),
        ({"subset_seed": 3}, "--num or --percent", {"percent": 10.0}),
        ({"allow_other_init": True}, "--ticket and the folder of a round", {"ticket": "runs/ticket/round-05"}),
        ({"allow_other_init": True, "ticket": "random:0.5"}, "--ticket and the folder", {"ticket": "round-05"}),
    ],
)
def test_options_of_limited_data_that_cannot_act(idle, needed, acting):
    name = next(iter(idle))
    with pytest.raises(ValueError, match=f"^--{name}.* acts only with {needed}.*or leave --{name} out$"):
        lottery.make_run(**COMMON, **idle)
    assert lottery.make_run(**COMMON, **{**idle, **acting})
    for size in lottery.BIGGAN:  # a backbone's own ema_start is not the user's
        assert lottery.make_run(**COMMON, backbone="biggan", resolution=size, max_train_steps=6)


def test_other_commands_refuse_them_too():
    with pytest.raises(ValueError, match="--adv_weight 2.0 acts only with --adv_steps above 0"):
        lottery.make_run(**COMMON, adv_weight=2.0)
    with pytest.raises(ValueError, match="--importance_every 9 acts only with --keep_filters"):
        hypernetwork.make_run(**COMMON, importance_every=9)
    for make in (make_run, hypernetwork.make_run):
        with pytest.raises(ValueError, match="^--hub_model_id me/ink names where to upload.*give --push_to_hub too"):
            make(**COMMON, hub_model_id="me/ink")
        assert make(**COMMON, hub_model_id="me/ink", push_to_hub=True)


def test_every_entry_is_an_option_and_presets_are_not_refused():
    configs = [METHODS.load(name).Config for name in METHODS.own()]
    configs += [TrainingConfig, LimitedConfig, lottery.LotteryOptions]
    assert NEEDS.keys() <= {field.name for config in configs for field in fields(config)}
    for name in METHODS.own():
        for preset in METHODS.load(name).presets:
            look = {"text": "ink"} if preset == "text" else {"data": "pencil"}
            assert make_run(name, **look, output_dir="x", preset=preset, max_train_steps=20_000)


def test_commands_of_the_readme_are_runs():
    lines = (TRAINING / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^    .*training/(\w+)\.py((?:.*\\\n)*.*)$", lines, re.MULTILINE)
    commands = [(SCRIPTS[name], options) for name, options in found if name in SCRIPTS]
    for method, options in commands:
        words = shlex.split(options.replace("\\\n", " "), comments=True)
        assert parse(method, ["--output_dir=x", *words]).method.name == method
    assert len(commands) > 10
