"""Read untrusted safetensors files: check the header against the file size, and copy the tensors into memory.

The safetensors library maps a file into memory. If the file is truncated or rewritten afterwards, reading a weight
kills the process; copied tensors are safe. The format: 8 bytes n, n bytes of JSON, then the values.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

from .json_files import parse_json
from .regular_files import regular_file_size
from .text import in_short, plain

MAX_HEADER = 16 * 2**20  # bytes; networks of this package need less than 0.1 MB
DTYPES = {  # name in the file: (name in torch, bytes per value)
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


class Entry(NamedTuple):
    """The header's entry for a tensor."""

    dtype: str  # a key of `DTYPES`
    shape: tuple[int, ...]
    begin: int  # offset of its first byte in the file
    end: int  # offset after its last byte

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Header(NamedTuple):
    """The entries by name, in the order of the file, and the metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def numel(self) -> int:
        return sum(entry.numel for entry in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """Return the header of a file after checking that it matches the file size exactly.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a regular file, damaged or truncated, or has an unsupported dtype.
    """
    with _open(path) as file:
        return _header(file, path)


def read_tensors(path: str | Path) -> dict:
    """Return name → tensor on the CPU, copied from the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: see `read_header`, or the file is truncated while it is read.
    """
    import torch

    with _open(path) as file:
        tensors = {}
        for name, entry in _header(file, path).tensors.items():
            dtype = getattr(torch, DTYPES[entry.dtype][0])
            tensors[name] = torch.empty(entry.shape, dtype=dtype, device="cpu")
            read_into(file, tensors[name], entry.end - entry.begin, path)
    return tensors


def read_into(file, tensor, size: int, name) -> None:
    """Read the next `size` bytes of `file` into a contiguous tensor of that size.

    Raises:
        ValueError: the file has fewer bytes.
    """
    import torch

    if size and file.readinto(memoryview(tensor.reshape(-1).view(torch.uint8).numpy())) != size:
        raise ValueError(f"{name} is cut short; fetch the file again")


def _open(path):
    try:
        regular_file_size(path)
        return open(path, "rb")
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder; give a file") from error


def _header(file, path) -> Header:
    size = os.fstat(file.fileno()).st_size
    try:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{size:,} bytes are less than it says")
        if length > MAX_HEADER:
            raise ValueError(f"a header of {length:,} bytes; at most {MAX_HEADER:,} are read")
        entries = parse_json(file.read(length))
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its notes are no texts")
        tensors = {name: _entry(name, entry, 8 + length) for name, entry in entries.items()}
        tensors = dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
        end = 8 + length
        for name, entry in tensors.items():
            if entry.begin != end:
                raise ValueError(f"{plain(name)} begins at byte {entry.begin} instead of {end}")
            end = entry.end
        if end != size:
            raise ValueError(f"{size:,} bytes instead of {end:,}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged or cut short ({in_short(error)}); fetch the file again") from error
    return Header(tensors, metadata)


def _entry(name: str, entry, start: int) -> Entry:
    name = plain(name)
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{name} has no dtype, shape and place") from error
    if not all(type(count) is int and 0 <= count < 2**62 for count in (*shape, begin, end)) or len(shape) > 8:
        raise ValueError(f"{name} has a shape or place of other than whole numbers")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} is of {plain(dtype)}; networks have {', '.join(DTYPES)}")
    if math.prod(shape) * DTYPES[dtype][1] != end - begin:
        raise ValueError(f"{name} of shape {shape} does not fit its {end - begin} bytes")
    return Entry(dtype, shape, start + begin, start + end)
