"""Names of bases, adapters and data sets: embedded ones, and ids of Hub repos."""

import logging
import os
import re
from pathlib import Path
from typing import TypeGuard

from ..utils.files import expanded, finish_replacing
from ..utils.json_files import read_json

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def written(name_or_path: str | os.PathLike) -> str:
    """Return a name or path as text, `~` expanded; of the `Path` of a folder with `./`: it is no embedded name."""
    text = expanded(name_or_path)
    plain_folder = isinstance(name_or_path, Path) and Path(text).name == text and Path(text).is_dir()
    return os.path.join(".", text) if plain_folder else text


def embedded_bases() -> list[str]:
    """Return the names of the generators that ship with the package."""
    return sorted(p.parent.name for p in (ASSETS / "bases").glob("*/model_index.json"))


def embedded_base_of(fingerprint: str | None) -> str | None:
    """Return the name of the embedded base that has this fingerprint; None if none has it.

    `bases/fingerprints.json` records the fingerprints, so that no weights are read for this.
    """
    path = ASSETS / "bases" / "fingerprints.json"
    recorded = read_json(path) if path.is_file() else {}
    return next((name for name, mark in recorded.items() if mark == fingerprint), None)


def embedded_adapters(base: str) -> dict[str, Path]:
    """Return name → folder of the adapters of an embedded base that ship with the package."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "adapters" / base).glob("*/adapter_config.json"))}


def folders_per_base(adapter: str) -> dict[str, Path]:
    """Return embedded base → folder of its embedded adapter of this name; empty if no base has one."""
    found = {base: embedded_adapters(base).get(adapter) for base in embedded_bases()}
    return {base: folder for base, folder in found.items() if folder is not None}


def embedded_datasets() -> dict[str, Path]:
    """Return name → folder of the example image sets that ship with the package."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "datasets").glob("*/dataset.json"))}


def data_source(data: str | os.PathLike) -> str:
    """Return the folder of an embedded image set, given its name; any other folder or id as it is.

    Args:
        data: name, folder or id. The `Path` of a folder is no embedded name, see `written`.
    """
    name = written(data)
    if (folder := embedded_datasets().get(name)) is None:
        return name
    warn_of_namesake(name, "image set")
    return str(folder)


def warn_of_namesake(name: str, kind: str) -> None:
    """Warn where an embedded name hides a folder of the user, who may mean that one."""
    if Path(name).is_dir():
        logger.warning(f"{name!r} is the embedded {kind}, not the folder of this name; write ./{name} for the folder")


def embedded_directions(fingerprint: str | None) -> Path | None:
    """Return the file of directions that ships for the embedded base with this fingerprint; None if there is none."""
    base = embedded_base_of(fingerprint)
    path = ASSETS / "bases" / "directions.safetensors"  # the embedded bases share their mapping network
    return path if base is not None and path.is_file() else None


def adapter_folders(folder) -> dict[str, Path]:
    """Return name → path of the subfolders of `folder` that hold an adapter, except hidden ones."""
    inside = [path for path in sorted(Path(folder).glob("*/")) if path.is_dir() and not path.name.startswith(".")]
    places = {path.name: finish_replacing(path) for path in inside}
    return {name: place for name, place in places.items() if (place / "adapter_config.json").is_file()}


def is_repo_id(name: str | None) -> TypeGuard[str]:
    """Return whether `name` is a Hub repo id `owner/name` and not an existing local path."""
    return bool(name and _REPO_ID.fullmatch(name) and not Path(name).exists())


def portable_name(name: str | None) -> str | None:
    """Return the name of a folder or repo for published files: a repo id as it is, of a folder its last part alone."""
    if name is None or is_repo_id(name):
        return name
    return Path(name).name or Path(name).resolve().name
