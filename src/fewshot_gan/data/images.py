"""Convert images: to squares of one size, between bytes and floats in [-1, 1], to grey and to edges.

The type determines the range of values: bytes are 0…255, floating-point tensors [-1, 1], floating-point NumPy arrays
0…1. Other ranges are refused, since they would silently give black or grey images.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..utils.files import user_path
from .files import COMMON, read_picture, upright

MIN_SIDE = 32
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def reduced(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return `[B, 3, R, R]` averaged down to `[B, 3, size, size]`; the images themselves if R ≤ `size` or `size` is 0.

    Every pixel is the mean of the pixels that it covers.
    """
    if not 0 < size < max(images.shape[-2:]):
        return images
    return F.interpolate(images, size=(size, size), mode="area")


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Return BT.601 luminance `[B, 3, H, W] -> [B, 1, H, W]`, in the range of the input."""
    return (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sobel(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return horizontal and vertical Sobel derivatives of `[B, 1, H, W]`; a unit ramp gives 1. Borders: replicated."""
    kernel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    out = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return out[:, :1], out[:, 1:]


def resize(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return images `[B, C, H, W]` as squares of `size` px: area if reduced, bilinear if enlarged."""
    if x.shape[-2:] == (size, size):
        return x
    if min(x.shape[-2:]) >= size:
        return F.interpolate(x, size=(size, size), mode="area")
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Clip floats to [-1, 1] and convert them to uint8, rounded.

    Raises:
        ValueError: `images` is not floating point.
    """
    check_floats(images)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_floats(pictures: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 in [-1, 1].

    Raises:
        ValueError: `pictures` is not uint8.
    """
    if pictures.dtype != torch.uint8:
        raise ValueError(f"pictures of {pictures.dtype} are no bytes; give uint8 of 0…255")
    return pictures.to(torch.float32) / 127.5 - 1


def as_image(picture: torch.Tensor) -> Image.Image:
    """Convert uint8 `[3, H, W]` to a PIL image."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def check_floats(*images: torch.Tensor) -> None:
    """Check that images are floating point. Does not read their values, so that no GPU has to be waited for.

    Raises:
        ValueError: images are not floating point.
    """
    for x in images:
        if not x.is_floating_point():
            raise ValueError(f"images of {x.dtype} are not in [-1, 1]; scale 8-bit pictures with x / 127.5 - 1")


def check_range(images: torch.Tensor) -> None:
    """Check that images are floats in [-1, 1].

    Raises:
        ValueError: images are not floating point, or a value is not finite or outside of [-1, 1].
    """
    check_floats(images)
    if not torch.isfinite(images).all() or images.abs().max() > 1.001:
        raise ValueError("images go beyond [-1, 1]; scale 8-bit pictures with x / 127.5 - 1")


def check_signed(images: torch.Tensor) -> None:
    """Check a user's floats as `check_range` does, and refuse values that may mean 0…1.

    Raises:
        ValueError: see `check_range`; or no value is negative, so that the range may be 0…1 as well as [-1, 1].
    """
    check_range(images)
    if images.min() >= 0 and images.max() > 0:
        raise ValueError(
            f"images lie in {images.min().item():.2g}…{images.max().item():.2g}, not in [-1, 1]; scale pictures of 0…1 "
            "with x * 2 - 1, and give bright ones as uint8 or PIL images"
        )


def read_image(path) -> Image.Image:
    """Read the first image of a file, upright and in RGB.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be decoded within the limits; see `files.read_picture`.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {str(path)!r}; give the path of a {COMMON} file")
    return read_picture(path, str(path))


def read_squares(images, resolution: int) -> torch.Tensor:
    """Read images of any kind as squares of one size; see `square`.

    Args:
        images: a PIL image, a path or a NumPy array (see `from_array`), or a list of them.
        resolution: side of the result in pixels.

    Returns:
        uint8 `[N, 3, resolution, resolution]`.

    Raises:
        FileNotFoundError, ValueError: there is no image, a file does not exist, or an image is unreadable or too small.
    """
    return torch.stack([square(to_rgb(image), resolution) for image in listed(images)])


def listed(images) -> list:
    """Return a list of what `to_rgb` reads: of one PIL image, path or NumPy array, or of several.

    Raises:
        ValueError: there is none.
    """
    if isinstance(images, np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    sources = list(images) if isinstance(images, list | tuple) else [images]
    if not sources:
        raise ValueError("there is no picture; give at least one picture")
    return sources


def to_rgb(image) -> Image.Image:
    """Read a PIL image, a path or a NumPy array (see `from_array`), upright and in RGB.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or the image is unreadable.
    """
    if isinstance(image, Image.Image):
        try:
            return upright(image)
        except (OSError, SyntaxError) as error:  # the caller opened it, but decoding happens here
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
    """Convert an array of Pillow, scikit-image or `output_type="np"` to an RGB image.

    Args:
        array: `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]` with alpha, which becomes white. uint8, uint16 of
            0…65535, wider integers of 0…255, or floats of 0…1.

    Raises:
        ValueError: the array has another shape or range.
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
    """Crop a centred square of the short side, then resize it with Lanczos.

    Args:
        image: an RGB image.
        resolution: side of the result in pixels.
        name: name of the image in the error message.

    Returns:
        uint8 `[3, resolution, resolution]`.

    Raises:
        ValueError: the short side is below 32 px.
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
