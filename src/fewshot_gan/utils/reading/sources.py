"""Where pickles and numbers are: NVIDIA's pickles, torch's files of both kinds, and archives with a network's IR."""

import io
import os
import zipfile
from typing import NamedTuple

from . import Refused
from .opcodes import check
from .stand_ins import ITEM_SIZES, NETWORKS, TENSORS, Function, Storage, StorageType, Unpickler, copies

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save before 1.6 begin
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
IR_FILES = tuple(f"{name}Network.{end}" for name in ("Mapping", "Synthesis") for end in ("xml", "bin"))
MAX_MEMBERS, MAX_PICKLE = 100_000, 256 * 2**20
SPARE, GROWTH = 16 * 2**20, 3  # an archive's files have at most so many bytes and so many times its size together


class Found(NamedTuple):
    """What a file holds: `kind` is "networks", "tensors", "ir" or "unknown", `value` built of `stand_ins`."""

    kind: str
    value: object


class Part(NamedTuple):
    """Bytes that lie in a file: `size` from `begin` on, or a member of an archive."""

    file: object
    begin: int
    size: int
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def chunks(self, length: int = 2**20):
        """The bytes, a piece at a time."""
        left = self.size
        with self._opened() as file:
            while left:
                piece = file.read(min(length, left))
                if not piece:
                    raise Refused("it is cut short")
                left -= len(piece)
                yield piece

    def _opened(self):
        if (archive := self.archive) is not None:
            return archive.open(self.member)
        return _At(self.file, self.begin)


class _At:
    def __init__(self, file, begin):
        self.file, self.at = file, begin

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def read(self, count):
        self.file.seek(self.at)
        piece = self.file.read(count)
        self.at += len(piece)
        return piece


def read(file) -> Found:
    """What an open binary file holds.

    Raises:
        Refused: it is unsafe, damaged or cut short.
        Exception: whatever a damaged file makes of the libraries that read it.
    """
    copies.set([0])
    size, kind = os.fstat(file.fileno()).st_size, kind_by_head(file)
    if kind == "legacy":
        return Found("tensors", _legacy(file, size))
    if kind == "networks":
        table = NETWORKS | {"torch.storage._load_from_bytes": Function(_nested)}
        return Found("networks", _load(file, size, table, None))
    return _archive(file, size) if kind == "archive" else Found("unknown", None)


def kind_by_head(file) -> str:
    """What the first bytes of an open file say: "legacy" (of torch), "networks", "archive" or "unknown"."""
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


def _archive(file, size: int) -> Found:
    with_limits = _Archive(file, size)
    names = with_limits.members
    if any(name.rpartition("/")[2] == IR_FILES[-2] for name in names):
        return Found("ir", [with_limits.part(with_limits.only(wanted)) for wanted in IR_FILES])
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return Found("tensors", _zipped(with_limits))
    return Found("unknown", None)


class _Archive:
    """A zip whose files have a bounded size together, each of them taken once."""

    def __init__(self, file, size: int):
        self.file, self.zip = file, zipfile.ZipFile(file)
        infos = self.zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise Refused(f"it is an archive of {len(infos):,} files; at most {MAX_MEMBERS:,} are read")
        self.members = {info.filename: info for info in infos}
        self.left = self.allowed = SPARE + GROWTH * size

    def only(self, wanted: str) -> str:
        found = [name for name in self.members if name.rpartition("/")[2] == wanted]
        if len(found) != 1:
            raise Refused(f"the archive holds {len(found)} files {wanted} instead of one")
        return found[0]

    def part(self, name: str) -> Part:
        if (info := self.members.get(name)) is None:
            raise Refused(f"it is cut short: the archive lacks {name}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise Refused(f"{name} in the archive is encrypted or compressed in an unusual way")
        self.left -= info.file_size
        if self.left < 0:
            raise Refused(f"its files unpack to more than {self.allowed:,} bytes")
        return Part(self.file, 0, info.file_size, self.zip, info)


def _zipped(archive: _Archive):
    """torch.save since 1.6: `NAME/data.pkl`, and a file `NAME/data/KEY` for each storage."""
    pickled = archive.only("data.pkl")
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.members:
        if b"".join(archive.part(f"{folder}byteorder").chunks()) != b"little":
            raise Refused("its numbers have the byte order of other machines")
    storages = {}

    def storage(pid) -> Storage:
        dtype, key, numel = _persistent_id(pid)
        if key not in storages:
            part = archive.part(f"{folder}data/{key}")
            if numel * ITEM_SIZES.get(dtype, 1) > part.size:
                raise Refused(f"it is cut short: a storage has {part.size:,} bytes for {numel:,} numbers of {dtype}")
            storages[key] = part
        return Storage(storages[key], dtype, 0, numel)

    part = archive.part(pickled)
    if part.size > MAX_PICKLE:
        raise Refused(f"its pickle has {part.size:,} bytes; at most {MAX_PICKLE:,} are read")
    data = b"".join(part.chunks())
    return _load(io.BytesIO(data), len(data), TENSORS, storage)


def _persistent_id(pid) -> tuple[str, str, int]:
    """dtype, key and numbers of a storage from its persistent id."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StorageType):
        raise Refused("it refers to something other than a storage")
    _, kind, key, _, numel = pid[:5]
    if not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise Refused("a storage has no key and size")
    return kind.dtype, key, numel


# -------------------------------------------------------------------------------------------------- torch before 1.6


def _nested(data) -> Storage:
    """A storage in an NVIDIA pickle: the bytes of a file of its own."""
    if not isinstance(data, bytes):
        raise Refused("a storage in it is no bytes")
    try:
        found = _legacy(io.BytesIO(data), len(data), data)
    except Refused as error:
        raise Refused(f"it is damaged: a storage in it is none ({error})") from error
    if not isinstance(found, Storage):
        raise Refused("it is damaged: something else is where a storage belongs")
    return found


def _legacy(file, size: int, data: bytes | None = None):
    """Pickles of a magic number, protocol, system, value and keys; then for each key its count and numbers."""
    parts = {}  # key: [dtype, numbers, storages]

    def storage(pid) -> Storage:
        dtype, key, numel = _persistent_id(pid)
        view = pid[5] if len(pid) > 5 else None
        known = parts.setdefault(key, [dtype, numel, []])
        if known[:2] != [dtype, numel]:
            raise Refused("a storage has two sizes")
        begin, count = (0, numel) if view is None else view[1:3]
        if type(begin) is not int or type(count) is not int or begin < 0 or count < 0 or begin + count > numel:
            raise Refused("a part of a storage lies outside it")
        known[2].append(Storage(None, dtype, begin, count))
        return known[2][-1]

    if _load(file, size, {}, None) != MAGIC or _load(file, size, {}, None) != PROTOCOL:
        raise Refused("it is damaged: it is of no protocol of torch.save")
    system = _load(file, size, {}, None)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Refused("its numbers have the byte order of other machines")
    value, keys = _load(file, size, TENSORS, storage), _load(file, size, {}, None)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*parts} - {*keys}:
        raise Refused("it is damaged: the keys of its storages are missing")
    at = file.tell()
    for key in keys:
        if key not in parts:
            raise Refused("it is damaged: it has a storage that nothing uses")
        dtype, numel, storages = parts.pop(key)
        file.seek(at)
        count, length = int.from_bytes(file.read(8), "little"), numel * ITEM_SIZES.get(dtype, 1)
        if count != numel or at + 8 + length > size:
            raise Refused(f"it is cut short: a storage of {numel:,} numbers is not there")
        place = Part(file, at + 8, length) if data is None else memoryview(data)[at + 8 : at + 8 + length]
        for found in storages:
            found.place = place
        at += 8 + length
    return value
