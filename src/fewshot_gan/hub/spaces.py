"""Spaces of the Hub: a folder of `fewshot-gan export --format web` as a static Space, or the demo with a look."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..utils.files import finish_replacing
from ..utils.json_files import read_json
from ..version import __version__
from .cards import PUBLISHED, holds_person, licence_of, portable_base
from .names import adapter_folders, embedded_bases, is_repo_id

INDEX = "site.json"  # of a web page
CONFIG = "adapter_config.json"
TORCH, GRADIO = "2.13.0", "6.31.0"
APP = '''\
"""The demo of fewshot_gan, with the looks in the folder `looks`."""

import os
from pathlib import Path

from fewshot_gan.apps.demo import serve

LOOKS = sorted(str(file.parent) for file in Path(__file__).parent.glob("looks/*/adapter_config.json"))
HOST = os.environ.get("SPACE_HOST", "localhost")  # the name under which the Hub serves the Space
serve({base!r}, LOOKS, host="0.0.0.0", port=7860, browser=False, allowed_hosts=[HOST])
'''
ISOLATED = {  # lets the page use several threads
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def portable_config(config: Mapping) -> bytes | None:
    """Return the config of an adapter whose base is a local folder, with a name that works elsewhere.

    Args:
        config: the stored one.

    Returns:
        Content of `adapter_config.json`; None: the stored one names no folder.
    """
    if (base := portable_base(config)) == config.get("base_model_name_or_path"):
        return None
    return (json.dumps({**config, "base_model_name_or_path": base}, indent=1) + "\n").encode()


@contextmanager
def space_folder(folder: Path, kind: str, name: str) -> Iterator[Path]:
    """Provide the folder of a Space for a `with` block.

    Args:
        folder: for a static Space a folder of `fewshot-gan export --format web`; for a Gradio Space an adapter, or a
            folder of several of one base.
        kind: "static" or "gradio".
        name: of the Space, its title.

    Raises:
        FileNotFoundError: `folder` holds something else.
        ValueError: the adapters are of several bases, or of one that is only on this machine.
    """
    with TemporaryDirectory() as temp:
        place = Path(temp)
        (_static if kind == "static" else _gradio)(finish_replacing(folder), place, name)
        yield place


def _static(folder: Path, place: Path, name: str) -> None:
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} is no web page ({INDEX} is missing); write one with fewshot-gan export --format web"
        )
    content = read_json(folder / INDEX)
    for file in content.get("files", ()):
        source = folder / str(file)
        if not source.resolve().is_relative_to(folder.resolve()) or not source.is_file():
            raise FileNotFoundError(f"{folder} lacks {str(file)[:100]!r}; export the page again")
        _copy(source, place / source.resolve().relative_to(folder.resolve()))
    settings = {"sdk": "static", "app_file": "index.html", "custom_headers": ISOLATED}
    lines = ["A generator of faces that draws in the visitor's browser.", "", str(content.get("licence", ""))]
    if person := content.get("person"):
        lines += ["", f"The person: {person['consent']}"]
    _readme(place, name, settings, lines)


def _gradio(folder: Path, place: Path, name: str) -> None:
    found = {folder.absolute().name: folder} if (folder / CONFIG).is_file() else adapter_folders(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no adapter ({CONFIG}), and a Gradio Space shows adapters")
    configs = {look: read_json(path / CONFIG) for look, path in found.items()}
    for look, config in configs.items():
        if holds_person(config):
            raise ValueError(
                f"{look!r} is or holds a person; a Space would show it to everybody as a look, so it is not made"
            )
    bases = {portable_base(config) for config in configs.values()}
    if len(bases) > 1:
        raise ValueError(f"the adapters in {folder} are of several bases; a Space draws with one")
    (base,) = bases
    if base is None or not (base in embedded_bases() or is_repo_id(base)):
        raise ValueError(
            f"the base of {next(iter(found))!r} is {base or 'not known'}, which a Space does not have; push it first"
        )
    for look, path in found.items():
        for file in sorted({file for pattern in PUBLISHED for file in path.glob(pattern)}):
            _copy(file, place / "looks" / look / file.relative_to(path))
        if (config := portable_config(configs[look])) is not None:
            (place / "looks" / look / CONFIG).write_bytes(config)
    (place / "app.py").write_text(APP.format(base=base), encoding="utf-8")
    needed = f"torch=={TORCH}\nfewshot_gan[demo]=={__version__}\n"
    (place / "requirements.txt").write_text(needed, encoding="utf-8")
    settings = {"sdk": "gradio", "sdk_version": GRADIO, "app_file": "app.py", "python_version": "3.11"}
    licence = licence_of(next(iter(configs.values())).get("base_fingerprint"))
    _readme(place, name, settings, [f"Faces in the looks {', '.join(found)}.", "", licence])


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _readme(place: Path, name: str, settings: Mapping, lines: list[str]) -> None:
    from huggingface_hub import SpaceCardData

    data = SpaceCardData(title=name, colorFrom="indigo", colorTo="gray", pinned=False, tags=["fewshot_gan"], **settings)
    text = "\n".join([f"---\n{data.to_yaml()}\n---", "", f"# {name}", "", *lines, ""])
    (place / "README.md").write_text(text, encoding="utf-8")
