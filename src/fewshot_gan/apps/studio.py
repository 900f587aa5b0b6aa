"""The demo without its page: draw faces, find photos and teach looks for several visitors with one pipeline."""

import asyncio
import logging
import re
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from ..adapters.io import load_adapter
from ..adapters.looks import LIKENESS, Look, with_person
from ..data.datasets import load_images
from ..data.images import as_image, to_bytes
from ..faces import can_find_faces
from ..hub import embedded_adapters, embedded_bases, embedded_directions
from ..hub.cards import portable_base
from ..methods.pair import Latents
from ..pipeline import FewShotGAN
from ..utils.errors import explain
from ..utils.text import duration
from .demo_guard import private_folder
from .demo_looks import CHOSEN, PLAIN, title
from .demo_pictures import Pictures
from .generation import device, usual_batch
from .jobs import Captioned, Job
from .uploads import Photo, pack, read_photo, read_square

logger = logging.getLogger(__name__)

PREVIEW_FACES, PREVIEW_STEPS = 4, 5  # training previews: number of faces, and steps between two previews
PHOTO_PREVIEW_STEPS = 3
PHOTO_STEPS, LOOK_STEPS = 150, 60
PAIR_SEARCH_STEPS = 20  # of the faces nearest to the pictures of a look, before its training
# seconds per step on two cores for bases of up to 512 px, and larger ones; used until a job was timed here
PACE, LARGE_PACE = {"photo": 0.35, "look": 2.8}, {"photo": 0.8, "look": 6.0}
OWN_LOOKS = 20  # most looks that one visitor can teach
VISITORS = 100  # most visitors whose looks are kept; beyond that the one unseen for longest is forgotten
LABEL = re.compile(r"\w[\w -]{0,39}")
MISSING = "the demo needs the {} package, which is not installed: pip install 'fewshot_gan[demo]'"


@dataclass
class Visitor:
    """What one visitor has uploaded and made. Other visitors never see it.

    Attributes:
        looks: name of each taught look in the pipeline, by the visitor's name for it.
        files: zip file of each taught look, by the visitor's name for it.
        person_file: zip file of the adapter of the person, or None.
        photo: the cropped photo, or None before its latents were found.
        latents: w+ latents `[1, num_ws, w_dim]` of the photo, or None.
        person: name in the pipeline of the adapter that draws the person of the photo, or None.
        jobs: the latest job of each kind, "photo" and "look".
    """

    looks: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    photo: Image.Image | None = None
    latents: torch.Tensor | None = None
    person: str | None = None
    person_file: Path | None = None
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether forgetting this visitor would lose nothing."""
        return not self.looks and not self.jobs and self.photo is None


class Studio:
    """Draw faces, find photos and teach looks for several visitors at once.

    Every pipeline call names its looks, so no look stays active between calls. One job of each kind runs at a time;
    further ones wait. Jobs have generators of their own, so drawing never waits for a job.

    Args:
        base: name of an embedded base, folder or Hub repo.
        adapters: folders or Hub repos of looks, besides those embedded for the base.
        folder: private folder from `demo_guard.private_folder`, which `close` deletes; None creates one.
    """

    def __init__(
        self,
        base: str = "ffhq",
        adapters: Sequence[str] = (),
        folder: tempfile.TemporaryDirectory | None = None,
    ):
        self.pipe = FewShotGAN.from_pretrained(base).to(device())
        sources = list(embedded_adapters(base)) if base in embedded_bases() else []
        for source in [*sources, *adapters]:
            self.pipe.load_adapter(source)
        self.base, self.looks = base, self.pipe.loaded_adapters()
        self.pipe.set_adapters([])
        self.directions = self.pipe.directions() if embedded_directions(self.pipe.bank.fingerprint()) else None
        self.pace = dict(PACE if self.pipe.generator.resolution <= 512 else LARGE_PACE)
        self.measured: set[str] = set()
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.RLock()  # guards the visitors; held for microseconds
        self._drawing = threading.Lock()  # one pipeline call at a time: each takes all cores
        self._pools = {kind: ThreadPoolExecutor(1, thread_name_prefix=f"demo-{kind}") for kind in PACE}
        self._folder = private_folder() if folder is None else folder
        self.pictures = Pictures(Path(self._folder.name) / "pictures")
        self._finder: FewShotGAN | None = None
        self._closing = False

    def close(self) -> None:
        """Stop all jobs, wait for their current steps and for pictures that are being drawn, and delete the files.

        A process that ends while one of its threads draws would abort.
        """
        self._closing = True
        with self._drawing:
            pass
        for visitor in self._visitors.values():
            for job in visitor.jobs.values():
                job.stop()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    # ------------------------------------------------------------------ visitors

    def enter(self, key: str | None) -> str:
        """Return the visitor's key: the given one if it has the form of our keys, else a new one."""
        return key if key is not None and re.fullmatch("[0-9a-f]{32}", str(key)) else uuid.uuid4().hex

    def visitor(self, key: str) -> Visitor:
        """Return the data of the visitor with this key; create it on the first visit."""
        with self._lock:
            visitor = self._visitors.setdefault(key, Visitor())
            self._visitors.move_to_end(key)
            empty = [old for old, other in self._visitors.items() if other.is_empty and old != key]
            owners = [old for old, other in self._visitors.items() if not other.is_empty and old != key]
            for old in empty[: max(0, len(empty) - VISITORS)]:  # counted apart: opening the page costs nobody a look
                del self._visitors[old]
            for old in owners[: max(0, len(owners) - VISITORS)]:
                if all(job.over for job in self._visitors[old].jobs.values()):
                    self._forget(self._visitors.pop(old))
        return visitor

    def _forget(self, visitor: Visitor) -> None:
        self._unload(*visitor.looks.values(), visitor.person)
        for file in (*visitor.files.values(), visitor.person_file):
            if file is not None:
                file.unlink(missing_ok=True)

    def _unload(self, *names: str | None) -> None:
        self.pipe.set_adapters([])  # an active adapter cannot be deleted
        self.pipe.delete_adapters([name for name in names if name])

    def labels(self, key: str) -> list[str]:
        """Return the names of the looks that this visitor can choose."""
        return [*self.looks, *self.visitor(key).looks]

    # ------------------------------------------------------------------ pictures

    def draw(
        self,
        key: str,
        looks: Sequence[Mapping[str, float]],
        *,
        seed: int = 0,
        psi: float | None = None,
        latents: torch.Tensor | None = None,
        person: str | None = None,
        likeness: float = LIKENESS,
        edits: Mapping[str, float] | None = None,
    ) -> list[Image.Image]:
        """Draw one picture per look.

        Args:
            key: key of the visitor.
            looks: weights of the looks of each picture, by this visitor's names; an empty one draws the base.
            seed: seed of the faces: picture i is that of `pipe(n, seed=seed)`, whatever the looks.
            psi: truncation ψ; None uses the base's own.
            latents: w+ latents `[1, num_ws, w_dim]` to draw in every look instead of the seed's faces.
            person: name in the pipeline of an adapter that acts in every look.
            likeness: its weight beside a whole look.
            edits: strength of each of `directions` that changes the seed's faces.

        Raises:
            ValueError: this visitor does not have one of the looks, or a number is out of range.
        """
        own = self.visitor(key).looks
        for name in (name for look in looks for name in look if name not in self.looks and name not in own):
            raise ValueError(f"there is no look {name!r}; there are {', '.join(self.labels(key)) or 'none'}")
        named = [{own.get(name, name): weight for name, weight in look.items()} for look in looks]
        named = [with_person(look, person, likeness) for look in named] if person else named
        if latents is not None:
            return self._pictures(named, seed=seed, latents=latents.expand(len(looks), -1, -1))
        if self.directions is not None and any((edits or {}).values()):
            with self._drawing, self.pipe.bank.using({}):
                faces = self.pipe.latents(len(looks), seed=seed)
                edited = self.pipe.edit(faces, edits or {}, self.directions, truncation_psi=psi)
            return self._pictures(named, seed=seed, latents=edited)
        return self._pictures(named, seed=seed, truncation_psi=psi, class_labels=self.pipe.some_labels(len(looks)))

    def _pictures(self, adapter_names: Sequence[Look], **options: Any) -> list[Image.Image]:
        """Return one PIL image per entry of `adapter_names`; nobody else draws at the same time."""
        options["batch_size"] = usual_batch(self.pipe.generator.resolution)
        with self._drawing:
            if self._closing:
                raise ValueError("the demo is being closed; start it again")
            images = self.pipe(len(adapter_names), adapter_names=adapter_names, **options).images
        return cast(list[Image.Image], images)  # the pipeline's default output type

    def photo_in(self, key: str, chosen: Mapping[str, float], likeness: float = LIKENESS) -> Captioned:
        """Return the visitor's photo, the face found for it, and that face in looks; empty before a face was found.

        Args:
            key: key of the visitor.
            chosen: weights of looks. Several are shown blended, then each alone at full weight; none shows every look.
            likeness: weight of the person beside a whole look.
        """
        visitor = self.visitor(key)
        with self._lock:
            photo, latents, person = visitor.photo, visitor.latents, visitor.person
        if photo is None or latents is None:
            return []
        looks = [dict(chosen)] if chosen else []
        if len(chosen) != 1:
            looks += [{name: 1.0} for name in chosen or self.labels(key)]
        try:
            drawn = self.draw(key, [{}, *looks], latents=latents, person=person, likeness=likeness)
        except ValueError:
            if visitor.person == person:
                raise
            return self.photo_in(key, chosen, likeness)  # a new photo was found while this drawing waited
        captions = ["Your photo", "Found face", *map(title, looks)]
        return list(zip(captions, [photo, *drawn], strict=True))

    def squares(self, files: Sequence[str]) -> Captioned:
        """Return the names of uploaded pictures and the pictures as training sees them: square, at the base's size.

        Raises:
            ValueError: a picture cannot be read or is too small.
        """
        size = self.pipe.generator.resolution
        return [(Path(file).name, as_image(read_square(file, size, Path(file).name))) for file in files]

    # ------------------------------------------------------------------ jobs

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
                with tempfile.TemporaryDirectory(dir=self._folder.name) as temp:
                    run = Path(temp) / "me"
                    learned = self._finder.personalize(square, "", latents=found.latents, output_dir=run, **options)
                    file = self._packed(learned, run)
                self.pipe.load_adapter(learned, person)
            with self._lock:
                visitor.photo, visitor.latents = as_image(photo.square), found.latents
                visitor.person, visitor.person_file = person, file
            self._unload(old)
            if old_file is not None:
                old_file.unlink(missing_ok=True)

        return self._start(visitor, Job("photo", steps), work)

    @property
    def aligns(self) -> bool:
        """Whether faces in photos are found and brought to where the base draws faces."""
        return self.pipe.config.mean_landmarks is not None and can_find_faces()

    def teach(self, key: str, files: Sequence[str], label: str, steps: int = LOOK_STEPS, seed: int = 0) -> Job:
        """Start to teach a look by the method that suits its pictures.

        When the job is done, the visitor has the look and its zip file.

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
            from ..training import adapt
            from ..training.choice import choose_for
            from ..training.config import make_run
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fewshot_gan"):
                raise
            raise ImportError(MISSING.format(error.name)) from error
        visitor, label = self.visitor(key), self._free_label(key, label)
        if not files:
            raise ValueError("there are no pictures yet: choose about ten of the look first")
        squares = self.squares(files)  # refuse bad pictures before anything starts

        def work(job: Job) -> None:
            with tempfile.TemporaryDirectory(dir=self._folder.name) as temp:
                pictures, run = Path(temp) / "pictures", Path(temp) / label
                preview, finished = uuid.uuid4().hex, uuid.uuid4().hex  # names in the pipeline; visitors never see them
                pictures.mkdir()
                for i, (_, image) in enumerate(squares):
                    image.save(pictures / f"{i:03d}.bmp")  # written a hundred times as fast as PNG
                options = {"base": self.base, "data": pictures, "output_dir": run, "max_train_steps": steps}
                options |= {"checkpointing_steps": steps, "sample_steps": steps, "report_to": "none", "seed": seed}
                options["num_threads"] = torch.get_num_threads()

                def faces(looks, name):
                    images = self._pictures([looks] * PREVIEW_FACES, seed=seed)
                    return [(f"{name} {i + 1}", image) for i, image in enumerate(images)]

                def on_step(trainer, losses):
                    shown = None
                    if trainer.step % PREVIEW_STEPS == 0 or trainer.step == 1:
                        loaded = preview in self.pipe.bank.adapters
                        self.pipe.load_adapter(deepcopy(trainer.result), preview, hotswap=loaded)
                        shown = faces({preview: 1.0}, f"Step {trainer.step}, face")
                    job.report(trainer.step, shown, losses)

                before = faces({}, "Base, face")
                job.pictures = before
                try:
                    loaded = load_images(pictures, self.pipe.generator.resolution)
                    choice = choose_for(self.pipe, loaded)
                    job.note = f"Method {choice.method}: {choice.reason}."
                    if choice.method == "pairs":
                        options["projection_steps"] = PAIR_SEARCH_STEPS
                    adapter: Any = adapt.run(make_run(choice.method, **options, **choice.options), on_step=on_step)
                except (ValueError, OSError) as error:  # the visitor need not know where the upload lies
                    raise ValueError(explain(error).replace(str(pictures), "the upload")) from error
                finally:
                    if preview in self.pipe.bank.adapters:
                        self._unload(preview)
                file = self._packed(adapter, run)
                self.pipe.load_adapter(adapter, finished)
                with self._lock:
                    visitor.looks[label], visitor.files[label] = finished, file
                after = faces({finished: 1.0}, f"{label}, face")
                job.pictures = [picture for pair in zip(before, after, strict=True) for picture in pair]

        return self._start(visitor, Job("look", steps), work)

    def _free_label(self, key: str, label: str | None) -> str:
        """Return the name of a new look of a visitor, without needless spaces.

        Raises:
            ValueError: it is invalid or taken, or the visitor has too many looks.
        """
        label = " ".join((label or "").split())
        if not LABEL.fullmatch(label):
            raise ValueError(f"the name {label!r}: use letters, digits, spaces and dashes, at most 40, like 'my look'")
        if label in self.labels(key) or label in (CHOSEN, PLAIN):
            raise ValueError(f"there is a look {label!r} already; choose another name")
        if len(self.visitor(key).looks) >= OWN_LOOKS:
            raise ValueError(f"you have {OWN_LOOKS} looks, which is the limit; delete one first")
        return label

    def bring_back(self, key: str, file: str) -> str:
        """Give the visitor a look from the zip file of an earlier visit; return its name, that of the file.

        Raises:
            ValueError: the file holds no adapter, one of another base or of a person, or its name is taken.
        """
        label = self._free_label(key, re.sub(r"[^\w -]", " ", Path(file).stem))
        try:
            adapter = load_adapter(file)
        except (ValueError, OSError) as error:
            raise ValueError(explain(error).replace(str(file), Path(file).name)) from error
        if adapter.latents is not None:
            raise ValueError(f"{Path(file).name} holds a person, not a look; load it with load_adapter in Python")
        name = uuid.uuid4().hex
        self.pipe.load_adapter(adapter, name)
        packed = self._packed(adapter, Path(tempfile.mkdtemp(dir=self._folder.name)) / label)
        with self._lock:
            self.visitor(key).looks[label], self.visitor(key).files[label] = name, packed
        return label

    def delete(self, key: str, labels: Sequence[str]) -> list[str]:
        """Delete those of `labels` that are looks of this visitor; return their names."""
        visitor = self.visitor(key)
        with self._lock:
            gone = {label: visitor.looks.pop(label) for label in labels if label in visitor.looks}
            for label in gone:
                visitor.files.pop(label, None)
        with self._drawing:
            self._unload(*gone.values())
        return list(gone)

    def _packed(self, adapter: Any, folder: Path) -> Path:
        """Save an adapter in `folder` and return a zip file of it, named like the folder."""
        adapter.register_to_config(base_model_name_or_path=portable_base(adapter.config, self.base))
        adapter.save_pretrained(folder)
        file = Path(tempfile.mkdtemp(dir=self._folder.name)) / f"{folder.name}.zip"
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

    def stop(self, key: str, kind: str) -> None:
        """Stop the visitor's job of this kind, if there is one."""
        if kind in (jobs := self.visitor(key).jobs):
            jobs[kind].stop()

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
