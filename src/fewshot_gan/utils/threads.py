"""How many threads to compute with: what the user, the scheduler and the container leave to this process."""

import math
import os
from pathlib import Path

MOST = 1024  # threads that may be asked for


def available_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those of its affinity mask, and no more than its container's CPU quota.

    Args:
        cgroups: where Linux shows its control groups.
        own: the file that names those of this process.
    """
    if hasattr(os, "process_cpu_count"):  # from Python 3.13
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    quota = min(_quotas(cgroups, own), default=math.inf)
    return max(1, min(count or 1, math.ceil(quota) if quota < math.inf else 2**31))


def asked_threads() -> int | None:
    """Threads that `OMP_NUM_THREADS` asks for, None where it does not.

    torchrun and `accelerate launch` set it to 1 where nobody did: under these, 1 is not taken for a wish.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if not first.isdecimal() or int(first) < 1 or (launched and int(first) == 1):
        return None
    return min(int(first), MOST)


def usual_threads(processes: int = 1) -> int:
    """Threads of each of `processes` runs on this machine unless told otherwise: as `OMP_NUM_THREADS` asks, or a share.

    Args:
        processes: of the run; of one on several machines those here are counted, if the launcher says how many.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(here) if here.isdecimal() and int(here) >= 1 else max(1, processes)
    return asked_threads() or max(1, available_cores() // processes)


def add_threads_option(parser) -> None:
    """`--num_threads` of a script, for `set_threads`."""
    parser.add_argument("--num_threads", type=int, help="CPU threads (default: OMP_NUM_THREADS, else free cores)")


def set_threads(number: int | None = None) -> int:
    """Let torch compute with `number` threads; None: with as many as it chose itself, but no more than there are cores.

    For command lines, not for libraries: it holds for the whole process.

    Raises:
        ValueError: not 1 … `MOST`.
    """
    import torch

    if number is None:
        own = torch.get_num_threads()  # which follows OMP_NUM_THREADS and the affinity, but no container's quota
        number = own if asked_threads() or os.environ.get("MKL_NUM_THREADS") else min(own, available_cores())
    elif not 1 <= number <= MOST:
        raise ValueError(f"num_threads={number}: give 1 to {MOST}, or leave it out for all cores of this process")
    torch.set_num_threads(number)
    return number


def _quotas(cgroups: Path, own: Path):
    """CPU quotas in cores, of the control groups of this process and of all above them; versions 1 and 2."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = ("cpu", controllers) if controllers else ("", "unified")
        places = [cgroups / name for name in names]
        for place in places:
            group = place / path.strip("/")
            for folder in (group, *group.parents):  # a container may not see its own name, but the top is its group
                if (quota := _quota(folder, bool(controllers))) is not None:
                    yield quota
                if folder == place:
                    break


def _quota(folder: Path, first_version: bool) -> float | None:
    try:
        if first_version:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        else:
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        quota, period = float(quota), float(period)
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None
