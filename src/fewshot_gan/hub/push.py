"""Upload a folder to the Hub in one commit."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..utils.deadline import call_with_timeout
from ..utils.files import COMMITTED, finish_replacing
from ..version import __version__
from .causes import hub_errors, page_of, why_not_pushed

FOLDERS = {"kernel": "kernels/", "space": "spaces/"}  # kind of repo → where its pages lie
CARD = "README.md"
PUSH_OPTIONS = ("token", "private", "revision", "commit_message", "create_pr")  # of `push_folder`, for users
PUSH_SECONDS, PUSH_RATE = 300, 50_000  # a push may take this many seconds, plus one per this many bytes


def _card_of(card: Path | bytes, repo_id: str) -> bytes:
    """Return a card whose example loads `repo_id` where the example that we wrote loads its own title, no repo."""
    text = (card if isinstance(card, bytes) else card.read_bytes()).decode(errors="surrogateescape")
    if title := re.search(r"^# (.+?)\r?$", text, re.MULTILINE):
        loads = rf"(pipe = FewShotGAN\.from_pretrained|pipe\.load_adapter)\(\"{re.escape(title[1])}\""
        if calls := re.findall(loads, text):  # the adapter, not a base of the same name
            text = text.replace(f'{calls[-1]}("{title[1]}"', f'{calls[-1]}("{repo_id}"')
    return text.encode(errors="surrogateescape")


def files_to_push(folder: Path, allow_patterns: list[str] | None = None) -> list[str]:
    """Return the paths in `folder` that `push_folder` uploads.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a link leads out of the folder.
    """
    from huggingface_hub.utils import filter_repo_objects

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
    return names


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
    space_sdk: str | None = None,
) -> str:
    """Upload a folder as one commit, so that it is never there in part. Repo and branch are created if needed.

    Args:
        folder: to upload; hidden files are left out.
        repo_id: `owner/name`, or `name` for the token's owner.
        token: with write access; None takes the one of `hf auth login`.
        private: whether a new repo is private; None takes the owner's default.
        revision: branch; None is main.
        create_pr: propose the commit as a pull request.
        allow_patterns: upload only files whose path matches one of these, as in `huggingface_hub.upload_folder`.
        instead: path in the folder → content to upload in place of the file's own.
        repo_type: "model", "space", or "kernel" for a package of the kernels hub.
        space_sdk: "static" or "gradio", of a new Space.

    Returns:
        Full id of the repo.

    Raises:
        FileNotFoundError: no file to upload.
        ValueError: the Hub refused, cannot be reached or takes too long, the repo is public and should be private, or a
            link leads out of the folder.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = finish_replacing(Path(folder))
    names = files_to_push(folder, allow_patterns)
    seconds = PUSH_SECONDS + sum((folder / name).stat().st_size for name in names) / PUSH_RATE
    place = FOLDERS.get(repo_type, "")
    api = HfApi(token=token, library_name="fewshot_gan", library_version=__version__)

    def push() -> tuple[str, bool]:
        """Push; return the full id of the repo, and whether nothing was uploaded because the repo is public."""
        options = {"repo_type": repo_type, "space_sdk": space_sdk}
        target = api.create_repo(repo_id, private=private, exist_ok=True, **options).repo_id
        if private and not api.repo_info(target, repo_type=repo_type).private:  # an old repo keeps its visibility
            return target, True
        if revision and not revision.startswith("refs/"):
            api.create_branch(target, branch=revision, exist_ok=True, repo_type=repo_type)
        contents = {name: (instead or {}).get(name, folder / name) for name in names}
        if repo_type == "model" and CARD in contents:
            contents[CARD] = _card_of(contents[CARD], target)
        api.create_commit(
            target,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            repo_type=repo_type,
        )
        return target, False

    try:
        repo_id, public = call_with_timeout(seconds, push)
    except TimeoutError as error:
        raise ValueError(
            f"could not push to {repo_id!r}: {error}; look at {page_of(place + repo_id)} whether it arrived after all, "
            "and push again if not"
        ) from error
    except hub_errors() as error:
        raise ValueError(f"could not push to {repo_id!r}: {why_not_pushed(error)}") from error
    if public:
        raise ValueError(
            f"{repo_id!r} is there already and public, so private=True would hide nothing; make it private at "
            f"{page_of(place + repo_id)}/settings, or push to another name"
        )
    return repo_id
