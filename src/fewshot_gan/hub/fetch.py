"""Find the folder of a name: embedded, local, or a downloaded snapshot of a Hub repo."""

import glob
import hashlib
import re
from pathlib import Path, PureWindowsPath

from ..utils.files import expanded, finish_replacing
from ..version import __version__
from . import names
from .cache import check_cache, refuse_fault_of_cache
from .causes import cause, hub_errors, page_of, why_not_fetched
from .names import embedded_adapters, embedded_bases, folders_per_base, is_repo_id, written

REPO_FILES = ("*.json", "*.safetensors", "*.md")  # needed for loading; sample pictures are not downloaded
HUB_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")  # of downloads


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
    """Return the local folder of a base, adapter or hypernetwork. Incomplete downloads are refused.

    Args:
        name_or_path: embedded name, local folder, or Hub repo id `owner/name`; tried in that order. The `Path` of a
            folder is no embedded name.
        kind: "base", "adapter" or "hypernetwork".
        subfolder: folder inside the repo or local folder; only that part of a repo is downloaded.
        revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: there is no such folder, and no such repo on the Hub, or it may not be read, or the Hub
            cannot be reached.
        OSError: the cache cannot be written.
        ValueError: `subfolder`, or the name of a file in the repo, leads out of the folder; several embedded bases have
            an adapter of this name.
    """
    embedded = {n: [names.ASSETS / "bases" / n] for n in embedded_bases()} if kind == "base" else {}
    if kind == "adapter":
        looks = sorted({look for base in embedded_bases() for look in embedded_adapters(base)})
        embedded = {look: list(folders_per_base(look).values()) for look in looks}
    name, part = written(name_or_path), PureWindowsPath(subfolder or "")  # understands both slashes, and drive letters
    known = f"embedded {kind}s: {', '.join(embedded) or 'none'}"
    if part.anchor or ".." in part.parts:
        raise ValueError(f"subfolder={subfolder!r} leads out of {name!r}; give a folder inside it, like 'looks/ink'")
    if name in embedded:
        names.warn_of_namesake(name, kind)
        (folder, *others), place = embedded[name], ""
        if others:
            bases = [folder.parent.name for folder in embedded[name]]
            raise ValueError(
                f"the embedded bases {' and '.join(map(repr, bases))} have an adapter {name!r} each; load that of one "
                f"base with FewShotGAN.from_pretrained({bases[0]!r}).load_adapter({name!r})"
            )
    elif Path(name).is_dir():
        folder, place = Path(name), ""
    elif is_repo_id(name):
        prefix = "".join(glob.escape(p) + "/" for p in part.parts)
        options = {"revision": revision, "token": token, "force_download": force_download}
        options["cache_dir"] = None if cache_dir is None else expanded(cache_dir)
        folder = _download(name, kind, known, prefix, local_files_only=local_files_only, **options)
        place = f" at revision {revision or 'main'!r}; see {page_of(name)}"
    else:
        raise FileNotFoundError(
            f"there is no {kind} {name!r}; {known}; else give a local folder or a Hub repo id like 'owner/name'"
        )
    if not folder.joinpath(*part.parts).is_dir():
        raise FileNotFoundError(f"{name!r} has no folder {subfolder!r}{place}")
    return finish_replacing(folder.joinpath(*part.parts))


def _download(name: str, kind: str, known: str, prefix: str, **options) -> Path:
    from huggingface_hub import snapshot_download

    check_cache(options["cache_dir"])
    try:
        folder = Path(
            snapshot_download(
                name,
                allow_patterns=[prefix + pattern for pattern in REPO_FILES],
                library_name="fewshot_gan",
                library_version=__version__,
                **options,
            )
        )
    except hub_errors() as error:
        if type(error) is ValueError and error.__cause__ is None:  # a file name of the repo such as '../../name'
            raise ValueError(f"Hub repo {name!r} is not safe to load, and was not: {cause(error)[1]}") from error
        refuse_fault_of_cache(error, f"{kind} {name!r}", options["cache_dir"])
        sentence = why_not_fetched(error, f"{kind} {name!r}", page_of(name), options["revision"], known)
        raise FileNotFoundError(sentence) from error
    check_hashes(folder)
    return folder


def check_hashes(snapshot: Path) -> None:
    """Compare the files of a snapshot in the Hub's cache with the hashes that the server announced.

    The cache names each file by its hash: SHA-256 for large files, git's SHA-1 for others. On systems without symbolic
    links there are no such names, and nothing is compared.

    Raises:
        ValueError: a file differs from the announced one. It is removed, so that the next load downloads it again.
    """
    for link in (path for path in sorted(snapshot.rglob("*")) if path.is_symlink() and path.is_file()):
        stored = link.resolve()
        if re.fullmatch("[0-9a-f]{64}", stored.name):
            computed = hashlib.sha256()
        elif re.fullmatch("[0-9a-f]{40}", stored.name):
            computed = hashlib.sha1(b"blob %d\0" % stored.stat().st_size)
        else:
            continue
        with stored.open("rb") as file:
            while part := file.read(2**20):
                computed.update(part)
        if computed.hexdigest() != stored.name:
            stored.unlink()
            link.unlink()
            name, got, announced = link.relative_to(snapshot).as_posix(), computed.hexdigest()[:12], stored.name[:12]
            raise ValueError(
                f"{name} is not what the Hub announced: its hash is {got}…, not {announced}…; it was removed from the "
                "cache, so load it again; do not trust a server that repeats this"
            )
