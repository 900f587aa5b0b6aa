"""LoRA: low-rank differences of weights (arXiv 2106.09685), for looks that change more than LeFT's few numbers can.

Shape legend: O/I outputs and inputs, k kernel size, r rank.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..utils.ranges import COUNT, POSITIVE, check_number
from .base import Adapted, Adapter, Factors
from .full import BiasDifference, FullFactors
from .spec import LayerSpec
from .trainable import RankOptions

RATES = {"lora_A": 0.1, "bias_delta": 0.5, "weight_delta": 0.2}  # shares of the learning rate; that of B is 1 (LoRA+)


class LoRAFactors(BiasDifference):
    """Ŵ = W + α/r · B A and b̂ = b + Δb, with A `[r, I, k, k]` and B `[O, r, 1, 1]`; `[r, I]` and `[O, r]` if linear.

    B starts at 0, and A as noise with the spread of W: bases differ in the scale at which they store weights. If W is
    constant the spread is 1, since zeros in both would never learn.
    """

    def __init__(self, spec: LayerSpec, rank: int, scaling: float):
        super().__init__()
        shape, self.scaling = spec.shape, scaling
        ones = (1,) * (len(shape) - 2)
        self.lora_A = nn.Parameter(torch.randn(rank, *shape[1:], dtype=torch.float32, device="cpu") / rank**0.5)
        self.lora_B = nn.Parameter(torch.zeros(shape[0], rank, *ones, dtype=torch.float32, device="cpu"))
        self.add_bias_delta(spec)

    def initialise(self, weight, bias):
        with torch.no_grad():
            self.lora_A.mul_(float(weight.float().std()) or 1.0)

    def forward(self, weight, bias):
        delta = (self.lora_B.flatten(1) @ self.lora_A.flatten(1)).reshape(weight.shape)
        return Adapted(weight + self.scaling * delta, self.shifted(bias))


class LoRAAdapter(Adapter):
    """Low-rank differences of weights (arXiv 2106.09685), with those of biases.

    Parameters, `lora_alpha` and shapes are named as in peft. Layers with fewer numbers than their two factors would
    have, such as depthwise convolutions and biases of feature maps, get a difference of full rank. Identity at
    initialisation.

    Args:
        rank: r ≥ 1.
        lora_alpha: α; None: r, so that the product is not scaled.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.
        latents_shape: shape of `Adapter.latents`, for an adapter of a person; None: it has none.

    Raises:
        ValueError: rank or α out of range.
    """

    adapter_type = "lora"
    Options = RankOptions
    roles = ("affine", "linear", "conv", "depthwise", "skip", "to_rgb", "bias")

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        rank: int = 8,
        lora_alpha: float | None = None,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
        latents_shape: list[int] | None = None,
    ):
        super().__init__()
        check_number("rank", rank, COUNT, whole=True)
        check_number("lora_alpha", rank if lora_alpha is None else lora_alpha, POSITIVE)
        self.rank, self.scaling = rank, (rank if lora_alpha is None else lora_alpha) / rank
        self._build(target_modules, latents_shape)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        outputs, inputs = spec.shape[0] if spec.shape else 1, math.prod(spec.shape[1:])
        if self.rank * (outputs + inputs) >= outputs * inputs:
            return FullFactors(spec)
        return LoRAFactors(spec, self.rank, self.scaling)

    def rate_of(self, name: str) -> float:
        return RATES.get(name.rpartition(".")[2], 1.0)
