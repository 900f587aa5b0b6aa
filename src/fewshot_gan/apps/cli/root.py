"""The Typer application, and what its commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ...utils.errors import DEBUG
from ...utils.memory import keep_freed_memory
from ...version import __version__
from .options import OneSentence

app = typer.Typer(
    cls=OneSentence,
    help="Few-shot GAN adaptation: draw pictures with a base generator and with looks learned from a few images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool):
    if wanted:
        print(f"fewshot_gan {__version__}")
        raise typer.Exit()


def begin(num_threads: int | None):
    """Set the number of threads, and hide diffusers' progress bar, which would show the loading of two files."""
    from diffusers.utils import logging

    from ...utils.threads import set_threads

    set_threads(num_threads)
    logging.disable_progress_bar()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback of an error; {DEBUG}=1 does the same.")
    ] = False,
):
    keep_freed_memory()


def refuse_existing(out: Path) -> None:
    """Refuse an output folder that has files in it, before anything is computed.

    Raises:
        FileExistsError: it is a file, or a folder with files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder; choose another, or remove it first")
