"""Find pickles and tensor data in a file: NVIDIA's pickles, both formats of torch.save, archives of OpenVINO IR."""

import io
import os
import zipfile
from typing import Any, NamedTuple

from . import Refused
from .opcodes import check
from .stand_ins import ITEM_SIZES, NETWORKS, TENSORS, Function, Storage, StorageType, Unpickler, copies

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of a file of torch.save before 1.6
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
IR_FILES = tuple(f"{name}Network.{end}" for name in ("Mapping", "Synthesis") for end in ("xml", "bin"))
MAX_MEMBERS, MAX_PICKLE = 100_000, 256 * 2**20
SPARE, GROWTH = 16 * 2**20, 3  # limit of an unpacked archive: SPARE bytes plus GROWTH times its size


class FileContents(NamedTuple):
    """The contents of a file.

    Attributes:
        kind: "networks", "tensors", "ir" or "unknown".
        value: of "networks" and "tensors" an object made of `stand_ins`, of "ir" a list of `Block`, else None.
    """

    kind: str
    value: Any


class Block(NamedTuple):
    """A range of bytes: `size` bytes from `begin` in a file, or a member of an archive."""

    file: Any
    begin: int
    size: int
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def chunks(self, length: int = 2**20):
        """Yield the bytes in pieces of at most `length` bytes."""
        left = self.size
        with self._opened() as file:
            while left:
                piece = file.read(min(length, left))
                if not piece:
                    raise Refused("it is cut short")
                left -= len(piece)
                yield piece

    def _opened(self):
        if self.archive is not None and self.member is not None:
            return self.archive.open(self.member)
        return _FilePosition(self.file, self.begin)


class _FilePosition:
    """Reads a shared file from its own position."""

    def __init__(self, file, begin):
        self.file, self.position = file, begin

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def read(self, count):
        self.file.seek(self.position)
        piece = self.file.read(count)
        self.position += len(piece)
        return piece


def read(file) -> FileContents:
    """Return the contents of an open binary file.

    Raises:
        Refused: the file is unsafe, damaged or truncated.
        Exception: a damaged file can cause any error.
    """
    copies.set([0])
    size, kind = os.fstat(file.fileno()).st_size, kind_by_head(file)
    if kind == "legacy":
        return FileContents("tensors", _legacy(file, size))
    if kind == "networks":
        table = NETWORKS | {"torch.storage._load_from_bytes": Function(_nested)}
        return FileContents("networks", _load(file, size, table, None))
    return _archive(file, size) if kind == "archive" else FileContents("unknown", None)


def kind_by_head(file) -> str:
    """Return "legacy" (old torch.save), "networks", "archive" or "unknown", by the first bytes of an open file."""
    head = file.read(len(LEGACY))
    file.seek(0)
    if head == LEGACY:
        return "legacy"
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:  # a pickle and its protocol
        return "networks"
    return "archive" if head[:4] == b"PK\x03\x04" else "unknown"


def _load(file, size: int, table: dict, storage):
    check(file, size - file.tell())
    return Unpickler(file, table, storage).load()


# ------------------------------------------------------------------------------------------------------------ archives


def _archive(file, size: int) -> FileContents:
    archive = _Archive(file, size)
    names = archive.members
    if any(name.rpartition("/")[2] == IR_FILES[-2] for name in names):
        return FileContents("ir", [archive.block(archive.only(file_name)) for file_name in IR_FILES])
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return FileContents("tensors", _zipped(archive))
    return FileContents("unknown", None)


class _Archive:
    """A zip archive with a limit on the unpacked size of all files that are read."""

    def __init__(self, file, size: int):
        self.file, self.zip = file, zipfile.ZipFile(file)
        infos = self.zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise Refused(f"it is an archive of {len(infos):,} files; at most {MAX_MEMBERS:,} are read")
        self.members = {info.filename: info for info in infos}
        self.left = self.allowed = SPARE + GROWTH * size

    def only(self, file_name: str) -> str:
        """Return the path of the only file of this name."""
        paths = [name for name in self.members if name.rpartition("/")[2] == file_name]
        if len(paths) != 1:
            raise Refused(f"the archive holds {len(paths)} files {file_name} instead of one")
        return paths[0]

    def block(self, name: str) -> Block:
        if (info := self.members.get(name)) is None:
            raise Refused(f"it is cut short: the archive lacks {name}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise Refused(f"{name} in the archive is encrypted or compressed in an unusual way")
        self.left -= info.file_size
        if self.left < 0:
            raise Refused(f"its files unpack to more than {self.allowed:,} bytes")
        return Block(self.file, 0, info.file_size, self.zip, info)


def _zipped(archive: _Archive):
    """Read the format of torch.save since 1.6: `NAME/data.pkl`, and a file `NAME/data/KEY` per storage."""
    pickled = archive.only("data.pkl")
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.members:
        if b"".join(archive.block(f"{folder}byteorder").chunks()) != b"little":
            raise Refused("its numbers have the byte order of other machines")
    storages = {}

    def storage(pid) -> Storage:
        dtype, key, numel = _persistent_id(pid)
        if key not in storages:
            block = archive.block(f"{folder}data/{key}")
            if numel * ITEM_SIZES.get(dtype, 1) > block.size:
                raise Refused(f"it is cut short: a storage has {block.size:,} bytes for {numel:,} numbers of {dtype}")
            storages[key] = block
        return Storage(storages[key], dtype, 0, numel)

    block = archive.block(pickled)
    if block.size > MAX_PICKLE:
        raise Refused(f"its pickle has {block.size:,} bytes; at most {MAX_PICKLE:,} are read")
    data = b"".join(block.chunks())
    return _load(io.BytesIO(data), len(data), TENSORS, storage)


def _persistent_id(pid) -> tuple[str, str, int]:
    """Return dtype, key and number of values of a storage from its persistent id."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StorageType):
        raise Refused("it refers to something other than a storage")
    _, kind, key, _, numel = pid[:5]
    if not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise Refused("a storage has no key and size")
    return kind.dtype, key, numel


# -------------------------------------------------------------------------------------------------- torch before 1.6


def _nested(data) -> Storage:
    """Read a storage of an NVIDIA pickle, which is the bytes of a file of torch.save."""
    if not isinstance(data, bytes):
        raise Refused("a storage in it is no bytes")
    try:
        storage = _legacy(io.BytesIO(data), len(data), data)
    except Refused as error:
        raise Refused(f"it is damaged: a storage in it is none ({error})") from error
    if not isinstance(storage, Storage):
        raise Refused("it is damaged: something else is where a storage belongs")
    return storage


def _legacy(file, size: int, data: bytes | None = None):
    """Read the format before 1.6: pickles of magic number, protocol, system, value and keys, then data for each key."""
    storages_by_key = {}  # key: [dtype, number of values, storages]

    def storage(pid) -> Storage:
        dtype, key, numel = _persistent_id(pid)
        view = pid[5] if len(pid) > 5 else None
        entry = storages_by_key.setdefault(key, [dtype, numel, []])
        if entry[:2] != [dtype, numel]:
            raise Refused("a storage has two sizes")
        begin, count = (0, numel) if view is None else view[1:3]
        if type(begin) is not int or type(count) is not int or begin < 0 or count < 0 or begin + count > numel:
            raise Refused("a part of a storage lies outside it")
        entry[2].append(Storage(None, dtype, begin, count))
        return entry[2][-1]

    if _load(file, size, {}, None) != MAGIC or _load(file, size, {}, None) != PROTOCOL:
        raise Refused("it is damaged: it is of no protocol of torch.save")
    system = _load(file, size, {}, None)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Refused("its numbers have the byte order of other machines")
    value, keys = _load(file, size, TENSORS, storage), _load(file, size, {}, None)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*storages_by_key} - {*keys}:
        raise Refused("it is damaged: the keys of its storages are missing")
    position = file.tell()
    for key in keys:
        if key not in storages_by_key:
            raise Refused("it is damaged: it has a storage that nothing uses")
        dtype, numel, storages = storages_by_key.pop(key)
        file.seek(position)
        count, length = int.from_bytes(file.read(8), "little"), numel * ITEM_SIZES.get(dtype, 1)
        if count != numel or position + 8 + length > size:
            raise Refused(f"it is cut short: a storage of {numel:,} numbers is not there")
        begin, end = position + 8, position + 8 + length
        block = Block(file, begin, length) if data is None else memoryview(data)[begin:end]
        for storage_view in storages:
            storage_view.block = block
        position = end
    return value
