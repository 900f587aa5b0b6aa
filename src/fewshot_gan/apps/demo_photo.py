"""The tab "Your photo" of the demo: a photo of a person is learned, and shown in looks."""

import asyncio

from ..adapters.looks import LIKENESS
from ..utils.errors import explain
from .demo_looks import weights
from .demo_parts import BLANK, HIDDEN, SHOWN, STATUS, Parts
from .demo_texts import faces_found, failure
from .studio import PHOTO_STEPS

CROP = "Crop it so that the face fills the square, like the faces on the first tab. "
UNSEEN = "Your face appears here in the looks."


class PhotoTab:
    """Build the tab; call it inside its `gradio.Tab`."""

    def __init__(self, parts: Parts):
        self.parts, self.gr, self.studio = parts, parts.gr, parts.studio
        gr, studio = self.gr, self.studio
        gr.Markdown(
            f"Choose a photo of a face. {'' if studio.aligns else CROP}The page "
            "learns to draw this person, and shows the result in every look."
        )
        self.photo = gr.Image(
            type="filepath", image_mode=None, sources=["upload"], label="Photo", height=240,
            alt_text="Your photo",
        )  # fmt: skip
        # Gradio would open the upload with every format that Pillow knows; the studio opens a few safe ones
        self.photo.preprocess = lambda payload: None if payload is None else payload.path
        self.steps = gr.Slider(
            *(5, 300, PHOTO_STEPS), step=5, label="Search steps", info=studio.expected("photo", PHOTO_STEPS)
        )
        self.closeness = gr.Radio(
            [("This person", "person"), ("A natural face that resembles the person", "w")],
            value="person", label="Look for",
        )  # fmt: skip
        with gr.Row(equal_height=True):
            self.find = gr.Button("Find my face", variant="primary")
            self.stop = gr.Button("Stop", variant="stop", visible=False)
        self.status = gr.HTML(UNSEEN, elem_id="photo-status", **STATUS)
        self.likeness = gr.Slider(
            *(0, 1.2, LIKENESS), step=0.05, label="Likeness in the looks", visible=False,
            info="More keeps the person, less draws the look more cleanly.",
        )  # fmt: skip
        with gr.Column(visible=False, elem_id="found") as self.column:
            self.found = gr.HTML(apply_default_css=False)
        self.file = gr.File(
            label="Download this person (zip), for load_adapter", interactive=False,
            visible=False, elem_id="person-file",
        )  # fmt: skip

    def connect(self, entered, key, chosen, strengths) -> None:
        """Connect the tab's controls.

        Args:
            entered: the event of a visitor who comes.
            key, chosen, strengths: key of the visitor, ticked looks, and their strengths.
        """
        gr, looks = self.gr, [key, chosen, strengths, self.likeness]
        results = [self.found, self.column]
        entered.then(self.draw_photo, looks, results, **HIDDEN)
        self.photo.input(self.look_at, self.photo, [self.status, *results], **HIDDEN)
        finding = self.find.click(self.start_photo, [key, self.photo, self.closeness, self.steps], None, **HIDDEN)
        for event in (entered.then, finding.success(lambda: BLANK, None, self.status, **HIDDEN).then):
            event(self.parts.follow("photo"), key, self.status, **SHOWN)
            event(self.watch_photo, looks, [*results, self.find, self.stop, self.likeness, self.file], **HIDDEN)
        changes = [chosen.change, strengths.change, self.likeness.change]
        gr.on(changes, self.draw_photo, looks, results, trigger_mode="always_last", **HIDDEN)
        self.stop.click(lambda key: self.studio.stop(key, "photo"), key, None, **HIDDEN)
        self.steps.change(
            lambda steps: gr.Slider(info=self.studio.expected("photo", int(steps))), self.steps, self.steps, **HIDDEN
        )

    def look_at(self, path):
        """Show at once where the face is, or why the photo cannot be used; this stays until the photo is changed."""
        if path is None:
            return UNSEEN, None, self.gr.Column(visible=False)
        try:
            photo = self.studio.look_at(path)
        except (ValueError, OSError, ImportError) as error:
            return failure(explain(error)), None, self.gr.Column(visible=False)
        return [faces_found(photo.faces), *self.parts.gallery([("Your photo", photo.shown)])]

    async def start_photo(self, key, path, closeness, steps):
        with self.parts.errors_as_toasts():
            await asyncio.to_thread(self.studio.find_photo, key, path, closeness, int(steps))

    async def watch_photo(self, key, chosen, strengths, likeness):
        """Yield pictures and buttons while the photo is searched, then the result."""
        gr, parts, before = self.gr, self.parts, None
        yield [gr.skip()] * 6
        async for job in self.studio.watch(key, "photo"):
            results, controls = parts.preview(job, before), parts.buttons(job, before)
            before = parts.state(job)
            if job.over and job.state != "done" and not self.studio.visitor(key).photo:
                results = [None, gr.Column(visible=False)]
            elif job.over:
                results = await asyncio.to_thread(self.draw_photo, key, chosen, strengths, likeness)
            yield *results, *controls, *(self.person_of(key) if job.over else [gr.skip()] * 2)

    def draw_photo(self, key, chosen, strengths, likeness):
        """Return the photo in the ticked looks, if a face was found for it."""
        with self.parts.errors_as_toasts():
            drawn = self.studio.photo_in(key, weights(chosen, strengths), likeness)
        return self.parts.gallery(drawn) if drawn else [self.gr.skip()] * 2

    def person_of(self, key):
        """Return the likeness and the download of the visitor's person, which are hidden where there is none."""
        file = self.studio.visitor(key).person_file
        return [self.gr.Slider(visible=file is not None), self.gr.File(file and str(file), visible=file is not None)]
