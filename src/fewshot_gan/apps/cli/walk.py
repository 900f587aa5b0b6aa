"""`fewshot-gan walk`, `fewshot-gan mix` and `fewshot-gan directions`: videos and grids of moves in the latent space."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ...data import grids
from ...utils.files import replace_file
from .options import (
    Adapters,
    Base,
    Edits,
    Psi,
    Threads,
    Weights,
    count,
    number,
    parse_seeds,
    parse_strengths,
    path_option,
    seed_option,
)
from .root import app, begin
from .sources import load_pipeline, named_looks, read_latents


@app.command()
def walk(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Weights = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the key frames, like 1,5,9; default 0-3, with --looks 0.")
    ] = None,
    latents: Annotated[
        Path | None, path_option("Key frames from a file of fewshot-gan invert, instead of seeds.")
    ] = None,
    looks: Annotated[
        bool,
        typer.Option("--looks", help="Walk from the base through the adapters, one after another, not their blend."),
    ] = False,
    edit: Edits = None,
    psi: Psi = None,
    frames: Annotated[int, count("Number of frames.")] = 120,
    fps: Annotated[float, number("Frames per second.", 0.1, 120)] = 24.0,
    loop: Annotated[bool, typer.Option(help="Come back to the first key frame.")] = True,
    size: Annotated[int | None, typer.Option(help="Reduce the frames to this many px; default 512 at most.")] = None,
    batch_size: Annotated[int, count("Frames per forward pass.")] = 2,
    out: Annotated[Path, path_option("Video: .mp4 (needs the extra video), .gif or .webp.")] = Path("walk.mp4"),
    num_threads: Threads = None,
):
    """Write a video that goes from face to face, or from look to look."""
    start = time.perf_counter()
    from .. import videos

    names, weights = named_looks(adapter, weight)
    videos.check_video(out, frames, fps)
    strengths = parse_strengths(edit or [])
    if seeds is not None and latents is not None:
        raise ValueError("--seeds and --latents both say what is drawn; give one of them")
    if looks and not names:
        raise ValueError("--looks walks through adapters; give --adapter, once or more")
    begin(num_threads)
    pipe, loaded = load_pipeline(base, names, weights)
    side = min(grids.check_size(size, pipe.generator.resolution), grids.TILE if size is None else 10**6)
    if looks:  # edits start from the faces of the base
        pipe.set_adapters([])
    if latents is not None:
        keys = read_latents(latents, getattr(pipe.generator, "num_ws", None))
    else:
        keys = pipe.latents(seeds=parse_seeds(("0" if looks else "0-3") if seeds is None else seeds))
    options = {"truncation_psi": psi, "frames": frames, "loop": loop, "batch_size": batch_size}
    if strengths:
        keys = pipe.edit(keys, strengths, truncation_psi=options.pop("truncation_psi"))
    if looks:
        shown = [{}, *({name: weight} for name, weight in loaded.items())]
        if len(keys) > 1:  # each face and each look comes, in turn
            number_of_keys = max(len(keys), len(shown))
            shown = [shown[i % len(shown)] for i in range(number_of_keys)]
            keys = keys[[i % len(keys) for i in range(number_of_keys)]]
        options["looks"] = shown
    drawn = (grids.shrink(frame, side) for frame in pipe.walk(keys, **options))
    number_of_frames = videos.write_video(drawn, out, fps)
    print(f"{out}  ({number_of_frames} frames, {time.perf_counter() - start:.1f} s)")


@app.command()
def mix(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Weights = None,
    rows: Annotated[str, typer.Option(help="Seeds of the rows: pose and shape.")] = "1-4",
    cols: Annotated[str, typer.Option(help="Seeds of the columns: the rest.")] = "10-14",
    layers: Annotated[int, number("Number of layers, from the coarsest on, that come from the rows.", 0, 64)] = 4,
    psi: Psi = None,
    size: Annotated[int | None, typer.Option(help="Side of a picture in the grid in px; default 256.")] = None,
    out: Annotated[Path, path_option("File of the grid.")] = Path("mix.png"),
    num_threads: Threads = None,
):
    """Mix styles: a grid whose rows give pose and shape, and whose columns give the rest."""
    start = time.perf_counter()
    names, weights = named_looks(adapter, weight)
    coarse, fine = parse_seeds(rows, "--rows"), parse_seeds(cols, "--cols")
    grids.check_grid(out, 1, 1, 1)
    begin(num_threads)

    from PIL import Image

    pipe, _ = load_pipeline(base, names, weights)
    if layers > (most := getattr(pipe.generator, "num_ws", layers)):
        raise ValueError(f"--layers {layers}: this base has {most} layers; give 0 to {most}")
    side = grids.check_size(size, pipe.generator.resolution)
    side = side if size is not None else min(side, grids.SHEET_TILE)
    grids.check_grid(out, (len(coarse) + 1) * (len(fine) + 1), len(fine) + 1, side)
    of_rows, of_columns = pipe.latents(seeds=coarse), pipe.latents(seeds=fine)
    drawn = pipe(latents=pipe.map_latents(of_columns, truncation_psi=psi), batch_size=2).images
    heads = [grids.shrink(image, side) for image in drawn]
    tiles = [Image.new("RGB", (side, side), "white"), *heads]
    for z in of_rows.split(1):  # a row in memory at a time
        row = pipe(latents=z, truncation_psi=psi).images
        row += pipe.mix_styles(z, of_columns, crossover=layers, truncation_psi=psi, batch_size=2).images
        tiles += [grids.shrink(image, side) for image in row]
    replace_file(out, grids.make_grid(tiles, len(fine) + 1, side).save)
    print(f"{out}  ({len(tiles) - 1} pictures, {time.perf_counter() - start:.1f} s)")


@app.command()
def directions(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Weights = None,
    method: Annotated[
        str | None, typer.Option(help="sefa or ganspace to find some, or a file; default: those of the base.")
    ] = None,
    num: Annotated[int | None, number("Number of directions to find by --method; default 10.", 1, 512)] = None,
    seed: Annotated[int, seed_option("Seed of the face.")] = 0,
    strength: Annotated[float, number("Largest strength in the picture.", 0.1, 100)] = 3.0,
    psi: Psi = None,
    out: Annotated[Path, path_option("Picture: a row for each direction, from -strength to strength.")] = Path(
        "directions.png"
    ),
    save: Annotated[Path | None, path_option("File for the directions that were found.")] = None,
    num_threads: Threads = None,
):
    """Show directions of edits, of the base or found by sefa or ganspace."""
    start = time.perf_counter()
    names, weights = named_looks(adapter, weight)
    grids.check_grid(out, 1, 1, 1)
    finds = method in ("sefa", "ganspace")
    if save is not None and save.is_dir():
        raise ValueError(f"--save {save} is a folder; give a file name like directions.safetensors")
    if num is not None and not finds:
        raise ValueError(f"--num {num}: only --method sefa or ganspace finds directions; give one, or leave --num out")
    begin(num_threads)
    pipe, _ = load_pipeline(base, names, weights)
    found = pipe.directions(method, **({"num": 10 if num is None else num} if finds else {}))
    side, columns = min(grids.SHEET_TILE, pipe.generator.resolution), 5
    grids.check_grid(out, columns * len(found), columns, side)
    latents, tiles = pipe.latents(seed=seed), []
    for name in found:
        for column in range(columns):
            moved = pipe.edit(latents, {name: strength * (column - 2) / 2}, found, truncation_psi=psi)
            tiles += [grids.shrink(image, side) for image in pipe(latents=moved).images]
    replace_file(out, grids.make_grid(tiles, columns, side).save)
    if save is not None:
        found.save(save)
    print(f"rows: {', '.join(found)}")
    print(f"{out}  ({len(tiles)} pictures, {time.perf_counter() - start:.1f} s)")
