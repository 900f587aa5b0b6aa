"""Judges an adapter against the known truth of its look: distances, paired correlations, diversity and an honest sheet.

    python training/benchmark.py --base ffhq --adapter sketch --style filter:pencil --num 500 --seed 100000 \
        --out report.json --sheet sheet.png
    python training/benchmark.py --profile cpu --output_dir runs/bench      # every method on every look: see bench.py

For N latents it renders the source and the adapted image. Truth for the distances comes from N *other* latents, truth
for the correlations from the *same* latents. `--seed` must differ from the seed of the training images. For DiceBear
styles no paired truth exists: the correlations with the source stand alone. A ratio is adapted over source: 0 is
perfect, 1 is no adaptation; of diversity it is adapted over true: 1 is perfect.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewshot_gan import __version__
from fewshot_gan.data.datasets import load_images
from fewshot_gan.data.images import to_bytes, to_floats
from fewshot_gan.features import FeatureNetwork, load_features
from fewshot_gan.metrics import (
    balanced_intra_cluster_distance,
    frechet_distance,
    intra_cluster_distance,
    kernel_distance,
    mean_of_pairs,
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
SHEET_IMAGES = 8
DISTANCES = ("kid_x1e3", "frechet", "unseen_x1e3", "plain_x1e3")  # their ratio is to the source: 0 is perfect


class Described(NamedTuple):
    """A set of N pictures as the judges see it; of the first n also the pictures and where things are in them."""

    pooled: Tensor  # [N, D]
    unseen: Tensor  # [N, D'], by the network that no training signal comes from
    plain: Tensor  # [N, 362]
    spatial: Tensor  # [n, E] float16
    pictures: Tensor  # uint8 [n, 3, S, S], S at most SIDE


def as_pictures(images: Tensor) -> Tensor:
    """Float `[B, 3, R, R]` in [-1, 1] as a picture file would hold them: uint8, at most `SIDE` px."""
    if images.shape[-1] > SIDE:
        images = F.interpolate(images.float(), size=(SIDE, SIDE), mode="area")
    return to_bytes(images).cpu()


def describe(
    chunks: Iterable[Tensor], network: FeatureNetwork, unseen: FeatureNetwork, num_spatial: int = SPATIAL_IMAGES
) -> Described:
    """One chunk of float images `[b, 3, R, R]` at a time, so that a set may be larger than memory."""
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
    for chunk in chunks:
        parts = [network.pooled(chunk).cpu(), unseen.pooled(chunk).cpu(), plain_features(chunk).cpu()]
        if len(few := chunk[: max(0, num_spatial - sum(map(len, columns[4])))]):
            parts += [spatial_embedding(few, network).half().cpu(), as_pictures(few)]
        for column, part in zip(columns, parts, strict=False):
            column.append(part)
    return Described(*(torch.cat(column) if column else torch.empty(0) for column in columns))


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
        "correlation_with_source": _correlations(images, source),
    }
    if paired is not None:
        row["correlation_with_truth"] = _correlations(images, paired)
        apart = images.spatial.float() - paired.spatial.float()
        row["distance_to_truth"] = apart.square().sum(1).mean().item()
    return row


def diversity(images: Described, centres: Tensor | None) -> dict[str, float]:
    """Mean LPIPS-like distance over all pairs; with `centres` also inside the clusters around the training images."""
    pairs = pairwise_distances(images.spatial)
    row = {"spatial_distance": mean_of_pairs(pairs)}
    if centres is not None:
        matrices = pairwise_distances(images.spatial, centres), pairs
        row["intra_cluster_distance"] = intra_cluster_distance(*matrices)
        row["balanced_intra_cluster_distance"] = balanced_intra_cluster_distance(*matrices)
    return row


def _correlations(a: Described, b: Described) -> dict[str, float]:
    totals: dict[str, float] = {}
    for x, y in zip(a.pictures.split(32), b.pictures.split(32), strict=True):
        for name, value in paired_correlations(to_floats(x), to_floats(y)).items():
            totals[name] = totals.get(name, 0.0) + value * len(x) / len(a.pictures)
    return totals


def judge(
    source: Described, adapted: Described, truth: Described, paired: Described | None, centres: Tensor | None
) -> dict[str, Any]:
    """The numbers of one adapter beside those of its source, and their ratios."""
    rows = {"adapted": measure(adapted, truth, source, paired, centres)}
    rows["source"] = measure(source, truth, source, paired, centres)
    report: dict[str, Any] = {key: {name: row[key] for name, row in rows.items()} for key in rows["adapted"]}
    for key in DISTANCES:
        report[key]["ratio"] = report[key]["adapted"] / report[key]["source"]
    for key, value in diversity(truth, centres).items():
        report[key] |= {"true": value, "ratio": report[key]["adapted"] / value}
    report["correlation_with_source"] = rows["adapted"]["correlation_with_source"]
    return report


def contact_sheet(rows: list[Tensor], size: int = 256) -> Image.Image:
    """One row of images per tensor, float `[n, 3, H, W]` in [-1, 1]."""
    lines = [F.interpolate(row.float(), size=(size, size), mode="bilinear", antialias=True) for row in rows]
    grid = torch.cat([torch.cat(list(line), 2) for line in lines], 1)  # [3, rows * size, n * size]
    return Image.fromarray(to_bytes(grid).permute(1, 2, 0).contiguous().numpy())


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
    parser.add_argument("--style", required=True, help="filter:NAME or dicebear:NAME, what the adapter was trained on")
    parser.add_argument("--out", type=user_path, required=True, help="JSON report to write")
    parser.add_argument("--sheet", type=user_path, help="PNG to write: rows source, adapted, true")
    parser.add_argument("--base", default="ffhq", help="base generator (default: ffhq)")
    parser.add_argument("--num", type=int, default=500, help="latents (default: 500)")
    parser.add_argument("--seed", type=int, default=100_000, help="seed of the judged latents (default: 100000)")
    parser.add_argument("--true-seed", type=int, help="seed of the other latents (default: seed + 1000003)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation (default: 0.7)")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="images per forward pass; does not change the numbers"
    )
    parser.add_argument(
        "--references", type=user_path, help="folder of the training images: adds the intra-cluster distances"
    )
    parser.add_argument(
        "--spatial-images", type=int, default=SPATIAL_IMAGES, help=f"for diversity (default: {SPATIAL_IMAGES})"
    )
    add_threads_option(parser)
    args = parser.parse_args(argv)
    set_threads(args.num_threads)
    for name in ("num", "spatial_images"):
        if getattr(args, name) < 2:
            option = name.replace("_", "-")
            parser.error(
                f"--{option} {getattr(args, name)} is below 2; distances need at least 2 images, usual are 500"
            )
    try:
        kind, style = parse_style(args.style)
    except ValueError as error:
        parser.error(str(error))
    true_seed = args.seed + 1_000_003 if args.true_seed is None else args.true_seed
    if true_seed == args.seed:
        parser.error(f"--true-seed {true_seed} is --seed again; the distances need other latents: choose another seed")

    from fewshot_gan import FewShotGAN

    network, unseen = load_features(), load_features(UNSEEN)
    pipe = FewShotGAN.from_pretrained(args.base)
    pipe.load_adapter(args.adapter)  # and makes it the active one, under a name that a path does not tell

    def render(seed: int, **which: str) -> Tensor:
        out = pipe(
            num_images=args.num,
            seed=seed,
            truncation_psi=args.psi,
            output_type="pt",
            batch_size=args.batch_size,
            **which,
        )
        return out.images.float().cpu() * 2 - 1

    source, adapted = render(args.seed, adapter_names="__base__"), render(args.seed)
    if kind == "filter":
        paired = filtered(source, style)
        true = filtered(render(true_seed, adapter_names="__base__"), style)
    else:
        paired = None
        true = to_floats(render_dicebear(style, args.num, source.shape[-1], true_seed))

    def seen(images: Tensor) -> Described:
        return describe(images.split(32), network, unseen, args.spatial_images)

    sets = seen(source), seen(adapted), seen(true), None if paired is None else seen(paired)
    centres = None if args.references is None else reference_centres(args.references, source.shape[-1], network)
    report = {
        "base": args.base,
        "adapter": str(args.adapter),
        "style": args.style,
        **judge(*sets, centres),
        "protocol": {
            "num": args.num,
            "seed": args.seed,
            "true_seed": true_seed,
            "truncation_psi": args.psi,
            "resolution": source.shape[-1],
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
        rows = [images[:SHEET_IMAGES] for images in (source, adapted, true if paired is None else paired)]
        replace_file(args.sheet, contact_sheet(rows).save)
    print(text)
    return report


def filtered(images: Tensor, name: str) -> Tensor:
    """`apply_filter` in chunks, to keep its intermediate images small."""
    return torch.cat([apply_filter(chunk, name) for chunk in images.split(16)])


def reference_centres(folder: str | Path, resolution: int, network: FeatureNetwork) -> Tensor:
    """Spatial embedding `[K, E]` of the K training images."""
    return spatial_embedding(to_floats(load_images(folder, resolution)), network).half().cpu()


if __name__ == "__main__":
    with script():
        main()
