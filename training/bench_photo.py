"""Measures how well a photo becomes its person: likeness, pictures and time, from the aligned photo to person and look.

    pip install '.[train,photo]'
    python training/bench_photo.py --photos portraits/ --out report.json --sheet sheet.jpg
    python training/bench_photo.py --num 32 --out report.json      # stand-ins: disturbed pictures of the base

Without `--photos` the photos are pictures of the base (seed 700000, psi 0.7) that are turned by up to 10 degrees,
shifted, and lit otherwise: portraits that anybody can make again.

Rows: the estimate of the base's encoder, w found from the mean latent and from the estimate, w+ (`pipe.invert`), and
the person (`pipe.personalize`), each beside the aligned photo. `identity` is the distance of the embeddings of dlib's
recognition network: below 0.6 for photos of one person. No loss uses it. `perceptual` is the distance that the training
minimises. With `--looks` the drawing of the person, and that of w, are compared with the filter of the look applied to
the photo itself. `change_of_others` is how much the adapter of the person changes other faces, in pixels from 0 to 1.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewshot_gan import FewShotGAN, faces
from fewshot_gan.data.files import FORMAT_OF
from fewshot_gan.data.grids import SHEET_TILE, make_grid
from fewshot_gan.data.images import as_image, to_bytes
from fewshot_gan.features import load_features
from fewshot_gan.inversion import PerceptualDistance
from fewshot_gan.metrics import psnr
from fewshot_gan.training.domains import apply_filter
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.ranges import COUNT, check_number
from fewshot_gan.utils.threads import add_threads_option, set_threads

RECOGNITION = "dlib_face_recognition_resnet_model_v1.dat"  # its author put it into the public domain (CC0)
STAND_IN_SEED, OTHERS_SEED = 700_000, 800_000
FILTERS = {"sketch": "pencil", "ink": "ink", "poster": "poster"}  # looks whose true drawing of a photo is known


class Judge:
    """Embeds faces by dlib's recognition network."""

    def __init__(self):
        path = faces.model_file(RECOGNITION)
        import dlib

        tools: Any = dlib
        self.detector, self.predictor = faces._detector_and_predictor()
        self.network = tools.face_recognition_model_v1(path)

    def embed(self, image: Image.Image) -> np.ndarray | None:
        """Return the embedding `[128]` of the largest face, or None if none is found."""
        pixels = np.asarray(image.convert("RGB").resize((512, 512), Image.Resampling.LANCZOS))
        found = self.detector(pixels, 0)
        if not found:
            return None
        box = max(found, key=lambda box: box.area())
        return np.array(self.network.compute_face_descriptor(pixels, self.predictor(pixels, box)))

    def distance(self, a: Image.Image, b: Image.Image) -> float | None:
        """Return the distance of the faces in two pictures; None if one shows no face."""
        first, second = self.embed(a), self.embed(b)
        return None if first is None or second is None else round(float(np.linalg.norm(first - second)), 4)


def stand_ins(pipe: FewShotGAN, num: int) -> list[Image.Image]:
    """Return pictures of the base, turned, shifted and lit otherwise; picture i depends on i alone."""
    photos = []
    for index in range(num):
        random = np.random.default_rng(index)
        (picture,) = pipe(1, seed=STAND_IN_SEED + index, truncation_psi=0.7, adapter_names="__base__").images
        side = picture.width
        angle, scale = math.radians(random.uniform(-10, 10)), random.uniform(1.1, 1.4)
        shift = random.uniform(-0.08, 0.08, 2) * side
        turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        middle = np.full(2, (side - 1) / 2)
        place = np.concatenate([turn, (middle + shift - turn @ middle)[:, None]], 1)
        pixels = np.asarray(faces.cut(picture, faces.Alignment(place, side))) / 255
        gamma, tint = random.uniform(0.75, 1.35), random.uniform(0.92, 1.08, 3)
        ramp = np.linspace(*random.uniform(0.85, 1.1, 2), side)[None, :, None]  # light from one side
        photos.append(Image.fromarray((255 * (pixels**gamma * tint * ramp).clip(0, 1)).round().astype(np.uint8)))
    return photos


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--base", default="ffhq", help="base of faces: embedded name, folder or Hub repo (default: ffhq)")
    p.add_argument("--photos", type=user_path, nargs="*", help="photos, or folders of them; default: stand-ins")
    p.add_argument("--num", type=int, default=32, help="stand-ins (default: 32)")
    p.add_argument("--inversion_steps", type=int, default=50, help="of pipe.invert and pipe.personalize")
    p.add_argument("--steps", type=int, default=120, help="of pipe.personalize")
    p.add_argument("--others", type=int, default=64, help="random faces that the person should not change")
    p.add_argument("--adapter", default="left", help="left or full")
    p.add_argument("--looks", nargs="*", default=[], help=f"looks to draw, of {', '.join(FILTERS)} with their truth")
    p.add_argument("--out", type=user_path, required=True, help="report, JSON")
    p.add_argument("--sheet", type=user_path, help="picture: a row for each photo")
    add_threads_option(p)
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    for name in ("num", "inversion_steps", "steps", "others"):
        check_number(name, getattr(args, name), COUNT, whole=True)
    pipe = FewShotGAN.from_pretrained(args.base)
    for look in args.looks:
        pipe.load_adapter(look)
    if args.photos:
        paths = [file for path in args.photos for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        photos: list = [path for path in paths if path.suffix.lower() in FORMAT_OF]
        if missing := [path for path in (*args.photos, *photos) if not path.exists()]:
            raise FileNotFoundError(f"there is no photo {missing[0]}")
        if not photos:
            raise ValueError(f"{', '.join(map(str, args.photos))}: no photo of a known format (.jpg, .png, …) is there")
        names = [f"{i}: {path.name}" for i, path in enumerate(photos)]
    else:
        names, photos = [f"stand-in {i}" for i in range(args.num)], stand_ins(pipe, args.num)
    judge, features, rows, tiles = Judge(), load_features(), {}, []
    for name, photo in zip(names, photos, strict=True):
        rows[name], shown = measure(pipe, photo, args, judge, features)
        tiles += shown
        print(name, json.dumps(rows[name]), flush=True)
    stages = next(iter(rows.values()))
    means = {
        stage: {key: _mean([row[stage][key] for row in rows.values()]) for key in values}
        for stage, values in stages.items()
    }
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    options.pop("photos")
    report = {"options": options, "mean": means, "photos": rows}
    replace_text(args.out, json.dumps(report, indent=1) + "\n")
    if args.sheet:
        sheet = make_grid(tiles, len(tiles) // len(rows), SHEET_TILE)
        replace_file(args.sheet, sheet.save)
    print(json.dumps(means, indent=1))
    return report


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if known else None


def change_of_others(pipe: FewShotGAN, num: int) -> float:
    """Return the mean absolute change, pixels from 0 to 1, of `num` random faces by the adapter "me"."""
    changes = []
    for first in range(0, num, 4):
        options: Any = {"seed": OTHERS_SEED + first, "output_type": "pt"}
        before, after, again = (
            pipe(min(4, num - first), adapter_names=name, **options).images for name in ("__base__", "me", "__base__")
        )
        if not torch.equal(before, again):
            raise RuntimeError("the base draws other pictures after the adapter acted; please report this")
        changes += (after - before).abs().mean((1, 2, 3)).tolist()
    return round(mean(changes), 4)


def measure(pipe, photo, args, judge: Judge, features) -> tuple[dict[str, dict], list[Image.Image]]:
    """Return stage → numbers of one photo, and the pictures of its row in the sheet."""
    squares, _ = faces.read_faces(photo, pipe.generator.resolution, pipe.config.mean_landmarks)
    target, distance = squares / 127.5 - 1, PerceptualDistance(features, squares / 127.5 - 1)
    truth = as_image(squares[0])

    def numbers(drawn, seconds: float) -> dict:
        return {
            "identity": judge.distance(truth, as_image(to_bytes(drawn)[0])),
            "psnr": round(psnr(drawn, target), 2),
            "perceptual": round(float(distance(drawn)), 4),
            "seconds": round(seconds, 1),
        }

    searches = {"w from the mean": {"start": "mean"}, "w": {}, "w+": {"space": "w+"}}
    searches = {name: {"steps": args.inversion_steps, **options} for name, options in searches.items()}
    if pipe.latent_encoder is not None:
        searches = {"estimate": {"steps": 0}, **searches}
    found, stages, shown = {}, {}, [truth]
    for name, options in searches.items():
        start = time.perf_counter()
        found[name] = pipe.invert(squares, progress=False, **options)
        stages[name] = numbers(found[name].images, time.perf_counter() - start)
        shown.append(as_image(to_bytes(found[name].images)[0]))
    start = time.perf_counter()
    options = {"steps": args.steps, "inversion_steps": args.inversion_steps, "adapter": args.adapter}
    pipe.personalize(squares, "me", progress=False, **options)
    seconds = time.perf_counter() - start
    drawn = pipe(person="me", adapter_names="me", output_type="pt").images * 2 - 1
    stages["person"] = {**numbers(drawn, seconds), "change_of_others": change_of_others(pipe, args.others)}
    shown.append(as_image(to_bytes(drawn)[0]))
    for look in args.looks:
        of_person = pipe(person="me", adapter_names=look).images[0]
        of_w = pipe(latents=found["w"].latents, adapter_names=look).images[0]
        shown += [of_person]
        if look in FILTERS:
            true = as_image(to_bytes(apply_filter(target, FILTERS[look]))[0])
            stages[look] = {"identity": judge.distance(true, of_person), "identity_of_w": judge.distance(true, of_w)}
    pipe.delete_adapters("me")
    return stages, shown


if __name__ == "__main__":
    with script():
        main()
