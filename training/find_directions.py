"""Finds the directions of edits that ship with the bases of faces: `assets/bases/directions.safetensors`.

    pip install '.[photo]'
    python training/find_directions.py --base ffhq-256 --out directions.safetensors --sheet sheet.jpg

Pose, smile, hair and light are measured in `--num` pictures: by dlib's landmarks and by colours at places that these
give. A direction is the mean change of w per change of a measure, the others being held (least squares). Age and
femininity have no such measure: they are principal components of w (GANSpace), named after looking. `--sheet` draws
each direction on eight faces. Bases with the same mapping network and lower layers share the file.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.data.grids import make_grid
from fewshot_gan.directions import Direction, Directions, ganspace
from fewshot_gan.faces import find_faces
from fewshot_gan.metrics import luminance
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, user_path
from fewshot_gan.utils.ranges import Range, check_number
from fewshot_gan.utils.threads import add_threads_option, set_threads

PSI, SEED = 0.8, 77
SIDE = 256  # px at which pictures are measured
MEASURES = ("yaw", "pitch", "smile", "hair_length", "hair_lightness", "skin_lightness", "side_light")
# name → measure, measures that are held, layers of w+ (three for each block, from 8 px on, after one for 4 px)
MEASURED = {
    "pose": ("yaw", (), (0, 7)),
    "smile": ("smile", ("yaw", "pitch", "skin_lightness", "hair_lightness", "hair_length"), (4, 10)),
    "hair length": ("hair_length", ("yaw", "smile", "skin_lightness", "hair_lightness"), (0, 7)),
    "fair hair": ("hair_lightness", ("yaw", "smile", "skin_lightness", "hair_length"), (7, None)),
    "light": ("side_light", ("yaw", "smile", "hair_lightness", "hair_length", "skin_lightness"), (7, None)),
}
COMPONENTS = {"age": ({8: -1.0, 3: 1.0}, (4, 10)), "femininity": ({2: 1.0}, (4, 10))}  # signs as in `oriented`
SHEET_FACES, SHEET_SEED, STRENGTHS = 8, 21, (-2, -1, 0, 1, 2)


def main(argv: list[str] | None = None) -> Directions:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--base", default="ffhq-256", help="base of faces (default: ffhq-256)")
    p.add_argument("--num", type=int, default=2400, help="measured pictures (default: 2400)")
    p.add_argument("--out", type=user_path, required=True, help="file of the directions")
    p.add_argument("--sheet", type=user_path, help="picture to write: faces from left to right, strengths downwards")
    add_threads_option(p)
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    check_number("num", args.num, Range(100), whole=True)
    pipe = FewShotGAN.from_pretrained(args.base)
    pipe.set_progress_bar_config(disable=True)
    w, measures = measured(pipe, args.num)
    found = Directions(
        {name: Direction(regressed(w, measures, of, held), *layers) for name, (of, held, layers) in MEASURED.items()}
        | {name: Direction(component(pipe, w, parts), *layers) for name, (parts, layers) in COMPONENTS.items()}
    )
    found.save(args.out)
    print(f"{args.out}: {', '.join(found)}; {len(w)} of {args.num} pictures have a face")
    if args.sheet is not None:
        tiles = [tile for name in found for tile in strips(pipe, found, name)]
        replace_file(args.sheet, lambda temp: make_grid(tiles, SHEET_FACES, 96).save(temp, quality=85))
    return found


def measured(pipe: FewShotGAN, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w `[M, D]` of the pictures that have a face, and their measures `[M, 7]`, each with mean 0 and deviation 1."""
    z = pipe.latents(num, seed=SEED)
    ws, rows = [], []
    for part in z.split(8):
        latents = pipe.map_latents(part, truncation_psi=PSI)
        images = pipe(latents=latents, output_type="pt").images
        if images.shape[-1] > SIDE:
            images = torch.nn.functional.interpolate(images, size=(SIDE, SIDE), mode="area")
        for w, image in zip(latents[:, 0], images, strict=True):
            faces = find_faces(Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()))
            if faces:
                ws.append(w)
                rows.append(measure(image, faces[0].landmarks))
    if len(rows) < 2:
        raise ValueError(
            f"{len(rows)} of {num} pictures of {pipe.base_name} have a face; these directions are of faces"
        )
    measures = torch.tensor(rows, dtype=torch.float32)
    return torch.stack(ws), (measures - measures.mean(0)) / measures.std(0)


def measure(image: torch.Tensor, landmarks: np.ndarray) -> list[float]:
    """`MEASURES` of a picture `[3, S, S]` in [0, 1] with these landmarks."""
    grey, side = luminance(image[None] * 2 - 1)[0, 0], image.shape[-1]
    left, right, nose = landmarks[:2].mean(0), landmarks[2:4].mean(0), landmarks[4]
    middle, eye = (left + right) / 2, float(np.linalg.norm(left - right))
    yaw, pitch = (float(value) for value in (nose - middle) / eye)

    def box(x: float, y: float, half: float, high: float, of: torch.Tensor = grey) -> torch.Tensor:
        top, bottom = (min(max(int(v), 0), side - 1) for v in (y - high, y + high))
        start, stop = (min(max(int(v), 0), side - 1) for v in (x - half, x + half))
        return of[..., top : bottom + 1, start : stop + 1]

    def colour(x: float, y: float, half: float, high: float) -> torch.Tensor:
        return box(x, y, half, high, image).flatten(1).median(1).values

    cheeks = [box(*point, 0.2 * eye, 0.18 * eye) for point in ((left[0], nose[1]), (right[0], nose[1]))]
    skin = torch.cat([cheek.flatten() for cheek in cheeks]).median()
    mouth = box(nose[0] - 0.1 * yaw * eye, nose[1] + 0.44 * eye, 0.42 * eye, 0.18 * eye)
    smile = float((mouth > skin + 0.06).float().mean())  # teeth are lighter than skin
    unit = side / 256
    hair = colour(middle[0], 23 * unit, 0.5 * eye, 7 * unit)
    necks = [colour(x * unit, 208 * unit, 10 * unit, 17 * unit) for x in (34, 222)]
    ground = torch.stack([colour(x * unit, 16 * unit, 7 * unit, 14 * unit) for x in (9, 247)])
    # beside the neck there is hair rather than ground
    alike = torch.stack([(neck - hair).abs().mean() for neck in necks]).mean()
    length = float(0.5 * (ground - hair).abs().mean() - alike)
    light = float(cheeks[0].mean() - cheeks[1].mean())
    return [yaw, pitch, smile, length, float(hair.mean()), float(skin), light]


def regressed(w: torch.Tensor, measures: torch.Tensor, of: str, held: tuple[str, ...]) -> torch.Tensor:
    """The mean change of w `[D]` with a measure, `held` ones being equal; one deviation of w along it."""
    columns = measures[:, [MEASURES.index(name) for name in (of, *held)]]
    change = torch.linalg.lstsq(columns, w - w.mean(0)).solution[0]
    return scaled(w, change)


def component(pipe: FewShotGAN, w: torch.Tensor, parts: dict[int, float]) -> torch.Tensor:
    """A sum of principal components of w, by number and weight."""
    found = ganspace(pipe.generator, max(parts) + 1)
    total = torch.stack([weight * oriented(found[str(i)].vector) for i, weight in parts.items()]).sum(0)
    return scaled(w, total)


def oriented(vector: torch.Tensor) -> torch.Tensor:
    """The vector or its opposite: the one whose largest number is positive, whatever the library returns."""
    return vector * vector[vector.abs().argmax()].sign()


def scaled(w: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    unit = vector / vector.norm()
    return unit * ((w - w.mean(0)) @ unit).std()


def strips(pipe: FewShotGAN, directions: Directions, name: str) -> list[Image.Image]:
    """Eight faces with each strength of a direction, row after row."""
    z, tiles = pipe.latents(SHEET_FACES, seed=SHEET_SEED), []
    for strength in STRENGTHS:
        tiles += pipe(latents=pipe.edit(z, {name: strength}, directions), batch_size=2).images
    return tiles


if __name__ == "__main__":
    with script():
        main()
