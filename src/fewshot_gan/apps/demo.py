"""`fewshot-gan demo`: faces in many looks, your photo, and a look of your own, on a page in the browser.

The page is Gradio's; what it asks for is done by `studio.Studio`.
"""

import asyncio
import base64
import io
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape

from PIL import Image

from ..data.files import FORMAT_OF
from ..hub import embedded_datasets
from .demo_guard import SameSite, ended_by_sigterm, private_folder
from .studio import CHOSEN, LOOK_STEPS, MISSING, OWN_LOOKS, PHOTO_STEPS, PLAIN, Job, Studio, duration, sentence, title

FACES = 8  # of the grid
WAITING = 1000  # events at a time: Gradio counts one of a visitor who waits as much as one that computes
LOSSES = {"d": "d, judge", "g": "g, generator"}


def weights(chosen: Sequence[str], strengths: Mapping[str, float]) -> dict[str, float]:
    """Looks with the strengths that were set; of the others each has its share, to a twentieth."""
    return {name: strengths.get(name, max(1, round(20 / len(chosen))) / 20) for name in chosen}


def look_of(choice: str, chosen: Mapping[str, float]) -> dict[str, float]:
    """The look of one picture: as chosen for all, none, or one alone."""
    if choice == CHOSEN:
        return dict(chosen)
    return {} if choice == PLAIN else {choice: 1.0}


def figure(caption: str, image: Image.Image, file: str = "picture") -> str:
    """A picture with its caption; clicked or entered, it is saved."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    name, caption = escape(f"{file}.png", quote=True), escape(caption, quote=True)
    return (
        f'<figure class="picture"><a href="#" download="{name}" title="Save {name}" '
        f'onclick="this.href=this.querySelector(\'img\').src"><img src="{source}" alt="{caption}"></a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def gallery(pictures: Sequence[tuple[str, Image.Image]], kind: str = "") -> str:
    """Pictures side by side, as many as fit."""
    figures = "".join(figure(caption, image, re.sub(r"\W+", "-", caption).strip("-")) for caption, image in pictures)
    return f'<div class="pictures {kind}">{figures}</div>'


def progress(job: Job, doing: str) -> str:
    """How far a job is, and what became of it."""
    ended = {
        "done": f"Done: {job.steps} steps.",
        "stopped": f"Stopped after {job.done} of {job.steps} steps; nothing was kept.",
        "failed": job.error,
    }
    if job.over:
        role = "alert" if job.state == "failed" else "status"
        return f'<p class="job {job.state}" role="{role}">{escape(ended[job.state])}</p>'
    left = job.remaining()
    if job.stopping:
        now = "Stopping after the step at hand …"
    elif job.state == "waiting":
        now = "Waiting: another visitor's is on its way, yours comes next …"
    elif job.done == 0:
        now = "Getting ready: loading the networks …"
    else:
        now = f"Step {job.done} of {job.steps}"
        now += f" · {duration(left)} left" if left is not None else ""
        now += f" · {job.pace():.1f} s a step" if left is not None else ""
    return (
        f'<div class="job"><p>{escape(doing)}</p><progress max="{job.steps}" value="{job.done}" '
        f'aria-label="{escape(doing, quote=True)}"></progress><p>{escape(now)}</p></div>'
    )


def losses(history: Mapping[str, Sequence[float]]) -> str:
    """A row per loss: its name, its line, its last value."""
    rows = []
    for name, values in history.items():
        low, high, steps = min(values), max(values), max(1, len(values) - 1)
        heights = [2 + 20 * (high - value) / ((high - low) or 1) for value in values]
        line = " ".join(f"{120 * i / steps:.1f},{height:.1f}" for i, height in enumerate(heights))
        rows.append(
            f'<tr><th scope="row">{escape(LOSSES.get(name, name))}</th>'
            '<td><svg viewBox="0 0 120 24" preserveAspectRatio="none" aria-hidden="true">'
            f'<polyline points="{line}"/></svg></td><td>{values[-1]:.3g}</td></tr>'
        )
    table = f'<table class="losses"><caption>From the first step to this one</caption>{"".join(rows)}</table>'
    return table if rows else ""


CSS = """
.gradio-container {width: 100% !important; max-width: 1240px !important; margin: 0 auto !important}
#top h1 {margin-bottom: .2em}
.html-container {padding: 0 !important}
.block:has(> .html-container > .prose:empty), [data-testid=status-tracker].hide {display: none !important}
.cells, .pictures {display: grid !important; gap: 16px 12px; grid-template-columns: repeat(4, minmax(0, 1fr))}
.cells > div {min-width: 0 !important; gap: 0 !important}
.cells .block, .cells .form {border: 0 !important; background: none !important; box-shadow: none !important}
.cells .block.padded {padding: 6px 2px !important}
.cells figcaption, .pictures.small figcaption {display: none}
.pictures.small {grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); gap: 8px}
.picture {margin: 0 !important}
.picture a {display: block; padding: 0 !important; border-radius: 8px; overflow: hidden}
.picture a:focus-visible {outline: 3px solid var(--color-accent); outline-offset: 2px}
.picture img {display: block; width: 100%; aspect-ratio: 1; object-fit: cover; margin: 0 !important}
.picture figcaption {font-size: .9rem; line-height: 1.3; padding-top: 4px; overflow-wrap: anywhere}
.job progress {width: 100%; height: 10px; appearance: none; border: 0; border-radius: 5px; overflow: hidden}
.job progress, .job progress::-webkit-progress-bar {background: var(--border-color-primary)}
.job progress::-webkit-progress-value {background: var(--color-accent)}
.job progress::-moz-progress-bar {background: var(--color-accent)}
.job p {margin: 4px 0}
p.failed {color: #b3261e; font-weight: 600}
.dark p.failed {color: #ffb4ab}
.empty {border: 1px dashed var(--body-text-color-subdued); border-radius: 8px; padding: 20px; margin: 0}
.losses {width: 100%; border-collapse: collapse; margin: 0 !important}
.losses caption {text-align: left; padding-bottom: 4px}
.losses, .losses tr, .losses th, .losses td {border: 0 !important}
.losses th, .losses td {padding: 3px 12px 3px 0 !important; text-align: left}
.losses th, .losses td:last-child {font-weight: 400 !important; white-space: nowrap; width: 1%}
.losses svg {display: block; width: 100%; height: 24px}
.losses polyline {fill: none; stroke: var(--color-accent); stroke-width: 1.5; vector-effect: non-scaling-stroke}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important}
  .cells, .pictures {grid-template-columns: repeat(2, minmax(0, 1fr))}
  .pictures.small {grid-template-columns: repeat(5, minmax(0, 1fr))}
}
"""
THEME = {  # plain labels, blocks that can be told apart, and grey that can be read
    "body_background_fill": "*neutral_50",
    "block_border_width": "1px",
    "block_border_color": "*neutral_200",
    "input_border_width": "1px",
    "input_border_color": "*neutral_300",
    "checkbox_border_color": "*neutral_400",
    "block_title_background_fill": "none",
    "block_title_text_color": "*body_text_color",
    "block_title_text_weight": "600",
    "block_title_padding": "0",
    "block_label_background_fill": "none",
    "block_label_background_fill_dark": "none",
    "block_title_background_fill_dark": "none",
    "block_label_text_color": "*body_text_color",
    "block_label_text_weight": "600",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
}
ON_LOAD = """() => {
  document.documentElement.lang = "en";
  for (const id of ["drawn", "photo-status", "look-status"])
    document.getElementById(id)?.setAttribute("aria-live", "polite");
  const untranslated = '[aria-label^="common."]';
  const name = () => document.querySelectorAll(untranslated).forEach(e => e.ariaLabel = e.ariaLabel.slice(7));
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});  // Gradio's untranslated ones
}"""
NO_PHOTO = (
    '<p class="empty">Your photo, the face that the base finds for it, and that face in the looks appear here.</p>'
)
NO_LOOK = '<p class="empty">Four faces in your look appear here, and change as it learns.</p>'


def page(studio: Studio):
    """The page as `gradio.Blocks`.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = gradio()

    @contextmanager
    def in_one_sentence():
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            raise gr.Error(escape(sentence(error)), print_exception=False) from error

    def enter(key):
        key = studio.enter(key)
        looks = [CHOSEN, PLAIN, *studio.labels(key)]
        return [key, gr.CheckboxGroup(choices=studio.labels(key)), kept(key), *[gr.Dropdown(choices=looks)] * FACES]

    def kept(key):
        files = [str(file) for file in studio.visitor(key).files.values()]
        return gr.File(files or None, visible=bool(files))

    def draw(key, seed, psi, chosen, strengths, *own):
        with in_one_sentence():
            if seed is None or not 0 <= seed < 2**32:
                raise ValueError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}")
            yield [f"Drawing {FACES} faces …", *[gr.skip()] * FACES]
            start, chosen = time.perf_counter(), weights(chosen, strengths)
            looks = [look_of(choice, chosen) for choice in own]
            images = studio.draw(key, looks, seed=int(seed), psi=psi)
            cells = [
                figure(f"Face {i + 1}: {title(look)}", image, f"face-{int(seed)}-{i + 1}")
                for i, (look, image) in enumerate(zip(looks, images, strict=True))
            ]
            yield [f"{FACES} faces in {time.perf_counter() - start:.1f} s. Click a picture to save it.", *cells]

    def draw_photo(key, chosen, strengths):
        with in_one_sentence():
            pictures = studio.photo_in(key, weights(chosen, strengths))
        return gallery(pictures) if pictures else gr.skip()

    def running(job):
        """Start and stop buttons."""
        on = not job.over
        return gr.Button(interactive=not on), gr.Button(visible=on, interactive=on and not job.stopping)

    async def shown_now(job, before):
        """The gallery of a job's pictures if they are others than before, made in a thread."""
        if job.pictures is before or not job.pictures:
            return gr.skip()
        return await asyncio.to_thread(gallery, job.pictures)

    async def watch_photo(key, chosen, strengths):
        shown = None
        yield [gr.skip()] * 4
        async for job in studio.watch(key, "photo"):
            pictures, shown = await shown_now(job, shown), job.pictures
            if job.over and job.state != "done" and not studio.visitor(key).photo:
                pictures = NO_PHOTO
            elif job.over:
                pictures = await asyncio.to_thread(draw_photo, key, chosen, strengths)
            yield progress(job, "Looking for your face among those the base can draw"), pictures, *running(job)

    async def start_photo(key, path, closeness, steps, chosen, strengths):
        with in_one_sentence():
            await asyncio.to_thread(studio.find_photo, key, path, closeness, int(steps))
        async for update in watch_photo(key, chosen, strengths):
            yield update

    async def watch_look(key):
        shown, same = None, [gr.skip()] * (2 + FACES)
        yield [gr.skip()] * (5 + 2 + FACES)
        async for job in studio.watch(key, "look"):
            pictures, shown, more = await shown_now(job, shown), job.pictures, same
            if job.over and not job.pictures:
                pictures = NO_LOOK
            if job.state == "done":
                looks = studio.labels(key)
                choices = gr.Dropdown(choices=[CHOSEN, PLAIN, *looks])
                more = [gr.CheckboxGroup(choices=looks, value=looks[-1:]), kept(key), *[choices] * FACES]
            yield progress(job, "Learning your look"), pictures, losses(job.history), *running(job), *more

    async def start_look(key, files, name, steps):
        with in_one_sentence():
            await asyncio.to_thread(studio.teach, key, files or [], name, int(steps))
        async for update in watch_look(key):
            yield update

    def look_at(files):
        if not files:
            return ""
        try:
            pictures = [(name, image.resize((128, 128))) for name, image in studio.squares(files)]
        except ValueError as error:  # stays beside the files until they are others
            return f'<p class="failed" role="alert">{escape(sentence(error))}</p>'
        return f"<p>{len(pictures)} pictures, as training sees them:</p>{gallery(pictures, 'small')}"

    def show_sliders(key, chosen, strengths):
        shown, labels = weights(chosen, strengths), studio.labels(key)
        return [
            gr.Slider(visible=name in shown, value=shown.get(name, 1.0), label=f"Strength of {name}")
            for name in [*labels, *[""] * (len(sliders) - len(labels))]
        ]

    def strength(key, value, strengths, number):
        return {**strengths, studio.labels(key)[number]: value}

    quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    pencil = embedded_datasets().get("pencil")
    examples = sorted(str(path) for path in pencil.glob("*.png")) if pencil else []
    with gr.Blocks(title="fewshot_gan", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        key, strengths = gr.BrowserState(storage_key="fewshot-gan-demo"), gr.State({})
        gr.Markdown(
            "# One face generator, many looks\nDraw faces in the looks below, put your own photo into them, or teach "
            "the generator a look from about ten pictures. Nothing leaves the machine that runs this page.",
            elem_id="top",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                chosen = gr.CheckboxGroup(
                    studio.looks,
                    value=studio.looks[:1],
                    label="Looks",
                    info="Tick any number: they blend."
                    if studio.looks
                    else "Those you teach appear here; ticked ones blend.",
                )

                sliders = [
                    gr.Slider(
                        0,
                        1.5,
                        1.0,
                        step=0.05,
                        label=f"Strength of {name}",
                        interactive=True,
                        visible=bool(name) and not i,
                    )
                    for i, name in enumerate([*studio.looks, *[""] * OWN_LOOKS])
                ]

            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Faces"):
                    with gr.Row(equal_height=True):
                        seed = gr.Number(0, label="Seed", info="One seed, one set of faces.", precision=0, minimum=0)
                        psi = gr.Slider(
                            0, 1.2, studio.pipe.config.truncation_psi, step=0.05, label="Variety",
                            info="Truncation ψ: 0 is the average face.",
                        )  # fmt: skip
                    fresh = gr.Button("Draw new faces", variant="primary")
                    drawn = gr.HTML(elem_id="drawn")
                    cells, own = [], []
                    with gr.Row(elem_classes="cells"):
                        for i in range(FACES):
                            with gr.Column(min_width=0):
                                cells.append(gr.HTML(elem_classes="cell"))
                                own.append(
                                    gr.Dropdown(
                                        [CHOSEN, PLAIN, *studio.looks], value=CHOSEN, label=f"Look of face {i + 1}",
                                        filterable=False,
                                    )
                                )  # fmt: skip
                with gr.Tab("Your photo"):
                    gr.Markdown(
                        "The face should fill the photo's middle as faces fill the pictures of the base. You get a "
                        "natural face in the same pose that resembles the person; it is not a likeness."
                    )
                    photo = gr.Image(
                        type="filepath", image_mode=None, sources=["upload"], label="Photo", height=240,
                        alt_text="Your photo",
                    )  # fmt: skip
                    # Gradio would open the upload, by whatever Pillow knows to open; here only its path is handed on
                    photo.preprocess = lambda upload: None if upload is None else upload.path
                    photo_steps = gr.Slider(
                        5, 300, PHOTO_STEPS, step=5, label="Search steps", info=studio.expected("photo", PHOTO_STEPS)
                    )
                    closeness = gr.Radio(
                        [("A natural face", "w"), ("Closer to the photo", "w+")], value="w", label="What to look for",
                        info="A closer face takes looks less well.",
                    )  # fmt: skip
                    with gr.Row(equal_height=True):
                        find = gr.Button("Find my face", variant="primary")
                        stop_photo = gr.Button("Stop", variant="stop", visible=False)
                    photo_status = gr.HTML(elem_id="photo-status")
                    found = gr.HTML(NO_PHOTO, elem_id="found")
                with gr.Tab("New look"):
                    gr.Markdown(
                        "About ten pictures of one look: faces in the same framing as those of the base, in your "
                        "style. They are cropped to the centre square."
                    )
                    files = gr.File(
                        file_count="multiple", file_types=list(FORMAT_OF), label="Pictures of the look", height=140
                    )
                    if examples:
                        example = gr.Button("Use the ten example drawings", size="sm")
                    thumbs = gr.HTML(elem_id="thumbs")
                    with gr.Row(equal_height=True):
                        name = gr.Textbox("my look", label="Name", info="What to call it.", max_length=40)
                        look_steps = gr.Slider(
                            5, 400, LOOK_STEPS, step=5, label="Training steps", info=studio.expected("look", LOOK_STEPS)
                        )
                    with gr.Row(equal_height=True):
                        teach = gr.Button("Teach this look", variant="primary")
                        stop_look = gr.Button("Stop", variant="stop", visible=False)
                    look_status = gr.HTML(elem_id="look-status")
                    learning = gr.HTML(NO_LOOK, elem_id="learning")
                    with gr.Accordion("Losses", open=False):
                        curves = gr.HTML("<p>Nothing yet.</p>", elem_id="losses")
                    downloads = gr.File(
                        label="Your looks, to keep: unzip one, then load_adapter(folder)", interactive=False,
                        visible=False, file_count="multiple", elem_id="downloads",
                    )  # fmt: skip

        looks = [key, chosen, strengths]
        of_photo = [photo_status, found, find, stop_photo]
        of_look = [look_status, learning, curves, teach, stop_look, chosen, downloads, *own]
        faces = {"inputs": [key, seed, psi, chosen, strengths, *own], "outputs": [drawn, *cells], **quiet}
        blocks.load(None, js=ON_LOAD)
        entered = blocks.load(enter, key, [key, chosen, downloads, *own], **quiet)
        entered.then(draw, **faces)
        entered.then(draw_photo, looks, found, **quiet)
        entered.then(watch_photo, looks, of_photo, **quiet)
        entered.then(watch_look, key, of_look, **quiet)
        changes = [seed.change, psi.change, chosen.change, strengths.change, *(choice.change for choice in own)]
        gr.on(changes, draw, **faces, trigger_mode="always_last")
        gr.on([chosen.change, strengths.change], draw_photo, looks, found, trigger_mode="always_last", **quiet)
        chosen.change(show_sliders, looks, sliders, **quiet)
        for i, slider in enumerate(sliders):
            slider.input(partial(strength, number=i), [key, slider, strengths], strengths, **quiet)
        fresh.click(lambda: random.randrange(1_000_000), None, seed, **quiet)
        find.click(start_photo, [key, photo, closeness, photo_steps, chosen, strengths], of_photo, **quiet)
        teach.click(start_look, [key, files, name, look_steps], of_look, **quiet)
        stop_photo.click(lambda key: studio.stop(key, "photo"), key, None, **quiet)
        stop_look.click(lambda key: studio.stop(key, "look"), key, None, **quiet)
        for slider, kind in ((photo_steps, "photo"), (look_steps, "look")):
            slider.change(
                lambda steps, kind=kind: gr.Slider(info=studio.expected(kind, int(steps))), slider, slider, **quiet
            )
        files.change(look_at, files, thumbs, **quiet)
        if examples:
            example.click(lambda: examples, None, files, **quiet)
    return blocks


def gradio():
    """The package, told to call nobody.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ImportError(MISSING.format(error.name)) from error
    return gr


@contextmanager
def reached_directly(host: str):
    """Inside, this process asks no proxy for the page's own address: Gradio looks there whether it is up."""
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
    """Serve the page until Ctrl-C or SIGTERM; then everything that visitors uploaded or made is deleted.

    Args:
        base, adapters: of `Studio`.
        host: 127.0.0.1 is this machine alone, 0.0.0.0 everybody who can reach it.
        port: of the server.
        browser: open the page.
        allowed_hosts: names under which others reach the server, besides its addresses and this machine's name; pages
            of other sites are refused, see `demo_guard.SameSite`.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
        ValueError, FileNotFoundError: what `Studio` refuses.
    """
    print(f"loading {base} …", flush=True)
    folder = private_folder()  # Gradio asks on import where its files shall be
    gr = gradio()
    from starlette.middleware import Middleware

    studio = Studio(base, adapters, folder)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        blocks = page(studio)
        try:
            with reached_directly(host):
                _, address, _ = blocks.launch(
                    server_name=host,
                    server_port=port,
                    inbrowser=browser,
                    theme=gr.themes.Soft(**fonts).set(**THEME),
                    css=CSS,
                    share=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    footer_links=[],
                    run_history=False,
                    max_file_size="50mb",
                    max_threads=WAITING,
                    app_kwargs={"middleware": [Middleware(SameSite, allowed_hosts=list(allowed_hosts))]},
                    quiet=True,
                    prevent_thread_lock=True,
                )
        except OSError as error:
            raise OSError(f"port {port} of {host} cannot be used ({sentence(error)}); choose another --port") from error
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    finally:
        studio.close()
