"""Pictures and texts as unit vectors: what HyperDomainNet's losses compare and its hypernetwork reads.

CLIP (arXiv 2103.00020) sees both; the frozen features that ship as a package see pictures alone, and need no network.

Shape legend: B images, N texts, D size of an embedding.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from ..data.images import check_floats
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
# Prompts around the name of a domain. In the manner of CLIP's (arXiv 2103.00020, §3.1.4), which number 80: these 41
# are ours, so numbers made with them compare with each other only.
TEMPLATES = (
    "{}",
    *(f"a {quality}photo of {article} {{}}" for quality in _PHOTOS for article in ("a", "the")),
    *(f"a {medium} of {article} {{}}" for medium in _MEDIA for article in ("a", "the")),
)


class Encoder(nn.Module):
    """Contract of every encoder: frozen, fp32, no train mode.

    Attributes:
        name: what `load_encoder` takes.
        dim: D.
        has_text: whether it reads texts.
    """

    name: str
    dim: int
    has_text: bool = False

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]`, [−1, 1] being black to white, unclamped → unit `[B, D]`; gradients reach the images."""
        raise NotImplementedError

    def text(self, texts: Sequence[str]) -> torch.Tensor:
        """N texts → unit `[N, D]`, without gradient.

        Raises:
            ValueError: this encoder sees pictures alone, or there is nothing to read, or more than it can read.
        """
        raise ValueError(f"encoder {self.name!r} reads no text; use CLIP, e.g. {CLIP_DEFAULT!r}, or give pictures")

    @cached_property
    def identity(self) -> str:
        """Sixteen hex digits of its weights and settings: embeddings of encoders that differ in it do not compare."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(False)


class FeatureEncoder(Encoder):
    """The look of a picture from frozen features: mean and deviation of each channel at five depths.

    Positions are summed over, so that what differs between two embeddings is material, line and colour rather than
    where things are (arXiv 1703.06868); each depth is scaled to unit length, so that none speaks over the others; the
    deepest ones, which know objects, are left out. On three looks of `ffhq`, (adapted − source) of a face and the same
    mean difference over other faces meet at a cosine of 0.89 to 0.95. Dividing every channel by its spread over faces
    lowers that to 0.7: it amplifies what tells faces apart.

    Args:
        features: a `FeatureNetwork`.
        name: see `Encoder`.
    """

    BLOCKS = (0, 2, 4, 7, 10)
    SIZE = 256  # pixels: statistics of lines depend on the scale they are seen at

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


class CLIPEncoder(Encoder):
    """CLIP (arXiv 2103.00020) through `transformers`.

    Args:
        model: a `transformers.CLIPModel`.
        tokenizer: its tokenizer.
        name: see `Encoder`.
        mean, std: normalisation of RGB in [0, 1].
    """

    has_text = True

    def __init__(self, model, tokenizer, name: str, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD):
        super().__init__()
        self.model, self.tokenizer, self.name = model.float(), tokenizer, name
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
    """Embeddings of every text in every template, `[N, len(templates), D]`.

    Raises:
        ValueError: a template without its place for the text, or what `Encoder.text` refuses.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise ValueError(
            f"templates={list(templates)!r}: each has {{}} once, where the text goes, e.g. 'a photo of {{}}'"
        )
    texts = [template.replace("{}", text) for text in texts for template in templates]
    rows = torch.cat([encoder.text(texts[i : i + 64]) for i in range(0, len(texts), 64)])
    return rows.view(-1, len(templates), encoder.dim)


def load_encoder(name: str = CLIP_DEFAULT, device: str | torch.device | None = None) -> Encoder:
    """The frozen encoder called `name` on `device` (None: CPU). Cached: one object per arguments, so do not move it.

    Args:
        name: "features" (`FeatureEncoder`, offline), or CLIP as a local folder or Hub repo id, e.g.
            "openai/clip-vit-base-patch16".

    Raises:
        FileNotFoundError: no such folder or repo, or no network.
        ValueError: it holds no CLIP model, or a damaged one.
        ImportError: the packages of this encoder are not installed.
    """
    return _load(expanded(name), str(torch.device(device or "cpu")))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # it is kept, and serves elsewhere too
def _load(name: str, device: str) -> Encoder:
    if name == "features":
        return FeatureEncoder(load_features(device=device)).to(device)
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
