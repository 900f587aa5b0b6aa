"""StyleGAN2 (arXiv 1912.04958), configuration F: generator with output skips, residual discriminator.

Modules are named by resolution (`synthesis.b64.conv0`, `b64.conv0`). Weights are stored raw, as unit-variance noise;
equalised-lr gains (arXiv 1710.10196 §4.1), modulation and demodulation are applied in `forward`.

Shape legend: B batch, C channels, H/W size of the features, R picture resolution, L number of `ws`, D `w_dim`.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..ops import Act, bias_act, modulated_conv2d, scaled, setup_filter
from .checkpointing import Checkpointed
from .layers import (
    AdaptableLayer,
    BiasAct,
    FullyConnected,
    MappingNetwork,
    Noise,
    StyleGenerator,
    Upsample2d,
    block_resolution,
)
from .network import Network, answer

FIR_TAPS = (1, 3, 3, 1)  # over 64 as a 2-D kernel: exact in float16 and bfloat16, so casting a model keeps it


def block_resolutions(resolution: int) -> list[int]:
    """`[4, 8, …, resolution]`.

    Raises:
        ValueError: not a power of two from 16 to 1024.
    """
    if resolution not in (16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"resolution={resolution} is not a power of two from 16 to 1024")
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def block_channels(resolution: int, channel_base: int, channel_max: int) -> int:
    """Width of the features at `resolution`: `min(channel_base // resolution, channel_max)`."""
    return min(channel_base // resolution, channel_max)


# ---------------------------------------------------------------------------------------------------------- generator


class StyledConv(AdaptableLayer):
    """Modulated 3×3 convolution → noise → bias → leaky ReLU → clamp (§2.2 and figure 2d).

    Args:
        in_channels, out_channels: I and O.
        resolution: H = W of the output.
        w_dim: D.
        up: 2 to enlarge the features, else 1.
        conv_clamp: limit of the absolute output value, or None.
    """

    role, demodulation = "conv", "runtime"

    def __init__(self, in_channels, out_channels, resolution, w_dim, up=1, conv_clamp=None):
        super().__init__()
        self.up, self.conv_clamp = up, conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise = Noise(resolution)
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS), persistent=False)

    def forward(self, x, w, noise_mode="const", generator=None, reuse=False):
        """`[B, I, H, W]` and w `[B, D]` → `[B, O, up·H, up·W]`; `reuse`: nobody else needs `x`."""
        e = self.effective()
        return modulated_conv2d(
            x,
            e.weight,
            self.affine(w),
            input_scale=e.input_scale,
            output_scale=e.output_scale,
            norm_weight=e.norm_weight,
            energy=e.energy,
            up=self.up,
            resample_filter=self.resample_filter,
            then=Act(e.bias, *self.noise(x, noise_mode, generator), "lrelu", clamp=self.conv_clamp),
            reuse=reuse,
        )


class ToRGB(AdaptableLayer):
    """Modulated 1×1 convolution to RGB, without demodulation; the equalised-lr gain is applied to the styles.

    Args:
        in_channels: I.
        w_dim: D.
        conv_clamp: limit of the absolute output value, or None.
    """

    role, demodulation = "to_rgb", "none"

    def __init__(self, in_channels, w_dim, conv_clamp=None):
        super().__init__()
        self.style_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.act = BiasAct(clamp=conv_clamp)

    def forward(self, x, w):  # [B, I, H, W], [B, D] -> [B, 3, H, W]
        e = self.effective()
        styles = self.affine(w) * self.style_gain
        scales = {"input_scale": e.input_scale, "output_scale": e.output_scale}
        x = modulated_conv2d(x, e.weight, styles, demodulate=False, **scales)
        return self.act(x, e.bias)


class SynthesisBlock(AdaptableLayer):
    """One resolution: the features are convolved, and their RGB is added to the enlarged picture.

    Args:
        in_channels: width of the features coming in; 0 for the first block, which starts from a constant.
        out_channels: C.
        resolution: H = W of the output.
        w_dim: D.
        conv_clamp: limit of the absolute value of every convolution's output, or None.
    """

    role = "const"

    def __init__(self, in_channels, out_channels, resolution, w_dim, conv_clamp=None):
        super().__init__()
        self.num_convs = 2 if in_channels else 1
        if in_channels:
            self.conv0 = StyledConv(in_channels, out_channels, resolution, w_dim, up=2, conv_clamp=conv_clamp)
        else:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = StyledConv(out_channels, out_channels, resolution, w_dim, conv_clamp=conv_clamp)
        self.to_rgb = ToRGB(out_channels, w_dim, conv_clamp)
        self.upsample = Upsample2d(setup_filter(FIR_TAPS))

    def stored(self):
        return (self.const if self.num_convs == 1 else None), None

    def forward(self, x, image, ws, noise_mode="const", generator=None):
        """Convolve and draw.

        Args:
            x: `[B, C', H/2, W/2]`, None in the first block.
            image: `[B, 3, H/2, W/2]`, None in the first block.
            ws: `[B, num_convs + 1, D]`.

        Returns:
            features `[B, C, H, W]` and image `[B, 3, H, W]`.
        """
        if x is None:
            x = self.effective().weight.to(ws.dtype).expand(ws.shape[0], -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)  # the rest follows: faster on CPUs and GPUs
        else:
            x = self.conv0(x, ws[:, 0], noise_mode, generator)
        x = self.conv1(x, ws[:, self.num_convs - 1], noise_mode, generator, reuse=self.num_convs == 2)
        rgb = self.to_rgb(x, ws[:, self.num_convs])
        return x, rgb if image is None else self.upsample(image) + rgb


class SynthesisNetwork(Checkpointed, nn.Module):
    """ws → image: blocks `b4`, `b8`, … `b{resolution}`."""

    def __init__(self, resolution, channel_base, channel_max, w_dim, conv_clamp=None):
        super().__init__()
        self.resolutions = block_resolutions(resolution)
        width = 0
        for res in self.resolutions:
            previous, width = width, block_channels(res, channel_base, channel_max)
            setattr(self, f"b{res}", SynthesisBlock(previous, width, res, w_dim, conv_clamp))

    def forward(self, ws, noise_mode="const", generator=None, return_features=False):
        x = image = None
        features, i = {}, 0
        for res in self.resolutions:
            block = getattr(self, f"b{res}")
            # a block's RGB and the next block's first convolution share one entry of ws
            x, image = self.run(block, x, image, ws[:, i : i + block.num_convs + 1], noise_mode, generator)
            features[f"b{res}"] = x
            i += block.num_convs
        return (image, features) if return_features else image


class StyleGAN2Generator(StyleGenerator, Network):
    """StyleGAN2 generator (arXiv 1912.04958), `num_ws = 2·log2(resolution) − 2`.

    Args:
        resolution: R, a power of two from 16 to 1024.
        channel_base, channel_max: the width at `res` is `min(channel_base // res, channel_max)`.
        z_dim, w_dim: sizes of z and w.
        num_mapping_layers: depth of the mapping network.
        mapping_lr_multiplier: learning-rate multiplier of the mapping network (it scales the stored weights).
        conv_clamp: limit of the absolute value of every convolution's output, or None; networks trained with mixed
            precision have 256.

    Raises:
        ValueError: `resolution` is not supported.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 256,
        channel_base: int = 32768,
        channel_max: int = 512,
        z_dim: int = 512,
        w_dim: int = 512,
        num_mapping_layers: int = 8,
        mapping_lr_multiplier: float = 0.01,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.synthesis = SynthesisNetwork(resolution, channel_base, channel_max, w_dim, conv_clamp)
        self.resolution, self.z_dim, self.w_dim = resolution, z_dim, w_dim
        self.num_ws = 2 * len(self.synthesis.resolutions)
        self.mapping = MappingNetwork(z_dim, w_dim, self.num_ws, num_mapping_layers, mapping_lr_multiplier)


# ------------------------------------------------------------------------------------------------------ discriminator


class Conv(AdaptableLayer):
    """Convolution with equalised learning rate → bias → activation → clamp.

    Args:
        in_channels, out_channels: I and O.
        kernel_size: k, odd.
        down: 2 to halve the features, else 1.
        activation: see `ops.bias_act`.
        bias: whether there is one.
        conv_clamp: limit of the absolute output value, or None.
        role: see `AdaptableLayer`.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        *,
        down=1,
        activation="lrelu",
        bias=True,
        conv_clamp=None,
        role="conv",
    ):
        super().__init__()
        self.role, self.down, self.activation, self.conv_clamp = role, down, activation, conv_clamp
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS), persistent=False)

    def forward(self, x, gain=1.0):  # [B, I, H, W] -> [B, O, H/down, W/down], times gain
        e = self.effective()
        x = modulated_conv2d(
            x,
            scaled(e.weight, self.weight_gain),
            input_scale=e.input_scale,
            output_scale=e.output_scale,
            demodulate=False,
            down=self.down,
            resample_filter=self.resample_filter,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        gain = gain * (math.sqrt(2) if self.activation == "lrelu" else 1)
        return bias_act(x, e.bias, activation=self.activation, gain=gain, clamp=clamp, reuse=True)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the features: two convolutions beside a 1×1 skip, both times √½ (§4.1).

    Args:
        in_channels, out_channels: widths.
        conv_clamp: limit of the absolute value of every convolution's output, or None.
        from_rgb: whether the block takes the picture instead of features.
    """

    def __init__(self, in_channels, out_channels, conv_clamp=None, from_rgb=False):
        super().__init__()
        self.from_rgb = Conv(3, in_channels, 1, conv_clamp=conv_clamp, role="from_rgb") if from_rgb else None
        self.conv0 = Conv(in_channels, in_channels, 3, conv_clamp=conv_clamp)
        self.conv1 = Conv(in_channels, out_channels, 3, down=2, conv_clamp=conv_clamp)
        self.skip = Conv(in_channels, out_channels, 1, down=2, activation="linear", bias=False, conv_clamp=conv_clamp)

    def forward(self, x):  # [B, C, H, W] (or [B, 3, H, W]) -> [B, C', H/2, W/2]
        if self.from_rgb is not None:
            x = self.from_rgb(x)
        return self.skip(x, math.sqrt(0.5)) + self.conv1(self.conv0(x), math.sqrt(0.5))


def minibatch_stddev(x: torch.Tensor, group_size: int, num_channels: int) -> torch.Tensor:
    """Append the standard deviation over a group of samples as extra channels (arXiv 1710.10196 §3).

    Samples `i, i + B/G, i + 2B/G, …` form a group. Differs from the published networks: G is the largest divisor of B
    up to `group_size`, so that any batch is accepted; whenever the published rule works it gives the same groups.

    Args:
        x: `[B, C, H, W]`.
        group_size: most samples per group.
        num_channels: F, extra channels; must divide C.

    Returns:
        `[B, C + F, H, W]`.
    """
    b, c, h, w = x.shape
    size = next(g for g in range(min(group_size, b), 0, -1) if b % g == 0)
    y = x.float() if x.dtype != torch.float64 else x
    y = y.reshape(size, b // size, num_channels, c // num_channels, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((2, 3, 4))  # [B/G, F]
    y = y.to(x.dtype).repeat(size, 1)[:, :, None, None].expand(-1, -1, h, w)
    return torch.cat([x, y], 1)


class DiscriminatorHead(nn.Module):
    """Minibatch standard deviation → 3×3 convolution → two fully connected layers."""

    def __init__(self, channels, mbstd_group_size, mbstd_num_channels, conv_clamp=None):
        super().__init__()
        self.mbstd_group_size, self.mbstd_num_channels = mbstd_group_size, mbstd_num_channels
        self.conv = Conv(channels + mbstd_num_channels, channels, 3, conv_clamp=conv_clamp)
        self.fc = FullyConnected(channels * 4 * 4, channels, activation="lrelu")
        self.out = FullyConnected(channels, 1)

    def forward(self, x):  # [B, C, 4, 4] -> [B, 1], [B, C, 4, 4]
        if self.mbstd_num_channels:
            x = minibatch_stddev(x, self.mbstd_group_size, self.mbstd_num_channels)
        x = self.conv(x)
        return self.out(self.fc(x.flatten(1))), x


class StyleGAN2Discriminator(Network):
    """StyleGAN2 residual discriminator (arXiv 1912.04958): blocks `b{resolution}` … `b8`, then the head `b4`.

    Args:
        resolution: R, a power of two from 16 to 1024.
        channel_base, channel_max: the width at `res` is `min(channel_base // res, channel_max)`.
        mbstd_group_size: samples over which the minibatch standard deviation is taken.
        mbstd_num_channels: its number of channels, 0 = none; must divide the width at 4×4.
        conv_clamp: limit of the absolute value of every convolution's output, or None.

    Raises:
        ValueError: `resolution` is not supported, or `mbstd_num_channels` does not fit.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 256,
        channel_base: int = 32768,
        channel_max: int = 512,
        mbstd_group_size: int = 4,
        mbstd_num_channels: int = 1,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.resolution = resolution
        self.block_resolutions = block_resolutions(resolution)[:0:-1]  # R, …, 8
        head_width = block_channels(4, channel_base, channel_max)
        if mbstd_num_channels and head_width % mbstd_num_channels:
            raise ValueError(
                f"mbstd_num_channels={mbstd_num_channels} does not divide the {head_width} channels at 4×4"
            )
        for res in self.block_resolutions:
            widths = [block_channels(r, channel_base, channel_max) for r in (res, res // 2)]
            setattr(self, f"b{res}", DiscriminatorBlock(*widths, conv_clamp, from_rgb=res == resolution))
        self.b4 = DiscriminatorHead(head_width, mbstd_group_size, mbstd_num_channels, conv_clamp)

    def layer_resolution(self, path: str) -> int:
        """Size of the features that the adaptable layer at `path` takes."""
        return block_resolution(path)

    @property
    def last_layers(self) -> list[nn.Module]:
        """What turns a feature vector into the logit."""
        return [self.b4.out]

    @property
    def groups(self) -> list[nn.Module]:
        """Parts from the picture on, as GmDn counts them: fromRGB, the rest of its block, then a block each."""
        first, *others = (getattr(self, f"b{res}") for res in self.block_resolutions)
        return [first.from_rgb, first, *others]

    def freeze_lower(self, num: int) -> None:
        """Keep the first `num` blocks, counted from the image, as they are now (FreezeD, arXiv 2002.10964).

        Raises:
            ValueError: there are not as many.
        """
        most = len(self.block_resolutions)
        if not 0 <= num <= most:
            raise ValueError(f"freeze_d={num}: this discriminator has {most} blocks; give 0 to {most}")
        for res in self.block_resolutions[:num]:
            getattr(self, f"b{res}").requires_grad_(False)

    def forward(self, images: torch.Tensor, return_features: bool = False, return_dict: bool | None = None):
        """Judge images.

        Args:
            images: `[B, 3, R, R]` in [−1, 1].
            return_features: also return `{"b256": [B, C, R/2, R/2], …, "b4": [B, C, 4, 4]}`: each block's output, and
                for `b4` the map that the fully connected layers see.
            return_dict: None: the logits alone; False: a tuple and True: a `NetworkOutput`, as in diffusers.

        Returns:
            logits `[B, 1]`; with `return_features` a pair.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.resolution, self.resolution):
            size = self.resolution
            raise ValueError(f"this discriminator takes images [B, 3, {size}, {size}], got {list(images.shape)}")
        x, features = images, {}
        for res in self.block_resolutions:
            x = features[f"b{res}"] = getattr(self, f"b{res}")(x)
        logits, features["b4"] = self.b4(x)
        return answer(logits, features if return_features else None, return_dict)
