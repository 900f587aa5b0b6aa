"""Measures how near a converted base draws to the OpenVINO graph that it was made from, picture by picture.

    pip download --no-deps random-face==2021.7.21.1
    python training/conversion_error.py --wheel random_face-2021.7.21.1-py3-none-any.whl --base ffhq

OpenVINO runs the graph of the wheel in fp32; the base draws the same latents. Needs `'.[convert]'`. Prints PSNR, the
largest difference, and the share of 8-bit values that differ as JSON; `--out` writes it to a file too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fewshot_gan import FewShotGAN, convert_checkpoint
from fewshot_gan.data.images import to_bytes
from fewshot_gan.metrics import psnr
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.ranges import COUNT, FINITE, check_number
from fewshot_gan.utils.threads import add_threads_option, set_threads


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--wheel", type=user_path, required=True, help="random-face's wheel")
    p.add_argument("--base", default="ffhq", help="converted from it (default: ffhq)")
    p.add_argument("--num", type=int, default=16, help="pictures (default: 16)")
    p.add_argument("--psi", type=float, default=0.7, help="truncation (default: 0.7)")
    p.add_argument("--seed", type=int, default=0, help="seed of the latents (default: 0)")
    p.add_argument("--out", type=user_path, help="JSON file to write")
    add_threads_option(p)
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    check_number("num", args.num, COUNT, whole=True)
    check_number("psi", args.psi, FINITE)
    generator = FewShotGAN.from_pretrained(args.base).generator
    z = torch.randn(args.num, generator.z_dim, generator=torch.Generator().manual_seed(args.seed))
    found = {"base": args.base, "num": args.num, "psi": args.psi, "seed": args.seed}
    found |= difference(generator, openvino_pictures(args.wheel, z, args.psi), z, args.psi)
    print(json.dumps(found, indent=1))
    if args.out is not None:
        replace_text(args.out, json.dumps(found, indent=1) + "\n")
    return found


@torch.inference_mode()
def difference(generator, wanted: Iterator[Tensor], z: Tensor, psi: float) -> dict:
    """Return the differences of a generator's pictures from the wanted ones.

    Args:
        generator: a style-based generator.
        wanted: a picture `[1, 3, R, R]` in [-1, 1] per latent.
        z: latents `[N, z_dim]`.
        psi: truncation.

    Returns:
        Mean and least PSNR in dB of pictures in [-1, 1]; the largest and the mean difference of a value, where colours
        range over 2; the share of 8-bit values that differ, and the largest such difference.
    """
    ratios, largest, means, shares, levels = [], 0.0, [], [], 0
    for row, want in zip(z.split(1), wanted, strict=True):
        got = generator(row, truncation_psi=psi)
        largest, means = max(largest, float((got - want).abs().max())), [*means, float((got - want).abs().mean())]
        got, want = got.clamp(-1, 1), want.clamp(-1, 1)
        ratios.append(float(psnr(got, want)))
        steps = (to_bytes(got).int() - to_bytes(want).int()).abs()
        shares, levels = [*shares, float((steps > 0).float().mean())], max(levels, int(steps.max()))
    return {
        "psnr_mean_db": sum(ratios) / len(ratios),
        "psnr_least_db": min(ratios),
        "largest_difference": largest,
        "mean_difference": sum(means) / len(means),
        "bytes_that_differ": sum(shares) / len(shares),
        "largest_difference_of_bytes": levels,
    }


def openvino_pictures(wheel: Path, z: Tensor, psi: float) -> Iterator[Tensor]:
    """Yield the picture `[1, 3, R, R]` that the wheel's graph draws of each latent `z` `[N, z_dim]`, in fp32.

    The graph has no mean w. With a psi other than 1, w is truncated towards that of the converted network in fp32.
    """
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if "/data/" in name])
        (data,) = Path(folder).glob("*/data")
        mapping, synthesis = (
            openvino.Core().compile_model(str(data / f"{name}Network.xml"), "CPU", options)
            for name in ("Mapping", "Synthesis")
        )
    w_avg = 0.0 if psi == 1 else convert_checkpoint(wheel)["generator"].mapping.w_avg.numpy()
    for row in z.split(1):
        w = mapping(row.numpy())[0]
        w = w if psi == 1 else w_avg + psi * (w - w_avg)
        yield torch.from_numpy(synthesis(w)[0])


if __name__ == "__main__":
    with script():
        main()
