"""`fewshot-gan demo`: a web page that draws faces in many looks, redraws your photo, and learns a look from pictures.

This module builds the Gradio page. `studio.Studio` does the work behind it.
"""

import asyncio
import os
import random
import time
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from html import escape

from ..adapters.looks import LIKENESS
from ..data.files import FORMAT_OF
from ..hub import embedded_datasets
from ..utils.errors import explain
from ..utils.text import in_short
from .demo_guard import SameSite, ended_by_sigterm, private_folder
from .demo_looks import CHOSEN, PLAIN, look_of, title, weights
from .demo_pictures import PictureServer
from .demo_texts import faces_found, failure, losses, outcome, progress_text
from .studio import LOOK_STEPS, MISSING, OWN_LOOKS, PHOTO_STEPS, Studio

FACES = 8  # pictures in the grid
MAX_EVENTS = 2000  # events served at once; Gradio counts a waiting event like a computing one, and a job has two
BLANK = "<br><br>"  # keeps the height of a status line while Gradio draws a progress bar over it

CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
.faces {display: grid !important; grid-template-columns: repeat(4, minmax(0, 1fr))}
.gallery {display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px}
#thumbs .gallery {grid-template-columns: repeat(auto-fill, minmax(96px, 1fr))}
#thumbs figcaption {display: none}
.faces .html-container, .html-container:has(> * > .gallery) {padding: 0 !important}
.faces .picture img {border-radius: 0 !important}
.gallery figure {margin: 0; min-width: 0}
.gallery figcaption {padding: 4px 2px; font-size: 0.875rem; overflow-wrap: anywhere}
.picture {position: relative}
.picture img {display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; border-radius: 4px}
.picture .save {position: absolute; right: 4px; bottom: 4px; padding: 2px 8px; border-radius: 4px;
  background: rgba(0, 0, 0, 0.65); color: white; font-size: 0.75rem; line-height: 1.5; text-decoration: none;
  opacity: 0; transition: opacity 0.1s}
.picture:hover .save, .picture:focus-within .save {opacity: 1}
@media (hover: none) {.picture .save {opacity: 1}}
.failed {color: var(--error-text-color)}
@media (max-width: 640px) {
  .faces, #found .gallery, #learning .gallery {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
}
"""
CROP = "Crop it so that the face fills the square, like the faces on the first tab. "
ON_LOAD = """() => {
  document.documentElement.lang = "en";
  for (const id of ["drawn", "photo-status", "look-status"])
    document.getElementById(id)?.setAttribute("aria-live", "polite");
}"""


def page(studio: Studio):
    """Build the page as `gradio.Blocks`.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr, pictures = gradio(), studio.pictures

    @contextmanager
    def errors_as_toasts():
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            raise gr.Error(escape(explain(error)), print_exception=False) from error

    def enter(key):
        key = studio.enter(key)
        looks = [CHOSEN, PLAIN, *studio.labels(key)]
        return [key, gr.CheckboxGroup(choices=studio.labels(key)), downloads_of(key), *[gr.Dropdown(looks)] * FACES]

    def downloads_of(key):
        files = [str(file) for file in studio.visitor(key).files.values()]
        return gr.File(files or None, visible=bool(files))

    def draw(key, seed, psi, chosen, strengths, *rest):
        own, edits = rest[:FACES], dict(zip(studio.directions or (), rest[FACES:], strict=True))
        with errors_as_toasts():
            if seed is None or not 0 <= seed < 2**32:
                raise ValueError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}")
            yield [f"Drawing {FACES} faces …", *[gr.skip()] * FACES]
            start, chosen = time.perf_counter(), weights(chosen, strengths)
            looks = [look_of(choice, chosen) for choice in own]
            images = studio.draw(key, looks, seed=int(seed), psi=psi, edits=edits)
            cells = [
                pictures.show(image, f"Face {i}: {title(look)}", f"face-{int(seed)}-{i}")
                for i, (look, image) in enumerate(zip(looks, images, strict=True), 1)
            ]
            yield [f"Drew {FACES} faces in {time.perf_counter() - start:.1f} s.", *cells]

    def person_of(key):
        """Return the likeness and the download of the visitor's person, which are hidden where there is none."""
        file = studio.visitor(key).person_file
        return [gr.Slider(visible=file is not None), gr.File(file and str(file), visible=file is not None)]

    def draw_photo(key, chosen, strengths, likeness):
        with errors_as_toasts():
            drawn = studio.photo_in(key, weights(chosen, strengths), likeness)
        return [pictures.gallery(drawn), gr.Column(visible=True)] if drawn else [gr.skip()] * 2

    def follow(kind):
        """Return an event that shows the progress of a visitor's job until it is over, then how it ended."""

        async def follow_job(key, progress=gr.Progress()):  # noqa: B008  Gradio finds it by its default value
            ended = gr.skip()
            async for job in studio.watch(key, kind):
                if job.over:
                    ended = outcome(job)
                else:
                    progress(job.done / job.steps, desc=progress_text(job))
            return ended

        follow_job.__name__ = f"follow_{kind}"  # Gradio names the event after it
        return follow_job

    def state(job):
        return job.pictures, job.over, job.stopping

    def buttons(job, before):
        """Return the states of a start and a stop button, unless they are as before: an update can swallow a click."""
        if before is not None and before[1:] == (job.over, job.stopping):
            return [gr.skip()] * 2
        running = not job.over
        return gr.Button(interactive=not running), gr.Button(visible=running, interactive=not job.stopping)

    def preview(job, before):
        """Return a job's pictures and their column, unless the page shows these pictures already."""
        if before is not None and before[0] is job.pictures:
            return [gr.skip()] * 2
        return [pictures.gallery(job.pictures), gr.Column(visible=bool(job.pictures))]

    def look_at_photo(path):
        """Show at once where the face is, or why the photo cannot be used; this stays until the photo is changed."""
        if path is None:
            return "Your face appears here in the looks.", None, gr.Column(visible=False)
        try:
            photo = studio.look_at(path)
        except (ValueError, OSError, ImportError) as error:
            return failure(explain(error)), None, gr.Column(visible=False)
        return faces_found(photo.faces), pictures.gallery([("Your photo", photo.shown)]), gr.Column(visible=True)

    async def watch_photo(key, chosen, strengths, likeness):
        before = None
        yield [gr.skip()] * 6
        async for job in studio.watch(key, "photo"):
            results, controls, before = preview(job, before), buttons(job, before), state(job)
            if job.over and job.state != "done" and not studio.visitor(key).photo:
                results = [None, gr.Column(visible=False)]
            elif job.over:
                results = await asyncio.to_thread(draw_photo, key, chosen, strengths, likeness)
            yield *results, *controls, *(person_of(key) if job.over else [gr.skip()] * 2)

    async def start_photo(key, path, closeness, steps):
        with errors_as_toasts():
            await asyncio.to_thread(studio.find_photo, key, path, closeness, int(steps))

    async def watch_look(key):
        before = None
        yield [gr.skip()] * (7 + FACES)
        async for job in studio.watch(key, "look"):
            results, controls, before = preview(job, before), buttons(job, before), state(job)
            choices = [gr.skip()] * (2 + FACES)
            if job.state == "done":
                looks = studio.labels(key)
                dropdown = gr.Dropdown([CHOSEN, PLAIN, *looks])
                choices = [gr.CheckboxGroup(looks, value=looks[-1:]), downloads_of(key), *[dropdown] * FACES]
            plot = gr.LinePlot(losses(job.history), x_lim=[1, job.steps])
            yield *results, plot, *controls, *choices

    async def start_look(key, files, name, steps):
        with errors_as_toasts():
            await asyncio.to_thread(studio.teach, key, files or [], name, int(steps))

    def choices_of(key, ticked, own):
        labels = studio.labels(key)
        choices = [CHOSEN, PLAIN, *labels]
        each = [gr.Dropdown(choices, value=choice if choice in choices else CHOSEN) for choice in own]
        return [gr.CheckboxGroup(labels, value=ticked), downloads_of(key), *each]

    def bring_back(key, file, *own):
        with errors_as_toasts():
            return choices_of(key, [studio.bring_back(key, file)], own)

    def delete_looks(key, ticked, *own):
        with errors_as_toasts():
            if not (gone := studio.delete(key, ticked)):
                raise ValueError("tick looks of your own; those of the page stay")
            return choices_of(key, [name for name in ticked if name not in gone], own)

    def show_crops(files):
        note, squares = "", []
        try:
            squares = studio.squares(files or [])
            count = f"{len(squares)} picture{'s' * (len(squares) > 1)}"
            note = f"{count}, as used for training:" if squares else ""
        except ValueError as error:  # stays beside the files until the visitor changes them
            note = failure(explain(error))
        return note, pictures.gallery(squares), gr.Column(visible=bool(note)), gr.Column(visible=bool(squares))

    def show_sliders(key, chosen, strengths):
        shown, labels = weights(chosen, strengths), studio.labels(key)
        return [
            gr.Slider(visible=name in shown, value=shown.get(name, 1.0), label=f"Strength of {name}")
            for name in [*labels, *[""] * (len(sliders) - len(labels))]
        ]

    def set_strength(key, value, strengths, number):
        return {**strengths, studio.labels(key)[number]: value}

    hidden = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    shown = {"api_visibility": "private", "concurrency_limit": None}
    status = {"container": True, "padding": True, "min_height": 64}
    examples = example_files()
    options = {"analytics_enabled": False, "delete_cache": (3600, 3600), "fill_width": True}
    with gr.Blocks(title="fewshot_gan", **options) as blocks:
        key, strengths = gr.BrowserState(storage_key="fewshot-gan-demo"), gr.State({})
        gr.Markdown(
            "# One face generator, many looks\nDraw faces in many looks, see your photo in them, or teach a look of "
            "your own with about ten pictures. Nothing leaves the machine that runs this page."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                chosen = gr.CheckboxGroup(
                    studio.looks,
                    value=studio.looks[:1],
                    label="Looks",
                    info="Tick several to blend them." if studio.looks else "Looks that you teach appear here.",
                )
                sliders = [
                    gr.Slider(
                        *(0, 1.5, 1.0), step=0.05, label=f"Strength of {name}", interactive=True,
                        visible=bool(name) and not i,
                    )
                    for i, name in enumerate([*studio.looks, *[""] * OWN_LOOKS])
                ]  # fmt: skip
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Faces"):
                    with gr.Row(equal_height=True):
                        seed = gr.Number(
                            0, label="Seed", info="The same seed draws the same faces.", precision=0, minimum=0
                        )
                        psi = gr.Slider(
                            *(0, 1.2, studio.pipe.config["truncation_psi"]), step=0.05, label="Variety",
                            info="Truncation ψ: 0 draws the average face.",
                        )  # fmt: skip
                    edits = []
                    with gr.Accordion("Change the faces", open=False, visible=studio.directions is not None):
                        with gr.Row():
                            for direction in studio.directions or ():
                                edits.append(
                                    gr.Slider(
                                        *(-3, 3, 0), step=0.25, label=direction.capitalize(), min_width=200,
                                    )
                                )  # fmt: skip
                        unchanged = gr.Button("Undo all changes", size="sm")
                    fresh = gr.Button("Draw new faces", variant="primary")
                    drawn = gr.Markdown(elem_id="drawn")
                    faces, own = [], []
                    with gr.Row(elem_classes="faces"):
                        for i in range(FACES):
                            with gr.Group():
                                faces.append(gr.HTML(apply_default_css=False))
                                own.append(
                                    gr.Dropdown(
                                        [CHOSEN, PLAIN, *studio.looks], value=CHOSEN, label=f"Look of face {i + 1}",
                                        show_label=False, filterable=False, min_width=0,
                                    )
                                )  # fmt: skip
                with gr.Tab("Your photo"):
                    gr.Markdown(
                        f"Choose a photo of a face. {'' if studio.aligns else CROP}The page "
                        "learns to draw this person, and shows the result in every look."
                    )
                    photo = gr.Image(
                        type="filepath", image_mode=None, sources=["upload"], label="Photo", height=240,
                        alt_text="Your photo",
                    )  # fmt: skip
                    # Gradio would open the upload with every format that Pillow knows; the studio opens a few safe ones
                    photo.preprocess = lambda payload: None if payload is None else payload.path
                    photo_steps = gr.Slider(
                        *(5, 300, PHOTO_STEPS), step=5, label="Search steps",
                        info=studio.expected("photo", PHOTO_STEPS),
                    )  # fmt: skip
                    closeness = gr.Radio(
                        [("This person", "person"), ("A natural face that resembles the person", "w")],
                        value="person", label="Look for",
                    )  # fmt: skip
                    with gr.Row(equal_height=True):
                        find = gr.Button("Find my face", variant="primary")
                        stop_photo = gr.Button("Stop", variant="stop", visible=False)
                    photo_status = gr.HTML("Your face appears here in the looks.", elem_id="photo-status", **status)
                    likeness = gr.Slider(
                        *(0, 1.2, LIKENESS), step=0.05, label="Likeness in the looks", visible=False,
                        info="More keeps the person, less draws the look more cleanly.",
                    )  # fmt: skip
                    with gr.Column(visible=False, elem_id="found") as found_column:
                        found = gr.HTML(apply_default_css=False)
                    person_file = gr.File(
                        label="Download this person (zip), for load_adapter", interactive=False,
                        visible=False, elem_id="person-file",
                    )  # fmt: skip
                with gr.Tab("New look"):
                    gr.Markdown(
                        "Choose about ten pictures of faces in one style. Each is cropped to its centre square, so the "
                        "faces should be in the middle."
                    )
                    files = gr.File(
                        file_count="multiple", file_types=list(FORMAT_OF), label="Pictures of the look", height=170
                    )
                    example = gr.Button("Use the ten example drawings", size="sm", visible=bool(examples))
                    with gr.Column(visible=False, elem_id="thumbs") as thumbs:
                        crops_note = gr.HTML()
                        with gr.Column(visible=False) as crops_column:
                            crops = gr.HTML(apply_default_css=False)
                    with gr.Row(equal_height=True):
                        name = gr.Textbox("my look", label="Name", info="At most 40 characters.", max_length=40)
                        look_steps = gr.Slider(
                            *(5, 400, LOOK_STEPS), step=5, label="Training steps",
                            info=studio.expected("look", LOOK_STEPS),
                        )  # fmt: skip
                    with gr.Row(equal_height=True):
                        teach = gr.Button("Teach this look", variant="primary")
                        stop_look = gr.Button("Stop", variant="stop", visible=False)
                    look_status = gr.HTML("Faces appear here as training goes on.", elem_id="look-status", **status)
                    with gr.Column(visible=False, elem_id="learning") as learning_column:
                        learning = gr.HTML(apply_default_css=False)
                    with gr.Accordion("Losses", open=False):
                        curves = gr.LinePlot(x="step", y="loss", color="network", height=240, elem_id="losses")
                    downloads = gr.File(
                        label="Download your looks (zip), for load_adapter", interactive=False,
                        visible=False, file_count="multiple", elem_id="downloads",
                    )  # fmt: skip
                    with gr.Row():
                        back = gr.UploadButton("Bring a look back (zip)", file_types=[".zip"], size="sm")
                        delete = gr.Button("Delete my ticked looks", size="sm")

        looks = [key, chosen, strengths]
        photo_looks = [*looks, likeness]
        drawing = {"inputs": [key, seed, psi, chosen, strengths, *own, *edits], "outputs": [drawn, *faces], **hidden}
        found_outputs = [found, found_column]
        look_outputs = [learning, learning_column, curves, teach, stop_look, chosen, downloads, *own]
        blocks.load(None, js=ON_LOAD)
        entered = blocks.load(enter, key, [key, chosen, downloads, *own], **hidden)
        entered.then(draw, **drawing)
        entered.then(draw_photo, photo_looks, found_outputs, **hidden)
        found_inputs, look_inputs = [key, photo, closeness, photo_steps], [key, files, name, look_steps]
        photo.input(look_at_photo, photo, [photo_status, found, found_column], **hidden)
        finding = find.click(start_photo, found_inputs, None, **hidden)
        teaching = teach.click(start_look, look_inputs, None, **hidden)
        for event in (entered.then, finding.success(lambda: BLANK, None, photo_status, **hidden).then):
            event(follow("photo"), key, photo_status, **shown)
            event(watch_photo, photo_looks, [*found_outputs, find, stop_photo, likeness, person_file], **hidden)
        for event in (entered.then, teaching.success(lambda: BLANK, None, look_status, **hidden).then):
            event(follow("look"), key, look_status, **shown)
            event(watch_look, key, look_outputs, **hidden)
        changes = [seed.change, psi.change, chosen.change, strengths.change]
        changes += [choice.change for choice in (*own, *edits)]
        gr.on(changes, draw, **drawing, trigger_mode="always_last")
        shown_changes = [chosen.change, strengths.change, likeness.change]
        gr.on(shown_changes, draw_photo, photo_looks, found_outputs, trigger_mode="always_last", **hidden)
        chosen.change(show_sliders, looks, sliders, **hidden)
        for i, slider in enumerate(sliders):
            slider.input(partial(set_strength, number=i), [key, slider, strengths], strengths, **hidden)
        unchanged.click(lambda: [0] * len(edits), None, edits, **hidden)
        fresh.click(lambda: random.randrange(1_000_000), None, seed, **hidden)
        stop_photo.click(lambda key: studio.stop(key, "photo"), key, None, **hidden)
        stop_look.click(lambda key: studio.stop(key, "look"), key, None, **hidden)
        for slider, kind in ((photo_steps, "photo"), (look_steps, "look")):
            slider.change(
                lambda steps, kind=kind: gr.Slider(info=studio.expected(kind, int(steps))), slider, slider, **hidden
            )
        back.upload(bring_back, [key, back, *own], [chosen, downloads, *own], **hidden)
        delete.click(delete_looks, [key, chosen, *own], [chosen, downloads, *own], **hidden)
        files.change(show_crops, files, [crops_note, crops, thumbs, crops_column], **hidden)
        example.click(lambda: examples, None, files, **hidden)
    return blocks


def example_files() -> list[str]:
    """Return the paths of the ten example drawings."""
    pencil = embedded_datasets().get("pencil")
    return sorted(str(path) for path in pencil.glob("*.webp")) if pencil else []


def gradio():
    """Import Gradio with its usage reports switched off.

    Raises:
        ImportError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it on import
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ImportError(MISSING.format(error.name)) from error
    return gr


@contextmanager
def reached_directly(host: str):
    """Keep this process from asking a proxy for the page's own address, at which Gradio checks that it is up."""
    local, before = ("localhost", "127.0.0.1", host), {}
    for name in ("NO_PROXY", "no_proxy"):
        before[name] = os.environ.get(name)
        hosts = [entry.strip() for entry in (before[name] or "").split(",") if entry.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, *local]))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@ended_by_sigterm()
def serve(
    base: str = "ffhq",
    adapters: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = True,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then delete everything that visitors uploaded or made.

    Args:
        base: base generator, see `Studio`.
        adapters: further looks, see `Studio`.
        host: address to listen on: 127.0.0.1 serves this machine only, 0.0.0.0 everybody who can reach it.
        port: port to listen on.
        browser: open the page in a browser.
        allowed_hosts: host names of the server besides its addresses and this machine's name. Pages of other sites are
            refused, see `demo_guard.SameSite`.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
        ValueError, FileNotFoundError: `Studio` refuses the base or an adapter.
    """
    print(f"loading {base} …", flush=True)
    folder = private_folder()  # before Gradio is imported: it reads the folder of its files on import
    gradio()
    from gradio.themes import Default
    from starlette.middleware import Middleware

    studio = Studio(base, adapters, folder)
    try:
        blocks = page(studio)
        try:
            with reached_directly(host):
                _, address, _ = blocks.launch(
                    server_name=host,
                    server_port=port,
                    inbrowser=browser,
                    theme=Default(primary_hue="indigo").set(body_text_color_subdued="*neutral_600"),
                    css=CSS,
                    share=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    footer_links=[],
                    run_history=False,
                    max_file_size="50mb",
                    allowed_paths=example_files(),  # an installed package lies outside of the working directory
                    max_threads=MAX_EVENTS,
                    app_kwargs={
                        "middleware": [
                            Middleware(SameSite, allowed_hosts=list(allowed_hosts)),
                            Middleware(PictureServer, pictures=studio.pictures),
                        ]
                    },
                    quiet=True,
                    prevent_thread_lock=True,
                )
        except OSError as error:
            raise OSError(
                f"port {port} of {host} is in use or cannot be used ({in_short(error)}); choose another with --port"
            ) from error
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    finally:
        studio.close()
