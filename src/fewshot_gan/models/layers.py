"""Layers shared by the generators, and `AdaptableLayer`, through which adapters change weights.

Shape legend: B batch, I/O inputs and outputs of a layer, k kernel size, L number of `ws`, D `w_dim`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import RowWeights, bias_act, by_rows, filter_energy, inverse_haar, upsample2d
from ..ops.channel_scale import needs_grad
from ..ops.dispatch import is_traced
from ..ops.weight_cache import cached, compare_once
from ..utils.offloading import fetch_tensor, is_offloaded, offload_safe
from .labels import check_labels, one_hot
from .network import network_output
from .pickling import Picklable


class EffectiveWeight(NamedTuple):
    """The tensors that an adaptable layer computes with: its own parameters, or the result of the active adapters.

    The scales act after demodulation and on convolutions only; None means 1. If the samples of a batch use different
    adapters, matrices and filters become `RowWeights`, and all other tensors get a leading dimension B.
    """

    weight: torch.Tensor | RowWeights  # as stored: [O, I, k, k], [O, I], …
    bias: torch.Tensor | None = None  # [O] or [B, O]
    input_scale: torch.Tensor | None = None  # [I] or [B, I]
    output_scale: torch.Tensor | None = None  # [O] or [B, O]
    norm_weight: torch.Tensor | RowWeights | None = None  # demodulate with its norm; None: with that of `weight`
    energy: torch.Tensor | None = None  # [O, I] float32: `filter_energy` of that weight if it is at hand

    @property
    def tensor(self) -> torch.Tensor:
        """The weight of a constant, bias, norm or noise strength, which is never `RowWeights`."""
        assert isinstance(self.weight, torch.Tensor)
        return self.weight


class Adaptation:
    """A function from the stored weight and bias of one layer to the effective ones."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        raise NotImplementedError

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors besides the arguments that the result depends on; caches check them for changes."""
        return []


_adaptations: ContextVar[Mapping["AdaptableLayer", Adaptation | None]] = ContextVar(
    "adaptations", default=MappingProxyType({})
)


@contextmanager
def adapted(adaptations: Mapping["AdaptableLayer", Adaptation | None]):
    """Use these adaptations inside a `with` block, in the current thread (or asyncio task) only.

    Args:
        adaptations: layer → its adaptation, or None for its stored weight. Other layers keep their adaptation.
    """
    token = _adaptations.set({**_adaptations.get(), **adaptations})
    try:
        yield
    finally:
        _adaptations.reset(token)


class AdaptableLayer(Picklable):
    """A module that owns a `weight` (and perhaps a `bias`) and computes with an *effective* weight.

    Adapters are functions on weights. The layer's forward calls `effective()`, which applies the active adaptation to
    the stored weight. The innermost `adapted` block around the call sets the active adaptation; without one it is the
    layer's own. Every parameter of a generator belongs to exactly one such module, including constants, single biases
    and noise strengths.

    Attributes:
        adaptation: active outside of `adapted` blocks and in compiled networks; None means the stored weight.
        role: its function in the network: "mapping", "affine", "linear", "embedding", "conv", "depthwise", "skip" (1×1
            shortcut), "to_rgb", "from_rgb", "const", "noise", "norm" or "bias".
        demodulation: "none", "runtime" (divided by the norm in forward), "folded" (the norm is in the stored weight) or
            "spectral" (divided by the largest singular value in forward).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    role: str = "conv"
    demodulation: str = "none"
    adaptation: Adaptation | None = None

    def __getstate__(self) -> dict:
        """Leave out the adaptation: active adapters belong to an `AdapterBank`, whose copy acts in a copied network."""
        return {name: value for name, value in self.__dict__.items() if name != "adaptation"}

    def stored(self) -> tuple[torch.Tensor | None, nn.Parameter | None]:
        """Return stored weight and bias; a weight of None means that there is nothing to adapt."""
        return self.weight, self.bias

    def active_adaptation(self) -> Adaptation | None:
        """Return the adaptation of the innermost `adapted` block, else the layer's own."""
        if torch.compiler.is_compiling():  # a compiled network is recompiled when an attribute changes
            return self.adaptation
        return _adaptations.get().get(self, self.adaptation)

    def effective(self) -> EffectiveWeight:
        """Return the tensors to compute with: stored, or changed by the active adaptation."""
        weight, bias = self.stored()
        assert weight is not None, "this layer has nothing to adapt"
        if (adaptation := self.active_adaptation()) is not None:
            return adaptation(weight, bias)
        energy = self.cached_energy(weight) if self.demodulation == "runtime" else None
        return EffectiveWeight(weight, bias, energy=energy)

    def cached_energy(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Return the cached `filter_energy` of a weight, or None where autograd or a tracer must see it."""
        return None if needs_grad(weight) or is_traced() else cached(weight, filter_energy)


def check_caches_once(forward: Callable) -> Callable:
    """Decorate the `forward` of a network to check its cached tensors for changes once per call, not in every layer."""

    @wraps(forward)
    def checked_forward(self, *args, **kwargs):
        if is_traced() or is_offloaded(self):  # offloaded weights are new tensors in each call, so caches do not help
            return forward(self, *args, **kwargs)
        tensors = []
        for _, layer in adaptable_layers(self):
            tensors += [tensor for tensor in layer.stored() if tensor is not None]
            if isinstance(adaptation := layer.active_adaptation(), Adaptation):  # other callables are not cached
                tensors += adaptation.tensors()
        with compare_once(tensors):
            return forward(self, *args, **kwargs)

    return checked_forward


def adaptable_layers(model: nn.Module) -> Iterator[tuple[str, AdaptableLayer]]:
    """Yield `(module path, layer)` for every adaptable layer of `model`, in definition order."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptableLayer) and module.stored()[0] is not None:
            yield name, module


def block_resolution(path: str) -> int | None:
    """Return 64 for `synthesis.b64.conv0`, and None for a path outside of the blocks."""
    block = re.search(r"\bb(\d+)\b", path)
    return None if block is None else int(block[1])


class FullyConnected(AdaptableLayer):
    """Linear layer with equalised learning rate (arXiv 1710.10196 §4.1): the stored weight starts with unit variance.

    Args:
        in_features: I.
        out_features: O.
        activation: see `ops.bias_act`.
        bias_init: initial value of the bias after its gain.
        lr_multiplier: gain on weight and bias; the stored values are divided by it.
        role: see `AdaptableLayer`.
    """

    def __init__(self, in_features, out_features, activation="linear", bias_init=0.0, lr_multiplier=1.0, role="affine"):
        super().__init__()
        self.role, self.activation = role, activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init) / lr_multiplier))
        self.weight_gain, self.bias_gain = lr_multiplier / in_features**0.5, lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, I] -> [B, O]
        weight, bias, *_ = self.effective()  # scales are for convolutions
        x = by_rows(lambda x, weight: F.linear(x, weight.to(x.dtype)), x, weight)
        x = x * self.weight_gain  # scale activations: fewer values than the weight
        bias = None if bias is None else bias * self.bias_gain
        return bias_act(x, bias, activation=self.activation, reuse=True)


class MappingNetwork(nn.Module):
    """StyleGAN's mapping network from z to w (arXiv 1812.04948), or from z and class to w (arXiv 2006.06676).

    z and the embedding of the class are normalised separately and concatenated, then pass `num_layers` fully connected
    layers.

    Args:
        z_dim, w_dim: sizes of z and w; with a `z_dim` of 0 the class is the only input.
        num_ws: number L of copies of w; None returns a single w and keeps no mean w.
        num_layers: number of fully connected layers.
        lr_multiplier: learning-rate multiplier of all layers but the embedding.
        num_classes: number of classes, or None.
        embed_dim: size of the embedding; None means `w_dim`.
        hidden_dim: width between the layers; None means `w_dim`.

    Raises:
        ValueError: `num_classes` is 0, or there is no layer although the sizes of input and w differ.
    """

    w_avg: torch.Tensor  # [D]

    def __init__(
        self,
        z_dim=512,
        w_dim=512,
        num_ws: int | None = 18,
        num_layers=8,
        lr_multiplier=0.01,
        num_classes: int | None = None,
        embed_dim: int | None = None,
        hidden_dim: int | None = None,
    ):
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: give 1 or more, or None for a network without classes")
        self.num_ws, self.num_layers, self.num_classes = num_ws, num_layers, num_classes
        embed_dim = 0 if num_classes is None else w_dim if embed_dim is None else embed_dim
        if num_classes is not None:
            self.embed = FullyConnected(num_classes, embed_dim, role="embedding")
        widths = [z_dim + embed_dim, *[w_dim if hidden_dim is None else hidden_dim] * (num_layers - 1), w_dim]
        if not num_layers and widths[0] != w_dim:
            raise ValueError(f"num_mapping_layers=0 maps {widths[0]} numbers to themselves, not to w_dim={w_dim}")
        for i in range(num_layers):
            layer = FullyConnected(
                widths[i], widths[i + 1], activation="lrelu", lr_multiplier=lr_multiplier, role="mapping"
            )
            setattr(self, f"fc{i}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: torch.Tensor,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map z and class labels to w.

        Args:
            z: `[B, z_dim]`.
            truncation_psi: ψ; 1 keeps w, 0 replaces the first `truncation_cutoff` ws by the mean w.
            truncation_cutoff: number of ws to truncate; None means all.
            class_labels: int64 `[B]`, if the network has classes.

        Returns:
            `ws` `[B, L, D]`, or w `[B, D]` if L is None.

        Raises:
            ValueError: see `check_labels`.
        """
        parts = [z] if z.shape[1] else []
        labels = check_labels(class_labels, len(z), self.num_classes)
        if labels is not None and self.num_classes is not None:
            parts.append(self.embed(one_hot(labels.to(z.device), self.num_classes, z.dtype)))
        parts = [x * (x.float().square().mean(1, keepdim=True) + 1e-8).rsqrt().to(x.dtype) for x in parts]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.num_ws is None:
            return x
        ws = x[:, None].expand(-1, self.num_ws, -1)
        return truncate(ws, self.w_avg, truncation_psi, truncation_cutoff)


def truncate(ws: torch.Tensor, w_avg: torch.Tensor, psi: float, cutoff: int | None = None) -> torch.Tensor:
    """Truncation trick (arXiv 1812.04948, appendix B): move the first `cutoff` of `ws` `[B, L, D]` towards `w_avg`."""
    if psi == 1:
        return ws
    cutoff = ws.shape[1] if cutoff is None else cutoff
    return torch.cat([w_avg.to(ws.dtype).lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)


def as_ws(latents: torch.Tensor, num_ws: int, w_dim: int) -> torch.Tensor:
    """Return w `[B, D]` or w+ `[B, L, D]` as `[B, L, D]`.

    Raises:
        ValueError: the latents have another shape.
    """
    if latents.ndim == 2 and latents.shape[1] == w_dim:
        return latents[:, None].expand(-1, num_ws, -1)
    if latents.ndim == 3 and latents.shape[1:] == (num_ws, w_dim):
        return latents
    raise ValueError(
        f"latents of shape {tuple(latents.shape)} fit neither w [B, {w_dim}] nor w+ [B, {num_ws}, {w_dim}]"
    )


def mix_styles(ws_a: torch.Tensor, ws_b: torch.Tensor, crossover: int | torch.Tensor) -> torch.Tensor:
    """Mix styles (arXiv 1812.04948 §3.1): take the first `crossover` ws from `ws_a`, the others from `ws_b`.

    Args:
        ws_a, ws_b: `[B, L, D]`.
        crossover: from 0 (all from b) to L (all from a), one for the batch or one per sample `[B]`.

    Returns:
        `[B, L, D]`.

    Raises:
        ValueError: the shapes differ, or the crossover is out of range.
    """
    if ws_a.shape != ws_b.shape:
        raise ValueError(f"cannot mix ws of shapes {tuple(ws_a.shape)} and {tuple(ws_b.shape)}")
    batch, num_ws, _ = ws_a.shape
    crossover = torch.as_tensor(crossover, device=ws_a.device)
    if crossover.shape not in ((), (batch,)) or crossover.min() < 0 or crossover.max() > num_ws:
        raise ValueError(f"crossover is an integer from 0 to {num_ws} or one per sample [{batch}], got {crossover}")
    from_a = torch.arange(num_ws, device=ws_a.device) < crossover.reshape(-1, 1)  # [1 or B, L]
    return torch.where(from_a[..., None], ws_a, ws_b)


class StyleGenerator:
    """Mixin with the `forward` of the StyleGAN family; the generator's `__init__` sets the annotated attributes."""

    mapping: MappingNetwork
    synthesis: nn.Module
    num_ws: int
    w_dim: int
    resolution: int
    has_styles = True  # truncation, style mixing, w and w+ exist; False: z is the only input
    num_classes: int | None = None
    _supports_gradient_checkpointing = True

    @check_caches_once
    def forward(
        self,
        latents: torch.Tensor,
        *,
        latent_space: str = "z",
        class_labels: torch.Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_features: bool = False,
        return_dict: bool | None = None,
    ):
        """Generate images.

        Args:
            latents: z `[B, z_dim]`, w `[B, D]` or w+ `[B, L, D]`.
            latent_space: "z", "w" or "w+"; truncation applies in each.
            class_labels: int64 `[B]` for class-conditional networks, with z only: w includes the class.
            truncation_psi: ψ; 1 means no truncation.
            truncation_cutoff: number of leading `ws` to truncate; None means all.
            noise_mode: "const", "random" or "none".
            generator: source of "random" noise: one generator, or a list of one per sample.
            return_features: also return `{"b4": [B, C, 4, 4], "b8": …}`.
            return_dict: None returns the images; False a tuple and True a `NetworkOutput`, as in diffusers.

        Returns:
            `[B, 3, R, R]`, roughly in [−1, 1]; with `return_features` a pair of images and features.

        Raises:
            ValueError: latents or labels have the wrong shape or range, or labels are given for w.
        """
        ws = self.map_latents(latents, latent_space, truncation_psi, truncation_cutoff, class_labels)
        result = self.synthesis(ws, noise_mode, generator, return_features)
        image, features = result if return_features else (result, None)
        return network_output(image, features, return_dict)

    def layer_resolution(self, path: str) -> int:
        """Return the size of the features that the adaptable layer at `path` works on; 0 for the mapping network."""
        if path.startswith("mapping"):
            return 0
        return block_resolution(path) or (self.resolution if "to_rgb" in path else 4)

    def map_latents(
        self, latents, latent_space="z", truncation_psi=1.0, truncation_cutoff=None, class_labels=None
    ) -> torch.Tensor:
        """Return truncated `ws` `[B, L, D]` for z (and class labels), w or w+."""
        if latent_space == "z":
            return self.mapping(latents, truncation_psi, truncation_cutoff, class_labels)
        if class_labels is not None:
            raise ValueError("class_labels belong to z; given w and w+ have their class in them, so leave them out")
        ws = as_ws(latents, self.num_ws, self.w_dim)
        return truncate(ws, fetch_tensor(self.mapping, "w_avg"), truncation_psi, truncation_cutoff)


class Noise(AdaptableLayer):
    """Per-pixel noise for a feature map, one image shared by all channels (arXiv 1812.04948 §3.2).

    Args:
        resolution: H = W of the map.
    """

    const: torch.Tensor  # [H, W]
    MODES = ("const", "random", "none")
    role = "noise"

    def __init__(self, resolution: int):
        super().__init__()
        self.register_buffer("const", torch.randn(resolution, resolution))
        self.strength = nn.Parameter(torch.zeros([]))

    def stored(self):
        return self.strength, None

    def forward(self, x: torch.Tensor, mode: str, generator=None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the `noise` and `noise_strength` that `bias_act` adds to the features of a batch.

        Args:
            x: `[B, …]`, for the batch size and device.
            mode: "const", "random" or "none". "random" draws one map per sample on the CPU, so that a seed gives the
                same noise on every device.
            generator: one `torch.Generator`, or a list of one per sample, which makes samples independent of the batch.

        Returns:
            noise `[H, W]` or `[B, 1, H, W]` and its strength, or two None.
        """
        if mode == "none":
            return None, None
        strength = offload_safe(self, self.effective().tensor)
        if mode == "const":
            return offload_safe(self, self.const), strength
        if mode != "random":
            raise ValueError(f"unknown noise_mode {mode!r}; known: {', '.join(self.MODES)}")
        size = self.const.shape
        if isinstance(generator, list):
            noise = torch.cat(
                [torch.randn(1, 1, *size, generator=g, dtype=torch.float32, device="cpu") for g in generator]
            )
        else:
            noise = torch.randn(len(x), 1, *size, generator=generator, dtype=torch.float32, device="cpu")
        return noise.to(x.device), strength


class BiasAct(nn.Module):
    """`ops.bias_act` as a module, which `kernels.kernelize` finds by `kernel_layer_name`, like the next two modules.

    It may overwrite its input, which these networks do not read again.
    """

    kernel_layer_name = "StyleGANBiasAct"

    def __init__(self, activation: str = "linear", gain: float | None = None, clamp: float | None = None):
        super().__init__()
        self.activation, self.gain, self.clamp = activation, gain, clamp

    def forward(self, x, bias, noise=None, noise_strength=None):
        options = {"activation": self.activation, "gain": self.gain, "clamp": self.clamp}
        return bias_act(x, bias, noise, noise_strength, reuse=True, **options)


class InverseHaar(nn.Module):
    """`ops.inverse_haar`: `[B, 4C, H, W]` and a style `[B, 4C]` → `[B, C, 2H, 2W]`."""

    kernel_layer_name = "StyleGANInverseHaar"

    def forward(self, x, style=None):
        return inverse_haar(x, style)


class Upsample2d(nn.Module):
    """`ops.upsample2d` with its filter `[T, T]`: `[B, C, H, W]` → `[B, C, 2H, 2W]`."""

    resample_filter: torch.Tensor
    kernel_layer_name = "StyleGANUpsample2d"

    def __init__(self, resample_filter: torch.Tensor):
        super().__init__()
        self.register_buffer("resample_filter", resample_filter, persistent=False)

    def forward(self, x):
        return upsample2d(x, self.resample_filter)
