"""Inversion: find the latent from which a generator draws a given picture. D3T-GAN (arXiv 2205.06032) starts from it.

The optimisation in W or W+ (arXiv 1904.03189) minimises perceptual distance, pixel distance and the distance from the
mean latent. It runs in coordinates in which mapped latents are nearly standard normal (P_N of arXiv 2012.09036), since
mapped latents vary along few directions of W: steps of equal length along the axes of W leave these directions, and
faces are distorted.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from .data.images import check_range, reduced
from .faces import Alignment
from .features.lpips import load_lpips
from .metrics import psnr
from .models.labels import refuse_classes
from .models.latent_encoder import SLOPE, VIEW
from .models.latents import check_latents
from .models.network import Network
from .utils.frozen import frozen
from .utils.offloading import execution_device, is_offloaded, refuse_gradients
from .utils.random import LIMIT, check_seed, seeded
from .utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_number

logger = logging.getLogger(__name__)

BLOCKS = (0, 2, 4, 10)  # of EfficientNet-Lite0: half the size down to a sixteenth
MEAN_SAMPLES = 4096  # latents over which mean and standard deviation of w are computed
SPACES = ("w", "w+")
OFFSET_RATE = 0.2  # learning rate of the offsets of w+ relative to that of the shared part
VERSION = 3  # raise it when the same picture gets another latent: latents cached on disk are then computed again
FLOOR = 1e-3  # least variance of a direction of w, relative to the mean variance


class Inversion(NamedTuple):
    """Result of `invert`.

    Attributes:
        latents: w+ `[N, num_ws, w_dim]` (in space "w" the rows of a latent are equal), float32 on the CPU.
        images: reconstructions `[N, 3, R, R]` in [-1, 1], on the CPU.
        psnr: of each reconstruction in dB, see `metrics.psnr`.
        alignments: where each picture lies in its photo, from `FewShotGAN.invert`; None for a picture as it is.
    """

    latents: torch.Tensor
    images: torch.Tensor
    psnr: list[float]
    alignments: Sequence[Alignment | None] = ()


class PerceptualDistance(nn.Module):
    """Distance of pictures `[B, 3, H, W]` in [-1, 1] to fixed target pictures, one value per picture.

    Larger pictures are reduced to 256 px. It is the mean squared difference of feature maps; each level is divided by
    the mean square of the target's map.

    Args:
        features: a `FeatureNetwork`.
        targets: `[B, 3, H, W]` in [-1, 1].
        blocks: blocks of the network whose feature maps are compared.
    """

    def __init__(self, features, targets: torch.Tensor, blocks=BLOCKS):
        super().__init__()
        self.features, self.blocks = features, blocks
        with torch.no_grad():
            self.maps = features(reduced(targets, VIEW), blocks)
            self.energy = [m.square().mean((1, 2, 3)) + 1e-8 for m in self.maps]

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B]
        maps = self.features(reduced(images, VIEW), self.blocks)
        levels = zip(maps, self.maps, self.energy, strict=True)
        return torch.stack([(a - b).square().mean((1, 2, 3)) / e for a, b, e in levels]).mean(0)


@cache
@torch.inference_mode(False)
def lpips_network(device: str = "cpu") -> nn.Module | None:
    """Load LPIPS (arXiv 1801.03924, VGG, package `lpips`), frozen: two `[B, 3, H, W]` in [-1, 1] → `[B, 1, 1, 1]`.

    Returns:
        None if `lpips` or torchvision is not installed, or the weights, which torchvision downloads once, are missing.
    """
    try:
        return load_lpips().to(device)
    except ImportError:
        return None
    except FileNotFoundError as error:
        logger.warning(f"{error}; the embedded features stand in for it")
        return None


class LPIPSDistance(nn.Module):
    """LPIPS to fixed target pictures by `net`, see `lpips_network`; larger pictures are reduced to 256 px."""

    def __init__(self, net: nn.Module, targets: torch.Tensor):
        super().__init__()
        self.net, self.targets = net, reduced(targets, VIEW)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B]
        return self.net(reduced(images, VIEW), self.targets).flatten()


def latent_statistics(generator: Network, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of w, each `[w_dim]`, over 4096 mapped latents."""
    z = torch.randn(MEAN_SAMPLES, generator.z_dim, generator=seeded(seed), dtype=torch.float32, device="cpu")
    with torch.no_grad():
        w = generator.mapping(z.to(execution_device(generator), generator.dtype))[:, 0].float()
    return w.mean(0), w.std(0)


class WhitenedLatents:
    """Coordinates v of w in the space P_N (arXiv 2012.09036, §3.2), where v of random z is nearly N(0, 1).

    The last leaky ReLU of the mapping network is inverted; then the mean is subtracted, and the principal axes are
    scaled to unit variance.

    Args:
        generator: its mapping network is sampled.
        seed: of 8192 latents.
    """

    def __init__(self, generator: Network, seed: int = 0):
        z = torch.randn(
            2 * MEAN_SAMPLES,
            generator.z_dim,
            generator=seeded(seed),
            dtype=torch.float32,
            device="cpu",
        )
        z = z.to(execution_device(generator), generator.dtype)
        with torch.no_grad():
            w = torch.cat([generator.mapping(chunk)[:, 0] for chunk in z.split(1024)])
        u = F.leaky_relu(w.float(), 1 / SLOPE)
        self.mean = u.mean(0)
        values, self.axes = torch.linalg.eigh(torch.cov((u - self.mean).T))
        # a floor for directions with hardly any variance: without it drawn pictures are not found again
        self.spread = values.clamp_min(FLOOR * values.mean()).sqrt()

    def to_w(self, v: torch.Tensor) -> torch.Tensor:
        """Map v `[…, w_dim]` to w of the same shape."""
        return F.leaky_relu(self.mean + (v * self.spread) @ self.axes.T, SLOPE)

    def to_v(self, w: torch.Tensor) -> torch.Tensor:
        """Map w `[…, w_dim]` to v of the same shape."""
        return ((F.leaky_relu(w, 1 / SLOPE) - self.mean) @ self.axes) / self.spread


def check_targets(images: torch.Tensor, size: int) -> None:
    """Refuse pictures that are not `[N, 3, size, size]`, at least one, in [-1, 1].

    Raises:
        ValueError: says what they are.
    """
    if images.ndim != 4 or images.shape[1:] != (3, size, size) or len(images) == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} are not [N, 3, {size}, {size}]; crop and resize them")
    check_range(images)


@torch.inference_mode(False)
@torch.enable_grad()
def invert(
    generator: Network,
    images: torch.Tensor,
    *,
    space: str = "w",
    steps: int = 150,
    seed: int = 0,
    start: torch.Tensor | None = None,
    learning_rate: float = 0.2,
    pixel_weight: float = 1.0,
    prior_weight: float = 1e-3,
    noise: float = 0.05,
    perceptual: Any = "auto",
    batch_size: int = 4,
    progress: bool = True,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> Inversion:
    """Find latents whose pictures come close to `images`.

    D3T-GAN does not specify the procedure; the weights of all terms are our choice. The result for image i depends on
    the seed and i only.

    Args:
        generator: a base generator; active adapters act.
        images: `[N, 3, R, R]` in [-1, 1], R the generator's resolution.
        space: "w" (one w for all layers; the picture stays a face) or "w+" (one w per layer; closer to the picture).
        steps: of Adam, with 5 % warm-up and cosine decay; 0 with `start` draws the start.
        seed: of the annealed noise on the latents.
        start: w `[N, w_dim]` from which the search starts, e.g. of a `LatentEncoder`; None: the mean latent.
        learning_rate: peak learning rate.
        pixel_weight: of the mean squared pixel difference.
        prior_weight: of mean(v²), which keeps w near latents that the mapping network produces.
        noise: standard deviation of the noise on v at the start; it decays to 0 at three quarters of the steps.
        perceptual: "auto": LPIPS if `lpips_network` returns it, else `features.load_features()`; "none": pixels alone;
            or a `FeatureNetwork`.
        batch_size: images optimised at once.
        progress: show a progress bar.
        on_step: called after each step with the number of steps done so far in all batches, and the pictures
            `[B, 3, R, R]` drawn before the step. Its exceptions end the search.

    Raises:
        ValueError: an option or the images are out of range, the generator has classes, or a network was loaded in
            inference mode.
        ImportError: no perceptual network is installed and `perceptual` is not "none".
    """
    refuse_classes(generator, "inversion")
    size = generator.resolution
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; known: {', '.join(SPACES)}")
    check_targets(images, size)
    check_number("steps", steps, Range(int(start is None)), whole=True)
    check_number("batch_size", batch_size, COUNT, whole=True)
    check_number("learning_rate", learning_rate, POSITIVE)
    for name, value in (("pixel_weight", pixel_weight), ("prior_weight", prior_weight), ("noise", noise)):
        check_number(name, value, NOT_NEGATIVE)
    if start is not None and check_latents(start, name="start").shape != (len(images), generator.w_dim):
        raise ValueError(f"start of shape {list(start.shape)} is not w {[len(images), generator.w_dim]}")
    if isinstance(perceptual, str) and perceptual not in ("auto", "none"):
        raise ValueError(f"unknown perceptual {perceptual!r}; known: auto, none, or a FeatureNetwork")
    for name, network in (("base", generator), ("perceptual network", perceptual)):
        if isinstance(network, nn.Module) and any(t.is_inference() for t in network.state_dict().values()):
            raise ValueError(
                f"the {name} was loaded under torch.inference_mode, and such weights lead no gradient to the latents; "
                "load it outside of that mode"
            )
    images = images.clone() if images.is_inference() else images
    seed = check_seed(seed)
    refuse_gradients(generator, "invert pictures")
    device = execution_device(generator)
    if not is_offloaded(generator):
        generator.to(device)  # pyright: ignore[reportArgumentType]  parts are called before its hooks
    distance_to = _distance_to(perceptual, str(device))
    white = WhitenedLatents(generator)
    results = []  # (latents, pictures, PSNR values) of each batch

    def draw(w):  # [B, 1 or num_ws, w_dim] -> [B, 3, R, R]
        return generator(w.expand(-1, generator.num_ws, -1).to(generator.dtype), latent_space="w+").float()

    bar = tqdm(total=steps * math.ceil(len(images) / batch_size), desc="inverting", disable=not progress)
    tool = frozen(perceptual) if isinstance(perceptual, nn.Module) else nullcontext()
    with bar, frozen(generator), tool:
        for first in range(0, len(images), batch_size):
            targets = images[first : first + batch_size].to(device, torch.float32)
            distance = None if distance_to is None else distance_to(targets)
            shape = (generator.num_ws if space == "w+" else 1, white.mean.numel())
            shared = white.mean.new_zeros(len(targets), 1, shape[1])
            if start is not None:
                shared = white.to_v(start[first : first + batch_size].to(shared))[:, None]
            shared = shared.detach().requires_grad_(True)
            # w+ is a shared w plus an offset per layer, so that the shared part converges as fast as in W
            offsets = white.mean.new_zeros(len(targets), *shape).requires_grad_(space == "w+")
            optimizer = torch.optim.Adam([{"params": [shared], "scale": 1.0}], lr=learning_rate)
            if space == "w+":
                optimizer.add_param_group({"params": [offsets], "scale": OFFSET_RATE})
            randoms = [seeded((seed + 1_000_003 * (first + i)) % LIMIT) for i in range(len(targets))]
            for step in range(steps):
                progress_made = step / steps
                rate = min(1.0, (step + 1) / max(1.0, 0.05 * steps)) * (0.5 + 0.5 * math.cos(math.pi * progress_made))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * rate * group["scale"]
                amount = noise * max(0.0, 1 - progress_made / 0.75) ** 2
                shake = torch.stack(
                    [torch.randn(shape, generator=g, dtype=torch.float32, device="cpu") for g in randoms]
                ).to(shared.device)
                v = shared + offsets
                drawn = draw(white.to_w(v + amount * shake))
                loss = pixel_weight * (drawn - targets).square().mean((1, 2, 3))
                loss = loss + prior_weight * v.square().flatten(1).mean(1)
                if distance is not None:
                    loss = loss + distance(drawn)
                optimizer.zero_grad(set_to_none=True)
                loss.sum().backward()  # a sum, not a mean: gradients do not depend on the batch size
                optimizer.step()
                bar.update()
                if on_step is not None:
                    on_step(first // batch_size * steps + step + 1, drawn.detach())
            with torch.no_grad():
                latents = white.to_w(shared + offsets).expand(-1, generator.num_ws, -1)
                drawn = draw(latents).clamp(-1, 1)
            psnr_per_image = [psnr(a[None], b[None]) for a, b in zip(drawn.cpu(), targets.cpu(), strict=True)]
            results.append((latents.cpu(), drawn.cpu(), psnr_per_image))
    latents, drawn, psnr_per_batch = zip(*results, strict=True)
    latents = check_latents(torch.cat(latents), name="the search diverged (try a lower learning_rate): latents")
    return Inversion(latents, torch.cat(drawn).contiguous(), [value for values in psnr_per_batch for value in values])


def _distance_to(perceptual, device: str) -> Callable[[torch.Tensor], nn.Module] | None:
    """Return the function that makes the perceptual distance to targets `[B, 3, R, R]`; None: there is none."""
    from .features import load_features

    if perceptual == "none":
        return None
    if perceptual != "auto":
        return partial(PerceptualDistance, perceptual)
    if (net := lpips_network(device)) is not None:
        return partial(LPIPSDistance, net)
    return partial(PerceptualDistance, load_features(device=device))
