"""Judges bases that were trained on limited data: KID and Fréchet distance to pictures they never saw, table and sheet.

    python training/limited_bench.py --data data/faces --num 1000 runs/ticket/round-00 runs/ticket/round-05

What was left out of training by `--num`/`--percent` and `--subset_seed` (give them as there) is the truth. KID × 1e3
and Fréchet distance in EfficientNet-Lite0 pooled features, KID × 1e3 in those of EfficientNet-Lite2 ("unseen"), as many
drawn pictures as true ones. The row "training images" says what a copy of these would get, "half of the truth" what is
left of a perfect generator. Writes `limited_bench.json`, `table.md` and `sheet.png` into `--out`.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from bench_report import markdown, short
from benchmark import UNSEEN, contact_sheet, versions

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters.ticket import prunable
from fewshot_gan.data.datasets import choose_subset, load_labelled
from fewshot_gan.data.images import to_floats
from fewshot_gan.features import load_features
from fewshot_gan.metrics import frechet_distance, kernel_distance
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.threads import set_threads, usual_threads

SHEET = 16
PSI = 1.0  # that of the training
CHUNK = 64
LEAST = 4  # unseen pictures: the distance of two halves needs two in each


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("runs", nargs="+", type=user_path, help="folders of bases")
    p.add_argument("--data", required=True, help="as in training")
    p.add_argument("--num", type=int, help="as in training")
    p.add_argument("--percent", type=float, help="as in training")
    p.add_argument("--subset_seed", type=int, default=0, help="as in training")
    p.add_argument("--most", type=int, default=5000, help="judge by no more than so many true pictures")
    p.add_argument("--seed", type=int, default=100_000, help="of the judged pictures")
    p.add_argument("--out", type=user_path, default=Path("runs/limited"))
    p.add_argument("--num_threads", type=int, default=usual_threads(), help="CPU threads (default: %(default)s)")
    args = p.parse_args(argv)
    set_threads(args.num_threads)
    pipes = {str(run): FewShotGAN.from_pretrained(run) for run in args.runs}
    sides = {name: pipe.generator.resolution for name, pipe in pipes.items()}
    side, *others = sorted(set(sides.values()))
    if others:
        found = ", ".join(f"{name} {px} px" for name, px in sides.items())
        p.error(f"the bases draw pictures of different sizes ({found}); judge those of one size together")
    images, labels, _ = load_labelled(args.data, side)
    rows = choose_subset(len(images), args.num, args.percent, args.subset_seed)
    unseen = torch.ones(len(images), dtype=torch.bool)
    unseen[rows] = False
    unseen = unseen.nonzero()[:, 0]
    # in any order: classes lie behind one another, and the most, and the halves, are to have all of them
    unseen = unseen[torch.randperm(len(unseen), generator=torch.Generator().manual_seed(args.seed))][: args.most]
    if (count := len(unseen)) < LEAST:
        p.error(
            f"{args.data} has {len(images)} images, of which training takes {len(rows)}, and --most {args.most} "
            f"leaves {count} to judge by; leave {LEAST} or more, two in each half"
        )
    networks = load_features(), load_features(UNSEEN)

    def described(pictures: torch.Tensor) -> list[torch.Tensor]:
        parts = [[net.pooled(chunk).cpu() for net in networks] for chunk in pictures.split(CHUNK)]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    truth_pictures = to_floats(images[unseen])
    truth = described(truth_pictures)
    half = torch.arange(count) < count // 2

    def judged(seen: list[torch.Tensor], of: list[torch.Tensor] = truth) -> dict[str, float]:
        return {
            "kid_x1e3": 1e3 * kernel_distance(seen[0], of[0]),
            "frechet": frechet_distance(seen[0], of[0]),
            "unseen_x1e3": 1e3 * kernel_distance(seen[1], of[1]),
        }

    results = {
        "training images": judged(described(to_floats(images[rows]))),
        "half of the truth": judged([x[half] for x in truth], [x[~half] for x in truth]),
    }
    columns = min(SHEET, len(rows), count)
    strips = [to_floats(images[rows[:columns]])]
    for name, pipe in pipes.items():
        knows_classes = (getattr(pipe.generator, "num_classes", None) or 1) > 1
        classes = labels[unseen].tolist() if knows_classes and labels is not None else None
        settings = {"truncation_psi": PSI, "class_labels": classes, "output_type": "pt", "batch_size": CHUNK}
        drawn = pipe(count, seed=args.seed, **settings).images * 2 - 1
        weights = torch.cat([w.detach().flatten() for w in prunable(pipe.generator).values()])
        results[name] = judged(described(drawn)) | {"sparsity": float((weights == 0).float().mean())}
        strips.append(drawn[:columns])
    protocol = {
        "num": count,
        "trained_on": len(rows),
        "resolution": side,
        "subset_seed": args.subset_seed,
        "seed": args.seed,
        "truncation_psi": PSI,
        "data_sha256": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "features": ["efficientnet-lite0", UNSEEN],
        "versions": versions(),
    }
    report = {"protocol": protocol, "results": results}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1) + "\n"
    replace_text(args.out / "limited_bench.json", text)
    heads = {"KID": "kid_x1e3", "Fréchet": "frechet", "unseen": "unseen_x1e3", "pruned": "sparsity"}
    lines = [
        [name, *("" if key not in row else short(row[key]) for key in heads.values())] for name, row in results.items()
    ]
    table = markdown(["", *heads], lines) + "\n"
    replace_text(args.out / "table.md", table)
    replace_file(args.out / "sheet.png", contact_sheet(strips, size=max(64, side)).save)
    print(table)
    return report


if __name__ == "__main__":
    with script():
        main()
