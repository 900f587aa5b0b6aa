"""Judges an adapter against the known truth of its look: distances, paired correlations, diversity and an honest sheet.

    python training/benchmark.py --base ffhq --adapter sketch --style filter:pencil --num 500 --seed 100000 \
        --out report.json --sheet sheet.png --crop_sheet crops.png
    python training/benchmark.py --profile cpu --output_dir runs/bench      # every method on every look: see bench.py

For N latents it renders the source and the adapted image. Truth for the distances comes from N *other* latents, truth
for the correlations from the *same* latents. `--seed` must differ from the seed of the training images. For DiceBear
styles no paired truth exists: the correlations with the source stand alone. A ratio is adapted over source: 0 is
perfect, 1 is no adaptation; of diversity it is adapted over true: 1 is perfect.

The judges see pictures reduced to 224-260 px. Of pictures above 256 px, keys that start with `native_` are the same
numbers of crops of 256 px at full size (see `fewshot_gan.metrics.crops`).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewshot_gan import __version__
from fewshot_gan.data.datasets import load_images
from fewshot_gan.data.grids import check_grid
from fewshot_gan.data.images import reduced, to_bytes, to_floats
from fewshot_gan.faces import can_find_faces, find_faces
from fewshot_gan.features import FeatureNetwork, load_features
from fewshot_gan.metrics import (
    CROP_SEED,
    CROP_SIZE,
    CROPS,
    FACE_SIDE,
    balanced_intra_cluster_distance,
    crop_kernel_distance,
    crop_places,
    frechet_distance,
    intra_cluster_distance,
    kernel_distance,
    lightness_following,
    mean_of_pairs,
    native_crops,
    order_correlation,
    paired_correlations,
    pairwise_distances,
    plain_features,
    spatial_embedding,
)
from fewshot_gan.training.domains import apply_filter, parse_style, render_dicebear
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.threads import add_threads_option, set_threads

SIDE = 256  # px; pictures are kept and correlated at most this large
SPATIAL_IMAGES = 500  # the first so many are compared picture by picture
FEATURES = "efficientnet-lite0, pooled 1280-d at 224 px (bilinear, antialiased)"
UNSEEN = "efficientnet-lite2"  # pooled 1280-d at 260 px: only judges, no training signal comes from it
LANDMARK_IMAGES = 64  # the first so many are looked at for faces, if dlib is installed
SHEET_IMAGES = 8
CROP_SHEET_IMAGES = 4
CROP_SHEET_PLACES = {"hair": (0.06, 0.375), "eyes": (0.34, 0.27)}  # top and left edge, as shares of the side
NATIVE = {  # key: field of `Described`
    "native_kid_x1e3": "native_pooled",
    "native_unseen_x1e3": "native_unseen",
    "native_plain_x1e3": "native_plain",
}
DISTANCES = ("kid_x1e3", "frechet", "unseen_x1e3", "plain_x1e3", *NATIVE)  # their ratio is to the source: 0 is perfect
OF_SOURCE = {  # those of the source with itself are 1
    "correlation_with_source",
    "native_correlation_with_source",
    "lightness_following",
    "identity_order",
    "landmarks",
}
CHUNK = 64  # pictures of up to SIDE px in memory at a time
CHUNK_PIXELS = 2**20  # of larger ones: 4 of 512 px, 1 of 1024 px, which are also drawn fastest one by one


class Described(NamedTuple):
    """A set of N pictures as the judges see it; of the first m also the pictures and where things are in them.

    The fields `native_…` are of n native crops of each picture. They are empty if there are none.
    """

    pooled: Tensor  # [N, D]
    unseen: Tensor  # [N, D'], by the network that no training signal comes from
    plain: Tensor  # [N, 362]
    spatial: Tensor  # [m, E] float16
    pictures: Tensor  # uint8 [m, 3, S, S], S at most SIDE
    native_pooled: Tensor = torch.empty(0)  # [N, n, D]
    native_unseen: Tensor = torch.empty(0)  # [N, n, D']
    native_plain: Tensor = torch.empty(0)  # [N, n, 362]
    native_pictures: Tensor = torch.empty(0)  # uint8 [m, n, 3, CROP_SIZE, CROP_SIZE]


class Rows:
    """A tensor that grows. A list of small tensors between large ones that come and go would fragment the memory."""

    def __init__(self):
        self.count, self.buffer = 0, torch.empty(0)

    def add(self, rows: Tensor) -> None:
        needed = self.count + len(rows)
        if needed > len(self.buffer):
            larger = rows.new_empty(max(needed, 2 * len(self.buffer), 64), *rows.shape[1:])
            if self.count:
                larger[: self.count] = self.buffer[: self.count]
            self.buffer = larger
        self.buffer[self.count : needed] = rows
        self.count = needed

    def tensor(self) -> Tensor:
        return self.buffer[: self.count]


class Describer:
    """Describes a set that is larger than memory, a chunk at a time.

    Args:
        network, unseen: the judges.
        num_spatial: number m of pictures that are compared one by one.
        crops: native crops of each picture; 0: none. Pictures of `CROP_SIZE` px and below have none either.
        correlated: whether the m pictures are kept, reduced to `SIDE`, and their crops, for correlations.

    Attributes:
        first: the first pictures at full size, uint8, for sheets.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        unseen: FeatureNetwork,
        num_spatial: int = SPATIAL_IMAGES,
        crops: int = CROPS,
        correlated: bool = True,
    ):
        self.network, self.unseen, self.num_spatial, self.crops = network, unseen, num_spatial, crops
        self.correlated = correlated
        self.count = 0
        self.columns = {name: Rows() for name in Described._fields}
        self.first = torch.empty(0, dtype=torch.uint8)

    def add(self, chunk: Tensor) -> None:
        """Adds float `[b, 3, R, R]` in [-1, 1]."""
        few = chunk[: max(0, self.num_spatial - self.count)]
        parts = self._features(chunk, "")
        if len(few):
            parts["spatial"] = spatial_embedding(few, self.network).half().cpu()
            if self.correlated:
                parts["pictures"] = as_pictures(few)
        if self.crops and (side := chunk.shape[-1]) > CROP_SIZE:
            places = crop_places(len(chunk), side, self.crops, CROP_SIZE, skip=self.count)
            crops = native_crops(chunk, places, CROP_SIZE)
            parts |= {k: x.unflatten(0, (len(chunk), self.crops)) for k, x in self._features(crops, "native_").items()}
            if len(few) and self.correlated:
                parts["native_pictures"] = to_bytes(crops.unflatten(0, (len(chunk), self.crops))[: len(few)]).cpu()
        for name, part in parts.items():
            self.columns[name].add(part)
        if more := max(0, SHEET_IMAGES - self.count):
            self.first = torch.cat([self.first.view(-1, *chunk.shape[1:]), to_bytes(chunk[:more]).cpu()])
        self.count += len(chunk)

    def _features(self, images: Tensor, prefix: str) -> dict[str, Tensor]:
        features = self.network.pooled(images), self.unseen.pooled(images), plain_features(images)
        return {prefix + name: x.cpu() for name, x in zip(("pooled", "unseen", "plain"), features, strict=True)}

    def done(self) -> Described:
        """All that was added."""
        return Described(*(column.tensor() for column in self.columns.values()))


def as_pictures(images: Tensor) -> Tensor:
    """Float `[B, 3, R, R]` in [-1, 1] as a picture file would hold them: uint8, at most `SIDE` px."""
    return to_bytes(reduced(images.float(), SIDE)).cpu()


def describe(
    chunks: Iterable[Tensor],
    network: FeatureNetwork,
    unseen: FeatureNetwork,
    num_spatial: int = SPATIAL_IMAGES,
    crops: int = CROPS,
) -> Described:
    """`Describer` of chunks `[b, 3, R, R]`."""
    describer = Describer(network, unseen, num_spatial, crops)
    for chunk in chunks:
        describer.add(chunk)
    return describer.done()


def chunk_size(resolution: int) -> int:
    """How many pictures are in memory at a time."""
    return CHUNK if resolution <= SIDE else max(1, CHUNK_PIXELS // resolution**2)


def native_protocol(resolution: int, crops: int) -> dict[str, int] | str:
    """What the native numbers depend on, or why there are none."""
    if resolution <= CROP_SIZE:
        return f"none: pictures of {resolution} px are no larger than a crop of {CROP_SIZE} px"
    return {"crops": crops, "size": CROP_SIZE, "seed": CROP_SEED} if crops else "none: --crops 0"


def measure(
    images: Described, truth: Described, source: Described, paired: Described | None, centres: Tensor | None
) -> dict[str, Any]:
    """All numbers of one set of pictures.

    Args:
        images, source: the judged pictures and the source's; row i of both from latent i.
        truth: the look on other latents.
        paired: the look on the same latents, or None where there is no such thing.
        centres: spatial embedding `[K, E]` of the K training images, or None.
    """
    row: dict[str, Any] = {
        "kid_x1e3": 1e3 * kernel_distance(images.pooled, truth.pooled),
        "frechet": frechet_distance(images.pooled, truth.pooled),
        "unseen_x1e3": 1e3 * kernel_distance(images.unseen, truth.unseen),
        "plain_x1e3": 1e3 * kernel_distance(images.plain, truth.plain),
        **diversity(images, centres),
        "correlation_with_source": _correlations(images.pictures, source.pictures),
        "lightness_following": lightness_following(*map(small_floats, (source.pictures, images.pictures))),
        "identity_order": order_correlation(*(pairwise_distances(x.spatial) for x in (source, images))),
    }
    if can_find_faces():
        row["landmarks"] = landmark_distance(source.pictures, images.pictures)
    if native := images.native_pooled.numel() > 0:
        for key, field in NATIVE.items():
            row[key] = 1e3 * crop_kernel_distance(getattr(images, field), getattr(truth, field))
        crops = images.native_pictures.flatten(0, 1)
        row["native_correlation_with_source"] = _correlations(crops, source.native_pictures.flatten(0, 1))
    if paired is not None:
        row["correlation_with_truth"] = _correlations(images.pictures, paired.pictures)
        if native:
            row["native_correlation_with_truth"] = _correlations(crops, paired.native_pictures.flatten(0, 1))
        apart = images.spatial.float() - paired.spatial.float()
        row["distance_to_truth"] = apart.square().sum(1).mean().item()
    return row


def landmark_distance(source: Tensor, adapted: Tensor, most: int = LANDMARK_IMAGES) -> dict[str, float | None]:
    """How far eyes and nose move: of uint8 `[m, 3, S, S]`, row i of both from latent i, the first `most`.

    Returns:
        "found": share of adapted pictures with a face in which one is found, of those of the source that have one;
        "distance": mean over the landmarks of these, in distances between the source's eyes; None if there are none.
    """
    pairs = [
        [find_faces(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in rows[:most]] for rows in (source, adapted)
    ]
    there = [(a[0].landmarks, b[0].landmarks if b else None) for a, b in zip(*pairs, strict=True) if a]
    distances = []
    for before, after in there:
        if after is not None:
            eyes = np.linalg.norm(before[:2].mean(0) - before[2:4].mean(0))
            distances.append(float(np.linalg.norm(after - before, axis=1).mean() / eyes))
    share = len(distances) / len(there) if there else None
    return {"found": share, "distance": sum(distances) / len(distances) if distances else None}


def small_floats(pictures: Tensor) -> Tensor:
    """Uint8 `[m, 3, S, S]` as floats of at most `FACE_SIDE` px."""
    return torch.cat([reduced(to_floats(chunk), FACE_SIDE) for chunk in pictures.split(32)])


def diversity(images: Described, centres: Tensor | None) -> dict[str, float]:
    """Mean LPIPS-like distance over all pairs; with `centres` also inside the clusters around the training images."""
    pairs = pairwise_distances(images.spatial)
    row = {"spatial_distance": mean_of_pairs(pairs)}
    if centres is not None:
        matrices = pairwise_distances(images.spatial, centres), pairs
        row["intra_cluster_distance"] = intra_cluster_distance(*matrices)
        row["balanced_intra_cluster_distance"] = balanced_intra_cluster_distance(*matrices)
    return row


def _correlations(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean correlations of uint8 `[m, 3, S, S]`, row i of both from the same place of the same latent."""
    totals: dict[str, float] = {}
    for x, y in zip(a.split(32), b.split(32), strict=True):
        for name, value in paired_correlations(to_floats(x), to_floats(y)).items():
            totals[name] = totals.get(name, 0.0) + value * len(x) / len(a)
    return totals


def ratio(value: float, whole: float) -> float | None:
    """`value` over `whole`; None, in JSON null, where `whole` is 0: pictures that are all alike have no diversity."""
    return value / whole if whole else None


def judge(
    source: Described, adapted: Described, truth: Described, paired: Described | None, centres: Tensor | None
) -> dict[str, Any]:
    """The numbers of one adapter beside those of its source, and their ratios."""
    rows = {"adapted": measure(adapted, truth, source, paired, centres)}
    rows["source"] = measure(source, truth, source, paired, centres)
    report: dict[str, Any] = {key: {name: row[key] for name, row in rows.items()} for key in rows["adapted"]}
    for key in report.keys() & set(DISTANCES):
        report[key]["ratio"] = ratio(report[key]["adapted"], report[key]["source"])
    for key, value in diversity(truth, centres).items():
        report[key] |= {"true": value, "ratio": ratio(report[key]["adapted"], value)}
    for key in report.keys() & OF_SOURCE:
        report[key] = rows["adapted"][key]
    return report


def contact_sheet(rows: list[Tensor], size: int = 256) -> Image.Image:
    """One row of images per tensor, float `[n, 3, H, W]` in [-1, 1]."""
    lines = [
        row.float()
        if row.shape[-1] == size
        else F.interpolate(row.float(), size=(size, size), mode="bilinear", antialias=True)
        for row in rows
    ]
    grid = torch.cat([torch.cat(list(line), 2) for line in lines], 1)  # [3, rows * size, n * size]
    return Image.fromarray(to_bytes(grid).permute(1, 2, 0).contiguous().numpy())


def crop_sheet(rows: list[Tensor]) -> Image.Image:
    """Hair and eyes of the first pictures at full size, one row per tensor, uint8 `[n, 3, R, R]` with R > CROP_SIZE."""
    lines = []
    for row in rows:
        few = row[:CROP_SHEET_IMAGES]
        places = torch.tensor(list(CROP_SHEET_PLACES.values())) * few.shape[-1]
        places = places.long().clamp_max(few.shape[-1] - CROP_SIZE).expand(len(few), -1, -1)
        lines.append(to_floats(native_crops(few, places)))
    return contact_sheet(lines, CROP_SIZE)


def versions() -> dict[str, str | None]:
    """Of everything that a number depends on."""
    found: dict[str, str | None] = {"fewshot_gan": __version__, "python": platform.python_version()}
    for package in ("torch", "dicebear-core", "dicebear-styles", "resvg-py"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    argv = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] in ("--profile", "--output_dir") for word in argv):  # the whole bench
        import bench

        return bench.main(argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", required=True, help="adapter name, folder or Hub id")
    parser.add_argument(
        "--style",
        required=True,
        help="filter:NAME or dicebear:NAME, what it was trained on; or folder:PATH, other pictures of the look",
    )
    parser.add_argument("--out", type=user_path, required=True, help="JSON report to write")
    parser.add_argument("--sheet", type=user_path, help="PNG to write: rows source, adapted, true")
    parser.add_argument(
        "--crop_sheet",
        type=user_path,
        help=f"PNG to write: {' and '.join(CROP_SHEET_PLACES)} at full size, in the same rows (above {CROP_SIZE} px)",
    )
    parser.add_argument("--base", default="ffhq", help="base generator (default: ffhq)")
    parser.add_argument("--num", type=int, default=500, help="latents (default: 500)")
    parser.add_argument("--seed", type=int, default=100_000, help="seed of the judged latents (default: 100000)")
    parser.add_argument("--true-seed", type=int, help="seed of the other latents (default: seed + 1000003)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation (default: 0.7)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        help="images per forward pass, 1 at 1024 px; does not change the numbers",
    )
    parser.add_argument(
        "--references", type=user_path, help="folder of the training images: adds the intra-cluster distances"
    )
    parser.add_argument(
        "--spatial-images", type=int, default=SPATIAL_IMAGES, help=f"for diversity (default: {SPATIAL_IMAGES})"
    )
    parser.add_argument(
        "--crops",
        type=int,
        default=CROPS,
        help=f"native crops of each picture above {CROP_SIZE} px; 0: no native numbers (default: {CROPS})",
    )
    add_threads_option(parser)
    args = parser.parse_args(argv)
    set_threads(args.num_threads)
    for name in ("num", "spatial_images"):
        if getattr(args, name) < 3:
            option = name.replace("_", "-")
            parser.error(
                f"--{option} {getattr(args, name)} is below 3; distances need at least 3 images, usual are 500"
            )
    if args.crops < 0:
        parser.error(f"--crops {args.crops} is below 0; give 0 for no native numbers, usual are {CROPS}")
    try:
        kind, style = parse_truth(args.style)
    except ValueError as error:
        parser.error(str(error))
    true_seed = args.seed + 1_000_003 if args.true_seed is None else args.true_seed
    if true_seed == args.seed:
        parser.error(f"--true-seed {true_seed} is --seed again; the distances need other latents: choose another seed")

    from fewshot_gan import FewShotGAN

    network, unseen = load_features(), load_features(UNSEEN)
    pipe = FewShotGAN.from_pretrained(args.base)
    resolution = pipe.generator.resolution
    if args.crop_sheet is not None and resolution <= CROP_SIZE:
        parser.error(f"--crop_sheet shows crops of {CROP_SIZE} px, and {args.base} draws {resolution} px; use --sheet")
    for file in (args.out, args.sheet, args.crop_sheet):  # before minutes of drawing
        if file is not None and file.is_dir():
            parser.error(f"{file} is a folder; give a file name")
    for file in (args.sheet, args.crop_sheet):
        if file is not None:
            check_grid(file, 1, 1, 1)
    centres = None if args.references is None else reference_centres(args.references, resolution, network)
    in_folder = load_images(style, resolution) if kind == "folder" else None
    pipe.load_adapter(args.adapter)  # and makes it the active one, under a name that a path does not tell

    def render(seed: int, **which: str) -> Iterator[Tensor]:
        options = {"truncation_psi": args.psi, "output_type": "pt", **which}
        batch_size = min(args.batch_size, chunk_size(resolution))
        for output in pipe.stream(args.num, seed=seed, batch_size=batch_size, **options):
            yield output.images.float().cpu() * 2 - 1

    def true_pictures() -> Iterator[Tensor]:
        if kind == "filter":
            yield from (apply_filter(chunk, style) for chunk in render(true_seed, adapter_names="__base__"))
        elif in_folder is not None:
            yield from map(to_floats, in_folder.split(chunk_size(resolution)))
        else:
            yield from drawings(style, args.num, resolution, true_seed)

    source, adapted, paired, true = (
        Describer(network, unseen, args.spatial_images, args.crops, correlated)
        for correlated in (True, True, True, False)
    )
    for chunk in render(args.seed, adapter_names="__base__"):
        source.add(chunk)
        if kind == "filter":
            paired.add(apply_filter(chunk, style))
    for chunk in render(args.seed):
        adapted.add(chunk)
    for chunk in true_pictures():
        true.add(chunk)
    shown = [describer.first for describer in (source, adapted, paired if paired.count else true)]
    sets = source.done(), adapted.done(), true.done(), paired.done() if paired.count else None
    report = {
        "base": args.base,
        "adapter": str(args.adapter),
        "style": args.style,
        **judge(*sets, centres),
        "protocol": {
            "num": args.num,
            "seed": args.seed,
            "true_seed": None if kind == "folder" else true_seed,
            "num_true": true.count,
            "truncation_psi": args.psi,
            "resolution": resolution,
            "native": native_protocol(resolution, args.crops),
            "features": FEATURES,
            "features_sha256": network.sha256,
            "unseen_sha256": unseen.sha256,
            "spatial_images": min(args.num, args.spatial_images),
            "versions": versions(),
        },
    }
    text = json.dumps(report, indent=2)
    replace_text(args.out, text + "\n")
    if args.sheet is not None:
        replace_file(args.sheet, contact_sheet([to_floats(row) for row in shown]).save)
    if args.crop_sheet is not None:
        replace_file(args.crop_sheet, crop_sheet(shown).save)
    print(text)
    return report


def parse_truth(style: str) -> tuple[str, str]:
    """`parse_style`, or `"folder:PATH" -> ("folder", PATH)`.

    Raises:
        ValueError: another form, or an unknown name.
    """
    kind, _, name = style.partition(":")
    return (kind, str(user_path(name))) if kind == "folder" and name else parse_style(style)


def drawings(style: str, num: int, resolution: int, seed: int) -> Iterator[Tensor]:
    """`render_dicebear` in chunks of float `[b, 3, R, R]` in [-1, 1]."""
    size = chunk_size(resolution)
    for start in range(0, num, size):
        yield to_floats(render_dicebear(style, min(size, num - start), resolution, seed, start))


def filtered(images: Tensor, name: str) -> Tensor:
    """`apply_filter` in chunks, to keep its intermediate images small."""
    return torch.cat([apply_filter(chunk, name) for chunk in images.split(16)])


def reference_centres(folder: str | Path, resolution: int, network: FeatureNetwork) -> Tensor:
    """Spatial embedding `[K, E]` of the K training images."""
    return spatial_embedding(to_floats(load_images(folder, resolution)), network).half().cpu()


if __name__ == "__main__":
    with script():
        main()
