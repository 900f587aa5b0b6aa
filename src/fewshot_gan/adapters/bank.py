"""Many adapters in one generator: which are loaded and how strongly each acts. Stored weights are never written.

A *look* is `{adapter name: weight}`. A weight is a number α, or a schedule `{resolution: α}` over depth.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..models.layers import EffectiveWeight, adaptable_layers
from ..ops import RowWeights
from .base import Adapter, Factors, combine, fingerprint
from .blend import BlendAdapter

BASE = "__base__"  # the unadapted generator, wherever an adapter may be named
CACHE_BYTES = 512 * 2**20  # effective weights kept of looks that are not the current one
NAMED_RESOLUTIONS = {"coarse": 4, "middle": 16, "fine": 64}  # StyleGAN §3.1, arXiv 1812.04948
ADAPTER_NAME = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*"  # can name a folder

Weight = float | Mapping[int | str, float]
Look = Mapping[str, Weight]


class LayerBlend:
    """Effective weight of one layer under several adapters, kept until something it is made of changes.

    Args:
        parts: `(factors, α)` pairs.
    """

    def __init__(self, parts: list[tuple[Factors, float]]):
        self.parts = parts
        self._tensors = [tensor for factors, _ in parts for tensor in factors.tensors()]
        self._value, self._stamp = None, None

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        made_of = [weight, *self._tensors] if bias is None else [weight, bias, *self._tensors]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in made_of):
            return self._compute(weight, bias)
        stamp = _stamp(made_of)
        if stamp != self._stamp:
            self._value, self._stamp = self._compute(weight, bias), stamp
        return self._value

    def _compute(self, weight, bias) -> EffectiveWeight:
        weight, bias, input_scale, output_scale, filter_scale = combine(self.parts, weight, bias)
        if filter_scale is None and (input_scale is None or output_scale is None):
            return EffectiveWeight(weight, bias, input_scale, output_scale)
        scale = 1 if filter_scale is None else filter_scale
        if input_scale is not None:
            scale = scale + (input_scale - 1)[:, None, None]
        if output_scale is not None:
            scale = scale + (output_scale - 1)[:, None, None, None]
        return EffectiveWeight(weight * scale.to(weight.dtype), bias, norm_weight=weight)

    def nbytes(self) -> int:
        """Bytes kept, apart from the parts themselves and the stored weight."""
        if self._value is None:
            return 0
        given = {pointer for pointer, *_ in self._stamp[0]}
        kept = {id(t): t for t in self._value if t is not None and t.data_ptr() not in given}
        return sum(t.numel() * t.element_size() for t in kept.values())


def _stamp(tensors: Sequence[torch.Tensor]) -> tuple:
    """Changes when one of `tensors` is replaced, moved, cast or written to."""
    versions = tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors)
    return versions, torch.is_inference_mode_enabled()


class RowBlend:
    """Effective weights of one layer for a batch whose rows have different looks.

    Args:
        runs: `(LayerBlend or None for the stored weight, number of rows)`, in the order of the batch.
    """

    def __init__(self, runs: list[tuple[LayerBlend | None, int]]):
        self.runs = runs

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


def _per_row(made, field: int, default: torch.Tensor) -> torch.Tensor | None:
    """One field of the runs' effective weights with a leading B; unchanged if all rows have the same."""
    values = [(e[field], n) for e, n in made]
    first = values[0][0]
    if all(value is first for value, _ in values):
        return first
    return torch.cat([(default if v is None else v).expand(n, *default.shape) for v, n in values])


class AdapterBank:
    """The adapters of one generator.

    Args:
        model: a generator with `AdaptableLayer`s.
        cache_bytes: how much may be kept for looks that were active before, so that switching back is immediate.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = CACHE_BYTES):
        self.model, self.cache_bytes = model, cache_bytes
        self.adapters: dict[str, Adapter] = {}
        self.active: dict[str, Weight] = {}
        self.enabled = True
        self.fused: list[str] | None = None  # while fused: the layers whose scales could not go into the weights
        self._layers = dict(adaptable_layers(model))
        self._blends: OrderedDict[tuple, dict[str, LayerBlend]] = OrderedDict()  # look: path: blend
        self._originals: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._fingerprint = (None, None)

    def add(self, name: str, adapter: Adapter, replace: bool = False) -> None:
        """Load `adapter` under `name` without activating it.

        Args:
            name: one that a folder could have.
            adapter: made for this generator.
            replace: take the place of one of that name; it acts on if that one did.

        Raises:
            ValueError: the name is taken or none; the adapter was made for another base: layers are missing, shapes
                differ, or the fingerprint does; its numbers are not finite.
        """
        self.refuse_while_fused("load an adapter")
        if name == BASE:
            raise ValueError(f"{BASE!r} names the unadapted generator; choose another adapter_name")
        if not re.fullmatch(ADAPTER_NAME, name):
            raise ValueError(f"adapter name {name!r} cannot be that of a folder (empty, '/', '.x', …); choose another")
        if name in self.adapters and not replace:
            raise ValueError(
                f"an adapter {name!r} is already loaded; give this one another adapter_name, or delete that one first"
            )
        for path, spec in adapter.config.target_modules.items():
            layer = self._layers.get(path)
            shape = None if layer is None else tuple(layer.stored()[0].shape)
            if shape != tuple(spec["shape"]):
                raise ValueError(
                    f"adapter {name!r} does not fit this {type(self.model).__name__}: it adapts {path} of shape "
                    f"{tuple(spec['shape'])}, here {'no such layer' if shape is None else f'shape {shape}'}; "
                    f"{self._way_out(adapter)}"
                )
        wanted = adapter.config.base_fingerprint
        if wanted is not None and wanted != (have := self.fingerprint()):
            raise ValueError(
                f"adapter {name!r} was trained on {adapter.config.base_model_name_or_path!r} (fingerprint {wanted}), "
                f"not on this generator (fingerprint {have}); {self._way_out(adapter)}"
            )
        try:
            adapter.check()
        except ValueError as error:
            raise ValueError(f"adapter {name!r}: {error}") from error
        self._forget(name)
        self.adapters[name] = adapter.to(next(self.model.parameters()).device)
        self._install()

    def fingerprint(self) -> str:
        """`fingerprint(model)`, computed anew only after a weight changed."""
        stamp = _stamp(list(self.model.state_dict(keep_vars=True).values()))
        if stamp != self._fingerprint[0]:
            self._fingerprint = stamp, fingerprint(self.model)
        return self._fingerprint[1]

    @staticmethod
    def _way_out(adapter: Adapter) -> str:
        base = adapter.config.base_model_name_or_path
        return f"load its base with FewShotGAN.from_pretrained({base!r})" if base else "load the base it was made for"

    def remove(self, name: str) -> None:
        """Unload an adapter and free what was computed with it.

        Raises:
            ValueError: there is none of that name.
        """
        self.refuse_while_fused("delete an adapter")
        self.check({name: 1.0})
        del self.adapters[name]
        self.active.pop(name, None)
        self._forget(name)
        self._install()

    def activate(self, look: Look) -> None:
        """Let exactly these adapters act, each with its weight (any number: 0 = off, beyond 0…1 extrapolates).

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        self.refuse_while_fused("switch adapters")
        self.check(look)
        self.active = dict(look)
        self._install()

    def enable(self, enabled: bool = True) -> None:
        """Switch all active adapters off without forgetting which they are, or on again."""
        self.refuse_while_fused("switch adapters")
        self.enabled = enabled
        self._install()

    @contextmanager
    def using(self, look: Look):
        """Activate `look` for the duration of a `with` block."""
        with self.using_rows([look]):
            yield

    @contextmanager
    def using_rows(self, looks: Sequence[Look]):
        """One look per row of the batch for the duration of a `with` block; a single one is for all rows.

        Rows with the same weights at a layer are convolved together if they lie side by side: see `row_order`.

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        self.refuse_while_fused("switch adapters")
        runs: list[list] = []
        for look in looks:
            if runs and runs[-1][0] == look:
                runs[-1][1] += 1
            else:
                self.check(look)
                runs.append([look, 1])
        blends = [(self._blends_of(look), count) for look, count in runs]
        before = {path: layer.adaptation for path, layer in self._layers.items()}
        try:
            for path, layer in self._layers.items():
                here = [(blend.get(path), count) for blend, count in blends]
                if all(blend is None for blend, _ in here):
                    layer.adaptation = None
                else:
                    layer.adaptation = here[0][0] if len(here) == 1 else RowBlend(here)
            yield
        finally:
            for path, layer in self._layers.items():
                layer.adaptation = before[path]

    def current(self) -> Look:
        """The look that acts now."""
        return self.active if self.enabled else {}

    def row_order(self, looks: Sequence[Look]) -> list[int]:
        """Order of rows in which those that can be computed together lie side by side."""
        seen: dict[tuple, int] = {}
        keys = []
        for look in looks:
            key = _key(look)
            changes_weights = not all(self.adapters[name].only_scales for name in look)
            keys.append((changes_weights, seen.setdefault(key, len(seen))))
        return sorted(range(len(looks)), key=keys.__getitem__)

    def fuse(self) -> None:
        """Write what the current look makes of the weights into the network; the originals are kept beside.

        Where adapters scale the channels of a convolution that demodulates as it runs, no weight does the same; that
        layer keeps its adapter (see `fused`).

        Raises:
            ValueError: already fused, or no adapter is active.
        """
        self.refuse_while_fused("fuse again")
        if not self.current():
            raise ValueError("no adapter is active, so there is nothing to fuse; choose one with set_adapters")
        unwritten = []
        with torch.no_grad():
            for path, blend in self._blends_of(self.current()).items():
                layer = self._layers[path]
                weight, bias = layer.stored()
                e = blend(weight, bias)
                scaled = any(part is not None for part in e[2:])
                if scaled and layer.demodulation == "runtime":
                    unwritten.append(path)
                    continue
                new = e.weight
                if e.input_scale is not None:
                    new = new * e.input_scale.to(new.dtype)[:, None, None]
                if e.output_scale is not None:
                    new = new * e.output_scale.to(new.dtype)[:, None, None, None]
                self._originals[path] = weight.detach().clone(), None if bias is None else bias.detach().clone()
                new, new_bias = new.clone(), None if bias is None else e.bias.clone()
                weight.copy_(new)
                if bias is not None:
                    bias.copy_(new_bias)
                layer.adaptation = None
        self.fused = unwritten
        self._blends.clear()

    def unfuse(self) -> None:
        """Undo `fuse`: every weight is again what it was, bit for bit.

        Raises:
            ValueError: nothing is fused.
        """
        if self.fused is None:
            raise ValueError("no adapter is fused; fuse_adapters comes first")
        with torch.no_grad():
            for path, originals in self._originals.items():
                for parameter, original in zip(self._layers[path].stored(), originals, strict=True):
                    if parameter is not None:
                        parameter.copy_(original)
        self._originals, self.fused = {}, None
        self._install()

    def blend(self, look: Look) -> BlendAdapter:
        """`look` as one adapter of its own.

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        self.check(look)
        adapters = [self.adapters[name] for name in look]
        weights = [
            {path: self._layer_weight(weight, path) for path in adapter.config.target_modules}
            for adapter, weight in zip(adapters, look.values(), strict=True)
        ]
        return BlendAdapter.of(adapters, weights)

    def to(self, device) -> None:
        for adapter in self.adapters.values():
            adapter.to(device)
        self._blends.clear()
        if self.fused is None:
            self._install()

    def check(self, look: Look) -> None:
        """Refuse a look of which an adapter is not loaded or a weight is no number.

        Raises:
            ValueError: the first such name, with those that are loaded, or the first such weight.
        """
        for name, weight in look.items():
            if name not in self.adapters:
                loaded = ", ".join(map(repr, self.adapters)) or "none"
                raise ValueError(f"adapter {name!r} is not loaded; loaded: {loaded}; load it with load_adapter")
            schedule = weight if isinstance(weight, Mapping) else {4: weight}
            for resolution, alpha in schedule.items():
                if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                    raise ValueError(f"weight {alpha!r} of adapter {name!r} is no finite number, e.g. 0.5")
                if resolution not in NAMED_RESOLUTIONS and not (isinstance(resolution, int) and resolution >= 0):
                    raise ValueError(
                        f"{resolution!r} in the weights of adapter {name!r} is no resolution; give 0 (mapping), 4, "
                        f"8, … or {', '.join(NAMED_RESOLUTIONS)}"
                    )
            if not schedule:
                raise ValueError(f"the weight schedule of adapter {name!r} is empty; for example {{4: 0.0, 32: 1.0}}")

    def refuse_while_fused(self, action: str) -> None:
        """Refuse what would need the original weights.

        Raises:
            ValueError: adapters are fused.
        """
        if self.fused is not None:
            raise ValueError(
                f"cannot {action} while {', '.join(map(repr, self.active))} is fused; call unfuse_adapters first"
            )

    # ------------------------------------------------------------------ inside

    def _layer_weight(self, weight: Weight, path: str) -> float:
        """α at a layer: of a schedule, the entry of the highest resolution up to the layer's, or its lowest."""
        if not isinstance(weight, Mapping):
            return float(weight)
        schedule = {NAMED_RESOLUTIONS.get(key, key): alpha for key, alpha in weight.items()}
        size = self.model.layer_resolution(path)
        return float(schedule[max((key for key in schedule if key <= size), default=min(schedule))])

    def _blends_of(self, look: Look) -> dict[str, LayerBlend]:
        key = _key(look)
        if key in self._blends:
            self._blends.move_to_end(key)
            return self._blends[key]
        parts: dict[str, list] = {}
        for name, weight in look.items():
            for path, factors in self.adapters[name].factors().items():
                if alpha := self._layer_weight(weight, path):
                    parts.setdefault(path, []).append((factors, alpha))
        blends = {path: LayerBlend(of_layer) for path, of_layer in parts.items()}
        while self._blends and self.cached_bytes() > self.cache_bytes:
            self._blends.popitem(last=False)
        self._blends[key] = blends
        return blends

    def cached_bytes(self) -> int:
        """Bytes of effective weights kept."""
        return sum(blend.nbytes() for blends in self._blends.values() for blend in blends.values())

    def _forget(self, name: str) -> None:
        for key in [key for key in self._blends if any(name == used for used, _ in key)]:
            del self._blends[key]

    def _install(self) -> None:
        blends = self._blends_of(self.current())
        for path, layer in self._layers.items():
            layer.adaptation = blends.get(path)


def _key(look: Look) -> tuple:
    return tuple((name, tuple(w.items()) if isinstance(w, Mapping) else float(w)) for name, w in look.items())
