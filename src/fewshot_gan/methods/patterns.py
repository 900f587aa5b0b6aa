"""Find looks that are a regular pattern: dots of a print, hatching, mosaics, stitches.

Dots and lines at regular distances are spikes in the power spectrum, far above what lies around them at the same
frequency. Pictures and strokes have smooth spectra.
"""

import torch

from ..data.images import reduced
from ..metrics import luminance

SIDE = 256  # px
SLOWEST, FASTEST = 12, 120  # periods per picture; below lie faces, above is the grain of generators
SPIKE = 20.0  # times the median of its frequency


def pattern_share(images: torch.Tensor) -> float:
    """Return the share of the detail in pictures that belongs to a regular pattern, from 0 to 1.

    Args:
        images: float `[K, 3, R, R]` in [-1, 1]; larger ones are reduced to 256 px.
    """
    grey = luminance(reduced(images.float(), SIDE))
    side = grey.shape[-1]
    window = torch.hann_window(side, periodic=False, dtype=torch.float32, device=grey.device)
    grey = (grey - grey.mean((2, 3), keepdim=True)) * window[:, None] * window
    power = torch.fft.rfft2(grey).abs().square().mean((0, 1))  # [side, side // 2 + 1]
    down = torch.fft.fftfreq(side, 1 / side, device=power.device)[:, None]
    across = torch.arange(power.shape[1], device=power.device)[None]
    radius = (down.square() + across.square()).sqrt().round().long()
    medians = torch.stack([power[radius == r].median() for r in range(int(radius.max()) + 1)])
    detail = (radius >= SLOWEST) & (radius <= FASTEST)
    spikes = detail & (power > SPIKE * medians[radius])
    return float(power[spikes].sum() / power[detail].sum().clamp_min(1e-12))
