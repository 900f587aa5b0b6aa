"""Find faces in photos, align them to the mean face of a base, and paste a square back into its photo.

dlib's frontal detector (HOG) finds the faces and its model of five points the corners of the eyes and the nose. The
alignment is the similarity transform that brings the mean landmarks of a base nearest to these points, in least squares
in px of the photo (Umeyama 1991): a base draws faces where its training pictures had them.

The extra `photo` installs what the search needs: dlib (Boost Software License) and `face_recognition_models`, whose
`shape_predictor_5_face_landmarks.dat` its author put into the public domain (CC0). The model of 68 points in the same
package may not be used commercially; it is not read.
"""

import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from .data.files import upright
from .data.images import listed, square, to_rgb

# in the order of dlib's model of five points; the person's left eye is on the right of a picture
LANDMARKS = ("left_eye_outer", "left_eye_inner", "right_eye_outer", "right_eye_inner", "nose")
PACKAGES = "pip install 'fewshot_gan[photo]'"
MODEL = "shape_predictor_5_face_landmarks.dat"
DETECTOR_SIDE = 800  # px of the longer side of the picture in which faces are sought, enlarged twice: faces of 40 px
TILTS = (0, -35, 35)  # degrees by which a photo is turned until a face is found; the detector finds upright ones
SURE = 0.35  # score of the detector above which nearly every find is a face; without one the best of lower score counts
LANDMARK_SIDE = 512  # px of the square in which the points of a face are found, which is half as wide
FEATHER = 0.12  # width of the border over which a pasted square fades, as a share of its side
STRIP = 512  # rows of a photo that are pasted at once, which bounds the memory
DARK, LIGHT = (20, 20, 20), (255, 210, 60)  # of outlines

logger = logging.getLogger(__name__)
_detecting = threading.Lock()  # dlib keeps the picture inside the detector and lets other threads run meanwhile


class Face(NamedTuple):
    """A face in a photo.

    Attributes:
        box: left, top, right and bottom in px.
        landmarks: `[5, 2]`, x and y in px of the points `LANDMARKS`; pixel centres have whole numbers.
    """

    box: tuple[int, int, int, int]
    landmarks: np.ndarray


class NoFace(ValueError):
    """Raised when a photo shows no face."""


class Alignment(NamedTuple):
    """Where the square of a base lies in a photo.

    Attributes:
        matrix: `[2, 3]`, maps x, y, 1 in px of the square to px of the photo.
        size: side of the square in px.
    """

    matrix: np.ndarray
    size: int

    @property
    def scale(self) -> float:
        """Pixels of the photo per pixel of the square, along one side."""
        return float(np.hypot(*self.matrix[:, 0]))

    def corners(self) -> np.ndarray:
        """Return the corners `[4, 2]` of the square in px of the photo, clockwise from the upper left one."""
        low, high = -0.5, self.size - 0.5
        square = np.array([[low, low], [high, low], [high, high], [low, high]])
        return square @ self.matrix[:, :2].T + self.matrix[:, 2]


def check_landmarks(points) -> None:
    """Refuse landmarks that are not one `[x, y]` of finite numbers for each name in `LANDMARKS`; None is no landmarks.

    Raises:
        ValueError: says which point is missing, unknown or no pair of numbers.
    """
    if points is None:
        return
    if not isinstance(points, Mapping) or set(points) != set(LANDMARKS):
        given = ", ".join(map(str, points))[:200] if isinstance(points, Mapping) else type(points).__name__
        raise ValueError(f"mean_landmarks has {given}; give a point [x, y] in px for each of {', '.join(LANDMARKS)}")
    for name, point in points.items():
        is_pair = isinstance(point, list | tuple) and len(point) == 2
        if not is_pair or not all(isinstance(v, Real) and type(v) is not bool and math.isfinite(v) for v in point):
            raise ValueError(f"mean_landmarks: {name} is {repr(point)[:60]}; give [x, y] in px")


def can_find_faces() -> bool:
    """Return whether the extra `photo` is installed."""
    return find_spec("dlib") is not None and find_spec("face_recognition_models") is not None


def model_file(name: str) -> str:
    """Return the path of a model of `face_recognition_models`.

    The package is not imported: its code needs `pkg_resources`, which Python 3.12 and later do not have.

    Raises:
        ImportError: the extra `photo` is not installed.
    """
    package = find_spec("face_recognition_models")
    if not can_find_faces() or package is None or package.origin is None:
        raise ImportError(f"faces are found by dlib and its models, which are not installed; {PACKAGES}")
    return str(Path(package.origin).parent / "models" / name)


@cache
def _detector_and_predictor() -> tuple[Any, Any]:
    path = model_file(MODEL)
    dlib = _dlib()
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(path)


def _dlib() -> Any:  # its functions are not known to type checkers
    import dlib

    return dlib


def find_faces(photo: Image.Image) -> list[Face]:
    """Find upright and tilted faces that are 40 px wide after the photo is reduced to 800 px on the longer side.

    Args:
        photo: an image of any mode; landmarks and boxes are in px of the upright image.

    Returns:
        Faces, the one with the most distant landmarks first; an empty list if there are none.

    Raises:
        ImportError: the extra `photo` is not installed.
    """
    detector, _ = _detector_and_predictor()
    photo = upright(photo)
    factor, small = _reduction(photo), photo
    if factor > 1:
        small = small.resize([max(1, round(side / factor)) for side in photo.size], Image.Resampling.BOX)
    found = []  # (score, tilt, left, top, right, bottom) in px of the turned picture
    for tilt in TILTS:
        turned = small.rotate(tilt, Image.Resampling.BILINEAR) if tilt else small
        with _detecting:
            boxes, scores, _ = detector.run(np.asarray(turned), 1, 0.0)
        corners = [(box.left(), box.top(), box.right(), box.bottom()) for box in boxes]
        found += [(score, tilt, *corner) for score, corner in zip(scores, corners, strict=True)]
        if max((score for score, *_ in found), default=0.0) > SURE:
            break
    found.sort(reverse=True)
    sure = [face for face in found if face[0] > SURE and face[1] == found[0][1]]  # one tilt: no face twice
    faces = []
    for _, tilt, left, top, right, bottom in sure or found[:1]:
        middle = np.array([left + right, top + bottom]) / 2
        centre, turn = (np.array(small.size) - 1) / 2, _turn(math.radians(tilt))
        middle = (turn @ (middle - centre) + centre + 0.5) * factor - 0.5
        half, points = (right - left) / 2 * factor, None
        angle = math.radians(tilt)
        for _ in range(2):  # the second time upright: the eyes of the first say how the face is turned
            points = _five_points(photo, middle, half, angle)
            across = points[:2].mean(0) - points[2:4].mean(0)  # from the person's right eye to the left one
            angle = math.atan2(across[1], across[0])
        box = [*(middle - half), *(middle + half)]
        faces.append(Face(tuple(int(v) for v in np.rint(box)), points))  # pyright: ignore[reportArgumentType]
    # by the points: the detector knows few sizes of boxes
    return sorted(faces, key=lambda face: float(np.std(face.landmarks, 0).max()), reverse=True)


def _reduction(photo: Image.Image) -> float:
    """Return by what the sides of a photo are divided before faces are sought."""
    return max(1.0, max(photo.size) / DETECTOR_SIDE)


def _turn(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _five_points(photo: Image.Image, middle: np.ndarray, half: float, angle: float) -> np.ndarray:
    """Return the landmarks `[5, 2]` of a face in px of the photo, found in a square of twice its size."""
    linear = _turn(angle) * (half / (LANDMARK_SIDE / 4))
    place = np.concatenate([linear, (middle - linear @ np.full(2, (LANDMARK_SIDE - 1) / 2))[:, None]], 1)
    pixels = np.asarray(cut(photo, Alignment(place, LANDMARK_SIDE)))
    low, high = LANDMARK_SIDE // 4, LANDMARK_SIDE - LANDMARK_SIDE // 4
    shape = _detector_and_predictor()[1](pixels, _dlib().rectangle(low, low, high, high))
    return np.array([[point.x, point.y] for point in shape.parts()]) @ linear.T + place[:, 2]


def align(landmarks, targets, size: int) -> Alignment:
    """Return the similarity transform that brings landmarks of a base nearest to those of a photo (Umeyama 1991).

    Args:
        landmarks: `[P, 2]` in px of the photo.
        targets: the same points `[P, 2]` in px of the square.
        size: side of the square in px.

    Raises:
        ValueError: fewer than two different points.
    """
    source, target = np.asarray(targets, float), np.asarray(landmarks, float)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"landmarks {target.shape} and targets {source.shape} differ; give both as [P, 2]")
    x, y = source - source.mean(0), target - target.mean(0)
    spread = (x**2).sum()
    if spread == 0 or not (y**2).sum() > 0:
        raise ValueError("the landmarks are all at one place; give points of a face")
    u, singular, v = np.linalg.svd(y.T @ x)
    flip = np.diag([1.0, np.sign(np.linalg.det(u @ v))])
    linear = (singular @ np.diag(flip)) / spread * (u @ flip @ v)
    return Alignment(np.concatenate([linear, (target.mean(0) - linear @ source.mean(0))[:, None]], 1), size)


def cut(photo: Image.Image, alignment: Alignment) -> Image.Image:
    """Return the square of an alignment as an RGB image; outside of the photo it is filled with its reflection."""
    photo = upright(photo)
    corners = alignment.corners()
    margin = 4 * max(1.0, alignment.scale)
    left, top = (int(v) for v in np.floor(corners.min(0) - margin).clip(0, np.array(photo.size) - 2))
    right, bottom = (int(v) for v in np.ceil(corners.max(0) + margin).clip([left + 2, top + 2], photo.size))
    part = photo.crop((left, top, right, bottom))
    size = np.array(part.size)
    if alignment.scale > 1:  # an antialiased filter: every pixel of the photo counts
        part = part.resize([max(2, round(side / alignment.scale)) for side in part.size], Image.Resampling.LANCZOS)
    shrunk = np.array(part.size) / size
    matrix = alignment.matrix.copy()
    matrix[:, 2] = (matrix[:, 2] - (left, top) + 0.5) * shrunk - 0.5
    matrix[:, :2] *= shrunk[:, None]
    return _to_image(_sampled(_to_tensor(part), matrix, (alignment.size, alignment.size)))


def outlined(photo: Image.Image, alignments: Sequence[Alignment], side: int) -> Image.Image:
    """Return the upright photo, at most `side` px wide and high, with the outlines of squares drawn into it.

    Args:
        photo: an image of any mode.
        alignments: of the squares; the outline of the first is twice as thick.
        side: of the result.
    """
    photo = upright(photo)
    factor = max(1.0, max(photo.size) / side)
    small = photo.resize([max(1, round(length / factor)) for length in photo.size], Image.Resampling.BOX)
    pen, width = ImageDraw.Draw(small), max(2, max(small.size) // 160)
    for index, alignment in reversed(list(enumerate(alignments))):
        corners = [tuple((corner + 0.5) / factor - 0.5) for corner in alignment.corners()]
        thickness = width if index else 2 * width
        # a dark line around a light one can be seen on every ground
        for colour, extra in ((DARK, 2), (LIGHT, 0)):
            pen.line([*corners, *corners[:2]], fill=colour, width=thickness + extra, joint="curve")
    return small


def paste(photo: Image.Image, picture: Image.Image, alignment: Alignment) -> Image.Image:
    """Return a copy of the photo with a picture of any size at the place of the square; its border fades out.

    Args:
        photo: as it was aligned; the result is upright and in RGB.
        picture: what the generator drew in place of the square.
        alignment: of the face in the upright photo.
    """
    result = upright(photo).copy()
    corners = alignment.corners()
    left, top = (int(v) for v in np.floor(corners.min(0)).clip(0, result.size))
    right, bottom = (int(v) for v in np.ceil(corners.max(0) + 1).clip(0, result.size))
    if right <= left or bottom <= top:
        return result
    side = min(picture.width, max(8, math.ceil(alignment.size * alignment.scale)))
    picture = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    ramp = torch.arange(side, dtype=torch.float32, device="cpu")
    distance = torch.minimum(ramp, side - 1 - ramp) / max(1.0, FEATHER * side)
    fade = distance.clamp(0, 1)
    fade = fade * fade * (3 - 2 * fade)
    layers = torch.cat([_to_tensor(picture), (fade[:, None] * fade)[None, None]], 1)
    # px of the photo → px of the picture
    inverse = np.linalg.inv(np.vstack([alignment.matrix, [0, 0, 1]]))[:2]
    inverse[:, 2] += 0.5
    inverse *= side / alignment.size
    inverse[:, 2] -= 0.5
    for first in range(top, bottom, STRIP):
        last = min(bottom, first + STRIP)
        matrix = inverse.copy()
        matrix[:, 2] = inverse @ (left, first, 1)
        sampled = _sampled(layers, matrix, (last - first, right - left), border="zeros")
        share = sampled[:, 3:].clamp(0, 1)
        old = _to_tensor(result.crop((left, first, right, last)))
        result.paste(_to_image(old + share * (sampled[:, :3] - old)), (left, first))
    return result


def read_faces(
    images, resolution: int, mean_landmarks: Mapping | None, align_faces: bool = True, face: int | str = 0
) -> tuple[torch.Tensor, list[Alignment | None]]:
    """Read photos as squares whose faces lie where those of a base do.

    Without `mean_landmarks`, without the extra `photo` (with a warning) or without `align_faces` these are the centre
    squares.

    Args:
        images: a PIL image, a path or a NumPy array, or several, see `data.images.read_squares`.
        resolution: side of the squares in px.
        mean_landmarks: of the base, in px of its pictures, which have this resolution; None: no base of faces.
        align_faces: False: take centre squares.
        face: number of the face in a photo with several, from 0, the largest first; "all": a square of each.

    Returns:
        uint8 `[N, 3, resolution, resolution]`, and the alignment of each; None for a centre square.

    Raises:
        NoFace: a photo has no face.
        ValueError: a photo has no face of this number, cannot be read or is too small.
        FileNotFoundError: a path without a file.
    """
    number = int(face) if isinstance(face, Integral) and not isinstance(face, bool) else -1
    if face != "all" and number < 0:
        raise ValueError(f"face={face!r}: give a number from 0, the largest face, or 'all'")
    sources, reason = listed(images), "align=False"
    if mean_landmarks is None:
        align_faces, reason = False, "this base has no mean_landmarks"
    elif align_faces and not can_find_faces():
        align_faces, reason = False, f"the extra is missing: {PACKAGES}"
        logger.warning(f"faces are not looked for, so the centre square of a photo is used; {PACKAGES} changes that")
    if not align_faces and face not in (0, "all"):
        raise ValueError(f"face={face!r}: faces are not looked for ({reason}); leave face out")
    squares, alignments = [], []
    for index, source in enumerate(sources):  # one after the other: a decoded photo may take half a gigabyte
        photo, name = to_rgb(source), "the photo" if len(sources) == 1 else f"photo {index + 1} of {len(sources)}"
        name = Path(source).name if isinstance(source, str | os.PathLike) else name
        if not align_faces:
            squares.append(square(photo, resolution, name))
            alignments.append(None)
            continue
        if not (found := find_faces(photo)):
            raise NoFace(
                f"no face was found in {name} ({photo.width}x{photo.height} px); give a photo with an upright face, at "
                f"least {math.ceil(40 * _reduction(photo))} px wide, or align=False (--no-align) for its centre square"
            )
        if number >= len(found):
            raise ValueError(
                f"face={face}: {name} has {len(found)} face{'s' * (len(found) > 1)}; give a number below "
                f"{len(found)}, from 0, the largest"
            )
        targets = [mean_landmarks[landmark] for landmark in LANDMARKS]  # pyright: ignore[reportOptionalSubscript]
        for one in found if face == "all" else [found[number]]:
            alignments.append(align(one.landmarks, targets, resolution))
            squares.append(torch.from_numpy(np.array(cut(photo, alignments[-1]))).permute(2, 0, 1))
    return torch.stack(squares), alignments


def _sampled(x: torch.Tensor, matrix: np.ndarray, shape: tuple[int, int], border: str = "reflection") -> torch.Tensor:
    """Return `[1, C, *shape]`: pixel (i, j) is `x [1, C, H, W]` at `matrix` (x = j, y = i, 1), in px of `x`."""
    rows, columns = (torch.arange(n, dtype=torch.float64, device="cpu") for n in shape)
    m, (height, width) = torch.from_numpy(matrix), x.shape[-2:]
    across = m[0, 0] * columns + m[0, 1] * rows[:, None] + m[0, 2]
    down = m[1, 0] * columns + m[1, 1] * rows[:, None] + m[1, 2]
    grid = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], -1).to(x.dtype)[None]
    mode = "bicubic" if border == "reflection" else "bilinear"
    return F.grid_sample(x, grid, mode=mode, padding_mode=border, align_corners=False)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(torch.float32)


def _to_image(x: torch.Tensor) -> Image.Image:
    return Image.fromarray(x[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
