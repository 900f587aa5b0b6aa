"""Networks of other packages that judge pictures: Inception-v3, LPIPS, and any backbone of transformers.

None comes with this package: their weights are fetched once, by the package that defines them.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import check_floats, to_bytes
from ..hub import NO_CODE, fetch_model, in_short, read_model, refuse_missing
from ..utils.errors import fault_of_disk
from ..utils.json_files import read_json
from . import FeatureNetwork

# What fetching and reading a checkpoint raises: no network, a wrong hash, a cut file, a page instead of it.
FETCHING = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, HTTPException)


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 as published Fréchet distances and Inception Scores see (arXiv 1706.08500), by `torch_fidelity`.

    Pictures are rounded to 8 bits, as from files.

    Args:
        checkpoint: its weights; None: torch-fidelity's, fetched into torch's cache.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: the weights cannot be fetched.
    """

    resize = "TensorFlow 1 bilinear, to 299 px"

    def __init__(self, checkpoint: str | Path | None = None):
        super().__init__()
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as published
        except ImportError as error:
            raise ImportError("Inception-v3 needs torch-fidelity: pip install 'fewshot_gan[metrics]'") from error
        if checkpoint is None:
            checkpoint = Path(torch.hub.get_dir(), "checkpoints", Path(published.URL_INCEPTION_V3).name)
            options = {"check_hash": True, "weights_only": True, "progress": False, "map_location": "cpu"}
            there = checkpoint.is_file()
            try:
                torch.hub.load_state_dict_from_url(published.URL_INCEPTION_V3, **options)
            except FETCHING as error:
                what = f"is damaged at {checkpoint}: remove it" if there else _fault_of_cache(error)
                what = what or "cannot be fetched: try again with network"
                raise FileNotFoundError(
                    f"Inception-v3 {what}, or choose efficientnet-lite0 ({str(error) or type(error).__name__})"
                ) from error
        self.sha256 = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        self.net = published.FeatureExtractorInceptionV3("inception-v3", ["2048"], str(checkpoint))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """The 2048 numbers before the classifier, `[N, 2048]`, of `[N, 3, H, W]` in [-1, 1]."""
        device = self.net.fc.weight.device
        return torch.cat([self.net(to_bytes(chunk.to(device)))[0] for chunk in images.split(batch_size)])

    def logits(self, features: Tensor) -> Tensor:
        """`pooled` features `[N, 2048]` → unbiased logits `[N, 1008]`, for the Inception Score (1606.03498)."""
        return features @ self.net.fc.weight.T.to(features.device)


class LPIPSFeatures(FeatureNetwork):
    """LPIPS (arXiv 1801.03924) as vectors: the squared distance of two is the LPIPS of their pictures.

    For pairs only. By VGG a picture of 256 px takes 16 MB, by AlexNet 1.3 MB.

    Args:
        net: "vgg" or "alex".

    Raises:
        ImportError: `lpips` or torchvision is not installed.
        FileNotFoundError: the weights, which torchvision fetches, cannot be had.
    """

    spatial_side, spatial_resize = 256, "area, to 256 px at most"

    def __init__(self, net: str = "vgg"):
        super().__init__()
        self.net = load_lpips(net)
        self.sha256 = _sha256(self.net)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def spatial(self, images: Tensor, size: int | None = None) -> Tensor:
        """`[B, 3, H, W]` in [-1, 1], made `size` px (None: 256) if it is larger → float16 `[B, E]`."""
        check_floats(images)
        size = size or self.spatial_side
        if max(images.shape[2:]) > size:
            images = F.interpolate(images, size=(size, size), mode="area")
        vectors = []
        for maps, linear in zip(self.net.net(self.net.scaling_layer(images.float())), self.net.lins, strict=True):
            weight = linear.model[-1].weight.clamp_min(0).sqrt()  # [1, C, 1, 1]; trained to be no less than 0
            maps = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10) * weight
            vectors.append(maps.flatten(1) / (maps.shape[2] * maps.shape[3]) ** 0.5)
        return torch.cat(vectors, 1).half()


def load_lpips(net: str = "vgg") -> nn.Module:
    """LPIPS of the package `lpips`, frozen: two `[B, 3, H, W]` in [-1, 1] → `[B, 1, 1, 1]`.

    Raises:
        ImportError: `lpips` or torchvision is not installed.
        FileNotFoundError: its weights, which torchvision fetches once, cannot be had.
    """
    try:
        import lpips
    except ImportError as error:  # torchvision's absence too
        raise ImportError("LPIPS needs lpips: pip install 'fewshot_gan[metrics]'") from error
    try:
        return lpips.LPIPS(net=net, verbose=False).requires_grad_(False)
    except FETCHING as error:
        what = _fault_of_cache(error) or f"cannot fetch its weights ({error})"
        raise FileNotFoundError(f"LPIPS {what}") from error


def _fault_of_cache(error: Exception) -> str | None:
    if (fault := fault_of_disk(error)) is None:
        return None
    return f"cannot keep its weights: {fault.partition('; ')[0]}; set TORCH_HOME to a folder that can be written"


class BackboneFeatures(FeatureNetwork):
    """Any vision model of `transformers`, e.g. DINOv2 (arXiv 2304.07193): its pooled output.

    Where that was not trained, the mean of the last hidden state over positions. Pictures are resized, cropped and
    normalised as `preprocessor_config.json` says: `size`, `crop_pct`, `crop_size`, `resample` (2, 3), `image_mean` and
    `image_std`. Refused: sizes that are no square, other `resample`, and `do_resize` or `do_rescale` false.

    Args:
        name: local folder or Hub repo id, e.g. "facebook/dinov2-base".

    Raises:
        ImportError: `transformers` is not installed.
        FileNotFoundError: no such folder or repo, or no network.
        ValueError: it holds no vision model, or a damaged one.
    """

    def __init__(self, name: str):
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise ImportError(f"{name!r} needs transformers: pip install 'fewshot_gan[train]'") from error
        folder = fetch_model(
            name, "network", "give a local folder, or use 'efficientnet-lite0', which needs no network"
        )
        try:
            self.net, missing = read_model(AutoModel, folder, AutoConfig.from_pretrained(folder, **NO_CODE))
            both = hasattr(self.net, "get_image_features")  # reads words too, and says what it sees by its pooler alone
            untrained = {key for key in missing if "pooler" in key and not both}
            refuse_missing(missing - untrained)
            self.uses_pooler = not untrained
            stored = read_json(folder / "preprocessor_config.json")
            self._read_preprocessor(stored)
            self.requires_grad_(False).eval()
            picture = torch.linspace(-1, 1, 3 * self.side**2, dtype=torch.float32, device="cpu").view(
                1, 3, self.side, self.side
            )
            first, second = self.pooled(picture), self.pooled(picture)  # what reads words or sounds fails here
            if not torch.allclose(first, second, atol=1e-4, rtol=1e-4):
                raise ValueError("what it says of a picture changes from call to call")
        except Exception as error:  # transformers, safetensors and the parsers of configs share no class of error
            raise ValueError(
                f"{name!r} is no vision model that can judge ({in_short(error)}); for example 'facebook/dinov2-base'"
            ) from error
        known = [self.resize, self.uses_pooler, self.mean.flatten().tolist(), self.std.flatten().tolist()]
        self.sha256 = _sha256(self.net, str(known), untrained)

    def _read_preprocessor(self, stored: dict) -> None:
        for name in ("do_resize", "do_rescale"):
            if not stored.get(name, True):
                raise ValueError(f"its preprocessor has {name} false")
        self.side = self.shorter = _side(stored, "size")
        if stored.get("crop_pct") and self.shorter < 384:  # ConvNeXt's and ResNet's: enlarged, then cropped to `size`
            self.shorter = int(self.shorter / stored["crop_pct"])
        elif stored.get("do_center_crop", "crop_size" in stored):
            self.side = _side(stored, "crop_size")
        if self.side > self.shorter:
            raise ValueError(f"its preprocessor crops {self.side} px out of {self.shorter}")
        self.mode = {2: "bilinear", 3: "bicubic", None: "bicubic"}.get(stored.get("resample"))
        if self.mode is None:
            raise ValueError(f"its preprocessor has resample {stored['resample']}, not 2 (bilinear) or 3 (bicubic)")
        self.resize = f"torch {self.mode}, antialiased, to {self.shorter} px, centre crop of {self.side} px"
        for name, none in (("mean", 0.0), ("std", 1.0)):
            values = stored.get(f"image_{name}") if stored.get("do_normalize", True) else [none] * 3
            if values is None:
                raise ValueError(f"its preprocessor has no image_{name}")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))

    @torch.no_grad()
    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """`[N, 3, R, R]` in [-1, 1] → `[N, D]`."""
        return torch.cat([self._pooled(chunk.to(self.mean.device)) for chunk in images.split(batch_size)])

    def _pooled(self, images: Tensor) -> Tensor:
        check_floats(images)
        with torch.autocast(images.device.type, enabled=False):
            x = (images.float() + 1) / 2
            if x.shape[-1] != self.shorter:
                x = F.interpolate(x, size=(self.shorter, self.shorter), mode=self.mode, antialias=True)
            start = (self.shorter - self.side) // 2
            x = (x[..., start : start + self.side, start : start + self.side] - self.mean) / self.std
            if hasattr(self.net, "get_image_features"):  # one that reads texts too
                found = self.net.get_image_features(pixel_values=x)
                return found if isinstance(found, Tensor) else found.pooler_output
            found = self.net(pixel_values=x)
        if self.uses_pooler and getattr(found, "pooler_output", None) is not None:
            return found.pooler_output.flatten(1)  # [B, D] or [B, D, 1, 1]
        last = found.last_hidden_state  # [B, positions, D] or [B, D, h, w]
        return last.mean(1) if last.ndim == 3 else last.mean((2, 3))


def _side(stored: dict, name: str) -> int:
    """px of a preprocessor's `size` or `crop_size`: a number, a shortest edge, or a height and an equal width."""
    given = stored.get(name)
    sides = [given]
    if isinstance(given, dict) and given.keys() <= {"shortest_edge", "height", "width"}:
        sides = list(given.values())
    if not sides or not isinstance(sides[0], int) or sides[1:] not in ([], sides[:1]):
        raise ValueError(f"its preprocessor has {name} {given}, no side of a square")
    return sides[0]


def _sha256(module: nn.Module, also: str = "", without: Collection[str] = ()) -> str:
    """Of a network's parameters and buffers by name but those `without`, and of `also`."""
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name in without:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


LPIPS = {f"lpips-{net}": partial(LPIPSFeatures, net) for net in ("vgg", "alex")}
NETWORKS = {"inception-v3": InceptionFeatures} | LPIPS
