"""Write files whole or not at all, and files that belong together all at once."""

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

LEFTOVER = re.compile(r"\.\d+(?:\.\d+)?-(.+)")  # what a killed `replace_file` leaves behind: .<pid>.<number>-<name>
COMMITTED = ".replacing"  # folder of files that belong into the folder around it: they are written, and decided on
STAGED = re.compile(r"\.(\d+)\.\d+-(.*)\.staged")  # folder of files that are still being written: of pid and machine
GONE = ".gone-"  # beginning of the name of a note that a file is to be removed
ABANDONED = 24 * 3600  # seconds after which what another machine staged is nobody's
TRIES = 100
_SPACE = Path("/proc/self/ns/pid")  # containers may share the name of a machine, but not its numbers of processes
_HERE = re.sub(r"[^\w-]", "", platform.node())[:40] + (f"-{_SPACE.stat().st_ino}" if _SPACE.exists() else "")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_numbers = itertools.count()  # two threads may write one target
_Read = TypeVar("_Read")


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


def write_folder(out: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a hidden folder beside `out`, which is new or empty; flush it to disk and rename it to `out`.

    A killed process leaves no `out`, or a whole one.
    """
    out = Path(out).absolute()
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
    """An empty hidden folder in `folder`, which is made if needed, for the duration of a `with` block.

    What killed processes left there of theirs is removed.
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
    """An empty folder: the files that a `with` block writes into it replace those of `folder`, all at once.

    They are written and flushed to disk first. Then one rename decides, and the files move into place one by one. A
    process that is killed before leaves the old files. One that is killed after leaves the new ones, of which
    `finish_replacing` moves the rest: whoever reads `folder` calls it first. Other files stay as they are.

    Args:
        folder: made if needed.
        gone: paths in `folder` of files that are removed at the same moment, unless the block writes new ones.
    """
    folder = Path(folder)
    finish_replacing(folder)
    with staging(folder) as staged:
        yield staged
        for name in gone:
            if (old := folder / name).is_file() and not (staged / name).exists():
                note = (staged / name).with_name(GONE + old.name)
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(_seal(old), encoding="utf-8")
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
                finish_replacing(folder)  # another writer decided a moment ago
        else:
            raise OSError(f"{folder} is being replaced by others again and again; write to another folder")
        flush_to_disk(folder)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> Path:
    """Move into place what a killed `replacing` had decided on, and remove what others had not.

    Several processes may do so at once, and none harms a writer at work.

    Returns:
        `folder`; or, where it is read only and something is left to move, a copy in which it is moved, for as long as
        this process lives.
    """
    folder = Path(folder)
    _sweep(folder)
    if not _pending(folder):
        return folder
    try:
        _move(folder / COMMITTED, folder)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        copy = Path(tempfile.mkdtemp(prefix="fewshot-gan-")) / folder.absolute().name
        atexit.register(shutil.rmtree, copy.parent, ignore_errors=True)
        shutil.copytree(folder, copy, ignore=lambda _, names: [name for name in names if STAGED.fullmatch(name)])
        for place, *_ in os.walk(copy):
            os.chmod(place, 0o700)
        _move(copy / COMMITTED, copy)
        return copy
    return folder


def read_together(folder: Path, names: Iterable[str], read: Callable[[Path], _Read]) -> _Read:
    """`read(folder)` of files that belong together; again where another process replaced them meanwhile.

    Args:
        folder: where they lie; `read` may be given another one, see `finish_replacing`.
        names: of the files.
        read: what it raises is raised, unless the files changed.
    """
    names = list(names)
    for _ in range(TRIES):
        place = finish_replacing(folder)
        with _held(place / name for name in names) as unchanged:
            try:
                result = read(place)
            except (OSError, ValueError):
                if unchanged() and not _pending(place):
                    raise
            else:
                if unchanged() and not _pending(place):
                    return result
    raise OSError(f"{folder} is being replaced again and again; read it once its writers have ended")


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; systems that cannot open folders skip those."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -------------------------------------------------------------------------------------------------------------- inside


def _sweep(folder: Path) -> None:
    """Remove what killed writers staged in `folder`: those of this machine, and others' after a day."""
    try:
        found = [(entry, match) for entry in os.scandir(folder) if (match := STAGED.fullmatch(entry.name))]
    except OSError:  # no such folder, or none that may be listed: whoever reads it says so
        return
    for entry, (pid, host) in ((entry, match.groups()) for entry, match in found):
        try:
            old = time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED
        except OSError:  # gone
            continue
        if old or (host == _HERE and not lives(int(pid))):
            shutil.rmtree(entry.path, ignore_errors=True)


def lives(pid: int) -> bool:
    """Whether there is such a process on this machine; in doubt there is."""
    if os.name == "nt":  # there, to ask would end it
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


def _pending(folder: Path) -> bool:
    """Whether files wait in `folder` to be moved: those with links among them are not ours, and might lead anywhere."""
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
                    if _seal(old) == Path(parent, name).read_text(encoding="utf-8"):
                        old.unlink()
                    Path(parent, name).unlink()
                else:
                    os.replace(Path(parent, name), home / name)
            except FileNotFoundError:  # another process moved it
                pass
        flush_to_disk(home)
        try:
            os.rmdir(parent)
        except FileNotFoundError:
            pass
        except OSError as error:  # the next writer's files are there already
            if error.errno not in _TAKEN:
                raise


def _seal(path: Path) -> str:
    """Changes when the file does; empty where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


@contextmanager
def _held(paths: Iterable[Path]):
    """Yields a function that says whether the very same files are still there.

    They stay open meanwhile, so that no new file gets the number of an old one. Windows lets no other process replace
    an open file; there the times of the files tell, which are exact.
    """
    with ExitStack() as opened:
        before = {}
        for path in paths:
            held = path
            if os.name != "nt":
                with suppress(OSError):  # none there: whoever reads it says so. A pipe is not waited for
                    held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    opened.callback(os.close, held)
            before[path] = _identity(held)
        yield lambda: all(_identity(path) == identity for path, identity in before.items())


def _identity(file: Path | int) -> tuple | None:
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
