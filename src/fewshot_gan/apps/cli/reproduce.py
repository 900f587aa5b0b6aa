"""`fewshot-gan reproduce`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ...training.interrupt import interruptible
from ...utils.errors import needing
from .options import BatchSize, Threads, count, path_option, seed_option
from .root import app, begin


@app.command()
@interruptible()
def reproduce(
    base: Annotated[str, typer.Option(help="Converted network with its discriminator: folder or Hub repo.")],
    target: Annotated[str, typer.Option(help="The ten training pictures: folder, zip archive, or datasets id.")],
    protocol: Annotated[str, typer.Option(help="cdc10: FFHQ at 256 px to ten pictures (arXiv 2104.06820).")] = "cdc10",
    truth: Annotated[
        str | None, typer.Option(help="Pictures of the whole domain, for the FID; without them it is left out.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Row of the table, may be repeated; default all: transfergan, freezed, ada, cdc, dcl, …"),
    ] = None,
    steps: Annotated[int | None, count("Training steps; default: as published.")] = None,
    num_images: Annotated[int | None, count("Drawn pictures of the FID; default: as published.")] = None,
    seed: Annotated[int, seed_option("Seed of training and of the drawn pictures.")] = 0,
    batch_size: BatchSize = 8,
    out: Annotated[Path, path_option("Folder; the same command goes on where it stopped.")] = Path("runs/reproduction"),
    num_threads: Threads = None,
):
    """Train the published methods on ten pictures, measure them as the papers do, and write their table."""
    start = time.perf_counter()
    with needing("training", "train"):
        from .. import reproduction
    begin(num_threads)
    options = {"truth": truth, "methods": method or (), "steps": steps, "num_images": num_images, "seed": seed}
    report = reproduction.reproduce(protocol, base, target, out, batch_size=batch_size, **options)
    print(reproduction.table(report))
    print(f"{out}  ({time.perf_counter() - start:.0f} s)")
