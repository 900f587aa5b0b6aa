"""Files of others are regular files of a bounded size, or are not opened."""

import os
import stat
from pathlib import Path


def size_of_regular(path: str | Path) -> int:
    """Bytes of a regular file; a pipe would wait for ever, and a device never end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe, a socket or a device.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path} is {kind}, no regular file; give a file")
    return found.st_size


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or larger than `max_bytes`.
    """
    size = size_of_regular(path)
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if max(size, len(data)) > max_bytes:
        raise ValueError(f"{path} has {max(size, len(data)):,} bytes; at most {max_bytes:,} are read of such a file")
    return data
