"""Pictures from files to squares of one size, the one rule of cropping, and between bytes and [-1, 1]."""

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .utils.files import user_path

MIN_SIDE = 32


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1], clipped there, to uint8, rounded."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_floats(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def check_range(images: torch.Tensor) -> None:
    """Refuse what is no picture in [-1, 1].

    Raises:
        ValueError: a value is not finite or beyond [-1, 1].
    """
    if not torch.isfinite(images).all() or images.abs().max() > 1.001:
        raise ValueError("images go beyond [-1, 1]; scale 8-bit pictures with x / 127.5 - 1")


def read_image(path) -> Image.Image:
    """The picture in a file, upright and RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {str(path)!r}; give the path of a png, jpg, webp or bmp file")
    try:
        with Image.open(path) as image:
            return upright(image)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); repair or remove it") from error


def square(image: Image.Image, resolution: int, name: str = "the picture") -> torch.Tensor:
    """Centre crop to the short side, then Lanczos resize.

    Args:
        image: RGB.
        resolution: side of the result.
        name: for messages.

    Returns:
        uint8 `[3, resolution, resolution]`.

    Raises:
        ValueError: a short side below 32 px.
    """
    width, height = image.size
    side = min(width, height)
    if side < MIN_SIDE:
        raise ValueError(
            f"{name} is {width}x{height} px, below the limit of {MIN_SIDE} px; use a larger copy or remove it"
        )
    left, top = (width - side) // 2, (height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    if side != resolution:
        cropped = cropped.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """RGB, EXIF rotation applied, transparency on white, 16-bit grey scaled down; of an animation the first frame."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
