"""Write files whole or not at all."""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

LEFTOVER = re.compile(r"\.\d+(?:\.\d+)?-(.+)")  # what a killed `replace_file` leaves behind: .<pid>.<number>-<name>
_numbers = itertools.count()  # two threads may write one target


def expanded(name: str | os.PathLike) -> str:
    """A path, or a name that may be one, with `~` and `~user` replaced by that home; others stay as they are."""
    return os.path.expanduser(os.fspath(name))


def user_path(name: str | os.PathLike) -> Path:
    """A path as users give it: see `expanded`."""
    return Path(expanded(name))


def replace_file(target: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a path beside `target` of the same suffix, flush it to disk and rename it.

    A killed process leaves the old target or the new one, never a part of one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".{os.getpid()}.{next(_numbers)}-{target.name}")
    try:
        write(temp)
        flush_to_disk(temp)
        os.replace(temp, target)
        flush_to_disk(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a write to a file that is open
            error.filename = str(target)
        raise
    finally:
        temp.unlink(missing_ok=True)


def replace_text(target: Path, text: str) -> None:
    """`replace_file` with `text` in UTF-8."""
    replace_file(target, lambda temp: temp.write_text(text, encoding="utf-8"))


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; systems that cannot open folders skip those."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
