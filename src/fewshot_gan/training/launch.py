"""Set-up of a training command: processes, precision, threads, trackers, signals and exit code."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration

from ..utils.folder_lock import locked
from ..utils.random import check_seed
from ..utils.ranges import NOT_NEGATIVE, check_number
from ..utils.threads import set_threads, usual_threads, world_size
from .interrupt import interruptible
from .report import PAGE_NAME, TrainingDiverged, processes

PRECISIONS = ("no", "bf16")
REFUSED = (ValueError, OSError, ImportError, TrainingDiverged)  # reported as one sentence
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@contextmanager
def command() -> Iterator[None]:
    """Run a script in this block: signals end it with a checkpoint, refused input with one sentence."""
    with interruptible():
        try:
            yield
        except REFUSED as error:
            raise SystemExit(f"error: {' '.join(str(error).split())}") from error


def launched_precision() -> str:
    """Return the precision of `accelerate launch --mixed_precision` or its configuration; "no" by default."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"


def default_precision() -> str:
    """Return the precision of a run that names none: the launched one, "no" if runs do not support it."""
    launched = launched_precision()
    return launched if launched in PRECISIONS else "no"


def check_launch(precision: str | None) -> None:
    """Refuse options of `accelerate launch` that a run does not support.

    Args:
        precision: of the run, see `PRECISIONS`; None: the run supports only float32.

    Raises:
        ValueError: in one sentence.
    """
    asked = launched_precision()
    if asked not in ("no", precision):  # "no" is also Accelerate's default
        if precision is None:
            raise ValueError(
                f"accelerate launch says mixed_precision {asked}, but this script computes in float32 alone; start it "
                "with accelerate launch --mixed_precision no"
            )
        if asked not in PRECISIONS:
            raise ValueError(
                f"accelerate launch says mixed_precision {asked}, which is not offered here: {', '.join(PRECISIONS)}; "
                "bf16 has the range of float32 and needs no scaling of losses"
            )
        raise ValueError(
            f"accelerate launch says mixed_precision {asked}, the script's --mixed_precision {precision}; give one of "
            "them, or the same twice"
        )
    if int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or 1) != 1:
        raise ValueError("accelerate launch says to accumulate gradients, which no script here does; leave it out")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError("accelerate launch says to compile with dynamo, which no script here does; leave it out")


def start(
    folder: str | os.PathLike[str],
    *,
    seed: int,
    report_to: str = "tensorboard",
    num_threads: int = 0,
    mixed_precision: str | None = None,
) -> Accelerator:
    """Set up processes, threads and seed of a run.

    Args:
        folder: of its logs.
        seed: of everything random.
        report_to: a tracker of Accelerate, or "none".
        num_threads: CPU threads per process; 0: as many as usual.
        mixed_precision: precision of the run, one of `PRECISIONS`; None: the run supports only float32.

    Raises:
        ValueError: a number is out of range, or Accelerate was given an unsupported option.
    """
    check_number("num_threads", num_threads, NOT_NEGATIVE, whole=True)
    check_seed(seed)
    check_launch(mixed_precision)
    folder = Path(folder)
    project = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs"))
    count = world_size()
    options = {"project_config": project, "cpu": count > 1 and not torch.accelerator.is_available()}
    accelerator = Accelerator(log_with=None if report_to == "none" else report_to, **options)
    if count > 1 and accelerator.num_processes == 1:
        raise ValueError(
            f"WORLD_SIZE={count}, but this process knows of no other; start them with torchrun or accelerate launch"
        )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"accelerate launch says {accelerator.distributed_type.value}, but every process here has whole networks; "
            "start it without"
        )
    # `accelerate launch` gives each CPU process one thread unless told otherwise
    set_threads(num_threads or usual_threads(accelerator.num_processes))
    torch.manual_seed(seed)  # initial values of new factors and heads
    return accelerator


@contextmanager
def holding(folder: str | os.PathLike[str], accelerator: Accelerator) -> Iterator[None]:
    """Lock the folder in the main process, so that a second run there is refused.

    Raises:
        FolderInUse: another run is at work in the folder.
    """
    with locked(folder) if accelerator.is_main_process else nullcontext():
        yield


def start_trackers(accelerator: Accelerator, name: str, report_to: str, settings: Mapping[str, Any]) -> None:
    """Start the tracker and print the number of processes and their device.

    The tracker writes into the run's folder, so all other checks must come before. The number is printed because a
    launcher may have started fewer processes than requested.

    Args:
        accelerator: of `start`.
        name: what the tracker calls the project.
        report_to: as in `start`.
        settings: option → value; numbers and texts are recorded.
    """
    accelerator.print(processes(accelerator))
    accelerator.print(f"to watch: {Path(accelerator.project_dir) / PAGE_NAME}")
    if report_to != "none":
        accelerator.init_trackers(name, {k: v for k, v in settings.items() if isinstance(v, int | float | str)})
