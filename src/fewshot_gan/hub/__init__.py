"""From a name to a folder, and from a folder to the Hub; whatever is refused ends in one sentence that says why."""

import glob
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from ..utils.deadline import within
from ..utils.errors import fault_of_disk
from ..utils.files import COMMITTED, expanded, finish_replacing, user_path
from ..utils.text import in_short, plain
from ..version import __version__

ASSETS = Path(__file__).parents[1] / "assets"
MODEL_FILES = ("*.json", "merges.txt", "model.safetensors", "model-*.safetensors")  # of a model of transformers
NO_CODE = {"trust_remote_code": False}  # for transformers, which else asks on the terminal whether to run a repo's
REPO_FILES = ("*.json", "*.safetensors", "*.md")  # what loading needs; sample pictures stay on the Hub
HUB_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")  # of fetching
PUSH_OPTIONS = ("token", "private", "revision", "commit_message", "create_pr")  # of `push_folder`, for users
PUSH_SECONDS, PUSH_RATE = 300, 50_000  # a push may take so long, and a second more for so many bytes
_OTHER_CACHE = "set HF_HOME to a folder that can be written, or give cache_dir=…"
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
    """The local folder behind a base or adapter name; what comes from the Hub is complete, or refused.

    Args:
        name_or_path: embedded name, local folder, or Hub repo id `owner/name`; tried in that order.
        kind: "base", "adapter" or "hypernetwork".
        subfolder: folder inside the repo or local folder; of a repo only that part is downloaded.
        revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: nothing of that name here, and not on the Hub, not readable, or no way to reach it.
        OSError: the cache cannot be written.
        ValueError: `subfolder`, or the name of a file in the repo, leads out of the folder.
    """
    embedded = {n: ASSETS / "bases" / n for n in embedded_bases()} if kind == "base" else {}
    embedded = embedded_adapters() if kind == "adapter" else embedded
    name, part = expanded(name_or_path), PureWindowsPath(subfolder or "")  # takes both kinds of slash, drive letters
    known = f"embedded {kind}s: {', '.join(embedded) or 'none'}"
    if part.anchor or ".." in part.parts:
        raise ValueError(f"subfolder={subfolder!r} leads out of {name!r}; give a folder inside it, like 'looks/ink'")
    if name in embedded:
        folder, place = embedded[name], ""
    elif Path(name).is_dir():
        folder, place = Path(name), ""
    elif is_repo_id(name):
        prefix = "".join(glob.escape(p) + "/" for p in part.parts)
        options = {"revision": revision, "token": token, "force_download": force_download}
        options["cache_dir"] = None if cache_dir is None else expanded(cache_dir)
        folder = _download(name, kind, known, prefix, local_files_only=local_files_only, **options)
        place = f" at revision {revision or 'main'!r}; see {_page(name)}"
    else:
        raise FileNotFoundError(
            f"there is no {kind} {name!r}; {known}; else give a local folder or a Hub repo id like 'owner/name'"
        )
    if not folder.joinpath(*part.parts).is_dir():
        raise FileNotFoundError(f"{name!r} has no folder {subfolder!r}{place}")
    return finish_replacing(folder.joinpath(*part.parts))


def fetch_model(name: str, kind: str, way_out: str) -> Path:
    """The folder of a model of transformers: `name` itself, or a Hub repo in the cache, fetched if there is network.

    Args:
        name: local folder or Hub repo id.
        kind: what it is, for messages.
        way_out: what to do without it, for messages.

    Raises:
        FileNotFoundError: no such folder or repo, or no network.
        OSError: the cache cannot be written.
    """
    from huggingface_hub import snapshot_download

    if (folder := user_path(name)).is_dir():
        return folder
    if not is_repo_id(name):
        raise FileNotFoundError(
            f"there is no {kind} {name!r}: it is no folder and no repo id like 'owner/name'; {way_out}"
        )
    _check_cache(None)
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
        if not any(folder.glob("model[.-]*safetensors")):  # older repos have a pickle, which is read without running it
            folder = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, "pytorch_model.bin"]))
    except _hub_errors() as error:
        _refuse_fault_of_cache(error, f"{kind} {name!r}", None)
        raise FileNotFoundError(
            f"could not fetch the {kind} {name!r} from the Hub ({_cause(error)[1]}); {way_out}"
        ) from error
    check_hashes(folder)
    return folder


def read_model(model_class, folder: Path, config) -> tuple:
    """A model of transformers in float32, and the set of its weights that the folder lacks; runs no code of the repo.

    Args:
        model_class: whose `from_pretrained` reads it.
        folder: of `fetch_model`.
        config: its config.

    Raises:
        ValueError: its weights are a pickle that asks for too much or holds more than tensors.
    """
    if not any(folder.glob("model[.-]*safetensors")):
        from ..utils.untrusted import check

        for path in folder.glob("pytorch_model*.bin"):
            check(path)
    options = {"config": config, "dtype": "float32", "output_loading_info": True, **NO_CODE}
    model, info = model_class.from_pretrained(folder, **options)
    return model, set(info["missing_keys"])


def refuse_missing(missing: set[str]) -> None:
    """Refuse a model without these weights.

    Raises:
        ValueError: there are some; the message names four.
    """
    if missing:
        raise ValueError(f"it lacks weights: {', '.join(sorted(missing)[:4])}")


def push_folder(
    folder,
    repo_id: str,
    *,
    token: bool | str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload with fewshot_gan",
    create_pr: bool = False,
    allow_patterns: list[str] | None = None,
    instead: Mapping[str, bytes] | None = None,
    repo_type: str = "model",
) -> str:
    """Upload a folder as one commit, so that nobody ever finds half of it; makes the repo and the branch if needed.

    Args:
        folder: what to upload; hidden files stay here.
        repo_id: `owner/name`, or `name` for the token's owner.
        token: with write access; None takes the one of `hf auth login`.
        private: whether a new repo is private; None takes the owner's default.
        revision: branch; None is main.
        create_pr: propose the commit as a pull request.
        allow_patterns: upload only files whose path matches one of these, as in `huggingface_hub.upload_folder`.
        instead: path in the folder → content to upload in place of the file's own.
        repo_type: "model", or "kernel" for a package of the kernels hub.

    Returns:
        Full id of the repo.

    Raises:
        FileNotFoundError: no file to upload.
        ValueError: the Hub refused, cannot be reached or takes too long, the repo is public and should be private, or a
            link leads out of the folder.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import filter_repo_objects

    folder = finish_replacing(Path(folder))
    for waiting in list(folder.rglob(COMMITTED)):
        finish_replacing(waiting.parent)
    paths = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts)]
    names = list(filter_repo_objects(names, allow_patterns=allow_patterns))
    if not names:
        only = f" that matches {', '.join(allow_patterns)}" if allow_patterns else ""
        raise FileNotFoundError(f"nothing to push: there is no file{only} in {folder}")
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{name} in {folder} is a link to a file outside of it, so nothing was uploaded; put a copy of that "
                "file in its place, or remove the link"
            )
    seconds = PUSH_SECONDS + sum((folder / name).stat().st_size for name in names) / PUSH_RATE
    api = HfApi(token=token, library_name="fewshot_gan", library_version=__version__)

    def push() -> tuple[str, bool]:
        """Full id of the repo, and whether it was left alone because everybody could read it."""
        target = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type).repo_id
        if private and not api.repo_info(target, repo_type=repo_type).private:  # an old repo keeps its visibility
            return target, True
        if revision and not revision.startswith("refs/"):
            api.create_branch(target, branch=revision, exist_ok=True, repo_type=repo_type)
        api.create_commit(
            target,
            [CommitOperationAdd(name, (instead or {}).get(name, folder / name)) for name in names],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            repo_type=repo_type,
        )
        return target, False

    try:
        repo_id, public = within(seconds, push)
    except TimeoutError as error:
        raise ValueError(
            f"could not push to {repo_id!r}: {error}; look at {_page(repo_id)} whether it arrived after all, and push "
            "again if not"
        ) from error
    except _hub_errors() as error:
        raise ValueError(f"could not push to {repo_id!r}: {_why_not_pushed(error)}") from error
    if public:
        raise ValueError(
            f"{repo_id!r} is there already and public, so private=True would hide nothing; make it private at "
            f"{_page(f'kernels/{repo_id}' if repo_type == 'kernel' else repo_id)}/settings, or push to another name"
        )
    return repo_id


def _cache(cache_dir) -> Path:
    from huggingface_hub import constants

    return user_path(cache_dir or constants.HF_HUB_CACHE)


def _check_cache(cache_dir) -> None:
    """Refuse a cache that cannot be a folder; huggingface_hub says of one that there is no network.

    Raises:
        NotADirectoryError: it, or a folder above it, is a file.
    """
    cache = _cache(cache_dir)
    there = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"the cache {cache} is no folder: {there} is a file; {_OTHER_CACHE}")


def _refuse_fault_of_cache(error: Exception, what: str, cache_dir) -> None:
    """Say so where not the Hub, but the disk of the cache is to blame.

    Raises:
        OSError: it is.
    """
    if fault := fault_of_disk(error):
        fault, _, _ = fault.partition("; ")
        raise OSError(f"the cache {_cache(cache_dir)} cannot take {what}: {fault}; {_OTHER_CACHE}") from error


def _download(name: str, kind: str, known: str, prefix: str, **options) -> Path:
    from huggingface_hub import snapshot_download

    _check_cache(options["cache_dir"])
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
    except _hub_errors() as error:
        if type(error) is ValueError and error.__cause__ is None:  # what the server offers, e.g. '../../name'
            raise ValueError(f"Hub repo {name!r} is not safe to load, and was not: {_cause(error)[1]}") from error
        _refuse_fault_of_cache(error, f"{kind} {name!r}", options["cache_dir"])
        sentence = _why_not_fetched(error, f"{kind} {name!r}", _page(name), options["revision"], known)
        raise FileNotFoundError(sentence) from error
    check_hashes(folder)
    return folder


def check_hashes(snapshot: Path) -> None:
    """Compare the files of a snapshot in the Hub's cache with the hashes that the server announced for them.

    The cache names each file after its hash: SHA-256 of large files, git's SHA-1 of others. Where the system has no
    links there are no such names, and nothing is compared.

    Raises:
        ValueError: a file is another than announced. It is removed, so that the next load fetches it again.
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


def _hub_errors() -> tuple[type[Exception], ...]:
    """All that huggingface_hub raises: its connection errors are no OSError, and some are plain exceptions."""
    from huggingface_hub import errors

    own = [getattr(errors, name, OSError) for name in ("HTTPError", "RevisionResolutionError", "XetDownloadError")]
    return (OSError, ValueError, RuntimeError, *own)


def _why_not_fetched(error: Exception, what: str, page: str, revision: str | None, known: str) -> str:
    from huggingface_hub import errors

    status, reason = _cause(error)
    if isinstance(error, errors.HFValidationError):
        return f"there is no {what}: the Hub has no such names; {known}; else give a local folder"
    if isinstance(error, errors.IncompleteSnapshotError):
        return (
            f"the cache holds only a part of {what}: its download was interrupted, or was of another subfolder, and "
            f"now the Hub cannot be reached ({reason}); load it again with network to complete it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} has no revision {revision or 'main'!r}; see its branches and commits at {page}"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"you may not read {what}: ask for access at {page}, and use a token that has it (`hf auth login`, token=)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no {what} that you may read; {known}; a private repo needs `hf auth login` or token=…"
    if status == 401:
        return f"the Hub did not accept the token for {what}; renew it with `hf auth login`, or give another token="
    if status == 429:
        return (
            f"the Hub got too many requests and did not send {what} ({reason}); wait some minutes and load it again; "
            "it allows more with a token (`hf auth login`)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"could not fetch {what} from the Hub ({reason}): no network, or not in the cache; {known}, which need no "
            "network; else download the repo elsewhere and give its folder"
        )
    return (
        f"the download of {what} was interrupted ({reason}); nothing incomplete is used: "
        "load it again and it goes on where it stopped"
    )


def _why_not_pushed(error: Exception) -> str:
    from huggingface_hub import errors

    status, reason = _cause(error)
    if isinstance(error, errors.HFValidationError):
        return "a repo id is 'owner/name' or 'name', of letters, digits, '-', '_' and '.'"
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        return "that needs a token with write access; run `hf auth login`, or give token=…"
    if status == 429:
        return f"the Hub got too many requests ({reason}); no file changed there, push again in some minutes"
    if status in (403, 404):
        return f"the token may not write there ({reason}); make one that may at {_page('settings/tokens')}"
    if status is None and not isinstance(error, ValueError):
        return f"the Hub cannot be reached ({reason}); no file changed there, push again with network"
    return f"the Hub refused ({reason}); no file changed there, push again once that is mended"


def _cause(error: Exception) -> tuple[int | None, str]:
    """HTTP status, if the server answered, and the innermost reason in few words."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if getattr(link, "response", None) is not None:
            said = plain(getattr(link, "server_message", None) or "")
            return link.response.status_code, f"HTTP {link.response.status_code}{said and f': {said[:200]}'}"
    return None, in_short(chain[-1]) or type(error).__name__


def _page(path: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{path}"
