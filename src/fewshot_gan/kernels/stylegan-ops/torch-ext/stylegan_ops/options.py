"""Options of the operations, as named tuples."""

from typing import NamedTuple

import torch

ACTIVATIONS = ("linear", "lrelu", "relu")


class Act(NamedTuple):
    """Options of `clamp(gain · activation(x))`; lrelu has slope 0.2."""

    activation: str = "linear"
    gain: float = 1.0
    clamp: float | None = None


class Fir(NamedTuple):
    """Options of an FIR filter: insert zeros, pad (negative crops), filter, keep each `down`-th pixel."""

    up: int = 1
    down: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    flip: bool = False  # correlation instead of convolution
    gain: float = 1.0

    def size(self, x: torch.Tensor, f: torch.Tensor) -> tuple[int, int]:
        """Return height and width of the result."""
        left, right, top, bottom = self.padding
        height = (x.shape[2] * self.up + top + bottom - f.shape[0]) // self.down + 1
        return height, (x.shape[3] * self.up + left + right - f.shape[1]) // self.down + 1

    def transposed(self, x: torch.Tensor, f: torch.Tensor) -> "Fir":
        """Return the options that turn a gradient of the result into a gradient of `x`."""
        left, _, top, _ = self.padding
        height, width = self.size(x, f)
        right = x.shape[3] * self.up - width * self.down + left - self.up + 1
        bottom = x.shape[2] * self.up - height * self.down + top - self.up + 1
        padding = (f.shape[1] - 1 - left, right, f.shape[0] - 1 - top, bottom)
        return Fir(self.down, self.up, padding, not self.flip, self.gain)


class WeightChange(NamedTuple):
    """Ŵ = gain · mask · (scale · (W · γ + β) + shift) without the factors and terms that are None.

    The energy is computed before `gain` is applied.

    γ[o,i,κ] = Σ_s mul_in[i,s] mul_core[s,o,κ] and β[i,κ] = Σ_t add_in[i,t] add_kernel[κ,t] (arXiv 2308.11917 §3.2).
    """

    mul_in: torch.Tensor | None = None  # [I, r]; the first four (LeFT) are given together or not at all
    mul_core: torch.Tensor | None = None  # [r, O, k²], after its ReLU
    add_in: torch.Tensor | None = None  # [I, r]
    add_kernel: torch.Tensor | None = None  # [k², r]
    scale: torch.Tensor | None = None  # [O, I], or 1 for either
    shift: torch.Tensor | None = None  # [O, I], or 1 for either
    mask: torch.Tensor | None = None  # uint8 [ceil(O·I·k² / 8)], row-major, lowest bit first
    gain: torch.Tensor | None = None  # [O, I], or 1 for either
