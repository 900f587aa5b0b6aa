"""Load small image data sets into memory, and draw endless, resumable batches from them."""

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

from ..utils.files import user_path
from ..utils.json_files import parse_json
from ..utils.text import plain
from .files import COMMON, read_picture
from .images import square, to_floats
from .sets import PictureSet, explain

logger = logging.getLogger(__name__)


def load_images(
    source: str | os.PathLike[str], resolution: int, least: int = 2, labels: tuple[list[int], list[str]] | None = None
) -> Tensor:
    """Load all images of a folder, a zip archive or a `datasets` data set as squares of one size.

    Images are cropped to a centred square of their short side and resized with Lanczos. EXIF rotation is applied,
    transparency becomes white, 16-bit grey is reduced to 8 bits, and animations are reduced to their first frame. A
    warning names files that are not images (see `sets.PictureSet`); the log names text files such as captions.

    Args:
        source: a folder or zip archive of images in the formats of `files.ENDINGS`, sorted by name, with subfolders and
            without hidden files; `imagefolder:DIR` (read by the `datasets` package); or a Hub data set id `owner/name`
            (its `train` split and first image column).
        resolution: side of the result in pixels.
        least: smallest number of images: 2, or 1 for a method that learns from a single image.
        labels: two lists to be filled with the class of each image and the class names, if a data set has a class
            column.

    Returns:
        uint8 `[N, 3, resolution, resolution]`, N ≥ `least`.

    Raises:
        FileNotFoundError: the folder or data set does not exist.
        ValueError: there are fewer than `least` images, or an image cannot be read or has a side below 32 px.
    """
    path = user_path(source)
    if not path.exists():
        return _load(_read_named(source, labels), source, resolution, least)
    with PictureSet(path) as pictures:
        return _load_set(pictures, source, resolution, least)


def load_labelled(source: str | os.PathLike[str], resolution: int) -> tuple[Tensor, Tensor | None, list[str]]:
    """Load images as `load_images` does, with classes: subfolders, or the class column of a data set.

    Returns:
        images uint8 `[N, 3, resolution, resolution]`, labels int64 `[N]` or None, and the class names.

    Raises:
        FileNotFoundError, ValueError: see `load_images`; or a folder has images beside folders of images.
    """
    path = user_path(source)
    if not path.exists():
        class_of_image: list[int] = []
        class_names: list[str] = []
        images = load_images(source, resolution, labels=(class_of_image, class_names))
        labels = torch.tensor(class_of_image, dtype=torch.int64, device="cpu") if class_of_image else None
        return images, labels, class_names
    with PictureSet(path) as pictures:
        classes = pictures.classes()
        counts = [len(names) for names in classes.values()]
        if classes and sum(counts) < len(pictures.names):
            raise ValueError(
                f"{source} has images beside folders of images ({plain(next(iter(classes)))}, …); give one folder per "
                "class, or images alone"
            )
        images = _load_set(pictures, source, resolution, least=1 if classes else 2)
    labels = torch.repeat_interleave(
        torch.arange(len(counts), device="cpu"), torch.tensor(counts, dtype=torch.int64, device="cpu")
    )
    return images, labels if classes else None, list(classes)


def _load_set(pictures: PictureSet, source, resolution: int, least: int) -> Tensor:
    left_out = pictures.explain()
    if not pictures.names:
        raise ValueError(
            f"{source} has no image; put {COMMON} files into it, typically 10" + (f" ({left_out})" if left_out else "")
        )
    if left_out:
        logger.warning(f"of {source} {left_out}")
    if pictures.links:
        logger.warning(f"links lead out of {source} and are followed: {', '.join(map(plain, pictures.links[:10]))}")
    note = ""
    if texts := sorted(pictures.texts):
        note = f"; {len(texts)} texts are not read: {', '.join(map(plain, texts[:3]))}" + (", …" if texts[3:] else "")
    return _load(((plain(name), pictures.read(name)) for name in pictures.names), source, resolution, least, note)


def _load(pictures: Iterator[tuple[str, Image.Image]], source, resolution: int, least: int, note: str = "") -> Tensor:
    if resolution < 1:
        raise ValueError(f"resolution {resolution} is below 1; use the generator's, for example 256")
    squares, enlarged = [], []
    for name, image in pictures:  # one full-size image in memory at a time
        squares.append(square(image, resolution, name))
        if min(image.size) < resolution:
            enlarged.append(f"{name} ({image.width}x{image.height})")
    if not squares:
        raise ValueError(f"{source} has no image; choose another data set")
    if len(squares) < least:
        raise ValueError(f"{source} has only one image; this method needs at least 2, typically 10: add more")
    images = torch.stack(squares)
    logger.info(f"{len(images)} images from {source}: centre crop to the short side, Lanczos to {resolution} px{note}")
    if enlarged:
        more = f" and {len(enlarged) - 10} more" if len(enlarged) > 10 else ""
        logger.warning(
            f"smaller than {resolution} px, enlarged and therefore soft: {plain(', '.join(enlarged[:10]))}{more}"
        )
    return images


def choose_subset(total: int, num: int | None, percent: float | None, seed: int) -> Tensor:
    """Return the sorted indices of a random subset; with one seed, a smaller subset is part of a larger one.

    Args:
        total: number of images.
        num, percent: size of the subset, as a number or in percent (rounded); neither means all images.
        seed: seed of the choice.

    Raises:
        ValueError: both are given, or the subset would be empty or larger than `total`.
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
    """Return the description and licence of images from `dataset.json` of their folder or archive.

    `training/make_domain.py` writes this file.

    Returns:
        `images` and `images_licence`, as far as the file has them; empty without the file.
    """
    path = user_path(source)
    if not path.exists():
        return {}
    try:
        with PictureSet(path) as pictures:
            text = pictures.text("dataset.json")
        info = parse_json((text or "{}").encode())
        facts = {"images": info.get("style"), "images_licence": (info.get("licence") or {}).get("text")}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path / 'dataset.json'} is not a description of a data set ({error}); mend it or remove it"
        ) from error
    return {key: str(value) for key, value in facts.items() if value}


def _read_named(source: str | os.PathLike[str], labels) -> Iterator[tuple[str, Image.Image]]:
    """Yield a name for messages and an upright RGB image, for a source that is not an existing path."""
    text = str(source)
    if text.startswith("imagefolder:"):
        return _read_dataset("imagefolder", text.partition(":")[2], labels)
    if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return _read_dataset(text, None, labels)
    raise FileNotFoundError(
        f"folder {source} does not exist; pass an existing folder or zip archive, or a data set id owner/name"
    )


def _read_dataset(name: str, data_dir: str | None, labels=None) -> Iterator[tuple[str, Image.Image]]:
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"folder {data_dir} does not exist; pass an existing folder after imagefolder:")
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"data set {name} needs the datasets package: pip install 'fewshot_gan[train]'") from error
    try:
        data = datasets.load_dataset(name, data_dir=data_dir and str(Path(data_dir).expanduser()), split="train")
    except Exception as error:  # the package raises many unrelated types if a data set or split cannot be loaded
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
    rows = data.with_format(None).cast_column(columns[0], datasets.Image(decode=False))[columns[0]]
    if data_dir is not None:
        _warn_left_out(Path(data_dir).expanduser(), [row["path"] for row in rows])
    for number, row in enumerate(rows):  # decoded here, with the limits and formats of all other images
        row_name = f"{name}[{number}]"
        if row is None or row["bytes"] is None and row["path"] is None:
            raise ValueError(f"{row_name} has no picture; choose another data set")
        yield row_name, read_picture(Path(row["path"]) if row["bytes"] is None else row["bytes"], row_name)


def _warn_left_out(folder: Path, paths) -> None:
    """Warn of files in `folder` that the datasets package ignored, because of their ending or split."""
    taken = {os.path.realpath(path) for path in paths if path}
    with PictureSet(folder) as pictures:
        left_out = dict(pictures.left_out)
        for name in pictures.names:
            if os.path.realpath(folder / name) not in taken:
                left_out[name] = "not taken by the datasets package"
    if left_out:
        logger.warning(f"of {folder} {explain(left_out)}")


class InfiniteBatches:
    """Endless batches from images held in memory; every epoch visits each image once, in a new order.

    A batch may span two epochs, so every batch is full, also when `batch_size` exceeds the number of images.

    Args:
        images: uint8 `[N, 3, R, R]`, as `load_images` returns them; not copied.
        batch_size: number b of images per batch.
        seed: seed of the order; global random state is not used.

    Raises:
        ValueError: images are not uint8 `[N ≥ 1, 3, R, R]`, or the batch size is below 1.
    """

    def __init__(self, images: Tensor, batch_size: int, seed: int = 0):
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 1:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, not uint8 [N, 3, R, R]; use load_images")
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is below 1; use 1 or more, typically 4")
        self.images, self.batch_size = images, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long, device="cpu")  # remaining indices of the current epoch

    def __iter__(self) -> InfiniteBatches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return images float `[b, 3, R, R]` in [-1, 1] and their indices int64 `[b]`, on the CPU."""
        while len(self._order) < self.batch_size:
            epoch = torch.randperm(len(self.images), generator=self._generator, device="cpu")
            self._order = torch.cat([self._order, epoch])
        indices, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return to_floats(self.images[indices]), indices.clone()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next batches depend on, besides images and batch size."""
        state = {"generator": self._generator.get_state(), "order": self._order.clone(), "num_images": len(self.images)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken, also in the middle of an epoch.

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
