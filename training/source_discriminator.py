"""Heads on frozen features that know a base's images: what TransferGAN starts from and D3T-GAN distils.

    python training/source_discriminator.py --base ffhq --output_dir runs/judge

A base without a discriminator has none to transfer. These heads learn the base's own images as real, and as fake what
it draws when its weights are disturbed: no data is needed. (Heads that had to tell `ffhq-256` from `ffhq`, which it was
distilled from, did so within ten steps, by its faint grid, and knew nothing else.) As in a training, they see large
images reduced, and crops at native scale. Writes `projected_discriminator/`, which belongs into the base's folder,
`report.json` and, to watch it, `report.html` and tensorboard logs.
"""

import argparse
import json
from statistics import mean

import torch
from tqdm.auto import tqdm

from fewshot_gan import FewShotGAN, LeFTAdapter
from fewshot_gan.data.images import reduced
from fewshot_gan.features import load_features
from fewshot_gan.methods.losses import hinge_d_loss
from fewshot_gan.methods.objective import Objective
from fewshot_gan.methods.views import draw_corners
from fewshot_gan.metrics import native_crops
from fewshot_gan.models.projected import ProjectedDiscriminator
from fewshot_gan.training.augment import FewShotAugment
from fewshot_gan.training.launch import command, start, start_trackers
from fewshot_gan.training.loop import backward
from fewshot_gan.training.report import Report
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.ranges import COUNT, FINITE, POSITIVE, check_number

SHOWN_EVERY = 50  # steps between pictures


def main(argv=None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--base", default="ffhq")
    p.add_argument("--output_dir", type=user_path, required=True)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--batch_size", type=int, default=4)
    p.add_argument("--learning_rate", type=float, default=1e-3)
    p.add_argument("--psi", type=float, default=0.7, help="truncation of the base's images")
    p.add_argument("--disturbance", type=float, default=0.1, help="largest spread of LeFT's noise; log-uniform")
    p.add_argument("--least_disturbance", type=float, default=0.003, help="least spread of it")
    p.add_argument("--held_out", type=int, default=64, help="images of either kind for the report")
    p.add_argument("--view_size", type=int, default=256, help="px; larger images are reduced to it, and cropped to it")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--report_to", default="tensorboard", help="Accelerate tracker, or none")
    p.add_argument("--num_threads", type=int, default=0, help="CPU threads; default: OMP_NUM_THREADS, or all")
    args = p.parse_args(argv)
    with command():
        return run(args)


def run(args: argparse.Namespace) -> dict:
    """Train the heads, judge them on pictures that they have not seen, and write both."""
    for name in ("steps", "batch_size", "held_out", "view_size"):
        check_number(name, getattr(args, name), COUNT, whole=True)
    numbers = {"learning_rate": POSITIVE, "disturbance": POSITIVE, "least_disturbance": POSITIVE, "psi": FINITE}
    for name, allowed in numbers.items():
        check_number(name, getattr(args, name), allowed)
    least, most = args.least_disturbance, args.disturbance
    if least > most:
        raise ValueError(f"least_disturbance={least:g} is above disturbance={most:g}; give at most that")
    accelerator = start(args.output_dir, seed=args.seed, report_to=args.report_to, num_threads=args.num_threads)
    pipe, features = FewShotGAN.from_pretrained(args.base), load_features()
    generator, bank = pipe.generator.eval(), pipe.bank
    generator.to(memory_format=torch.channels_last)
    bank.add("disturbed", adapter := LeFTAdapter.for_model(generator))
    identity = {k: v.clone() for k, v in adapter.state_dict().items()}
    augment, levels = FewShotAugment(), sorted(Objective.HEADS)
    crops = generator.resolution > args.view_size

    @torch.no_grad()
    def images(num, random, disturbance=0.0):
        if disturbance:
            for name, value in adapter.state_dict().items():
                value.copy_(identity[name] + disturbance * torch.randn(value.shape, generator=random))
        with bank.using({"disturbed": 1.0} if disturbance else {}):
            z = torch.randn(num, generator.z_dim, generator=random)
            return torch.cat([generator(row, truncation_psi=args.psi).clamp(-1, 1) for row in z.split(1)])

    @torch.no_grad()
    def look(x, random=None):
        """Return level → feature map of the whole images, and the same of crops of images that are larger."""
        views = [reduced(x, args.view_size)]
        draw = None if random is None else augment.sample(len(x), random)
        if draw is not None:
            views = [augment.apply(views[0], draw)]
        if crops:
            corners = draw_corners(len(x), 1, x.shape[-1], args.view_size, places)
            if draw is None:
                views.append(native_crops(x, corners, args.view_size))
            else:
                views.append(augment.recolour(augment.crop(x, draw, corners, args.view_size), draw))
        return [dict(zip(levels, features(view, levels), strict=True)) for view in views]

    def strength(random):
        return most * (least / most) ** float(torch.rand((), generator=random))

    random, places = (torch.Generator().manual_seed(seed) for seed in (args.seed, args.seed + 2))
    judge = ProjectedDiscriminator.for_images(
        reduced(images(args.batch_size, random), args.view_size), features, Objective.HEADS, args.seed
    )
    optimizer = torch.optim.Adam(judge.parameters(), lr=args.learning_rate, betas=(0.0, 0.99))
    start_trackers(accelerator, "source_discriminator", args.report_to, vars(args))
    report = Report(args.output_dir, accelerator, args.steps, f"heads on frozen features that know {args.base}")
    report.settings = vars(args)
    report.facts = {
        "Base": f"{args.base}, fingerprint {bank.fingerprint()}",
        "Heads": f"{judge.num_parameters():,} numbers, on levels {', '.join(map(str, levels))}",
        "Loss": "hinge: 2 is guessing",
    }
    report.data = "no files: pictures of the base are real, those of its disturbed weights are fake"
    report.grid = "What the heads saw in this step: above what counts as real, below as fake."
    losses = []
    with report.watched():
        report.begin()
        for step in (bar := tqdm(range(args.steps), desc="judging")):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * min(1.0, 2 * (1 - step / args.steps))
            real, fake = images(args.batch_size, random), images(args.batch_size, random, strength(random))
            seen = zip(look(real, random), look(fake, random), strict=True)
            pairs = [pair for sides in seen for pair in zip(*map(judge, sides), strict=True)]  # of each view and level
            loss = sum(hinge_d_loss(*pair) for pair in pairs) / len(pairs)
            optimizer.zero_grad()
            losses.append(backward({"d": loss}, step, args.output_dir, args.learning_rate)["d"])
            optimizer.step()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            report.add(step + 1, {"d": losses[-1]})
            if step % SHOWN_EVERY == 0 or step + 1 == args.steps:
                report.show(step + 1, (real, fake))
                report.write()
        judge.eval()
        random = torch.Generator().manual_seed(args.seed + 1)
        right = [dict.fromkeys(levels, 0) for _ in range(1 + crops)]  # whole images, then crops
        for _ in range(args.held_out):
            with torch.no_grad():
                sides = look(images(1, random)), look(images(1, random, strength(random)))
                for count, *seen in zip(right, *sides, strict=True):
                    for level, real, fake in zip(levels, *map(judge, seen), strict=True):
                        count[level] += int(real.mean() > 0) + int(fake.mean() < 0)
        shares = [{str(level): n / (2 * args.held_out) for level, n in count.items()} for count in right]
        accuracy = shares[0]
        result = {"held_out": args.held_out, "accuracy_of_each_level": accuracy, "steps": args.steps, "seed": args.seed}
        if crops:
            result["accuracy_on_crops"] = shares[1]
        result["loss_of_last_quarter"] = mean(losses[-max(1, args.steps // 4) :])  # hinge: 2 is guessing
        judge.half().save_pretrained(args.output_dir / "projected_discriminator")
        text = json.dumps(result, indent=1) + "\n"
        replace_text(args.output_dir / "report.json", text)
        report.facts["Right on held-out pictures"] = ", ".join(f"level {k} {v:.1%}" for k, v in accuracy.items())
        report.saved("projected_discriminator/*.safetensors")
        report.end("finished")
    accelerator.end_training()
    print(text)
    return result


if __name__ == "__main__":
    with script():
        main()
