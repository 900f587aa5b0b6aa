"""Pictures side by side in one file."""

from pathlib import Path

GAP = 4  # white pixels between them
WRITTEN = {".png": 2**31 - 1, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # ending of a file → longest side, px


def make_grid(images: list, columns: int):
    """PIL images of one size, row by row, on white."""
    from PIL import Image

    width, height = images[0].size
    grid = Image.new("RGB", grid_size(len(images), columns, width, height), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid


def grid_size(count: int, columns: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of a grid of `count` pictures."""
    rows = -(-count // columns)
    return columns * (width + GAP) - GAP, rows * (height + GAP) - GAP


def check_grid(file: Path, count: int, columns: int, side: int) -> None:
    """Refuse a grid that cannot be written, before its `count` pictures of `side` px are drawn.

    Raises:
        ValueError: the ending of `file` is none of `WRITTEN`, or its format holds no picture of that size.
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
