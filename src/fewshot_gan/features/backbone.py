"""Vision models of transformers as feature networks for metrics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import check_floats
from ..hub import NO_CODE, fetch_model, read_model, refuse_missing
from ..utils.json_files import read_json
from ..utils.text import in_short
from .base import FeatureNetwork
from .weights import hash_of_weights


class BackboneFeatures(FeatureNetwork):
    """Pooled output of any vision model of `transformers`, e.g. DINOv2 (arXiv 2304.07193).

    If the pooler was not trained, it is the mean of the last hidden state over positions. Pictures are resized, cropped
    and normalised as `preprocessor_config.json` says: `size`, `crop_pct`, `crop_size`, `resample` (2, 3), `image_mean`
    and `image_std`. Sizes that are no square, other values of `resample`, and a false `do_resize` or `do_rescale` are
    refused.

    Args:
        name: local folder or Hub repo id, e.g. "facebook/dinov2-base".

    Raises:
        ImportError: `transformers` is not installed.
        FileNotFoundError: there is no such folder or repo, or no network connection.
        ValueError: it holds no vision model, or a damaged one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str):
        super().__init__()
        self.net: Any
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise ImportError(f"{name!r} needs transformers: pip install 'fewshot_gan[train]'") from error
        folder = fetch_model(
            name, "network", "give a local folder, or use 'efficientnet-lite0', which needs no network"
        )
        try:
            self.net, missing = read_model(AutoModel, folder, AutoConfig.from_pretrained(folder, **NO_CODE))
            # a model of pictures and texts has no features without its pooler
            is_multimodal = hasattr(self.net, "get_image_features")
            untrained = {key for key in missing if "pooler" in key and not is_multimodal}
            refuse_missing(missing - untrained)
            self.uses_pooler = not untrained
            stored = read_json(folder / "preprocessor_config.json")
            self._read_preprocessor(stored)
            self.requires_grad_(False).eval()
            picture = torch.linspace(-1, 1, 3 * self.side**2, dtype=torch.float32, device="cpu").view(
                1, 3, self.side, self.side
            )
            first, second = self.pooled(picture), self.pooled(picture)  # models of texts or sounds fail here
            if not torch.allclose(first, second, atol=1e-4, rtol=1e-4):
                raise ValueError("what it says of a picture changes from call to call")
        except Exception as error:  # transformers, safetensors and the parsers of configs share no class of error
            raise ValueError(
                f"{name!r} is no vision model that can judge ({in_short(error)}); for example 'facebook/dinov2-base'"
            ) from error
        settings = [self.resize, self.uses_pooler, self.mean.flatten().tolist(), self.std.flatten().tolist()]
        self.sha256 = hash_of_weights(self.net, str(settings), untrained)

    def _read_preprocessor(self, stored: dict) -> None:
        """Set sizes, interpolation and normalisation from the content of `preprocessor_config.json`."""
        for name in ("do_resize", "do_rescale"):
            if not stored.get(name, True):
                raise ValueError(f"its preprocessor has {name} false")
        self.side = self.shorter = _side(stored, "size")
        if stored.get("crop_pct") and self.shorter < 384:  # ConvNeXt and ResNet: enlarge, then crop to `size`
            self.shorter = int(self.shorter / stored["crop_pct"])
        elif stored.get("do_center_crop", "crop_size" in stored):
            self.side = _side(stored, "crop_size")
        if self.side > self.shorter:
            raise ValueError(f"its preprocessor crops {self.side} px out of {self.shorter}")
        mode = {2: "bilinear", 3: "bicubic", None: "bicubic"}.get(stored.get("resample"))
        if mode is None:
            raise ValueError(f"its preprocessor has resample {stored['resample']}, not 2 (bilinear) or 3 (bicubic)")
        self.mode = mode
        self.resize = f"torch {self.mode}, antialiased, to {self.shorter} px, centre crop of {self.side} px"
        for name, none in (("mean", 0.0), ("std", 1.0)):
            values = stored.get(f"image_{name}") if stored.get("do_normalize", True) else [none] * 3
            if values is None:
                raise ValueError(f"its preprocessor has no image_{name}")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))

    @torch.no_grad()
    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Return features `[N, D]` of images `[N, 3, R, R]` in [-1, 1]."""
        return torch.cat([self._pooled(chunk.to(self.mean.device)) for chunk in images.split(batch_size)])

    def _pooled(self, images: Tensor) -> Tensor:
        check_floats(images)
        with torch.autocast(images.device.type, enabled=False):
            x = (images.float() + 1) / 2
            if x.shape[-1] != self.shorter:
                x = F.interpolate(x, size=(self.shorter, self.shorter), mode=self.mode, antialias=True)
            start = (self.shorter - self.side) // 2
            x = (x[..., start : start + self.side, start : start + self.side] - self.mean) / self.std
            if hasattr(self.net, "get_image_features"):  # a model of pictures and texts
                output = self.net.get_image_features(pixel_values=x)
                return output if isinstance(output, Tensor) else output.pooler_output
            output = self.net(pixel_values=x)
        if self.uses_pooler and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)  # [B, D] or [B, D, 1, 1]
        last = output.last_hidden_state  # [B, positions, D] or [B, D, h, w]
        return last.mean(1) if last.ndim == 3 else last.mean((2, 3))


def _side(stored: dict, name: str) -> int:
    """Return the side in px that a preprocessor's `size` or `crop_size` gives.

    Args:
        stored: content of `preprocessor_config.json`.
        name: "size" or "crop_size"; its value is a number, a shortest edge, or equal height and width.
    """
    given = stored.get(name)
    sides = [given]
    if isinstance(given, dict) and given.keys() <= {"shortest_edge", "height", "width"}:
        sides = list(given.values())
    if not sides or not isinstance(sides[0], int) or sides[1:] not in ([], sides[:1]):
        raise ValueError(f"its preprocessor has {name} {given}, no side of a square")
    return sides[0]
