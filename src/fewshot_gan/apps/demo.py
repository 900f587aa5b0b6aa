"""`fewshot-gan demo`: a web page that draws faces in many looks, redraws your photo, and learns a look from pictures.

This module puts the tabs of the Gradio page together and serves it. `studio.Studio` does the work behind it.
"""

import os
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial

from ..utils.text import in_short
from .demo_faces import FacesTab
from .demo_guard import SameSite, ended_by_sigterm, private_folder
from .demo_looks import weights
from .demo_parts import HIDDEN, Parts, gradio
from .demo_photo import PhotoTab
from .demo_pictures import PictureServer
from .demo_teaching import TeachingTab, example_files
from .studio import OWN_LOOKS, Studio

MAX_EVENTS = 2000  # events served at once; Gradio counts a waiting event like a computing one, and a job has two

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
.tools {gap: 0 !important; flex-wrap: nowrap !important}
.film a {text-decoration: underline}
video.film {display: block; width: 100%; max-width: 512px; border-radius: 4px}
.failed {color: var(--error-text-color)}
@media (max-width: 640px) {
  .faces, #found .gallery, #learning .gallery, #kept .gallery {
    grid-template-columns: repeat(2, minmax(0, 1fr)) !important
  }
}
"""
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
    parts = Parts(studio)
    gr = parts.gr

    def enter(key):
        key = studio.enter(key)
        return [key, *parts.choices(key)]

    def show_sliders(key, chosen, strengths):
        shown, labels = weights(chosen, strengths), studio.labels(key)
        return [
            gr.Slider(visible=name in shown, value=shown.get(name, 1.0), label=f"Strength of {name}")
            for name in [*labels, *[""] * (len(sliders) - len(labels))]
        ]

    def set_strength(key, value, strengths, number):
        return {**strengths, studio.labels(key)[number]: value}

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
                    faces = FacesTab(parts)
                with gr.Tab("Your photo"):
                    photo = PhotoTab(parts)
                with gr.Tab("New look"):
                    teaching = TeachingTab(parts)

        looks = [key, chosen, strengths]
        blocks.load(None, js=ON_LOAD)
        entered = blocks.load(enter, key, [key, chosen, teaching.downloads, *faces.own], **HIDDEN)
        faces.connect(entered, *looks)
        photo.connect(entered, *looks)
        teaching.connect(entered, key, chosen, faces.own)
        taught = teaching.taught.change
        gr.on([taught], faces.draw, **faces.drawing)
        gr.on([taught], faces.shelve, **faces.shelving)
        gr.on([taught], photo.draw_photo, [*looks, photo.likeness], [photo.found, photo.column], **HIDDEN)
        chosen.change(show_sliders, looks, sliders, **HIDDEN)
        for i, slider in enumerate(sliders):
            slider.input(partial(set_strength, number=i), [key, slider, strengths], strengths, **HIDDEN)
    return blocks


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
