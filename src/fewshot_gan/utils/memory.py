"""Let the process reuse the memory of freed tensors instead of requesting it from the kernel again."""

import ctypes
import sys

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
