"""Many adapters in one generator: which are loaded and how strongly each acts. Stored weights are never written.

A *look* is `{adapter name: weight}`. A weight is a number α, or a schedule `{resolution: α}` over depth.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real

import torch
from torch import nn

from ..models.layers import AdaptableLayer, EffectiveWeight, adaptable_layers
from ..ops import RowWeights, filter_energy
from ..ops.dispatch import kernels_for
from ..ops.kept import stamped
from .base import Adapter, Factors, LayerSpec, combine, fingerprint
from .blend import BlendAdapter

BASE = "__base__"  # the unadapted generator, wherever an adapter may be named
CACHE_BYTES = 512 * 2**20  # effective weights kept of looks besides the one that acts
CACHE_LAYERS = 10_000
NAMED_RESOLUTIONS = {"coarse": 4, "middle": 16, "fine": 64}  # StyleGAN §3.1, arXiv 1812.04948
ADAPTER_NAME = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*"  # can name a folder

Weight = float | Mapping[int | str, float]
Look = Mapping[str, Weight]


class LayerBlend:
    """Effective weight of one layer under several adapters, kept until something it is made of changes.

    Args:
        layer: whose weight it is.
        parts: `(factors, α)` pairs.
        ledger: `[bytes]` kept by all layers together.
    """

    def __init__(self, layer: AdaptableLayer, parts: list[tuple[Factors, float]], ledger: list[int]):
        self.layer, self.parts, self.ledger = layer, parts, ledger
        self._tensors = [tensor for factors, _ in parts for tensor in factors.tensors()]
        self._value, self._stamp, self._bytes = None, None, 0

    def blends(self) -> list["LayerBlend"]:
        return [self]

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> EffectiveWeight:
        if torch.compiler.is_compiling():
            return self._value  # `refresh` made it: the compiled network takes it like an input
        made_of = [weight, *self._tensors] if bias is None else [weight, bias, *self._tensors]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in made_of):
            return self._compute(weight, bias)
        stamp = stamped(made_of)
        if stamp is None or stamp != self._stamp:
            self.forget()
            value = self._by_kernel(weight, bias) or self._compute(weight, bias)
            if self.layer.demodulation == "runtime" and value.energy is None:
                of = value.weight if value.norm_weight is None else value.norm_weight
                value = value._replace(energy=self.layer.measured(weight) if of is weight else filter_energy(of))
            self._value, self._stamp = value, stamp
            given = {tensor.data_ptr() for tensor in made_of}
            kept = {id(t): t for t in self._value if t is not None and t.data_ptr() not in given}
            self._bytes = sum(t.numel() * t.element_size() for t in kept.values())
            self.ledger[0] += self._bytes
        return self._value

    def forget(self, for_good: bool = False) -> None:
        """Free what is kept; `for_good`: and keep no account of what comes."""
        self.ledger[0] -= self._bytes
        self._value, self._stamp, self._bytes = None, None, 0
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


class RowBlend:
    """Effective weights of one layer for a batch whose rows have different looks.

    Args:
        runs: `(LayerBlend or None for the stored weight, number of rows)`, in the order of the batch.
    """

    def __init__(self, runs: list[tuple[LayerBlend | None, int]]):
        self.runs = runs

    def blends(self) -> list[LayerBlend]:
        return [blend for blend, _ in self.runs if blend is not None]

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


class RowVectors:
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


class AdapterBank:
    """The adapters of one generator. A second bank of the same generator takes it over until the first acts again.

    Args:
        model: a generator with `AdaptableLayer`s.
        cache_bytes: how much may be kept for looks besides the one that acts, so that switching back is immediate.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = CACHE_BYTES):
        self.model, self.cache_bytes = model, cache_bytes
        self.adapters: dict[str, Adapter] = {}
        self.active: dict[str, Weight] = {}
        self.enabled = True
        self.fused: list[str] | None = None  # while fused: the layers that could not be written
        self._layers = dict(adaptable_layers(model))
        self._factors: dict[str, dict[str, Factors]] = {}
        self._cache: OrderedDict[tuple, LayerBlend] = OrderedDict()  # (path, (name, α), …)
        self._ledger = [0]
        self._overrides: list[dict] = []  # of nested `using` blocks: path: what acts there
        self._originals: dict[str, tuple] = {}
        self._versions: list | None = None  # of what `fuse` wrote; None while it writes, so that it can be undone
        self._fingerprint: tuple = (None, None)
        self._install()

    def add(self, name: str, adapter: Adapter, replace: bool = False) -> None:
        """Load `adapter` under `name` without activating it.

        Args:
            name: one that a folder could have.
            adapter: made for this generator.
            replace: take the place of one of that name; it acts on if that one did.

        Raises:
            ValueError: the name is taken or none; the adapter was made for another base: layers are missing or
                differ, or the fingerprint does; its numbers are not finite.
        """
        self.refuse_while_fused("load an adapter")
        if name == BASE:
            raise ValueError(f"{BASE!r} names the unadapted generator; choose another adapter_name")
        if not isinstance(name, str) or not re.fullmatch(ADAPTER_NAME, name):
            raise ValueError(f"adapter name {name!r} cannot be that of a folder (empty, '/', '.x', …); choose another")
        if name in self.adapters and not replace:
            raise ValueError(
                f"an adapter {name!r} is already loaded; give this one another adapter_name, or delete that one first"
            )
        for path, spec in adapter.config.target_modules.items():
            wanted = LayerSpec(**{**spec, "shape": tuple(spec["shape"])})
            have = LayerSpec.of(self._layers[path]) if path in self._layers else None
            if have != wanted:
                found = "no such layer" if have is None else f"shape {have.shape}"
                if have is not None and have.shape == wanted.shape:
                    found = f"{have.role} with bias {have.bias} and demodulation {have.demodulation!r}"
                raise ValueError(
                    f"adapter {name!r} does not fit this {type(self.model).__name__}: it adapts {path} of shape "
                    f"{wanted.shape}, here {found}; {self._way_out(adapter)}"
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
        self._factors[name] = adapter.factors()
        self._install()

    def fingerprint(self) -> str:
        """`fingerprint(model)`, computed anew only after a weight changed."""
        stamp = stamped(list(self.model.state_dict(keep_vars=True).values()))
        if stamp is None or stamp != self._fingerprint[0]:
            self.remember_fingerprint(fingerprint(self.model))
        return self._fingerprint[1]

    def remember_fingerprint(self, value: str) -> None:
        """Take `value` for the fingerprint until a weight changes: that of the weights before they were cast."""
        self._fingerprint = stamped(list(self.model.state_dict(keep_vars=True).values())), value

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
        del self.adapters[name], self._factors[name]
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
        self.active, self.enabled = dict(look), True
        self._install()

    def enable(self, enabled: bool = True) -> None:
        """Switch all active adapters off without forgetting which they are, or on again."""
        self.refuse_while_fused("switch adapters")
        self.enabled = enabled
        self._install()

    @contextmanager
    def using(self, look: Look):
        """Let `look` act for the duration of a `with` block."""
        with self.using_rows([look]):
            yield

    @contextmanager
    def using_rows(self, looks: Sequence[Look]):
        """One look per row of the batch for the duration of a `with` block; a single one is for all rows.

        Rows with the same weights at a layer are convolved together if they lie side by side: see `row_order`. In
        float32 a row equals its solo run to 1e-4; in half precision both round, and differ by that.

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
        acting = {}
        for path in self._layers:
            here = [(blend.get(path), count) for blend, count in blends]
            if any(blend is not None for blend, _ in here):
                acting[path] = here[0][0] if len(here) == 1 else RowBlend(here)
        with self._acting(acting):
            yield

    @contextmanager
    def using_vectors(self, deltas: Mapping[str, torch.Tensor]):
        """Let domain vectors act in a `with` block, one per row of the batch, that no loaded adapter holds.

        Gradients reach them: a hypernetwork is trained this way. No loaded adapter acts meanwhile.

        Args:
            deltas: module path of a convolution → δ `[B, C_in]`, or `[1, C_in]` for all rows; its inputs are scaled by
                1 + δ after demodulation, as by a `DomainVectorAdapter`.

        Raises:
            ValueError: there is no such convolution, or it has other channels.
        """
        self.refuse_while_fused("switch adapters")
        for path, delta in deltas.items():
            spec = LayerSpec.of(self._layers[path]) if path in self._layers else None
            if spec is None or spec.role not in ("conv", "to_rgb"):
                raise ValueError(
                    f"{type(self.model).__name__} has no convolution {path}; these vectors are of another base"
                )
            if delta.ndim != 2 or delta.shape[1] != spec.shape[1]:
                raise ValueError(f"the vectors of {path} are of shape {tuple(delta.shape)}, not [B, {spec.shape[1]}]")
        with self._acting({path: RowVectors(delta) for path, delta in deltas.items()}):
            yield

    @contextmanager
    def _acting(self, acting: dict):
        self._overrides.append(acting)
        try:
            self._install()
            yield
        finally:
            self._overrides.remove(acting)
            self._install()

    def current(self) -> Look:
        """The look that acts outside of `using` blocks."""
        return self.active if self.enabled else {}

    def row_order(self, looks: Sequence[Look]) -> list[int]:
        """Order of rows in which those that can be computed together lie side by side."""
        seen: dict[tuple, int] = {}
        keys = []
        for look in looks:
            key = tuple((name, tuple(w.items()) if isinstance(w, Mapping) else w) for name, w in look.items())
            changes_weights = not all(self.adapters[name].only_scales for name in look)
            keys.append((changes_weights, seen.setdefault(key, len(seen))))
        return sorted(range(len(looks)), key=keys.__getitem__)

    def fuse(self) -> None:
        """Write what the current look makes of the weights into the network; the originals are kept beside.

        Where adapters scale the channels of a convolution that demodulates as it runs, no weight does the same; that
        layer keeps its adapter (see `fused`), and so does every layer that normalises its weight as it runs.

        Raises:
            ValueError: already fused, or no adapter is active.
        """
        self.refuse_while_fused("fuse again")
        if not self.current():
            raise ValueError("no adapter is active, so there is nothing to fuse; choose one with set_adapters")
        unwritten, originals, fused = {}, {}, {}
        with torch.no_grad():
            for path, blend in self._blends_of(self.current()).items():
                layer = self._layers[path]
                stored = layer.stored()
                e = blend(*stored)
                scales = any(part is not None for part in (e.input_scale, e.output_scale, e.norm_weight))
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
            self._originals, self.fused = originals, list(unwritten)  # from here on unfuse undoes whatever was written
            self._overrides.append(unwritten)
            self._install()
            for path, new in fused.items():
                _write(self._layers[path].stored(), new)
        self._versions = self._written_versions()

    def unfuse(self) -> None:
        """Undo `fuse`: every weight is again what it was, bit for bit.

        Raises:
            ValueError: nothing is fused, or other weights were loaded since.
        """
        if self.fused is None:
            raise ValueError("no adapter is fused; fuse_adapters comes first")
        if self._versions is not None and self._versions != self._written_versions():
            raise ValueError(
                "the weights were written to while adapters were fused, so what was kept no longer belongs to them; "
                "load the base again with FewShotGAN.from_pretrained"
            )
        with torch.no_grad():
            for path, originals in self._originals.items():
                _write(self._layers[path].stored(), originals)
        self._originals, self.fused, self._versions = {}, None, None
        self._overrides.clear()
        self._install()

    def _written_versions(self) -> list[int | None]:
        written = [p for path in self._originals for p in self._layers[path].stored() if p is not None]
        return [None if p.is_inference() else p._version for p in written]

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

    def check(self, look: Look) -> None:
        """Refuse a look of which an adapter is not loaded or a weight is no number.

        Raises:
            ValueError: the first such name, with those that are loaded, or the first such weight.
        """
        for name, weight in look.items():
            if name == BASE:
                raise ValueError(
                    f"{BASE!r} is the generator without adapters; use disable_adapters or set_adapters([])"
                )
            if not isinstance(name, str) or name not in self.adapters:
                loaded = ", ".join(map(repr, self.adapters)) or "none"
                raise ValueError(f"adapter {name!r} is not loaded; loaded: {loaded}; load it with load_adapter")
            schedule = weight if isinstance(weight, Mapping) else {0: weight}
            if not schedule:
                raise ValueError(f"the weight schedule of adapter {name!r} is empty; for example {{4: 0.0, 32: 1.0}}")
            for alpha in schedule.values():
                if isinstance(alpha, bool) or not isinstance(alpha, Real) or not -1e30 < alpha < 1e30:
                    raise ValueError(f"weight {alpha!r} of adapter {name!r} is no finite number, e.g. 0.5")
            resolutions = [_resolution(key) for key in schedule]
            for key, resolution in zip(schedule, resolutions, strict=True):
                if resolution is None:
                    raise ValueError(
                        f"{key!r} in the weights of adapter {name!r} is no resolution; give 0 (mapping), 4, 8, … or "
                        f"{', '.join(NAMED_RESOLUTIONS)}"
                    )
                if resolutions.count(resolution) > 1:
                    raise ValueError(f"the weights of adapter {name!r} name resolution {resolution} twice; drop one")

    def refresh(self) -> None:
        """Bring the acting effective weights up to date, for a compiled network, which cannot tell what changed."""
        for layer in self._layers.values():
            if layer.adaptation is not None:
                layer.effective()

    def cached_bytes(self) -> int:
        """Bytes of effective weights kept, the acting ones included."""
        return self._ledger[0]

    def refuse_while_fused(self, action: str) -> None:
        """Refuse what would need the original weights.

        Raises:
            ValueError: adapters are fused.
        """
        if self.fused is not None:
            fused = ", ".join(map(repr, self.active))
            raise ValueError(f"cannot {action} while {fused} is fused; call unfuse_adapters first")

    def own(self) -> None:
        """Act again if another bank of the same generator has acted since."""
        if self.model.__dict__.get("_acting_bank") is not self._ledger:
            self._install()

    # ------------------------------------------------------------------ inside

    def _layer_weight(self, weight: Weight, path: str) -> float:
        """α at a layer: of a schedule, the entry of the highest resolution up to the layer's, or its lowest."""
        if not isinstance(weight, Mapping):
            return float(weight)
        if not hasattr(self.model, "layer_resolution"):
            raise ValueError(f"{type(self.model).__name__} has no depth to schedule weights over; give one number")
        schedule = {_resolution(key): alpha for key, alpha in weight.items()}
        size = self.model.layer_resolution(path)
        return float(schedule[max((key for key in schedule if key <= size), default=min(schedule))])

    def _blends_of(self, look: Look) -> dict[str, LayerBlend]:
        """Path → blend of the layers that `look` changes; looks share the layers in which they agree."""
        keys: dict[str, list] = {}
        for name, weight in look.items():
            for path in self._factors[name]:
                if alpha := self._layer_weight(weight, path):
                    keys.setdefault(path, [path]).append((name, alpha))
        blends = {}
        for path, key in keys.items():
            key = tuple(key)
            if key not in self._cache:
                parts = [(self._factors[name][path], alpha) for name, alpha in key[1:]]
                self._cache[key] = LayerBlend(self._layers[path], parts, self._ledger)
            self._cache.move_to_end(key)
            blends[path] = self._cache[key]
        return blends

    def _install(self) -> None:
        """Let the innermost `using` block act, or the current look, and bound what is kept of others."""
        acting = self._overrides[-1] if self._overrides else self._blends_of(self.current())
        for path, layer in self._layers.items():
            layer.adaptation = acting.get(path)
        self.model.__dict__["_acting_bank"] = self._ledger
        used = {id(part) for blend in acting.values() for part in blend.blends()}
        for key in list(self._cache):
            if self._ledger[0] <= self.cache_bytes and len(self._cache) <= CACHE_LAYERS:
                break
            if id(self._cache[key]) not in used:
                self._cache.pop(key).forget(for_good=True)

    def _forget(self, name: str) -> None:
        for key in [key for key in self._cache if any(name == used for used, _ in key[1:])]:
            self._cache.pop(key).forget(for_good=True)


def _resolution(key) -> int | None:
    if isinstance(key, str):
        return NAMED_RESOLUTIONS.get(key, int(key) if key.isascii() and key.isdigit() else None)
    return int(key) if isinstance(key, Integral) and not isinstance(key, bool) and key >= 0 else None


def _write(parameters, values) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        if parameter is not None:
            parameter.copy_(value)
