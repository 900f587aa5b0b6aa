"""The tab "New look" of the demo: a look is learned from uploaded pictures."""

import asyncio

from ..data.files import FORMAT_OF
from ..hub import embedded_datasets
from ..utils.errors import explain
from .demo_parts import BLANK, HIDDEN, SHOWN, STATUS, Parts
from .demo_texts import failure, losses
from .studio import LOOK_STEPS, MORE_STEPS


def example_files() -> list[str]:
    """Return the paths of the ten example drawings."""
    pencil = embedded_datasets().get("pencil")
    return sorted(str(path) for path in pencil.glob("*.webp")) if pencil else []


class TeachingTab:
    """Build the tab; call it inside its `gradio.Tab`.

    Attributes:
        downloads: zip files of the visitor's looks.
        taught: changes when a look was learned, or learned further under the same name.
    """

    def __init__(self, parts: Parts):
        self.parts, self.gr, self.studio = parts, parts.gr, parts.studio
        gr, self.examples = self.gr, example_files()
        self.taught = gr.State("")
        gr.Markdown(
            "Choose about ten pictures of faces in one style. Each is cropped to its centre square, so the "
            "faces should be in the middle."
        )
        self.files = gr.File(
            file_count="multiple", file_types=list(FORMAT_OF), label="Pictures of the look", height=170
        )
        self.example = gr.Button("Use the ten example drawings", size="sm", visible=bool(self.examples))
        with gr.Column(visible=False, elem_id="thumbs") as self.thumbs:
            self.note = gr.HTML()
            with gr.Column(visible=False) as self.crops_column:
                self.crops = gr.HTML(apply_default_css=False)
        with gr.Row(equal_height=True):
            self.name = gr.Textbox("my look", label="Name", info="At most 40 characters.", max_length=40)
            self.steps = gr.Slider(
                *(5, 400, LOOK_STEPS), step=5, label="Training steps",
                info=self.studio.expected("look", LOOK_STEPS),
            )  # fmt: skip
        with gr.Row(equal_height=True):
            self.teach = gr.Button("Teach this look", variant="primary")
            self.more = gr.Button(f"{MORE_STEPS} more steps", visible=False)
            self.finish = gr.Button("Stop and keep", visible=False)
            self.stop = gr.Button("Stop", variant="stop", visible=False)
        self.status = gr.HTML("Faces appear here as training goes on.", elem_id="look-status", **STATUS)
        with gr.Column(visible=False, elem_id="learning") as self.column:
            self.learning = gr.HTML(apply_default_css=False)
        with gr.Accordion("Losses", open=False):
            self.curves = gr.LinePlot(x="step", y="loss", color="network", height=240, elem_id="losses")
        self.downloads = gr.File(
            label="Download your looks (zip), for load_adapter", interactive=False,
            visible=False, file_count="multiple", elem_id="downloads",
        )  # fmt: skip
        with gr.Row():
            self.back = gr.UploadButton("Bring a look back (zip)", file_types=[".zip"], size="sm")
            self.delete = gr.Button("Delete my ticked looks", size="sm")

    def connect(self, entered, key, chosen, own) -> None:
        """Connect the tab's controls.

        Args:
            entered: the event of a visitor who comes.
            key, chosen: key of the visitor, and ticked looks.
            own: the look of each face of the grid.
        """
        gr, lists, hidden = self.gr, [chosen, self.downloads, *own], HIDDEN
        begun = [
            self.teach.click(self.start_look, [key, self.files, self.name, self.steps], None, **hidden),
            self.more.click(self.go_on, key, None, **hidden),
        ]
        watched = [
            self.learning,
            self.column,
            self.curves,
            self.teach,
            self.finish,
            self.stop,
            self.more,
            self.taught,
            *lists,
        ]
        for event in (entered.then, *(b.success(lambda: BLANK, None, self.status, **hidden).then for b in begun)):
            event(self.parts.follow("look"), key, self.status, **SHOWN)
            event(self.watch_look, [key, *own], watched, **hidden)
        self.finish.click(lambda key: self.studio.stop(key, "look", keep=True), key, None, **hidden)
        self.stop.click(lambda key: self.studio.stop(key, "look"), key, None, **hidden)
        self.steps.change(
            lambda steps: gr.Slider(info=self.studio.expected("look", int(steps))), self.steps, self.steps, **hidden
        )
        self.back.upload(self.bring_back, [key, self.back, *own], lists, **hidden)
        self.delete.click(self.delete_ticked, [key, chosen, *own], [*lists, self.more], **hidden)
        shown = [self.note, self.crops, self.thumbs, self.crops_column]
        self.files.change(self.show_crops, self.files, shown, **hidden)
        self.example.click(lambda: self.examples, None, self.files, **hidden)

    async def start_look(self, key, files, name, steps):
        with self.parts.errors_as_toasts():
            await asyncio.to_thread(self.studio.teach, key, files or [], name, int(steps))

    def go_on(self, key):
        with self.parts.errors_as_toasts():
            self.studio.teach_more(key)

    async def watch_look(self, key, *own):
        """Yield pictures, losses and buttons while a look is learned, then the lists of looks."""
        gr, parts, before = self.gr, self.parts, None
        yield [gr.skip()] * (10 + len(own))
        async for job in self.studio.watch(key, "look"):
            results, controls = parts.preview(job, before), parts.buttons(job, before, keeps=True)
            before = parts.state(job)
            lists, more, taught = [gr.skip()] * (2 + len(own)), gr.skip(), gr.skip()
            lesson = self.studio.visitor(key).lesson
            if controls[0] != gr.skip():
                more = self._more(key)
            if job.state == "done" and lesson is not None:
                lists, taught = parts.choices(key, [lesson.label], own), f"{lesson.label} {job.done}"
            plot = gr.LinePlot(losses(job.history, job.began), x_lim=[job.began + 1, job.steps])
            yield *results, plot, *controls, more, taught, *lists

    def _more(self, key):
        visitor = self.studio.visitor(key)
        job = visitor.jobs.get("look")
        return self.gr.Button(visible=visitor.lesson is not None, interactive=job is None or job.over)

    def bring_back(self, key, file, *own):
        with self.parts.errors_as_toasts():
            return self.parts.choices(key, [self.studio.bring_back(key, file)], own)

    def delete_ticked(self, key, ticked, *own):
        with self.parts.errors_as_toasts():
            if not (gone := self.studio.delete(key, ticked)):
                raise ValueError("tick looks of your own; those of the page stay")
            return [*self.parts.choices(key, [name for name in ticked if name not in gone], own), self._more(key)]

    def show_crops(self, files):
        note, squares = "", []
        try:
            squares = self.studio.squares(files or [])
            count = f"{len(squares)} picture{'s' * (len(squares) > 1)}"
            note = f"{count}, as used for training:" if squares else ""
        except ValueError as error:  # stays beside the files until the visitor changes them
            note = failure(explain(error))
        gallery, column = self.parts.gallery(squares)
        return note, gallery, self.gr.Column(visible=bool(note)), column
