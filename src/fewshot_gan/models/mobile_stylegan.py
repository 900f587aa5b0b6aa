"""MobileStyleGAN generator (arXiv 2104.04767): StyleGAN2's mapping, wavelet upsampling, separable convolutions.

Demodulation and style gains are folded into the stored weights, noise is a constant image, and the image head predicts
the four Haar bands of the image. `MobileStyleGANGenerator.truncated` cuts the network after any block, for a generator
of a lower resolution.

Shape legend: B batch, C channels of a block, H/W size of its features, L number of `ws`, D `w_dim`.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..ops import bias_act, by_rows, conv2d, scale_channels
from .checkpointing import Checkpointed
from .layers import AdaptableLayer, BiasAct, FullyConnected, InverseHaar, MappingNetwork, Noise, StyleGenerator
from .network import Network


class FoldedConv(AdaptableLayer):
    """Convolution whose stored weight already includes equalised-lr gain and demodulation.

    Args:
        in_channels, out_channels: I and O; for a depthwise convolution I is 1.
        kernel_size: k, odd.
        role: "conv", "depthwise" or "to_rgb".
    """

    bias = None  # the blocks add bias and activation themselves

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, role: str = "conv"):
        super().__init__()
        self.role = role
        self.demodulation = "folded" if role == "conv" else "none"
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight / weight.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, x: torch.Tensor, styles: torch.Tensor | None, reuse: bool = False, bias=None) -> torch.Tensor:
        """Convolve `x · styles`.

        Args:
            x: `[B, I, H, W]` (for a depthwise convolution I is O).
            styles: `[B, I]`, or None for ones.
            reuse: `x` may be overwritten, since no one else reads it.
            bias: `[O]`, added to the result, or None.

        Returns:
            `[B, O, H, W]`.
        """
        weight, _, input_scale, output_scale, *_ = self.effective()
        scale = styles if input_scale is None else input_scale if styles is None else styles * input_scale
        if scale is not None:
            shared_scale = scale if scale.ndim == 1 else scale[0] if scale.shape[0] == 1 else None
            if shared_scale is not None and isinstance(weight, torch.Tensor) and weight.numel() < x.numel():
                weight = weight * shared_scale.reshape(-1, 1, 1, *[1] * (self.role == "depthwise"))
            else:
                x = scale_channels(x, scale, reuse)
        groups = x.shape[1] if self.role == "depthwise" else 1
        conv_bias = None if bias is None or output_scale is not None else bias.to(x.dtype)
        x = by_rows(lambda x, w: conv2d(x, w.to(x.dtype), w.shape[-1] // 2, groups, conv_bias), x, weight)
        return x if output_scale is None else bias_act(x, bias, scale=output_scale, reuse=True)


class StyledConv(AdaptableLayer):
    """Style scale → convolution (dense, or depthwise then pointwise) → noise → bias → leaky ReLU.

    Args:
        in_channels, out_channels: widths.
        resolution: H = W of the noise image.
        w_dim: D.
        separable: depthwise 3×3 + pointwise 1×1 instead of a dense 3×3.
    """

    role = "bias"

    def __init__(self, in_channels: int, out_channels: int, resolution: int, w_dim: int, separable: bool = True):
        super().__init__()
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.depthwise = FoldedConv(1, in_channels, 3, role="depthwise") if separable else None
        self.conv = FoldedConv(in_channels, out_channels, 1 if separable else 3)
        self.noise = Noise(resolution)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.act = BiasAct("lrelu", gain=1.0)

    def stored(self):
        return self.bias, None

    def forward(self, x, w, noise_mode="const", generator=None):
        """Return `[B, C_out, H, W]` for `x` `[B, C_in, H, W]`, which may be overwritten, and w `[B, D]`."""
        styles = self.affine(w)
        if self.depthwise is not None:
            x, styles = self.depthwise(x, styles, reuse=True), None
        bias = self.effective().tensor
        # in a convolution of one sample the bias costs nothing; a batch adds it together with the noise
        bias_in_conv = x.shape[0] == 1 and not x.is_cuda
        x = self.conv(x, styles, reuse=True, bias=bias.flatten() if bias_in_conv else None)
        return self.act(x, None if bias_in_conv else bias, *self.noise(x, noise_mode, generator))


class MobileBlock(nn.Module):
    """Style scale → inverse Haar (size ×2, channels ÷4) → two styled separable convolutions."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, w_dim: int):
        super().__init__()
        self.up_affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.up = InverseHaar()
        self.conv0 = StyledConv(in_channels // 4, out_channels, resolution, w_dim)
        self.conv1 = StyledConv(out_channels, out_channels, resolution, w_dim)

    def forward(self, x, ws, noise_mode="const", generator=None):  # [B, C, H, W], [B, 3, D] -> [B, C', 2H, 2W]
        x = self.up(x, self.up_affine(ws[:, 0]))
        x = self.conv0(x, ws[:, 1], noise_mode, generator)
        return self.conv1(x, ws[:, 2], noise_mode, generator)


class ImageHead(AdaptableLayer):
    """Features → twelve Haar bands → RGB at twice the size (MobileStyleGAN §3.2)."""

    role = "bias"

    def __init__(self, channels: int, w_dim: int):
        super().__init__()
        self.affine = FullyConnected(w_dim, channels, bias_init=1.0)
        self.conv = FoldedConv(channels, 12, 1, role="to_rgb")
        self.bias = nn.Parameter(torch.zeros(12))
        self.act, self.up = BiasAct(), InverseHaar()

    def stored(self):
        return self.bias, None

    def forward(self, x, w):  # [B, C, H, W], [B, D] -> [B, 3, 2H, 2W]
        x = self.conv(x, self.affine(w))
        return self.up(self.act(x, self.effective().tensor))


class MobileStyleGANSynthesis(Checkpointed, AdaptableLayer):
    """ws → image: a constant 4×4 map, one dense convolution, then blocks `b8`, `b16`, … and the image head."""

    role = "const"

    def __init__(self, block_channels: list[int], w_dim: int):
        super().__init__()
        self.const = nn.Parameter(torch.randn(block_channels[0], 4, 4))
        self.conv1 = StyledConv(block_channels[0], block_channels[0], 4, w_dim, separable=False)
        self.resolutions = [4 * 2**i for i in range(1, len(block_channels))]
        for i, res in enumerate(self.resolutions):
            setattr(self, f"b{res}", MobileBlock(block_channels[i], block_channels[i + 1], res, w_dim))
        self.to_rgb = ImageHead(block_channels[-1], w_dim)

    def stored(self):
        return self.const, None

    def forward(self, ws, noise_mode="const", generator=None, return_features=False):
        x = self.effective().tensor.to(ws.dtype).expand(ws.shape[0], -1, -1, -1)
        x = x.clone(memory_format=torch.channels_last)  # all later features follow: half the time on a CPU
        x = self.conv1(x, ws[:, 0], noise_mode, generator)
        features = {"b4": x}
        for i, res in enumerate(self.resolutions):
            x = self.run(getattr(self, f"b{res}"), x, ws[:, 1 + 3 * i : 4 + 3 * i], noise_mode, generator)
            features[f"b{res}"] = x
        image = self.to_rgb(x, ws[:, -1])
        return (image, features) if return_features else image


class MobileStyleGANGenerator(StyleGenerator, Network):
    """MobileStyleGAN (arXiv 2104.04767).

    The published network feeds one w to all layers. Here every modulation has its own entry of `ws`, so that w+ works.

    Args:
        block_channels: width of the constant, then of each block; `[512]*5 + [256, 128, 64]` is the 1024 px network.
        z_dim, w_dim: sizes of z and w.
        num_mapping_layers: depth of the mapping network.

    Images have `2 · 4 · 2^(len(block_channels) − 1)` pixels a side, and `num_ws = 3·blocks + 2`.

    Raises:
        ValueError: there is no block, or a width is not a multiple of 4 (the Haar transform splits channels in four).
    """

    @register_to_config
    def __init__(
        self,
        block_channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256),
        z_dim: int = 512,
        w_dim: int = 512,
        num_mapping_layers: int = 8,
    ):
        super().__init__()
        if len(block_channels) < 2 or any(c % 4 or c < 4 for c in block_channels):
            raise ValueError(
                f"block_channels={list(block_channels)}: give the constant's width and at least one block's, "
                "each a positive multiple of 4"
            )
        self.resolution = 8 * 2 ** (len(block_channels) - 1)
        self.z_dim, self.w_dim, self.num_ws = z_dim, w_dim, 3 * (len(block_channels) - 1) + 2
        self.mapping = MappingNetwork(z_dim, w_dim, self.num_ws, num_mapping_layers)
        self.synthesis = MobileStyleGANSynthesis(list(block_channels), w_dim)

    def truncated(self, num_blocks: int) -> "MobileStyleGANGenerator":
        """Return a copy cut after `num_blocks` blocks (`8 · 2^num_blocks` pixels a side), with an untrained image head.

        Raises:
            ValueError: `num_blocks` is not from 1 to the number of blocks of this network.
        """
        total = len(self.config["block_channels"]) - 1
        if not 1 <= num_blocks <= total:
            raise ValueError(f"cannot cut after {num_blocks} blocks: this network has {total}; give 1 to {total}")
        config = dict(self.config, block_channels=list(self.config["block_channels"][: num_blocks + 1]))
        cut = type(self).from_config(config)
        assert isinstance(cut, MobileStyleGANGenerator)  # from_config returns a pair only on request
        initial, trained = cut.state_dict(), self.state_dict()
        if num_blocks < total:
            trained = {k: v for k, v in trained.items() if k in initial and not k.startswith("synthesis.to_rgb.")}
        cut.load_state_dict({**initial, **trained})
        return cut
