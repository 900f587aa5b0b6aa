"""What an adapter must know of a layer of its base."""

from dataclasses import dataclass

from ..models.layers import AdaptableLayer


@dataclass(frozen=True)
class LayerSpec:
    """What an adapter must know of a layer: its weight shape, whether it has a bias, role and demodulation."""

    shape: tuple[int, ...]
    bias: bool = False
    role: str = "conv"
    demodulation: str = "none"

    @classmethod
    def of(cls, layer: AdaptableLayer) -> "LayerSpec":
        weight, bias = layer.stored()
        return cls(tuple(weight.shape), bias is not None, layer.role, layer.demodulation)
