"""Inputs of commands: adapters with their weights, folders of adapters, latents."""

from pathlib import Path

from ... import hub
from ...utils.json_files import read_json
from ...utils.safetensors_files import read_header, read_tensors
from ...utils.text import plain
from .options import parse_weight


def named_looks(adapter: list[str] | None, weight: list[str] | None) -> tuple[list[str], list]:
    """Return the adapters that --adapter names, and a weight for each.

    Raises:
        ValueError: there are weights, but not one per adapter.
    """
    names, weights = list(adapter or []), [parse_weight(text) for text in weight or []]
    if weights and len(weights) != len(names):
        raise ValueError(f"{len(names)} adapters but {len(weights)} weights; give one --weight per --adapter")
    return names, weights or [1.0] * len(names)


def load_pipeline(base: str, names: list[str], weights: list):
    """Load a base and adapters; return the pipeline and `{adapter name: weight}`."""
    from ...adapters.io import name_of
    from ...pipeline import BASE, FewShotGAN

    pipe, loaded = FewShotGAN.from_pretrained(base), {}
    for i, (source, weight) in enumerate(zip(names, weights, strict=True)):
        name = name_of(source)
        name = name if name not in (*loaded, BASE, "", "base") else f"{name}-{i + 1}"
        pipe.load_adapter(source, name)
        loaded[name] = weight
    return pipe, loaded


def adapters_in(folder: Path) -> list[Path]:
    """Return the folder itself if it holds an adapter, else its subfolders that do."""
    if (folder / "adapter_config.json").is_file():
        return [folder]
    return list(hub.adapter_folders(folder).values())


def read_config(folder: Path) -> dict:
    """Read an adapter's config.

    Raises:
        ValueError: a part that commands show is missing or of another type.
    """
    path = folder / "adapter_config.json"
    config = read_json(path)
    layers = config.get("target_modules")
    if (
        not isinstance(config.get("adapter_type"), str)
        or not isinstance(layers, dict)
        or not all(isinstance(spec, dict) and isinstance(spec.get("role"), str) for spec in layers.values())
        or not isinstance(config.get("training") or {}, dict)
    ):
        raise ValueError(f"{path} is damaged or no adapter config; fetch or save the file again")
    return config


def read_latents(path: Path):
    """Read latents that `fewshot-gan invert` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    from ...models.latents import check_latents

    try:
        names = sorted(read_header(path).tensors)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no latents ({error}); fewshot-gan invert writes such files") from error
    if names != ["latents"]:
        raise ValueError(f"{path} holds {plain(', '.join(names))[:200] or 'nothing'}, not latents")
    return check_latents(read_tensors(path)["latents"], name=f"the latents in {path}")
