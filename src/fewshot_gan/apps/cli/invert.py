"""`fewshot-gan invert`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ...data import grids
from ...utils.files import replace_file
from .options import Base, Space, Threads, count, path_argument, path_option, seed_option
from .root import app, begin


@app.command()
def invert(
    photos: Annotated[list[Path], path_argument("Pictures; cropped to the centre square.")],
    base: Base = "ffhq",
    space: Annotated[Space, typer.Option(help="w keeps to what the base knows, w+ comes closer.")] = Space.w,
    steps: Annotated[int, count("Of the optimisation.")] = 150,
    seed: Annotated[int, seed_option("Of its noise.")] = 0,
    out: Annotated[
        Path,
        path_option("File of the latents; a picture of the result, NAME-sheet.png, beside it."),
    ] = Path("latents.safetensors"),
    num_threads: Threads = None,
):
    """Find latents of your own photos, for generate --latents."""
    start = time.perf_counter()
    if out.is_dir() or out.suffix != ".safetensors":
        raise ValueError(f"--out {out} is no file of latents; give a name ending in .safetensors")
    sheet = out.with_name(f"{out.stem}-sheet.png")
    if sheet.resolve() in [photo.resolve() for photo in photos]:
        raise ValueError(f"{sheet}, where the result is shown, is one of the photos; give another --out")

    from safetensors.torch import save_file

    from ...pipeline import FewShotGAN

    begin(num_threads)
    pipe = FewShotGAN.from_pretrained(base)
    given = [_squared(path, pipe.generator.resolution) for path in photos]
    found = pipe.invert(given, space=space.value, steps=steps, seed=seed)
    replace_file(out, lambda path: save_file({"latents": found.latents.contiguous()}, path))
    drawn = pipe(latents=found.latents).images
    replace_file(sheet, grids.make_grid([*given, *drawn], len(drawn)).save)
    quality = ", ".join(f"{path.name} {value:.1f} dB" for path, value in zip(photos, found.psnr, strict=True))
    print(f"{out}  ({quality}; {time.perf_counter() - start:.0f} s)")


def _squared(path: Path, size: int):
    """The photo as it is inverted."""
    from PIL import Image

    from ...data.images import read_image, square

    return Image.fromarray(square(read_image(path), size).permute(1, 2, 0).numpy())
