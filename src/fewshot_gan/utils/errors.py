"""Turn every error of a command or script into one sentence on stderr and an exit code, without a traceback.

`--debug`, or `FEWSHOT_GAN_DEBUG=1`, prints the traceback before the sentence.
"""

import errno
import io
import os
import re
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

from .files import LEFTOVER
from .memory import keep_freed_memory
from .text import plain, plain_lines

BUG = NEGATIVE = 1
REFUSED, INTERRUPTED, TERMINATED = 2, 130, 143  # exit codes; the last two are 128 + the signal's number
BROKEN_PIPE = 141
DEBUG = "FEWSHOT_GAN_DEBUG"
LENGTH = 600  # characters; a longer message keeps its beginning and its end, which names the way out
_OWN = (__package__ or "").partition(".")[0]

# Builtin errors that Python and its libraries raise for bad input. torch uses RuntimeError for nearly all problems:
# out of memory, missing devices, shapes. Other builtin errors, such as LookupError and TypeError, are bugs.
REFUSALS = (
    *(ValueError, OSError, ImportError, MemoryError, OverflowError, RecursionError, EOFError, RuntimeError),
    SyntaxError,  # raised by Pillow and ElementTree for a damaged file
)
MISUSES = (AttributeError, TypeError, NameError, AssertionError)  # bugs, also as base classes of a library's errors
SYSTEM = {  # errno of an OSError → the problem and the way out
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
_TEMPORARY = re.compile(r"(\..+-|tmp)[a-z0-9_]{8}")  # names of `tempfile`
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\bcode: (\d+), kind:")  # errno in messages of Rust libraries
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|alloc_cpu", re.IGNORECASE)


class Ended(SystemExit):
    """Raised to end a command after its message was printed.

    Attributes:
        code: exit code.
    """

    def __init__(self, code: int, sentence: str = ""):
        super().__init__(sentence)  # the printed message
        self.code = code


@contextmanager
def boundary(debug: bool = False, through: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turn every error inside into one sentence on stderr and an exit code.

    Inside, characters that the console's encoding lacks are written as escapes. SIGTERM raises an exception as Ctrl-C
    does, so that temporary files are removed.

    Args:
        debug: show tracebacks; `FEWSHOT_GAN_DEBUG=1` does the same.
        through: errors to pass on, which the caller handles.

    Raises:
        Ended: the exit code is `REFUSED` for bad input or a failing system, `BUG` for other errors, `INTERRUPTED` or
            `TERMINATED` for signals.
    """
    tolerate_encodings()
    debug = debug or os.environ.get(DEBUG, "0") not in ("", "0")
    with _sigterm_unwinds(), _threads_in_one_line(debug):
        try:
            yield
            with suppress(BrokenPipeError):  # e.g. `head` has closed the pipe; the work is done
                _write_out()
        except through:
            raise
        except SystemExit as end:
            if not isinstance(end.code, str):
                raise
            code = REFUSED if end.code.startswith("error: ") else NEGATIVE  # a check of the command failed
            raise _end(code, plain(end.code, LENGTH), end, debug=False) from end
        except KeyboardInterrupt as error:
            raise _end(INTERRUPTED, "stopped by Ctrl-C", error, debug) from error
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _discard_output(stat.S_ISFIFO):
                raise Ended(BROKEN_PIPE) from error  # the reader has closed the pipe: print nothing
            bug = is_bug(error)
            raise _end(BUG if bug else REFUSED, f"error: {explain(error, bug)}", error, debug) from error


@contextmanager
def script() -> Iterator[None]:
    """Use `boundary` for a script, with the option `--debug` anywhere among its arguments, and keep freed memory."""
    keep_freed_memory()
    if "--debug" in sys.argv[1:]:
        sys.argv.remove("--debug")  # the script's parser does not have it
        os.environ[DEBUG] = "1"  # also for child processes
    with boundary():
        yield


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Turn a failed import inside a `with` block into a message that names the extra to install.

    Args:
        what: subject of the message, e.g. a command.
        extra: extra of this package that installs the missing one.

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
    """Return whether `error` is a bug of this package rather than bad input or a failing system.

    Error classes of libraries and of this package are raised on purpose: those of safetensors, Pillow, gradio, httpx,
    huggingface_hub, zipfile, struct, pickle and so on. Of Python's builtin errors, `REFUSALS` are.
    """
    kind = type(error)
    if kind is NotImplementedError:
        return not str(error)  # torch gives a reason; a missing method does not
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == _OWN:
        return True
    if kind.__module__ != "builtins":
        return isinstance(error, MISUSES)
    if kind is AssertionError:
        return not str(error) or _package(error) is None  # of torch: "not compiled with CUDA enabled"
    return kind is not Exception and not isinstance(error, REFUSALS)  # e.g. tokenizers raises a bare Exception


def explain(error: BaseException, bug: bool = False) -> str:
    """Return the message of an error as one sentence without control characters.

    Args:
        error: the error.
        bug: ask the user to report it.
    """
    name, message = type(error).__name__, plain(error, LENGTH)
    if bug:
        return (
            f"{name}: {message or 'no message'}; this is a bug of fewshot_gan: run it again with --debug, which shows "
            "where it is, and report that"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(message)):
        details = f" ({plain(_first_part(error), 160)})" if message else ""
        return f"out of memory{details}; use smaller batches or a smaller network, or end other programs"
    if isinstance(error, RecursionError):
        return f"something that was given is nested too deeply to be read ({message})"
    if number := _errno(error):
        return _explain_errno(error, number)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the {error.name} package is not installed; install it, or the extra of fewshot_gan that has it"
    message = plain(_first_part(error), LENGTH) or name
    if isinstance(error, UnicodeDecodeError):
        message = f"a text is not UTF-8 ({message})"
    package = _package(error)
    return f"{package}: {message} (--debug shows where)" if package else message


def tolerate_encodings() -> None:
    """Write characters that the console's encoding lacks, such as ψ in CP1252, as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # None without a console, or not a file, or closed
            cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")


def _end(code: int, sentence: str, error: BaseException, debug: bool) -> Ended:
    _say(sentence, error, debug)
    return Ended(code, sentence)


def _say(sentence: str, error: BaseException, debug: bool) -> None:
    with suppress(OSError, ValueError, AttributeError):  # stderr is closed: only the exit code remains
        if debug:
            sys.stderr.write(plain_lines("".join(traceback.format_exception(error))))
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def _first_part(error: BaseException) -> str:
    """Return the message without the C++ stack trace that torch appends."""
    return re.split(r"\n\s*Exception raised from |\n\s*C\+\+ CapturedTraceback|\n\s*frame #", str(error))[0]


def _package(error: BaseException) -> str | None:
    """Return the library that raised `error`, or None for this package, a script or Python itself."""
    root = type(error).__module__.partition(".")[0].removesuffix("_rust").lstrip("_")
    if root == "builtins":  # look at where it was raised
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        root = frames[-1].f_globals.get("__name__", "").partition(".")[0] if frames else ""
    own = root in ("", _OWN) or root in sys.stdlib_module_names or not hasattr(sys.modules.get(root), "__path__")
    if own and type(error) is RuntimeError and "torch" in sys.modules:
        return "torch"  # its C++ code has no Python frames; this package never raises RuntimeError itself
    return None if own else root


def fault_of_disk(error: BaseException) -> str | None:
    """Return the problem with a file, folder or disk that caused `error` or one of its causes, or None."""
    cause: BaseException | None = error
    while cause is not None:
        number = _errno(cause)
        # a refused connection has an errno too, but no path
        if number is not None and (number in _OF_DISKS or (number != errno.ENOENT and _path(cause))):
            return _explain_errno(cause, number)
        cause = cause.__cause__
    return None


def _errno(error: BaseException) -> int | None:
    """Return the errno of an error, or the one in a library's message, if `SYSTEM` has it."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _OS_ERROR.search(str(error))):
        number = int(match[1] or match[2])
    if number is None and isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        number = error.__context__.errno  # torch.save fails again while it closes its file
    return number if number in SYSTEM else None


def _path(error: BaseException) -> str | None:
    """Return the path of an error's file; for a temporary file that of its target, or its folder."""
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    folder, name = os.path.split(os.fsdecode(path))
    if target := LEFTOVER.fullmatch(name):
        return os.path.join(folder, target[1])
    return folder or "." if _TEMPORARY.fullmatch(name) else os.path.join(folder, name)


def _explain_errno(error: BaseException, number: int) -> str:
    return plain(SYSTEM[number] if _path(error) is None else f"{_path(error)}: {SYSTEM[number]}")


@contextmanager
def _threads_in_one_line(debug: bool) -> Iterator[None]:
    """Print one line for an error in a background thread, such as TensorBoard's writer, too."""

    def report(failure) -> None:
        if failure.exc_type is not SystemExit and failure.exc_value is not None:
            name = failure.thread.name if failure.thread else "?"
            _say(f"warning: the thread {plain(name)} ended: {explain(failure.exc_value)}", failure.exc_value, debug)

    previous, threading.excepthook = threading.excepthook, report
    try:
        yield
    finally:
        threading.excepthook = previous


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Make SIGTERM raise `Ended` in the main thread, unless another handler is installed."""

    def unwind(number, frame):
        with suppress(OSError):
            os.write(2, b"stopped by SIGTERM\n")  # unlike sys.stderr, safe in a signal handler
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
    """Flush stdout, which may show that the disk of `> file` is full.

    Raises:
        OSError: the rest cannot be written. It is discarded, since Python would fail again at exit.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard_output()
        raise


def _discard_output(kind: Callable[[int], bool] = lambda mode: True) -> bool:
    """Redirect stdout to the null device if its file mode satisfies `kind`; return whether it was redirected."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        if kind(os.fstat(sys.stdout.fileno()).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            return True
    return False
