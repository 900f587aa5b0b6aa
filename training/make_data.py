"""Makes a limited data set that needs no download: small faces of a base generator, or classes of DiceBear drawings.

    python training/make_data.py --faces 3000 --resolution 32 --out data/faces
    python training/make_data.py --classes lorelei micah bottts --num 300 --resolution 32 --out data/avatars

Faces go straight into the folder, classes into a folder each, beside dataset.json. What a training script takes of it
is its own choice: `--num` or `--percent` and `--subset_seed`.
"""

from __future__ import annotations

import argparse
import sys

import torch
from make_domain import check_free, resize_uint8, write_dataset

from fewshot_gan.data.images import to_bytes
from fewshot_gan.training.domains import dicebear_licence, parse_style, render_dicebear
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import user_path
from fewshot_gan.utils.threads import add_threads_option, set_threads

CHUNK = 64


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--faces", type=int, metavar="N", help="so many samples of the base")
    what.add_argument("--classes", nargs="+", metavar="STYLE", help="DiceBear styles, a class each")
    parser.add_argument("--num", type=int, default=300, help="drawings per class (default: 300)")
    parser.add_argument("--base", default="ffhq-256", help="of --faces (default: ffhq-256)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation of the base's samples (default: 0.7)")
    parser.add_argument("--resolution", type=int, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--seed", type=int, default=7, help="of latents or drawings (default: 7)")
    parser.add_argument("--out", type=user_path, required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    add_threads_option(parser)
    args = parser.parse_args(argv)
    set_threads(args.num_threads)
    for name, value, least in (("faces", args.faces, 2), ("num", args.num, 1), ("resolution", args.resolution, 32)):
        if value is not None and value < least:
            parser.error(f"--{name} {value} is below {least}")
    try:
        check_free(args.out, args.overwrite)
        for style in args.classes or ():
            parse_style(f"dicebear:{style}")
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    info = {"seed": args.seed, "resolution": args.resolution}
    if args.faces:
        images = faces(args.base, args.faces, args.seed, args.psi, args.resolution)
        licence = {"name": f"as the base {args.base!r}", "text": "Samples of the base generator; see its card."}
        info |= {"style": "faces", "num": args.faces, "base": args.base, "truncation_psi": args.psi}
        write_dataset(images, info | {"licence": licence}, args.out, args.overwrite)
        print(f"{len(images)} faces at {args.resolution} px -> {args.out}", file=sys.stderr)
        return
    classes = {style: render_dicebear(style, args.num, args.resolution, args.seed) for style in args.classes}
    info |= {"style": "classes", "classes": args.classes, "num": args.num}
    licences = {style: dicebear_licence(style) for style in args.classes}
    info["licence"] = {"text": "; ".join(f"{style}: {of['text']}" for style, of in licences.items())}
    write_dataset(classes, info, args.out, args.overwrite)
    print(f"{args.num} images of each of {len(classes)} classes -> {args.out}", file=sys.stderr)


def faces(base: str, num: int, seed: int, psi: float, resolution: int) -> torch.Tensor:
    """Samples of the base, uint8 `[num, 3, resolution, resolution]`; a longer run starts with the same images."""
    from fewshot_gan import FewShotGAN

    pipe, random = FewShotGAN.from_pretrained(base), torch.Generator().manual_seed(seed)
    images = torch.empty(num, 3, resolution, resolution, dtype=torch.uint8)
    for start in range(0, num, CHUNK):
        count = min(CHUNK, num - start)
        drawn = pipe(count, generator=random, truncation_psi=psi, output_type="pt").images
        images[start : start + count] = resize_uint8(to_bytes(drawn * 2 - 1), resolution)
    return images


if __name__ == "__main__":
    with script():
        main()
