"""Checkpoints of a run: written whole or not at all, and resumed with the same settings only."""

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from accelerate import Accelerator

STATE_NAME, CONFIG_NAME = "state-{rank}.pt", "training_config.json"


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return sorted(p for p in Path(folder).glob("checkpoint-*") if (p / CONFIG_NAME).is_file())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    return (checkpoints(folder) or [None])[-1]


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict,
    settings: dict,
    accelerator: Accelerator,
    keep: int,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Write `checkpoint-N` beside, then rename: a kill leaves the previous one intact. Every process calls it.

    Args:
        folder: of the run.
        step: N.
        state: tensors and numbers of this process.
        settings: as JSON has them.
        accelerator: of the run.
        keep: so many of the newest stay.
        write: puts more into the folder, on the main process.
    """
    target = folder / f"checkpoint-{step:06d}"
    temp = folder / f".{target.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        if write is not None:
            write(temp)
        (temp / CONFIG_NAME).write_text(json.dumps(settings, indent=1, default=list) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()
    torch.save(
        {**state, "step": step, "processes": accelerator.num_processes},
        temp / STATE_NAME.format(rank=accelerator.process_index),
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temp, target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)


def load_checkpoint(folder: Path, settings: dict, accelerator: Accelerator, may_change: Collection[str]) -> dict | None:
    """This process's state of the newest checkpoint, None where there is none.

    Args:
        folder: of the run.
        settings: of now; compared with those of then, but for `may_change`.
        accelerator: of the run.
        may_change: names of settings.

    Raises:
        ValueError: the folder holds a run with other settings or another number of processes.
    """
    found = latest_checkpoint(folder)
    if found is None:
        return None
    before, now = (
        json.loads((found / CONFIG_NAME).read_text(encoding="utf-8")),
        json.loads(json.dumps(settings, default=list)),
    )
    changed = [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in {**before, **now}
        if name not in may_change and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); use them again to resume, "
            "or choose another output_dir"
        )
    path, count = found / STATE_NAME.format(rank=accelerator.process_index), accelerator.num_processes
    if not path.is_file():
        raise ValueError(f"{found} was written by fewer processes than {count}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["processes"] != count:
        raise ValueError(
            f"{found} was written by {state['processes']} processes, now there are {count}; resume with as many"
        )
    return state
