"""One run at a time in a folder, and what a run does when its folder is taken away."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.folders import held_elsewhere

from fewshot_gan.utils.folder_lock import LOCK_NAME, FolderInUse, locked
from fewshot_gan.utils.numbered import numbered_paths

HOLDER = """
import sys, time
from fewshot_gan.utils.folder_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_process_holds_its_folder_until_it_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"^another run is at work in {tmp_path}; wait for its end, stop it, or"):
            with locked(tmp_path):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with locked(tmp_path):  # the operating system released it
        pass


def test_who_holds_a_folder_may_hold_it_again(tmp_path):
    with locked(tmp_path) as first:
        with locked(tmp_path) as second:
            second()
        first()
        with ThreadPoolExecutor(1) as pool, pytest.raises(FolderInUse):
            pool.submit(locked(tmp_path).__enter__).result()
    with held_elsewhere(tmp_path), pytest.raises(FolderInUse):
        with locked(tmp_path):
            pass


def replace_by_another(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "take_away",
    [shutil.rmtree, lambda folder: folder.rename(folder.with_name("elsewhere")), replace_by_another],
    ids=["removed", "moved", "replaced"],
)
def test_a_folder_that_is_taken_away_is_noticed(tmp_path, take_away):
    folder = tmp_path / "run"
    with locked(folder) as check:
        check()
        take_away(folder)
        with pytest.raises(FileNotFoundError, match=f"{folder} was removed, moved or replaced while a run was at work"):
            check()


def test_a_folder_that_got_nothing_goes_again(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "new"):
        raise ValueError("refused before anything was written")
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "result").write_text("1", encoding="utf-8")
    assert sorted(os.listdir(tmp_path / "used")) == [LOCK_NAME, "result"]
    (tmp_path / "there").mkdir()
    with locked(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()


def test_names_that_count_are_sorted_as_numbers(tmp_path):
    for name in ("checkpoint-1000000", "checkpoint-999999", "checkpoint-000007", "checkpoint-7", "checkpoint-best"):
        (tmp_path / name).mkdir()
    found = numbered_paths(tmp_path, "checkpoint-")
    assert [(number, path.name) for number, path in found.items()] == [
        (7, "checkpoint-000007"),
        (999999, "checkpoint-999999"),
        (1000000, "checkpoint-1000000"),
    ]
    (tmp_path / "step-12.png").touch()
    assert list(numbered_paths(tmp_path, "step-", ".png")) == [12] and not numbered_paths(tmp_path / "nowhere", "step-")
