"""Read untrusted JSON files with limits on size and nesting."""

import json
from pathlib import Path

from .regular_files import read_regular
from .text import in_short

MAX_BYTES, MAX_DEPTH = 8 * 2**20, 64


def read_json(path: str | Path, kind: type = dict, max_bytes: int = MAX_BYTES):
    """Return the value in a JSON file.

    Args:
        path: a file in UTF-8.
        kind: required type: `dict` for an object, `list` for an array.
        max_bytes: largest size of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a regular file, too large, nested too deeply, not JSON, or of another type.
    """
    data = read_regular(path, max_bytes)
    try:
        return parse_json(data, kind)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON file ({in_short(error)}); fetch the file again") from error


def parse_json(data: bytes, kind: type = dict):
    """Return the value in JSON bytes, whose size the caller has limited; see `read_json`.

    Raises:
        ValueError: not JSON, nested too deeply, or of another type.
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    if not isinstance(value, kind):
        raise ValueError(f"it holds {_NAMES.get(type(value), 'a number')} instead of {_NAMES[kind]}")
    level, depth = [value], 0
    while level := [child for parent in level for child in _children(parent)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return value


_NAMES = {dict: "an object", list: "an array", str: "a text", type(None): "null", bool: "true or false"}


def _children(value) -> list:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
