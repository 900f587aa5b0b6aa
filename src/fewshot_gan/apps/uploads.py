"""Files that visitors of the demo upload and download. Errors call a file by its name and never show its folder."""

import threading
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ..data.images import read_image, square
from ..faces import NoFace, read_faces
from ..hub.cards import PUBLISHED
from ..utils.errors import explain

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


def read_face(file: str, size: int, mean_landmarks: Mapping) -> torch.Tensor:
    """Read the largest face of a photo as uint8 `[3, size, size]`, see `faces.read_faces`.

    Raises:
        ValueError: the file is missing, cannot be read, or shows no face.
    """
    with _by_name(file):
        return read_faces(read_image(file), size, mean_landmarks)[0][0]


def pack(folder: Path, file: Path) -> None:
    """Zip the files of an adapter that are meant for publishing, inside a folder named like `folder`."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted({path for pattern in PUBLISHED for path in folder.glob(pattern)}):
            archive.write(path, Path(folder.name) / path.relative_to(folder))
