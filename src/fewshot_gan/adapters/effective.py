"""What acts at one layer: a blend of adapters, different ones per row of a batch, or vectors that no adapter holds.

Several threads may call the same object; what is cached in it is replaced as a whole.
"""

import threading

import torch

from ..models.layers import AdaptableLayer, Adaptation, EffectiveWeight
from ..ops import RowWeights, filter_energy
from ..ops.dispatch import kernels_for
from ..ops.weight_cache import tensors_version
from .base import Factors, combine

bookkeeping = threading.RLock()  # of what all banks keep; held for microseconds


class LayerBlend(Adaptation):
    """Effective weight of one layer under several adapters, kept until something it is made of changes.

    Args:
        layer: whose weight it is.
        parts: `(factors, α)` pairs.
        ledger: `[bytes]` kept by all layers together.
    """

    def __init__(self, layer: AdaptableLayer, parts: list[tuple[Factors, float]], ledger: list[int]):
        self.layer, self.parts, self.ledger = layer, parts, ledger
        self._tensors = [tensor for factors, _ in parts for tensor in factors.tensors()]
        self._kept: tuple | None = None  # stamp and value, which other threads must see together
        self._value, self._bytes = None, 0

    def __getstate__(self) -> dict:  # a copy has other tensors, for which nothing is cached
        return {**self.__dict__, "_kept": None, "_value": None, "_bytes": 0, "ledger": [0]}

    def blends(self) -> list["LayerBlend"]:
        return [self]

    def tensors(self) -> list[torch.Tensor]:
        return self._tensors

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        if torch.compiler.is_compiling():
            return self._value  # `refresh` made it: the compiled network takes it like an input
        if any(tensor.device != weight.device for tensor in self._tensors):
            self._follow(weight.device)
        made_of = [weight, *self._tensors] if bias is None else [weight, bias, *self._tensors]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in made_of):
            return self._compute(weight, bias)
        stamp, kept = tensors_version(made_of), self._kept
        if stamp is not None and kept is not None and kept[0] == stamp:
            return kept[1]
        self.forget()
        value = self._by_kernel(weight, bias) or self._compute(weight, bias)
        if self.layer.demodulation == "runtime" and value.energy is None:
            norm_weight = value.weight if value.norm_weight is None else value.norm_weight
            energy = self.layer.cached_energy(weight) if norm_weight is weight else filter_energy(norm_weight)
            value = value._replace(energy=energy)
        given = {tensor.data_ptr() for tensor in made_of}
        own = {id(t): t for t in value if t is not None and t.data_ptr() not in given}
        with bookkeeping:
            self.forget()  # what another thread made meanwhile
            self._kept, self._value = (stamp, value), value
            self._bytes = sum(t.numel() * t.element_size() for t in own.values())
            self.ledger[0] += self._bytes
        return value

    def _follow(self, device: torch.device) -> None:
        """Move what the adapters hold for this layer to where its weight is: offloading moves the network alone."""
        with bookkeeping:
            for factors, _ in self.parts:
                factors.to(device)
            self._tensors = [tensor for factors, _ in self.parts for tensor in factors.tensors()]

    def forget(self, for_good: bool = False) -> None:
        """Free what is kept; `for_good`: and keep no account of what comes."""
        with bookkeeping:
            self.ledger[0] -= self._bytes
            self._kept, self._value, self._bytes = None, None, 0
            self.ledger = [0] if for_good else self.ledger

    def _by_kernel(self, weight, bias) -> EffectiveWeight | None:
        """`_compute` of one whole adapter by a kernel that measures the weight too, where there is one."""
        factors, alpha = self.parts[0]
        if len(self.parts) > 1 or alpha != 1 or weight.ndim != 4 or (kernels := kernels_for(weight)) is None:
            return None
        with torch.autocast(weight.device.type, enabled=False):
            if (change := factors.change()) is None:
                return None
            adapted, energy = kernels.modulate_weight(weight, **change)
        return EffectiveWeight(adapted, bias, norm_weight=weight if "gain" in change else None, energy=energy)

    def _compute(self, weight, bias) -> EffectiveWeight:
        with torch.autocast(weight.device.type, enabled=False):
            weight, bias, input_scale, output_scale, filter_scale = combine(self.parts, weight, bias)
            if filter_scale is None and (input_scale is None or output_scale is None):
                return EffectiveWeight(weight, bias, input_scale, output_scale)
            scale = 1 if filter_scale is None else filter_scale
            if input_scale is not None:
                scale = scale + (input_scale - 1)[:, None, None]
            if output_scale is not None:
                scale = scale + (output_scale - 1)[:, None, None, None]
            return EffectiveWeight(weight * scale.to(weight.dtype), bias, norm_weight=weight)


class RowBlend(Adaptation):
    """Effective weights of one layer for a batch whose rows have different looks.

    Args:
        runs: `(LayerBlend or None for the stored weight, number of rows)`, in the order of the batch.
    """

    def __init__(self, runs: list[tuple[LayerBlend | None, int]]):
        self.runs = runs

    def blends(self) -> list[LayerBlend]:
        return [blend for blend, _ in self.runs if blend is not None]

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for blend in self.blends() for tensor in blend.tensors()]

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        made = [(EffectiveWeight(weight, bias) if b is None else b(weight, bias), n) for b, n in self.runs]
        if weight.ndim not in (2, 4):  # small: one for every row
            weights, norm_weights = _per_row(made, 0, weight), None
        else:
            runs = []  # neighbours that share a weight share a run
            for e, n in made:
                if runs and runs[-1][0] is e.weight and runs[-1][1] is e.norm_weight:
                    runs[-1][2] += n
                else:
                    runs.append([e.weight, e.norm_weight, n])
            weights, norm_weights, counts = (tuple(column) for column in zip(*runs, strict=True))
            if len(counts) == 1:
                weights, norm_weights = weights[0], norm_weights[0]
            else:
                own_norm = any(n is not None for n in norm_weights)
                weights, norm_weights = (
                    RowWeights(weights, counts),
                    RowWeights(norm_weights, counts) if own_norm else None,
                )
        scales = [None, None]
        if weight.ndim == 4:
            scales = [_per_row(made, i, weight.new_ones(weight.shape[dim])) for i, dim in ((2, 1), (3, 0))]
        return EffectiveWeight(weights, None if bias is None else _per_row(made, 1, bias), *scales, norm_weights)


class RowVectors(Adaptation):
    """Domain vectors of one layer, a row of the batch each.

    Args:
        delta: `[B, C_in]`; the inputs of row b are scaled by 1 + δ_b, after demodulation.
    """

    def __init__(self, delta: torch.Tensor):
        self.delta = delta

    def blends(self) -> list[LayerBlend]:
        return []

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        return EffectiveWeight(weight, bias, input_scale=1 + self.delta)


def _per_row(made, field: int, default: torch.Tensor) -> torch.Tensor | None:
    """One field of the runs' effective weights with a leading B; unchanged if all rows have the same."""
    values = [(e[field], n) for e, n in made]
    first = values[0][0]
    if all(value is first for value, _ in values):
        return first
    return torch.cat([(default if v is None else v).expand(n, *default.shape) for v, n in values])
