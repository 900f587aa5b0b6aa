"""Files that visitors of the demo upload and download. Errors call a file by its name and never show its folder."""

import threading
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from ..data.images import as_image, read_image, square
from ..faces import NoFace, outlined, read_faces
from ..hub.cards import PUBLISHED
from ..utils.errors import explain

SHOWN_SIDE = 1024  # px of the longer side of a photo with outlines
DECODING = threading.Lock()  # decode one upload at a time: each may take half a gigabyte


@contextmanager
def _by_name(file: str):
    try:
        with DECODING:
            yield
    except NoFace:
        raise ValueError("no face was found in the photo: choose one that shows a face from the front") from None
    except (ValueError, OSError) as error:
        raise ValueError(explain(error).replace(str(file), Path(file).name)) from error


def read_square(file: str, size: int, name: str) -> torch.Tensor:
    """Read the centre square of a picture as uint8 `[3, size, size]`; errors call it `name`.

    Raises:
        ValueError: the file is missing, cannot be read, or is too small.
    """
    with _by_name(file):
        return square(read_image(file), size, name)


class Photo(NamedTuple):
    """An uploaded photo.

    Attributes:
        square: uint8 `[3, size, size]`, what is searched in the latent space.
        shown: the photo with the outline of this square, or the square itself if faces were not sought.
        faces: how many faces were found; 0 if none were sought.
    """

    square: torch.Tensor
    shown: Image.Image
    faces: int


def read_photo(file: str, size: int, mean_landmarks: Mapping | None) -> Photo:
    """Read the largest face of a photo, see `faces.read_faces`.

    Args:
        file: the upload.
        size: side of the square in px.
        mean_landmarks: of the base; None: take the centre square.

    Raises:
        ValueError: the file is missing, cannot be read, is too small, or shows no face.
    """
    if mean_landmarks is None:
        centre = read_square(file, size, "the photo")
        return Photo(centre, as_image(centre), 0)
    with _by_name(file):
        photo = read_image(file)
        squares, alignments = read_faces(photo, size, mean_landmarks, face="all")
        return Photo(squares[0], outlined(photo, [a for a in alignments if a is not None], SHOWN_SIDE), len(squares))


def discard(file: Path | None) -> None:
    """Delete a file that `pack` wrote into a folder of its own, and the folder."""
    if file is not None:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()


def pack(folder: Path, file: Path) -> None:
    """Zip the files of an adapter that are meant for publishing, inside a folder named like `folder`."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted({path for pattern in PUBLISHED for path in folder.glob(pattern)}):
            archive.write(path, Path(folder.name) / path.relative_to(folder))
