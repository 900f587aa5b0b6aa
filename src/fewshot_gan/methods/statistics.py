"""Look and content of a handful of images as statistics of frozen features: a signal that needs no discriminator.

Feature statistics follow adaptive instance normalisation's view of style (arXiv 1703.06868), the sliced Wasserstein
distance arXiv 1902.00434, the self-similarity content term arXiv 1904.12785.

Shape legend: B images, C channels, H/W size of a feature level.
"""

import torch
import torch.nn.functional as F

from ..metrics import luminance, sobel

# levels of the feature network: stride-2 convolutions and what follows
CONTENT_LEVELS = (4, 10)
MOMENT_LEVELS = (0, 2, 4, 7, 10, 14)  # 14 sees whole faces, the others parts of them


def channel_moments(x: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each channel over images and positions, `[B, C, H, W]` → `[2, C]`."""
    x = x.float().transpose(0, 1).flatten(1)
    return torch.stack([x.mean(1), (x.var(1) + 1e-8).sqrt()])


def moment_distance(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of channel moments of two `[B, C, H, W]`, relative to the real ones' mean magnitude."""
    wanted = channel_moments(real.detach())
    return ((channel_moments(fake) - wanted).abs().mean(1) / (wanted.abs().mean(1) + 1e-8)).sum()


def colour_distance(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Difference of RGB mean, RGB standard deviation and mean chroma of images `[B, 3, H, W]` in [−1, 1]."""

    def chroma(x):
        return (x - x.mean(1, keepdim=True)).square().mean(1).add(1e-8).sqrt().mean()

    return (channel_moments(fake) - channel_moments(real)).abs().mean(1).sum() + (chroma(fake) - chroma(real)).abs()


def sliced_wasserstein(
    fake: torch.Tensor,
    real: torch.Tensor,
    generator: torch.Generator | None = None,
    num_directions: int = 48,
    num_positions: int = 4096,
) -> torch.Tensor:
    """Mean absolute difference of sorted random projections of positions' features, relative to the real spread.

    Args:
        fake, real: `[B, C, H, W]`, the same C.
        generator: CPU generator of directions and positions.
        num_directions: random unit directions.
        num_positions: positions drawn from each side (fewer if there are fewer).
    """
    channels = fake.shape[1]
    fake, real = (x.float().permute(0, 2, 3, 1).reshape(-1, channels) for x in (fake, real.detach()))
    num = min(num_positions, len(fake), len(real))
    directions = F.normalize(
        torch.randn(channels, num_directions, generator=generator, dtype=torch.float32, device="cpu"), dim=0
    ).to(fake.device)
    picks = [torch.randperm(len(x), generator=generator, device="cpu")[:num].to(x.device) for x in (fake, real)]
    a, b = ((x[i] @ directions).sort(0).values for x, i in zip((fake, real), picks, strict=True))
    return (a - b).abs().mean() / (b.std(0).mean() + 1e-8)


def self_similarity(x: torch.Tensor, size: int = 16) -> torch.Tensor:
    """Cosine similarity of every position with every other, `[B, C, H, W]` → `[B, size², size²]`."""
    x = F.adaptive_avg_pool2d(x.float(), min(size, x.shape[-1])).flatten(2)
    x = F.normalize(x - x.mean(2, keepdim=True), dim=1)
    return x.transpose(1, 2) @ x


def content_distance(fake: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the self-similarities of two aligned `[B, C, H, W]`: layout, whatever the look."""
    return (self_similarity(fake) - self_similarity(source.detach())).square().mean()


def content_loss(fake: dict[int, torch.Tensor], source: dict[int, torch.Tensor]) -> torch.Tensor:
    """Mean `content_distance` over `CONTENT_LEVELS` of two aligned sets of maps, level → `[B, C, H, W]`."""
    return sum(content_distance(fake[k], source[k]) for k in CONTENT_LEVELS) / len(CONTENT_LEVELS)


def structure_distance(fake: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """How far lines and light of `fake` have moved from the aligned `source`, both `[B, 3, H, W]`.

    1 − correlation of gradient magnitudes at full and at half size (weights 1 and ½) and of luminance (½), mean over
    images: 0 for any positive affine change of brightness. Self-similarity at 16×16 keeps layout, this keeps strokes.
    """
    fake, source = luminance(fake.float()), luminance(source.detach().float())
    small = F.avg_pool2d(fake, 2), F.avg_pool2d(source, 2)
    return (
        (1 - _correlation(_edges(fake), _edges(source)))
        + (1 - _correlation(*map(_edges, small))) / 2
        + (1 - _correlation(fake, source)) / 2
    )


def _edges(grey: torch.Tensor) -> torch.Tensor:
    across, down = sobel(grey)
    return (across.square() + down.square() + 1e-6).sqrt()


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson correlation per image, mean over `[B, 1, H, W]`."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1).mean()
