"""Stateless layers for `kernels.kernelize`: their `forward` replaces that of a module with the annotated attributes."""

from torch import Tensor, nn

from . import op


class BiasAct(nn.Module):
    """Add noise and bias, then activate."""

    activation: str
    gain: float | None
    clamp: float | None

    has_backward, can_torch_compile = True, False

    def forward(self, x, bias, noise=None, noise_strength=None):
        return op.bias_act(
            x,
            bias,
            noise=noise,
            noise_strength=noise_strength,
            activation=self.activation,
            gain=self.gain,
            clamp=self.clamp,
        )


class InverseHaar(nn.Module):
    """Turn Haar bands `[B, 4C, H, W]`, times a style `[B, 4C]` or None, into `[B, C, 2H, 2W]`."""

    has_backward, can_torch_compile = True, False

    def forward(self, x, style=None):
        return op.inverse_haar(x, style)


class Upsample2d(nn.Module):
    """Upsample `[B, C, H, W]` to `[B, C, 2H, 2W]` with a filter `[T, T]`."""

    resample_filter: Tensor

    has_backward, can_torch_compile = True, False

    def forward(self, x):
        taps = self.resample_filter.shape[-1]
        before, after = (taps + 1) // 2, (taps - 2) // 2
        return op.upfirdn2d(x, self.resample_filter, up=2, padding=(before, after, before, after), gain=4.0)
