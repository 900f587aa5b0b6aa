"""Which properties of a layer an adapter depends on."""

from dataclasses import dataclass

import torch
from torch import nn

from ..models.layers import AdaptableLayer


@dataclass(frozen=True)
class LayerSpec:
    """Properties of a layer that an adapter depends on; `adapter_config.json` holds them for each layer.

    Attributes:
        shape: of the stored weight.
        bias: whether there is one.
        role, demodulation: see `AdaptableLayer`.
    """

    shape: tuple[int, ...]
    bias: bool = False
    role: str = "conv"
    demodulation: str = "none"

    @classmethod
    def of(cls, layer: AdaptableLayer) -> "LayerSpec":
        weight, bias = stored(layer)
        return cls(tuple(weight.shape), bias is not None, layer.role, layer.demodulation)


def stored(layer: AdaptableLayer) -> tuple[torch.Tensor, nn.Parameter | None]:
    """Return stored weight and bias of a layer that has a weight, as all of `adaptable_layers` do.

    Raises:
        ValueError: the layer has no weight.
    """
    weight, bias = layer.stored()
    if weight is None:
        raise ValueError(f"a {type(layer).__name__} without a weight cannot be adapted")
    return weight, bias
