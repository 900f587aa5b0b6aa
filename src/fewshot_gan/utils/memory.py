"""Lets a process that is ours keep the memory it frees, instead of asking the kernel anew for each large tensor."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large freed blocks; for command lines, not for libraries: it holds for the whole process.

    A feature map beyond 32 MiB is otherwise mapped and its pages zeroed anew each time it is made, which takes longer
    than most operations on it. The process's memory then shrinks no more, but its peak stays the same. Equal to
    starting it with `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` set.

    Returns:
        Whether the C library agreed; others than glibc have no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_THRESHOLD, 2**30), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])
