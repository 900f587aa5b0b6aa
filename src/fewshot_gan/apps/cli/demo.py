"""`fewshot-gan demo`."""

from typing import Annotated

import typer

from .options import Base, Threads, number
from .root import app, begin


@app.command()
def demo(
    base: Base = "ffhq",
    adapter: Annotated[
        list[str] | None, typer.Option(help="Offer this look too: folder or Hub repo; repeat for more.")
    ] = None,
    port: Annotated[int, number("Port of the page.", 1, 65535)] = 7860,
    host: Annotated[
        str,
        typer.Option(
            help="Address to serve on: 127.0.0.1 for this machine alone, 0.0.0.0 for everybody who can reach it."
        ),
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Accept requests for this host name too; repeat for more."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Serve the page without opening it.")] = False,
    num_threads: Threads = None,
):
    """Open a page in the browser: draw faces in many looks, your photo too, and teach a look of your own."""
    from ..demo import serve

    begin(num_threads)
    serve(base, adapter or [], host, port, not no_browser, allowed_host or [])
