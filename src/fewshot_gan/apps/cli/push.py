"""`fewshot-gan push`."""

import glob
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ... import hub
from ...hub import cards
from ...hub.reports import REPORT, eval_results, report_of
from ...utils.files import finish_replacing
from ...utils.json_files import read_json
from ...utils.safetensors_files import read_header
from .options import SpaceKind, path_argument
from .root import app, begin
from .sources import adapters_in, read_config


@app.command()
def push(
    folder: Annotated[Path, path_argument("Folder or zip of an adapter; or folder of several, or of a base.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub; the repo is made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repo.")] = False,
    token: Annotated[
        str | None, typer.Option(help="Token with write access; default: the one of `hf auth login`.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; it is made if it does not exist.")] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload with fewshot_gan",
    space: Annotated[
        SpaceKind | None,
        typer.Option(help="Make a Space: static of a folder of export --format web, gradio of adapters."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, and upload nothing.")
    ] = False,
):
    """Share an adapter or a base on the Hub, with a model card; or a web page or the demo as a Space."""
    from ...data.adapter_archives import is_archive, unpacked
    from ...hub.spaces import space_folder

    options = {"token": token, "private": private or None, "revision": revision, "commit_message": message}
    with unpacked(folder) if is_archive(folder) else nullcontext(folder) as opened:
        if space is None:
            _push(opened, repo_id, options, dry_run)
            return
        with space_folder(opened, space.value, repo_id.rsplit("/", 1)[-1]) as place:
            options |= {"repo_type": "space", "space_sdk": space.value}
            _upload(place, repo_id, options, dry_run)


def _upload(folder: Path, repo_id: str, options: dict[str, Any], dry_run: bool) -> None:
    """Push a folder and print where it is; of a dry run print its files."""
    if not dry_run:
        print(hub.push_folder(folder, repo_id, **options))
        return
    files = hub.files_to_push(folder, options.get("allow_patterns"))
    for name in files:
        print(f"{(folder / name).stat().st_size:>12,} {name}")
    total = sum((folder / name).stat().st_size for name in files)
    print(f"{total:>12,} bytes in {len(files)} files would be pushed to {repo_id}")
    if "README.md" not in files:
        print("a card, README.md, would be written and pushed too")


def _push(folder: Path, repo_id: str, options: dict[str, Any], dry_run: bool) -> None:
    folder = finish_replacing(folder)
    patterns = _check_pushable(folder)
    if not (folder / "README.md").is_file() and not dry_run:
        _write_card(folder, repo_id)
    instead = {} if dry_run else _portable(folder) | numbered_card(folder)
    options |= {"allow_patterns": patterns, "instead": instead}
    _upload(folder, repo_id, options, dry_run)


def _check_pushable(folder: Path) -> list[str]:
    """Check that adapter or base in `folder` are complete; return the patterns of the files to upload.

    Raises:
        FileNotFoundError, ValueError: there is neither, or a file is missing or damaged.
    """
    found = []
    if (index := folder / "model_index.json").is_file():
        listed = {name: value for name, value in read_json(index).items() if isinstance(value, list) and value[0]}
        parts = [name for name in listed if not name.startswith("_")]
        patterns = ["model_index.json", "README.md", "images/*.png", "images/*.jpg", "pipeline.py"]
        patterns += [f"{name}/{files}" for name in parts for files in ("*.json", "*.safetensors", "fewshot_gan.py")]
        weights = {name: list((folder / name).glob("*.safetensors")) for name in parts}
    elif found := adapters_in(folder):
        patterns = ["README.md", *cards.PUBLISHED] if folder in found else ["README.md"]
        patterns += [f"{glob.escape(f.name)}/{p}" for f in found if f != folder for p in cards.PUBLISHED]
        weights = {f.name: list(f.glob("adapter_model*.safetensors")) for f in found}
    else:
        raise FileNotFoundError(
            f"nothing to push in {folder}: it is no adapter (adapter_config.json), no folder of adapters, and no base "
            "(model_index.json)"
        )
    for adapter in found:
        read_config(adapter)
    for name, files in weights.items():
        if not files:
            raise FileNotFoundError(f"{name} in {folder} has no weights (.safetensors); save it again")
        for file in files:
            if not read_header(file).tensors:
                raise ValueError(f"{file} is damaged or cut short: it has no tensors; fetch or save the file again")
    return patterns


def _portable(folder: Path) -> dict[str, bytes]:
    """Return `{path: content}` of adapter configs whose base is a local folder, with a name that works elsewhere."""
    from ...hub.spaces import CONFIG, portable_config

    files = [path / CONFIG for path in adapters_in(folder)]
    made = {file.relative_to(folder).as_posix(): portable_config(read_json(file)) for file in files}
    return {path: content for path, content in made.items() if content is not None}


def _write_card(folder: Path, repo_id: str) -> None:
    name, full_id = repo_id.rsplit("/", 1)[-1], repo_id if "/" in repo_id else None
    if (folder / "model_index.json").is_file():
        from ...pipeline import FewShotGAN

        begin(None)
        cards.write_base_card(FewShotGAN.from_pretrained(folder), folder, name, repo_id=full_id)
    elif (folder / "adapter_config.json").is_file():
        from ...adapters import read_adapter

        cards.write_adapter_card(read_adapter(folder), folder, name, repo_id=full_id)
    else:
        cards.write_collection_card(folder, name, repo_id=full_id)


def numbered_card(folder: Path) -> dict[str, bytes]:
    """Add the numbers of the report that lies in `folder` to the front matter of its `README.md`.

    Returns:
        `{"README.md": content}`; empty if there is no such report, or the card has numbers already.
    """
    from huggingface_hub import ModelCard

    if not (folder / REPORT).is_file():
        return {}
    card = ModelCard.load(folder / "README.md")
    if (folder / "model_index.json").is_file():
        from ...pipeline import FewShotGAN
        from ...utils.hashing import fingerprint

        report = report_of(fingerprint(FewShotGAN.from_pretrained(folder).generator), None, None, folder)
    elif (folder / "adapter_config.json").is_file():
        from ...adapters import read_adapter

        adapter = read_adapter(folder)
        report = report_of(adapter.config.base_fingerprint, adapter, None, folder)
    else:
        return {}
    data: Any = card.data  # huggingface_hub types it by a class of another kind of card
    if report is None or data.eval_results:
        return {}
    data.model_name = data.model_name or folder.absolute().name
    data.eval_results = eval_results(report)
    return {"README.md": str(card).encode()}
