"""Eyes and mouth by themselves, so that a loss sees them large.

They fill a tenth of a face, so statistics of whole pictures hardly depend on them, and a look whose eyes differ from
those of the base gets spots for eyes. Here a feature network sees both eyes, and the mouth, each as a picture of its
own, as the discriminators and style losses of GFPGAN do (arXiv 2101.04061 §3.4). Differs from the paper: statistics of
the training pictures replace discriminators.

Shape legend: B images, K training images, R resolution.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .losses import total
from .statistics import moment_distance, sliced_wasserstein
from .views import SMALLEST_VIEW

SIDE = 256  # px of the width of a part as the feature network sees it
# width and height of the rectangles, in distances of the eyes' outer corners
EYES, LIPS = (1.7, 1.0), (1.2, 0.8)
MOUTH = 0.4  # how far below the nose the mouth lies, in distances of the nose from the eyes


class Part(NamedTuple):
    """A rectangle in pictures, in shares of their side; see `face_parts`."""

    left: float
    top: float
    right: float
    bottom: float

    def of(self, images: torch.Tensor, width: int = SIDE) -> torch.Tensor:
        """Return this part of pictures `[B, 3, R, R]`, `[B, 3, H, width]`; what lies outside is left out."""
        side = images.shape[-1]
        left, top, right, bottom = (round(min(1.0, max(0.0, edge)) * side) for edge in self)
        part = images[:, :, top:bottom, left:right].float()
        height = max(SMALLEST_VIEW, round(width * part.shape[-2] / part.shape[-1]))
        return F.interpolate(part, size=(height, width), mode="bilinear", antialias=True)


def eyes_and_mouth(landmarks, resolution: int) -> tuple[list[torch.Tensor], torch.Tensor, float]:
    """Return the middles of both eyes, that of the mouth, and the distance of the eyes' outer corners.

    Args:
        landmarks: `mean_landmarks` of a base, in px of pictures of `resolution`.
        resolution: of these pictures.

    Returns:
        Points (x, y) and the distance, in shares of the side.
    """
    points = {
        name: torch.tensor(point, dtype=torch.float32, device="cpu") / resolution for name, point in landmarks.items()
    }
    eyes = [(points[f"{side}_eye_outer"] + points[f"{side}_eye_inner"]) / 2 for side in ("left", "right")]
    mouth = points["nose"] + MOUTH * (points["nose"] - (eyes[0] + eyes[1]) / 2)
    return eyes, mouth, float((points["left_eye_outer"] - points["right_eye_outer"]).norm())


def face_parts(landmarks, resolution: int) -> list[Part]:
    """Return rectangles around both eyes and around the mouth.

    They leave room, since eyes and mouth of a look may lie elsewhere and be larger than those of the base.

    Args:
        landmarks, resolution: see `eyes_and_mouth`.
    """
    eyes, mouth, unit = eyes_and_mouth(landmarks, resolution)
    parts = []
    for (x, y), (width, height) in (((eyes[0] + eyes[1]) / 2, EYES), (mouth, LIPS)):
        across, down = unit * width / 2, unit * height / 2
        parts.append(Part(float(x) - across, float(y) - down, float(x) + across, float(y) + down))
    return parts


class PartStatistics:
    """Compare the features of eyes and mouth with those of the training pictures.

    Args:
        observe: function from pictures `[B, 3, H, W]` in [-1, 1] to level → feature map.
        real: the training pictures, `[K, 3, R, R]` in [-1, 1].
        landmarks: `mean_landmarks` of the base.
    """

    def __init__(self, observe: Callable[[torch.Tensor], dict[int, torch.Tensor]], real: torch.Tensor, landmarks):
        self._observe = observe
        with torch.no_grad():
            shown = [(part, part.of(real)) for part in face_parts(landmarks, real.shape[-1])]
            self._real = [(part, [*observe(picture).values(), picture]) for part, picture in shown]

    def distance(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Return the mean over parts of `moment_distance` and `sliced_wasserstein`, summed over levels.

        The sliced Wasserstein distance also compares pixels.

        Args:
            images: of the adapted generator, `[B, 3, R, R]`.
            random: CPU generator.
        """
        terms = []
        for part, real in self._real:
            picture = part.of(images)
            fake = [*self._observe(picture).values(), picture]
            pairs = [(a, b.to(a.device)) for a, b in zip(fake, real, strict=True)]
            terms += [moment_distance(a, b) for a, b in pairs[:-1]]
            terms += [sliced_wasserstein(a, b, random) for a, b in pairs]
        return total(terms) / len(self._real)
