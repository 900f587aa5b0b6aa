"""The tab "Faces" of the demo: a grid of faces in looks, edits, kept faces and a film through them."""

import random
import time
from functools import partial

from .demo_looks import CHOSEN, PLAIN, look_of, title, weights
from .demo_parts import BLANK, FACES, HIDDEN, SHOWN, Parts
from .drawing import FIRST, Faces


class FacesTab:
    """Build the tab; call it inside its `gradio.Tab`.

    Attributes:
        own: the look of each face.
        edits: the slider of each direction.
    """

    def __init__(self, parts: Parts):
        self.parts, self.gr, self.studio = parts, parts.gr, parts.studio
        gr, studio = self.gr, self.studio
        self.alike, self.shown = gr.State(False), gr.State(FIRST)
        with gr.Row(equal_height=True):
            self.seed = gr.Number(
                0, label="Seed", info="The same seed draws the same faces.", precision=0, minimum=0
            )  # fmt: skip
            self.psi = gr.Slider(
                *(0, 1.2, studio.pipe.config["truncation_psi"]), step=0.05, label="Variety",
                info="Truncation ψ: 0 draws the average face.",
            )  # fmt: skip
        self.edits = []
        with gr.Accordion("Change the faces", open=False, visible=studio.directions is not None):
            with gr.Row():
                for direction in studio.directions or ():
                    slider = gr.Slider(*(-3, 3, 0), step=0.25, label=direction.capitalize(), min_width=200)
                    self.edits.append(slider)
            self.unchanged = gr.Button("Undo all changes", size="sm")
        self.fresh = gr.Button("Draw new faces", variant="primary")
        self.drawn = gr.Markdown(elem_id="drawn")
        self.faces, self.own, self.keeps, self.likes = [], [], [], []
        with gr.Row(elem_classes="faces"):
            for i in range(FACES):
                with gr.Group():
                    self.faces.append(gr.HTML(apply_default_css=False))
                    self.own.append(
                        gr.Dropdown(
                            [CHOSEN, PLAIN, *studio.looks], value=CHOSEN, label=f"Look of face {i + 1}",
                            show_label=False, filterable=False, min_width=0,
                        )
                    )  # fmt: skip
                    with gr.Row(elem_classes="tools", visible=studio.keeps_faces):
                        self.keeps.append(gr.Button("Keep", size="sm", min_width=0))
                        self.likes.append(gr.Button("Similar", size="sm", min_width=0))
        with gr.Accordion("Kept faces", open=True, visible=False, elem_id="kept") as self.shelf:
            self.kept = gr.HTML(apply_default_css=False)
            with gr.Row():
                self.film = gr.Button("Make a film through them", size="sm")
                self.stop = gr.Button("Stop the film", variant="stop", size="sm", visible=False)
                self.empty = gr.Button("Empty the list", size="sm")
            self.film_status = gr.HTML(visible=False, min_height=48, elem_id="film-status")
            self.shown_film = gr.HTML(apply_default_css=False)

    def connect(self, entered, key, chosen, strengths) -> None:
        """Connect the tab's controls.

        Args:
            entered: the event of a visitor who comes.
            key, chosen, strengths: key of the visitor, ticked looks, and their strengths.
        """
        gr, looks = self.gr, [key, chosen, strengths]
        grid, shown = [key, self.seed, self.psi, self.alike, *self.edits], [key, self.shown]
        self.drawing = {
            "inputs": [chosen, strengths, *self.own, *grid],
            "outputs": [self.drawn, self.shown, *self.faces],
            **HIDDEN,
        }
        changes = [self.seed.change, self.psi.change, self.alike.change, chosen.change, strengths.change]
        changes += [choice.change for choice in (*self.own, *self.edits)]
        gr.on(changes, self.draw, **self.drawing, trigger_mode="always_last")
        self.unchanged.click(lambda: [0] * len(self.edits), None, self.edits, **HIDDEN)
        self.fresh.click(lambda: (random.randrange(1_000_000), False), None, [self.seed, self.alike], **HIDDEN)
        self.shelving = {"inputs": looks, "outputs": [self.kept, self.shelf], **HIDDEN}
        for number, (keep, like) in enumerate(zip(self.keeps, self.likes, strict=True)):
            keep.click(partial(self.keep, number), shown, None, **HIDDEN).success(self.shelve, **self.shelving)
            chooses = like.click(partial(self.choose_model, number), shown, [self.alike, *self.edits], **HIDDEN)
            chooses.success(self.draw, **self.drawing)
        gr.on([chosen.change, strengths.change], self.shelve, trigger_mode="always_last", **self.shelving)
        self.empty.click(self.clear, key, [self.shown_film, self.film_status], **HIDDEN).then(
            self.shelve, **self.shelving
        )
        entered.then(self.draw, **self.drawing)
        entered.then(self.shelve, **self.shelving)
        filming = self.film.click(self.start_film, looks, self.film_status, **HIDDEN)
        for event in (entered.then, filming.success):
            event(self.parts.follow("film"), key, self.film_status, **SHOWN)
            event(self.watch_film, key, [self.shown_film, self.film_status, self.film, self.stop], **HIDDEN)
        self.stop.click(lambda key: self.studio.stop(key, "film"), key, None, **HIDDEN)

    def draw(self, chosen, strengths, *rest):
        """Yield the status line and the pictures of the grid."""
        own, (key, *grid) = rest[:FACES], rest[FACES:]
        gr, pictures = self.gr, self.parts.pictures
        with self.parts.errors_as_toasts():
            faces = self._faces(*grid)
            yield [f"Drawing {FACES} faces …", *[gr.skip()] * (1 + FACES)]
            start, chosen = time.perf_counter(), weights(chosen, strengths)
            looks = [look_of(choice, chosen) for choice in own]
            images = self.studio.draw(key, looks, faces)
            names = [f"face-{faces.seed}-{i}" for i in range(1, FACES + 1)]
            cells = [
                pictures.show(image, f"Face {i}: {title(look)}", name)
                for i, (look, image, name) in enumerate(zip(looks, images, names, strict=True), 1)
            ]
            said = f"Drew {FACES} faces in {time.perf_counter() - start:.1f} s."
            said += " They resemble the first one." if faces.alike else ""
            yield [f"{said} [Save all (zip)]({pictures.bundle(zip(names, images, strict=True))})", faces, *cells]

    def _faces(self, seed, psi, alike, *edits) -> Faces:
        if seed is None or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}")
        return Faces(int(seed), psi, dict(zip(self.studio.directions or (), edits, strict=True)), alike)

    def keep(self, number, key, shown):
        with self.parts.errors_as_toasts():
            self.studio.keep(key, number, FACES, Faces(*shown))

    def choose_model(self, number, key, shown):
        """Make a face that is shown the model, and undo the edits, which it has now."""
        with self.parts.errors_as_toasts():
            self.studio.choose_model(key, number, FACES, Faces(*shown))
        return [True, *[0] * len(self.edits)]

    def shelve(self, key, chosen, strengths):
        """Return the kept faces in the ticked looks."""
        with self.parts.errors_as_toasts():
            kept = self.studio.kept_in(key, weights(chosen, strengths))
        return [self.parts.pictures.gallery(kept), self.gr.Accordion(visible=bool(kept))]

    def clear(self, key):
        self.studio.empty(key)
        return "", self.gr.HTML("", visible=False)

    def start_film(self, key, chosen, strengths):
        with self.parts.errors_as_toasts():
            self.studio.make_film(key, weights(chosen, strengths))
        return self.gr.HTML(BLANK, visible=True)

    async def watch_film(self, key):
        """Yield the buttons while a film is made, then the film."""
        gr, parts, before = self.gr, self.parts, None
        yield [gr.skip()] * 4
        async for job in self.studio.watch(key, "film"):
            done = job.over and job.state == "done"
            shown = [parts.pictures.video(self.studio.visitor(key).film, "film"), gr.HTML(visible=False)]
            yield [*(shown if done else [gr.skip()] * 2), *parts.buttons(job, before)]
            before = parts.state(job)
