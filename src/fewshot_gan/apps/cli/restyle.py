"""`fewshot-gan restyle`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...data import grids
from ...utils.files import replace_file
from .options import Adapters, Base, Threads, number, path_argument, path_option, seed_option
from .root import app, begin, refuse_existing
from .sources import load_pipeline, name_of_person, named_looks


@app.command()
def restyle(
    photos: Annotated[list[Path], path_argument("1 to 20 photos of one person.")],
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="Weight of each look, in order; default 1. By depth: coarse:0,fine:1.")
    ] = None,
    steps: Annotated[int, number("Training steps of the likeness.", 1, 10_000)] = 120,
    likeness: Annotated[
        float | None,
        number("Weight of the person beside a whole look; default 0.7. Less draws far looks more cleanly.", 0, 2),
    ] = None,
    align: Annotated[
        bool, typer.Option(help="Bring the face to where the base draws faces; else use the centre square.")
    ] = True,
    face: Annotated[int, number("Which of several faces, from 0, the largest.", 0, 1000)] = 0,
    seed: Annotated[int, seed_option("Seed of the search and of the training.")] = 0,
    out: Annotated[Path, path_option("File of the grid: photo, likeness, and each look.")] = Path("me.png"),
    keep: Annotated[
        Path | None, path_option("Folder for the adapter of the person, for generate --person and load_adapter.")
    ] = None,
    paste_back: Annotated[
        bool, typer.Option("--paste-back", help="Also write NAME-LOOK.png: the photo with the face redrawn in it.")
    ] = False,
    num_threads: Threads = None,
):
    """Draw a person of your photos in looks: align, find, learn the likeness, draw."""
    start = time.perf_counter()
    names, weights = named_looks(adapter, weight)
    grids.check_grid(out, 1, 1, 1)
    if likeness is not None and not names:
        raise ValueError(f"--likeness {likeness:g} is the weight beside a look; give --adapter, or leave it out")
    if keep is not None and not _interrupted(keep):
        refuse_existing(keep)

    import torch

    from ...adapters.base import MOST_PHOTOS
    from ...adapters.looks import LIKENESS, with_person
    from ...data.images import as_image, read_image
    from ...faces import paste, read_faces

    if len(photos) > MOST_PHOTOS:  # before they are decoded
        raise ValueError(f"{len(photos)} photos: give 1 to {MOST_PHOTOS} of one person")
    begin(num_threads)
    pipe, looks = load_pipeline(base, names, weights)
    columns = ["likeness", *looks]
    pasted = [
        [out.with_name(f"{out.stem}{f'-{i}' * (len(photos) > 1)}-{name}{out.suffix}") for name in columns]
        for i in range(1, 1 + len(photos) * paste_back)
    ]
    written = {path.resolve() for path in (out, *(path for row in pasted for path in row))}
    if overwritten := written & {photo.resolve() for photo in photos}:
        raise ValueError(f"{', '.join(map(str, overwritten))} is one of the photos; give another --out")
    landmarks = pipe.config.mean_landmarks
    found = [read_faces(photo, pipe.generator.resolution, landmarks, align, face) for photo in photos]
    squares, places = torch.cat([square for square, _ in found]), [place for _, (place,) in found]
    if paste_back and None in places:
        raise ValueError(
            "--paste-back needs the place of the face: leave out --no-align, install fewshot_gan[photo], and take a "
            "base with mean_landmarks such as ffhq"
        )
    person = name_of_person(pipe)
    pipe.personalize(squares, person, steps=steps, seed=seed, output_dir=keep)
    shown = [{}, *({name: weight} for name, weight in looks.items())]
    shown = [with_person(look, person, LIKENESS if likeness is None else likeness) for look in shown]
    drawn: list[Any] = [pipe(len(photos), person=person, adapter_names=look, batch_size=1).images for look in shown]
    rows = []
    for i, square in enumerate(squares):
        rows += [as_image(square), *(pictures[i] for pictures in drawn)]
    for i, paths in enumerate(pasted):
        photo, place = read_image(photos[i]), places[i]
        for path, pictures in zip(paths, drawn, strict=True):
            if place is not None:
                replace_file(path, paste(photo, pictures[i], place).save)
    replace_file(out, grids.make_grid(rows, 1 + len(columns)).save)
    kept = f", adapter in {keep}" if keep is not None else ""
    print(f"{out}  (photo, {', '.join(columns)}{kept}; {time.perf_counter() - start:.0f} s)")


def _interrupted(folder: Path) -> bool:
    """Return whether `personalize` goes on in a folder: its training was stopped there, or its search."""
    if not folder.is_dir():
        return False
    searched = all(path.name.startswith(".") or path.name == "latents.safetensors" for path in folder.iterdir())
    return searched or (folder / "losses.jsonl").is_file()
