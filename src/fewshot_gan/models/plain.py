"""Layers of generators and discriminators without styles: SNGAN, BigGAN, GP-GAN.

A layer's adapters act on its stored weight; spectral normalisation comes after them, so that what is normalised is what
is used. Shape legend: B batch, I/O inputs and outputs, k kernel size, E size of a condition.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ..ops import RowWeights, bias_act, by_rows, conv2d
from ..utils.offloading import fetched
from .checkpointing import Checkpointed
from .labels import check_labels
from .layers import AdaptableLayer, EffectiveWeight, block_resolution
from .network import answer

POWER_ITERATIONS = 20  # of an adapted weight, from the base's singular vectors


class Layer(AdaptableLayer):
    """A weight and perhaps a bias; `eps` not None normalises the weight by its largest singular value.

    Args:
        shape: of the weight; its rows are outputs.
        bias: whether there is one.
        role: see `AdaptableLayer`.
        eps: of spectral normalisation (arXiv 1802.05957, torch's parametrisation); None = none.
        init: fills the weight in place, None: `orthogonal`; biases start at 0 (differs from torch's own start, which
            draws them too).
    """

    def __init__(self, shape, bias: bool, role: str, eps: float | None = None, init=None):
        super().__init__()
        self.role = role
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        (init or orthogonal)(self.weight)
        if eps is not None:
            self.demodulation = "spectral"
            spectral_norm(self, "weight", eps=eps)

    def stored(self):
        masked_or_normalised = parametrize.is_parametrized(self, "weight")
        weight = fetched(self.parametrizations.weight, "original") if masked_or_normalised else self.weight
        return weight, self.bias

    def ready(self) -> EffectiveWeight:
        """What the layer computes with: the effective weight, spectrally normalised."""
        if (adaptation := self.acting()) is None:
            return EffectiveWeight(self.weight, self.bias)
        if self.demodulation != "spectral":
            return self.effective()
        base, bias = self.stored()
        e = adaptation(base, bias)
        if not isinstance(e.weight, RowWeights):
            return e._replace(weight=self._normalised(e.weight, e.norm_weight, base))
        norms = [None] * len(e.weight.counts) if e.norm_weight is None else e.norm_weight.weights
        runs = tuple(self._normalised(*run, base) for run in zip(e.weight.weights, norms, strict=True))
        return e._replace(weight=RowWeights(runs, e.weight.counts))

    def _normalised(self, weight: torch.Tensor, of: torch.Tensor | None, base: torch.Tensor) -> torch.Tensor:
        """`weight` over the largest singular value of `of`, None: its own; `base` is the stored weight.

        The base's estimate of its own value is kept and multiplied by how much the value changed, so that an adapter
        that changes nothing is the identity.
        """
        if weight is base:
            return self.weight
        norm = self.parametrizations.weight[-1]
        base, u, v = (x.to(weight.dtype) for x in (base.detach(), fetched(norm, "_u"), fetched(norm, "_v")))
        estimate = u @ base.flatten(1) @ v
        of = weight if of is None else of.to(weight.dtype)
        change = largest_singular_value(of, u) / largest_singular_value(base, u)
        return weight / (estimate * change)


class Linear(Layer):
    """`[B, I]` → `[B, O]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, role: str = "linear", **options):
        super().__init__((out_features, in_features), bias, role, **options)

    def forward(self, x):
        e = self.ready()
        return bias_act(by_rows(lambda x, w: F.linear(x, w.to(x.dtype)), x, e.weight), e.bias)


class Conv2d(Layer):
    """`[B, I, H, W]` → `[B, O, H, W]`, padded by half a kernel.

    Args:
        in_channels, out_channels: I and O.
        kernel_size: k, odd.
        bias, role, options: see `Layer`.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, bias=True, role="conv", **options):
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), bias, role, **options)

    def forward(self, x):
        e = self.ready()
        if e.input_scale is not None:
            x = x * e.input_scale.to(x.dtype)[..., None, None]
        x = by_rows(lambda x, w: self.convolve(x, w.to(x.dtype)), x, e.weight)
        if e.output_scale is not None:
            x = x * e.output_scale.to(x.dtype)[..., None, None]
        return bias_act(x, e.bias)

    def convolve(self, x, weight):
        """The bare convolution with `[O, I, k, k]`."""
        return conv2d(x, weight, weight.shape[-1] // 2)


class Embedding(Layer):
    """Class labels int64 `[B]` → `[B, E]`."""

    def __init__(self, num_classes: int, size: int, **options):
        super().__init__((num_classes, size), False, "embedding", **options)

    def forward(self, labels):
        return by_rows(lambda y, weight: F.embedding(y, weight), labels, self.ready().weight)


class BatchNorm(AdaptableLayer):
    """Batch normalisation (arXiv 1502.03167) whose gain and shift adapters reach; running statistics are the base's."""

    role = "norm"

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps, affine=False)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):  # [B, C, H, W] -> the same
        weight, bias, *_ = self.effective()
        return bias_act(self.norm(x) * weight.to(x.dtype)[..., None, None], bias)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain 1 + W_g e and shift W_b e depend on a condition (arXiv 1809.11096).

    Args:
        channels: C.
        size: E.
        norm_eps: of batch normalisation.
        eps: see `Layer`, of both maps.
    """

    def __init__(self, channels: int, size: int, norm_eps: float, eps: float | None):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, norm_eps, affine=False)
        self.gain, self.shift = (Linear(size, channels, bias=False, eps=eps) for _ in range(2))

    def forward(self, x, condition):  # [B, C, H, W], [B, E] -> [B, C, H, W]
        gain, shift = 1 + self.gain(condition), self.shift(condition)
        return self.norm(x) * gain[:, :, None, None] + shift[:, :, None, None]


class SelfAttention(AdaptableLayer):
    """x + γ·o(softmax(θᵀφ) g) with φ and g at half the size (arXiv 1805.08318 §3, as in BigGAN).

    Args:
        channels: C.
        eps: see `Layer`.
    """

    role = "norm"  # γ, one number

    def __init__(self, channels: int, eps: float | None):
        super().__init__()
        self.theta, self.phi = (Conv2d(channels, channels // 8, 1, bias=False, eps=eps) for _ in range(2))
        self.g = Conv2d(channels, channels // 2, 1, bias=False, eps=eps)
        self.o = Conv2d(channels // 2, channels, 1, bias=False, eps=eps)
        self.gamma = nn.Parameter(torch.zeros([]))

    def stored(self):
        return self.gamma, None

    def forward(self, x):  # [B, C, H, W] -> the same
        b, c, h, w = x.shape
        queries = self.theta(x).flatten(2)  # [B, C/8, HW]
        keys, values = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.phi, self.g))  # [B, ·, HW/4]
        seen = values @ (queries.transpose(1, 2) @ keys).softmax(-1).transpose(1, 2)  # [B, C/2, HW]
        gamma = self.effective().weight.to(x.dtype).reshape(-1, 1, 1, 1)
        return x + gamma * self.o(seen.view(b, c // 2, h, w))


def largest_singular_value(weight: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """σ of `weight` as a matrix `[O, …]`, by power iteration from `start` `[O]`; its gradient is that of uᵀWv."""
    matrix, u = weight.flatten(1), start
    with torch.no_grad():
        for _ in range(POWER_ITERATIONS):
            v = F.normalize(matrix.T @ u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
    return u @ matrix @ v


# `torch.nn.init` is looked up when one of these is called: while diffusers loads a model, its functions do nothing


def orthogonal(weight: torch.Tensor) -> None:
    """Orthogonal rows or columns (arXiv 1312.6120), found in float32: half precision has no QR decomposition."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        fresh = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        nn.init.orthogonal_(fresh)
        with torch.no_grad():
            weight.copy_(fresh)
    else:
        nn.init.orthogonal_(weight)


def xavier(weight: torch.Tensor) -> None:
    """Xavier's uniform (Glorot and Bengio 2010)."""
    nn.init.xavier_uniform_(weight)


def fan_in_uniform(weight: torch.Tensor) -> None:
    """U(±1/√fan_in), torch's own for convolutions and linear layers."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def layout_of(family: str, layouts: dict[int, dict], resolution: int) -> dict:
    """The published layout of a picture size.

    Raises:
        ValueError: there is none.
    """
    if resolution not in layouts:
        raise ValueError(f"there is no {family} layout of {resolution} px; known: {', '.join(map(str, layouts))}")
    return layouts[resolution]


def up(x: torch.Tensor) -> torch.Tensor:
    """`[B, C, H, W]` → `[B, C, 2H, 2W]`, nearest."""
    return F.interpolate(x, scale_factor=2)


class PlainGenerator(Checkpointed):
    """`forward` of generators that start from z alone; they make `z_dim`, `resolution`, `num_classes`, `stem`, `body`.

    `stem(z, labels)` gives the first feature map, `body(map, z, labels)` the picture: what feature-level augmentation
    (arXiv 2103.00397) perturbs lies between them.
    """

    has_styles = False
    num_classes: int | None = None
    _supports_gradient_checkpointing = True

    def forward(self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool | None = None):
        """Generate images.

        Args:
            latents: z `[B, z_dim]`.
            class_labels: int64 `[B]`, of class-conditional networks.
            return_dict: None: the images alone; False: a tuple and True: a `NetworkOutput`, as in diffusers.

        Returns:
            `[B, 3, R, R]` in [−1, 1].

        Raises:
            ValueError: latents or labels of another shape, or labels out of range.
        """
        if latents.ndim != 2 or latents.shape[1] != self.z_dim:
            raise ValueError(f"latents of shape {tuple(latents.shape)} are not z [B, {self.z_dim}]")
        labels = check_labels(class_labels, len(latents), self.num_classes)
        labels = None if labels is None else labels.to(latents.device)
        return answer(self.body(self.stem(latents, labels), latents, labels), None, return_dict)

    def layer_resolution(self, path: str) -> int:
        """See `StyleGenerator.layer_resolution`; 0 for what comes before the first map."""
        block = block_resolution(path)
        return (0 if path in ("linear", "shared", "embedding") else self.resolution) if block is None else block


class PlainDiscriminator:
    """`forward` of discriminators in two parts; they make `resolution`, `num_classes`, `trunk` and `head`.

    `trunk(images)` gives one vector per image, `head(vectors, labels)` its logit.
    """

    num_classes: int | None = None

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool | None = None):
        """`[B, 3, R, R]` (and labels `[B]`) → logits `[B, 1]`; `return_dict`: see `PlainGenerator.forward`.

        Raises:
            ValueError: images of another shape, or bad labels.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.resolution, self.resolution):
            size = f"[B, 3, {self.resolution}, {self.resolution}]"
            raise ValueError(f"images of shape {tuple(images.shape)} are not {size}; resize them")
        labels = check_labels(class_labels, len(images), self.num_classes)
        labels = None if labels is None else labels.to(images.device)
        return answer(self.head(self.trunk(images), labels), None, return_dict)
