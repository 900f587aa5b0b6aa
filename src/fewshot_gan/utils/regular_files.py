"""Read untrusted paths only if they are regular files of limited size."""

import os
import stat
from pathlib import Path


def regular_file_size(path: str | Path) -> int:
    """Return the size of a regular file in bytes; reading a pipe could block, and a device might never end.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is a folder, a pipe, a socket or a device.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path} is {kind}, no regular file; give a file")
    return status.st_size


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a regular file, or larger than `max_bytes`.
    """
    size = regular_file_size(path)
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if max(size, len(data)) > max_bytes:
        raise ValueError(f"{path} has {max(size, len(data)):,} bytes; at most {max_bytes:,} are read of such a file")
    return data
