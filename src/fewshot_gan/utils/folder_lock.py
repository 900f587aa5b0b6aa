"""Lock an output folder for one run; the operating system releases the lock when the process ends or is killed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"


class FolderInUse(OSError):
    """Raised when another process or thread works in the folder."""


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[Callable[[], None]]:
    """Hold a folder for a `with` block; blocks of one thread may be nested.

    The file `.lock` stays in the folder: removing it while another process waits would let two of them in. A folder
    that this function created is removed again if it stays empty.

    Args:
        folder: created if needed.

    Yields:
        A function that raises FileNotFoundError if the folder was removed, moved or replaced since.

    Raises:
        FolderInUse: another process or thread holds the folder.
        OSError: the folder cannot be created or written to.
    """
    folder, lock_status = Path(folder), None
    path, is_new = folder / LOCK_NAME, not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, is_singleton=True)  # singleton: counts nested blocks of a thread

    def check() -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            # the lock keeps the file open, so that no other file can get its inode number
            if lock_status is not None and os.path.samestat(path.stat(), lock_status):
                return
        raise FileNotFoundError(
            f"the output folder {folder} was removed, moved or replaced while a run was at work in it; nothing more is "
            "written; start the run again"
        )

    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUse(
            f"another run is at work in {folder}; wait for its end, stop it, or choose another output folder"
        ) from error
    try:
        lock_status = path.stat()
        yield check
    finally:
        lock.release()
        if is_new and not lock.is_locked:
            with suppress(OSError):
                if [entry.name for entry in os.scandir(folder)] == [LOCK_NAME]:
                    path.unlink()
                    folder.rmdir()
