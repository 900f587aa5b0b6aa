"""Adaptations of one layer: by a blend of adapters, by different blends per row of a batch, or by domain vectors.

Several threads may call the same object, so cached values are replaced as a whole and never changed in place.

Shape legend: B batch, I/O inputs and outputs of a layer.
"""

import threading
from collections.abc import Mapping
from typing import cast

import torch

from ..models.layers import AdaptableLayer, Adaptation, EffectiveWeight
from ..ops import RowWeights, filter_energy
from ..ops.dispatch import kernels_for
from ..ops.weight_cache import tensors_version
from .base import Factors, combine
from .spec import LayerSpec

bank_lock = threading.RLock()  # guards the looks and caches of all banks; held for microseconds


class BankAdaptation(Adaptation):
    """An adaptation that an `AdapterBank` makes."""

    def blends(self) -> list["LayerBlend"]:
        """Return the blends that it computes with, which the bank's cache then keeps."""
        return []


class LayerBlend(BankAdaptation):
    """Effective weight of one layer under a blend of adapters; cached until a tensor that it depends on changes.

    Args:
        layer: the layer.
        parts: `(factors, α)` of each adapter in the blend.
        ledger: one number, the cached bytes of all layers of a bank together; updated in place.
    """

    def __init__(self, layer: AdaptableLayer, parts: list[tuple[Factors, float]], ledger: list[int]):
        self.layer, self.parts, self.ledger = layer, parts, ledger
        self._tensors = [tensor for factors, _ in parts for tensor in factors.tensors()]
        self._cached: tuple[tuple, EffectiveWeight] | None = None  # (stamp, value): one tuple, so that threads see both
        self._value: EffectiveWeight | None = None  # the cached value alone, which compiled networks read
        self._bytes = 0

    def __getstate__(self) -> dict:  # a copy has tensors of its own, for which nothing is cached
        return {**self.__dict__, "_cached": None, "_value": None, "_bytes": 0, "ledger": [0]}

    def blends(self) -> list["LayerBlend"]:
        return [self]

    def tensors(self) -> list[torch.Tensor]:
        return self._tensors

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        if torch.compiler.is_compiling():  # the value is an input of the compiled network; `refresh` computed it
            return cast(EffectiveWeight, self._value)
        if any(tensor.device != weight.device for tensor in self._tensors):
            self._move_factors(weight.device)
        inputs = [weight, *self._tensors] if bias is None else [weight, bias, *self._tensors]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return self._compute(weight, bias)  # gradients need a fresh graph each time
        stamp, cached = tensors_version(inputs), self._cached
        if stamp is not None and cached is not None and cached[0] == stamp:
            return cached[1]
        self.forget()
        value = self._compute_by_kernel(weight, bias) or self._compute(weight, bias)
        if self.layer.demodulation == "runtime" and value.energy is None:
            norm_weight = cast(torch.Tensor, value.weight if value.norm_weight is None else value.norm_weight)
            energy = self.layer.cached_energy(weight) if norm_weight is weight else filter_energy(norm_weight)
            value = value._replace(energy=energy)
        input_pointers = {tensor.data_ptr() for tensor in inputs}
        fields = [field for field in value if isinstance(field, torch.Tensor)]
        new_tensors = {id(field): field for field in fields if field.data_ptr() not in input_pointers}
        with bank_lock:
            self.forget()  # another thread may have cached a value in the meantime
            if stamp is not None:
                self._cached = stamp, value
            self._value = value
            self._bytes = sum(tensor.numel() * tensor.element_size() for tensor in new_tensors.values())
            self.ledger[0] += self._bytes
        return value

    def _move_factors(self, device: torch.device) -> None:
        """Move the adapters' tensors of this layer to the device of its weight: offloading moves the network only."""
        with bank_lock:
            for factors, _ in self.parts:
                factors.to(device)
            self._tensors = [tensor for factors, _ in self.parts for tensor in factors.tensors()]

    def forget(self, for_good: bool = False) -> None:
        """Free the cached value.

        Args:
            for_good: stop counting later values in the bank's ledger: the bank no longer holds this blend.
        """
        with bank_lock:
            self.ledger[0] -= self._bytes
            self._cached, self._value, self._bytes = None, None, 0
            self.ledger = [0] if for_good else self.ledger

    def _compute_by_kernel(self, weight, bias) -> EffectiveWeight | None:
        """`_compute` by a kernel, which also measures the weight; None where no kernel does what is needed.

        A kernel applies one adapter with α = 1 to the weight of a convolution.
        """
        factors, alpha = self.parts[0]
        if len(self.parts) > 1 or alpha != 1 or weight.ndim != 4 or (kernels := kernels_for(weight)) is None:
            return None
        with torch.autocast(weight.device.type, enabled=False):
            if (change := factors.change()) is None:
                return None
            new_weight, energy = kernels.modulate_weight(weight, **change)
        return EffectiveWeight(new_weight, bias, norm_weight=weight if "gain" in change else None, energy=energy)

    def _compute(self, weight, bias) -> EffectiveWeight:
        with torch.autocast(weight.device.type, enabled=False):
            weight, bias, input_scale, output_scale, filter_scale = combine(self.parts, weight, bias)
            if filter_scale is None and (input_scale is None or output_scale is None):
                return EffectiveWeight(weight, bias, input_scale, output_scale)
            # a scale per filter cannot be applied to the activations: it goes into the weight, but not into the norm
            scale: torch.Tensor | int = 1 if filter_scale is None else filter_scale
            if input_scale is not None:
                scale = scale + (input_scale - 1)[:, None, None]
            if output_scale is not None:
                scale = scale + (output_scale - 1)[:, None, None, None]
            return EffectiveWeight(weight * cast(torch.Tensor, scale).to(weight.dtype), bias, norm_weight=weight)


class RowBlend(BankAdaptation):
    """Effective weights of one layer for a batch whose rows have different looks.

    Args:
        runs: `(blend, number of rows)` in the order of the batch; a blend of None stands for the stored weight.
    """

    def __init__(self, runs: list[tuple[LayerBlend | None, int]]):
        self.runs = runs

    def blends(self) -> list[LayerBlend]:
        return [blend for blend, _ in self.runs if blend is not None]

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for blend in self.blends() for tensor in blend.tensors()]

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        effective = [
            (EffectiveWeight(weight, bias) if blend is None else blend(weight, bias), count)
            for blend, count in self.runs
        ]
        row_bias = None if bias is None else _stack_rows(effective, "bias", bias)
        if weight.ndim not in (2, 4):  # constants, noise strengths, norms: small, so one per row
            return EffectiveWeight(cast(torch.Tensor, _stack_rows(effective, "weight", weight)), row_bias)
        weights, norm_weights = _merge_runs(effective)
        if weight.ndim == 2:
            return EffectiveWeight(weights, row_bias, norm_weight=norm_weights)
        return EffectiveWeight(
            weights,
            row_bias,
            input_scale=_stack_rows(effective, "input_scale", weight.new_ones(weight.shape[1])),
            output_scale=_stack_rows(effective, "output_scale", weight.new_ones(weight.shape[0])),
            norm_weight=norm_weights,
        )


class RowVectors(BankAdaptation):
    """Domain vectors of one layer, one per row of the batch, that no loaded adapter holds.

    Args:
        delta: δ `[B, I]`, or `[1, I]` for all rows; the inputs of row b are scaled by 1 + δ_b, after demodulation.
    """

    def __init__(self, delta: torch.Tensor):
        self.delta = delta

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        return EffectiveWeight(weight, bias, input_scale=1 + self.delta)


class RowShifts(BankAdaptation):
    """Shifts Δw of the input of an affine layer, one per row of the batch, as changes of its bias.

    Args:
        delta: Δw `[B, I]`, or `[1, I]` for all rows; see `DeltaWFactors`.
    """

    def __init__(self, delta: torch.Tensor):
        self.delta = delta

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        shift = self.delta.to(weight.dtype) @ weight.T / weight.shape[1] ** 0.5
        shifted = shift if bias is None else bias + shift
        return EffectiveWeight(weight, shifted[0] if len(shifted) == 1 else shifted)


class RowDifferences(BankAdaptation):
    """Differences of the stored weight of one layer, one per row of the batch.

    Args:
        delta: `[B, *shape]`, or `[1, *shape]` for all rows.
    """

    def __init__(self, delta: torch.Tensor):
        self.delta = delta

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        rows = weight + self.delta.to(weight.dtype)
        if len(rows) == 1:
            return EffectiveWeight(rows[0], bias)
        return EffectiveWeight(RowWeights(tuple(rows), (1,) * len(rows)) if weight.ndim == 4 else rows, bias)


def row_adaptations(
    deltas: Mapping[str, torch.Tensor], layers: Mapping[str, AdaptableLayer], network: str
) -> dict[str, BankAdaptation]:
    """Return what predicted numbers do to layers, by module path.

    Args:
        deltas: see `AdapterBank.using_vectors`.
        layers: module path → layer.
        network: name of their network.

    Raises:
        ValueError: there is no such layer, or it has another number of channels.
    """
    adaptations: dict[str, BankAdaptation] = {}
    for path, delta in deltas.items():
        spec = LayerSpec.of(layers[path]) if path in layers else None
        if spec is None or spec.role not in ("conv", "to_rgb", "affine", "bias"):
            raise ValueError(
                f"{network} has no convolution {path}, nor an affine layer or bias of that name; these vectors are of "
                "another base"
            )
        given = delta.shape[1:]
        if spec.role in ("to_rgb", "bias") and given == spec.shape:
            adaptations[path] = RowDifferences(delta)
        elif spec.role != "bias" and given == spec.shape[1:2]:
            adaptations[path] = RowShifts(delta) if spec.role == "affine" else RowVectors(delta)
        else:
            wanted = ", ".join(map(str, spec.shape if spec.role == "bias" else spec.shape[1:2]))
            raise ValueError(f"the vectors of {path} are of shape {tuple(delta.shape)}, not [B, {wanted}]")
    return adaptations


def _merge_runs(effective: list[tuple[EffectiveWeight, int]]):
    """Return weights and norm weights of a batch; neighbouring runs that share both tensors become one run.

    Returns:
        Each a tensor if all rows share it, else `RowWeights`; the norm weights None if no run has any.
    """
    merged: list[list] = []  # [weight, norm weight, number of rows]
    for values, count in effective:
        if merged and merged[-1][0] is values.weight and merged[-1][1] is values.norm_weight:
            merged[-1][2] += count
        else:
            merged.append([values.weight, values.norm_weight, count])
    weights, norm_weights, counts = (tuple(column) for column in zip(*merged, strict=True))
    if len(counts) == 1:
        return weights[0], norm_weights[0]
    has_norm = any(norm_weight is not None for norm_weight in norm_weights)
    return RowWeights(weights, counts), RowWeights(norm_weights, counts) if has_norm else None


def _stack_rows(effective: list[tuple[EffectiveWeight, int]], field: str, default: torch.Tensor) -> torch.Tensor | None:
    """Return one field of the runs' effective weights with a leading B; as it is if all rows share it.

    Args:
        effective: `(values, number of rows)` of each run.
        field: name of the field of `EffectiveWeight`.
        default: stands for None in the field of a run.
    """
    values = [(getattr(values, field), count) for values, count in effective]
    first = values[0][0]
    if all(value is first for value, _ in values):
        return first
    return torch.cat([(default if v is None else v).expand(n, *default.shape) for v, n in values])
