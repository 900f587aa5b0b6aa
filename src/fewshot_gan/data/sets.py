"""Where pictures lie together, folders with folders in them and zip archives, and what of them is left out, and why."""

import os
import sys
import zipfile
from pathlib import Path

from PIL import Image

from ..utils.text import plain
from .files import MAX_FILE, BoundedFile, read_picture, why_unread

TEXTS = (  # endings, and names without one, of what is usual beside pictures: captions, labels, licences
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".html", ".caption"),
    *("license", "licence", "readme", "copying", "notice"),
)
MAX_DEPTH = 16  # folders in folders
MAX_NAMES = 2_000_000  # files of a folder
MAX_DIRECTORY = 24_000_000  # bytes of the list of files of an archive: some 300,000
MAX_RATIO = 200  # to which an archive may unfold, and a file of it beyond `SMALL`
SMALL = 16_000_000
MAX_TEXT = 1_000_000
SHOWN = 3  # names of what is left out, for each reason


class PictureSet:
    """The pictures of a folder or a zip archive, by their names in it.

    Hidden files, and what systems add to archives, count as not there. Links out of the folder are followed, once.
    Nothing of an archive is written to disk.

    Attributes:
        names: of the pictures, in order, "/" between folders. Folders that hold all of an archive are left out.
        left_out: name → why it is no picture.
        texts: names of what is usual beside pictures.
        links: names of links to folders elsewhere.

    Raises:
        ValueError: it is neither a folder nor a zip archive, or too large, or would unfold beyond reason.
    """

    def __init__(self, source: Path):
        self.source, self.left_out, self.texts, self.links = source, {}, [], []
        self._archive, self._members = None, {}
        self._real_folders = [os.path.realpath(source)]
        if source.is_dir():
            names = self._of_folder(str(source), "", 0)
        elif source.is_file() and _begins_as_zip(source):
            names = self._of_archive()
        else:
            raise ValueError(
                f"{source} is a file, not a folder or a zip archive; pass the folder that holds the images, or zip it"
            )
        self.names = sorted(names, key=lambda name: name.split("/"))

    def read(self, name: str) -> Image.Image:
        """A picture, upright and RGB.

        Raises:
            ValueError: it cannot be read; the message names it.
        """
        if self._archive is None:
            return read_picture(self.source / name, str(self.source / name))
        return read_picture(self._bytes(name, MAX_FILE), f"{self.source}: {plain(name)}")

    def text(self, name: str) -> str | None:
        """What the text of that name says, None: there is none."""
        if name not in self.texts:
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
        """Folder → names of the pictures in it and below, for those that lie in folders."""
        found = {}
        for name in self.names:
            if "/" in name:
                found.setdefault(name.partition("/")[0], []).append(name)
        return found

    def explain(self) -> str:
        """What is left out, as a sentence; "": nothing."""
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

    def _take(self, name: str) -> bool:
        """Whether a file is a picture; what is not is kept where it belongs."""
        why = why_unread(name)
        if why is None:
            return True
        own = name.rpartition("/")[2].lower()
        if (os.path.splitext(own)[1] or own) in TEXTS:
            self.texts.append(name)
        else:
            self.left_out[name] = why
        return False

    def _of_folder(self, folder: str, prefix: str, depth: int) -> list[str]:
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if depth == MAX_DEPTH:
                        self.left_out[name] = f"more than {MAX_DEPTH} folders deep"
                    else:
                        names += self._of_folder(entry.path, f"{name}/", depth + 1)
                elif os.path.isfile(entry.path):
                    names += [name] * self._take(name)
                elif os.path.isdir(entry.path):
                    names += self._of_linked_folder(entry.path, name, depth)
                else:
                    self.left_out[name] = "the link leads nowhere" if entry.is_symlink() else "no regular file"
                if len(names) + len(self.left_out) > MAX_NAMES:
                    raise ValueError(f"{self.source} holds more than {MAX_NAMES:,} files; choose a folder of pictures")
        return names

    def _of_linked_folder(self, folder: str, name: str, depth: int) -> list[str]:
        real = os.path.realpath(folder)
        if any(_is_inside(real, other) or _is_inside(other, real) for other in self._real_folders):
            self.left_out[name] = "the link leads to a folder that is read anyway"
            return []
        self._real_folders.append(real)
        self.links.append(name)
        return self._of_folder(folder, f"{name}/", depth + 1)

    def _of_archive(self) -> list[str]:
        self._file = self.source.open("rb")
        try:
            members = self._members_of_archive()
            names = [name for name in members if self._take(name)]
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
        self._members = {name.removeprefix(common): member for name, member in members.items()}
        self.texts = [name.removeprefix(common) for name in self.texts]
        return [name.removeprefix(common) for name in names]

    def _members_of_archive(self) -> dict[str, zipfile.ZipInfo]:
        bounded = BoundedFile(self._file, MAX_DIRECTORY)
        try:
            self._archive = zipfile.ZipFile(bounded)
        except Exception as error:  # struct.error, UnicodeDecodeError, OverflowError, …
            raise ValueError(f"{self.source} is no zip archive that can be read ({error}); make it anew") from error
        bounded.left = bounded.parts = sys.maxsize  # from here on each member has a limit of its own
        members = {}
        for member in self._archive.infolist():
            name = member.filename.replace("\\", "/")  # as some programs of Windows write them
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
            with archive.open(self._members[name]) as file:
                return file.read(limit + 1)
        except Exception as error:  # zlib.error, EOFError, NotImplementedError, …
            raise ValueError(f"{self.source}: {plain(name)} is damaged ({error}); make the archive anew") from error


def explain(left_out: dict[str, str]) -> str:
    """What is left out and why, as a sentence with the first few names; "": nothing."""
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
    if member.external_attr >> 28 == 0xA:  # a file type of Unix
        return "a link"
    if member.file_size > MAX_FILE:
        return f"more than {MAX_FILE:,} bytes"
    if member.file_size > max(SMALL, MAX_RATIO * member.compress_size):
        return f"would unfold to more than {MAX_RATIO} times its size"
    return None


def _common_folders(names) -> str:
    """The folders that hold all of `names`, with a "/" at the end; "": there are none."""
    folders = [name.split("/")[:-1] for name in names]
    common = os.path.commonprefix(folders) if folders else []
    return "".join(f"{part}/" for part in common)
