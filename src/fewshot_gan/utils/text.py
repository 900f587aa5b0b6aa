"""Text of others, as a terminal, a log or a page may show it."""

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs"}  # control characters, invisible and right-to-left marks, half characters
_COMMANDS = re.compile(  # what tells a terminal to do something: CSI, OSC and the like, and of two characters
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def plain(text, limit: int | None = None) -> str:
    """`text` on one line, without characters that command a terminal or hide others: each becomes a space.

    Args:
        text: anything with a `str()`.
        limit: of a longer one only the beginning and the end, together about so many characters.
    """
    line = " ".join(plain_lines(str(text)).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 + 5 :]}"


def plain_lines(text: str) -> str:
    """`plain`, but lines and their indentation stay."""
    text = _COMMANDS.sub("", text)
    return "".join(" " if c != "\n" and unicodedata.category(c) in _HIDDEN else c for c in text)


def in_short(error) -> str:
    """What an error says, as a part of a sentence: at most 200 characters; its kind where it says nothing."""
    return plain(error)[:200] or type(error).__name__
