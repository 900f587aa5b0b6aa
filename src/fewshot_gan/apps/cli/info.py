"""`fewshot-gan info` and `fewshot-gan list`."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ... import hub
from ...utils.safetensors_files import read_header
from ...utils.text import plain
from .root import app
from .sources import adapters_in, read_config


@app.command()
def info(
    adapter: Annotated[str, typer.Argument(help="Embedded name, folder or Hub repo.")],
    subfolder: Annotated[str | None, typer.Option(help="Subfolder of the adapter.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Token that may read a private repo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with one object per adapter.")] = False,
):
    """Show type, size, base and changed layers of an adapter; of an embedded one, for each base that has it."""
    if len(embedded := hub.folders_per_base(adapter)) > 1 and subfolder is None:
        facts = [_facts(path, adapter) for path in embedded.values()]
    else:
        folder = hub.resolve_folder(adapter, kind="adapter", subfolder=subfolder, revision=revision, token=token)
        folders = adapters_in(folder)
        if not folders:
            raise FileNotFoundError(f"{adapter} is no adapter: neither it nor a subfolder has an adapter_config.json")
        facts = [
            _facts(path, (Path(subfolder or adapter).name or path.resolve().name) if path == folder else path.name)
            for path in folders
        ]
    print(json.dumps(facts, indent=1) if as_json else "\n".join(map(_describe, facts)))


def _facts(folder: Path, name: str) -> dict:
    """Collect what config and weight headers of one adapter say."""
    config = read_config(folder)
    files = sorted(folder.glob("adapter_model*.safetensors"), key=lambda file: len(file.name))  # no variant comes first
    if not files:
        raise FileNotFoundError(f"{folder} is not an adapter folder: it has no adapter_model.safetensors")
    return {
        "name": name,
        "adapter_type": config.pop("adapter_type"),
        "values": _count(files[0]),
        "bytes": {file.name: file.stat().st_size for file in files},
        "base_model_name_or_path": config.pop("base_model_name_or_path", None),
        "base_fingerprint": config.pop("base_fingerprint", None),
        "layers": dict(Counter(spec["role"] for spec in config.pop("target_modules").values())),
        "training": config.pop("training", None) or {},
        "config": config,
    }


def _describe(facts: dict) -> str:
    def listed(settings: dict) -> str:
        shown = {k: v for k, v in sorted(settings.items()) if isinstance(v, str | int | float)}  # nested ones: --json
        return plain(", ".join(f"{key} {value}" for key, value in shown.items())) or "none"

    sizes = list(facts["bytes"].values())
    others = "".join(f"; {name} {size:,} bytes" for name, size in list(facts["bytes"].items())[1:])
    base, mark = facts["base_model_name_or_path"] or "not recorded", facts["base_fingerprint"] or "not recorded"
    roles = ", ".join(f"{number} {role}" for role, number in facts["layers"].items())
    return "\n".join(
        [
            plain(f"{facts['name']}: {facts['adapter_type']}, {facts['values']:,} numbers, {sizes[0]:,} bytes{others}"),
            f"  base: {plain(base)}, fingerprint {plain(mark)}",
            f"  layers: {sum(facts['layers'].values())} ({plain(roles)})",
            f"  config: {listed(facts['config'])}",
            f"  training: {listed(facts['training'])}",
        ]
    )


@app.command(name="list")
def list_embedded():
    """List the bases, adapters and data sets that ship inside the package and work offline."""
    bases = {name: hub.names.ASSETS / "bases" / name for name in hub.embedded_bases()}
    print("bases" if bases else "bases: none")
    for name, folder in bases.items():
        parts = [
            f"{weights.parent.name} {_count(weights):,} numbers, {_size(weights)}"
            for weights in sorted(folder.glob("*/*.safetensors"))
        ]
        print(f"  {name}: {'; '.join(parts)}")
    adapters = [(base, *look) for base in bases for look in hub.embedded_adapters(base).items()]
    print("adapters" if adapters else "adapters: none")
    for base, name, folder in adapters:
        kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["adapter_type"]
        weights = folder / "adapter_model.safetensors"
        print(f"  {name} (for {base}): {kind}, {_count(weights):,} numbers, {_size(weights)}")
    datasets = hub.embedded_datasets()
    print("datasets" if datasets else "datasets: none")
    for name, folder in datasets.items():
        pictures = [path for path in folder.iterdir() if path.suffix != ".json"]
        print(f"  {name}: {len(pictures)} pictures, {_size(*pictures)}")


def _count(weights: Path) -> int:
    return read_header(weights).numel


def _size(*files: Path) -> str:
    size = sum(f.stat().st_size for f in files)
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
