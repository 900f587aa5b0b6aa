"""`fewshot-gan demo`."""

from typing import Annotated

import typer

from .options import Base, Threads, number
from .root import app, begin


@app.command()
def demo(
    base: Base = "ffhq",
    adapter: Annotated[
        list[str] | None, typer.Option(help="A look beside the embedded ones: folder or Hub repo; repeat for more.")
    ] = None,
    port: Annotated[int, number("Of the page.", 1, 65535)] = 7860,
    host: Annotated[
        str, typer.Option(help="127.0.0.1: this machine alone; 0.0.0.0: whoever can reach it.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which others reach the page, besides this machine's own; repeat for more."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Serve the page without opening it.")] = False,
    num_threads: Threads = None,
):
    """Open a page in the browser: faces in many looks, your photo, a look of your own."""
    from ..demo import serve

    begin(num_threads)
    serve(base, adapter or [], host, port, not no_browser, allowed_host or [])
