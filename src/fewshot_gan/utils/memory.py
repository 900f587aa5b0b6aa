"""Measure the memory of this process and machine, and reuse the memory of freed tensors."""

import ctypes
import sys
from pathlib import Path

from .control_groups import OWN, ROOT, control_groups, read_number

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Make glibc keep large freed blocks; for command lines, not for libraries, since it affects the whole process.

    By default glibc maps every feature map above 32 MiB anew and the kernel zeroes its pages, which takes longer than
    most operations on it. With this setting the process's memory no longer shrinks, but its peak stays the same. The
    environment variables `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` do the same.

    Returns:
        Whether the setting took effect; C libraries other than glibc do not have it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_THRESHOLD, 2**30), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])


def available_memory(cgroups: Path = ROOT, own: Path = OWN) -> int:
    """Return how many bytes this process can still get without swapping: of the machine, or of its container.

    Args:
        cgroups, own: see `control_groups`.
    """
    import psutil

    return min([psutil.virtual_memory().available, *_free(cgroups, own)])


def _free(cgroups: Path, own: Path) -> list[int]:
    """Return the free bytes of each control group of this process that has a limit."""
    free = []
    for folder, version in control_groups("memory", cgroups, own):
        limit_name, used_name, cache_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ("memory.max", "memory.current", "inactive_file"),
        )[version - 1]
        limit, used = read_number(folder / limit_name), read_number(folder / used_name)
        if limit is not None and used is not None:  # the kernel drops inactive files when memory is short
            free.append(max(0, limit - used + _statistic(folder / "memory.stat", cache_name)))
    return free


def _statistic(path: Path, name: str) -> int:
    try:
        rows = dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0


def used_memory() -> int:
    """Return the bytes of memory that this process occupies."""
    import psutil

    return psutil.Process().memory_info().rss
