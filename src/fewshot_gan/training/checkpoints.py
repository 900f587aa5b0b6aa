"""Checkpoints of a run: complete or absent, verified when read, and resumed only with the same settings."""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..utils.files import LEFTOVER, flush_to_disk
from ..utils.hashing import hash_file
from ..utils.json_files import read_json
from ..utils.numbered import numbered_paths

logger = logging.getLogger(__name__)

STATE_NAME, CONFIG_NAME, DIGESTS_NAME = "state-{rank}.pt", "training_config.json", "sha256.json"
STAGED = re.compile(r"\.checkpoint-[0-9]+(\.old)?\.tmp")
SAVING = re.compile(r"tmp[a-z0-9_]{8}")  # temporary folder of an adapter that is being saved
ANEW = "or start anew: choose another output folder, or remove this one"
PROJECTED = ("codes", "domains")  # settings that depend on the latents of training pictures


class Damaged(ValueError):
    """Raised when a checkpoint's files differ from what was written."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints of a run, oldest first."""
    return [path for path in numbered_paths(Path(folder), "checkpoint-").values() if (path / CONFIG_NAME).is_file()]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest finished checkpoint of a run, or None."""
    return (checkpoints(folder) or [None])[-1]


def begun_config(folder: Path) -> dict:
    """Return the config of the adapter that a run in this folder trains, or has trained; empty if none is readable."""
    return _first_readable(place / "adapter_config.json" for place in (folder, *reversed(checkpoints(folder))))


def begun_settings(folder: Path) -> dict:
    """Return the settings in the newest checkpoint of a run's folder that can be read; empty if there is none."""
    return _first_readable(place / CONFIG_NAME for place in reversed(checkpoints(folder)))


def _first_readable(files: Iterable[Path]) -> dict:
    for file in files:
        try:
            return read_json(file)
        except (FileNotFoundError, ValueError):
            continue
    return {}


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed run left in its folder. The caller must have locked the folder."""
    for path in [*folder.iterdir()] if folder.is_dir() else ():
        if not path.is_dir() or path.is_symlink():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
        elif path.name in ("samples", "images", "projections"):
            remove_leftovers(path)
        elif STAGED.fullmatch(path.name) or (SAVING.fullmatch(path.name) and _holds_an_adapter(path)):
            shutil.rmtree(path)


def _holds_an_adapter(folder: Path) -> bool:
    """Return whether a folder has no files but those of an adapter."""
    known = r"adapter_(config\.json|model.*\.safetensors)"
    return all(re.fullmatch(known, path.name) and path.is_file() for path in folder.iterdir())


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict,
    settings: dict,
    accelerator: Accelerator,
    keep: int,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Write `checkpoint-N` to a temporary name, flush and rename it. All processes call it.

    Args:
        folder: of the run; it must exist.
        step: N. Checkpoints of later steps are removed: the run resumed from an earlier one because they were damaged.
        state: tensors and numbers of this process.
        settings: JSON values that a resumed run must share.
        accelerator: of the run.
        keep: number of newest checkpoints that are kept.
        write: writes further files into the folder, in the main process.
    """
    target = folder / f"checkpoint-{step:06d}"
    temp, main = folder / f".{target.name}.tmp", accelerator.is_main_process
    if main:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir()
        if write is not None:
            write(temp)
        (temp / CONFIG_NAME).write_text(json.dumps(settings, indent=1, default=list) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()
    torch.save(
        {**state, "step": step, "processes": accelerator.num_processes},
        temp / STATE_NAME.format(rank=accelerator.process_index),
    )
    accelerator.wait_for_everyone()
    if not main:
        return
    text = json.dumps({path.name: hash_file(path) for path in sorted(temp.iterdir()) if path.is_file()}, indent=1)
    (temp / DIGESTS_NAME).write_text(text + "\n", encoding="utf-8")
    for path in (*temp.iterdir(), temp):
        flush_to_disk(path)
    _discard(target)
    os.rename(temp, target)
    flush_to_disk(folder)
    there = numbered_paths(folder, "checkpoint-")
    later = [path for number, path in there.items() if number > step]
    for path in (*later, *[path for path in checkpoints(folder) if path not in later][:-keep]):
        _discard(path)


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a kill leaves no half of it under its name."""
    if checkpoint.exists():
        gone = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(checkpoint, gone)
        shutil.rmtree(gone, ignore_errors=True)


def check_checkpoint(folder: Path) -> dict:
    """Verify the hashes of a checkpoint's files; return its settings.

    Raises:
        Damaged: a file differs. Older checkpoints have no hashes; of these only the settings are checked.
    """
    try:
        digests = folder / DIGESTS_NAME
        for name, wanted in json.loads(digests.read_text(encoding="utf-8")).items() if digests.is_file() else ():
            if hash_file(folder / Path(name).name) != wanted:
                raise Damaged(f"{name} is not what was written")
        return dict(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    except Damaged:
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{error}") from error


def refuse_other_settings(folder: Path, before: Mapping, now: Mapping, may_change: Collection[str] = ()) -> None:
    """Refuse to go on with a run whose settings were others.

    Args:
        folder: of the run.
        before, now: name → JSON value.
        may_change: names of settings that may differ.

    Raises:
        ValueError: names what differs.
    """
    changed = [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in {**before, **now}
        if name not in may_change and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); use them again to resume, {ANEW}"
        )


def load_checkpoint(folder: Path, settings: dict, accelerator: Accelerator, may_change: Collection[str]) -> dict | None:
    """Return this process's state in the newest undamaged checkpoint; None if there is none. All processes call it.

    Args:
        folder: of the run.
        settings: of this run; they must equal those of the checkpoint, except for `may_change`.
        accelerator: of the run.
        may_change: names of settings that may differ.

    Raises:
        ValueError: the folder holds a run with other settings, with more steps, or of another number of processes, or
            none of its checkpoints is whole.
    """
    chosen: list = [None, None]
    if accelerator.is_main_process:
        remove_leftovers(folder)
        chosen = _newest_whole(folder)
    if accelerator.num_processes > 1:
        broadcast_object_list(chosen)
    found, before = chosen
    if found is None:
        if before is not None:
            raise ValueError(before)
        return None
    now = json.loads(json.dumps(settings, default=list))
    refuse_other_settings(folder, before, now, may_change)
    path, count = found / STATE_NAME.format(rank=accelerator.process_index), accelerator.num_processes
    if not path.is_file():
        raise ValueError(f"{found} was written by fewer processes than {count}; resume with as many, {ANEW}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["processes"] != count:
        raise ValueError(
            f"{found} was written by {state['processes']} processes, now there are {count}; resume with as many, {ANEW}"
        )
    if (total := settings.get("max_train_steps", state["step"])) < state["step"]:
        raise ValueError(
            f"{folder} holds a run of {state['step']} steps, more than max_train_steps={total}; give "
            f"{state['step']} or more, {ANEW}"
        )
    return state


def _newest_whole(folder: Path) -> list:
    """Return path and settings of the newest undamaged checkpoint; `[None, message]` if all are damaged."""
    reasons = []
    for path in reversed(checkpoints(folder)):
        try:
            settings = check_checkpoint(path)
            for file in path.glob(STATE_NAME.format(rank="*")) if not (path / DIGESTS_NAME).is_file() else ():
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (Damaged, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reasons.append(f"{path} is damaged ({error})")
            continue
        for reason in reasons:
            logger.warning(f"{reason}; the run goes on from {path.name}, the one before it")
        return [path, settings]
    if reasons:
        return [None, f"{reasons[0]}, and no checkpoint before it is whole; remove {folder} to start anew"]
    return [None, None]
