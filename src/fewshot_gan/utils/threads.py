"""Read the number of processes, and choose that of CPU threads: by wish, CPU affinity and the container's quota."""

import math
import os
import sys
from pathlib import Path

from .control_groups import OWN, ROOT, control_groups

MAX_THREADS = 1024


def available_cores(cgroups: Path = ROOT, own: Path = OWN) -> int:
    """Return the number of cores in the affinity mask of this process, limited by its container's CPU quota.

    Args:
        cgroups: folder of Linux' control groups.
        own: file that lists the control groups of this process.
    """
    if sys.version_info >= (3, 13):
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    quotas = [_quota(*group) for group in control_groups("cpu", cgroups, own)]
    quota = min((quota for quota in quotas if quota is not None), default=math.inf)
    return max(1, min(count or 1, math.ceil(quota) if quota < math.inf else 2**31))


def requested_threads() -> int | None:
    """Return the number of threads in `OMP_NUM_THREADS`, or None.

    torchrun and `accelerate launch` set it to 1 if the user did not. Under these a value of 1 counts as None.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if not first.isdecimal() or int(first) < 1 or (launched and int(first) == 1):
        return None
    return min(int(first), MAX_THREADS)


def world_size() -> int:
    """Return the number of processes of this run: `WORLD_SIZE`, which launchers set; 1 where it is not set or empty.

    Raises:
        ValueError: it is no number.
    """
    size = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not size.isdecimal():
        raise ValueError(f"WORLD_SIZE={size!r} is no number of processes; unset it, or set it to 1")
    return int(size)


def usual_threads(processes: int = 1) -> int:
    """Return the default number of threads per process: `OMP_NUM_THREADS`, or an equal share of the cores.

    Args:
        processes: number of processes of the run. For a run on several machines the launcher's `LOCAL_WORLD_SIZE`
            replaces it.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(local) if local.isdecimal() and int(local) >= 1 else max(1, processes)
    return requested_threads() or max(1, available_cores() // processes)


def add_threads_option(parser) -> None:
    """Add the option `--num_threads` to a script's parser, for `set_threads`."""
    parser.add_argument("--num_threads", type=int, help="CPU threads (default: OMP_NUM_THREADS, else free cores)")


def set_threads(number: int | None = None) -> int:
    """Set torch's number of threads and return it.

    For command lines, not for libraries, since it affects the whole process.

    Args:
        number: from 1 to 1024; None keeps torch's own choice, limited to `available_cores`.

    Raises:
        ValueError: `number` is out of range.
    """
    import torch

    if number is None:
        current = torch.get_num_threads()  # respects OMP_NUM_THREADS and the affinity, but no container's quota
        fixed = requested_threads() or os.environ.get("MKL_NUM_THREADS")
        number = current if fixed else min(current, available_cores())
    elif not 1 <= number <= MAX_THREADS:
        raise ValueError(
            f"num_threads={number}: give 1 to {MAX_THREADS}, or leave it out for all cores of this process"
        )
    torch.set_num_threads(number)
    return number


def _quota(folder: Path, version: int) -> float | None:
    """Return the CPU quota of a control group in cores, or None if it has none."""
    try:
        if version == 1:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        else:
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        quota, period = float(quota), float(period)
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None
