"""Looks a hypernetwork has never seen: predicted from one picture, beside vectors trained on ten (HyperDomainNet, §5).

    python training/unseen_domains.py --output_dir runs/unseen --max_train_steps 300 --vector_steps 100
    python training/unseen_domains.py --output_dir runs/unseen --network runs/looks --held_out filter:pencil filter:ink

Trains one image-conditioned hypernetwork on `--seen` looks (ten pictures each, as `make_domain.py`), predicts a domain
vector for every held-out look and for the first seen ones from the first of their pictures, trains a vector of its own
for each (`hyperdomainnet.py`), and judges both as the bench does. Writes `hypernetwork/`, `predicted/LOOK`,
`trained/LOOK`, `cells/*.json`, `table.md` and `sheet.png`: per look a row of the given picture and of predicted
faces, and a row of trained ones. With `--network` it trains none, and judges a network of `hypernetwork.py` or
`look_hypernetwork.py` on the held-out looks. The same command again goes on where it stopped.
"""

import argparse
import hashlib
import statistics
import time
from pathlib import Path

import torch
from bench_looks import Looks, folder_name, read_json, write_json
from bench_report import markdown
from benchmark import contact_sheet

from fewshot_gan.adapters import HyperNetwork
from fewshot_gan.data.datasets import load_images
from fewshot_gan.data.images import read_image, to_floats
from fewshot_gan.training import adapt, hypernetwork
from fewshot_gan.training.domains import parse_style
from fewshot_gan.training.families import FAMILIES
from fewshot_gan.training.launch import command
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.folder_lock import locked
from fewshot_gan.utils.threads import usual_threads

SEEN = (
    *("filter:poster", "dicebear:open-peeps", "dicebear:micah"),  # judged too, see --show_seen
    *("filter:sepia", "filter:pixel"),
    *("dicebear:adventurer", "dicebear:big-ears", "dicebear:big-smile", "dicebear:bottts", "dicebear:cameo"),
    *("dicebear:croodles", "dicebear:cutouts", "dicebear:dylan", "dicebear:fun-emoji", "dicebear:landscape"),
    *("dicebear:line-face", "dicebear:miniavs", "dicebear:moods", "dicebear:personas", "dicebear:pixel-art"),
    *("dicebear:shadows", "dicebear:thumbs", "dicebear:toon-head"),
)
HELD_OUT = ("filter:pencil", "filter:ink", "dicebear:lorelei", "dicebear:notionists", "dicebear:avataaars")
COLUMNS = ("kid_x1e3_ratio", "unseen_x1e3_ratio", "plain_x1e3_ratio", "balanced_intra_cluster_distance_ratio")
FACES = 7


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--output_dir", type=user_path, required=True)
    p.add_argument("--base", default="ffhq-256")
    p.add_argument("--seen", nargs="+", default=list(SEEN), help="looks that train the hypernetwork")
    p.add_argument("--held_out", nargs="+", default=list(HELD_OUT), help="looks that it never sees")
    p.add_argument("--network", type=user_path, help="folder of a hypernetwork to judge, instead of training one")
    p.add_argument("--show_seen", type=int, default=3, help="so many seen looks are judged too")
    p.add_argument("--max_train_steps", type=int, default=300, help="of the hypernetwork")
    p.add_argument("--vector_steps", type=int, default=100, help="of each trained vector; 0 = none")
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--learning_rate", type=float, default=1e-4, help="of the hypernetwork")
    p.add_argument("--num", type=int, default=500, help="judged pictures")
    p.add_argument("--num_true", type=int, default=1000)
    p.add_argument("--num_threads", type=int, default=usual_threads(), help="CPU threads (default: %(default)s)")
    args = p.parse_args(argv)
    if args.network is None and (both := sorted({*args.seen} & {*args.held_out})):
        p.error(f"{', '.join(both)} would be both seen and held out")
    with command(), locked(args.output_dir):
        run(args)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.num_threads)
    for look in (*args.held_out, *args.seen):  # before hours of training
        parse_style(look)
    looks = Looks(args.output_dir, args.base, args.num, args.num_true)
    common = [f"--base={args.base}", "--report_to=none", f"--num_threads={args.num_threads}"]
    network = trained(args, looks, common) if args.network is None else HyperNetwork.from_pretrained(args.network)
    about = (
        f"Hypernetwork of {network.num_values():,} numbers; embedding to adapter: {milliseconds(network):.1f} ms "
        f"(median of 20, {args.num_threads} threads)."
    )
    rows = []
    for look in [*args.held_out, *(args.seen[: args.show_seen] if args.network is None else ())]:
        data = looks.data(look)
        predicted, vector = (args.output_dir / kind / folder_name(look) for kind in ("predicted", "trained"))
        looks.pipe.adapter_from_image(sorted(data.glob("*.png"))[0], network, "predicted")
        looks.pipe.save_adapter(predicted, "predicted")
        looks.pipe.set_adapters([])
        looks.pipe.delete_adapters("predicted")
        folders = {"predicted": predicted}
        if args.vector_steps:
            options = [f"--data={data}", f"--output_dir={vector}", f"--max_train_steps={args.vector_steps}"]
            adapt.main("hyperdomainnet", [*common, *options, "--sample_steps=0"])
            folders["trained"] = vector
        cells = {kind: judged(looks, look, kind, folder) for kind, folder in folders.items()}
        rows.append((look, relation(look, network), cells))
        write_table(args.output_dir / "table.md", about, rows)
    write_sheet(args.output_dir / "sheet.png", looks, rows)
    print((args.output_dir / "table.md").read_text(encoding="utf-8"))


def trained(args: argparse.Namespace, looks: Looks, common: list[str]) -> HyperNetwork:
    """The hypernetwork of the seen looks."""
    seen = args.output_dir / "seen"  # what the hypernetwork is trained on: links to these looks' folders
    seen.mkdir(parents=True, exist_ok=True)
    for link in [*seen.iterdir()]:  # of an earlier call with other looks: the run in this folder is then refused
        if link.is_symlink() and link.name not in map(folder_name, args.seen):
            link.unlink()
    for look in args.seen:
        link = seen / folder_name(look)
        if not link.exists():
            link.symlink_to(looks.data(look).resolve(), target_is_directory=True)
    options = [
        *common,
        *(f"--data={seen}", f"--output_dir={args.output_dir / 'hypernetwork'}", f"--width={args.width}"),
        *(f"--max_train_steps={args.max_train_steps}", f"--learning_rate={args.learning_rate}"),
        *("--checkpointing_steps=50", "--sample_steps=100"),
    ]
    return hypernetwork.main(options)


def relation(look: str, network: HyperNetwork) -> str:
    """What the network has seen of a look."""
    record, kind, name = network.config.training or {}, *look.split(":")
    if folder_name(look) in record.get("domains", ()):
        return "seen"
    family = name.partition("-")[0]
    if kind == "filter" and family in FAMILIES and "-" in name:
        return "new look of a seen family" if family in record.get("families", ()) else "family held out"
    return "held out"


def milliseconds(network: HyperNetwork) -> float:
    """Median time from an embedding to an adapter."""
    embedding, times = torch.randn(network.config.embedding_dim), []
    for _ in range(20):
        start = time.perf_counter()
        network.adapter(embedding)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def judged(looks: Looks, look: str, kind: str, folder: Path) -> dict:
    """Numbers of one adapter, kept in a file with their protocol; its first pictures are kept beside."""
    path = looks.output / "cells" / f"{kind}-{folder_name(look)}.json"
    weights = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    protocol = looks.protocol(look) | {"kind": kind, "adapter_sha256": weights}
    known = read_json(path)
    if known is None or known["protocol"] != protocol:
        numbers, _, pictures = looks.judge(look, folder)
        strip = path.with_suffix(".png")
        replace_file(strip, contact_sheet([to_floats(pictures[:FACES])], size=pictures.shape[-1]).save)
        known = {"look": look, "kind": kind, "numbers": numbers, "protocol": protocol}
        write_json(path, known)
    return known


def write_table(path: Path, about: str, rows: list) -> None:
    lines = []
    for look, seen, cells in rows:
        for kind, cell in cells.items():
            numbers = [f"{cell['numbers'][name]:.3f}" for name in COLUMNS]
            lines.append([look, seen, kind, *numbers])
    heads = ["look", "", "", "KID ratio", "unseen ratio", "plain ratio", "balanced intra-cluster ratio"]
    text = f"{about}\n\n{markdown(heads, lines)}\n"
    replace_text(path, text)


def write_sheet(path: Path, looks: Looks, rows: list) -> None:
    """Per look: the picture that was given and the predicted faces; below, white and the trained ones."""
    from PIL import Image

    side, lines = 128, []
    for look, _, cells in rows:
        first = to_floats(load_images(looks.data(look), looks.side)[:1])
        for kind in cells:
            strip = read_image(path.parent / "cells" / f"{kind}-{folder_name(look)}.png").resize((FACES * side, side))
            given = contact_sheet([first if kind == "predicted" else torch.ones_like(first)], size=side)
            line = Image.new("RGB", ((FACES + 1) * side, side), "white")
            line.paste(given, (0, 0))
            line.paste(strip, (side, 0))
            lines.append(line)
    sheet = Image.new("RGB", (lines[0].width, side * len(lines)), "white")
    for i, line in enumerate(lines):
        sheet.paste(line, (0, i * side))
    replace_file(path, sheet.save)


if __name__ == "__main__":
    with script():
        main()
