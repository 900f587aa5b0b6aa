"""Names of bases, adapters and data sets: embedded ones, and ids of Hub repos."""

import re
from pathlib import Path
from typing import TypeGuard

from ..utils.files import finish_replacing

ASSETS = Path(__file__).parents[1] / "assets"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def embedded_bases() -> list[str]:
    """Return the names of the generators that ship with the package."""
    return sorted(p.parent.name for p in (ASSETS / "bases").glob("*/model_index.json"))


def embedded_adapters(base: str | None = None) -> dict[str, Path]:
    """Return name → folder of the adapters that ship with the package, all or those of one base."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "adapters").glob(f"{base or '*'}/*/adapter_config.json"))}


def embedded_datasets() -> dict[str, Path]:
    """Return name → folder of the example image sets that ship with the package."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "datasets").glob("*/dataset.json"))}


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
