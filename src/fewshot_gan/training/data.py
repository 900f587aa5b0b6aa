"""A few images in memory, and an endless, resumable stream of batches from them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..images import read_image, square, to_floats, upright
from ..utils.json_files import read_json
from ..utils.text import plain

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_images(
    source: str | os.PathLike[str], resolution: int, least: int = 2, labels: tuple[list[int], list[str]] | None = None
) -> Tensor:
    """Reads every image of a folder or of a `datasets` data set as squares of one size.

    Squaring rule: centre crop to the short side, then Lanczos resize to `resolution`. EXIF rotation is applied,
    transparency is laid on white, 16-bit grey is scaled down, of an animation the first frame counts.

    Args:
        source: a folder (its png, jpg, jpeg, webp and bmp files sorted by name, subfolders and hidden files not read),
            `imagefolder:DIR` (read by the `datasets` package, with subfolders), or a Hub data set id `owner/name`
            (its `train` split and first image column).
        resolution: side of the result in pixels.
        least: 1 for a method that learns a look from a single image.
        labels: two lists that take the classes of a data set, if it has a class column, and their names.

    Returns:
        uint8 `[N, 3, resolution, resolution]`, N ≥ `least`.

    Raises:
        FileNotFoundError: the folder or data set does not exist.
        ValueError: no image, one where 2 are the least, an unreadable file, or a short side below 32 px.
    """
    if resolution < 1:
        raise ValueError(f"resolution {resolution} is below 1; use the generator's, for example 256")
    found, enlarged = [], []
    for name, image in _read(source, labels):  # one at a time: only what is kept stays in memory
        found.append(square(image, resolution, name))
        if min(image.size) < resolution:
            enlarged.append(f"{name} ({image.width}x{image.height})")
    if not found:
        raise ValueError(
            f"{source} has no image; put png, jpg, webp or bmp files directly into the folder, typically 10"
        )
    if len(found) < least:
        raise ValueError(f"{source} has only one image; this method needs at least 2, typically 10: add more")
    images = torch.stack(found)
    logger.info(f"{len(images)} images from {source}: centre crop to the short side, Lanczos to {resolution} px")
    if enlarged:
        more = f" and {len(enlarged) - 10} more" if len(enlarged) > 10 else ""
        logger.warning(
            f"smaller than {resolution} px, enlarged and therefore soft: {plain(', '.join(enlarged[:10]))}{more}"
        )
    return images


def load_labelled(source: str | os.PathLike[str], resolution: int) -> tuple[Tensor, Tensor | None, list[str]]:
    """As `load_images`, with classes: a folder of folders, or a data set with a class column.

    Returns:
        uint8 `[N, 3, resolution, resolution]`; int64 `[N]`, or None where there are no classes; names of the classes.

    Raises:
        FileNotFoundError, ValueError: see `load_images`; or a folder has images and folders with images side by side.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and any(_pictures(p))]
        if inner and any(_pictures(folder)):
            raise ValueError(
                f"{source} has images beside folders of images ({inner[0].name}, …); give one folder per class, or "
                "images alone"
            )
        if inner:
            classes = [load_images(p, resolution, least=1) for p in inner]
            labels = torch.repeat_interleave(
                torch.arange(len(classes), device="cpu"), torch.tensor([len(x) for x in classes])
            )
            return torch.cat(classes), labels, [p.name for p in inner]
        return load_images(source, resolution), None, []
    labels: list[int] = []
    names: list[str] = []
    images = load_images(source, resolution, labels=(labels, names))
    return images, torch.tensor(labels) if labels else None, names


def choose_subset(total: int, num: int | None, percent: float | None, seed: int) -> Tensor:
    """Rows of an exact random subset, ascending; of one seed the smaller subset lies inside the larger.

    Args:
        total: how many images there are.
        num, percent: how many, or what share of them (rounded); neither = all.
        seed: of the choice.

    Raises:
        ValueError: both are given, or more than there are, or none.
    """
    if num is not None and percent is not None:
        raise ValueError(f"num={num} and percent={percent}: give one of them")
    if percent is not None:
        if not 0 < percent <= 100:
            raise ValueError(f"percent={percent}: give a number above 0, up to 100")
        num = round(total * percent / 100)
    num = total if num is None else num
    if not 1 <= num <= total:
        raise ValueError(f"a subset of {num} images of {total}: give 1 to {total}")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")[:num].sort().values


def provenance(source: str | os.PathLike[str]) -> dict[str, str]:
    """What a folder's `dataset.json` (`training/make_domain.py`) says of its images: what they show, their licence.

    Returns:
        `images` and `images_licence`; nothing where there is no such file or it says neither.
    """
    path = Path(source) / "dataset.json"
    if not path.is_file():
        return {}
    try:
        info = read_json(path)
        found = {"images": info.get("style"), "images_licence": (info.get("licence") or {}).get("text")}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a description of a data set ({error}); mend it or remove it") from error
    return {key: str(value) for key, value in found.items() if value}


def _pictures(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _read(source: str | os.PathLike[str], labels=None) -> Iterator[tuple[str, Image.Image]]:
    """Pairs of a name for messages and an upright RGB image."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        for path in _pictures(folder):
            yield path.name, read_image(path)
        return
    if folder.exists():
        raise ValueError(f"{source} is a file, not a folder; pass the folder that holds the images")
    text = str(source)
    if text.startswith("imagefolder:"):
        yield from _read_dataset("imagefolder", text.partition(":")[2], labels)
    elif isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        yield from _read_dataset(text, None, labels)
    else:
        raise FileNotFoundError(f"folder {source} does not exist; pass an existing folder or a data set id owner/name")


def _read_dataset(name: str, data_dir: str | None, labels=None) -> Iterator[tuple[str, Image.Image]]:
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"folder {data_dir} does not exist; pass an existing folder after imagefolder:")
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"data set {name} needs the datasets package: pip install 'fewshot_gan[train]'") from error
    try:
        data = datasets.load_dataset(name, data_dir=data_dir and str(Path(data_dir).expanduser()), split="train")
    except (
        Exception
    ) as error:  # the package raises a dozen unrelated types for "not there", "offline" and "no such split"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{name} is neither a folder here nor a data set that could be loaded ({reason}); "
            "check the spelling or pass a folder"
        ) from error
    columns = [column for column, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"data set {name} has no image column, only {sorted(data.features)}; choose another data set")
    classes = [column for column, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
    if labels is not None and classes:
        labels[0].extend(data.with_format(None)[classes[0]])
        labels[1].extend(data.features[classes[0]].names)
    for row, image in enumerate(data.with_format(None)[columns[0]]):
        yield f"{name}[{row}]", upright(image)


class InfiniteBatches:
    """Endless batches from images held in memory; every epoch visits each image once, in a new order.

    A batch may span two epochs, so every batch is full, also when `batch_size` exceeds the number of images.

    Args:
        images: uint8 `[N, 3, R, R]`, as `load_images` returns them; not copied.
        batch_size: b.
        seed: seed of the order; the sampler owns its generator and touches no global one.

    Raises:
        ValueError: not uint8 `[N ≥ 1, 3, R, R]`, or a batch size below 1.
    """

    def __init__(self, images: Tensor, batch_size: int, seed: int = 0):
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 1:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, not uint8 [N, 3, R, R]; use load_images")
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is below 1; use 1 or more, typically 4")
        self.images, self.batch_size = images, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long, device="cpu")  # what is left of the current epoch

    def __iter__(self) -> InfiniteBatches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Images float `[b, 3, R, R]` in [-1, 1] and their indices int64 `[b]`, on the CPU."""
        while len(self._order) < self.batch_size:
            epoch = torch.randperm(len(self.images), generator=self._generator, device="cpu")
            self._order = torch.cat([self._order, epoch])
        indices, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return to_floats(self.images[indices]), indices.clone()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next batches depend on, but the images and the batch size."""
        state = {"generator": self._generator.get_state(), "order": self._order.clone(), "num_images": len(self.images)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state` was taken, also in the middle of an epoch.

        Raises:
            ValueError: the state belongs to another number of images.
        """
        if state["num_images"] != len(self.images):
            raise ValueError(
                f"the saved sampler had {state['num_images']} images, this one has {len(self.images)}; "
                "resume with the same folder or start anew"
            )
        self._generator.set_state(state["generator"])
        self._order = state["order"].clone()
