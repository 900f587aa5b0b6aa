"""One run at a time in a folder: a lock that the operating system releases when its process ends, however it ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"


class FolderInUse(OSError):
    """Another process, or another thread of this one, is at work in the folder."""


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[Callable[[], None]]:
    """Hold a folder; who holds it already may do so again in the same thread.

    The file `.lock` in it stays: to remove it while somebody waits would let two in. A folder that was made here and
    that got nothing else is removed again.

    Args:
        folder: made if needed.

    Yields:
        A check that raises FileNotFoundError once the folder is not the one that is held: somebody removed it, moved
        it, or put another in its place.

    Raises:
        FolderInUse: somebody else holds it.
        OSError: the folder cannot be made or written to.
    """
    folder, known = Path(folder), None
    path, made = folder / LOCK_NAME, not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, is_singleton=True)  # one object for a path: nested calls in one thread are counted

    def check() -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(path.stat(), known):  # held open, so that its number is nobody else's
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
        known = path.stat()
        yield check
    finally:
        lock.release()
        if made and not lock.is_locked:
            with suppress(OSError):
                if [entry.name for entry in os.scandir(folder)] == [LOCK_NAME]:
                    path.unlink()
                    folder.rmdir()
