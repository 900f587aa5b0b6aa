"""Find looks that are a regular pattern: dots of a print, hatching, mosaics, stitches.

Dots and lines at regular distances are spikes in the power spectrum, far above what lies around them at the same
frequency. Pictures and strokes have smooth spectra.
"""

import torch
import torch.nn.functional as F

from ..data.images import reduced
from ..metrics import luminance, sobel

SIDE = 256  # px
SLOWEST, FASTEST = 12, 120  # periods per picture; below lie faces, above is the grain of generators
SPIKE = 20.0  # times the median of its frequency
PEAK = 5.0  # times the largest power around it: straight edges have much power along a line


def pattern_share(images: torch.Tensor) -> float:
    """Return the share of the detail in pictures that belongs to a regular pattern, from 0 to 1.

    That of their light or of their edges, whichever is larger: a mosaic is regular in its edges alone.

    Args:
        images: float `[K, 3, R, R]` in [-1, 1]; larger ones are reduced to 256 px.
    """
    grey = luminance(reduced(images.float(), SIDE))
    across, down = sobel(grey)
    return max(_share(grey), _share((across.square() + down.square()).sqrt()))


def _share(grey: torch.Tensor) -> float:
    """Return the share of the power of maps `[K, 1, S, S]` at `SLOWEST` to `FASTEST` periods that lies in spikes."""
    side = grey.shape[-1]
    window = torch.hann_window(side, periodic=False, dtype=torch.float32, device=grey.device)
    grey = (grey - grey.mean((2, 3), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(grey).abs().square().mean((0, 1))  # [side, side]
    frequency = torch.fft.fftfreq(side, 1 / side, device=power.device)
    radius = (frequency[:, None].square() + frequency.square()).sqrt().round().long()
    medians = torch.stack([power[radius == r].median() for r in range(int(radius.max()) + 1)])
    detail = (radius >= SLOWEST) & (radius <= FASTEST)
    spikes = detail & (power > SPIKE * medians[radius]) & (power > PEAK * _around(power))
    return float(power[spikes].sum() / power[detail].sum().clamp_min(1e-12))


def _around(power: torch.Tensor) -> torch.Tensor:
    """Return the largest value of `power` `[S, S]` 4 to 6 places away, where the window has ended a spike."""
    padded = F.pad(power[None, None], (6, 6, 6, 6), mode="circular")
    side, across, down = len(power), F.max_pool2d(padded, (1, 13), 1), F.max_pool2d(padded, (13, 1), 1)
    strips = (across[..., : side + 2, :], (3, 1)), (across[..., 10:, :], (3, 1))  # above and below
    strips += (down[..., : side + 2], (1, 3)), (down[..., 10:], (1, 3))  # left and right
    return torch.stack([F.max_pool2d(strip, size, 1)[0, 0] for strip, size in strips]).amax(0)
