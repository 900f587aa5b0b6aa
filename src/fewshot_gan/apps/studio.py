"""What the demo does, without its page: pictures, photos and looks for several visitors with one pipeline."""

import asyncio
import logging
import re
import tempfile
import threading
import time
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..data.images import read_image, square, to_bytes
from ..hub import embedded_adapters, embedded_bases
from ..hub.cards import PUBLISHED, portable_base
from ..pipeline import FewShotGAN
from .demo_guard import private_folder
from .generation import device

logger = logging.getLogger(__name__)

PREVIEW_FACES, PREVIEW_STEPS = 4, 5  # of a training: faces, and steps from one preview to the next
PHOTO_PREVIEW_STEPS = 3
PHOTO_STEPS, LOOK_STEPS = 150, 60
PACE = {"photo": 0.35, "look": 2.8}  # seconds a step for ffhq on two cores, until one was measured here
PATIENCE = 600.0  # seconds that work goes on while nobody looks at it
OWN_LOOKS = 20  # of a visitor
VISITORS = 100  # whose looks are kept; of more the longest unseen is forgotten
DECODING = threading.Lock()  # visitors' pictures are decoded one at a time: each may take half a gigabyte
LABEL = re.compile(r"\w[\w -]{0,39}")
CHOSEN, PLAIN = "As chosen", "No look"  # of one picture
MISSING = "the demo needs the {} package, which is not installed: pip install 'fewshot_gan[demo]'"


class Stopped(Exception):
    """The visitor stopped a job, or is gone."""


class Job:
    """Work in the background that says how far it is and ends between two steps when it is told to.

    Attributes:
        steps, done: of them.
        state: "waiting", "running", "done", "stopped" or "failed".
        pictures: captions and pictures of the moment.
        history: name → values of the losses so far.
        error: one sentence, of a failed one.
    """

    def __init__(self, kind: str, steps: int):
        self.kind, self.steps, self.done, self.state, self.error = kind, steps, 0, "waiting", ""
        self.pictures: list[tuple[str, Image.Image]] = []
        self.history: dict[str, list[float]] = {}
        self.watched = time.monotonic()
        self._started: float | None = None  # when the first step was done
        self._latest = 0.0
        self._stop = threading.Event()

    @property
    def over(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and not self.over

    def stop(self) -> None:
        """End it after the step at hand."""
        self._stop.set()

    def go_on(self) -> None:
        """Asked by the work between two steps.

        Raises:
            Stopped: there shall be no other step.
        """
        if self._stop.is_set() or time.monotonic() - self.watched > PATIENCE:
            raise Stopped

    def report(self, done: int, pictures=None, losses: Mapping[str, float] | None = None) -> None:
        """Called by the work after each step; raises what `go_on` does."""
        self.done, self._latest = done, time.monotonic()
        self._started = self._started or self._latest
        self.pictures = self.pictures if pictures is None else pictures
        for name, value in (losses or {}).items():
            self.history.setdefault(name, []).append(value)
        self.go_on()

    def run(self, work: Callable[["Job"], None]) -> None:
        """Do the work; whatever it raises ends up in `state` and `error`."""
        try:
            self.go_on()
            self.state = "running"
            work(self)
            self.state = "done"
        except Stopped:
            self.state = "stopped"
        except Exception as error:  # a thread has nobody else to tell
            if not isinstance(error, ValueError | OSError | ImportError):
                logger.exception("the demo's work failed")
            self.error, self.state = sentence(error), "failed"

    def pace(self) -> float | None:
        """Seconds a step, once two are done."""
        return (self._latest - self._started) / (self.done - 1) if self.done > 1 else None

    def remaining(self) -> float | None:
        """Seconds until it is done, once two steps are."""
        pace = self.pace()
        return None if pace is None else pace * (self.steps - self.done)


@dataclass
class Visitor:
    """What belongs to one browser: nobody else sees it.

    Attributes:
        looks: name of a look as its maker calls it → its name in the pipeline.
        files: name of a look → zip file.
        photo: the cropped photo, None before one was found.
        latents: w+ `[1, num_ws, w_dim]` of the photo.
        jobs: "photo" and "look" → the latest of the kind.
    """

    looks: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    photo: Image.Image | None = None
    latents: torch.Tensor | None = None
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost."""
        return not self.looks and not self.jobs and self.photo is None


class Studio:
    """Draws, finds photos and teaches looks, for several visitors at once.

    Calls of the pipeline say which looks they want, so nothing is active between them. Of each kind one job runs at a
    time, others wait; jobs work on generators of their own, so drawing waits for no job.

    Args:
        base: embedded name, folder or Hub repo.
        adapters: sources of looks beside those embedded for the base.
        folder: of `demo_guard.private_folder`, deleted by `close`; None: a new one.
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
        self.pace = dict(PACE)
        self.measured: set[str] = set()
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.RLock()  # of what is known of visitors; held for microseconds
        self._drawing = threading.Lock()  # one at a time: each takes all cores
        self._pools = {kind: ThreadPoolExecutor(1, thread_name_prefix=f"demo-{kind}") for kind in PACE}
        self._folder = private_folder() if folder is None else folder
        self._finder: FewShotGAN | None = None

    def close(self) -> None:
        """Stop all work, wait for its steps at hand, and delete the files."""
        for visitor in self._visitors.values():
            for job in visitor.jobs.values():
                job.stop()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    # ------------------------------------------------------------------ visitors

    def enter(self, key: str | None) -> str:
        """The key of a visitor: the one given, if it looks like those given out here, else a new one."""
        return key if key is not None and re.fullmatch("[0-9a-f]{32}", str(key)) else uuid.uuid4().hex

    def visitor(self, key: str) -> Visitor:
        """What belongs to the visitor of that key."""
        with self._lock:
            visitor = self._visitors.setdefault(key, Visitor())
            self._visitors.move_to_end(key)
            empty = [old for old, other in self._visitors.items() if other.is_empty and old != key]
            owners = [old for old, other in self._visitors.items() if not other.is_empty and old != key]
            for old in empty[: max(0, len(empty) - VISITORS)]:  # opening the page costs nobody else a look
                del self._visitors[old]
            for old in owners[: max(0, len(owners) - VISITORS)]:
                if all(job.over for job in self._visitors[old].jobs.values()):
                    self._forget(self._visitors.pop(old))
        return visitor

    def _forget(self, visitor: Visitor) -> None:
        self.pipe.set_adapters([])  # every picture names its look
        self.pipe.delete_adapters(list(visitor.looks.values()))
        for file in visitor.files.values():
            file.unlink(missing_ok=True)

    def labels(self, key: str) -> list[str]:
        """Names of the looks that this visitor can choose."""
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
    ) -> list[Image.Image]:
        """A picture per look.

        Args:
            key: of the visitor.
            looks: names as this visitor knows them, with weights; none: the base.
            seed: picture i is that of `pipe(n, seed=seed)`, whatever the looks.
            psi: truncation; None: the base's own.
            latents: w+ `[1, num_ws, w_dim]`, drawn in every look instead of faces of the seed.

        Raises:
            ValueError: a look that this visitor does not have, or a number out of range.
        """
        own = self.visitor(key).looks
        for name in (name for look in looks for name in look if name not in self.looks and name not in own):
            raise ValueError(f"there is no look {name!r}; there are {', '.join(self.labels(key)) or 'none'}")
        named = [{own.get(name, name): weight for name, weight in look.items()} for look in looks]
        options = {"truncation_psi": psi, "class_labels": self.pipe.some_labels(len(looks))}
        if latents is not None:
            options = {"latents": latents.expand(len(looks), -1, -1)}
        with self._drawing:
            return self.pipe(len(looks), seed=seed, adapter_names=named, **options).images

    def photo_in(self, key: str, chosen: Mapping[str, float]) -> list[tuple[str, Image.Image]]:
        """The visitor's photo as it was given, as the base draws it, and in looks; nothing before it was found.

        Args:
            key: of the visitor.
            chosen: looks and weights. Several are blended, then shown one by one as they are; none: all that there are.
        """
        visitor = self.visitor(key)
        if visitor.latents is None:
            return []
        looks = [dict(chosen)] if chosen else []
        if len(chosen) != 1:
            looks += [{name: 1.0} for name in chosen or self.labels(key)]
        drawn = self.draw(key, [{}, *looks], latents=visitor.latents)
        captions = ["Your photo", "Found face", *map(title, looks)]
        return list(zip(captions, [visitor.photo, *drawn], strict=True))

    def squares(self, files: Sequence[str]) -> list[tuple[str, Image.Image]]:
        """Uploaded pictures, by their names, as training sees them.

        Raises:
            ValueError: one cannot be read, or is too small.
        """
        size = self.pipe.generator.resolution
        return [(Path(file).name, as_image(read_square(file, size, Path(file).name))) for file in files]

    # ------------------------------------------------------------------ jobs

    def expected(self, kind: str, steps: int) -> str:
        """How long that many steps take, in words."""
        here = "on this machine" if kind in self.measured else "on two cores"
        return f"{steps} steps take {duration(steps * self.pace[kind])} {here}"

    def find_photo(self, key: str, path: str | None, space: str = "w", steps: int = PHOTO_STEPS) -> Job:
        """Start to look for the latent of a photo.

        Raises:
            ValueError: no photo, one that cannot be read or is too small, or another is being looked for.
        """
        if path is None:
            raise ValueError("there is no photo yet: choose one first")
        photo = read_square(path, self.pipe.generator.resolution, "the photo")
        visitor = self.visitor(key)

        def work(job: Job) -> None:
            self._finder = self._finder or FewShotGAN.from_pretrained(self.base).to(device())
            cropped = as_image(photo)

            def on_step(done, drawn):
                shown = None
                if done % PHOTO_PREVIEW_STEPS == 1:
                    shown = [("Your photo", cropped), ("Found so far", as_image(to_bytes(drawn[0].cpu())))]
                job.report(done, shown)

            job.pictures = [("Your photo", cropped)]
            found = self._finder.invert(photo[None], space=space, steps=steps, progress=False, on_step=on_step)
            visitor.photo, visitor.latents = cropped, found.latents

        return self._start(visitor, Job("photo", steps), work)

    def teach(self, key: str, files: Sequence[str], label: str, steps: int = LOOK_STEPS, seed: int = 0) -> Job:
        """Start to teach a look: LFS-GAN on the uploaded pictures. Afterwards the visitor has it, and its zip file.

        Args:
            key: of the visitor.
            files: pictures.
            label: what to call the look.
            steps: of training.
            seed: of everything random.

        Raises:
            ValueError: no pictures, a name that cannot be one or is taken, or another look is being taught.
            ImportError: packages of training are missing.
        """
        try:
            from ..training import adapt
            from ..training.config import make_run
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fewshot_gan"):
                raise
            raise ImportError(MISSING.format(error.name)) from error
        visitor, label = self.visitor(key), " ".join((label or "").split())
        if not LABEL.fullmatch(label):
            raise ValueError(f"the name {label!r}: use letters, digits, spaces and dashes, at most 40, like 'my look'")
        if label in self.labels(key) or label in (CHOSEN, PLAIN):
            raise ValueError(f"there is a look {label!r} already; choose another name")
        if len(visitor.looks) >= OWN_LOOKS:
            raise ValueError(f"you have {OWN_LOOKS} looks, which is the limit; download them and start the demo anew")
        if not files:
            raise ValueError("there are no pictures yet: choose about ten of the look first")
        squares = self.squares(files)  # refused before anything starts

        def work(job: Job) -> None:
            with tempfile.TemporaryDirectory(dir=self._folder.name) as temp:
                pictures, run = Path(temp) / "pictures", Path(temp) / label
                preview, finished = uuid.uuid4().hex, uuid.uuid4().hex  # in the pipeline, which visitors do not see
                pictures.mkdir()
                for i, (_, image) in enumerate(squares):
                    image.save(pictures / f"{i:03d}.png")
                options = {"base": self.base, "data": pictures, "output_dir": run, "max_train_steps": steps}
                options |= {"checkpointing_steps": steps, "sample_steps": steps, "report_to": "none", "seed": seed}
                options["num_threads"] = torch.get_num_threads()

                def faces(looks, name):
                    with self._drawing:
                        images = self.pipe(PREVIEW_FACES, seed=seed, adapter_names=[looks] * PREVIEW_FACES).images
                    return [(f"{name} {i + 1}", image) for i, image in enumerate(images)]

                def on_step(trainer, losses):
                    shown = None
                    if trainer.step % PREVIEW_STEPS == 0 or trainer.step == 1:
                        there = preview in self.pipe.bank.adapters
                        self.pipe.load_adapter(deepcopy(trainer.result), preview, hotswap=there)
                        shown = faces({preview: 1.0}, f"Step {trainer.step}, face")
                    job.report(trainer.step, shown, losses)

                before = faces({}, "Base, face")
                job.pictures = before
                try:
                    adapter = adapt.run(make_run("lfs_gan", **options), on_step=on_step)
                except (ValueError, OSError) as error:  # it need not know where the upload lies
                    raise ValueError(sentence(error).replace(str(pictures), "the upload")) from error
                finally:
                    if preview in self.pipe.bank.adapters:
                        self.pipe.set_adapters([])
                        self.pipe.delete_adapters(preview)
                base = portable_base(adapter.config, self.base)
                adapter.register_to_config(base_model_name_or_path=base)
                adapter.save_pretrained(run)
                file = Path(tempfile.mkdtemp(dir=self._folder.name)) / f"{label}.zip"
                pack(run, file)
                self.pipe.load_adapter(adapter, finished)
                with self._lock:
                    visitor.looks[label], visitor.files[label] = finished, file
                after = faces({finished: 1.0}, f"{label}, face")
                job.pictures = [picture for pair in zip(before, after, strict=True) for picture in pair]

        return self._start(visitor, Job("look", steps), work)

    def _start(self, visitor: Visitor, job: Job, work: Callable[[Job], None]) -> Job:
        with self._lock:
            if job.kind in visitor.jobs and not visitor.jobs[job.kind].over:
                raise ValueError("one is on its way already; wait for it, or stop it first")
            visitor.jobs[job.kind] = job

        def run():
            job.run(work)
            if job.pace():
                self.pace[job.kind] = job.pace()
                self.measured.add(job.kind)

        self._pools[job.kind].submit(run)
        return job

    def stop(self, key: str, kind: str) -> None:
        """Stop the visitor's job of that kind, if one is on its way."""
        if kind in (jobs := self.visitor(key).jobs):
            jobs[kind].stop()

    async def watch(self, key: str, kind: str, every: float = 0.5) -> AsyncIterator[Job]:
        """The visitor's latest job of that kind, whenever it went on, until it is over; nothing where there is none.

        Whoever waits holds no thread and is told nothing twice, so that any number of visitors may.
        """
        job, before = self.visitor(key).jobs.get(kind), None
        while job is not None:
            job.watched, over, now = time.monotonic(), job.over, (job.state, job.done, job.stopping, id(job.pictures))
            if now != before:
                yield job
            before = now
            if over:
                return
            await asyncio.sleep(every)


# ------------------------------------------------------------------------------------------------------ small helpers


def sentence(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read_square(file: str, size: int, name: str) -> torch.Tensor:
    """An uploaded picture as uint8 `[3, size, size]`; errors call it by its own name, without its folder.

    Raises:
        ValueError: it is not there, cannot be read, or is too small.
    """
    try:
        with DECODING:
            return square(read_image(file), size, name)
    except (ValueError, OSError) as error:
        raise ValueError(sentence(error).replace(str(file), Path(file).name)) from error


def as_image(picture: torch.Tensor) -> Image.Image:
    """uint8 `[3, H, W]` → PIL."""
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def pack(folder: Path, file: Path) -> None:
    """Zip an adapter's published files, in a folder of the adapter's name."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted({path for pattern in PUBLISHED for path in folder.glob(pattern)}):
            archive.write(path, Path(folder.name) / path.relative_to(folder))


def title(look: Mapping[str, float]) -> str:
    """A look in words: `sketch`, or `sketch 0.5 + ink`."""
    return " + ".join(name if weight == 1 else f"{name} {weight:g}" for name, weight in look.items()) or "no look"


def duration(seconds: float) -> str:
    """In words, as exact as an estimate deserves."""
    if seconds < 90:
        return f"about {max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5)} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} hours"
