"""Distil a small backbone and its source discriminator from a large MobileStyleGAN teacher.

    python training/distill.py --source WHEEL_OR_FOLDER --work_dir runs/ffhq-256 --output_dir runs/ffhq-256/pipeline

The teacher (1024 px) is rendered once, box-averaged to the student's size. The student is the teacher cut after a few
blocks; its new image head is fitted in closed form, then the last blocks and the head learn from pixels, frozen
features and a light adversarial term, whose discriminator is kept: few-shot methods start from it. --work_dir gets
`report.html` and tensorboard logs, to watch it. To resume, or to improve a finished run with more --steps, run the same
command again. With --evaluate nothing is trained: the pipeline
in --output_dir is compared with the teacher (PSNR, Fréchet distance beside its floor, a sheet).
"""

import argparse
import json
import math
import os
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from fewshot_gan.convert import convert_checkpoint
from fewshot_gan.data.images import to_bytes
from fewshot_gan.features import load_features
from fewshot_gan.methods.losses import logistic_d_loss, logistic_g_loss, r1_penalty
from fewshot_gan.metrics import frechet_distance, psnr
from fewshot_gan.models import StyleGAN2Discriminator
from fewshot_gan.ops import haar
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training.interrupt import Interrupted
from fewshot_gan.training.launch import (
    PRECISIONS,
    command,
    launched_precision,
    start,
    start_trackers,
)
from fewshot_gan.training.loop import asked_to_stop
from fewshot_gan.training.report import Report, TrainingDiverged
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import expanded, replace_file
from fewshot_gan.utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, check_number

SHOWN = ("pixel", "feature", "d_loss")  # curves of the report
COUNTS = ("num_train", "num_val", "train_blocks", "steps", "batch_size", "d_every", "checkpointing_steps")
COUNTS += ("feature_every", "d_channel_base", "d_channel_max")
RANGES = {
    **dict.fromkeys(("learning_rate", "d_learning_rate"), POSITIVE),
    **dict.fromkeys(("feature_weight", "adversarial_weight", "d_steps"), NOT_NEGATIVE),
    "adversarial_start": SHARE,
    "ema_decay": Range(0, 1, below=True),
}


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = {"type": expanded, "required": True}
    p.add_argument("--source", **folder, help="random-face wheel, its unpacked folder, or a converted pipeline")
    p.add_argument("--work_dir", **folder, help="cache of teacher images, checkpoints, logs and report")
    p.add_argument("--output_dir", **folder, help="where the fp16 generator and discriminator are written")
    p.add_argument("--resolution", type=int, default=256)
    p.add_argument("--num_train", type=int, default=3000, help="teacher images to learn from")
    p.add_argument("--num_val", type=int, default=100, help="held-out teacher images at psi 0.7")
    p.add_argument("--train_blocks", type=int, default=2, help="trailing blocks that learn besides the head")
    p.add_argument("--steps", type=int, default=2500)
    p.add_argument("--batch_size", type=int, default=4)
    p.add_argument("--learning_rate", type=float, default=1e-3, help="head and affines; convolutions take a fifth")
    p.add_argument("--feature_weight", type=float, default=0.05)
    p.add_argument("--adversarial_weight", type=float, default=2e-3)
    p.add_argument("--adversarial_start", type=float, default=0.5, help="fraction of the run after which it acts")
    p.add_argument("--d_learning_rate", type=float, default=1e-3)
    p.add_argument("--d_every", type=int, default=4, help="a discriminator step every this many steps")
    p.add_argument("--d_steps", type=int, default=400, help="discriminator-only steps after the student's, see train_d")
    p.add_argument("--d_noise", type=float, nargs=2, default=(0.02, 0.4), help="range of the weight noise in them")
    p.add_argument("--d_channel_base", type=int, default=4096)
    p.add_argument("--d_channel_max", type=int, default=256)
    p.add_argument("--ema_decay", type=float, default=0.999)
    p.add_argument("--checkpointing_steps", type=int, default=250)
    p.add_argument("--mixed_precision", choices=PRECISIONS, help="default no; bf16 pays on AMX CPUs and GPUs")
    p.add_argument("--compile", action="store_true", help="torch.compile the student (a minute, then a fifth faster)")
    p.add_argument("--feature_every", type=int, default=2, help="the feature term acts every this many steps")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--report_to", default="tensorboard", help="Accelerate tracker, or none")
    p.add_argument("--num_threads", type=int, default=0, help="CPU threads; default: OMP_NUM_THREADS, or all")
    p.add_argument("--evaluate", type=int, metavar="N", help="compare --output_dir with N and N other teacher images")
    return p.parse_args(argv)


@torch.no_grad()
def render(teacher, folder: Path, name: str, num: int, seed: int, psi: tuple[float, float], resolution: int, device):
    """Teacher ws (first row, `[N, D]`) and box-averaged images `[N, 3, R, R]` fp16 as memory maps, resumable."""
    w_path, x_path, done = folder / f"{name}_w.npy", folder / f"{name}_x.npy", folder / f"{name}.done"
    if not done.exists():
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num, teacher.z_dim, generator=generator)
        psis = torch.empty(num, 1).uniform_(*psi, generator=generator)
        w = teacher.mapping.w_avg.cpu() + psis * (
            torch.cat([teacher.mapping(c.to(device))[:, 0].cpu() for c in z.split(1000)]) - teacher.mapping.w_avg.cpu()
        )
        np.save(w_path, w.numpy())
        images = np.lib.format.open_memmap(x_path, "w+", np.float16, (num, 3, resolution, resolution))
        for i in tqdm(range(0, num, 4), desc=f"teacher images ({name})"):
            big = teacher(w[i : i + 4].to(device), latent_space="w")
            images[i : i + 4] = F.avg_pool2d(big, teacher.resolution // resolution).half().cpu().numpy()
        images.flush()
        done.touch()
    return torch.from_numpy(np.load(w_path)), np.load(x_path, mmap_mode="r")


@torch.no_grad()
def fit_head(student, w, images, device, num: int = 128):
    """Start the new head from the ridge solution of features → Haar bands, with a style of ones."""
    head = student.synthesis.to_rgb
    channels = head.conv.weight.shape[1]
    gram = torch.zeros(channels + 1, channels + 1, dtype=torch.float64)
    target = torch.zeros(channels + 1, 12, dtype=torch.float64)
    for i in range(0, num, 4):
        ws = w[i : i + 4, None].expand(-1, student.num_ws, -1).to(device)
        _, features = student.synthesis(ws, return_features=True)
        x = features[f"b{student.resolution // 2}"].permute(0, 2, 3, 1).reshape(-1, channels).cpu()
        y = haar(torch.from_numpy(np.array(images[i : i + 4])).float()).permute(0, 2, 3, 1).reshape(-1, 12)
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        gram += (x.t() @ x).double()
        target += (x.t() @ y).double()
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(channels + 1, dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, target).float()
    head.affine.weight.zero_()
    head.affine.bias.fill_(1)
    head.conv.weight.copy_(solution[:-1].t()[:, :, None, None])
    head.bias.copy_(solution[-1])


def train_d(args, student, discriminator, optimizer, train_w, train_x, first, device, save, report, asked):
    """Teach the discriminator what a face is: teacher pictures against students with noise on their weights.

    The distilled student is so close to its teacher that telling them apart teaches nothing about faces. Each step
    multiplies the student's weights by 1 + σ·noise, σ log-uniform in `--d_noise`: from a touch of damage to ruins.
    """
    weights = {k: v.float() for k, v in student.state_dict().items()}
    noisy = [k for k in weights if k.startswith("synthesis.") and k.endswith("weight")]
    low, high = map(math.log, args.d_noise)
    for step in (bar := tqdm(range(first, args.d_steps), initial=first, total=args.d_steps, mininterval=10)):
        random = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        picks = torch.randint(len(train_w), (2 * args.batch_size,), generator=random)
        real = torch.from_numpy(train_x[picks[: args.batch_size].numpy()]).float().to(device)
        sigma = math.exp(low + (high - low) * float(torch.rand((), generator=random)))
        damaged = {
            k: weights[k] * (1 + sigma * torch.randn(weights[k].shape, generator=random).to(device)) for k in noisy
        }
        with torch.no_grad():
            w = train_w[picks[args.batch_size :]].to(device)
            fake = torch.func.functional_call(student, {**weights, **damaged}, (w,), {"latent_space": "w"})
        real_logits, fake_logits = discriminator(real), discriminator(fake)
        loss = logistic_d_loss(real_logits, fake_logits)
        if step % 16 == 0:
            loss = loss + 16 * r1_penalty(discriminator, real, weight=1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.set_postfix(sigma=f"{sigma:.2f}", d=f"{loss.item():.3f}", refresh=False)
        report.add(args.steps + step + 1, {"d": loss.item()})
        if (step + 1) % 50 == 0 or step + 1 == args.d_steps:
            right = (real_logits > 0).float().mean() / 2 + (fake_logits < 0).float().mean() / 2
            print(
                f"d_step {step + 1}: loss {loss.item():.3f}, {right.item():.0%} right at sigma {sigma:.2f}", flush=True
            )
            save(args.steps, step + 1)
            report.write()
        if number := asked():
            save(args.steps, step + 1)
            raise Interrupted(number)


@torch.no_grad()
def evaluate(args, teacher, device):
    """Print and write `evaluation.json` and `evaluation.png` (teacher above student) into the work folder."""
    work, n, size = Path(args.work_dir), args.evaluate, args.resolution
    pipe = FewShotGAN.from_pretrained(args.output_dir).to(device)

    def images(w):
        return torch.cat([pipe.generator(c.to(device), latent_space="w").clamp(-1, 1).cpu() for c in w.split(8)])

    val_w, val_x = render(teacher, work, "val", args.num_val, 1, (0.7, 0.7), size, device)
    val_x = torch.from_numpy(np.array(val_x)).float().clamp(-1, 1)
    val_student = images(val_w)
    psnrs = [psnr(a[None], b[None]) for a, b in zip(val_student, val_x, strict=True)]
    features = load_features(device=device)
    a_w, a_x = render(teacher, work, "evalA", n, 3, (0.7, 0.7), size, device)
    _, b_x = render(teacher, work, "evalB", n, 4, (0.7, 0.7), size, device)

    def pooled(x):
        return torch.cat([features.pooled(torch.from_numpy(np.array(x[i : i + 50])).float()) for i in range(0, n, 50)])

    teacher_b = pooled(b_x)
    student_a = torch.cat([features.pooled(images(c)) for c in a_w.split(50)])
    result = {
        "protocol": f"psi 0.7, {size} px, EfficientNet-Lite0 pooled features {features.sha256[:12]}, n={n}",
        "psnr_mean": float(np.mean(psnrs)),
        "psnr_min": float(np.min(psnrs)),
        "psnr_n": len(psnrs),
        "frechet_student_a_teacher_b": frechet_distance(student_a, teacher_b),
        "frechet_teacher_a_teacher_b": frechet_distance(pooled(a_x), teacher_b),
    }
    (work / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    sheet = torch.cat([torch.cat(list(rows[:8]), 2) for rows in (val_x, val_student, val_x[8:], val_student[8:])], 1)
    picture = to_bytes(sheet).permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(work / "evaluation.png")


def check(args) -> None:
    """Refuse numbers out of range, in one sentence."""
    for name in COUNTS:
        check_number(name, getattr(args, name), COUNT, whole=True)
    for name, allowed in RANGES.items():
        check_number(name, getattr(args, name), allowed)
    if not 0 < args.d_noise[0] <= args.d_noise[1] < math.inf:
        raise ValueError(f"d_noise={args.d_noise[0]} {args.d_noise[1]}: give two numbers above 0, the smaller first")


def run(args):
    check(args)
    args.mixed_precision = args.mixed_precision or launched_precision()
    accelerator = start(
        args.work_dir,
        seed=args.seed,
        report_to=args.report_to,
        num_threads=args.num_threads,
        mixed_precision=args.mixed_precision,
    )
    device = accelerator.device
    work = Path(args.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    teacher = convert_checkpoint(args.source)["generator"].to(device).eval().requires_grad_(False)
    depth = int(math.log2(args.resolution // 8))
    if args.evaluate:
        return evaluate(args, teacher, device)
    train_w, train_x = render(teacher, work, "train", args.num_train, 2, (0.5, 1.0), args.resolution, device)
    val_w, val_x = render(teacher, work, "val", args.num_val, 1, (0.7, 0.7), args.resolution, device)

    student = teacher.truncated(depth).to(device).eval()
    del teacher
    synthesis = student.synthesis
    learning = [getattr(synthesis, f"b{r}") for r in synthesis.resolutions[-args.train_blocks :]] + [synthesis.to_rgb]
    student.requires_grad_(False)
    groups = {"fast": [], "slow": []}
    for module in learning:
        for name, parameter in module.requires_grad_(True).named_parameters():
            fast = module is synthesis.to_rgb or "affine" in name
            groups["fast" if fast else "slow"].append(parameter)
    discriminator = StyleGAN2Discriminator(args.resolution, args.d_channel_base, args.d_channel_max).to(device)
    features = load_features().to(device)
    g_optim = torch.optim.Adam(
        [{"params": groups["fast"]}, {"params": groups["slow"]}], lr=args.learning_rate, betas=(0.9, 0.99)
    )
    d_optim = torch.optim.Adam(discriminator.parameters(), lr=args.d_learning_rate, betas=(0.0, 0.99))

    checkpoint, first, d_first = work / "checkpoint.pt", 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        student.load_state_dict(state["student"])
        ema = deepcopy(student)
        ema.load_state_dict(state["ema"])
        discriminator.load_state_dict(state["discriminator"])
        g_optim.load_state_dict(state["g_optim"])
        d_optim.load_state_dict(state["d_optim"])
        first, d_first = state["step"], state.get("d_step", 0)
    else:
        fit_head(student, train_w, train_x, device)
        ema = deepcopy(student)

    dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
    student.to(memory_format=torch.channels_last)
    blocks = [(getattr(synthesis, f"b{r}"), 1 + 3 * i) for i, r in enumerate(synthesis.resolutions)]
    num_frozen = len(blocks) - args.train_blocks

    def frozen_part(ws):
        x = synthesis.const.to(dtype).expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = synthesis.conv1(x, ws[:, 0])
        for block, first in blocks[:num_frozen]:
            x = block(x, ws[:, first : first + 3])
        return x

    def learned_part(x, ws):
        for block, first in blocks[num_frozen:]:
            x = block(x, ws[:, first : first + 3])
        return synthesis.to_rgb(x, ws[:, -1]).float()

    if args.compile:
        frozen_part, learned_part = torch.compile(frozen_part), torch.compile(learned_part)

    def generate(w):
        """Student images `[B, 3, R, R]` fp32; the blocks that do not learn run without a graph."""
        ws = w[:, None].expand(-1, student.num_ws, -1).to(dtype)
        with torch.no_grad():
            x = frozen_part(ws)
        return learned_part(x, ws)

    @torch.no_grad()
    def validate(model):
        images = torch.cat([model(c.to(device), latent_space="w").cpu() for c in val_w.split(4)])
        return float(psnr(images, torch.from_numpy(np.array(val_x)).float()))

    @torch.no_grad()
    def show(step):
        teachers = torch.from_numpy(np.array(val_x[:8])).float()
        rows = teachers, ema(val_w[:8].to(device), latent_space="w").cpu()
        report.show(step, torch.cat([torch.cat([*row], 2) for row in rows], 1))

    def save(step, d_step=0):
        state = {
            "student": student.state_dict(),
            "ema": ema.state_dict(),
            "discriminator": discriminator.state_dict(),
            "g_optim": g_optim.state_dict(),
            "d_optim": d_optim.state_dict(),
            "step": step,
            "d_step": d_step,
        }
        replace_file(checkpoint, lambda temp: torch.save(state, temp))

    log = (work / "log.jsonl").open("a", encoding="utf-8")
    if first == 0:
        print(f"closed-form head: {validate(ema):.2f} dB on {args.num_val} held-out latents at psi 0.7", flush=True)
    levels = (0, 2, 4)
    report = report_of(args, accelerator, student, train_x, first, d_first)
    start_trackers(accelerator, "distill", args.report_to, vars(args))
    with report.watched(), asked_to_stop(accelerator) as asked:
        report.begin(first + d_first if first == args.steps else first)
        began, progress = time.time(), tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=10)
        for step in progress:
            epoch = step * args.batch_size // args.num_train
            order = np.random.default_rng((args.seed, epoch)).permutation(args.num_train)
            picks = np.sort(order[np.arange(step * args.batch_size, (step + 1) * args.batch_size) % args.num_train])
            w, real = train_w[picks].to(device), torch.from_numpy(train_x[picks]).float().to(device)
            rate = args.learning_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
            g_optim.param_groups[0]["lr"], g_optim.param_groups[1]["lr"] = rate, rate / 5

            fake = generate(w)
            error = fake - real
            pixel = error.abs().mean() + 5 * error.square().mean()
            loss = pixel
            if step % args.feature_every == 0:
                with torch.no_grad():
                    wanted = features(real.clamp(-1, 1), levels)
                feature = sum(
                    (a - b).abs().mean() / b.abs().mean() for a, b in zip(features(fake, levels), wanted, strict=True)
                )
                loss = loss + args.feature_every * args.feature_weight * feature
            adversarial = step >= args.adversarial_start * args.steps
            if adversarial:
                discriminator.requires_grad_(False)
                loss = loss + args.adversarial_weight * logistic_g_loss(discriminator(fake))
                discriminator.requires_grad_(True)
            if not torch.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss became {loss.item()} at step {step}; the checkpoint before it is kept"
                )
            g_optim.zero_grad(set_to_none=True)
            loss.backward()
            g_optim.step()
            with torch.no_grad():
                decay = min(args.ema_decay, (1 + step) / (10 + step))
                for a, b in zip(ema.state_dict().values(), student.state_dict().values(), strict=True):
                    a.lerp_(b, 1 - decay)

            values = {"pixel": pixel.item(), "feature": float(feature.detach())}
            if step % args.d_every == 0:
                logits = discriminator(torch.cat([real, fake.detach()]))
                real_logits, fake_logits = logits.chunk(2)
                d_loss = logistic_d_loss(real_logits, fake_logits)
                if step % (args.d_every * 16) == 0:
                    d_loss = d_loss + 16 * r1_penalty(discriminator, real, weight=1.0)
                d_optim.zero_grad(set_to_none=True)
                d_loss.backward()
                d_optim.step()
                values |= {
                    "d_loss": d_loss.item(),
                    "d_real": real_logits.mean().item(),
                    "d_fake": fake_logits.mean().item(),
                }
            losses = {"d" if name == "d_loss" else name: values[name] for name in values if name in SHOWN}
            report.add(step + 1, losses)
            progress.set_postfix({k: f"{v:.3f}" for k, v in values.items()}, refresh=False)
            if (step + 1) % args.checkpointing_steps == 0 or step + 1 == args.steps:
                values |= {"step": step + 1, "val_psnr": validate(ema), "seconds": time.time() - began}
                log.write(json.dumps(values) + "\n")
                log.flush()
                print(json.dumps({k: round(v, 4) for k, v in values.items()}), flush=True)
                save(step + 1)
                accelerator.log({"val_psnr": values["val_psnr"]}, step=step + 1)
                report.facts["PSNR, held-out latents"] = f"{values['val_psnr']:.2f} dB at step {step + 1}"
                show(step + 1)
                report.write()
            if number := asked():
                save(step + 1)
                raise Interrupted(number)
        train_d(args, ema, discriminator, d_optim, train_w, train_x, d_first, device, save, report, asked)
        target = Path(args.output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temp:
            FewShotGAN(ema.half(), discriminator.half()).save_pretrained(Path(temp) / "new")
            if target.exists():
                os.replace(target, Path(temp) / "old")
            os.replace(Path(temp) / "new", target)
        report.facts["Saved"] = f"{target}"
        report.end("finished")
    accelerator.end_training()
    print(f"wrote {target}")


def report_of(args, accelerator, student, images, first: int, d_first: int) -> Report:
    """Of the student's steps and then of those of `train_d`, counted on."""
    d_steps = args.d_steps if first == args.steps else max(0, args.d_steps - d_first)
    report = Report(
        args.work_dir, accelerator, args.steps + d_steps, "distillation of a teacher", shared=args.resolution
    )
    report.first_row = "the teacher"
    report.settings = vars(args)
    learning = sum(p.numel() for p in student.parameters() if p.requires_grad)
    report.facts = {
        "Student": f"{student.num_parameters():,} numbers, {learning:,} of them learn; {args.resolution} px",
        "Then": f"{d_steps} steps of the discriminator alone",
        "Saved": "not yet",
    }
    report.images = to_bytes(torch.from_numpy(np.array(images[:12])).float())
    report.data = f"{len(images)} pictures drawn by the teacher"
    return report


def main(argv=None):
    args = parse_args(argv)
    with command():
        run(args)


if __name__ == "__main__":
    with script():
        main()
