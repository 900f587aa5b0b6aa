"""Stateless layers for `kernels.kernelize`: each takes the place of the `forward` of a module with these attributes."""

from torch import nn

from . import op


class BiasAct(nn.Module):
    """Noise, bias, activation; the module has `activation`, `gain` and `clamp`."""

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
    """`[B, 4C, H, W]` and a style `[B, 4C]` or None → `[B, C, 2H, 2W]`."""

    has_backward, can_torch_compile = True, False

    def forward(self, x, style=None):
        return op.inverse_haar(x, style)


class Upsample2d(nn.Module):
    """`[B, C, H, W]` → `[B, C, 2H, 2W]`; the module has `resample_filter` `[T, T]`."""

    has_backward, can_torch_compile = True, False

    def forward(self, x):
        taps = self.resample_filter.shape[-1]
        before, after = (taps + 1) // 2, (taps - 2) // 2
        return op.upfirdn2d(x, self.resample_filter, up=2, padding=(before, after, before, after), gain=4.0)
