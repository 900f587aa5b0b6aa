"""Read a checkpoint of others: in a process with limits where there can be one, with the same checks where not."""

import argparse
import io
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from .conversion import ConversionError
from .reading import Refused, child, sources
from .regular_files import size_of_regular
from .safetensors_files import read_into
from .stored_networks import Opaque, PersistentObject

_START = "import sys; sys.path.append(sys.argv[1]); from reading.child import main; main(sys.argv[2] == 'numbers')"
SPARE_SECONDS = 22  # of waiting, beside those of computing that the process may take
MAX_HEAD = 256 * 2**20  # bytes of the table


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        kind: "networks" (a pickle of NVIDIA's), "tensors" (of torch.save), "ir" (an archive of it) or "unknown".
        value: of "networks" and "tensors" what was stored, tensors on the CPU; of "ir" name → bytes.
    """

    kind: str
    value: object


def read(path: str | Path, kind: str):
    """`open_checkpoint` of a file that must be of `kind`; its value.

    Raises:
        FileNotFoundError, ConversionError: see `open_checkpoint`, or it is of another kind.
    """
    found = open_checkpoint(path)
    if found.kind != kind:
        wanted = {"networks": "a pickle", "tensors": "a file of torch.save"}[kind]
        raise ConversionError(f"{Path(path).name} is not {wanted}, or is damaged or cut short; download it again")
    return found.value


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a plain pickle does, as NVIDIA's checkpoints are.

    Raises:
        ConversionError: it is no regular file.
    """
    try:
        size_of_regular(path)
        with path.open("rb") as file:
            return sources.kind_by_head(file) == "networks"
    except ValueError as error:
        raise ConversionError(str(error)) from error


def check(path: str | Path) -> None:
    """Look a file of torch.save through before another library reads it; its numbers stay where they are.

    Raises:
        FileNotFoundError, ConversionError: see `open_checkpoint`, or it is no such file.
    """
    if (kind := _read(Path(path), numbers=False).kind) != "tensors":
        raise ConversionError(f"{Path(path).name} is no file of torch.save, but {kind}, or is damaged or cut short")


def open_checkpoint(path: str | Path) -> Contents:
    """Read a file without running anything in it, in memory and time that its size allows.

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: it is no regular file, unsafe, damaged or cut short; one sentence.
    """
    return _read(Path(path), numbers=True)


def _read(path: Path, numbers: bool) -> Contents:
    try:
        size = size_of_regular(path)
        with path.open("rb") as file:
            process = _start(file, numbers)
            if process is not None:
                return _of_process(process, size, numbers)
            table = child.read_table(file)
            if not numbers:
                return Contents(table.kind, None)
            places = (_Pieces(child.chunks(place)) for place in table.places)
            return _contents(table.kind, table.nodes, table.root, table.sizes, places)
    except Refused as error:
        raise ConversionError(f"{path.name} was refused: {error}") from error
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _start(file, numbers: bool = True) -> subprocess.Popen | None:
    """A process that reads `file`, or None where none can be started: in a frozen or embedded Python."""
    folder = Path(__file__).parent
    is_python = re.match(r"(python|pypy)", Path(sys.executable or "").name.lower())
    if getattr(sys, "frozen", False) or not is_python or not (folder / "reading" / "child.py").is_file():
        return None
    # -I -S: nothing but the standard library, whatever the environment says; starts in 0.05 s
    command = [sys.executable, "-I", "-S", "-c", _START, str(folder), "numbers" if numbers else "check"]
    try:
        return subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def _of_process(process: subprocess.Popen, size: int, numbers: bool) -> Contents:
    seconds = SPARE_SECONDS + child.limits(size)[1]
    alarm, too_late = None, threading.Event()

    def stop():
        too_late.set()
        process.kill()

    try:
        alarm = threading.Timer(seconds, stop)
        alarm.daemon = True
        alarm.start()
        length = int.from_bytes(process.stdout.read(8), "little")
        head = process.stdout.read(min(length, MAX_HEAD))
        if not length or len(head) < length:
            raise Refused(_why_it_ended(process, too_late))
        head = json.loads(head)
        if "refused" in head:
            raise Refused(head["refused"])
        if not numbers:
            return Contents(head["kind"], None)
        places = (process.stdout for _ in head["sizes"])
        try:
            return _contents(head["kind"], head["nodes"], head["root"], head["sizes"], places)
        except ValueError as error:
            raise Refused(_why_it_ended(process, too_late)) from error
    finally:
        if alarm is not None:
            alarm.cancel()
        process.kill()
        process.stdout.close()
        process.wait()


def _why_it_ended(process: subprocess.Popen, too_late: threading.Event) -> str:
    process.wait(timeout=10)
    if too_late.is_set() or process.returncode == -getattr(signal, "SIGXCPU", 0):
        return "to read it takes longer than a file of its size may take"
    return "it is damaged or cut short; download it again"


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces):
        self.pieces, self.rest = iter(pieces), memoryview(b"")

    def readinto(self, buffer) -> int:
        done, buffer = 0, memoryview(buffer)
        while done < len(buffer):
            self.rest = self.rest or memoryview(next(self.pieces, b""))
            if not self.rest:
                break
            count = min(len(self.rest), len(buffer) - done)
            buffer[done : done + count], self.rest = self.rest[:count], self.rest[count:]
            done += count
        return done


def _contents(kind: str, nodes: list, root, sizes: list[int], places) -> Contents:
    """Numbers read one place after the other, then every node made of those before it."""
    numbers = []
    for size, place in zip(sizes, places, strict=True):
        numbers.append(torch.empty(size, dtype=torch.uint8, device="cpu"))
        read_into(place, numbers[-1], size, "the file")
    if kind == "ir":
        files = zip(sources.IR_FILES, numbers, strict=True)
        return Contents(kind, {name: data.numpy().tobytes() for name, data in files})
    made = []

    def resolve(value):
        return made[value[0]] if isinstance(value, list) else value

    for node_kind, *node in nodes:
        made.append(_MAKE[node_kind](resolve, numbers, *node))
    return Contents(kind, resolve(root))


def _tensor(resolve, numbers, place: int, dtype: str, offset: int, size: list, stride: list) -> torch.Tensor:
    dtype = getattr(torch, dtype)
    data = numbers[place]
    data = data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
    return data.as_strided(size, stride, offset)


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
