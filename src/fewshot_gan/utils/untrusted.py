"""Read untrusted checkpoints in a child process with limits; where none can start, in this one with the same checks."""

import argparse
import io
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from .conversion import CodeRefused, ConversionError
from .reading import HoldsCode, Refused, child, sources
from .regular_files import regular_file_size
from .safetensors_files import read_into
from .stored_networks import Opaque, PersistentObject

_START = "import sys; sys.path.append(sys.argv[1]); from reading.child import main; main(sys.argv[2] == 'numbers')"
SPARE_SECONDS = 22  # time to wait for the process, in addition to its CPU time
MAX_HEAD = 256 * 2**20  # bytes of the table


class Contents(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        kind: "networks" (NVIDIA's pickle), "tensors" (torch.save), "ir" (an archive of OpenVINO IR) or "unknown".
        value: for "networks" and "tensors" the stored object, with tensors on the CPU; for "ir" name → bytes.
    """

    kind: str
    value: Any


def read_checkpoint(path: str | Path, kind: str) -> Any:
    """Return the value of a checkpoint that must be of `kind`; see `Contents`.

    Raises:
        FileNotFoundError, ConversionError: see `open_checkpoint`, or it is of another kind.
    """
    contents = open_checkpoint(path)
    if contents.kind != kind:
        expected = {"networks": "a pickle", "tensors": "a file of torch.save"}[kind]
        raise ConversionError(f"{Path(path).name} is not {expected}, or is damaged or cut short; download it again")
    return contents.value


def is_pickle(path: Path) -> bool:
    """Return whether a file begins like a plain pickle, the format of NVIDIA's checkpoints.

    Raises:
        ConversionError: it is not a regular file.
    """
    try:
        regular_file_size(path)
        with path.open("rb") as file:
            return sources.kind_by_head(file) == "networks"
    except ValueError as error:
        raise ConversionError(str(error)) from error


def check(path: str | Path) -> None:
    """Check a file of torch.save before another library reads it, without reading its tensor data.

    Raises:
        FileNotFoundError, ConversionError: see `open_checkpoint`, or it is not such a file.
    """
    if (kind := _read(Path(path), with_data=False).kind) != "tensors":
        raise ConversionError(f"{Path(path).name} is no file of torch.save, but {kind}, or is damaged or cut short")


def open_checkpoint(path: str | Path) -> Contents:
    """Read a checkpoint without running its code, with limits on memory and time that depend on its size.

    Raises:
        FileNotFoundError: the file does not exist.
        ConversionError: it is not a regular file, unsafe, damaged or truncated.
    """
    return _read(Path(path), with_data=True)


def _read(path: Path, with_data: bool) -> Contents:
    try:
        size = regular_file_size(path)
        with path.open("rb") as file:
            process = _start(file, with_data)
            if process is not None:
                return _read_from_process(process, size, with_data)
            table = child.read_table(file)
            if not with_data:
                return Contents(table.kind, None)
            blocks = (_PiecesReader(child.chunks(block)) for block in table.blocks)
            return _contents(table.kind, table.nodes, table.root, table.sizes, blocks)
    except Refused as error:
        kind = CodeRefused if isinstance(error, HoldsCode) else ConversionError
        raise kind(f"{path.name} was refused: {error}") from error
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _start(file, with_data: bool = True) -> subprocess.Popen | None:
    """Start the process that reads `file`; return None if that is impossible, in a frozen or embedded Python."""
    folder = Path(__file__).parent
    is_python = re.match(r"(python|pypy)", Path(sys.executable or "").name.lower())
    if getattr(sys, "frozen", False) or not is_python or not (folder / "reading" / "child.py").is_file():
        return None
    # -I -S: only the standard library, regardless of the environment; starts in 0.05 s
    command = [sys.executable, "-I", "-S", "-c", _START, str(folder), "numbers" if with_data else "check"]
    try:
        return subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def _read_from_process(process: subprocess.Popen, size: int, with_data: bool) -> Contents:
    seconds = SPARE_SECONDS + child.limits(size)[1]
    alarm, too_late = None, threading.Event()
    output: IO[bytes] | None = process.stdout
    assert output is not None  # `_start` asks for a pipe

    def stop():
        too_late.set()
        process.kill()

    try:
        alarm = threading.Timer(seconds, stop)
        alarm.daemon = True
        alarm.start()
        length = int.from_bytes(output.read(8), "little")
        head = output.read(min(length, MAX_HEAD))
        if not length or len(head) < length:
            raise Refused(_why_it_ended(process, too_late))
        head = json.loads(head)
        if "refused" in head:
            raise (HoldsCode if head.get("code") else Refused)(head["refused"])
        if not with_data:
            return Contents(head["kind"], None)
        blocks = (output for _ in head["sizes"])
        try:
            return _contents(head["kind"], head["nodes"], head["root"], head["sizes"], blocks)
        except ValueError as error:
            raise Refused(_why_it_ended(process, too_late)) from error
    finally:
        if alarm is not None:
            alarm.cancel()
        process.kill()
        output.close()
        process.wait()


def _why_it_ended(process: subprocess.Popen, too_late: threading.Event) -> str:
    process.wait(timeout=10)
    if too_late.is_set() or process.returncode == -getattr(signal, "SIGXCPU", 0):
        return "to read it takes longer than a file of its size may take"
    return "it is damaged or cut short; download it again"


class _PiecesReader(io.RawIOBase):
    """Read an iterable of bytes as a file."""

    def __init__(self, pieces):
        self.pieces, self.unread = iter(pieces), memoryview(b"")

    def readinto(self, buffer) -> int:
        done, buffer = 0, memoryview(buffer)
        while done < len(buffer):
            self.unread = self.unread or memoryview(next(self.pieces, b""))
            if not self.unread:
                break
            count = min(len(self.unread), len(buffer) - done)
            buffer[done : done + count], self.unread = self.unread[:count], self.unread[count:]
            done += count
        return done


def _contents(kind: str, nodes: list, root, sizes: list[int], blocks) -> Contents:
    """Read one block after the other, then build every node from earlier ones."""
    data = []
    for size, block in zip(sizes, blocks, strict=True):
        data.append(torch.empty(size, dtype=torch.uint8, device="cpu"))
        read_into(block, data[-1], size, "the file")
    if kind == "ir":
        files = zip(sources.IR_FILES, data, strict=True)
        return Contents(kind, {name: content.numpy().tobytes() for name, content in files})
    values = []

    def resolve(value):
        return values[value[0]] if isinstance(value, list) else value

    for node_kind, *node in nodes:
        values.append(_MAKE[node_kind](resolve, data, *node))
    return Contents(kind, resolve(root))


def _tensor(resolve, data, index: int, dtype_name: str, offset: int, size: list, stride: list) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, dtype_name)
    block = data[index]
    block = block[: len(block) // dtype.itemsize * dtype.itemsize].view(dtype)
    return block.as_strided(size, stride, offset)


_MAKE = {
    "list": lambda resolve, _, items: [resolve(item) for item in items],
    "tuple": lambda resolve, _, items: tuple(resolve(item) for item in items),
    "set": lambda resolve, _, items: {resolve(item) for item in items},
    "dict": lambda resolve, _, items: {resolve(key): resolve(item) for key, item in items},
    "text": lambda resolve, _, text: text,
    "bytes": lambda resolve, _, text: text.encode("latin1"),
    "tensor": _tensor,
    "network": lambda resolve, _, class_name, state: PersistentObject(resolve(class_name), resolve(state)),
    "opaque": lambda resolve, _, args, state: Opaque(resolve(args), resolve(state)),
    "namespace": lambda resolve, _, args, state: argparse.Namespace(**_named(resolve(state))),
    "nothing": lambda resolve, _: None,
}


def _named(state) -> dict:
    return {key: value for key, value in state.items() if isinstance(key, str)} if isinstance(state, dict) else {}
