"""Lifelong learning: looks learned in turn, and the proof that none changes an earlier one (LFS-GAN, arXiv 2308.11917).

    python training/lifelong.py --styles filter:sepia filter:poster filter:ink filter:pixel dicebear:open-peeps \\
        --max_train_steps 200 --output_dir runs/lifelong

For each style: ten images (as `make_domain.py`), one LeFT adapter (as `lfs.py`), then *all* looks so far are loaded
into one bank and drawn from fixed latents. A look is forgotten if one bit of its numbers or pictures differs from what
it was just after it was learned. Other threads, torch versions and devices round otherwise: if the command goes on with
another of them, pictures are compared from then on, and numbers as before. Writes `<look>/` (adapters, each with its
own page), `report.json`, `report.html` over all looks, and `sheet.png` (a row per look, the base's first). To resume,
run the same command again. Unknown options go to `lfs.py`. It runs in one process.
"""

import argparse
import hashlib
import json
from pathlib import Path

import make_domain
import torch
from accelerate import Accelerator
from benchmark import contact_sheet

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import fingerprint
from fewshot_gan.training.adapt import main as adapt
from fewshot_gan.training.domains import parse_style
from fewshot_gan.training.launch import command
from fewshot_gan.training.report import Report
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.hashing import hash_tensors
from fewshot_gan.utils.random import check_seed
from fewshot_gan.utils.ranges import COUNT, check_number
from fewshot_gan.utils.threads import world_size


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--styles", nargs="+", required=True, help="filter:NAME or dicebear:NAME, in learning order")
    parser.add_argument("--output_dir", type=user_path, required=True)
    parser.add_argument("--base", default="ffhq-256", help="base generator (default: ffhq-256)")
    parser.add_argument("--num_faces", type=int, default=8, help="pictures per look (default: 8)")
    parser.add_argument("--probe_seed", type=int, default=500_000, help="of the pictures (default: 500000)")
    args, lfs_options = parser.parse_known_args(argv)
    names = [style.partition(":")[2] for style in args.styles]
    if len(set(names)) < len(names):
        parser.error(f"two styles have one name: {', '.join(names)}; each look is learned once")
    with command():
        learn(args, names, lfs_options)


def learn(args: argparse.Namespace, names: list[str], lfs_options: list[str]) -> None:
    """Each look in turn, and after each the proof.

    Raises:
        ValueError: bad options, several processes, or a folder of other pictures.
        SystemExit: a look was forgotten.
    """
    if (processes := world_size()) > 1:
        raise ValueError(
            f"WORLD_SIZE={processes}, but lifelong.py runs in 1 process: start it with python, or train each look by "
            "itself with accelerate launch training/lfs.py"
        )
    check_number("num_faces", args.num_faces, COUNT, whole=True)
    check_seed(args.probe_seed, "probe_seed")
    for style in args.styles:  # before hours of learning
        parse_style(style)
    first: dict[str, str] = {}  # look: sha256 of its pictures when it had just been learned
    learned: dict[str, str] = {}  # look: hash of its adapter's numbers then; "__base__": the base's fingerprint
    drawn_with: dict[str, str | int] | None = None  # what the bits of pictures depend on; None: not known
    report_path = args.output_dir / "report.json"
    probe = {"base": args.base, "seed": args.probe_seed, "num": args.num_faces}
    if report_path.is_file():
        before = json.loads(report_path.read_text(encoding="utf-8"))
        if before["probe"] != probe:
            raise ValueError(f"{report_path} is of {before['probe']}, not of {probe}; choose another --output_dir")
        first = before["after_learning"]
        learned, drawn_with = before.get("learned", {}), before.get("drawn_with")
    page = Report(args.output_dir, Accelerator(), 0, f"lifelong learning: {len(names)} looks of {args.base} in turn")
    page.part, page.settings = "look", vars(args) | {"options of lfs.py": lfs_options}
    page.data = f"ten pictures of each look: {', '.join(args.styles)}"
    with page.watched():
        for count, (style, name) in enumerate(zip(args.styles, names, strict=True), 1):
            data, adapter = args.output_dir / "data" / name, args.output_dir / name
            if not data.is_dir():
                make_domain.main([f"--style={style}", f"--base={args.base}", f"--out={data}"])
            options = [f"--data={data}", f"--output_dir={adapter}", f"--base={args.base}", *lfs_options]
            adapt("lfs_gan", options)
            pipe, images = draw(args, names[:count])
            hashes = {look: hashlib.sha256(x.numpy().tobytes()).hexdigest() for look, x in images.items()}
            now = {look: hash_tensors(pipe.bank.adapters[look].state_dict()) for look in names[:count]}
            now["__base__"] = fingerprint(pipe.generator)
            earlier, drawn_with = drawn_with, machine(pipe)
            if earlier not in (None, drawn_with):
                print(f"drawn with {drawn_with}, before with {earlier}: bits of pictures are compared from now on")
                first = {}
            first, learned = {**hashes, **first}, {**now, **learned}  # what was drawn and learned first stays
            report = {
                "base_fingerprint": now["__base__"],
                "looks": names[:count],
                "probe": probe,
                "drawn_with": drawn_with,
                "learned": learned,
                "after_learning": first,
                "now": hashes,
                "forgotten": [look for look in hashes if (hashes[look], now[look]) != (first[look], learned[look])],
                "numbers": {look: pipe.bank.adapters[look].num_values() for look in names[:count]},
                "bytes": {look: stored_bytes(args.output_dir / look) for look in names[:count]},
                "generator_numbers": pipe.generator.num_parameters(),
            }
            text = json.dumps(report, indent=2) + "\n"
            replace_text(report_path, text)
            rows = [images[look] * 2 - 1 for look in images]
            replace_file(args.output_dir / "sheet.png", contact_sheet(rows, size=128).save)
            show(page, pipe, name, len(names), report["forgotten"])
            print(f"{name}: learned as number {count}; forgotten so far: {', '.join(report['forgotten']) or 'none'}")
        if report["forgotten"]:
            raise SystemExit(f"forgotten: {', '.join(report['forgotten'])}")
        page.end("finished")


def show(page: Report, pipe, look: str, looks: int, forgotten: list[str]) -> None:
    """Put a look that was just learned on the page over all of them."""
    adapter = pipe.bank.adapters[look]
    steps = adapter.config.training["max_train_steps"]
    page.rounds[look] = Report(
        page.folder / look, page.accelerator, steps, shared=pipe.generator.resolution
    ).look_back()
    page.steps, page.state = looks * steps, "running"
    numbers = sum(pipe.bank.adapters[name].num_values() for name in page.rounds)
    page.facts = {
        "Base": f"{adapter.config.base_model_name_or_path}, fingerprint {adapter.config.base_fingerprint}",
        "Adapters": f"{len(page.rounds)} of {looks}, together {numbers:,} numbers",
        "Saved": ", ".join(f"{name}: {stored_bytes(page.folder / name):,} bytes" for name in page.rounds),
        "Forgotten": ", ".join(forgotten) or "none: every bit of the numbers and pictures of every look is as it was",
    }
    page.write()


@torch.no_grad()
def draw(args, looks: list[str]):
    """A fresh pipeline with all `looks` loaded, and the pictures `[N, 3, H, W]` of each, the base's first."""
    pipe = FewShotGAN.from_pretrained(args.base)
    for look in looks:
        pipe.load_adapter(args.output_dir / look, look)
    settings = {"seed": args.probe_seed, "output_type": "pt"}
    return pipe, {name: pipe(args.num_faces, adapter_names=name, **settings).images for name in ("__base__", *looks)}


def machine(pipe) -> dict[str, str | int]:
    """Return what the bits of a pipeline's pictures depend on, besides its networks."""
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "device": str(pipe.device)}


def stored_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors"))


if __name__ == "__main__":
    with script():
        main()
