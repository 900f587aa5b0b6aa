"""Draw the demo's pictures for several visitors with one pipeline: faces, photos in looks, kept faces, a film."""

import re
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image

from ..adapter_loader import free_name
from ..adapters.looks import LIKENESS, Look, with_person
from ..data.grids import TILE, shrink
from ..data.images import as_image
from ..hub import embedded_adapters, embedded_bases, embedded_directions
from ..models.labels import unlike_plain_styles
from ..pipeline import FewShotGAN
from .demo_guard import private_folder
from .demo_looks import title
from .demo_pictures import Pictures
from .generation import device, usual_batch
from .jobs import Captioned
from .uploads import discard, read_square
from .videos import check_video, write_video
from .visitors import Visitor

VISITORS = 100  # most visitors whose looks are kept; beyond that the one unseen for longest is forgotten
KEPT_FACES = 12  # most faces that one visitor can keep
FRAMES, FPS = 20, 24  # of a film: frames from one face to the next, and frames a second


class Faces(NamedTuple):
    """Which faces are drawn.

    Attributes:
        seed: picture i is that of `pipe(n, seed=seed)`, whatever the looks.
        psi: truncation ψ; None: the base's own.
        edits: strength of each of the base's directions.
        alike: draw faces like the visitor's model instead, see `Drawing.choose_model`.
    """

    seed: int = 0
    psi: float | None = None
    edits: Mapping[str, float] = {}
    alike: bool = False


FIRST = Faces()  # those of seed 0


class Drawing:
    """Draw for several visitors at once. Every pipeline call names its looks, so no look stays active between calls.

    Args:
        base: name of an embedded base, folder or Hub repo.
        adapters: folders or Hub repos of looks, besides those embedded for the base. One whose name is taken gets a
            number: "sketch-2".
        folder: private folder from `demo_guard.private_folder`, which `close` deletes; None creates one.

    Raises:
        ValueError: an adapter is a person, or cannot be loaded.
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
            name = free_name(source, self.pipe.loaded_adapters())
            self.pipe.load_adapter(source, name)
            if self.pipe.bank.adapters[name].latents is not None:
                raise ValueError(
                    f"{source} is a person, whom the page would show to every visitor as a look; draw the person with "
                    "fewshot-gan generate --person"
                )
        self.base, self.looks = base, self.pipe.loaded_adapters()
        self.pipe.set_adapters([])
        self.directions = self.pipe.directions() if embedded_directions(self.pipe.bank.fingerprint()) else None
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.RLock()  # guards the visitors; held for microseconds
        self._drawing = threading.RLock()  # one pipeline call at a time: each takes all cores
        self._folder = private_folder() if folder is None else folder
        self.folder = self._folder.name
        self.pictures = Pictures(Path(self.folder) / "pictures")
        self._closing = False

    def close(self) -> None:
        """Wait for pictures that are being drawn, and delete the files. A process that ends meanwhile would abort."""
        self._closing = True
        with self._drawing:
            pass
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
                    self.forget(self._visitors.pop(old))
        return visitor

    def forget(self, visitor: Visitor) -> None:
        self.unload(*visitor.looks.values(), visitor.person)
        for file in (*visitor.files.values(), visitor.person_file):
            discard(file)
        if visitor.lesson is not None:
            visitor.lesson.forget()

    def unload(self, *names: str | None) -> None:
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
        faces: Faces = FIRST,
        *,
        latents: torch.Tensor | None = None,
        person: str | None = None,
        likeness: float = LIKENESS,
    ) -> list[Image.Image]:
        """Draw one picture per look.

        Args:
            key: key of the visitor.
            looks: weights of the looks of each picture, by this visitor's names; an empty one draws the base.
            faces: which faces.
            latents: w+ latents `[N, num_ws, w_dim]` to draw instead, one for each look, or one for all.
            person: name in the pipeline of an adapter that acts in every look.
            likeness: its weight beside a whole look.

        Raises:
            ValueError: this visitor does not have one of the looks, or a number is out of range.
        """
        with self._drawing:  # also while names are looked up: a look that is taught further gets another name
            named = [self.named(key, look) for look in looks]
            named = [with_person(look, person, likeness) for look in named] if person else named
            if latents is None and (faces.alike or any(faces.edits.values())):
                latents = self.latents_of(key, len(looks), faces)
            if latents is not None:
                return self.drawn(named, seed=faces.seed, latents=latents.expand(len(looks), -1, -1))
            labels = self.pipe.some_labels(len(looks))
            return self.drawn(named, seed=faces.seed, truncation_psi=faces.psi, class_labels=labels)

    def named(self, key: str, look: Mapping[str, float]) -> Look:
        """Return the weights of a look by its names in the pipeline; `look` has those that this visitor sees.

        Raises:
            ValueError: this visitor does not have one of them.
        """
        own = self.visitor(key).looks
        for name in look:
            if name not in self.looks and name not in own:
                raise ValueError(f"there is no look {name!r}; there are {', '.join(self.labels(key)) or 'none'}")
        return {own.get(name, name): weight for name, weight in look.items()}

    def latents_of(self, key: str, num: int, faces: Faces) -> torch.Tensor:
        """Return w+ `[num, num_ws, w_dim]` of faces, as the base maps them.

        Raises:
            ValueError: faces like one that the visitor has not chosen, or a number out of range.
        """
        with self._drawing, self.pipe.bank.using({}):
            if not faces.alike:
                latents = self.pipe.map_latents(self.pipe.latents(num, seed=faces.seed), truncation_psi=faces.psi)
            elif (model := self.visitor(key).model) is None:
                raise ValueError("choose a face first whose like are to be drawn")
            else:
                latents = self.pipe.variations(model[None], num, seed=faces.seed)
            if self.directions is not None and any(faces.edits.values()):
                latents = self.pipe.edit(latents, faces.edits, self.directions)
        return latents

    def drawn(self, adapter_names: Sequence[Look], **options: Any) -> list[Image.Image]:
        """Return one PIL image per entry of `adapter_names`; nobody else draws at the same time."""
        options["batch_size"] = usual_batch(self.pipe.generator.resolution)
        with self._drawing:
            self._refuse_closing()
            images = self.pipe(len(adapter_names), adapter_names=adapter_names, **options).images
        return cast(list[Image.Image], images)  # the pipeline's default output type

    def _refuse_closing(self) -> None:
        if self._closing:
            raise ValueError("the demo is being closed; start it again")

    # ------------------------------------------------------------------ kept faces

    @property
    def keeps_faces(self) -> bool:
        """Whether faces can be kept and varied: the base has styles, and no classes."""
        return unlike_plain_styles(self.pipe.generator) is None

    def _latents_of_one(self, key: str, number: int, num: int, faces: Faces) -> torch.Tensor:
        if not 0 <= number < num:
            raise ValueError(f"there is no face {number + 1} of {num}; click a picture")
        return self.latents_of(key, num, faces)[number]

    def choose_model(self, key: str, number: int, num: int, faces: Faces) -> None:
        """Make face `number` of `num` the one whose like `Faces.alike` draws."""
        self.visitor(key).model = self._latents_of_one(key, number, num, faces)

    def keep(self, key: str, number: int, num: int, faces: Faces) -> str:
        """Keep face `number` of `num`; return its caption. A face that is kept already stays as it is.

        Raises:
            ValueError: the visitor keeps as many as are allowed.
        """
        latents, visitor = self._latents_of_one(key, number, num, faces), self.visitor(key)
        with self._lock:
            for caption, kept in visitor.kept.items():
                if torch.equal(kept, latents):
                    return caption
            if len(visitor.kept) >= KEPT_FACES:
                raise ValueError(f"you keep {KEPT_FACES} faces, which is the limit; empty the list first")
            caption = f"Kept face {len(visitor.kept) + 1}"
            visitor.kept[caption] = latents
        return caption

    def kept_in(self, key: str, chosen: Mapping[str, float]) -> Captioned:
        """Return the faces that the visitor keeps, drawn in a blend of looks."""
        kept = dict(self.visitor(key).kept)
        if not kept:
            return []
        drawn = self.draw(key, [chosen] * len(kept), latents=torch.stack(list(kept.values())))
        return list(zip(kept, drawn, strict=True))

    def film(self, key: str, chosen: Mapping[str, float]) -> tuple[int, Callable[[Callable[[int], None]], bytes]]:
        """Prepare an MP4 of 512 px that moves through the faces that the visitor keeps now and back to the first.

        Args:
            key: key of the visitor.
            chosen: weights of looks.

        Returns:
            Number of frames, and the function that draws them and returns the file. It calls its argument after each
            frame with the number of frames drawn so far; what that raises ends the drawing.

        Raises:
            ValueError: fewer than two faces are kept, or a look is not there.
            ImportError: PyAV is not installed.
        """
        kept = list(self.visitor(key).kept.values())
        if (count := len(kept)) < 2:
            raise ValueError(f"{count} face{'s are' if count != 1 else ' is'} kept: keep two or more to move between")
        with self._drawing:
            looks = self.named(key, chosen)
        frames, latents, batch = FRAMES * count, torch.stack(kept), usual_batch(self.pipe.generator.resolution)
        check_video(Path("film.mp4"), frames, FPS)

        def one_by_one(on_frame: Callable[[int], None]) -> Iterator[Image.Image]:
            walk = self.pipe.walk(latents, frames=frames, batch_size=batch, adapter_names=looks or "__base__")
            for done in range(frames):
                with self._drawing:
                    self._refuse_closing()
                    if gone := looks.keys() - self.pipe.bank.adapters.keys():
                        raise ValueError(
                            f"{len(gone)} of the looks was changed or deleted meanwhile; make the film again"
                        )
                    frame = next(walk)
                yield shrink(frame, TILE)
                on_frame(done + 1)

        def make(on_frame: Callable[[int], None]) -> bytes:
            with tempfile.TemporaryDirectory(dir=self.folder) as temp:
                file = Path(temp) / "film.mp4"
                write_video(one_by_one(on_frame), file, FPS)
                return file.read_bytes()

        return frames, make

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
