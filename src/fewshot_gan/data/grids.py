"""Arrange images in a grid."""

from pathlib import Path

GAP = 4  # white pixels between images
WRITTEN = {".png": 2**31 - 1, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # file ending → longest side in px


def make_grid(images, columns: int):
    """Return a grid of PIL images of one size, row by row, on white."""
    from PIL import Image

    width, height = images[0].size
    grid = Image.new("RGB", grid_size(len(images), columns, width, height), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid


def grid_size(count: int, columns: int, width: int, height: int) -> tuple[int, int]:
    """Return width and height of a grid of `count` images in pixels."""
    rows = -(-count // columns)
    return columns * (width + GAP) - GAP, rows * (height + GAP) - GAP


def check_grid(file: Path, count: int, columns: int, side: int) -> None:
    """Check that a grid can be written, before its images are generated.

    Args:
        file: the file to write.
        count: number of images.
        columns: images per row.
        side: size of an image in pixels.

    Raises:
        ValueError: the ending of `file` is not in `WRITTEN`, or its format does not allow this size.
    """
    if file.is_dir() or file.suffix.lower() not in WRITTEN:
        raise ValueError(
            f"--out {file} is no picture file; give a name ending in {', '.join(WRITTEN)}, or --separate, or --format"
        )
    width, height = grid_size(count, columns, side, side)
    if max(width, height) > (limit := WRITTEN[file.suffix.lower()]):
        raise ValueError(
            f"--out {file}: the grid would be {width:,}x{height:,} px, and a {file.suffix} file holds no more than "
            f"{limit:,} a side; give a name ending in .png, fewer pictures, or --separate"
        )
