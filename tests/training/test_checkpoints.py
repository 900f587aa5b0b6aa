"""Checkpoints: on disk before they have their name, checked when read, the one before where the newest is damaged."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from fewshot_gan.training import checkpoints
from fewshot_gan.training.checkpoints import (
    check_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)

SETTINGS = {"max_train_steps": 2_000_000, "rate": 0.5}


@pytest.fixture
def save(tmp_path):
    """`save(step)`: a checkpoint whose state is the number of its step."""

    def write(step, keep=10, **settings):
        state = {"values": torch.full((1000,), float(step))}
        extra = lambda folder: (folder / "adapter_config.json").write_text("{}", encoding="utf-8")  # noqa: E731
        save_checkpoint(tmp_path, step, state, SETTINGS | settings, Accelerator(cpu=True), keep, extra)
        return tmp_path / f"checkpoint-{step:06d}"

    return write


@pytest.fixture
def load(tmp_path):
    """`load()`: the step that a run in this folder goes on from; 0: from its beginning."""

    def read(**settings):
        state = load_checkpoint(tmp_path, SETTINGS | settings, Accelerator(cpu=True), ("max_train_steps",))
        if state is None:
            return 0
        assert torch.equal(state["values"], torch.full((1000,), float(state["step"])))
        return state["step"]

    return read


def names(folder) -> list[str]:
    return [path.name for path in checkpoints.checkpoints(folder)]


def test_a_million_comes_after_999999(save, load, tmp_path):
    for step in (999_998, 999_999, 1_000_000):
        save(step, keep=2)
    assert names(tmp_path) == ["checkpoint-999999", "checkpoint-1000000"] and load() == 1_000_000
    assert checkpoints.latest_checkpoint(tmp_path).name == "checkpoint-1000000"


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "state cut short": lambda folder: truncate(folder / "state-0.pt"),
    "a bit of the state": lambda folder: flip_in_the_middle(folder / "state-0.pt"),
    "an empty state": lambda folder: (folder / "state-0.pt").write_bytes(b""),
    "no state": lambda folder: (folder / "state-0.pt").unlink(),
    "a bit of the settings": lambda folder: flip_in_the_middle(folder / "training_config.json"),
    "empty settings": lambda folder: (folder / "training_config.json").write_bytes(b""),
    "adapter": lambda folder: (folder / "adapter_config.json").write_bytes(b"{"),
    "empty digests": lambda folder: (folder / "sha256.json").write_bytes(b""),
    "digests of another kind": lambda folder: (folder / "sha256.json").write_bytes(b"[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(save, load, tmp_path, damage, caplog):
    for step in (3, 6):
        save(step)
    damage(tmp_path / "checkpoint-000006")
    with caplog.at_level(logging.WARNING):
        assert load() == 3
    assert "checkpoint-000006 is damaged (" in caplog.text
    assert "; the run goes on from checkpoint-000003, the one before it" in caplog.text
    save(4, keep=1)  # what is damaged is not kept in place of what is whole
    assert names(tmp_path) == ["checkpoint-000004"] and load() == 4


def test_a_damaged_checkpoint_is_written_anew(save, load, tmp_path):
    for step in (3, 6):
        save(step)
    truncate(tmp_path / "checkpoint-000006" / "state-0.pt")
    assert load() == 3
    save(6)
    assert load() == 6 and names(tmp_path) == ["checkpoint-000003", "checkpoint-000006"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_where_all_are_damaged_nothing_starts_anew_by_itself(save, load, tmp_path):
    for step in (3, 6):
        truncate(save(step) / "state-0.pt")
    with pytest.raises(ValueError, match=r"checkpoint-000006 is damaged .*no checkpoint before it is whole; remove"):
        load()


def test_checkpoints_of_earlier_versions_have_no_digests(save, load, tmp_path):
    for step in (3, 6):
        (save(step) / "sha256.json").unlink()
    assert load() == 6
    truncate(tmp_path / "checkpoint-000006" / "state-0.pt")
    assert load() == 3


def test_everything_is_on_disk_before_it_has_its_name(save, tmp_path, monkeypatch):
    done, flush, rename = [], checkpoints.flush_to_disk, os.rename
    monkeypatch.setattr(checkpoints, "flush_to_disk", lambda path: (done.append(path.name), flush(path)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("renamed"), rename(a, b)))
    save(3)
    before = done[: done.index("renamed")]
    assert set(before) == {
        *("state-0.pt", "training_config.json", "adapter_config.json", "sha256.json"),
        ".checkpoint-000003.tmp",
    }
    assert before[-1] == ".checkpoint-000003.tmp" and done[-1] == tmp_path.name


@pytest.mark.parametrize("there", [False, True], ids=["new", "again"])
def test_a_kill_at_any_operation_leaves_a_whole_checkpoint(save, load, tmp_path, monkeypatch, there):
    """Each call that changes the folder, in turn, is the last; `again`: the step has a damaged checkpoint already."""

    class Killed(BaseException):
        pass

    calls = {name: getattr(os, name) for name in ("mkdir", "rename", "rmdir", "unlink", "fsync")}
    for last in range(60):
        for path in [*tmp_path.iterdir()]:
            shutil.rmtree(path)
        save(3)
        if there:
            truncate(save(6) / "state-0.pt")
        left = last
        with monkeypatch.context() as patch:
            for name, original in calls.items():

                def counted(*args, original=original, **options):
                    nonlocal left
                    if left == 0:
                        raise Killed
                    left -= 1
                    return original(*args, **options)

                patch.setattr(os, name, counted)
            try:
                save(6, keep=1)
            except Killed:
                finished = False
            else:
                finished = True
        for path in checkpoints.checkpoints(tmp_path):
            if not (there and path.name == "checkpoint-000006" and load() == 3):
                check_checkpoint(path)  # whatever has the name is whole
        assert load() in (3, 6)
        if finished:
            break
    assert finished and last > 8 and load() == 6 and names(tmp_path) == ["checkpoint-000006"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    gone = [".checkpoint-000003.tmp/state-0.pt", ".checkpoint-1000000.old.tmp/state-0.pt", ".17.3-report.html"]
    gone += ["tmpab1_xyz0/adapter_model.safetensors", "samples/.17.3-step-000003.png", "images/.17.4-grid.png"]
    stays = ["tmpfolder/adapter_config.json", "tmpab1_xyz1/notes.txt", ".hidden", "checkpoint-000003/state-0.pt"]
    stays += ["samples/step-000003.png", ".lock", "adapter_config.json"]
    for name in (*gone, *stays):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == set(stays)


def test_what_may_change_and_what_may_not(save, load, tmp_path):
    save(6)
    assert load(max_train_steps=6) == load(max_train_steps=3_000_000) == 6
    with pytest.raises(
        ValueError, match="a run of 6 steps, more than max_train_steps=5; give 6 or more, or start anew"
    ):
        load(max_train_steps=5)
    with pytest.raises(
        ValueError, match=r"other settings \(rate was 0.5, now 0.1\); use them again to resume, or start"
    ):
        load(rate=0.1)
    (tmp_path / "checkpoint-000006" / "sha256.json").unlink()
    state = torch.load(tmp_path / "checkpoint-000006" / "state-0.pt", weights_only=True)
    torch.save(state | {"processes": 2}, tmp_path / "checkpoint-000006" / "state-0.pt")
    with pytest.raises(ValueError, match="was written by 2 processes, now there are 1; resume with as many, or start"):
        load()


def test_digests_are_of_all_files(save):
    folder = save(3)
    digests = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    assert set(digests) == {path.name for path in folder.iterdir()} - {"sha256.json"}
