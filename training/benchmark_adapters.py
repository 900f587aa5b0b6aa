"""What adapters cost: bytes of every kind, time to switch, time of a batch with several looks.

    python training/benchmark_adapters.py --base ffhq-256 --out adapters.json

Times are medians over `--repeats` of ratios of runs made alternately, so that a slow moment hits both sides.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import (
    AdaFMAdapter,
    DomainVectorAdapter,
    FullAdapter,
    GANMemoryAdapter,
    LeFTAdapter,
    TicketAdapter,
    magnitude_masks,
)
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.threads import add_threads_option, set_threads

SPARSITY = 0.67
KINDS = {  # name: (class, options, share of the network that its paper states, as recounted from the published code)
    "domain vector": (DomainVectorAdapter, {}, "6,048 numbers for StyleGAN2-1024"),
    "LeFT, rank 1": (LeFTAdapter, {"rank": 1}, "not at hand"),
    "AdaFM": (AdaFMAdapter, {}, "2/9 of the 3x3 weights modulated"),
    "GAN Memory": (GANMemoryAdapter, {}, "20.2 %"),
    "ticket, mask": (TicketAdapter, {}, "1 bit per weight: 3.1 % of fp32"),
    "ticket, mask + values": (TicketAdapter, {"keep_values": True}, "1 bit + 33 % of the weights"),
    "full": (FullAdapter, {}, "100 %"),
}


def sizes(generator) -> list[dict]:
    """Numbers and bytes of one trained adapter of each kind (factors rounded to float16, as training stores them)."""
    whole, rows = generator.num_parameters(), []
    for name, (cls, options, paper) in KINDS.items():
        if cls is TicketAdapter:
            options = {**options, "masks": magnitude_masks(generator, SPARSITY)}
        adapter = disturbed(cls.for_model(generator, **options), 0)
        adapter.round_to_half()
        with TemporaryDirectory() as folder:
            adapter.save_pretrained(folder)
            stored = (Path(folder) / "adapter_model.safetensors").stat().st_size
        tensors = adapter.state_dict().values()
        payload = sum(t.numel() * (2 if t.is_floating_point() else 1) for t in tensors)
        layers = len(adapter.config.target_modules)
        rows += [{"kind": name, "numbers": adapter.num_values(), "payload": payload, "bytes": stored, "layers": layers}]
        rows[-1] |= {"share_of_fp16_generator": stored / (2 * whole), "paper": paper}
        if cls is TicketAdapter:
            rows[-1]["masked_weights"] = sum(m.numel() for m in adapter.masks().values())
    return rows


@torch.no_grad()
def disturbed(adapter, seed: int, std: float = 0.02):
    """The adapter with noise on its factors: no longer the identity."""
    g = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=g) * std)
    return adapter.requires_grad_(False)


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio(numerator, denominator, repeats: int) -> dict:
    """Median and quartiles of numerator / denominator over alternating runs, after one of each unmeasured."""
    numerator(), denominator()
    return summary([(seconds(numerator), seconds(denominator)) for _ in range(repeats)])


def summary(pairs: list[tuple[float, float]]) -> dict:
    """Median and quartiles of a / b over pairs of seconds, and the median of each in milliseconds."""
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    times = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
    return {"ratio": middle, "quartiles": [low, high], "median_ms": times}


def timings(pipe, repeats: int) -> dict:
    generator, bank = pipe.generator, pipe.bank
    for i in range(4):
        bank.add(f"left{i}", disturbed(LeFTAdapter.for_model(generator), i))
        bank.add(f"vector{i}", disturbed(DomainVectorAdapter.for_model(generator), i))
    z = torch.randn(8, generator.z_dim, generator=torch.Generator().manual_seed(0))

    def draw(names):
        return lambda: pipe(latents=z[: len(names)], adapter_names=names, output_type="pt")

    def active(count):
        return lambda: pipe(latents=z[:count], output_type="pt")

    def switch():
        pipe.set_adapters("left1")
        pipe.set_adapters("left0")

    def switch_and_draw():
        for name in ("left1", "left0"):
            pipe.set_adapters(name)
            active(1)()

    def forget_and_draw():
        kept, bank.cache_bytes = bank.cache_bytes, 0
        switch_and_draw()  # each switch frees what the look before it kept
        bank.cache_bytes = kept

    pipe.set_adapters("left0")
    report = {"switching twice / one picture": ratio(switch, active(1), repeats)}
    report["switching and drawing, nothing kept / kept"] = ratio(forget_and_draw, switch_and_draw, repeats)
    report["one picture with LeFT / without"] = ratio(active(1), draw(["__base__"]), repeats)
    mixed = [f"left{i % 4}" for i in range(8)]
    report["8 rows of 4 LeFT looks / 8 of one"] = ratio(draw(mixed), draw(["left0"] * 8), repeats)

    def one_by_one():
        for i in range(4):
            pipe(latents=z[i::4], adapter_names=[f"left{i}"] * 2, output_type="pt")

    report["8 rows of 4 LeFT looks / a forward per look"] = ratio(draw(mixed), one_by_one, repeats)
    vectors = [f"vector{i % 4}" for i in range(8)]
    report["8 rows of 4 domain vectors / 8 of one"] = ratio(draw(vectors), draw(["vector0"] * 8), repeats)
    report["8 rows of 4 domain vectors / 8 without"] = ratio(draw(vectors), draw(["__base__"] * 8), repeats)
    return report


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="ffhq-256", help="base generator (default: ffhq-256)")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of runs per ratio (default: 15)")
    parser.add_argument("--out", type=user_path, required=True, help="JSON report to write")
    add_threads_option(parser)
    args = parser.parse_args(argv)
    set_threads(args.num_threads)
    if args.repeats < 2:
        parser.error(f"--repeats {args.repeats}: give 2 or more")
    pipe = FewShotGAN.from_pretrained(args.base)
    report = {"base": args.base, "threads": torch.get_num_threads(), "torch": torch.__version__}
    report |= {"sizes": sizes(pipe.generator), "timings": timings(pipe, args.repeats)}
    text = json.dumps(report, indent=1)
    replace_text(args.out, text + "\n")
    print(text)
    return report


if __name__ == "__main__":
    with script():
        main()
