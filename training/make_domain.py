"""Makes a small training set whose true look is known: filtered samples of a base generator, or DiceBear drawings.

    python training/make_domain.py --base ffhq --style filter:pencil --num 10 --seed 7 --out data/pencil
    python training/make_domain.py --style dicebear:lorelei --num 10 --out data/lorelei

    python training/make_domain.py --base ffhq --style filter:ink --num 10 --format jpg --quality 90 --out data/ink

Writes 000.png, 001.png, … (or .jpg, .webp) and dataset.json. Judge the adapter later with `training/benchmark.py` and
*another* seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewshot_gan.data.images import to_bytes
from fewshot_gan.training.domains import apply_filter, dicebear_licence, parse_style, render_dicebear
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import user_path
from fewshot_gan.utils.threads import add_threads_option, set_threads

FORMATS: dict[str, dict] = {  # ending: options of Pillow
    "png": {},
    "jpg": {"subsampling": 0, "optimize": True},  # colour at full size: coloured lines stay sharp
    "webp": {"method": 6},
}
QUALITY = 90


def sample_base(base: str, num: int, seed: int, psi: float) -> Tensor:
    """Samples of the base, float `[num, 3, H, W]` in [-1, 1]."""
    from fewshot_gan import FewShotGAN

    pipe = FewShotGAN.from_pretrained(base)
    return pipe(num_images=num, seed=seed, truncation_psi=psi, output_type="pt").images * 2 - 1


def write_dataset(
    images: Tensor | dict[str, Tensor],
    info: dict,
    out: Path,
    overwrite: bool,
    format: str = "png",
    quality: int = QUALITY,
) -> None:
    """Writes uint8 `[N, 3, H, W]` and `dataset.json` beside `out` and renames: `out` is complete or not there at all.

    Of a dict every entry gets a folder of its own. `format` is a key of `FORMATS`; `quality` counts for all but png.

    Raises:
        FileExistsError: `out` is a file, or a folder with something in it and not `overwrite`.
    """
    check_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        for name, pictures in images.items() if isinstance(images, dict) else [("", images)]:
            (new / name).mkdir(exist_ok=True)
            width = max(3, len(str(len(pictures) - 1)))  # sorted by name is sorted by number
            for index, image in enumerate(pictures):
                path = new / name / f"{index:0{width}d}.{format}"
                options = FORMATS[format] | ({} if format == "png" else {"quality": quality})
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, **options)
        (new / "dataset.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)


def check_free(out: Path, overwrite: bool) -> None:
    """Raises FileExistsError where `write_dataset` would: asked before the slow part."""
    if out.is_file():
        raise FileExistsError(f"{out} is a file; choose a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(f"{out} is not empty; choose another folder or add --overwrite to replace all of it")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--style", required=True, help="filter:NAME (of the base's samples) or dicebear:NAME")
    parser.add_argument("--out", type=user_path, required=True, help="folder to make")
    parser.add_argument("--base", default="ffhq", help="base generator, for filter styles (default: ffhq)")
    parser.add_argument("--num", type=int, default=10, help="images (default: 10)")
    parser.add_argument("--seed", type=int, default=7, help="seed of latents or drawings (default: 7)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation of the base's samples (default: 0.7)")
    parser.add_argument("--resolution", type=int, help="side in pixels (default: the base's; 256 for drawings)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="png",
        help="of the files; ten 1024 px photos are 15 MB as png (default: png)",
    )
    parser.add_argument("--quality", type=int, help=f"of jpg and webp, 1 to 100 (default: {QUALITY})")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    add_threads_option(parser)
    args = parser.parse_args(argv)
    set_threads(args.num_threads)
    if args.num < 1:
        parser.error(f"--num {args.num} is below 1; 10 is typical")
    if args.resolution is not None and args.resolution < 32:
        parser.error(f"--resolution {args.resolution} is below the limit of 32 px; leave it out for the base's own")
    if args.quality is not None and (args.format == "png" or not 1 <= args.quality <= 100):
        parser.error(f"--quality {args.quality} of {args.format}: give 1 to 100, and --format jpg or webp")
    try:
        kind, name = parse_style(args.style)
        check_free(args.out, args.overwrite)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))

    info = {"style": args.style, "num": args.num, "seed": args.seed}
    if kind == "filter":
        images = sample_base(args.base, args.num, args.seed, args.psi)
        # at the base's resolution, as the benchmark does; one by one: filters take many times a picture's memory
        images = torch.cat([to_bytes(apply_filter(image, name)) for image in images.split(1)])
        if args.resolution not in (None, images.shape[-1]):
            images = resize_uint8(images, args.resolution)
        licence = {
            "name": f"as the base {args.base!r}",
            "text": "Filtered samples of the base generator; see its card.",
        }
        info |= {"base": args.base, "truncation_psi": args.psi}
    else:
        images = render_dicebear(name, args.num, args.resolution or 256, args.seed)
        licence = dicebear_licence(name)
    quality = QUALITY if args.quality is None else args.quality
    info |= {"resolution": images.shape[-1]} | ({} if args.format == "png" else {"quality": quality})
    write_dataset(images, info | {"licence": licence}, args.out, args.overwrite, args.format, quality)
    print(f"{len(images)} images of {args.style} at {images.shape[-1]} px -> {args.out}", file=sys.stderr)


def resize_uint8(images: Tensor, resolution: int) -> Tensor:
    """Lanczos, the resize of `load_images`."""
    out = torch.empty(len(images), 3, resolution, resolution, dtype=torch.uint8)
    for row, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.resize((resolution, resolution), Image.Resampling.LANCZOS)
        out[row] = (
            torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            .view(resolution, resolution, 3)
            .permute(2, 0, 1)
        )
    return out


if __name__ == "__main__":
    with script():
        main()
