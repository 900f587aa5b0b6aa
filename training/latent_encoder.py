"""Fit an encoder: a linear map from a picture to the latent w from which a base draws it.

    python training/latent_encoder.py --base ffhq-256 --num 12000 --output_dir runs/encoder

`pipe.invert` starts from its estimate. No data is needed: the base draws pictures of random latents, each is disturbed
like a photo (turned, shifted, lit otherwise, blurred, noisy), and ridge regression finds the map from the features of
EfficientNet-Lite0 to w in whitened coordinates (`inversion.WhitenedLatents`); its rank is reduced by the principal axes
of what it predicts (Izenman 1975). Writes `latent_encoder/`, which belongs into the base's folder, and `report.json`.
Bases of other sizes with the same mapping network can use it too.

Shape legend: N pictures, F values that describe one, D `w_dim`.
"""

import argparse
import json
from itertools import islice

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from fewshot_gan import FewShotGAN
from fewshot_gan.data.images import reduced
from fewshot_gan.features import load_features
from fewshot_gan.inversion import WhitenedLatents, latent_statistics
from fewshot_gan.models.latent_encoder import BLOCKS, VIEW, LatentEncoder, describe
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_text, user_path
from fewshot_gan.utils.random import seeded
from fewshot_gan.utils.ranges import COUNT, POSITIVE, check_number
from fewshot_gan.utils.threads import add_threads_option, set_threads

BATCH, VIEWS = 8, 2  # pictures drawn at once, and disturbed copies of each
GROUP = 64  # batches added to the sums at once, which are gigabytes
LEAST_PSI = 0.6  # half of the pictures have psi 1, the others one from this to 1
SIZE = 0.05  # root mean square of the rows of the first matrix; fp16 holds it exactly enough


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--base", default="ffhq", help="style-based base (default: ffhq)")
    p.add_argument("--output_dir", type=user_path, required=True)
    p.add_argument("--num", type=int, default=12000, help="pictures to fit to, two views of each (default: 12000)")
    p.add_argument("--held_out", type=int, default=400, help="further pictures, for ridge and report (default: 400)")
    p.add_argument("--rank", type=int, default=64, help="of the map (default: 64)")
    p.add_argument("--ridge", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="penalties to choose from")
    p.add_argument("--seed", type=int, default=5_000_000, help="of the first batch of pictures")
    add_threads_option(p)
    args = p.parse_args(argv)
    for name in ("num", "held_out", "rank"):
        check_number(name, getattr(args, name), COUNT, whole=True)
    for value in args.ridge:
        check_number("ridge", value, POSITIVE)
    set_threads(args.num_threads)
    pipe, features = FewShotGAN.from_pretrained(args.base), load_features()
    if not pipe.generator.has_styles:
        raise ValueError(f"{args.base} has no w; give a style-based base, e.g. 'ffhq'")
    white = WhitenedLatents(pipe.generator)
    fit = Fit()
    drawn = iter(tqdm(samples(pipe, features, white, args.num, args.seed), total=-(-args.num // BATCH)))
    while group := list(islice(drawn, GROUP)):
        fit.add(*joined(group))
    values, v = joined(list(samples(pipe, features, white, args.held_out, args.seed + args.num)))
    chosen, scores = fit.solve(values, v, args.ridge, min(args.rank, v.shape[1]))
    encoder = chosen.encoder(white)
    encoder.half().save_pretrained(args.output_dir / "latent_encoder")
    report = {
        "base": args.base, "fingerprint": pipe.bank.fingerprint(), "num": args.num, "views": VIEWS, "seed": args.seed,
        "rank": args.rank, "numbers": encoder.num_parameters(), "explained_by_ridge": scores,
    }  # fmt: skip
    replace_text(args.output_dir / "report.json", json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return report


def joined(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    values, v = zip(*batches, strict=True)
    return torch.cat(values), torch.cat(v)


def samples(pipe, features, white: WhitenedLatents, num: int, seed: int):
    """Yield descriptions `[N, F]` of disturbed pictures of the base, and their latents v `[N, D]`, batch by batch."""
    generator = pipe.generator
    with torch.no_grad():
        mean, _ = latent_statistics(generator)
        for first in range(0, num, BATCH):
            random, count = seeded(seed + first), min(BATCH, num - first)
            w = generator.mapping(torch.randn(count, generator.z_dim, generator=random))[:, 0]
            low = LEAST_PSI + (1 - LEAST_PSI) * torch.rand(count, 1, generator=random)
            psi = torch.where(torch.rand(count, 1, generator=random) < 0.5, torch.ones_like(low), low)
            w = torch.lerp(mean, w, psi)
            drawn = generator(w[:, None].expand(-1, generator.num_ws, -1), latent_space="w+").clamp(-1, 1)
            views = [disturb(reduced(drawn, VIEW), random) for _ in range(VIEWS)]
            yield torch.cat([describe(view, features) for view in views]), white.to_v(w).repeat(VIEWS, 1)


def disturb(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Turn, shift, light, blur and add noise to pictures `[B, 3, H, W]` in [-1, 1], as photos and alignment may be."""
    batch, width = len(images), images.shape[-1]

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=random)

    angle, scale, shift = draw(-0.06, 0.06), draw(-0.06, 0.06).exp(), draw(-0.05, 0.05, 2)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    light = (F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp(-1, 1) + 1) / 2
    light = light ** draw(-0.35, 0.35, 1, 1, 1).exp() * draw(0.9, 1.1, 3, 1, 1)
    left, right = draw(0.85, 1.15, 1, 1, 1), draw(0.85, 1.15, 1, 1, 1)  # light from one side, on every second
    ramp = torch.lerp(left, right, torch.linspace(0, 1, width))
    light = torch.where(draw(0, 1, 1, 1, 1) < 0.5, light * ramp, light)
    small = F.interpolate(light, scale_factor=0.44, mode="bilinear", antialias=True, align_corners=False)
    blurred = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    light = torch.where(draw(0, 1, 1, 1, 1) < 0.3, blurred, light)
    noise = torch.randn(light.shape, generator=random)
    return (light + 0.03 * draw(0, 1, 1, 1, 1) * noise).clamp(0, 1) * 2 - 1


class Fit:
    """Sums of a linear regression of v on descriptions, whose pictures need not be kept."""

    count = 0

    def add(self, values: torch.Tensor, v: torch.Tensor) -> None:
        """Add descriptions `[N, F]` and latents `[N, D]`."""
        if not self.count:  # sums of differences from a fixed picture lose fewer digits
            self.origin = values.mean(0)
            self.x, self.y = torch.zeros_like(self.origin), torch.zeros(v.shape[1])
            self.xx = torch.zeros(values.shape[1], values.shape[1])
            self.xy = torch.zeros(values.shape[1], v.shape[1])
        values = values - self.origin
        self.count += len(values)
        self.x += values.sum(0)
        self.y += v.sum(0)
        self.xx.addmm_(values.T, values)
        self.xy.addmm_(values.T, v)

    def solve(
        self, values: torch.Tensor, v: torch.Tensor, ridges: list[float], rank: int
    ) -> tuple["LinearMap", dict[float, float]]:
        """Return the best map of a rank, and the share of the variance of held-out v that each ridge explains.

        Args:
            values, v: held-out descriptions `[N, F]` and latents `[N, D]`.
            ridges: penalties, in units of the variance of a value.
            rank: of the map.
        """
        x, y = self.x / self.count, self.y / self.count
        covariance = (self.xx / self.count).addr_(x, x, alpha=-1)
        shared = self.xy / self.count - torch.outer(x, y)
        spread = covariance.diagonal().clamp_min(1e-12).sqrt()  # every value counts alike, whatever its unit
        covariance /= spread * spread[:, None]
        shared /= spread[:, None]
        maps, scores = {}, {}
        for ridge in ridges:
            damped = covariance.clone()
            damped.diagonal().add_(ridge)
            weights = torch.cholesky_solve(shared, torch.linalg.cholesky(damped))  # [F, D]
            _, axes = torch.linalg.eigh(weights.T @ covariance @ weights)  # of what is predicted
            axes = axes[:, -rank:]
            maps[ridge] = LinearMap((weights / spread[:, None]) @ axes, axes, self.origin + x, y)
            scores[ridge] = float(1 - (v - maps[ridge](values)).square().sum() / (v - y).square().sum())
        return maps[max(scores, key=scores.__getitem__)], scores


class LinearMap:
    """v = mean of v + axes · (weights · (description - mean description)).

    Args:
        weights: `[F, rank]`.
        axes: `[D, rank]`, orthonormal.
        mean_values, mean_v: `[F]` and `[D]`.
    """

    def __init__(self, weights: torch.Tensor, axes: torch.Tensor, mean_values: torch.Tensor, mean_v: torch.Tensor):
        self.weights, self.axes, self.mean_values, self.mean_v = weights, axes, mean_values, mean_v

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return self.mean_v + (values - self.mean_values) @ self.weights @ self.axes.T

    def encoder(self, white: WhitenedLatents) -> LatentEncoder:
        """Return the map from descriptions to w as a network."""
        size = self.weights.square().mean(0).sqrt() / SIZE  # [rank]
        down = (self.weights / size).T
        encoder = LatentEncoder(down.shape[1], len(self.mean_v), len(down), BLOCKS)
        encoder.down.weight.data = down.contiguous()
        encoder.down.bias.data = -down @ self.mean_values
        encoder.up.weight.data = white.axes @ (white.spread[:, None] * self.axes * size)
        encoder.up.bias.data = white.mean + white.axes @ (white.spread * self.mean_v)
        return encoder.eval().requires_grad_(False)


if __name__ == "__main__":
    with script():
        main()
