"""The child process: reads a checkpoint from standard input, writes a table and tensor data to standard output.

Output: 8 bytes n, n bytes of JSON (a `Table` without its blocks, or {"refused": reason, "code": whether it is for code
that the file holds}), then the bytes of each block.
"""

import json
import os
import sys

from . import HoldsCode, Refused
from .sources import Block, read
from .table import Table, flatten

BASE_MEMORY, MEMORY_GROWTH = 512 * 2**20, 4  # bytes, and bytes per byte of the file
BASE_SECONDS, SECONDS_PER_BYTE = 8, 1e-7  # CPU time


def limits(file_size: int) -> tuple[int, int]:
    """Return the limits for reading a file of this size: bytes of memory and seconds of CPU time."""
    return BASE_MEMORY + MEMORY_GROWTH * file_size, BASE_SECONDS + int(SECONDS_PER_BYTE * file_size)


def read_table(file) -> Table:
    """Return the table of an open binary file; its blocks can be read while the file is open.

    Raises:
        Refused: with the reason, for every error that a damaged file causes.
    """
    try:
        return flatten(read(file), os.fstat(file.fileno()).st_size)
    except (Refused, OSError):
        raise
    except MemoryError as error:
        raise Refused("to read it takes more memory than a file of its size may take") from error
    except Exception as error:  # a damaged file can cause any error in pickle, zipfile and our stand-ins
        reason = f"{type(error).__name__}: {error}"[:200]
        raise Refused(f"it is damaged or cut short ({reason}); download it again") from error


def chunks(block):
    """Yield the bytes of a table's block in pieces."""
    return block.chunks() if isinstance(block, Block) else (block,)


def main(with_data: bool = True) -> None:
    """Read standard input and write standard output; `with_data=False` leaves out the blocks."""
    file, out = open(0, "rb", closefd=False), open(1, "wb", closefd=False)
    _limit_this_process(*limits(os.fstat(0).st_size))
    try:
        table = read_table(file)
        head = json.dumps({"kind": table.kind, "nodes": table.nodes, "root": table.root, "sizes": table.sizes})
    except (Refused, OSError) as error:
        table, head = None, json.dumps({"refused": str(error), "code": isinstance(error, HoldsCode)})
    except MemoryError:
        table, head = None, json.dumps({"refused": "to read it takes more memory than a file of its size may take"})
    out.write(len(head).to_bytes(8, "little"))
    out.write(head.encode("ascii"))
    for block in table.blocks if table and with_data else ():
        for piece in chunks(block):
            out.write(piece)
    out.flush()
    sys.exit(0)


def _limit_this_process(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, amount in (("RLIMIT_AS", memory), ("RLIMIT_CPU", seconds), ("RLIMIT_CORE", 0)):
        try:
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
            resource.setrlimit(kind, (amount, hard))
        except (AttributeError, ValueError, OSError):  # macOS lacks some of them
            pass
