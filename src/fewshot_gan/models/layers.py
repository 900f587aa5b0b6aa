"""Layers shared by the generators, and the one hook through which adapters reach their weights.

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
from ..utils.offloading import fetched, handed_out, is_offloaded
from .labels import check_labels, one_hot
from .network import answer
from .pickling import Picklable


class EffectiveWeight(NamedTuple):
    """What an adaptable layer computes with: its own parameters, or what the active adapters make of them.

    The scales act after demodulation and on convolutions only; None = 1. In a batch of several looks the matrices and
    filters become `RowWeights`, and everything else gets a leading B.
    """

    weight: torch.Tensor | RowWeights  # as stored: [O, I, k, k], [O, I], …
    bias: torch.Tensor | None = None  # [O] or [B, O]
    input_scale: torch.Tensor | None = None  # [I] or [B, I]
    output_scale: torch.Tensor | None = None  # [O] or [B, O]
    norm_weight: torch.Tensor | RowWeights | None = None  # what demodulation takes the norm of; None: of `weight`
    energy: torch.Tensor | None = None  # [O, I]: Σ_κ of its squares in float32, where somebody has them already


class Adaptation:
    """What becomes of one layer: called with its stored weight and bias, it returns the effective ones."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        raise NotImplementedError

    def tensors(self) -> list[torch.Tensor]:
        """What the result depends on besides the arguments, and may be cached for."""
        return []


_adaptations: ContextVar[Mapping["AdaptableLayer", Adaptation | None]] = ContextVar(
    "adaptations", default=MappingProxyType({})
)


@contextmanager
def adapted(adaptations: Mapping["AdaptableLayer", Adaptation | None]):
    """Let layers compute with these adaptations inside a `with` block, in this thread (or asyncio task) alone.

    Args:
        adaptations: layer → its adaptation, None for its stored weight. Layers that are not named keep theirs.
    """
    token = _adaptations.set({**_adaptations.get(), **adaptations})
    try:
        yield
    finally:
        _adaptations.reset(token)


class AdaptableLayer(Picklable):
    """A module that owns a `weight` (and perhaps a `bias`) and computes with an *effective* weight.

    Adapters are functions on weights: `effective()`, the one call in the layer's forward, returns what the acting
    adaptation makes of the stored weight. It is that of the innermost `adapted` block around the call, else the layer's
    own. Every parameter of a generator belongs to exactly one such module, also constants, lone biases and noise
    strengths.

    Attributes:
        adaptation: acts outside of `adapted` blocks, and in compiled networks; None: the stored weight does.
        role: what it does in its network: "mapping", "affine", "linear", "embedding", "conv", "depthwise", "skip" (a
            1×1 shortcut), "to_rgb", "from_rgb", "const", "noise", "norm" or "bias".
        demodulation: "none", "runtime" (norm taken in forward), "folded" (norm already in the stored weight) or
            "spectral" (largest singular value taken in forward).
    """

    role: str = "conv"
    demodulation: str = "none"
    adaptation: Adaptation | None = None

    def __getstate__(self) -> dict:
        """Copies and pickles are of the base: the adapters that act belong to a bank, whose copy acts in the copy."""
        return {name: value for name, value in self.__dict__.items() if name != "adaptation"}

    def stored(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        """Weight and bias; no weight means that there is nothing to adapt."""
        return self.weight, self.bias

    def acting(self) -> Adaptation | None:
        """The adaptation that acts here and now."""
        if torch.compiler.is_compiling():  # a compiled network reads attributes, which it watches for changes
            return self.adaptation
        return _adaptations.get().get(self, self.adaptation)

    def effective(self) -> EffectiveWeight:
        weight, bias = self.stored()
        if (adaptation := self.acting()) is not None:
            return adaptation(weight, bias)
        return EffectiveWeight(weight, bias, energy=self.measured(weight) if self.demodulation == "runtime" else None)

    def measured(self, weight: torch.Tensor) -> torch.Tensor | None:
        """`filter_energy` of a frozen weight, kept until it changes; None: whoever computes with it measures it."""
        return None if needs_grad(weight) or is_traced() else cached(weight, filter_energy)


def one_pass(forward: Callable) -> Callable:
    """Decorate the `forward` of a network: cached tensors are compared with what they were made of once per call."""

    @wraps(forward)
    def checked(self, *args, **kwargs):
        if is_traced() or is_offloaded(self):  # weights that come anew for each call are not known again
            return forward(self, *args, **kwargs)
        tensors = []
        for _, layer in adaptable_layers(self):
            tensors += [tensor for tensor in layer.stored() if tensor is not None]
            if isinstance(adaptation := layer.acting(), Adaptation):  # other callables are not cached
                tensors += adaptation.tensors()
        with compare_once(tensors):
            return forward(self, *args, **kwargs)

    return checked


def adaptable_layers(model: nn.Module) -> Iterator[tuple[str, AdaptableLayer]]:
    """`(module path, layer)` of every adaptable layer of `model`, in definition order."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptableLayer) and module.stored()[0] is not None:
            yield name, module


def block_resolution(path: str) -> int | None:
    """64 of `synthesis.b64.conv0`, None of a path outside of the blocks."""
    block = re.search(r"\bb(\d+)\b", path)
    return None if block is None else int(block[1])


class FullyConnected(AdaptableLayer):
    """Linear layer with equalised learning rate (arXiv 1710.10196 §4.1): the stored weight is unit-variance noise.

    Args:
        in_features: I.
        out_features: O.
        activation: see `ops.bias_act`.
        bias_init: starting value of the bias as used, i.e. after its gain.
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
        x = x * self.weight_gain  # of few numbers, instead of the weight's many
        return bias_act(x, bias * self.bias_gain, activation=self.activation, reuse=True)


class MappingNetwork(nn.Module):
    """z → w of StyleGAN (arXiv 1812.04948); of a class-conditional one z and class → w (arXiv 2006.06676).

    z and the embedding of the class are normalised, each on its own, and joined. `num_layers` fully connected layers
    follow.

    Args:
        z_dim, w_dim: sizes of z and w; a `z_dim` of 0 maps the class alone.
        num_ws: L, how many times w is repeated; None: not at all, and there is no mean w.
        num_layers: depth.
        lr_multiplier: of every layer but the embedding.
        num_classes: how many; None: there are none.
        embed_dim: size of the embedding; None: `w_dim`.
        hidden_dim: width between the layers; None: `w_dim`.

    Raises:
        ValueError: no classes, or no layer that could turn z and embedding into w.
    """

    def __init__(
        self,
        z_dim=512,
        w_dim=512,
        num_ws=18,
        num_layers=8,
        lr_multiplier=0.01,
        num_classes=None,
        embed_dim=None,
        hidden_dim=None,
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
        """Map latents.

        Args:
            z: `[B, z_dim]`.
            truncation_psi: ψ, which pulls the first `truncation_cutoff` ws towards the mean w.
            truncation_cutoff: None = all.
            class_labels: int64 `[B]`, where there are classes.

        Returns:
            `ws` `[B, L, D]`, or w `[B, D]` if L is None.

        Raises:
            ValueError: see `check_labels`.
        """
        parts = [z] if z.shape[1] else []
        labels = check_labels(class_labels, len(z), self.num_classes)
        if labels is not None:
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
    """Truncation trick (arXiv 1812.04948, appendix B): the first `cutoff` of `ws` `[B, L, D]` move towards `w_avg`."""
    if psi == 1:
        return ws
    cutoff = ws.shape[1] if cutoff is None else cutoff
    return torch.cat([w_avg.to(ws.dtype).lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)


def as_ws(latents: torch.Tensor, num_ws: int, w_dim: int) -> torch.Tensor:
    """Accept w `[B, D]` or w+ `[B, L, D]` and return `[B, L, D]`.

    Raises:
        ValueError: any other shape.
    """
    if latents.ndim == 2 and latents.shape[1] == w_dim:
        return latents[:, None].expand(-1, num_ws, -1)
    if latents.ndim == 3 and latents.shape[1:] == (num_ws, w_dim):
        return latents
    raise ValueError(
        f"latents of shape {tuple(latents.shape)} fit neither w [B, {w_dim}] nor w+ [B, {num_ws}, {w_dim}]"
    )


def mix_styles(ws_a: torch.Tensor, ws_b: torch.Tensor, crossover: int | torch.Tensor) -> torch.Tensor:
    """Style mixing (arXiv 1812.04948 §3.1): the first `crossover` of `ws_a`, the rest of `ws_b`.

    Args:
        ws_a, ws_b: `[B, L, D]`.
        crossover: 0 (all from b) to L (all from a), for the batch or one per sample `[B]`.

    Returns:
        `[B, L, D]`.

    Raises:
        ValueError: shapes differ, or the crossover is out of range.
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
    """`forward` of the StyleGAN family; the generator itself makes `mapping`, `synthesis`, `num_ws` and `w_dim`."""

    has_styles = True  # truncation, style mixing, w and w+ exist; False: the picture starts from z alone
    num_classes: int | None = None
    _supports_gradient_checkpointing = True

    @one_pass
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
            class_labels: int64 `[B]`, of class-conditional networks and z alone: w has its class in it.
            truncation_psi: ψ, 1 = none.
            truncation_cutoff: number of leading `ws` truncated; None = all.
            noise_mode: "const", "random" (drawn from `generator`: one, or a list of one per sample) or "none".
            return_features: also return `{"b4": [B, C, 4, 4], "b8": …}`.
            return_dict: None: the images alone; False: a tuple and True: a `NetworkOutput`, as in diffusers.

        Returns:
            `[B, 3, R, R]`, roughly in [−1, 1]; with `return_features` a pair.

        Raises:
            ValueError: latents of another shape, labels of another shape or range, or labels for w.
        """
        ws = self.map_latents(latents, latent_space, truncation_psi, truncation_cutoff, class_labels)
        drawn = self.synthesis(ws, noise_mode, generator, return_features)
        image, features = drawn if return_features else (drawn, None)
        return answer(image, features, return_dict)

    def layer_resolution(self, path: str) -> int:
        """Size of the features that the adaptable layer at `path` works on; 0 for the mapping network."""
        if path.startswith("mapping"):
            return 0
        return block_resolution(path) or (self.resolution if "to_rgb" in path else 4)

    def map_latents(
        self, latents, latent_space="z", truncation_psi=1.0, truncation_cutoff=None, class_labels=None
    ) -> torch.Tensor:
        """z (and class labels), w or w+ → truncated `ws` `[B, L, D]`."""
        if latent_space == "z":
            return self.mapping(latents, truncation_psi, truncation_cutoff, class_labels)
        if class_labels is not None:
            raise ValueError("class_labels belong to z; given w and w+ have their class in them, so leave them out")
        ws = as_ws(latents, self.num_ws, self.w_dim)
        return truncate(ws, fetched(self.mapping, "w_avg"), truncation_psi, truncation_cutoff)


class Noise(AdaptableLayer):
    """Per-pixel noise for a feature map, one image shared by all channels (arXiv 1812.04948 §3.2).

    Args:
        resolution: H = W of the map.
    """

    MODES = ("const", "random", "none")
    role = "noise"

    def __init__(self, resolution: int):
        super().__init__()
        self.register_buffer("const", torch.randn(resolution, resolution))
        self.strength = nn.Parameter(torch.zeros([]))

    def stored(self):
        return self.strength, None

    def forward(self, x: torch.Tensor, mode: str, generator=None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What `bias_act` adds to the features that a batch `x` `[B, …]` becomes: `[H, W]` or `[B, 1, H, W]`, strength.

        "random" draws one map per sample on the CPU so that a seed holds everywhere. `generator` is one
        `torch.Generator`, or a list of one per sample: then a sample does not depend on the batch.
        """
        if mode == "none":
            return None, None
        strength = handed_out(self, self.effective().weight)
        if mode == "const":
            return handed_out(self, self.const), strength
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
    """`ops.bias_act` as a module, like the next two: what `kernels.kernelize` finds by its `kernel_layer_name`.

    It may write into the features that it is given, which nobody else needs in these networks.
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

    kernel_layer_name = "StyleGANUpsample2d"

    def __init__(self, resample_filter: torch.Tensor):
        super().__init__()
        self.register_buffer("resample_filter", resample_filter, persistent=False)

    def forward(self, x):
        return upsample2d(x, self.resample_filter)
