"""JSON files of others, bounded before and after they are parsed."""

import json
from pathlib import Path

from .regular_files import read_regular
from .text import in_short

MAX_BYTES, MAX_DEPTH = 8 * 2**20, 64


def read_json(path: str | Path, kind: type = dict, max_bytes: int = MAX_BYTES):
    """What a JSON file holds.

    Args:
        path: of the file, in UTF-8.
        kind: what it must be: `dict` for an object, `list` for an array.
        max_bytes: a larger file is refused unread.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, too large, nested too deeply, no JSON, or of another kind; one sentence.
    """
    data = read_regular(path, max_bytes)
    try:
        return parse_json(data, kind)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON file ({in_short(error)}); fetch the file again") from error


def parse_json(data: bytes, kind: type = dict):
    """`read_json` of bytes that are bounded already.

    Raises:
        ValueError: no JSON, nested too deeply, or of another kind.
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
