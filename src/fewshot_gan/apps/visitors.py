"""What the demo keeps for each visitor."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from .jobs import Job

if TYPE_CHECKING:
    from .lessons import Lesson


@dataclass
class Visitor:
    """What one visitor has uploaded and made. Other visitors never see it.

    Attributes:
        looks: name of each taught look in the pipeline, by the visitor's name for it.
        files: zip file of each taught look, by the visitor's name for it.
        lesson: the latest training that was finished, which can go on, or None.
        learning: the training of the latest job, or None.
        person_file: zip file of the adapter of the person, or None.
        photo: the cropped photo, or None before its latents were found.
        latents: w+ latents `[1, num_ws, w_dim]` of the photo, or None.
        person: name in the pipeline of the adapter that draws the person of the photo, or None.
        kept: w+ latents `[num_ws, w_dim]` of the faces that the visitor keeps, by a caption.
        film: name of the latest film through them, see `demo_pictures.Pictures.keep`.
        model: w+ latents `[num_ws, w_dim]` of the face whose like are drawn, or None.
        jobs: the latest job of each kind, "photo", "look" and "film".
    """

    looks: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    lesson: "Lesson | None" = None
    learning: "Lesson | None" = None
    photo: Image.Image | None = None
    latents: torch.Tensor | None = None
    person: str | None = None
    person_file: Path | None = None
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    film: str = ""
    model: torch.Tensor | None = None
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether forgetting this visitor would lose nothing."""
        return not self.looks and not self.jobs and not self.kept and self.photo is None
