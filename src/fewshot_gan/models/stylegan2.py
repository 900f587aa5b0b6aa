"""StyleGAN2 (arXiv 1912.04958), by default configuration F: a generator with output skips, a residual discriminator.

The other architectures of figure 7 are supported too, and classes as in StyleGAN2-ADA (arXiv 2006.06676).

Modules are named by resolution (`synthesis.b64.conv0`, `b64.conv0`). Weights are stored raw, with unit variance at the
start; `forward` applies equalised-lr gains (arXiv 1710.10196 §4.1), modulation and demodulation.

Shape legend: B batch, C channels, H/W size of the features, R image resolution, L number of `ws`, D `w_dim`.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..ops import Act, bias_act, downsample2d, modulated_conv2d, scale_weight, setup_filter
from ..ops.minibatch import minibatch_stddev
from ..utils.offloading import fetch_tensor
from .checkpointing import Checkpointed
from .labels import check_labels
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
from .network import Network, network_output
from .stylegan2_layout import FIR_TAPS, HALF, block_channels, block_resolutions, check_architecture

# ---------------------------------------------------------------------------------------------------------- generator


class StyledConv(AdaptableLayer):
    """Modulated 3×3 convolution → noise → bias → leaky ReLU → clamp (§2.2 and figure 2d).

    Args:
        in_channels, out_channels: I and O.
        resolution: H = W of the output.
        w_dim: D.
        up: 2 to upsample the features, else 1.
        conv_clamp: largest absolute output value, or None for no limit.
    """

    resample_filter: torch.Tensor
    role, demodulation = "conv", "runtime"

    def __init__(self, in_channels, out_channels, resolution, w_dim, up=1, conv_clamp=None):
        super().__init__()
        self.up, self.conv_clamp = up, conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise = Noise(resolution)
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS), persistent=False)

    def forward(self, x, w, noise_mode="const", generator=None, reuse=False, gain=1.0):
        """Return `[B, O, up·H, up·W]`, times gain, for x `[B, I, H, W]` and w `[B, D]`; `reuse` may overwrite x."""
        e = self.effective()
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        noise, strength = self.noise(x, noise_mode, generator)
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
            then=Act(e.bias, noise, strength, "lrelu", gain * math.sqrt(2), clamp),
            reuse=reuse,
        )


class ToRGB(AdaptableLayer):
    """Modulated 1×1 convolution to RGB, without demodulation; the equalised-lr gain is applied to the styles.

    Args:
        in_channels: I.
        w_dim: D.
        conv_clamp: largest absolute output value, or None for no limit.
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
        x = modulated_conv2d(
            x, e.weight, styles, input_scale=e.input_scale, output_scale=e.output_scale, demodulate=False
        )
        return self.act(x, e.bias)


class SynthesisBlock(AdaptableLayer):
    """One resolution: convolve the features, and add their RGB to the upsampled image (figure 7).

    Args:
        in_channels: width of the input; 0 for the first block, which starts from a constant.
        out_channels: C.
        resolution: H = W of the output.
        w_dim: D.
        conv_clamp: largest absolute output value of all convolutions but the skip, or None for no limit.
        architecture: "skip": every block outputs RGB; "orig": only the last one; "resnet": only the last one, and each
            block adds a 1×1 skip convolution to the two others, both paths times √½.
        is_last: whether this is the block of the image's resolution.
    """

    role = "const"

    def __init__(
        self, in_channels, out_channels, resolution, w_dim, conv_clamp=None, architecture="skip", is_last=True
    ):
        super().__init__()
        self.num_convs = 2 if in_channels else 1
        self.skip = self.to_rgb = None
        if in_channels:
            self.conv0 = StyledConv(in_channels, out_channels, resolution, w_dim, up=2, conv_clamp=conv_clamp)
        else:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = StyledConv(out_channels, out_channels, resolution, w_dim, conv_clamp=conv_clamp)
        if is_last or architecture == "skip":
            self.to_rgb = ToRGB(out_channels, w_dim, conv_clamp)
        if in_channels and architecture == "resnet":
            self.skip = Conv(in_channels, out_channels, 1, activation="linear", bias=False, role="skip")
        self.upsample = Upsample2d(setup_filter(FIR_TAPS))

    def stored(self):
        return (self.const if self.num_convs == 1 else None), None

    def forward(self, x, image, ws, noise_mode="const", generator=None):
        """Return features and image at twice the size.

        Args:
            x: `[B, C', H/2, W/2]`, or None in the first block.
            image: `[B, 3, H/2, W/2]`, or None before the first RGB output.
            ws: `[B, num_convs + 1, D]`.
            noise_mode, generator: see `Noise.forward`.

        Returns:
            features `[B, C, H, W]`, and image `[B, 3, H, W]` or None.
        """
        skipped, gain = None, 1.0
        if x is None:
            x = self.effective().tensor.to(ws.dtype).expand(ws.shape[0], -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)  # all later features follow: faster on CPUs and GPUs
        else:
            if self.skip is not None:  # a 1×1 convolution commutes with upsampling; before it there are fewer pixels
                skipped, gain = self.upsample(self.skip(x, HALF)), HALF
            x = self.conv0(x, ws[:, 0], noise_mode, generator)
        x = self.conv1(x, ws[:, self.num_convs - 1], noise_mode, generator, reuse=self.num_convs == 2, gain=gain)
        x = x if skipped is None else skipped + x
        if self.to_rgb is None:
            return x, image
        rgb = self.to_rgb(x, ws[:, self.num_convs])
        return x, rgb if image is None else self.upsample(image) + rgb


class SynthesisNetwork(Checkpointed, nn.Module):
    """Synthesis network from ws to image: blocks `b4`, `b8`, … `b{resolution}`."""

    def __init__(self, resolution, channel_base, channel_max, w_dim, conv_clamp=None, architecture="skip"):
        super().__init__()
        self.resolutions = block_resolutions(resolution)
        width, architecture = 0, check_architecture(architecture)
        for res in self.resolutions:
            previous, width = width, block_channels(res, channel_base, channel_max)
            block = SynthesisBlock(previous, width, res, w_dim, conv_clamp, architecture, is_last=res == resolution)
            setattr(self, f"b{res}", block)

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
        conv_clamp: largest absolute output value of all convolutions but skips, or None for no limit; networks trained
            with mixed precision use 256.
        architecture: see `SynthesisBlock`.
        num_classes: number of classes, or None.
        embed_dim: size of the class embedding; None means `w_dim`.
        mapping_dim: width between the layers of the mapping network; None means `w_dim`.

    Raises:
        ValueError: `resolution` or `architecture` is not supported, or `num_classes` is 0.
    """

    LATER_OPTIONS = {"architecture": "skip", "num_classes": None, "embed_dim": None, "mapping_dim": None}

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
        architecture: str = "skip",
        num_classes: int | None = None,
        embed_dim: int | None = None,
        mapping_dim: int | None = None,
    ):
        super().__init__()
        self.synthesis = SynthesisNetwork(resolution, channel_base, channel_max, w_dim, conv_clamp, architecture)
        self.resolution, self.z_dim, self.w_dim, self.num_classes = resolution, z_dim, w_dim, num_classes
        self.num_ws = 2 * len(self.synthesis.resolutions)
        self.mapping = MappingNetwork(
            z_dim, w_dim, self.num_ws, num_mapping_layers, mapping_lr_multiplier, num_classes, embed_dim, mapping_dim
        )


# ------------------------------------------------------------------------------------------------------ discriminator


class Conv(AdaptableLayer):
    """Convolution with equalised learning rate → bias → activation → clamp.

    Args:
        in_channels, out_channels: I and O.
        kernel_size: k, odd.
        down: 2 to halve the size, else 1.
        activation: see `ops.bias_act`.
        bias: whether the layer has a bias.
        conv_clamp: largest absolute output value, or None for no limit.
        role: see `AdaptableLayer`.
    """

    resample_filter: torch.Tensor

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
            scale_weight(e.weight, self.weight_gain),
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
    """Two convolutions that halve the size (figure 7).

    Args:
        in_channels, out_channels: widths.
        conv_clamp: largest absolute output value of all convolutions but the skip, or None for no limit.
        from_rgb: whether the block takes the image, instead of or in addition to features.
        architecture: "resnet" adds a 1×1 skip convolution, both paths times √½; "skip" and "orig" do not.
    """

    def __init__(self, in_channels, out_channels, conv_clamp=None, from_rgb=False, architecture="resnet"):
        super().__init__()
        self.from_rgb = Conv(3, in_channels, 1, conv_clamp=conv_clamp, role="from_rgb") if from_rgb else None
        self.conv0 = Conv(in_channels, in_channels, 3, conv_clamp=conv_clamp)
        self.conv1 = Conv(in_channels, out_channels, 3, down=2, conv_clamp=conv_clamp)
        self.skip = None
        if architecture == "resnet":  # published networks clamp every convolution but this one
            self.skip = Conv(in_channels, out_channels, 1, down=2, activation="linear", bias=False)

    def forward(self, x, image=None):
        """Return `[B, C', H/2, W/2]` for features `[B, C, H, W]`, an image `[B, 3, H, W]` for `from_rgb`, or both."""
        x = add_image(x, image, self.from_rgb)
        if self.skip is None:
            return self.conv1(self.conv0(x))
        return self.skip(x, HALF) + self.conv1(self.conv0(x), HALF)


def add_image(x: torch.Tensor | None, image: torch.Tensor | None, from_rgb: Conv | None) -> torch.Tensor:
    """Return the features `x`, those of the image, or their sum if both exist."""
    if from_rgb is None:
        assert x is not None
        return x
    return from_rgb(image) if x is None else x + from_rgb(image)


class DiscriminatorHead(nn.Module):
    """Minibatch standard deviation → 3×3 convolution → two fully connected layers.

    Args:
        channels: C.
        mbstd_group_size, mbstd_num_channels, conv_clamp: see `StyleGAN2Discriminator`.
        cmap_dim: size of a mapped class; 0 means no classes.
        from_rgb: whether the head takes the image too; published networks do not clamp this layer.
    """

    def __init__(self, channels, mbstd_group_size, mbstd_num_channels, conv_clamp=None, cmap_dim=0, from_rgb=False):
        super().__init__()
        self.mbstd_group_size, self.mbstd_num_channels = mbstd_group_size, mbstd_num_channels
        self.from_rgb = Conv(3, channels, 1, role="from_rgb") if from_rgb else None
        self.conv = Conv(channels + mbstd_num_channels, channels, 3, conv_clamp=conv_clamp)
        self.fc = FullyConnected(channels * 4 * 4, channels, activation="lrelu")
        self.out = FullyConnected(channels, cmap_dim or 1)

    def forward(self, x, image=None, cmap=None):
        """Return logits `[B, 1]` and features `[B, C, 4, 4]`.

        Args:
            x: `[B, C, 4, 4]`.
            image: `[B, 3, 4, 4]` for `from_rgb`, or None.
            cmap: mapped classes `[B, cmap_dim]`, or None.
        """
        x = add_image(x, image, self.from_rgb)
        if self.mbstd_num_channels:
            x = minibatch_stddev(x, self.mbstd_group_size, self.mbstd_num_channels)
        x = self.conv(x)
        logits = self.out(self.fc(x.flatten(1)))
        if cmap is not None:  # projection discriminator, arXiv 1802.05637
            logits = (logits * cmap).sum(1, keepdim=True) / math.sqrt(cmap.shape[1])
        return logits, x


class StyleGAN2Discriminator(Network):
    """StyleGAN2 discriminator (arXiv 1912.04958): blocks `b{resolution}` … `b8`, then the head `b4`.

    Args:
        resolution: R, a power of two from 16 to 1024.
        channel_base, channel_max: the width at `res` is `min(channel_base // res, channel_max)`.
        mbstd_group_size: number of samples per group of the minibatch standard deviation.
        mbstd_num_channels: its number of channels, 0 for none; must divide the width at 4×4.
        conv_clamp: largest absolute output value of all convolutions but skips and the head's `from_rgb`, or None.
        architecture: "resnet"; "skip": every block also takes the image at its size; "orig": neither. See
            `DiscriminatorBlock`.
        num_classes: number of classes, or None.
        cmap_dim: size of a mapped class; None means the width at 4×4.
        num_mapping_layers, mapping_lr_multiplier, embed_dim, mapping_dim: arguments of the mapping network of the
            classes, as in `StyleGAN2Generator` with `cmap_dim` for `w_dim`.

    Raises:
        ValueError: `resolution` or `architecture` is not supported, or `mbstd_num_channels` or `num_classes` does not
            fit.
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
        architecture: str = "resnet",
        num_classes: int | None = None,
        cmap_dim: int | None = None,
        num_mapping_layers: int = 8,
        mapping_lr_multiplier: float = 0.01,
        embed_dim: int | None = None,
        mapping_dim: int | None = None,
    ):
        super().__init__()
        self.resolution, self.num_classes = resolution, num_classes
        self.block_resolutions = block_resolutions(resolution)[:0:-1]  # R, …, 8
        head_width = block_channels(4, channel_base, channel_max)
        if mbstd_num_channels and head_width % mbstd_num_channels:
            raise ValueError(
                f"mbstd_num_channels={mbstd_num_channels} does not divide the {head_width} channels at 4×4"
            )
        image_pyramid = check_architecture(architecture) == "skip"
        for res in self.block_resolutions:
            width, next_width = (block_channels(r, channel_base, channel_max) for r in (res, res // 2))
            from_rgb = image_pyramid or res == resolution
            block = DiscriminatorBlock(width, next_width, conv_clamp, from_rgb, architecture)
            setattr(self, f"b{res}", block)
        cmap_dim = 0 if num_classes is None else head_width if cmap_dim is None else cmap_dim
        if num_classes is not None:
            self.mapping = MappingNetwork(
                0, cmap_dim, None, num_mapping_layers, mapping_lr_multiplier, num_classes, embed_dim, mapping_dim
            )
        self.b4 = DiscriminatorHead(
            head_width, mbstd_group_size, mbstd_num_channels, conv_clamp, cmap_dim, image_pyramid
        )

    def layer_resolution(self, path: str) -> int:
        """Return the size of the features that the adaptable layer at `path` takes; 0 for the mapping network."""
        return block_resolution(path) or 0

    @property
    def last_layers(self) -> list[nn.Module]:
        """Return the layers that turn a feature vector into the logit."""
        return [self.b4.out]

    @property
    def groups(self) -> list[nn.Module]:
        """Return the parts that GmDn counts, from the image on: fromRGB, its block, then the other blocks."""
        first, *later = (getattr(self, f"b{res}") for res in self.block_resolutions)
        return [first.from_rgb, first, *later]

    def freeze_lower(self, num: int) -> None:
        """Freeze the first `num` blocks, counted from the image (FreezeD, arXiv 2002.10964).

        Raises:
            ValueError: there are fewer blocks.
        """
        total = len(self.block_resolutions)
        if not 0 <= num <= total:
            raise ValueError(f"freeze_d={num}: this discriminator has {total} blocks; give 0 to {total}")
        for res in self.block_resolutions[:num]:
            getattr(self, f"b{res}").requires_grad_(False)

    def forward(
        self,
        images: torch.Tensor,
        return_features: bool = False,
        class_labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ):
        """Return logits of images.

        Args:
            images: `[B, 3, R, R]` in [−1, 1].
            return_features: also return `{"b256": [B, C, R/2, R/2], …, "b4": [B, C, 4, 4]}`: each block's output, and
                for `b4` the input of the fully connected layers.
            class_labels: int64 `[B]`, for class-conditional networks.
            return_dict: None returns the logits; False a tuple and True a `NetworkOutput`, as in diffusers.

        Returns:
            logits `[B, 1]`; with `return_features` a pair of logits and features.

        Raises:
            ValueError: the images have the wrong shape, or see `check_labels`.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.resolution, self.resolution):
            size = self.resolution
            raise ValueError(f"this discriminator takes images [B, 3, {size}, {size}], got {list(images.shape)}")
        labels = check_labels(class_labels, len(images), self.num_classes)
        x, features = None, {}
        image: torch.Tensor | None = images
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            x = features[f"b{res}"] = block(x, image)
            if self.b4.from_rgb is None or image is None:
                image = None
            else:
                image = downsample2d(image, fetch_tensor(block.conv1, "resample_filter"))
        assert x is not None  # there are two blocks or more
        cmap = None if labels is None else self.mapping(x.new_empty(len(x), 0), class_labels=labels)
        logits, features["b4"] = self.b4(x, image, cmap)
        return network_output(logits, features if return_features else None, return_dict)
