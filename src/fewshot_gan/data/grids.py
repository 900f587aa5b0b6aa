"""Arrange images in a grid. Large images are reduced to tiles, so that a grid of 1024 px pictures stays a picture."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

GAP = 4  # white pixels between images
TILE = 512  # longest side of an image in a grid, in px
SHEET_TILE = 256  # the same in sheets of trainings and on model cards
MIN_SIZE = 16  # smallest side to which pictures are reduced on request, in px
WRITTEN = {".png": 2**31 - 1, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # file ending → longest side in px


def shrink(image, side: int):
    """Return a PIL image whose longer side is at most `side` px: the image itself, or a reduced copy.

    It is reduced with Pillow's Lanczos filter, which is antialiased: every pixel counts.
    """
    from PIL import Image

    longest = max(image.size)
    if longest <= side:
        return image
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def check_size(size: int | None, resolution: int) -> int:
    """Return the side of pictures of `resolution` px that are reduced to `size` px; None keeps them.

    Raises:
        ValueError: `size` is no whole number, below 16, or above `resolution`.
    """
    if size is None:
        return resolution
    least = min(MIN_SIZE, resolution)
    if not isinstance(size, Integral) or not least <= int(size) <= resolution:
        raise ValueError(
            f"size {size!r}: give a whole number of px from {least} to {resolution:,}, the size of this base's pictures"
        )
    return int(size)


def make_grid(images, columns: int, tile: int = TILE):
    """Return a grid of PIL images of one size, row by row, on white.

    Args:
        images: the images.
        columns: images per row.
        tile: longest side of an image in the grid in pixels; larger images are reduced, see `shrink`.
    """
    from PIL import Image

    images = [shrink(image, tile) for image in images]
    width, height = images[0].size
    grid = Image.new("RGB", grid_size(len(images), columns, width, height), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid


def grid_size(count: int, columns: int, width: int, height: int) -> tuple[int, int]:
    """Return width and height of a grid of `count` images in pixels."""
    rows = -(-count // columns)
    return columns * (width + GAP) - GAP, rows * (height + GAP) - GAP


def check_grid(file: Path, count: int, columns: int, side: int, folders: Sequence[str] = ()) -> None:
    """Check that a grid can be written, before its images are generated.

    Args:
        file: the file to write.
        count: number of images.
        columns: images per row.
        side: side of an image in the grid in pixels.
        folders: options of the command that write a folder instead, which messages advise.

    Raises:
        ValueError: the ending of `file` is not in `WRITTEN`, or its format does not allow this size.
    """
    instead = [f"or {option}" for option in folders]
    if file.is_dir() or file.suffix.lower() not in WRITTEN:
        raise ValueError(f"--out {file} is no picture file; give a name ending in {', '.join([*WRITTEN, *instead])}")
    width, height = grid_size(count, columns, side, side)
    if max(width, height) > (limit := WRITTEN[file.suffix.lower()]):
        raise ValueError(
            f"--out {file}: the grid would be {width:,}x{height:,} px, and a {file.suffix} file holds no more than "
            f"{limit:,} a side; give {', '.join(['a name ending in .png', 'or fewer pictures', *instead])}"
        )
