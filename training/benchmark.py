"""Judges an adapter against the known truth of its look: distances, paired correlations, diversity and an honest sheet.

    python training/benchmark.py --base ffhq --adapter sketch --style filter:pencil --num 500 --seed 100000 \
        --out report.json --sheet sheet.png

For N latents it renders the source and the adapted image. Truth for the distances comes from N *other* latents, truth
for the correlations from the *same* latents. `--seed` must differ from the seed of the training images. For DiceBear
styles no paired truth exists: the correlations with the source stand alone. A ratio is adapted over source: 0 is
perfect, 1 is no adaptation.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewshot_gan import __version__
from fewshot_gan.features import FeatureNetwork, load_features
from fewshot_gan.hub import replace_file
from fewshot_gan.metrics import (
    balanced_intra_cluster_distance,
    intra_cluster_distance,
    kernel_distance,
    paired_correlations,
    pairwise_distances,
    plain_features,
    spatial_distance,
    spatial_embedding,
)
from fewshot_gan.training.data import load_images
from fewshot_gan.training.domains import apply_filter, parse_style, render_dicebear

SPATIAL_IMAGES = 64  # images in the mean pairwise distance
SHEET_IMAGES = 8


def judge(
    source: Tensor,
    adapted: Tensor,
    true: Tensor,
    paired: Tensor | None,
    network: FeatureNetwork,
    references: Tensor | None,
) -> dict[str, Any]:
    """All numbers of the report.

    Args:
        source, adapted: float `[N, 3, H, W]` in [-1, 1], row i of both from latent i.
        true: `[M, 3, H, W]`, the look on other latents.
        paired: `[N, 3, H, W]`, the look on the same latents, or None where there is no such thing.
        references: the few training images, for the intra-cluster distances, or None.
    """
    report: dict[str, Any] = {}
    for name, extract, factor in (("kid_x1e3", network.pooled, 1e3), ("plain_x1e3", plain_features, 1e3)):
        truth = extract(true)
        a, s = (factor * kernel_distance(extract(images), truth) for images in (adapted, source))
        report[name] = {"adapted": a, "source": s, "ratio": a / s}
    if paired is not None:
        correlations = {"adapted": paired_correlations(adapted, paired), "source": paired_correlations(source, paired)}
        report["correlation_with_truth"] = correlations
    report["correlation_with_source"] = paired_correlations(adapted, source)
    few = {name: images[:SPATIAL_IMAGES] for name, images in (("adapted", adapted), ("true", true))}
    spatial = {name: spatial_distance(images, network) for name, images in few.items()}
    report["spatial_distance"] = spatial | {"ratio": spatial["adapted"] / spatial["true"]}
    if references is not None:
        embedding, centres = spatial_embedding(adapted, network), spatial_embedding(references, network)
        matrices = pairwise_distances(embedding, centres), pairwise_distances(embedding)
        report["intra_cluster_distance"] = intra_cluster_distance(*matrices)
        report["balanced_intra_cluster_distance"] = balanced_intra_cluster_distance(*matrices)
    return report


def contact_sheet(rows: list[Tensor], size: int = 256) -> Image.Image:
    """One row of images per tensor, float `[n, 3, H, W]` in [-1, 1]."""
    lines = [F.interpolate(row.float(), size=(size, size), mode="bilinear", antialias=True) for row in rows]
    grid = torch.cat([torch.cat(list(line), 2) for line in lines], 1)  # [3, rows * size, n * size]
    return Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy())


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", required=True, help="adapter name, folder or Hub id")
    parser.add_argument("--style", required=True, help="filter:NAME or dicebear:NAME, what the adapter was trained on")
    parser.add_argument("--out", type=Path, required=True, help="JSON report to write")
    parser.add_argument("--sheet", type=Path, help="PNG to write: rows source, adapted, true")
    parser.add_argument("--base", default="ffhq", help="base generator (default: ffhq)")
    parser.add_argument("--num", type=int, default=500, help="latents (default: 500)")
    parser.add_argument("--seed", type=int, default=100_000, help="seed of the judged latents (default: 100000)")
    parser.add_argument("--true-seed", type=int, help="seed of the other latents (default: seed + 1000003)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation (default: 0.7)")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="images per forward pass; does not change the numbers"
    )
    parser.add_argument(
        "--references", type=Path, help="folder of the training images: adds the intra-cluster distances"
    )
    args = parser.parse_args(argv)
    if args.num < 2:
        parser.error(f"--num {args.num} is below 2; distances need at least 2 images, 500 is the protocol")
    try:
        kind, style = parse_style(args.style)
    except ValueError as error:
        parser.error(str(error))
    true_seed = args.seed + 1_000_003 if args.true_seed is None else args.true_seed
    if true_seed == args.seed:
        parser.error(f"--true-seed {true_seed} is --seed again; the distances need other latents: choose another seed")

    from fewshot_gan import FewShotGAN

    network = load_features()
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
        true = render_dicebear(style, args.num, source.shape[-1], true_seed).float() / 127.5 - 1
    references = None
    if args.references is not None:
        references = load_images(args.references, source.shape[-1]).float() / 127.5 - 1
    report = {
        "base": args.base,
        "adapter": str(args.adapter),
        "style": args.style,
        **judge(source, adapted, true, paired, network, references),
        "protocol": {
            "num": args.num,
            "seed": args.seed,
            "true_seed": true_seed,
            "truncation_psi": args.psi,
            "resolution": source.shape[-1],
            "features": "efficientnet-lite0, pooled 1280-d at 224 px (bilinear, antialiased)",
            "features_sha256": network.sha256,
            "spatial_images": min(args.num, SPATIAL_IMAGES),
            "versions": {name: installed(name) for name in ("torch", "dicebear-styles")}
            | {"fewshot_gan": __version__, "python": platform.python_version()},
        },
    }
    text = json.dumps(report, indent=2)
    replace_file(args.out, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    if args.sheet is not None:
        rows = [images[:SHEET_IMAGES] for images in (source, adapted, true if paired is None else paired)]
        replace_file(args.sheet, contact_sheet(rows).save)
    print(text)
    return report


def filtered(images: Tensor, name: str) -> Tensor:
    """`apply_filter` in chunks, to keep its intermediate images small."""
    return torch.cat([apply_filter(chunk, name) for chunk in images.split(16)])


if __name__ == "__main__":
    main()
