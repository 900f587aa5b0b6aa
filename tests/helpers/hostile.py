"""Files that ask for too much: each is small, and to read it as its format says would take gigabytes or for ever."""

import io
import zipfile
from struct import pack

import torch

NESTED = b"\x80\x04})" + b"\x85" * 300_000 + b"Ns."  # a dictionary whose key is a tuple in a tuple in a tuple …
HASHED = b"\x80\x04})" + b"2\x86" * 60 + b"Ns."  # a key of 60 levels, each the one below twice: 2^60 values to hash
EXPANDED = {"g_ema": {"input.input": torch.zeros(1).expand(1, 226_000, 226_000)}}  # 205 GB of one number


def saved(value, zipped: bool = True) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def archive(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return file.getvalue()


def inflated(data: bytes, member: str, size: int = 2**28) -> bytes:
    """The archive with zeros, deflated a thousand times, in place of a member."""
    file, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in source.namelist():
            if name.rpartition("/")[2] != member.rpartition("/")[2]:
                target.writestr(name, source.read(name))
            else:
                with target.open(name, "w", force_zip64=True) as out:
                    for _ in range(size >> 24):
                        out.write(bytes(2**24))
    return file.getvalue()


def torch_archive(pickle: bytes) -> bytes:
    return archive({"archive/data.pkl": pickle, "archive/byteorder": b"little"})


def bombs() -> dict[str, tuple[bytes, str]]:
    """Name → (content, what is said of it)."""
    memo = b"\x80\x04Nr" + pack("<I", 2**28) + b"."
    ir = {f"{n}Network.{e}": b"" for n in ("Mapping", "Synthesis") for e in ("xml", "bin")}
    wide = {"g_ema": {"input.input": torch.zeros(2**20).as_strided((2**20, 2**20), (1, 0))}}
    return {
        "memo.pkl": (memo, "268,435,456 places in the unpickler's memo"),
        "memo.pt": (torch_archive(memo), "268,435,456 places in the unpickler's memo"),
        "nested.pkl": (NESTED, "a key of more than 64 values"),
        "nested.pt": (torch_archive(NESTED), "a key of more than 64 values"),
        "hashed.pkl": (HASHED, "a key of more than 64 values"),
        "colliding.pkl": (b"\x80\x04}\x8a\x0a" + b"\xff" * 9 + b"\x01Ns.", "a key of more than 64 values or 128 bits"),
        "frame.pkl": (b"\x80\x04\x95" + pack("<Q", 2**40) + b".", "1,099,511,627,776 bytes are announced"),
        "bytes.pkl": (b"\x80\x04\x8e" + pack("<Q", 2**40) + b".", "1,099,511,627,776 bytes are announced"),
        "bytearray.pkl": (b"\x80\x05\x96" + pack("<Q", 2**40) + b".", "1,099,511,627,776 bytes are announced"),
        "text.pkl": (b"\x80\x04X" + pack("<I", 2**32 - 1) + b".", "4,294,967,295 bytes are announced"),
        "integer.pkl": (b"\x80\x04\x8b" + pack("<i", 4000) + b"\x01" * 4000 + b".", "a whole number of 31,993 bits"),
        "values.pkl": (b"\x80\x04" + b"]" * 600_000 + b"l" + b".", "mark is missing"),
        "opcodes.pkl": (b"\x80\x04" + b"N0" * 1_100_000 + b".", "more than 2,000,000 pickle opcodes"),
        "expanded.pth": (saved(EXPANDED), "does not fit its storage of 1 numbers"),
        "expanded_legacy.pth": (saved(EXPANDED, zipped=False), "does not fit its storage of 1 numbers"),
        "wide.pth": (saved(wide), "does not fit its storage of 1,048,576 numbers"),
        "zip.pt": (inflated(saved({"a": torch.zeros(3)}), "data/0"), "unpack to more than"),
        "zip_pickle.pt": (inflated(saved({"a": torch.zeros(3)}), "data.pkl"), "unpack to more than"),
        "zip.whl": (inflated(archive(ir), "SynthesisNetwork.xml"), "unpack to more than"),
        "members.whl": (archive({str(i): b"" for i in range(100_001)}), "an archive of 100,001 files"),
    }
