"""AdaFM's tailored generator: a small style-based network before pretrained GP-GAN scales (ICML 2020, 2002.11810).

Style MLP → 4×4 map → style blocks → scale matcher → the last scales of a `GPGANGenerator`. The small network is the
"specific" part, the pretrained scales are the "kept" part. Differs from the reference: noise is fixed in evaluation.

Shape legend: B batch, C width, H/W size of the features, D style width.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..ops import bias_act
from ..utils.offloading import offload_safe
from .gp_gan import GPGANGenerator, act, make_scale
from .layers import AdaptableLayer
from .network import Network
from .plain import Conv2d, Linear, PlainGenerator, fan_in_uniform, upsample_nearest

SMALL = 0.1  # initial standard deviation of weights of styles and noise
PASSED = 0.01  # fraction of the gradient that passes through the scale matcher
GAIN = 1000.0  # initial gain of the scale matcher, that of ImageNet's GP-GAN at 16×16


def small_normal(weight: torch.Tensor) -> None:
    """Initialise with N(0, 0.1²)."""
    nn.init.normal_(weight, 0.0, SMALL)


class StyleMLP(nn.Module):
    """Normalise z, then apply `depth` linear layers with leaky ReLU, without equalised learning rate."""

    def __init__(self, z_dim: int, width: int, depth: int):
        super().__init__()
        self.depth = depth
        for i in range(depth):
            setattr(self, f"fc{i}", Linear(width if i else z_dim, width, init=small_normal, role="mapping"))

    def forward(self, z):  # [B, z_dim] -> [B, D]
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for i in range(self.depth):
            x = act(getattr(self, f"fc{i}")(x))
        return x


class UpConv(Conv2d):
    """Transposed 4×4 convolution from `[B, I, H, W]` to `[B, O, 2H, 2W]`; the weight is stored as `[O, I, 4, 4]`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        role = "conv" if bias else "skip"
        super().__init__(in_channels, out_channels, 4, bias, role, init=fan_in_uniform)

    def convolve(self, x, weight):
        return F.conv_transpose2d(x, weight.transpose(0, 1), None, 2, 1)


class ChannelNoise(AdaptableLayer):
    """x + s·n with one strength s per channel; n is random in training and a constant image in evaluation.

    Args:
        channels: C.
        resolution: H = W.
    """

    const: torch.Tensor
    role = "noise"

    def __init__(self, channels: int, resolution: int):
        super().__init__()
        self.register_buffer("const", torch.randn(1, 1, resolution, resolution))
        self.strength = nn.Parameter(torch.randn(channels) * SMALL)

    def stored(self):
        return self.strength, None

    def forward(self, x):
        noise = (
            torch.randn(len(x), 1, *x.shape[2:], dtype=torch.float32, device="cpu").to(x)
            if self.training
            else self.const.to(x.dtype)
        )
        return x + noise * self.effective().tensor.to(x.dtype)[..., None, None]


class AdaIN(nn.Module):
    """γ·n(x) + β with γ and β from a style; in the gradient with respect to x, |γ| is limited to 1.

    Args:
        channels: C.
        width: D.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.affine = Linear(width, 2 * channels, init=small_normal, role="affine")
        assert self.affine.bias is not None
        with torch.no_grad():
            self.affine.bias[:channels] = 1

    def forward(self, x, style):  # [B, C, H, W], [B, D] -> [B, C, H, W]
        gamma, beta = self.affine(style)[:, :, None, None].chunk(2, 1)
        n = F.instance_norm(x)
        limited = gamma.clamp(-1, 1)
        return limited * n + (gamma - limited) * n.detach() + beta


class StyleBlock(nn.Module):
    """Residual block from `[B, C, H, W]` to `[B, C, 2H, 2W]`: an upsampling skip plus 0.1 × two styled convolutions.

    Args:
        channels: C.
        resolution: 2H, the output size.
        width: D.
    """

    def __init__(self, channels: int, resolution: int, width: int):
        super().__init__()
        self.conv0 = UpConv(channels, channels)
        self.conv1 = Conv2d(channels, channels, init=fan_in_uniform)
        self.noise0, self.noise1 = (ChannelNoise(channels, resolution) for _ in range(2))
        self.style0, self.style1 = (AdaIN(channels, width) for _ in range(2))
        self.skip = UpConv(channels, channels, bias=False)

    def forward(self, x, style):
        y = self.style0(self.noise0(self.conv0(act(x))), style)
        y = self.style1(self.noise1(self.conv1(act(y))), style)
        return self.skip(x) + 0.1 * y


class ScaleMatcher(AdaptableLayer):
    """0.01·L + w·stop_gradient(L) + b, L the layer norm over H×W: matches the scale of the kept part's features.

    Args:
        channels: C.
        resolution: H = W.
        gain: initial mean of w.
    """

    role = "norm"

    def __init__(self, channels: int, resolution: int, gain: float):
        super().__init__()
        self.norm = Norm2d(resolution)
        self.weight = nn.Parameter(gain + torch.randn(channels))
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        e = self.effective()
        n = self.norm(x)
        return bias_act(PASSED * n + n.detach() * e.tensor.to(x.dtype)[..., None, None], e.bias)


class Norm2d(AdaptableLayer):
    """Layer norm over H×W of each channel, with gain and shift per pixel, shared by all channels."""

    role = "const"

    def __init__(self, resolution: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, resolution, resolution))
        self.shift = Shift(resolution)
        self.resolution = resolution

    def stored(self):
        return self.weight, None

    def forward(self, x):
        n = F.layer_norm(x, (self.resolution,) * 2)
        return n * self.effective().tensor.to(x.dtype) + self.shift().to(x.dtype)


class Shift(AdaptableLayer):
    """A trainable value per pixel, `[1, H, W]`."""

    role = "const"

    def __init__(self, resolution: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, resolution, resolution))

    def stored(self):
        return self.weight, None

    def forward(self):
        return offload_safe(self, self.effective().tensor)


class TailoredGenerator(PlainGenerator, Network):
    """A small specific part and the kept scales of a GP-GAN generator (arXiv 2002.11810, figure 1h).

    Args:
        channels: widths of the kept scales from the coarsest on, `(512, 256, 128, 64)` for G4 of the ImageNet network;
            the first is also the width of the specific part.
        blocks_per_scale, image_kernel: see `GPGANGenerator`.
        style_blocks: number of blocks that each double the size from 4×4; kept scales start at twice their output size.
        z_dim, style_dim: sizes of z and of a style; for twenty-five images the paper has a z of 4 and a style of 256.
        mapping_layers: depth of the style MLP.
        gain: initial gain of the scale matcher; it depends on the source network.
    """

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, ...] = (512, 256, 128, 64),
        blocks_per_scale: int = 2,
        image_kernel: int = 3,
        style_blocks: int = 2,
        z_dim: int = 256,
        style_dim: int = 256,
        mapping_layers: int = 8,
        gain: float = GAIN,
    ):
        super().__init__()
        self.z_dim, self.width = z_dim, channels[0]
        self.mapping = StyleMLP(z_dim, style_dim, mapping_layers)
        self.linear = Linear(z_dim, self.width * 16, init=fan_in_uniform)
        self.style_resolutions = [8 * 2**i for i in range(style_blocks)]
        for res in self.style_resolutions:
            setattr(self, f"b{res}", StyleBlock(self.width, res, style_dim))
        self.matcher = ScaleMatcher(self.width, 4 * 2**style_blocks, gain)
        self.kept_resolutions = [8 * 2 ** (style_blocks + i) for i in range(len(channels) - 1)]
        for i, res in enumerate(self.kept_resolutions):
            setattr(self, f"b{res}", make_scale(channels[i], channels[i + 1], blocks_per_scale, widen=False))
        self.to_rgb = Conv2d(channels[-1], 3, image_kernel, role="to_rgb", init=fan_in_uniform)
        self.resolution = self.kept_resolutions[-1]

    @classmethod
    def from_source(cls, source: GPGANGenerator, kept: int, **options) -> "TailoredGenerator":
        """Return a generator with an untrained specific part before the last groups of `source`.

        Args:
            source: a pretrained generator.
            kept: number of groups to keep, m of GmDn: the image convolution and m − 1 scales.
            options: further arguments of the class.

        Raises:
            ValueError: `kept` is below 2, or `source` has too few scales.
        """
        limit = len(source.resolutions) - 1
        if not 2 <= kept <= limit:
            raise ValueError(f"G{kept} of a network with {limit + 1} scales: give G2 to G{limit}")
        widths = list(source.config["channels"])[-kept:]
        blocks = (source.resolution >> (kept - 1)).bit_length() - 3
        config = {"channels": widths, "style_blocks": blocks, "z_dim": source.z_dim, **options}
        config |= {name: source.config[name] for name in ("blocks_per_scale", "image_kernel")}
        new = cls(**config)
        initial, trained = new.state_dict(), source.state_dict()
        new.load_state_dict({**initial, **{name: trained[name] for name in initial if new.is_kept(name)}})
        return new

    def is_kept(self, path: str) -> bool:
        """Return whether the module or tensor at `path` belongs to the kept part."""
        return path.partition(".")[0] in {"to_rgb", *(f"b{res}" for res in self.kept_resolutions)}

    def stem(self, z, labels=None):  # [B, z_dim] -> [B, C, 4, 4]
        return self.linear(z).view(len(z), self.width, 4, 4)

    def body(self, x, z, labels=None):  # [B, C, 4, 4], [B, z_dim] -> [B, 3, R, R]
        style = self.mapping(z)
        for res in self.style_resolutions:
            x = self.run(getattr(self, f"b{res}"), x, style)
        x = self.matcher(x)
        for res in self.kept_resolutions:
            x = self.run(getattr(self, f"b{res}"), upsample_nearest(x))
        return torch.tanh(self.to_rgb(act(x)))

    def layer_resolution(self, path: str) -> int:
        if path.startswith(("mapping", "linear")):
            return 0
        return self.style_resolutions[-1] if path.startswith("matcher") else super().layer_resolution(path)
