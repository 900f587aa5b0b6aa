"""How fast generation, adapters and training are here, each beside what it must beat, in runs made alternately.

    python training/bench_speed.py --output_dir runs/speed [--beside FOLDER …] [--only ffhq step]

Sections: `stylegan2` (channel_base 16384, 256 px, batch 4: this package against one grouped convolution per layer with
weights modulated per sample, in plain torch), `ffhq` (both embedded bases against OpenVINO on the same network),
`adapters` (of `ffhq-256`: acting, switched, mixed in a batch) and `step` (a LeFT step of training/lfs.py on `ffhq-256`,
batch 4, against checkouts in `--beside`; losses of the first step are compared). What a ratio compares is its name:
above 1 the second is faster. Beside the times stand FLOPs as a share of the machine's own matrix product. Writes
`speed.json` and `speed.md`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import torch.nn.functional as F
from bench_report import markdown
from benchmark_adapters import ratio, summary, timings
from torch.utils.flop_counter import FlopCounterMode

from fewshot_gan import FewShotGAN
from fewshot_gan.hub import ASSETS
from fewshot_gan.metrics import psnr
from fewshot_gan.models import StyleGAN2Generator, layers, stylegan2
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.threads import set_threads, usual_threads


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", nargs="+", choices=SECTION, default=list(SECTION), help="sections (default: all)")
    p.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    p.add_argument("--beside", type=user_path, nargs="+", default=[], help="checkouts whose training step is compared")
    p.add_argument("--repeats", type=int, default=7, help="pairs of runs per ratio (default: 7)")
    p.add_argument("--num_threads", type=int, default=usual_threads(), help="CPU threads (default: %(default)s)")
    p.add_argument("--output_dir", type=user_path, required=True)
    args = p.parse_args(argv)
    if args.repeats < 2:
        p.error(f"--repeats {args.repeats}: give 2 or more")
    if args.only == ["step"] and not args.beside:
        p.error("section step needs --beside FOLDER, a checkout to compare with")
    for folder in args.beside:
        if not (folder / "training" / "lfs.py").is_file():
            p.error(f"--beside {folder} is no checkout of this repository: it has no training/lfs.py")
    set_threads(args.num_threads)
    report = {"machine": machine(args.device), "rows": []}
    for name in args.only:
        report["rows"] += SECTION[name](args, report["machine"])
        print(table(report["rows"]), flush=True)
    text = json.dumps(report, indent=1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    replace_text(args.output_dir / "speed.json", text + "\n")
    replace_text(args.output_dir / "speed.md", table(report["rows"]) + "\n")
    return report


def table(rows: list[dict]) -> str:
    heads = ("section", "what / beside what", "ratio", "quartiles", "ms", "also")
    lines = []
    for row in rows:
        low, high = row["quartiles"]
        also = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row["also"].items())
        times = " / ".join(f"{ms:.1f}" for ms in row["median_ms"])
        lines.append([row["section"], row["name"], f"{row['ratio']:.2f}", f"{low:.2f}–{high:.2f}", times, also])
    return markdown(heads, lines)


def row(section: str, name: str, measured: dict, **also) -> dict:
    return {"section": section, "name": name, **measured, "also": also}


def machine(device: str) -> dict:
    """What the processor does at best: matrix products in GFLOP/s, copies in GB/s."""
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()}
    found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(2048, 2048, device=device, dtype=dtype)
        found[f"matmul_gflops_{name}"] = 2 * 2048**3 / best(lambda a=a: a @ a, device) / 1e9
    a = torch.randn(2**26, device=device)  # 256 MiB: beyond every cache
    out = torch.empty_like(a)
    found["copy_gb_per_s"] = 2 * 4 * 2**26 / best(lambda: out.copy_(a), device) / 1e9
    return found


def best(run: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def finished(run: Callable[[], object], device: str) -> Callable[[], None]:
    """`run`, waited for."""

    def whole():
        run()
        synchronise(device)

    return whole


# ---------------------------------------------------------------------------------------------------------- stylegan2


def grouped_modulated_conv2d(x, weight, styles, *, demodulate=True, up=1, resample_filter=None, then=None, **unused):
    """Modulation as the first implementations have it: a filter bank per sample, one grouped convolution."""
    (batch, channels, height, width), (outputs, _, k, _) = x.shape, weight.shape
    w = weight * styles[:, None, :, None, None]  # [B, O, I, k, k]
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x, w = x.reshape(1, batch * channels, height, width), w.to(x.dtype)
    if up == 2:
        x = F.conv_transpose2d(x, w.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        x = filtered(x.unflatten(1, (batch, outputs))[0], resample_filter, (1, 1, 1, 1))
    else:
        x = F.conv2d(x, w.flatten(0, 1), padding=k // 2, groups=batch).unflatten(1, (batch, outputs))[0]
    if then is None:
        return x
    if then.noise is not None:
        x = x + then.noise * then.noise_strength
    return F.leaky_relu(x + then.bias[:, None, None], 0.2) * 2**0.5


def filtered(x, f, padding):
    """`x` `[B, C, H, W]` padded and filtered with `4·f` `[T, T]`."""
    kernel = (4 * f).flip(0, 1).expand(x.shape[1], 1, *f.shape)
    return F.conv2d(F.pad(x, padding), kernel.to(x.dtype), groups=x.shape[1])


def zeros_between_upsample2d(x, f):
    """`upsample2d` by two with zeros inserted and filtered."""
    batch, channels, height, width = x.shape
    x = F.pad(x.view(batch, channels, height, 1, width, 1), (0, 1, 0, 0, 0, 1))
    return filtered(x.reshape(batch, channels, 2 * height, 2 * width), f, (2, 1, 2, 1))


@contextmanager
def as_first_implemented():
    """In its `with` block StyleGAN2 computes as the first implementations did, in contiguous memory."""
    with (
        mock.patch.object(stylegan2, "modulated_conv2d", grouped_modulated_conv2d),
        mock.patch.object(layers, "upsample2d", zeros_between_upsample2d),
    ):
        yield


@torch.no_grad()  # as the pipeline draws
def bench_stylegan2(args, machine: dict) -> list[dict]:
    torch.manual_seed(0)
    network = StyleGAN2Generator(256, channel_base=16384).requires_grad_(False).to(args.device)
    ws = network.mapping(torch.randn(4, 512).to(args.device))
    low = StyleGAN2Generator.from_config(network.config)
    low.load_state_dict(network.state_dict())
    low.requires_grad_(False).to(args.device, torch.bfloat16)

    def grouped():
        with as_first_implemented():
            return network.synthesis(ws)

    want, got, rounded = grouped(), network.synthesis(ws), low.synthesis(ws.bfloat16()).float()
    with FlopCounterMode(display=False) as counter:  # of direct convolutions: Winograd's do less
        grouped()
    flops = counter.get_total_flops()
    top = float(want.abs().max())
    rows = []
    for name, run, image, dtype in (
        ("fp32", lambda: network.synthesis(ws), got, "fp32"),
        ("bf16", lambda: low.synthesis(ws.bfloat16()), rounded, "bf16"),
    ):
        measured = ratio(finished(grouped, args.device), finished(run, args.device), args.repeats)
        share = flops / (measured["median_ms"][1] / 1e3) / 1e9 / machine[f"matmul_gflops_{dtype}"]
        error = psnr(image / top, want / top)  # pictures of random weights fill [-top, top]
        also = {"GFLOP": flops / 1e9, "of the matmul rate": share, "PSNR dB": error}
        rows.append(row("stylegan2", f"grouped convolutions, fp32 / this package, {name}", measured, **also))
    return rows


# --------------------------------------------------------------------------------------------------------------- ffhq


class Synthesis(torch.nn.Module):
    """A generator's ws → picture, as a module to trace."""

    def __init__(self, generator):
        super().__init__()
        self.synthesis = generator.synthesis

    def forward(self, ws):
        return self.synthesis(ws)


@torch.inference_mode()
def bench_ffhq(args, machine: dict) -> list[dict]:
    if args.device != "cpu":
        return []
    rows = []
    for base, batches in (("ffhq-256", (1, 4)), ("ffhq", (1,))):
        generator = FewShotGAN.from_pretrained(base).generator
        generator.eval().requires_grad_(False)
        z = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
        for batch in batches:
            rows.append(beside_openvino(generator, generator.map_latents(z[:batch], "z", 0.7), args, machine))
    return rows


def beside_openvino(generator, ws: torch.Tensor, args, machine: dict) -> dict:
    import openvino

    traced = openvino.convert_model(Synthesis(generator), example_input=ws.clone(), input=list(ws.shape))
    hints = {
        "INFERENCE_NUM_THREADS": args.num_threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled, given = openvino.Core().compile_model(traced, "CPU", hints), ws.numpy()
    with FlopCounterMode(display=False) as counter:
        want = generator.synthesis(ws)
    measured = ratio(lambda: compiled(given), lambda: generator.synthesis(ws), args.repeats)
    flops = counter.get_total_flops()
    share = flops / (measured["median_ms"][1] / 1e3) / 1e9 / machine["matmul_gflops_fp32"]
    difference = float((torch.from_numpy(compiled(given)[0]) - want).abs().max())
    also = {"GFLOP": flops / 1e9, "of the matmul rate": share, "largest difference": difference}
    return row("ffhq", f"OpenVINO / this package, {generator.resolution} px, batch {len(ws)}", measured, **also)


# ----------------------------------------------------------------------------------------------------------- adapters


def bench_adapters(args, machine: dict) -> list[dict]:
    pipe = FewShotGAN.from_pretrained("ffhq-256").to(args.device)
    return [row("adapters", name, measured) for name, measured in timings(pipe, args.repeats).items()]


# --------------------------------------------------------------------------------------------------------------- step


class Stepper:
    """A process that takes a training step of a checkout when asked; see stepper.py."""

    def __init__(self, checkout: Path, output_dir: Path, threads: int):
        base = str(ASSETS / "bases" / "ffhq-256")  # older checkouts know it by another name
        options = ["--base", base, "--data", "pencil", "--output_dir", str(output_dir), "--report_to", "none"]
        options += ["--sample_steps", "0", "--num_threads", str(threads), "--seed", "0"]
        script = Path(__file__).with_name("stepper.py").resolve()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.errors = output_dir.with_suffix(".err").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(checkout.resolve()), *options],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __call__(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"the training to compare with ended: {self.errors.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def bench_step(args, machine: dict) -> list[dict]:
    return [beside_checkout(folder, args) for folder in args.beside]


def beside_checkout(folder: Path, args) -> dict:
    here = Path(__file__).resolve().parent.parent
    with TemporaryDirectory() as work:
        both = [Stepper(path, Path(work) / name, args.num_threads) for path, name in ((folder, "a"), (here, "b"))]
        pairs = [[stepper() for stepper in both] for _ in range(args.repeats + 1)]
        for stepper in both:
            stepper.close()
    before, after = (step["losses"] for step in pairs[0])  # later ones see weights that rounding has driven apart
    shared = before.keys() & after.keys()
    difference = max(abs(before[name] - after[name]) / max(1, abs(before[name])) for name in shared)
    measured = summary([tuple(step["seconds"] for step in pair) for pair in pairs[1:]])
    also = {"losses compared": len(shared), "largest difference at step 1": difference}
    also |= {f"peak MiB {when}": step["peak_mib"] for when, step in zip(("before", "now"), pairs[-1], strict=True)}
    return row("step", f"a LeFT step of {folder.name} / of this checkout", measured, **also)


SECTION = {"stylegan2": bench_stylegan2, "ffhq": bench_ffhq, "adapters": bench_adapters, "step": bench_step}


if __name__ == "__main__":
    with script():
        main()
