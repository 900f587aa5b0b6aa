"""Names of bases, adapters and data sets: embedded ones, and ids of Hub repos."""

import re
from pathlib import Path

from ..utils.files import finish_replacing

ASSETS = Path(__file__).parents[1] / "assets"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def embedded_bases() -> list[str]:
    """Names of the generators that ship inside the package."""
    return sorted(p.parent.name for p in (ASSETS / "bases").glob("*/model_index.json"))


def embedded_adapters(base: str | None = None) -> dict[str, Path]:
    """Name → folder of the adapters that ship inside the package, all or those of one base."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "adapters").glob(f"{base or '*'}/*/adapter_config.json"))}


def embedded_datasets() -> dict[str, Path]:
    """Name → folder of the example image sets that ship inside the package."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "datasets").glob("*/dataset.json"))}


def adapter_folders(folder) -> dict[str, Path]:
    """Name → folder of the adapters that lie side by side in `folder`; hidden ones are not meant."""
    inside = [path for path in sorted(Path(folder).glob("*/")) if path.is_dir() and not path.name.startswith(".")]
    places = {path.name: finish_replacing(path) for path in inside}
    return {name: place for name, place in places.items() if (place / "adapter_config.json").is_file()}


def is_repo_id(name: str | None) -> bool:
    """Whether `name` can be a Hub repo `owner/name`; a local path of that name comes first."""
    return bool(name and _REPO_ID.fullmatch(name)) and not Path(name).exists()


def portable_name(name: str | None) -> str | None:
    """What a published file may call a folder or repo: a repo id as it is, a folder without where it lies here."""
    return name if name is None or is_repo_id(name) else Path(name).name or Path(name).resolve().name
