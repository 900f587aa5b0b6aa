"""Adapters in the weights of a generator, and the weights of before put back."""

from contextlib import contextmanager

import torch

from ..ops.weight_cache import tensors_version
from ..utils.offloading import refuse_offloaded


class Fusing:
    """The part of an `AdapterBank` that writes into the generator, while nobody draws with it."""

    def __init__(self):
        self.fused: list[str] | None = None  # while fused: the layers that could not be written
        self._unwritten: dict = {}  # while fused: path: what acts there beside the weights
        self._originals: dict[str, tuple] = {}  # path: weight and bias of before
        self._fused_stamp: tuple | None = None  # of what `fuse` wrote; None while it writes, so that it can be undone
        self._mark: str | None = None  # the fingerprint of before

    def fuse(self, safe: bool = False) -> None:
        """Write what the current look makes of the weights into the network; the originals are kept beside.

        Where adapters scale the channels of a convolution that demodulates as it runs, no weight does the same; that
        layer keeps its adapter (see `fused`), and so does every layer that normalises its weight as it runs.

        Args:
            safe: write nothing if a weight would not be a finite number.

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
        unwritten, originals, fused = {}, {}, {}
        with _writing():
            for path, blend in self._blends_of(self.current()).items():
                layer = self._layers[path]
                stored = layer.stored()
                e = blend(*stored)
                scales = any(part is not None for part in (e.input_scale, e.output_scale, e.norm_weight))
                if safe:
                    self._refuse_infinite(path, stored[0].dtype, [part for part in e[:4] if part is not None])
                if layer.demodulation == "spectral" or (layer.demodulation == "runtime" and scales):
                    unwritten[path] = blend
                    continue
                weight = e.weight
                if e.input_scale is not None:
                    weight = weight * e.input_scale.to(weight.dtype)[:, None, None]
                if e.output_scale is not None:
                    weight = weight * e.output_scale.to(weight.dtype)[:, None, None, None]
                originals[path] = tuple(None if p is None else p.detach().clone() for p in stored)
                fused[path] = weight, e.bias
                if safe:
                    self._refuse_infinite(path, stored[0].dtype, [weight])
            self._mark = self.known_fingerprint()
            self._originals, self.fused = originals, list(unwritten)  # from here on unfuse undoes whatever was written
            self._unwritten = unwritten
            self._install()
            for path, new in fused.items():
                _write(self._layers[path].stored(), new)
        self._fused_stamp = self._written_stamp()

    def _refuse_infinite(self, path: str, dtype: torch.dtype, parts: list[torch.Tensor]) -> None:
        if not all(torch.isfinite(part.to(dtype)).all() for part in parts):
            raise ValueError(
                f"with {', '.join(map(repr, self.current()))} the weights of {path} would not be finite in {dtype}; "
                "nothing was written. Lower the adapters' weights, or load the base in float32"
            )

    def unfuse(self) -> None:
        """Undo `fuse`: every weight is again what it was, bit for bit.

        Raises:
            ValueError: nothing is fused, or other weights were loaded since.
        """
        with self.weights_lock.exclusive():
            self._unfuse()

    def _unfuse(self) -> None:
        if self.fused is None:
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
        if self._mark is not None:  # of the weights before they were cast, perhaps
            self.remember_fingerprint(self._mark)
        self._install()

    def _written_stamp(self) -> list[tuple]:
        written = [p for path in self._originals for p in self._layers[path].stored() if p is not None]
        stamps = [tensors_version([p]) for p in written]
        return [() if stamp is None else stamp[1:] for stamp in stamps]  # the mode in which it was taken aside

    def refuse_while_fused(self, action: str) -> None:
        """Refuse what would need the original weights.

        Raises:
            ValueError: adapters are fused.
        """
        if self.fused is not None:
            fused = ", ".join(map(repr, self.active))
            raise ValueError(f"cannot {action} while {fused} is fused; call unfuse_adapters first")


@contextmanager
def _writing():
    """No gradients, and no inference mode, in which writes to a weight would leave no trace for what is kept of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _write(parameters, values) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        if parameter is not None:
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():  # such are written to in that mode
                parameter.copy_(value)
