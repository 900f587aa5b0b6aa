"""Checkpoints of a run: written whole or not at all, checked when read, resumed with the same settings only."""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..utils.files import LEFTOVER, flush_to_disk
from ..utils.hashing import hash_file
from ..utils.numbered import numbered_paths

logger = logging.getLogger(__name__)

STATE_NAME, CONFIG_NAME, DIGESTS_NAME = "state-{rank}.pt", "training_config.json", "sha256.json"
STAGED = re.compile(r"\.checkpoint-[0-9]+(\.old)?\.tmp")
SAVING = re.compile(r"tmp[a-z0-9_]{8}")  # where an adapter's files are written before they are renamed
ANEW = "or start anew: choose another output folder, or remove this one"


class Damaged(ValueError):
    """A checkpoint is not what was written."""


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return [path for path in numbered_paths(Path(folder), "checkpoint-").values() if (path / CONFIG_NAME).is_file()]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    return (checkpoints(folder) or [None])[-1]


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a run's folder; who calls it holds the folder."""
    for path in [*folder.iterdir()] if folder.is_dir() else ():
        if not path.is_dir() or path.is_symlink():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
        elif path.name in ("samples", "images", "projections"):
            remove_leftovers(path)
        elif STAGED.fullmatch(path.name) or (SAVING.fullmatch(path.name) and _holds_an_adapter(path)):
            shutil.rmtree(path)


def _holds_an_adapter(folder: Path) -> bool:
    """Nothing but files of an adapter, or nothing."""
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
    """Write `checkpoint-N` beside, flush it, then rename: a kill leaves the previous one. All processes call it.

    Args:
        folder: of the run; it is there.
        step: N. What is there of later steps belongs to a past that was damaged, and goes.
        state: tensors and numbers of this process.
        settings: as JSON has them.
        accelerator: of the run.
        keep: so many of the newest stay.
        write: puts more into the folder, on the main process.
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
    """Remove a checkpoint; killed amid, what is left has its name no more."""
    if checkpoint.exists():
        gone = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(checkpoint, gone)
        shutil.rmtree(gone, ignore_errors=True)


def check_checkpoint(folder: Path) -> dict:
    """The settings in a checkpoint whose files are what was written.

    Raises:
        Damaged: they are not; of one without digests, from an older version, only what is read is known.
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


def load_checkpoint(folder: Path, settings: dict, accelerator: Accelerator, may_change: Collection[str]) -> dict | None:
    """This process's state of the newest checkpoint that is whole, None where there is none. All processes call it.

    Args:
        folder: of the run.
        settings: of now; compared with those of then, but for `may_change`.
        accelerator: of the run.
        may_change: names of settings.

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
    changed = [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in {**before, **now}
        if name not in may_change and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); use them again to resume, {ANEW}"
        )
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
    """Path and settings of the newest checkpoint that is whole; None and a message where all are damaged."""
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
