"""What a ticket is worth: bytes of its mask and values, and what its zeros save in time here.

    python training/benchmark_tickets.py runs/ticket/round-01 runs/ticket/round-05 --out tickets.json

Bytes are of the masked (convolution) weights. Zeros save time only where something skips them, so three ways are looked
at: whole channels that could be cut out, groups of four of which at least two are zero (what a GPU's sparse tensor
cores need of every group), and sparse matrices (CSR) in place of the convolutions. Times are medians of ratios to the
dense network of runs made alternately, on the same pictures; the sparse network's are checked against the dense one's.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from math import log2

import torch
import torch.nn.functional as F
from bench_report import markdown, short
from benchmark_adapters import ratio

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters.ticket import prunable
from fewshot_gan.models.plain import Conv2d, PlainGenerator
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.threads import set_threads, usual_threads


def sizes(generator) -> dict[str, float]:
    """Bytes of all convolution weights, stored in several ways, and how the zeros lie."""
    weights = list(prunable(generator).values())
    total = sum(w.numel() for w in weights)
    kept = sum(int((w != 0).sum()) for w in weights)
    share = kept / total
    entropy = 0.0 if share in (0, 1) else -share * log2(share) - (1 - share) * log2(1 - share)
    mask = sum(-(-w.numel() // 8) for w in weights)
    inputs = [w.transpose(0, 1).flatten(1) for w in weights]
    groups = torch.cat([fours(w) for w in weights])
    return {
        "sparsity": 1 - share,
        "dense_fp16": 2 * total,
        "mask": mask,
        "mask_entropy": entropy * total / 8,
        "mask_and_fp16_values": mask + 2 * kept,
        "index_and_fp16_values": 6 * kept,  # int32 places
        "channels": sum(len(w) + len(i) for w, i in zip(weights, inputs, strict=True)),
        "empty_channels": sum(int((x == 0).all(1).sum()) for x in [*(w.flatten(1) for w in weights), *inputs]),
        "groups_of_four_with_two_zeros": float((groups >= 2).float().mean()),
    }


def fours(weight: torch.Tensor) -> torch.Tensor:
    """How many are zero of each four inputs of one tap; the last ones are left out where four do not fit."""
    zeros = (weight == 0).movedim(1, -1)
    return zeros[..., : zeros.shape[-1] // 4 * 4].reshape(-1, 4).sum(1)


def sparse(generator):
    """A copy whose convolutions multiply a CSR matrix `[O, I·k·k]` with the unfolded picture."""
    copy = deepcopy(generator)
    for layer in copy.modules():
        if isinstance(layer, Conv2d):
            matrix = layer.normalised().weight.detach().flatten(1).to_sparse_csr()
            layer.convolve = product(matrix, layer.normalised().weight.shape[-1])
    return copy


def product(matrix: torch.Tensor, kernel: int) -> Callable:
    def convolve(x, weight):
        columns = F.unfold(x, kernel, padding=kernel // 2) if kernel > 1 else x.flatten(2)  # [B, I·k·k, HW]
        out = matrix @ columns.movedim(0, -1).flatten(1).contiguous()
        return out.view(len(matrix), -1, len(x)).movedim(-1, 0).reshape(len(x), -1, *x.shape[2:])

    return convolve


@torch.no_grad()
def times(generator, batch: int, repeats: int) -> dict[str, dict]:
    """Time of the ticket's network, and of one with sparse matrices, over that of one without zeros."""
    dense = deepcopy(generator)
    for weight in prunable(dense).values():
        weight.copy_(torch.where(weight == 0, torch.full_like(weight, 1e-3), weight))
    rows = sparse(generator)
    z = torch.randn(batch, generator.z_dim)
    labels = None if generator.num_classes is None else torch.zeros(batch, dtype=torch.long)
    if not torch.allclose(rows(z, labels), generator(z, labels), atol=1e-3):
        raise ValueError("the sparse network draws other pictures")
    return {
        "masked": ratio(lambda: generator(z, labels), lambda: dense(z, labels), repeats),
        "csr": ratio(lambda: rows(z, labels), lambda: dense(z, labels), repeats),
    }


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("bases", nargs="+", type=user_path, help="trained tickets: SNGAN, BigGAN or GP-GAN")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--repeats", type=int, default=15)
    p.add_argument("--out", type=user_path, required=True, help="JSON; the table goes beside it, .md")
    p.add_argument("--num_threads", type=int, default=usual_threads(), help="CPU threads (default: %(default)s)")
    args = p.parse_args(argv)
    if args.repeats < 2:
        p.error(f"--repeats {args.repeats}: give 2 or more")
    set_threads(args.num_threads)
    torch.manual_seed(0)
    report = {}
    for base in args.bases:
        generator = FewShotGAN.from_pretrained(base).generator.eval()
        if not isinstance(generator, PlainGenerator):
            raise ValueError(
                f"{base} is a {type(generator).__name__}; times are of tickets of SNGAN, BigGAN and GP-GAN"
            )
        report[str(base)] = sizes(generator) | {"time": times(generator, args.batch, args.repeats)}
    text = json.dumps({"batch": args.batch, "threads": args.num_threads, "tickets": report}, indent=1) + "\n"
    replace_text(args.out, text)
    heads = ["", "pruned", "dense fp16", "mask", "mask + values", "2 of 4 zero", "empty channels", "masked", "CSR"]
    lines = [
        [
            name,
            f"{row['sparsity']:.2%}",
            *(f"{row[key] / 1000:,.1f} kB" for key in ("dense_fp16", "mask", "mask_and_fp16_values")),
            f"{row['groups_of_four_with_two_zeros']:.0%}",
            f"{row['empty_channels']} of {row['channels']}",
            *(f"{short(row['time'][key]['ratio'])}×" for key in ("masked", "csr")),
        ]
        for name, row in report.items()
    ]
    table = markdown(heads, lines) + "\n"
    replace_text(args.out.with_suffix(".md"), table)
    print(table)
    return report


if __name__ == "__main__":
    with script():
        main()
