"""The demo without its page: draw faces, find photos and teach looks for several visitors with one pipeline."""

import asyncio
import re
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.io import load_adapter
from ..data.images import as_image, to_bytes
from ..faces import can_find_faces
from ..hub.cards import portable_base
from ..methods.pair import Latents
from ..pipeline import FewShotGAN
from ..utils.errors import explain
from ..utils.text import duration
from .demo_looks import CHOSEN, PLAIN
from .drawing import Drawing
from .generation import device
from .jobs import Job, Stopped
from .uploads import Photo, discard, pack, read_photo
from .visitors import Visitor

if TYPE_CHECKING:
    from .lessons import Lesson

PHOTO_PREVIEW_STEPS = 3
PHOTO_STEPS, LOOK_STEPS, MORE_STEPS = 150, 60, 60
# seconds per step on two cores for bases of up to 512 px, and larger ones; used until a job was timed here
PACE = {"photo": 0.35, "look": 2.8, "film": 0.1}
LARGE_PACE = {"photo": 0.8, "look": 6.0, "film": 0.2}
OWN_LOOKS = 20  # most looks that one visitor can teach
LABEL = re.compile(r"\w[\w -]{0,39}")
MISSING = "the demo needs the {} package, which is not installed: pip install 'fewshot_gan[demo]'"


class Studio(Drawing):
    """Draw faces, find photos and teach looks for several visitors at once.

    One job of each kind runs at a time; further ones wait. Jobs have generators of their own, so drawing never waits
    for a job.

    Args:
        base, adapters, folder: see `Drawing`.
    """

    def __init__(
        self,
        base: str = "ffhq",
        adapters: Sequence[str] = (),
        folder: tempfile.TemporaryDirectory | None = None,
    ):
        super().__init__(base, adapters, folder)
        self.pace = dict(PACE if self.pipe.generator.resolution <= 512 else LARGE_PACE)
        self.measured: set[str] = set()
        self._pools = {kind: ThreadPoolExecutor(1, thread_name_prefix=f"demo-{kind}") for kind in PACE}
        self._finder: FewShotGAN | None = None

    def close(self) -> None:
        """Stop all jobs, wait for their current steps and for pictures that are being drawn, and delete the files."""
        self._closing = True
        for visitor in self._visitors.values():
            for job in visitor.jobs.values():
                job.stop()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        super().close()

    def expected(self, kind: str, steps: int) -> str:
        """Return in words how long `steps` steps of a job of this kind take."""
        here = "on this machine" if kind in self.measured else "on two cores"
        return f"{steps} steps take {duration(steps * self.pace[kind])} {here}"

    def look_at(self, path: str | None) -> Photo:
        """Read an uploaded photo and find its faces.

        Raises:
            ValueError: there is no photo, it cannot be read, is too small or shows no face.
        """
        if path is None:
            raise ValueError("there is no photo yet: choose one first")
        landmarks = self.pipe.config.mean_landmarks if self.aligns else None
        return read_photo(path, self.pipe.generator.resolution, landmarks)

    def find_photo(self, key: str, path: str | None, space: str = "w", steps: int = PHOTO_STEPS) -> Job:
        """Start to find the latents of a photo, or to learn the person on it.

        Args:
            key: key of the visitor.
            path: uploaded photo, or None if there is none.
            space: latent space, "w" or "w+", see `FewShotGAN.invert`; or "person": a latent w, and an adapter of the
                person, see `FewShotGAN.personalize`.
            steps: number of optimisation steps; for a person, a third of them search the latent.

        Raises:
            ValueError: as of `look_at`, or this visitor's last search still runs.
        """
        photo, is_person = self.look_at(path), space == "person"
        visitor = self.visitor(key)

        def work(job: Job) -> None:
            self._finder = self._finder or FewShotGAN.from_pretrained(self.base).to(device())
            square = photo.square[None]

            def shown(drawn):
                return [("Your photo", photo.shown), ("Found so far", as_image(to_bytes(drawn[0].cpu())))]

            def on_step(done, drawn):
                job.report(done, shown(drawn) if done % PHOTO_PREVIEW_STEPS == 1 else None)

            @torch.no_grad()
            def on_training_step(trainer, losses):
                is_due, pivots = trainer.step % PHOTO_PREVIEW_STEPS == 0, Latents(w=trainer.objective.pivots)
                picture = shown(trainer.pair.adapted(pivots).images) if is_due else None
                job.report(searching + trainer.step, picture)

            job.pictures, options = [("Your photo", photo.shown)], {"progress": False, "on_step": on_step}
            searching = max(1, steps // 3) if is_person else steps
            found = self._finder.invert(square, space="w" if is_person else space, steps=searching, **options)
            person, file, old, old_file = None, None, visitor.person, visitor.person_file
            if is_person and steps > searching:
                person, options = uuid.uuid4().hex, {"steps": steps - searching, "on_step": on_training_step}
                with tempfile.TemporaryDirectory(dir=self.folder) as temp:
                    run = Path(temp) / "me"
                    learned = self._finder.personalize(square, "", latents=found.latents, output_dir=run, **options)
                    file = self.packed(learned, run)
                self.pipe.load_adapter(learned, person)
            with self._lock:
                visitor.photo, visitor.latents = as_image(photo.square), found.latents
                visitor.person, visitor.person_file = person, file
            self.unload(old)
            discard(old_file)

        return self._start(visitor, Job("photo", steps), work)

    def make_film(self, key: str, chosen: Mapping[str, float]) -> Job:
        """Start to make a film through the faces that the visitor keeps; see `Drawing.film` for arguments and errors.

        Raises:
            ValueError: also if this visitor's last film is still being made.
        """
        visitor, (frames, make) = self.visitor(key), self.film(key, chosen)

        def work(job: Job) -> None:
            visitor.film = self.pictures.keep(make(job.report), "mp4")

        return self._start(visitor, Job("film", frames), work)

    def empty(self, key: str) -> None:
        """Forget the faces that the visitor keeps and the film through them; stop one that is being made."""
        self.stop(key, "film")
        visitor = self.visitor(key)
        with self._lock:
            visitor.jobs.pop("film", None)
            visitor.kept.clear()

    @property
    def aligns(self) -> bool:
        """Whether faces in photos are found and brought to where the base draws faces."""
        return self.pipe.config.mean_landmarks is not None and can_find_faces()

    def teach(self, key: str, files: Sequence[str], label: str, steps: int = LOOK_STEPS, seed: int = 0) -> Job:
        """Start to teach a look by the method that suits its pictures.

        When the job is done, or was stopped to keep what it has, the visitor has the look and its zip file.

        Args:
            key: key of the visitor.
            files: uploaded pictures.
            label: the visitor's name for the look.
            steps: number of training steps.
            seed: seed of everything random.

        Raises:
            ValueError: there are no pictures, the name is invalid or taken, the visitor has too many looks, or this
                visitor's last training is still running.
            ImportError: packages for training are missing.
        """
        try:
            from .lessons import Lesson
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fewshot_gan"):
                raise
            raise ImportError(MISSING.format(error.name)) from error
        visitor, label = self.visitor(key), self._free_label(key, label)
        if not files:
            raise ValueError("there are no pictures yet: choose about ten of the look first")
        squares = [image for _, image in self.squares(files)]  # refuse bad pictures before anything starts
        return self._begin(Lesson(self, visitor, label, squares, seed), steps)

    def teach_more(self, key: str, steps: int = MORE_STEPS) -> Job:
        """Start to go on with the visitor's latest look, by the same method, from where its training ended.

        Raises:
            ValueError: the visitor has taught no look, or has deleted it, or a training is still running.
        """
        visitor = self.visitor(key)
        if (lesson := visitor.lesson) is None:
            raise ValueError("there is no look of yours to go on with: teach one first")
        return self._begin(lesson, steps)

    def _begin(self, lesson: "Lesson", steps: int) -> Job:
        """Start to learn a look for so many steps more."""
        job = self._start(lesson.visitor, Job("look", lesson.steps + steps, lesson.steps), lesson.work)
        lesson.visitor.learning = lesson
        return job

    def take(self, visitor: Visitor, lesson: "Lesson", adapter: Any, run: Path) -> str:
        """Give a visitor the look of a lesson, in place of what it had taught before; return its name in the pipeline.

        Args:
            visitor: the visitor.
            lesson: what it was learned in.
            adapter: the look.
            run: folder of the training.
        """
        file, name, label = self.packed(adapter, run), uuid.uuid4().hex, lesson.label
        self.pipe.load_adapter(adapter, name)
        with self._drawing, self._lock:
            if lesson.forgotten:
                self.unload(name)
                discard(file)
                raise Stopped
            old, old_file, ended = visitor.looks.get(label), visitor.files.get(label), visitor.lesson
            visitor.looks[label], visitor.files[label], visitor.lesson = name, file, lesson
            self.unload(old)
        discard(old_file)
        if ended is not None and ended is not lesson:
            ended.forget()
        return name

    def _free_label(self, key: str, label: str | None) -> str:
        """Return the name of a new look of a visitor, without needless spaces.

        Raises:
            ValueError: it is invalid or taken, or the visitor has too many looks.
        """
        label = " ".join((label or "").split())
        if not LABEL.fullmatch(label):
            raise ValueError(f"the name {label!r}: use letters, digits, spaces and dashes, at most 40, like 'my look'")
        learning, job = self.visitor(key).learning, self.visitor(key).jobs.get("look")
        if learning is not None and job is not None and not job.over and learning.label == label:
            raise ValueError(f"a look {label!r} is being learned; choose another name, or wait until it is done")
        if label in self.labels(key) or label in (CHOSEN, PLAIN):
            raise ValueError(f"there is a look {label!r} already; choose another name")
        if len(self.visitor(key).looks) >= OWN_LOOKS:
            raise ValueError(f"you have {OWN_LOOKS} looks, which is the limit; delete one first")
        return label

    def bring_back(self, key: str, file: str | None) -> str:
        """Give the visitor a look from the zip file of an earlier visit; return its name, that of the file.

        Raises:
            ValueError: there is no file, it holds no adapter, one of another base or of a person, or its name is taken.
        """
        if not file:
            raise ValueError("choose the zip file of a look")
        label = self._free_label(key, re.sub(r"[^\w -]", " ", Path(file).stem))
        try:
            adapter = load_adapter(file)
        except (ValueError, OSError) as error:
            raise ValueError(explain(error).replace(str(file), Path(file).name)) from error
        if adapter.latents is not None:
            raise ValueError(f"{Path(file).name} holds a person, not a look; load it with load_adapter in Python")
        name = uuid.uuid4().hex
        self.pipe.load_adapter(adapter, name)
        with tempfile.TemporaryDirectory(dir=self.folder) as temp:
            packed = self.packed(adapter, Path(temp) / label)
        with self._lock:
            self.visitor(key).looks[label], self.visitor(key).files[label] = name, packed
        return label

    def delete(self, key: str, labels: Sequence[str]) -> list[str]:
        """Delete those of `labels` that are looks of this visitor; return their names."""
        visitor = self.visitor(key)
        with self._lock:
            gone = {label: visitor.looks.pop(label) for label in labels if label in visitor.looks}
            for label in gone:
                discard(visitor.files.pop(label))
            lesson = visitor.lesson
            if lesson is not None and lesson.label in gone:
                visitor.lesson = None
                lesson.forget()  # ends its training, if it goes on
        with self._drawing:
            self.unload(*gone.values())
        return list(gone)

    def packed(self, adapter: Any, folder: Path) -> Path:
        """Save an adapter in `folder` and return a zip file of it, named like the folder."""
        adapter.register_to_config(base_model_name_or_path=portable_base(adapter.config, self.base))
        adapter.save_pretrained(folder)
        file = Path(tempfile.mkdtemp(dir=self.folder)) / f"{folder.name}.zip"
        pack(folder, file)
        return file

    def _start(self, visitor: Visitor, job: Job, work: Callable[[Job], None]) -> Job:
        with self._lock:
            if job.kind in visitor.jobs and not visitor.jobs[job.kind].over:
                raise ValueError("a job is already running; wait for it, or stop it first")
            visitor.jobs[job.kind] = job

        def run():
            job.run(work)
            if pace := job.pace():
                self.pace[job.kind] = pace
                self.measured.add(job.kind)

        self._pools[job.kind].submit(run)
        return job

    def stop(self, key: str, kind: str, keep: bool = False) -> None:
        """Stop the visitor's job of this kind, if there is one; if `keep`, with what it has made so far."""
        if kind in (jobs := self.visitor(key).jobs):
            jobs[kind].stop(keep)

    async def watch(self, key: str, kind: str, every: float = 0.5) -> AsyncIterator[Job]:
        """Yield the visitor's latest job of this kind, if any, each time it has changed, until it is over.

        A watcher holds no thread while it waits for `every` seconds, so any number of visitors can watch.
        """
        job, before = self.visitor(key).jobs.get(kind), None
        while job is not None:
            job.watched, over = time.monotonic(), job.over
            now = job.state, job.done, job.stopping, job.note, id(job.pictures)
            if now != before:
                yield job
            before = now
            if over:
                return
            await asyncio.sleep(every)
