"""Layers of generators and discriminators without styles: SNGAN, BigGAN, GP-GAN.

Adapters act on the stored weight, before spectral normalisation.

Shape legend: B batch, I/O inputs and outputs, k kernel size, E size of a condition.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from ..ops import RowWeights, bias_act, by_rows, conv2d
from ..utils.offloading import fetch_tensor
from .checkpointing import Checkpointed
from .labels import check_labels
from .layers import AdaptableLayer, EffectiveWeight, block_resolution
from .network import network_output
from .spectral import LEFT_VECTOR, RIGHT_VECTOR, spectral_norm

POWER_ITERATIONS = 20  # for an adapted weight, starting from the base's singular vectors


class Layer(AdaptableLayer):
    """A layer with a weight, an optional bias and optional spectral normalisation.

    Args:
        shape: shape of the weight; its rows are outputs.
        bias: whether the layer has a bias.
        role: see `AdaptableLayer`.
        eps: epsilon of spectral normalisation (arXiv 1802.05957, torch's parametrisation); None means none.
        init: function that initialises the weight in place; None means `orthogonal`. Biases start at 0 (torch's own
            layers start with random ones).
    """

    parametrizations: nn.ModuleDict

    def __init__(self, shape, bias: bool, role: str, eps: float | None = None, init=None):
        super().__init__()
        self.role = role
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        (init or orthogonal)(self.weight)
        if eps is not None:
            self.demodulation = "spectral"
            spectral_norm(self, eps)

    def stored(self):
        if parametrize.is_parametrized(self, "weight"):  # masked or spectrally normalised
            return fetch_tensor(self.parametrizations["weight"], "original"), self.bias
        return self.weight, self.bias

    def normalised(self) -> EffectiveWeight:
        """Return the tensors to compute with: the effective weight after spectral normalisation."""
        if (adaptation := self.active_adaptation()) is None:
            return EffectiveWeight(self.weight, self.bias)
        if self.demodulation != "spectral":
            return self.effective()
        base, bias = self.stored()
        assert base is not None
        e = adaptation(base, bias)
        if not isinstance(e.weight, RowWeights):
            assert not isinstance(e.norm_weight, RowWeights)
            return e._replace(weight=self._normalise(e.weight, e.norm_weight, base))
        assert not isinstance(e.norm_weight, torch.Tensor)
        norm_weights = [None] * len(e.weight.counts) if e.norm_weight is None else e.norm_weight.weights
        pairs = zip(e.weight.weights, norm_weights, strict=True)
        weights = tuple(self._normalise(weight, norm_weight, base) for weight, norm_weight in pairs)
        return e._replace(weight=RowWeights(weights, e.weight.counts))

    def _normalise(self, weight: torch.Tensor, norm_weight: torch.Tensor | None, base: torch.Tensor) -> torch.Tensor:
        """Divide `weight` by the largest singular value of `norm_weight` (None: of `weight`).

        torch's estimate for the stored weight `base` is multiplied by the ratio of the adapted to the base's singular
        value, so that an adapter without effect is exactly the identity.
        """
        if weight is base:
            return self.weight
        parametrizations = self.parametrizations["weight"]
        assert isinstance(parametrizations, parametrize.ParametrizationList)
        norm = parametrizations[-1]
        u, v = (fetch_tensor(norm, name).to(weight.dtype) for name in (LEFT_VECTOR, RIGHT_VECTOR))
        base = base.detach().to(weight.dtype)
        estimate = u @ base.flatten(1) @ v
        norm_weight = weight if norm_weight is None else norm_weight.to(weight.dtype)
        change = largest_singular_value(norm_weight, u) / largest_singular_value(base, u)
        return weight / (estimate * change)


class Linear(Layer):
    """Linear layer from `[B, I]` to `[B, O]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, role: str = "linear", **options):
        super().__init__((out_features, in_features), bias, role, **options)

    def forward(self, x):
        e = self.normalised()
        return bias_act(by_rows(lambda x, w: F.linear(x, w.to(x.dtype)), x, e.weight), e.bias)


class Conv2d(Layer):
    """Convolution from `[B, I, H, W]` to `[B, O, H, W]`, padded by half a kernel.

    Args:
        in_channels, out_channels: I and O.
        kernel_size: k, odd.
        bias, role, options: see `Layer`.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, bias=True, role="conv", **options):
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), bias, role, **options)

    def forward(self, x):
        e = self.normalised()
        if e.input_scale is not None:
            x = x * e.input_scale.to(x.dtype)[..., None, None]
        x = by_rows(lambda x, w: self.convolve(x, w.to(x.dtype)), x, e.weight)
        if e.output_scale is not None:
            x = x * e.output_scale.to(x.dtype)[..., None, None]
        return bias_act(x, e.bias)

    def convolve(self, x, weight):
        """Convolve with the weight `[O, I, k, k]`, without bias."""
        return conv2d(x, weight, weight.shape[-1] // 2)


class Embedding(Layer):
    """Embedding of class labels int64 `[B]` as `[B, E]`."""

    def __init__(self, num_classes: int, size: int, **options):
        super().__init__((num_classes, size), False, "embedding", **options)

    def forward(self, labels):
        return by_rows(lambda y, weight: F.embedding(y, weight), labels, self.normalised().weight)


class BatchNorm(AdaptableLayer):
    """Batch normalisation (arXiv 1502.03167) with adaptable gain and shift; running statistics stay the base's."""

    role = "norm"

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps, affine=False)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):  # [B, C, H, W] -> the same
        e = self.effective()
        return bias_act(self.norm(x) * e.tensor.to(x.dtype)[..., None, None], e.bias)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain 1 + W_g e and shift W_b e depend on a condition (arXiv 1809.11096).

    Args:
        channels: C.
        size: E.
        norm_eps: epsilon of batch normalisation.
        eps: see `Layer`; for both linear maps.
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

    role = "norm"  # of γ, a scalar

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
        attended = values @ (queries.transpose(1, 2) @ keys).softmax(-1).transpose(1, 2)  # [B, C/2, HW]
        gamma = self.effective().tensor.to(x.dtype).reshape(-1, 1, 1, 1)
        return x + gamma * self.o(attended.view(b, c // 2, h, w))


def largest_singular_value(weight: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the largest singular value of `weight` `[O, …]` as a matrix, by power iteration from `start` `[O]`.

    The gradient is that of uᵀWv with constant u and v.
    """
    matrix, u, v = weight.flatten(1), start, start
    with torch.no_grad():
        for _ in range(POWER_ITERATIONS):
            v = F.normalize(matrix.T @ u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
    return u @ matrix @ v


# Look up functions of `torch.nn.init` at call time: diffusers replaces them by no-ops while it loads a model.


def orthogonal(weight: torch.Tensor) -> None:
    """Initialise with orthogonal rows or columns (arXiv 1312.6120), in float32: half precision has no QR."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        initial = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        nn.init.orthogonal_(initial)
        with torch.no_grad():
            weight.copy_(initial)
    else:
        nn.init.orthogonal_(weight)


def xavier(weight: torch.Tensor) -> None:
    """Initialise with the Xavier uniform distribution (Glorot and Bengio 2010)."""
    nn.init.xavier_uniform_(weight)


def fan_in_uniform(weight: torch.Tensor) -> None:
    """Initialise with U(±1/√fan_in), torch's default for convolutions and linear layers."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def published_layout(family: str, layouts: dict[int, dict], resolution: int) -> dict:
    """Return the published layout of a resolution.

    Raises:
        ValueError: no layout has this resolution.
    """
    if resolution not in layouts:
        raise ValueError(f"there is no {family} layout of {resolution} px; known: {', '.join(map(str, layouts))}")
    return layouts[resolution]


def upsample_nearest(x: torch.Tensor) -> torch.Tensor:
    """Upsample `[B, C, H, W]` to `[B, C, 2H, 2W]`."""
    return F.interpolate(x, scale_factor=2)


class PlainGenerator(Checkpointed):
    """Mixin with the `forward` of generators without styles: `stem` then `body`.

    Feature-level augmentation (arXiv 2103.00397) perturbs the feature map between the two. The generator's `__init__`
    sets the annotated attributes.
    """

    z_dim: int
    resolution: int
    has_styles = False
    num_classes: int | None = None
    _supports_gradient_checkpointing = True

    def stem(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the first feature map `[B, C, 4, 4]` for z `[B, z_dim]` and labels `[B]` or None."""
        raise NotImplementedError

    def body(self, x: torch.Tensor, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return images `[B, 3, R, R]` for the result of `stem`."""
        raise NotImplementedError

    def forward(self, latents: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool | None = None):
        """Generate images.

        Args:
            latents: z `[B, z_dim]`.
            class_labels: int64 `[B]`, for class-conditional networks.
            return_dict: None returns the images; False a tuple and True a `NetworkOutput`, as in diffusers.

        Returns:
            `[B, 3, R, R]` in [−1, 1].

        Raises:
            ValueError: latents or labels have the wrong shape, or labels are out of range.
        """
        if latents.ndim != 2 or latents.shape[1] != self.z_dim:
            raise ValueError(f"latents of shape {tuple(latents.shape)} are not z [B, {self.z_dim}]")
        labels = check_labels(class_labels, len(latents), self.num_classes)
        labels = None if labels is None else labels.to(latents.device)
        return network_output(self.body(self.stem(latents, labels), latents, labels), None, return_dict)

    def layer_resolution(self, path: str) -> int:
        """See `StyleGenerator.layer_resolution`; 0 for layers before the first feature map."""
        block = block_resolution(path)
        return (0 if path in ("linear", "shared", "embedding") else self.resolution) if block is None else block


class PlainDiscriminator:
    """Mixin with the `forward` of discriminators without styles: `trunk` then `head`."""

    resolution: int
    num_classes: int | None = None

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        """Return a feature vector `[B, C]` per image `[B, 3, R, R]`."""
        raise NotImplementedError

    def head(self, vectors: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return logits `[B, 1]` for feature vectors `[B, C]` and labels `[B]` or None."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool | None = None):
        """Return logits `[B, 1]` for images `[B, 3, R, R]` and labels `[B]`.

        `return_dict` is that of `PlainGenerator.forward`.

        Raises:
            ValueError: the images have the wrong shape, or see `check_labels`.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.resolution, self.resolution):
            size = f"[B, 3, {self.resolution}, {self.resolution}]"
            raise ValueError(f"images of shape {tuple(images.shape)} are not {size}; resize them")
        labels = check_labels(class_labels, len(images), self.num_classes)
        labels = None if labels is None else labels.to(images.device)
        return network_output(self.head(self.trunk(images), labels), None, return_dict)
