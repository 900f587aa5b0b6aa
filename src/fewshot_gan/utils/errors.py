"""The boundary between what fails and who started it: one sentence on stderr and an exit code, never a traceback.

Every command and every script ends here. `--debug`, or `FEWSHOT_GAN_DEBUG=1`, shows the traceback above the sentence.
"""

import errno
import os
import re
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .files import LEFTOVER
from .text import plain, plain_lines

BUG = NEGATIVE = 1
REFUSED, INTERRUPTED, TERMINATED = 2, 130, 143  # exit codes; the last two are 128 + the signal's number
BROKEN_PIPE = 141
DEBUG = "FEWSHOT_GAN_DEBUG"
LENGTH = 600  # characters of a message; of a longer one the beginning, and the end with the way out
_OWN = __package__.partition(".")[0]

# Builtin errors with which Python and its libraries refuse what they are given. Torch says nearly all with
# RuntimeError: out of memory, a device that is not there, shapes. Those of `LookupError`, TypeError and so on are bugs.
REFUSALS = (
    *(ValueError, OSError, ImportError, MemoryError, OverflowError, RecursionError, EOFError, RuntimeError),
    SyntaxError,  # Pillow's and ElementTree's word for a damaged file
)
MISUSES = (AttributeError, TypeError, NameError, AssertionError)  # bugs, also where a library derives a class of them
SYSTEM = {  # number of an OSError → what is wrong with the file or folder, and the way out
    errno.ENOSPC: "the disk is full; free some space, or choose a place on another disk",
    errno.EDQUOT: "your share of the disk is used up; free some space, or choose another place",
    errno.EFBIG: "the file would grow beyond what this disk or `ulimit -f` allows; choose another place",
    errno.EROFS: "the disk can only be read; choose a place that can be written",
    errno.EACCES: "no permission; choose another place, or change the permissions",
    errno.EPERM: "no permission; choose another place, or change the permissions",
    errno.ENOTDIR: "a part of this path is a file where a folder is needed; choose another path",
    errno.EEXIST: "something of this name is there already; choose another path",
    errno.EISDIR: "it is a folder; give a file",
    errno.ENOENT: "there is no such file or folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
    errno.ENFILE: "the machine has too many open files",
    errno.EIO: "the disk or network drive failed",
}
_TEMPORARY = re.compile(r"(\..+-|tmp)[a-z0-9_]{8}")  # of `tempfile`
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\bcode: (\d+), kind:")  # how libraries in Rust name the number
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|alloc_cpu", re.IGNORECASE)


class Ended(SystemExit):
    """The end of a command.

    Attributes:
        code: exit code.
    """

    def __init__(self, code: int, sentence: str = ""):
        super().__init__(sentence)  # `str()` of it is what was printed
        self.code = code


@contextmanager
def boundary(debug: bool = False, through: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turn every error inside into one sentence on stderr and an exit code.

    Inside, output that the console's encoding lacks is written as escapes, and SIGTERM unwinds as Ctrl-C does, so that
    nothing half-written stays.

    Args:
        debug: show tracebacks; `FEWSHOT_GAN_DEBUG=1` does the same.
        through: errors that somebody outside understands.

    Raises:
        Ended: with `REFUSED` for what a library or we refuse, `BUG` for all others, `INTERRUPTED` or `TERMINATED` for
            signals.
    """
    tolerate_encodings()
    debug = debug or os.environ.get(DEBUG, "0") not in ("", "0")
    with _sigterm_unwinds(), _threads_in_one_line(debug):
        try:
            yield
            with suppress(BrokenPipeError):  # `head` has seen enough, and the work is done
                _write_out()
        except through:
            raise
        except SystemExit as end:
            if not isinstance(end.code, str):
                raise
            code = REFUSED if end.code.startswith("error: ") else NEGATIVE  # what was found is not as it should be
            raise _end(code, plain(end.code, LENGTH), end, debug=False) from end
        except KeyboardInterrupt as error:
            raise _end(INTERRUPTED, "stopped by Ctrl-C", error, debug) from error
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _discard_output(stat.S_ISFIFO):
                raise Ended(BROKEN_PIPE) from error  # as `head` ends whoever writes to it: there is nothing to say
            bug = is_bug(error)
            raise _end(BUG if bug else REFUSED, f"error: {explain(error, bug)}", error, debug) from error


@contextmanager
def script() -> Iterator[None]:
    """`boundary` around what a script does when it is started; its option `--debug` may stand anywhere."""
    if "--debug" in sys.argv[1:]:
        sys.argv.remove("--debug")  # argparse need not know it
        os.environ[DEBUG] = "1"  # for the processes that a script starts, too
    with boundary():
        yield


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Name the extra of this package that brings what an import inside lacks.

    Raises:
        ImportError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == _OWN:
            raise
        raise ImportError(
            f"{what} needs the {error.name} package, which is not installed: pip install 'fewshot_gan[{extra}]'"
        ) from error


def is_bug(error: BaseException) -> bool:
    """Whether `error` is a mistake of this package rather than something that a library or we refuse.

    Classes that a library or this package defines are meant to be raised: safetensors', Pillow's, gradio's, httpx's,
    huggingface_hub's, zipfile's, struct's, pickle's … Of Python's own, `REFUSALS` are.
    """
    kind = type(error)
    if kind is NotImplementedError:
        return not str(error)  # torch says why; a method that is missing does not
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == _OWN:
        return True
    if kind.__module__ != "builtins":
        return isinstance(error, MISUSES)
    if kind is AssertionError:
        return not str(error) or _package(error) is None  # torch: "not compiled with CUDA enabled"
    return kind is not Exception and not isinstance(error, REFUSALS)  # a bare Exception: tokenizers, for example


def explain(error: BaseException, bug: bool = False) -> str:
    """What an error says, as one sentence without control characters."""
    name, message = type(error).__name__, plain(error, LENGTH)
    if bug:
        return (
            f"{name}: {message or 'no message'}; this is a bug of fewshot_gan: run it again with --debug, which shows "
            "where it is, and report that"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(message)):
        said = f" ({plain(_first_part(error), 160)})" if message else ""
        return f"out of memory{said}; use smaller batches or a smaller network, or end other programs"
    if isinstance(error, RecursionError):
        return f"something that was given is nested too deeply to be read ({message})"
    if number := _number(error):
        return _of_system(error, number)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the {error.name} package is not installed; install it, or the extra of fewshot_gan that has it"
    message = plain(_first_part(error), LENGTH) or name
    if isinstance(error, UnicodeDecodeError):
        message = f"a text is not UTF-8 ({message})"
    package = _package(error)
    return f"{package}: {message} (--debug shows where)" if package else message


def tolerate_encodings() -> None:
    """Let output that the console's encoding lacks, such as ψ under CP1252, appear as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # None without a console, or not a file, or closed
            stream.reconfigure(errors="backslashreplace")


def _end(code: int, sentence: str, error: BaseException, debug: bool) -> Ended:
    _say(sentence, error, debug)
    return Ended(code, sentence)


def _say(sentence: str, error: BaseException, debug: bool) -> None:
    with suppress(OSError, ValueError, AttributeError):  # stderr is closed: the exit code remains
        if debug:
            sys.stderr.write(plain_lines("".join(traceback.format_exception(error))))
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def _first_part(error: BaseException) -> str:
    """The message without the C++ stack that torch appends."""
    return re.split(r"\n\s*Exception raised from |\n\s*C\+\+ CapturedTraceback|\n\s*frame #", str(error))[0]


def _package(error: BaseException) -> str | None:
    """The library that raised `error`, None if it is this package, a script or Python."""
    root = type(error).__module__.partition(".")[0].removesuffix("_rust").lstrip("_")
    if root == "builtins":  # then where it was raised
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        root = frames[-1].f_globals.get("__name__", "").partition(".")[0] if frames else ""
    own = root in ("", _OWN) or root in sys.stdlib_module_names or not hasattr(sys.modules.get(root), "__path__")
    if own and type(error) is RuntimeError and "torch" in sys.modules:
        return "torch"  # whose C++ has no frames; nobody here raises it
    return None if own else root


def fault_of_disk(error: BaseException) -> str | None:
    """What is wrong with a file, folder or disk, if that is the cause of `error` or of what it was raised from."""
    while error is not None:
        number = _number(error)
        if number in _OF_DISKS or (number is not None and number != errno.ENOENT and _path(error)):
            return _of_system(error, number)  # of connections that nobody permits there is no path
        error = error.__cause__
    return None


def _number(error: BaseException) -> int | None:
    """The system's error number, if it is one of `SYSTEM`: of the error, or of what a library tells of one."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _OS_ERROR.search(str(error))):
        number = int(found[1] or found[2])
    if number is None and isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        number = error.__context__.errno  # torch.save, whose writer fails again while it is closed
    return number if number in SYSTEM else None


def _path(error: BaseException) -> str | None:
    """The file or folder that an error is about; of a temporary one the file it was to become, or its folder."""
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    folder, name = os.path.split(os.fsdecode(path))
    if target := LEFTOVER.fullmatch(name):
        return os.path.join(folder, target[1])
    return folder or "." if _TEMPORARY.fullmatch(name) else os.path.join(folder, name)


def _of_system(error: BaseException, number: int) -> str:
    return plain(SYSTEM[number] if _path(error) is None else f"{_path(error)}: {SYSTEM[number]}")


@contextmanager
def _threads_in_one_line(debug: bool) -> Iterator[None]:
    """What ends a thread that nobody waits for, such as TensorBoard's writer, is one line as well."""

    def say(ended) -> None:
        if ended.exc_type is not SystemExit and ended.exc_value is not None:
            name = ended.thread.name if ended.thread else "?"
            _say(f"warning: the thread {plain(name)} ended: {explain(ended.exc_value)}", ended.exc_value, debug)

    before, threading.excepthook = threading.excepthook, say
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises where the main thread is, unless somebody else handles it already."""

    def unwind(number, frame):
        with suppress(OSError):
            os.write(2, b"stopped by SIGTERM\n")  # safe in the middle of any other write
        raise Ended(TERMINATED, "stopped by SIGTERM")

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is unwind:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _write_out() -> None:
    """Write what is still to be written to stdout: a full disk behind `> file` shows only then.

    Raises:
        OSError: it cannot be written, and goes nowhere; else Python would fail once more at its end.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard_output()
        raise


def _discard_output(kind: Callable[[int], bool] = lambda mode: True) -> bool:
    """Let stdout lead nowhere, if it is of this kind of file; returns whether it does."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or no file
        if kind(os.fstat(sys.stdout.fileno()).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            return True
    return False
