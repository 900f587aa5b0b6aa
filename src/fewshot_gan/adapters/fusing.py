"""Fusing: adapters written into the weights of a generator, and the original weights put back."""

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ..models.layers import AdaptableLayer, Adaptation
from ..ops.weight_cache import tensors_version
from ..utils.locks import SharedLock
from ..utils.offloading import refuse_offloaded
from .looks import Look, Weight
from .spec import stored

if TYPE_CHECKING:
    from .effective import LayerBlend


class Fusing:
    """The part of an `AdapterBank` that writes into the generator's weights, while no thread draws with them."""

    # the rest of the bank
    model: nn.Module
    active: dict[str, Weight]
    weights_lock: SharedLock
    _layers: dict[str, AdaptableLayer]
    if TYPE_CHECKING:

        def current(self) -> Look: ...
        def fingerprint(self) -> str: ...
        def remember_fingerprint(self, value: str) -> None: ...
        def _blends_of(self, look: Look) -> dict[str, LayerBlend]: ...
        def _install(self) -> None: ...

    def __init__(self):
        self.fused: list[str] | None = None  # while fused: paths of the layers that could not be written
        self.fuser: list[Fusing | None] = [None]  # the bank that has fused; banks of one generator share this list
        self._unwritten: dict[str, Adaptation] = {}  # while fused: path → the adaptation that still acts there
        self._originals: dict[str, tuple] = {}  # path → original weight and bias
        self._fused_stamp: list | tuple | None = (
            None  # of the written weights; None during a write, which can be undone
        )
        self._fingerprint_before = ""

    def fuse(self, safe: bool = False) -> None:
        """Write the effective weights of the current look into the network, and keep copies of the originals.

        Two kinds of layers keep their adapter beside the weights, see `fused`: those whose adapter scales the channels
        of a convolution that demodulates at run time, which no stored weight can express, and those that normalise
        their weight at run time.

        Args:
            safe: write nothing if a weight would not be finite.

        Raises:
            ValueError: already fused, no adapter is active, or a weight would not be finite.
        """
        with self.weights_lock.exclusive():
            self._fuse(safe)

    def _fuse(self, safe: bool) -> None:
        self.refuse_while_fused("fuse again")
        refuse_offloaded(self.model, "fuse adapters")
        if not self.current():
            raise ValueError("no adapter is active, so there is nothing to fuse; choose one with set_adapters")
        unwritten, originals, fused_values = {}, {}, {}
        with _writing():
            for path, blend in self._blends_of(self.current()).items():
                layer = self._layers[path]
                original = stored(layer)
                effective = blend(*original)
                scales = (effective.input_scale, effective.output_scale, effective.norm_weight)
                has_scales = any(part is not None for part in scales)
                if safe:
                    self._refuse_infinite(path, original[0].dtype, effective[:4])
                if layer.demodulation == "spectral" or (layer.demodulation == "runtime" and has_scales):
                    unwritten[path] = blend
                    continue
                weight = cast(torch.Tensor, effective.weight)  # a blend has one weight for all rows
                if effective.input_scale is not None:
                    weight = weight * effective.input_scale.to(weight.dtype)[:, None, None]
                if effective.output_scale is not None:
                    weight = weight * effective.output_scale.to(weight.dtype)[:, None, None, None]
                originals[path] = tuple(None if p is None else p.detach().clone() for p in original)
                fused_values[path] = weight, effective.bias
                if safe:
                    self._refuse_infinite(path, original[0].dtype, [weight])
            self._fingerprint_before = self.fingerprint()  # also after a cast, which it could not be computed from
            self._originals, self.fused = originals, list(unwritten)  # from here on `unfuse` can undo a partial write
            self._unwritten, self.fuser[0] = unwritten, self
            self._install()
            for path, values in fused_values.items():
                _write(self._layers[path].stored(), values)
        self._fused_stamp = self._written_stamp()

    def _refuse_infinite(self, path: str, dtype: torch.dtype, tensors: Iterable) -> None:
        if not all(torch.isfinite(tensor.to(dtype)).all() for tensor in tensors if tensor is not None):
            raise ValueError(
                f"with {', '.join(map(repr, self.current()))} the weights of {path} would not be finite in {dtype}; "
                "nothing was written. Lower the adapters' weights, or load the base in float32"
            )

    def unfuse(self) -> None:
        """Undo `fuse`: put the original weights back, bit for bit.

        Raises:
            ValueError: nothing is fused, or the weights were written to in the meantime.
        """
        with self.weights_lock.exclusive():
            self._unfuse()

    def _unfuse(self) -> None:
        if self.fused is None:
            self.refuse_while_fused("undo fuse_adapters")
            raise ValueError("no adapter is fused; fuse_adapters comes first")
        refuse_offloaded(self.model, "undo fuse_adapters")
        if self._fused_stamp is not None and self._fused_stamp != self._written_stamp():
            raise ValueError(
                "the weights were written to while adapters were fused, so what was kept no longer belongs to them; "
                "load the base again with FewShotGAN.from_pretrained"
            )
        with _writing():
            for path, originals in self._originals.items():
                _write(self._layers[path].stored(), originals)
        self._originals, self._unwritten, self.fused, self._fused_stamp = {}, {}, None, None
        self.fuser[0] = None
        self.remember_fingerprint(self._fingerprint_before)
        self._install()

    @contextmanager
    def moving(self):
        """Let a `with` block move or cast the weights while adapters are fused: `unfuse` casts what was kept."""
        fuser = self.fuser[0]
        intact = fuser is not None and fuser._fused_stamp == fuser._written_stamp()
        yield
        if intact and fuser is not None:
            fuser._fused_stamp = fuser._written_stamp()

    def _written_stamp(self) -> list[tuple]:
        """Return a stamp that changes when the weights that `fuse` wrote are written to."""
        written = [p for path in self._originals for p in self._layers[path].stored() if p is not None]
        stamps = [tensors_version([p]) for p in written]
        return [() if stamp is None else stamp[1:] for stamp in stamps]  # without the inference mode at index 0

    def refuse_weights_fused_elsewhere(self, action: str = "draw") -> None:
        """Refuse an action with weights into which another bank of this generator has written its adapters.

        Raises:
            ValueError: they are.
        """
        if self.fuser[0] not in (None, self):
            self.refuse_while_fused(action)

    def refuse_while_fused(self, action: str) -> None:
        """Refuse an action that needs the original weights.

        Raises:
            ValueError: adapters are fused.
        """
        if (fuser := self.fuser[0]) is not None:
            fused = ", ".join(map(repr, fuser.active))
            where = "first" if fuser is self else "on the other pipeline of this generator, which fused it"
            raise ValueError(f"cannot {action} while {fused} is fused; call unfuse_adapters {where}")


@contextmanager
def _writing():
    """Write without gradients and outside of inference mode, where writes would not outdate cached tensors."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _write(parameters, values) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        if parameter is not None:
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():  # else torch refuses the write
                parameter.copy_(value)
