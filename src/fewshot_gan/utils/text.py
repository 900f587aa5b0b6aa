"""Make untrusted text safe for terminals, logs and pages."""

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs"}  # control characters, invisible and right-to-left marks, lone surrogates
_COMMANDS = re.compile(  # terminal escape sequences: CSI, OSC and similar, and those of two characters
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def plain(text, limit: int | None = None) -> str:
    """Return `text` on one line, with control and invisible characters replaced by spaces.

    Args:
        text: any object; its `str()` is used.
        limit: number of characters; of a longer text only the beginning and the end remain.
    """
    line = " ".join(plain_lines(str(text)).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 + 5 :]}"


def plain_lines(text: str) -> str:
    """Return `text` as `plain` does, but keep line breaks and indentation."""
    text = _COMMANDS.sub("", text)
    return "".join(" " if c != "\n" and unicodedata.category(c) in _HIDDEN else c for c in text)


def in_short(error) -> str:
    """Return the message of an error in at most 200 characters, or its class name if it has none."""
    return plain(error)[:200] or type(error).__name__


def duration(seconds: float) -> str:
    """Return a duration in words, rounded as an estimate."""
    if seconds < 90:
        return f"about {max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5)} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} hours"


def gigabytes(count: int) -> str:
    """Return a number of bytes in GB (10⁹ bytes), e.g. "4.3 GB"."""
    return f"{count / 1e9:.1f} GB"
