"""Losses on statistics of frozen features, which compare look and content of a few images without a discriminator.

Style as channel moments follows adaptive instance normalisation (arXiv 1703.06868), the sliced Wasserstein distance
arXiv 1902.00434, and the self-similarity content loss arXiv 1904.12785.

Shape legend: B images, C channels, H/W size of a feature map.
"""

import torch
import torch.nn.functional as F

from ..metrics import luminance, sobel
from .losses import total

# indices of blocks of the feature network
CONTENT_LEVELS = (4, 10)
MOMENT_LEVELS = (0, 2, 4, 7, 10, 14)  # the receptive field of 14 covers a whole face, those of the others parts of it


def channel_moments(x: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation of each channel over images and positions, `[B, C, H, W]` → `[2, C]`."""
    x = x.float().transpose(0, 1).flatten(1)
    return torch.stack([x.mean(1), (x.var(1) + 1e-8).sqrt()])


def moment_distance(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of the channel moments of two batches of feature maps `[B, C, H, W]`.

    The differences of means and of standard deviations are each divided by the mean magnitude in `real`, then added.
    """
    real_moments = channel_moments(real.detach())
    difference = (channel_moments(fake) - real_moments).abs().mean(1)
    return (difference / (real_moments.abs().mean(1) + 1e-8)).sum()


def colour_distance(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the sum of the differences of RGB mean, RGB standard deviation and mean chroma.

    Args:
        fake, real: images `[B, 3, H, W]` in [−1, 1].
    """

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
    """Return the sliced Wasserstein distance between the feature vectors at all positions (arXiv 1902.00434).

    It is the mean absolute difference of sorted random projections, divided by their standard deviation in `real`.

    Args:
        fake, real: feature maps `[B, C, H, W]`, the same C.
        generator: CPU generator of directions and positions.
        num_directions: number of random unit directions.
        num_positions: number of positions drawn from each side; fewer if there are fewer.
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
    """Return the cosine similarity of every position with every other, `[B, C, H, W]` → `[B, size², size²]`.

    Maps larger than `size` are first averaged down to `size`×`size` positions.
    """
    x = F.adaptive_avg_pool2d(x.float(), min(size, x.shape[-1])).flatten(2)
    x = F.normalize(x - x.mean(2, keepdim=True), dim=1)
    return x.transpose(1, 2) @ x


def content_distance(fake: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the self-similarities of two aligned `[B, C, H, W]`.

    It compares layout and ignores the look.
    """
    return (self_similarity(fake) - self_similarity(source.detach())).square().mean()


def content_loss(fake: dict[int, torch.Tensor], source: dict[int, torch.Tensor]) -> torch.Tensor:
    """Return the mean `content_distance` over `CONTENT_LEVELS` of aligned feature maps, level → `[B, C, H, W]`."""
    return total(content_distance(fake[k], source[k]) for k in CONTENT_LEVELS) / len(CONTENT_LEVELS)


def structure_distance(fake: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return how much edges and brightness of `fake` differ from those of the aligned `source`, both `[B, 3, H, W]`.

    The distance is the sum of 1 − correlation, mean over images, of the gradient magnitudes at full size (weight 1) and
    at half size (½) and of the luminance (½). It is 0 for any positive affine change of brightness. Unlike
    self-similarity at 16×16 positions, which keeps the layout, it keeps single strokes.
    """
    fake, source = luminance(fake.float()), luminance(source.detach().float())
    small = F.avg_pool2d(fake, 2), F.avg_pool2d(source, 2)
    return (
        (1 - _correlation(_edges(fake), _edges(source)))
        + (1 - _correlation(*map(_edges, small))) / 2
        + (1 - _correlation(fake, source)) / 2
    )


def _edges(grey: torch.Tensor) -> torch.Tensor:
    """Return the gradient magnitude of `[B, 1, H, W]`."""
    across, down = sobel(grey)
    return (across.square() + down.square() + 1e-6).sqrt()


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the Pearson correlation of each image pair, averaged over the batch; `[B, 1, H, W]` each."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1).mean()
