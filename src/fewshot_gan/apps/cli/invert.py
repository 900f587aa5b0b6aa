"""`fewshot-gan invert`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...data import grids
from ...utils.files import replace_file
from .options import Base, Space, Threads, count, number, path_argument, path_option, seed_option
from .root import app, begin
from .sources import write_latents

FRAMES, FPS = 300, 24  # most frames of a film, and frames a second
LATENT_FILES = (".safetensors", ".npz", ".npy")


@app.command()
def invert(
    photos: Annotated[list[Path], path_argument("Photos of faces.")],
    base: Base = "ffhq",
    space: Annotated[
        Space, typer.Option(help="Latent space: w looks more like the base's pictures, w+ is closer to the photo.")
    ] = Space.w,
    steps: Annotated[int, count("Optimisation steps.")] = 150,
    seed: Annotated[int, seed_option("Seed of the noise in the optimisation.")] = 0,
    align: Annotated[
        bool, typer.Option(help="Bring the face to where the base draws faces; else use the centre square.")
    ] = True,
    face: Annotated[int | None, number("Which of several faces, from 0, the largest; default 0.", 0, 1000)] = None,
    all_faces: Annotated[bool, typer.Option("--all-faces", help="One result for each face of a photo.")] = False,
    out: Annotated[
        Path,
        path_option("File of the latents; NAME-sheet.png beside it shows photos and results."),
    ] = Path("latents.safetensors"),
    video: Annotated[
        Path | None, path_option("Film of the search, photo beside picture: .mp4, .gif or .webp; of one face.")
    ] = None,
    num_threads: Threads = None,
):
    """Find latents of your own photos, for generate --latents."""
    start = time.perf_counter()
    if out.is_dir() or out.suffix.lower() not in LATENT_FILES:
        raise ValueError(f"--out {out} cannot be a file of latents; give a name ending in {', '.join(LATENT_FILES)}")
    sheet, originals = out.with_name(f"{out.stem}-sheet.png"), {photo.resolve() for photo in photos}
    for path, what, option in (
        (out, "the latents", "--out"),
        (sheet, "the picture of the result", "--out"),
        (video, "the film", "--video"),
    ):
        if path is not None and path.resolve() in originals:
            raise ValueError(f"{path} would be overwritten by {what}, but is one of the photos; give another {option}")
    from ..videos import check_video, write_video

    if all_faces and face is not None:
        raise ValueError(f"--face {face} chooses one face, and --all-faces takes each; give one of them")
    every = -(-steps // FRAMES)
    if video is not None:
        check_video(video, steps // every, FPS, "--video")

    import torch

    from ...data.images import as_image, to_bytes
    from ...faces import read_faces
    from ...pipeline import FewShotGAN

    begin(num_threads)
    pipe = FewShotGAN.from_pretrained(base)
    squares, names = [], []
    which = "all" if all_faces else face or 0
    for photo in photos:
        found, _ = read_faces(photo, pipe.generator.resolution, pipe.config.mean_landmarks, align, which)
        squares += list(found)
        names += [photo.name] * len(found)
    if video is not None and len(squares) > 1:
        raise ValueError(f"--video shows one face, and there are {len(squares)}; give one photo without --all-faces")
    shown, frames = [as_image(square) for square in squares], []

    def on_step(step: int, drawn) -> None:
        if step % every == 0:
            frames.append(grids.make_grid([shown[0], as_image(to_bytes(drawn[0].cpu()))], 2))

    options: dict[str, Any] = {"on_step": on_step} if video is not None else {}
    inversion = pipe.invert(torch.stack(squares), space=space.value, steps=steps, seed=seed, **options)
    write_latents(out, inversion.latents)
    if video is not None:
        write_video(iter(frames), video, FPS)
    drawn = pipe(latents=inversion.latents).images
    replace_file(sheet, grids.make_grid([*shown, *drawn], len(drawn)).save)
    psnr_per_photo = ", ".join(f"{name} {value:.1f} dB" for name, value in zip(names, inversion.psnr, strict=True))
    print(f"{out}  ({psnr_per_photo}; {time.perf_counter() - start:.0f} s)")
