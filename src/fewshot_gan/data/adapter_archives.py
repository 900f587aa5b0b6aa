"""Adapters in zip archives, as the demo hands them out: unpacked into a temporary folder, within limits."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..utils.regular_files import regular_file_size
from ..utils.text import plain
from .sets import open_archive

ENDINGS = (".json", ".safetensors", ".md", ".jpg", ".png")  # of the files that belong to an adapter
MOST_BYTES = 2**30  # of all files of an adapter, unpacked
MOST_MEMBERS = 1000
MOST_DIRECTORY = 2**20  # bytes of the list of members
MOST_FOLD = 200  # times the size of a member in the archive


def is_archive(path) -> bool:
    """Return whether `path` is a file with the ending `.zip`."""
    return isinstance(path, str | Path) and str(path).lower().endswith(".zip") and Path(path).expanduser().is_file()


@contextmanager
def unpacked(source) -> Iterator[Path]:
    """Yield the folder with the files of the adapter in a zip archive; it is removed afterwards.

    Args:
        source: file with one adapter, at its top or in one folder; other files are left out.

    Raises:
        ValueError: it is damaged or encrypted, holds no adapter or several, or would unpack to too much; or the block
            refuses a file in the folder, which the message then calls by the name of the archive.
    """
    path = Path(source).expanduser()
    if (size := regular_file_size(path)) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; an archive of an adapter has at most {MOST_BYTES:,}")
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / path.stem
        folder.mkdir()
        with open(path, "rb") as file:
            archive = open_archive(file, path, MOST_DIRECTORY)
            for name, member in _members(archive, path).items():
                try:
                    with archive.open(member) as packed, open(folder / name, "wb") as target:
                        left = member.file_size
                        while left > 0 and (chunk := packed.read(min(2**20, left))):
                            left -= len(chunk)
                            target.write(chunk)
                except Exception as error:  # zlib.error, EOFError, NotImplementedError, …
                    raise ValueError(
                        f"{path}: {plain(name)} is damaged ({plain(error)}); make the archive anew"
                    ) from error
        try:
            yield folder
        except (ValueError, OSError) as error:
            if str(folder) not in str(error):
                raise
            raise ValueError(str(error).replace(str(folder), str(path))) from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return file name → member of the adapter in an archive."""
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS:
        raise ValueError(f"{path} has {len(infos):,} files; give the archive of one adapter")
    places = {info.filename.replace("\\", "/"): info for info in infos if not info.is_dir()}
    configs = [PurePosixPath(name) for name in places if PurePosixPath(name).name == "adapter_config.json"]
    configs = [config for config in configs if not any(part.startswith((".", "__")) for part in config.parts)]
    if len(configs) != 1:
        found = "no adapter_config.json" if not configs else f"{len(configs)} adapters"
        raise ValueError(f"{path} holds {found}; give the archive of one adapter")
    beside = {PurePosixPath(name): info for name, info in places.items()}
    chosen = {
        place.name: info
        for place, info in beside.items()
        if place.parent == configs[0].parent and place.suffix in ENDINGS and not place.name.startswith(".")
    }
    folds = max((info.file_size / max(1, info.compress_size) for info in chosen.values()), default=0)
    if sum(info.file_size for info in chosen.values()) > MOST_BYTES or folds > MOST_FOLD:
        raise ValueError(f"{path} would unpack to more than an adapter has; give the archive of one adapter")
    return chosen
