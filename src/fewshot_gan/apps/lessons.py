"""A training in the demo: a look is learned from uploaded pictures, and learned further later."""

import shutil
import tempfile
import uuid
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..data.datasets import load_images
from ..training import adapt
from ..training.choice import choose_for
from ..training.config import make_run
from ..utils.errors import explain
from .jobs import Captioned, Job, Stopped
from .visitors import Visitor

if TYPE_CHECKING:
    from .studio import Studio

PREVIEW_FACES, PREVIEW_STEPS = 4, 5  # training previews: number of faces, and steps between two previews
PAIR_SEARCH_STEPS = 20  # of the faces nearest to the pictures of a look, before its training


class Lesson:
    """A look of a visitor, the pictures that it is learned from, and the folder of its training.

    Args:
        studio: draws the previews and takes the finished look.
        visitor: gets the look.
        label: the visitor's name for the look.
        pictures: the pictures at the base's size.
        seed: seed of everything random.

    Attributes:
        steps: number of steps that are done.
        forgotten: whether the visitor has deleted the look; a training that is at work then ends.
    """

    def __init__(self, studio: "Studio", visitor: Visitor, label: str, pictures: Sequence[Image.Image], seed: int):
        self.studio, self.visitor, self.label, self.seed, self.steps = studio, visitor, label, seed, 0
        self._images = list(pictures)
        self.forgotten, self._at_work = False, False
        self._folder: Path | None = None  # while there is something in it
        self._method: tuple[str, dict[str, Any]] | None = None  # the chosen method and its settings

    def forget(self) -> None:
        """Delete the folder of the training, as soon as no training is at work there."""
        self.forgotten = True
        if self._folder is not None and not self._at_work:
            shutil.rmtree(self._folder, ignore_errors=True)

    def work(self, job: Job) -> None:
        """Learn until `job.steps` steps are done, or until the job is told to keep what it has."""
        studio, preview = self.studio, uuid.uuid4().hex  # a name in the pipeline that no visitor sees

        def on_step(trainer, losses):
            shown = None
            if trainer.step % PREVIEW_STEPS == 0 or trainer.step == 1:
                loaded = preview in studio.pipe.bank.adapters
                studio.pipe.load_adapter(deepcopy(trainer.result), preview, hotswap=loaded)
                shown = self._faces({preview: 1.0}, f"Step {trainer.step}, face")
            job.report(trainer.step, shown, losses)
            if self.forgotten:
                raise Stopped
            if job.keeping:
                trainer.end_now()

        if self.forgotten:
            raise Stopped
        before = self._faces({}, "Base, face")
        job.pictures = before
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(dir=studio.folder))
        pictures, run = self._folder / "pictures", self._folder / "run" / self.label
        self._at_work = True
        try:
            adapter = self._learn(job, pictures, run, on_step)
            self.steps = job.steps = job.done
            finished = studio.take(self.visitor, self, adapter, run)
        except (ValueError, OSError) as error:  # the visitor need not know where the upload lies
            raise ValueError(explain(error).replace(str(pictures), "the upload")) from error
        finally:
            if preview in studio.pipe.bank.adapters:
                studio.unload(preview)
            self._at_work = False
            if self.forgotten or not self.steps:
                self.forget()
        after = self._faces({finished: 1.0}, f"{self.label}, face")
        job.pictures = [picture for pair in zip(before, after, strict=True) for picture in pair]

    def _learn(self, job: Job, pictures: Path, run: Path, on_step) -> Any:
        """Return the trained adapter."""
        studio, steps = self.studio, job.steps
        if self._method is None:
            pictures.mkdir()
            for i, image in enumerate(self._images):
                image.save(pictures / f"{i:03d}.bmp")  # written a hundred times as fast as PNG
            choice = choose_for(studio.pipe, load_images(pictures, studio.pipe.generator.resolution))
            job.note = f"Method {choice.method}: {choice.reason}."
            options = dict(choice.options)
            if choice.method == "pairs":
                options["projection_steps"] = PAIR_SEARCH_STEPS
            self._method, self._images = (choice.method, options), []
        method, options = self._method
        options = {
            **{"base": studio.base, "data": pictures, "output_dir": run, "max_train_steps": steps},
            **{"checkpointing_steps": steps, "checkpoints_total_limit": 1, "sample_steps": steps},
            **{"report_to": "none", "seed": self.seed, "num_threads": torch.get_num_threads()},
            **options,
        }
        return adapt.run(make_run(method, **options), on_step=on_step)

    def _faces(self, look: dict[str, float], name: str) -> Captioned:
        images = self.studio.drawn([look] * PREVIEW_FACES, seed=self.seed)
        return [(f"{name} {i + 1}", image) for i, image in enumerate(images)]
