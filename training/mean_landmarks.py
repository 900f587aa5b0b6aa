"""Measures where a base of faces has its mean face: five landmarks, to which photos are aligned.

    pip install '.[photo]'
    python training/mean_landmarks.py --base ffhq
    python training/mean_landmarks.py --base runs/ffhq-256/pipeline --write

dlib finds the points in `--num` pictures of the base; the result is their mean, in px of the base's pictures (x to the
right, y down, centres of pixels at whole numbers). Prints them as JSON; `--write` puts them into the `model_index.json`
of a base in a folder, and `pipe.config.mean_landmarks` reads them from there. The names are those of dlib's points in
dlib's order: `fewshot_gan.faces.LANDMARKS`.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from fewshot_gan import FewShotGAN
from fewshot_gan.faces import LANDMARKS, find_faces
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.json_files import read_json
from fewshot_gan.utils.ranges import COUNT, FINITE, check_number
from fewshot_gan.utils.threads import add_threads_option, set_threads


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--base", default="ffhq", help="embedded name, folder or Hub repo (default: ffhq)")
    p.add_argument("--num", type=int, default=16, help="pictures (default: 16)")
    p.add_argument("--psi", type=float, default=0.5, help="truncation (default: 0.5)")
    p.add_argument("--seed", type=int, default=0, help="seed of the latents (default: 0)")
    p.add_argument("--write", action="store_true", help="put the points into model_index.json of --base, a folder")
    add_threads_option(p)
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    check_number("num", args.num, COUNT, whole=True)
    check_number("psi", args.psi, FINITE)
    index = user_path(args.base) / "model_index.json"
    if args.write and not index.is_file():
        p.error(f"--write changes model_index.json, and {args.base} is no folder of a base; give its folder")
    points = mean_landmarks(args.base, args.num, args.psi, args.seed)
    print(json.dumps(points, indent=1))
    if args.write:
        replace_text(index, json.dumps(read_json(index) | {"mean_landmarks": points}, indent=2) + "\n")
    return points


def mean_landmarks(base: str, num: int, psi: float, seed: int) -> dict[str, list[float]]:
    """Return name → mean point of the faces that a base draws.

    Args:
        base: as of `FewShotGAN.from_pretrained`.
        num: pictures.
        psi: truncation.
        seed: of the latents.

    Raises:
        ImportError: the extra `photo` is not installed.
        ValueError: there is a picture without a face.
    """
    pictures = FewShotGAN.from_pretrained(base)(num, seed=seed, truncation_psi=psi, batch_size=1).images
    found = [find_faces(picture) for picture in pictures]
    if missing := [str(i) for i, faces in enumerate(found) if not faces]:
        raise ValueError(
            f"no face was found in picture {', '.join(missing)} of {num} at psi {psi}; take a base of faces, or a "
            "lower --psi"
        )
    mean = np.mean([faces[0].landmarks for faces in found], 0)
    return {name: [round(float(v), 2) for v in point] for name, point in zip(LANDMARKS, mean, strict=True)}


if __name__ == "__main__":
    with script():
        main()
