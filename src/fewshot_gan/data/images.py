"""Pictures to squares of one size, the one rule of cropping, and between bytes and [-1, 1].

What comes in as numbers says what they mean by its type: bytes are 0…255, floating tensors lie in [-1, 1], floating
NumPy arrays in 0…1. Other ranges would turn pictures black or grey without an error, and are refused.
"""

import os

import numpy as np
import torch
from PIL import Image

from ..utils.files import user_path
from .files import COMMON, read_picture, upright

MIN_SIDE = 32


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1], clipped there, to uint8, rounded.

    Raises:
        ValueError: numbers of another type.
    """
    check_floats(images)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_floats(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1].

    Raises:
        ValueError: numbers of another type, which would turn black.
    """
    if pictures.dtype != torch.uint8:
        raise ValueError(f"pictures of {pictures.dtype} are no bytes; give uint8 of 0…255")
    return pictures.to(torch.float32) / 127.5 - 1


def check_floats(*images: torch.Tensor) -> None:
    """Refuse pictures whose type cannot hold [-1, 1]. Their values are not looked at, for which a GPU would wait.

    Raises:
        ValueError: no floating-point numbers.
    """
    for x in images:
        if not x.is_floating_point():
            raise ValueError(f"images of {x.dtype} are not in [-1, 1]; scale 8-bit pictures with x / 127.5 - 1")


def check_range(images: torch.Tensor) -> None:
    """Refuse what is no picture in [-1, 1].

    Raises:
        ValueError: no floating-point numbers, or a value that is not finite or beyond [-1, 1].
    """
    check_floats(images)
    if not torch.isfinite(images).all() or images.abs().max() > 1.001:
        raise ValueError("images go beyond [-1, 1]; scale 8-bit pictures with x / 127.5 - 1")


def check_signed(images: torch.Tensor) -> None:
    """`check_range` of floats that somebody gave, who may have meant 0…1.

    Raises:
        ValueError: as `check_range`, or no value is below 0: then they lie in 0…1, or no pixel is darker than middle
            grey, and nothing tells which.
    """
    check_range(images)
    if images.min() >= 0 and images.max() > 0:
        raise ValueError(
            f"images lie in {images.min().item():.2g}…{images.max().item():.2g}, not in [-1, 1]; scale pictures of 0…1 "
            "with x * 2 - 1, and give bright ones as uint8 or PIL images"
        )


def read_image(path) -> Image.Image:
    """The first picture in a file, upright and RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image, or takes too much to decode; see `picture_files.read_picture`.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {str(path)!r}; give the path of a {COMMON} file")
    return read_picture(path, str(path))


def read_squares(images, resolution: int) -> torch.Tensor:
    """Pictures of any kind as squares of one size.

    Args:
        images: a PIL image, a path, or a NumPy array, see `from_array`; or several of them.
        resolution: side of the result.

    Returns:
        uint8 `[N, 3, resolution, resolution]`.

    Raises:
        FileNotFoundError, ValueError: none, no such file, no picture, or one that is too small.
    """
    if isinstance(images, np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    several = images if isinstance(images, list | tuple) else [images]
    if not several:
        raise ValueError("there is no picture; give at least one picture")
    return torch.stack([square(_to_rgb(image), resolution) for image in several])


def _to_rgb(image) -> Image.Image:
    if isinstance(image, Image.Image):
        try:
            return upright(image)
        except (OSError, SyntaxError) as error:  # opened by the caller, decoded here
            raise ValueError(f"the picture cannot be read ({error}); repair it") from error
    if isinstance(image, np.ndarray):
        return from_array(image)
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    raise ValueError(
        f"a {type(image).__name__} is no picture; give a PIL image, a path, an array [H, W, 3], or all pictures as one "
        "tensor [N, 3, H, W]"
    )


def from_array(array: np.ndarray) -> Image.Image:
    """The picture in an array, as Pillow, scikit-image and `output_type="np"` have them.

    Args:
        array: `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`, which is laid on white: uint8, uint16 of 0…65535,
            wider integers of 0…255, or floats of 0…1.

    Raises:
        ValueError: another shape, or numbers of another range.
    """
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ValueError(f"an array of shape {list(array.shape)} is no picture; give [H, W] or [H, W, 3]")
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and 0 <= low and high <= 1:
        array = array.astype(np.float64) * 255
    elif array.dtype == np.uint16:
        array = array.astype(np.float64) / 257
    elif array.dtype.kind not in "iu" or low < 0 or high > 255:
        raise ValueError(
            f"an array of {array.dtype} from {low} to {high} is no picture; give uint8 of 0…255 or floats of 0…1"
        )
    array = array.round().astype(np.uint8)
    return upright(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


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
