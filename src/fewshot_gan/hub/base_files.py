"""Checks of the files of a base: classes named in `model_index.json`, and stored weights of its parts."""

import math
from collections.abc import Collection
from pathlib import Path

from ..catalogue import BACKBONES
from ..utils.json_files import read_json
from ..utils.safetensors_files import read_header, read_tensors
from ..utils.text import plain

INDEX = "model_index.json"


def check_index(folder: Path, given: Collection[str] = ()) -> None:
    """Refuse a `model_index.json` that names classes other than networks of this package. None of them is imported.

    Args:
        folder: of the base.
        given: names of parts that the caller passes, so that they are not loaded.

    Raises:
        ValueError: the index is damaged, or names a class of another library or one that is no network.
    """
    index = read_json(folder / INDEX)
    kind = index.get("_class_name")
    kinds = kind if isinstance(kind, list) else [kind]  # custom pipelines have [file, class]
    if len(kinds) > 2 or not kinds or not all(isinstance(name, str) for name in kinds):
        raise ValueError(f"{folder / INDEX} does not say which pipeline it is of; fetch the file again")
    psi = index.get("truncation_psi")
    if psi is not None and (not isinstance(psi, int | float) or isinstance(psi, bool) or not math.isfinite(psi)):
        raise ValueError(f"{folder / INDEX}: truncation_psi is {plain(psi)[:40]}; it is a finite number")
    for name, value in index.items():
        if not isinstance(value, list) or name.startswith("_") or name in given or value == [None, None]:
            continue
        if len(value) != 2 or value[0] != "fewshot_gan" or value[1] not in BACKBONES:
            raise ValueError(
                f"{folder / INDEX}: {plain(name)[:40]} is {plain(value)[:80]}; a base has networks of fewshot_gan "
                "alone, and nothing else was imported"
            )


def stored_keys(folder: Path) -> set[str]:
    """Return the names of the tensors in the safetensors files of a part of a base."""
    return {name for path in folder.glob("*.safetensors") for name in read_header(path).tensors}


def stored_tensors(folder: Path) -> dict:
    """Return name → tensor from the safetensors files of a part of a base."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in read_tensors(path).items()}
