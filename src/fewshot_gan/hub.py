"""From a name to a folder: embedded asset, local folder, or Hub repo, with errors that say what would have worked."""

import re
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def embedded_bases() -> list[str]:
    """Names of the generators that ship inside the package."""
    return sorted(p.parent.name for p in (ASSETS / "bases").glob("*/model_index.json"))


def embedded_adapters(base: str | None = None) -> dict[str, Path]:
    """Name → folder of the adapters that ship inside the package, all or those of one base."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "adapters").glob(f"{base or '*'}/*/adapter_config.json"))}


def embedded_datasets() -> dict[str, Path]:
    """Name → folder of the example image sets that ship inside the package."""
    return {p.parent.name: p.parent for p in sorted((ASSETS / "datasets").glob("*/dataset.json"))}


def resolve_folder(
    name_or_path,
    *,
    kind: str = "base",
    subfolder: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder behind a base or adapter name.

    Args:
        name_or_path: embedded name, local folder, or Hub repo id `owner/name`; tried in that order.
        kind: "base" or "adapter".
        subfolder: folder inside the repo or local folder.
        revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: nothing of that name here, and not on the Hub or no way to reach it.
    """
    embedded = {n: ASSETS / "bases" / n for n in embedded_bases()} if kind == "base" else embedded_adapters()
    name = str(name_or_path)
    if name in embedded:
        return embedded[name]
    known = f"embedded {kind}s: {', '.join(embedded) or 'none'}"
    if Path(name).is_dir():
        folder = Path(name)
    elif not _REPO_ID.fullmatch(name) or Path(name).exists():
        raise FileNotFoundError(
            f"there is no {kind} {name!r}; {known}; else give a local folder or a Hub repo id like 'owner/name'"
        )
    else:
        folder = _download(name, kind, known, revision, token, cache_dir, local_files_only, force_download)
    folder = folder / subfolder if subfolder else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{name!r} has no folder {subfolder!r}")
    return folder


def _download(name, kind, known, revision, token, cache_dir, local_files_only, force_download) -> Path:
    from huggingface_hub import errors, snapshot_download

    # the client's own connection errors are no OSError, and RevisionResolutionError is a plain Exception
    classes = [OSError, getattr(errors, "HTTPError", OSError), getattr(errors, "RevisionResolutionError", OSError)]
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=["*.json", "*.safetensors", "*.md", "*.png"],
            )
        )
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"Hub repo {name!r} has no revision {revision!r}; see its branches and tags") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the Hub has no {kind} {name!r} that you may read; {known}; a private repo needs token=…"
        ) from error
    except tuple(classes) as error:
        raise FileNotFoundError(
            f"could not fetch {kind} {name!r} from the Hub ({type(error).__name__}): no network, or not in the cache; "
            f"{known}, which need no network; else download the repo elsewhere and give its folder"
        ) from error
