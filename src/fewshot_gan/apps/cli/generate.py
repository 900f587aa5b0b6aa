"""`fewshot-gan generate`."""

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from ...data import grids
from ...utils.files import replace_file, write_folder
from .options import (
    Adapters,
    Base,
    Edits,
    FileFormat,
    NoiseMode,
    Psi,
    Seeds,
    Threads,
    count,
    number,
    parse_numbers,
    parse_seeds,
    parse_strengths,
    path_option,
    seed_option,
)
from .root import app, begin, refuse_existing
from .sources import load_person, load_pipeline, named_looks, read_latents

FOLDERS = ("--separate", "--format")  # options that write a folder instead of a grid


@app.command()
def generate(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight of each adapter, in order; default 1. By depth: coarse:0,middle:0.5,fine:1 or 4:0,32:1."
        ),
    ] = None,
    num_images: Annotated[int | None, count("Number of pictures; default 4.")] = None,
    seed: Annotated[int, seed_option("Seed of the latents: the same seed draws the same pictures.")] = 0,
    seeds: Seeds = None,
    psi: Psi = None,
    truncations: Annotated[
        str | None, typer.Option(help="Draw each picture with these truncations, a column each, like 0,0.3,0.5,0.7,1.")
    ] = None,
    edit: Edits = None,
    noise_mode: Annotated[NoiseMode, typer.Option(help="Per-pixel noise: const, random, or none.")] = NoiseMode.const,
    class_label: Annotated[
        list[int] | None,
        number("Class of a class-conditional base: one for all pictures, or repeat for one per picture.", 0, 2**31 - 1),
    ] = None,
    batch_size: Annotated[int | None, count("Pictures per forward pass; default 8, or 2 above 512 px.")] = None,
    latents: Annotated[
        Path | None, path_option("Draw these latents, a file of fewshot-gan invert, instead of random ones.")
    ] = None,
    person: Annotated[
        str | None, typer.Option(help="Draw the person of this adapter, of restyle --keep, instead of random faces.")
    ] = None,
    out: Annotated[Path | None, path_option("File of the grid; with --separate or --format the folder.")] = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="Write one file per picture instead of a grid; all of them or none.")
    ] = False,
    file_format: Annotated[
        FileFormat | None,
        typer.Option(
            "--format", help="Write a folder of any number of pictures instead of a grid; the same command resumes it."
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        count("Pictures per file of webdataset (tar) and parquet; default 1024, or 256 above 512 px."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Reduce the pictures to this many px, 16 or more; default: the base's size, in a grid at most 512."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw a row without adapters, then a row per adapter.")
    ] = False,
    interpolate: Annotated[
        int | None,
        number(
            "Blend from one adapter to the next in this many pictures per row; with one adapter, from the base.",
            2,
            1000,
        ),
    ] = None,
    num_threads: Threads = None,
):
    """Write pictures of a base, with or without adapters."""
    start = time.perf_counter()
    names, weights = named_looks(adapter, weight)
    if interpolate is not None and (not 1 <= len(names) <= 2 or compare or separate or weight or file_format):
        raise ValueError(
            "--interpolate takes one --adapter or two, and neither --weight, --compare, --separate nor --format; "
            f"got {len(names)} adapters"
        )
    if separate and file_format:
        raise ValueError(
            "--separate writes a folder of png files all at once, --format one that can be resumed; give one of them"
        )
    if shard_size is not None and not file_format:
        raise ValueError("--shard-size belongs to --format webdataset and parquet; give one of these, or leave it out")
    strengths = parse_strengths(edit or [])
    columns_of_psi = parse_numbers(truncations, "--truncations", -1000, 1000) if truncations is not None else []
    if columns_of_psi and (psi is not None or compare or interpolate or separate or file_format or latents or edit):
        raise ValueError("--truncations makes a grid of a look; leave out --psi, --latents, --edit and other layouts")
    if seeds is not None and latents is not None:
        raise ValueError("--seeds and --latents both say what is drawn; give one of them")
    if num_images is not None and (seeds is not None or latents is not None):
        given = "--latents" if seeds is None else "--seeds"
        raise ValueError(f"--num-images {num_images}: {given} says how many pictures there are; give one of them")
    if person is not None and (columns_of_psi or interpolate or separate or file_format or latents or seeds or edit):
        raise ValueError("--person draws a grid, in looks and with --compare; leave out other layouts, faces and edits")
    chosen = [] if seeds is None else parse_seeds(seeds)
    out = out or Path("faces" if separate or file_format else "faces.png")
    if separate:
        refuse_existing(out)
    elif not file_format:
        grids.check_grid(out, 1, 1, 1, FOLDERS)

    from ...pipeline import BASE
    from .. import generation

    begin(num_threads)
    processes = generation.launched()
    if processes and not file_format:
        raise ValueError(
            "several processes can only write a folder together, with --format; start a single process otherwise"
        )
    pipe, loaded = load_pipeline(base, names, weights)
    someone, of_photos = (None, 4) if person is None else load_person(pipe, person)
    num_images = num_images or of_photos
    if compare or interpolate:  # the faces of the base in every look
        pipe.set_adapters([])
    options = {"seed": seed, "truncation_psi": psi, "noise_mode": noise_mode.value}
    options["batch_size"] = batch_size or generation.usual_batch(pipe.generator.resolution)
    if someone is not None:
        options["person"] = someone
    if class_label:
        options["class_labels"] = class_label[0] if len(class_label) == 1 else class_label
    if latents is not None:
        options["latents"] = read_latents(latents, getattr(pipe.generator, "num_ws", None))
        num_images = len(options["latents"])
    if chosen:
        options["latents"], num_images = pipe.latents(seeds=chosen, truncation_psi=psi), len(chosen)
        if not pipe.generator.has_styles:
            del options["truncation_psi"]  # it is in these latents
    if strengths:
        start_from = options.get("latents")
        start_from = pipe.latents(num_images, seed=seed) if start_from is None else start_from
        options["latents"] = pipe.edit(start_from, strengths, truncation_psi=psi)
        del options["truncation_psi"]  # it is in these latents
    side = grids.check_size(size, pipe.generator.resolution)
    tile = min(side, grids.TILE) if size is None else side
    looks = [{}, *({n: w} for n, w in loaded.items())] if compare else [loaded]
    columns = interpolate or len(columns_of_psi) or (num_images if compare else math.ceil(math.sqrt(num_images)))
    if not (separate or file_format):
        grids.check_grid(out, num_images * (interpolate or len(columns_of_psi) or len(looks)), columns, tile, FOLDERS)
    if interpolate is not None:
        first, last = [BASE, *loaded][-2:]
        images = generation.draw_strips(pipe, first, last, interpolate, num_images, tile, **options)
        replace_file(out, grids.make_grid(images, columns, tile).save)
        print(f"{out}  ({len(images)} pictures, {time.perf_counter() - start:.1f} s)")
        return
    if columns_of_psi:
        options.pop("truncation_psi", None)
        by_psi = []
        for one in columns_of_psi:
            truncated: dict = {"truncation_psi": one}
            if chosen and not pipe.generator.has_styles:
                truncated = {"latents": pipe.latents(seeds=chosen, truncation_psi=one)}
            by_psi.append(generation.draw_tiles(pipe, num_images, tile, **options | truncated))
        images = [tile_of_psi for row in zip(*by_psi, strict=True) for tile_of_psi in row]
        replace_file(out, grids.make_grid(images, columns, tile).save)
        print(f"{out}  ({len(images)} pictures, {time.perf_counter() - start:.1f} s)")
        return
    if file_format or separate:
        options["size"] = size
        if "latents" in options and latents is None:  # of --seeds, or of --seed and edited
            options["seeds"] = chosen or [seed] * num_images
        options["looks"] = {f"{next(iter(look), 'base')}-" if compare else "": look for look in looks}
    if file_format:
        pipe.to(generation.device())
        options |= {"file_format": file_format.value, "shard_size": shard_size}
        generation.write_pictures(pipe, out, num_images, **options)
    elif separate:

        def write(folder):
            generation.write_pictures(pipe, folder, num_images, **options)
            (
                folder / generation.MANIFEST
            ).unlink()  # the folder appears when it is complete, so there is nothing to resume

        write_folder(out, write)
    else:
        tiles = []
        for look in looks:
            pipe.set_adapters(look)
            tiles += generation.draw_tiles(pipe, num_images, tile, **options)
        replace_file(out, grids.make_grid(tiles, columns, tile).save)
    if processes:
        processes.destroy_process_group()
    if not processes or processes.is_main_process:
        print(f"{out}  ({num_images * len(looks)} pictures, {time.perf_counter() - start:.1f} s)")
