"""The process that reads: the file is its input, the table and the numbers are its output.

Output: 8 bytes n, n bytes of JSON (a `Table` without its places, or {"refused": why}), then the bytes of each place.
"""

import json
import os
import sys

from . import Refused
from .sources import Found, Part, read
from .table import Table, flatten

BASE_MEMORY, MEMORY_GROWTH = 512 * 2**20, 4  # bytes, and bytes per byte of the file
BASE_SECONDS, SECONDS_PER_BYTE = 8, 1e-7  # of computing


def limits(file_size: int) -> tuple[int, int]:
    """Bytes of memory and seconds of computing that the reading of a file of this size may take."""
    return BASE_MEMORY + MEMORY_GROWTH * file_size, BASE_SECONDS + int(SECONDS_PER_BYTE * file_size)


def read_table(file) -> Table:
    """The table of an open binary file; its places stay readable as long as the file is open.

    Raises:
        Refused: with the reason, whatever the file made of the libraries that read it.
    """
    try:
        found: Found = read(file)
        return flatten(found, os.fstat(file.fileno()).st_size)
    except (Refused, OSError):
        raise
    except MemoryError as error:
        raise Refused("to read it takes more memory than a file of its size may take") from error
    except Exception as error:  # whatever a damaged file makes of pickle, zipfile and our stand-ins
        reason = f"{type(error).__name__}: {error}"[:200]
        raise Refused(f"it is damaged or cut short ({reason}); download it again") from error


def chunks(place):
    """The bytes of a place of a table, piece by piece."""
    return place.chunks() if isinstance(place, Part) else (place,)


def main(with_numbers: bool = True) -> None:
    """Read standard input, write standard output; without numbers only what they are."""
    file, out = open(0, "rb", closefd=False), open(1, "wb", closefd=False)
    _limit_this_process(*limits(os.fstat(0).st_size))
    try:
        table = read_table(file)
        head = json.dumps({"kind": table.kind, "nodes": table.nodes, "root": table.root, "sizes": table.sizes})
    except (Refused, OSError) as error:
        table, head = None, json.dumps({"refused": str(error)})
    except MemoryError:
        table, head = None, json.dumps({"refused": "to read it takes more memory than a file of its size may take"})
    out.write(len(head).to_bytes(8, "little"))
    out.write(head.encode("ascii"))
    for place in table.places if table and with_numbers else ():
        for piece in chunks(place):
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
        except (AttributeError, ValueError, OSError):  # macOS has not all of them
            pass
