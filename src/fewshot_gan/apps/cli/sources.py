"""Inputs of commands: adapters with their weights, folders of adapters, latents."""

import zipfile
from pathlib import Path
from typing import Any

from ... import hub
from ...utils.files import replace_file
from ...utils.json_files import read_json
from ...utils.regular_files import regular_file_size
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


def load_pipeline(base: str, names: list[str], weights: list, persons: bool = False):
    """Load a base and adapters; return the pipeline, whose active look they are, and `{adapter name: weight}`.

    Args:
        base, names, weights: as commands are given them.
        persons: whether adapters of persons are welcome, which change nothing of random faces.

    Raises:
        ValueError: one is of a person.
    """
    from ...adapter_loader import free_name
    from ...pipeline import FewShotGAN

    pipe: Any = FewShotGAN.from_pretrained(base)
    loaded: dict = {}
    for source, weight in zip(names, weights, strict=True):
        name = free_name(source, ("base", *loaded))
        pipe.load_adapter(source, name)
        loaded[name] = weight
        if not persons and pipe.bank.adapters[name].latents is not None:
            raise ValueError(
                f"{source} is a person, who changes no other faces; draw the person with generate --person, or on a "
                "page of export --format web"
            )
    pipe.set_adapters(loaded)
    return pipe, loaded


def name_of_person(pipe) -> str:
    """Return a name for a person that no loaded adapter has: me, me_2, …"""
    return next(name for name in ("me", *(f"me_{i}" for i in range(2, 1000))) if name not in pipe.bank.adapters)


def load_person(pipe, source: str) -> tuple[str, int]:
    """Load the adapter of a person beside the looks; return its name in the pipeline, and the number of its photos.

    Raises:
        ValueError: it is no adapter of a person.
    """
    active = dict(pipe.bank.active)
    name = name_of_person(pipe)
    pipe.load_adapter(source, name)
    if (latents := pipe.bank.adapters[name].latents) is None:
        raise ValueError(f"--person {source} is a look; give the folder of restyle --keep, and looks with --adapter")
    pipe.set_adapters(active)
    return name, len(latents)


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


ARRAYS = ("latents", "w", "ws", "z")  # names of latents in npz files; NVIDIA's projected_w.npz has "w"
MOST_BYTES = 2**30  # of a file of latents


def read_latents(path: Path, num_ws: int | None = None):
    """Read latents that `fewshot-gan invert` wrote, or those of an .npy or .npz file, such as NVIDIA's projected_w.npz.

    Args:
        path: of the file.
        num_ws: number of layers of the generator, to each of which w `[N, w_dim]` goes; None: it draws from z alone.

    Returns:
        z `[N, z_dim]` or w+ `[N, num_ws, w_dim]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or w, which the generator does not take.
    """
    from ...models.latents import check_latents

    if path.suffix.lower() in (".npy", ".npz"):
        latents, name = _of_numpy(path)
        check_latents(latents, name=f"the latents in {path}")
        if name == "z" and latents.ndim != 2:
            raise ValueError(f"{path} holds z of shape {tuple(latents.shape)}; give z [N, z_dim], or name the array w")
        if name in ("w", "ws") and latents.ndim == 2:
            if num_ws is None:
                raise ValueError(f"{path} holds w, and this base draws from z alone; give z [N, z_dim]")
            latents = latents[:, None].repeat(1, num_ws, 1)
        return latents
    try:
        names = sorted(read_header(path).tensors)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no latents ({error}); fewshot-gan invert writes such files") from error
    if names != ["latents"]:
        raise ValueError(f"{path} holds {plain(', '.join(names))[:200] or 'nothing'}, not latents")
    return check_latents(read_tensors(path)["latents"], name=f"the latents in {path}")


def _of_numpy(path: Path):
    """Return the latents of a NumPy file, and the name of the array in an .npz file; pickled objects are refused."""
    import numpy as np
    import torch

    if regular_file_size(path) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES:,} bytes; give fewer latents")
    try:
        array: Any = np.load(path, allow_pickle=False, mmap_mode=None)
        name = None
        if path.suffix.lower() == ".npz":
            with array as archive:
                names = [name for name in ARRAYS if name in archive.files]
                if len(names) != 1 or sum(info.file_size for info in archive.zip.infolist()) > MOST_BYTES:
                    found = plain(", ".join(archive.files))[:200] or "nothing"
                    raise ValueError(f"it holds {found}; give one array named {', '.join(ARRAYS)}")
                (name,) = names
                array = archive[name]
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), name
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no latents ({plain(error)[:200]})") from error


def write_latents(path: Path, latents) -> None:
    """Write latents to a .safetensors, .npz or .npy file; `read_latents` reads them."""
    from safetensors.torch import save_file

    kind = path.suffix.lower()
    if kind == ".safetensors":
        replace_file(path, lambda temp: save_file({"latents": latents.contiguous()}, temp))
        return
    import numpy as np

    def write(temp) -> None:
        with open(temp, "wb") as file:  # to a name, np.save would add the ending
            np.savez(file, w=latents.numpy()) if kind == ".npz" else np.save(file, latents.numpy())

    replace_file(path, write)
