"""Find the images in folders and zip archives, and explain which files are left out."""

import os
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..utils.text import plain
from .files import MAX_FILE, BoundedFile, read_picture, why_unread

TEXTS = (  # endings, and names without ending, of text files that often accompany images: captions, labels, licences
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".html", ".caption"),
    *("license", "licence", "readme", "copying", "notice"),
)
MAX_DEPTH = 16  # nested folders
MAX_NAMES = 2_000_000  # files of a folder
MAX_DIRECTORY = 24_000_000  # bytes of the directory of an archive, for about 300,000 files
MAX_RATIO = 200  # unpacked to packed size, of an archive and of its files beyond `SMALL`
SMALL = 16_000_000
MAX_TEXT = 1_000_000
SHOWN = 3  # file names per reason in a message


class PictureSet:
    """The images of a folder or zip archive.

    Ignores hidden files and files that operating systems add to archives. Follows links out of the folder, each target
    once. Writes nothing of an archive to disk.

    Attributes:
        names: paths of the images, sorted, with "/" between folders, without the common parent folder of an archive.
        left_out: path → reason why the file is not read.
        texts: paths of text files that often accompany images.
        links: paths of links to folders outside.

    Raises:
        ValueError: the source is neither a folder nor a zip archive, has too many files, or unpacks to too many bytes.
    """

    def __init__(self, source: Path):
        self.source, self.left_out, self.texts, self.links = source, {}, [], []
        self._archive, self._members = None, {}
        self._above: list[str] = []  # folders of an archive above the one that all its images are in, the nearest first
        self._real_folders = [os.path.realpath(source)]
        if source.is_dir():
            names = self._scan_folder(str(source), "", 0)
        elif source.is_file() and _begins_as_zip(source):
            names = self._scan_archive()
        else:
            raise ValueError(
                f"{source} is a file, not a folder or a zip archive; pass the folder that holds the images, or zip it"
            )
        self.names = sorted(names, key=lambda name: name.split("/"))

    def read(self, name: str) -> Image.Image:
        """Read an image, upright and in RGB.

        Raises:
            ValueError: it cannot be read; the message names it.
        """
        if self._archive is None:
            return read_picture(self.source / name, str(self.source / name))
        return read_picture(self._bytes(name, MAX_FILE), f"{self.source}: {plain(name)}")

    def text(self, name: str) -> str | None:
        """Return the contents of a text file, or None if it does not exist; of an archive, also one further above."""
        name = next((place + name for place in ("", *self._above) if place + name in self.texts), "")
        if not name:
            return None
        if self._archive is None:
            with (self.source / name).open("rb") as file:
                data = file.read(MAX_TEXT + 1)
        else:
            data = self._bytes(name, MAX_TEXT)
        if len(data) > MAX_TEXT:
            raise ValueError(f"{self.source}: {plain(name)} has more than {MAX_TEXT:,} bytes")
        return data.decode("utf-8")

    def classes(self) -> dict[str, list[str]]:
        """Return folder → paths of all images below it, for the top-level folders."""
        classes: dict[str, list[str]] = {}
        for name in self.names:
            if "/" in name:
                classes.setdefault(name.partition("/")[0], []).append(name)
        return classes

    def explain(self) -> str:
        """Return which files are left out and why as a sentence, or an empty text."""
        return explain(self.left_out)

    def close(self) -> None:
        """Close the archive."""
        if self._archive is not None:
            self._archive.close()
            self._file.close()

    def __enter__(self) -> "PictureSet":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _is_picture(self, name: str) -> bool:
        """Return whether a file is an image; otherwise note it in `texts` or `left_out`."""
        why = why_unread(name)
        if why is None:
            return True
        file_name = name.rpartition("/")[2].lower()
        if (os.path.splitext(file_name)[1] or file_name) in TEXTS:
            self.texts.append(name)
        else:
            self.left_out[name] = why
        return False

    def _scan_folder(self, folder: str, prefix: str, depth: int) -> list[str]:
        names = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):  # of two links to one folder the first counts
                name = prefix + entry.name
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if depth == MAX_DEPTH:
                        self.left_out[name] = f"more than {MAX_DEPTH} folders deep"
                    else:
                        names += self._scan_folder(entry.path, f"{name}/", depth + 1)
                elif os.path.isfile(entry.path):
                    names += [name] * self._is_picture(name)
                elif os.path.isdir(entry.path):
                    names += self._scan_linked_folder(entry.path, name, depth)
                else:
                    self.left_out[name] = "the link leads nowhere" if entry.is_symlink() else "no regular file"
                if len(names) + len(self.left_out) > MAX_NAMES:
                    raise ValueError(f"{self.source} holds more than {MAX_NAMES:,} files; choose a folder of pictures")
        return names

    def _scan_linked_folder(self, folder: str, name: str, depth: int) -> list[str]:
        real = os.path.realpath(folder)
        if any(_is_inside(real, other) or _is_inside(other, real) for other in self._real_folders):
            self.left_out[name] = "the link leads to a folder that is read anyway"
            return []
        self._real_folders.append(real)
        self.links.append(name)
        return self._scan_folder(folder, f"{name}/", depth + 1)

    def _scan_archive(self) -> list[str]:
        self._file = self.source.open("rb")
        try:
            members = self._open_archive()
            names = [name for name in members if self._is_picture(name)]
            total, size = sum(members[name].file_size for name in names), self._file.seek(0, os.SEEK_END)
            if total > max(SMALL, MAX_RATIO * size):
                raise ValueError(
                    f"{self.source} of {size:,} bytes would unfold to {total:,}, more than {MAX_RATIO} times as many; "
                    "this is no archive of pictures"
                )
        except BaseException:
            self._file.close()
            raise
        common = _common_folders(names)
        parts = common.split("/")[:-1]
        self._above = ["".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
        self._members = {name.removeprefix(common): member for name, member in members.items()}
        self.texts = [name.removeprefix(common) for name in self.texts]
        return [name.removeprefix(common) for name in names]

    def _open_archive(self) -> dict[str, zipfile.ZipInfo]:
        self._archive = open_archive(self._file, self.source, MAX_DIRECTORY)
        members = {}
        for member in self._archive.infolist():
            name = member.filename.replace("\\", "/")  # written by some Windows programs
            if name.endswith("/") or any(map(_is_hidden, name.split("/"))):
                continue
            if why := _why_not_unpacked(member):
                self.left_out[name] = why
            elif name in members:
                self.left_out[name] = "the name comes twice, the first counts"
            else:
                members[name] = member
        return members

    def _bytes(self, name: str, limit: int) -> bytes:
        try:
            archive = self._archive
            assert archive is not None
            with archive.open(self._members[name]) as file:
                return file.read(limit + 1)
        except Exception as error:  # zlib.error, EOFError, NotImplementedError, …
            raise ValueError(f"{self.source}: {plain(name)} is damaged ({error}); make the archive anew") from error


def open_archive(file: BinaryIO, source, max_directory: int) -> zipfile.ZipFile:
    """Open a zip archive whose members the caller limits.

    Args:
        file: the open file.
        source: its name, for the error message.
        max_directory: most bytes of the list of members.

    Raises:
        ValueError: it is no archive, is damaged, or lists too many members.
    """
    bounded = BoundedFile(file, max_directory)
    try:
        archive = zipfile.ZipFile(bounded)
    except Exception as error:  # struct.error, UnicodeDecodeError, OverflowError, …
        raise ValueError(f"{source} is no zip archive that can be read ({plain(error)}); make it anew") from error
    bounded.left = bounded.parts = sys.maxsize  # each member has its own limit
    return archive


def explain(left_out: dict[str, str]) -> str:
    """Return which files are left out and why as a sentence with the first few names, or an empty text."""
    by_reason: dict[str, list[str]] = {}
    for name in sorted(left_out):
        by_reason.setdefault(left_out[name], []).append(plain(name, 80))
    parts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{', '.join(names[:SHOWN])}{more} ({why})")
    count = len(left_out)
    return f"{count} {'file is' if count == 1 else 'files are'} left out: {'; '.join(parts)}" if count else ""


def _is_inside(folder: str, other: str) -> bool:
    return os.path.join(folder, "").startswith(os.path.join(other, ""))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name not in (".", "..") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def _why_not_unpacked(member: zipfile.ZipInfo) -> str | None:
    if member.flag_bits & 0x1:
        return "encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed otherwise than by deflate"
    if member.external_attr >> 28 == 0xA:  # Unix file type of a symbolic link
        return "a link"
    if member.file_size > MAX_FILE:
        return f"more than {MAX_FILE:,} bytes"
    if member.file_size > max(SMALL, MAX_RATIO * member.compress_size):
        return f"would unfold to more than {MAX_RATIO} times its size"
    return None


def _common_folders(names) -> str:
    """Return the common parent folder of `names` with a final "/", or an empty text."""
    folders = [name.split("/")[:-1] for name in names]
    common = os.path.commonprefix(folders) if folders else []
    return "".join(f"{part}/" for part in common)
