"""Write files atomically: a file completely or not at all, and a group of files all at once."""

import atexit
import errno
import itertools
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

LEFTOVER = re.compile(r"\.\d+(?:\.\d+)?-(.+)")  # of a killed `replace_file`: .<pid>.<number>-<name>
COMMITTED = ".replacing"  # folder of committed files, which must be moved to its parent
STAGED = re.compile(r"\.(\d+)\.\d+-(.*)\.staged")  # folder of files being written, with pid and machine
GONE = ".gone-"  # prefix of a note that the file of this name is to be removed
ABANDONED = 24 * 3600  # seconds after which staged files of another machine are removed
TRIES = 100
_SPACE = Path("/proc/self/ns/pid")  # containers may share a host name, but not a pid namespace
_HERE = re.sub(r"[^\w-]", "", platform.node())[:40] + (f"-{_SPACE.stat().st_ino}" if _SPACE.exists() else "")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_numbers = itertools.count()  # distinguish threads that write the same target
_Read = TypeVar("_Read")


def expanded(name: str | os.PathLike) -> str:
    """Return `name` with a leading `~` or `~user` replaced by that home folder."""
    return os.path.expanduser(os.fspath(name))


def user_path(name: str | os.PathLike) -> Path:
    """Return a path given by a user, with `~` expanded."""
    return Path(expanded(name))


def replace_file(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file beside `target`, with the same suffix; flush it to disk and rename it.

    If the process is killed, `target` is either the old file or the complete new one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".{os.getpid()}.{next(_numbers)}-{target.name}")
    try:
        write(temp)
        flush_to_disk(temp)
        os.replace(temp, target)
        flush_to_disk(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write to an open file does not name it
            error.filename = str(target)
        raise
    finally:
        temp.unlink(missing_ok=True)


def abandoned(name: str) -> str | None:
    """Return the target of a temporary file of `replace_file`, by its name, if no other living process writes it.

    Returns:
        None for any other file, and while a process of this machine other than this one may still write it.
    """
    if not (match := LEFTOVER.fullmatch(name)):
        return None
    pid = int(re.split("[.-]", name)[1])
    return None if pid != os.getpid() and lives(pid) else match[1]


def replace_text(target: Path, text: str) -> None:
    """Replace `target` by `text` in UTF-8; see `replace_file`."""
    replace_file(target, lambda temp: temp.write_text(text, encoding="utf-8"))


def write_folder(out: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a hidden folder beside `out`; flush it to disk and rename it to `out`.

    If the process is killed, `out` is either missing (or empty, as before) or complete.

    Args:
        out: a folder that does not exist yet or is empty, or a link to one.
        write: function of the folder to fill.
    """
    out = Path(out).resolve()  # a link cannot be replaced by a folder
    with staging(out.parent) as staged:
        (staged / out.name).mkdir()
        write(staged / out.name)
        _flush_tree(staged / out.name)
        if out.is_dir() and os.name == "nt":
            out.rmdir()
        os.replace(staged / out.name, out)
        flush_to_disk(out.parent)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Provide an empty hidden folder inside `folder` for a `with` block; `folder` is created if needed.

    Also removes such folders of killed processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staged = folder / f".{os.getpid()}.{next(_numbers)}-{_HERE}.staged"
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def replacing(folder: Path, gone: Iterable[str] = ()) -> Iterator[Path]:
    """Provide an empty folder; the files that a `with` block writes there replace those of `folder`, all at once.

    The files are written and flushed to disk first. Then one rename commits them, and they move into place one by one.
    A process that is killed before the rename leaves the old files. If it is killed afterwards, the next
    `finish_replacing` completes the move, so readers of `folder` must call it first. Other files stay.

    Args:
        folder: created if needed.
        gone: paths in `folder` of files to remove at the same moment, unless the block writes new ones.
    """
    folder = Path(folder)
    finish_replacing(folder)
    with staging(folder) as staged:
        yield staged
        for name in gone:
            if (old := folder / name).is_file() and not (staged / name).exists():
                note = (staged / name).with_name(GONE + old.name)
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(_file_version(old), encoding="utf-8")
        for parent, _, names in os.walk(staged):
            home = folder / Path(parent).relative_to(staged)
            for path in (home / name for name in names):
                if path.is_dir():
                    raise IsADirectoryError(f"{path} is a folder, where a file is to be written; choose another place")
            if home.exists() and not home.is_dir():
                raise NotADirectoryError(f"{home} is a file, where a folder is to be written; choose another place")
        _flush_tree(staged)
        for _ in range(TRIES):
            try:
                os.rename(staged, folder / COMMITTED)
                break
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                finish_replacing(folder)  # another writer has just committed
        else:
            raise OSError(f"{folder} is being replaced by others again and again; write to another folder")
        flush_to_disk(folder)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> Path:
    """Move committed files of a killed `replacing` into place, and remove files that it had not committed.

    Safe to call from several processes at once, and beside an active writer.

    Returns:
        `folder`. If files must be moved but the folder is read-only, a temporary copy with the files in place, which is
        removed at the end of this process.
    """
    folder = Path(folder)
    _sweep(folder)
    if not _has_pending(folder):
        return folder
    try:
        _move(folder / COMMITTED, folder)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        copy = Path(tempfile.mkdtemp(prefix="fewshot-gan-")) / folder.absolute().name
        atexit.register(shutil.rmtree, copy.parent, ignore_errors=True)
        shutil.copytree(folder, copy, ignore=lambda _, names: [name for name in names if STAGED.fullmatch(name)])
        for path, *_ in os.walk(copy):
            os.chmod(path, 0o700)
        _move(copy / COMMITTED, copy)
        return copy
    return folder


def read_together(folder: Path, names: Iterable[str], read: Callable[[Path], _Read]) -> _Read:
    """Return `read(folder)` for files that belong together; repeat it if another process replaced them meanwhile.

    Args:
        folder: folder of the files; `read` may get a copy of it, see `finish_replacing`.
        names: names of the files.
        read: function of the folder. Its errors are ignored if the files changed.

    Raises:
        OSError: the files are replaced again and again.
    """
    names = list(names)
    for _ in range(TRIES):
        source = finish_replacing(folder)
        with _watched(source / name for name in names) as unchanged:
            try:
                result = read(source)
            except (OSError, ValueError):
                if unchanged() and not _has_pending(source):
                    raise
            else:
                if unchanged() and not _has_pending(source):
                    return result
    raise OSError(f"{folder} is being replaced again and again; read it once its writers have ended")


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk; Windows cannot open folders, so it skips them."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------------------- private


def _sweep(folder: Path) -> None:
    """Remove staged files of killed writers from `folder`: of this machine at once, of others after a day."""
    try:
        staged = [(entry, match) for entry in os.scandir(folder) if (match := STAGED.fullmatch(entry.name))]
    except OSError:  # missing or unreadable folder: reading it will raise the error
        return
    for entry, (pid, host) in ((entry, match.groups()) for entry, match in staged):
        try:
            is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED
        except OSError:  # gone
            continue
        if is_old or (host == _HERE and not lives(int(pid))):
            shutil.rmtree(entry.path, ignore_errors=True)


def lives(pid: int) -> bool:
    """Return whether a process exists on this machine; True if that cannot be told."""
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush_to_disk(Path(parent, name))
        flush_to_disk(Path(parent))


def _has_pending(folder: Path) -> bool:
    """Return whether committed files wait to be moved; files with symbolic links are ignored, since we write none."""
    committed = folder / COMMITTED
    if not committed.is_dir() or committed.is_symlink():
        return False
    for parent, folders, names in os.walk(committed):
        home = folder / Path(parent).relative_to(committed)
        if any(Path(parent, name).is_symlink() for name in (*folders, *names)):
            return False
        if any((home / name).is_symlink() for name in folders):
            return False
    return True


def _move(committed: Path, folder: Path) -> None:
    for parent, _, names in os.walk(committed, topdown=False):
        home = folder / Path(parent).relative_to(committed)
        home.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            try:
                if name.startswith(GONE):
                    old = home / name.removeprefix(GONE)
                    if _file_version(old) == Path(parent, name).read_text(encoding="utf-8"):
                        old.unlink()
                    Path(parent, name).unlink()
                else:
                    os.replace(Path(parent, name), home / name)
            except FileNotFoundError:  # another process has moved it
                pass
        flush_to_disk(home)
        try:
            os.rmdir(parent)
        except FileNotFoundError:
            pass
        except OSError as error:  # it has files of the next writer
            if error.errno not in _TAKEN:
                raise


def _file_version(path: Path) -> str:
    """Return size and time of a file, or an empty text if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


@contextmanager
def _watched(paths: Iterable[Path]):
    """Yield a function that returns whether none of the files was replaced or changed.

    The files stay open inside the block, so that no new file can get the inode number of an old one. On Windows an open
    file could not be replaced, so there they stay closed; its file times are exact enough.
    """
    with ExitStack() as opened:
        identities = {}
        for path in paths:
            handle: Path | int = path
            if os.name != "nt":
                with suppress(OSError):  # reading a missing file will raise the error; NONBLOCK: do not wait for a pipe
                    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    opened.callback(os.close, handle)
            identities[path] = _identity(handle)
        yield lambda: all(_identity(path) == identity for path, identity in identities.items())


def _identity(file: Path | int) -> tuple | None:
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
