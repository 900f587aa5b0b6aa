"""Many adapters in one generator: which are loaded and how strongly each acts. Stored weights are never written.

A *look* is `{adapter name: weight}`. A weight is a number α, or a schedule `{resolution: α}` over depth.
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import nn

from ..hub import embedded_bases, is_repo_id
from ..models.layers import Adaptation, adaptable_layers, adapted
from ..ops.weight_cache import tensors_version
from ..utils.hashing import fingerprint
from ..utils.locks import SharedLock
from ..utils.offloading import execution_device
from .base import Adapter, Factors
from .blend import BlendAdapter
from .copies import bank_state, restore_bank
from .effective import LayerBlend, RowBlend, RowVectors, bookkeeping
from .fusing import Fusing
from .spec import LayerSpec

BASE = "__base__"  # the unadapted generator, wherever an adapter may be named
CACHE_BYTES = 512 * 2**20  # effective weights kept of looks besides the one that acts
CACHE_LAYERS = 10_000
NAMED_RESOLUTIONS = {"coarse": 4, "middle": 16, "fine": 64}  # StyleGAN §3.1, arXiv 1812.04948
ADAPTER_NAME = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*"  # can name a folder

Weight = float | Mapping[int | str, float]
Look = Mapping[str, Weight]


class AdapterBank(Fusing):
    """The adapters of one generator.

    The current look (`activate`) acts on whoever calls the generator. `using` blocks act on their own thread alone, so
    that threads can draw different looks at the same time. Of two banks of one generator the look that was chosen last
    acts outside of such blocks.

    Args:
        model: a generator with `AdaptableLayer`s.
        cache_bytes: how much may be kept for looks besides the one that acts, so that switching back is immediate.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = CACHE_BYTES):
        super().__init__()
        self.model, self.cache_bytes = model, cache_bytes
        self.adapters: dict[str, Adapter] = {}
        self.active: dict[str, Weight] = {}
        self.enabled = True
        self._layers = dict(adaptable_layers(model))
        self._factors: dict[str, dict[str, Factors]] = {}
        self._cache: OrderedDict[tuple, LayerBlend] = OrderedDict()  # (path, (name, α), …)
        self._ledger = [0]
        self.weights_lock = SharedLock()  # shared by who draws, exclusive to who writes the generator's weights
        self._compiled_draw: Mapping[str, Adaptation] | None = None  # acts while a compiled network draws
        self._fingerprint: tuple | None = None  # stamps of the weights, and theirs
        self._install()

    __getstate__, __setstate__ = bank_state, restore_bank

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
        adapter.to(execution_device(self.model))
        with bookkeeping:
            self._forget(name)
            self.adapters[name], self._factors[name] = adapter, adapter.factors()
            self._install()

    def fingerprint(self) -> str:
        """`fingerprint(model)`, computed anew only after a weight changed."""
        if (known := self.known_fingerprint()) is None:
            known = fingerprint(self.model)
            self.remember_fingerprint(known)
        return known

    def known_fingerprint(self) -> str | None:
        """The fingerprint, if it need not be computed."""
        if self._fingerprint is None or (stamp := self._weights_stamp()) is None or stamp != self._fingerprint[0]:
            return None
        return self._fingerprint[1]

    def remember_fingerprint(self, value: str) -> None:
        """Take `value` for the fingerprint until a weight changes: that of the weights before they were cast."""
        self._fingerprint = self._weights_stamp(), value

    def _weights_stamp(self) -> tuple | None:
        """See `tensors_version`. After a cast the weights as stored have no fingerprint: then moves do not count."""
        with torch.inference_mode(False):  # the weights are the same there
            if self.model.dtype == torch.float32:
                return tensors_version(list(self.model.state_dict(keep_vars=True).values()))
            parameters = list(self.model.parameters())
            if any(parameter.is_meta for parameter in parameters):
                return ()  # offloaded: nobody writes to them
            stamps = tensors_version(parameters)
        return None if stamps is None else tuple((id(p), *s[2:]) for p, s in zip(parameters, stamps[1:], strict=True))

    @staticmethod
    def _way_out(adapter: Adapter) -> str:
        base = adapter.config.base_model_name_or_path
        if not base:
            return "load the base it was made for"
        if base in embedded_bases() or is_repo_id(base) or Path(base).is_dir():
            return f"load its base with FewShotGAN.from_pretrained({base!r})"
        return f"its base {base!r} is not on this machine; get it from whoever made the adapter"

    def remove(self, *names: str) -> None:
        """Unload adapters and free what was computed with them.

        Other active ones go on. If none of these is left, the first loaded one acts, with a warning, as in PEFT.

        Raises:
            ValueError: there is none of such a name; then none is unloaded.
        """
        self.refuse_while_fused("delete an adapter")
        with bookkeeping:
            self.check(dict.fromkeys(names, 1.0))
            deleted = [name for name in names if name in self.active]
            active = {name: weight for name, weight in self.active.items() if name not in names}
            for name in names:
                del self.adapters[name], self._factors[name]
                self._forget(name)
            if deleted and not active and self.adapters:
                active = {next(iter(self.adapters)): 1.0}
                warnings.warn(
                    f"{', '.join(map(repr, deleted))} was active and is deleted; {next(iter(active))!r} is active now",
                    stacklevel=3,
                )
            self.active = active
            self._install()

    def activate(self, look: Look) -> None:
        """Let exactly these adapters act, each with its weight (any number: 0 = off, beyond 0…1 extrapolates).

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        self.refuse_while_fused("switch adapters")
        with bookkeeping:
            self.check(look)
            self.active, self.enabled = dict(look), True
            self._install()

    def enable(self, enabled: bool = True) -> None:
        """Switch all active adapters off without forgetting which they are, or on again."""
        self.refuse_while_fused("switch adapters")
        with bookkeeping:
            self.enabled = enabled
            self._install()

    @contextmanager
    def using(self, look: Look):
        """Let `look` act in this thread for the duration of a `with` block."""
        with self.using_rows([look]):
            yield

    @contextmanager
    def using_rows(self, looks: Sequence[Look]):
        """One look per row of the batch, in this thread, for the duration of a `with` block; a single one is for all.

        Rows with the same weights at a layer are convolved together if they lie side by side: see `row_order`. In
        float32 a row equals its solo run to 1e-4; in half precision both round, and differ by that.

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        with self._acting(self._of_rows(self._resolve(looks))):
            yield

    @contextmanager
    def drawing(self, looks: Sequence[Look] | None, compiled: bool = False):
        """Hold the weights and the looks as they are now while a batch of batches is drawn in this thread.

        Args:
            looks: one per row; None: what acts now, on all rows.
            compiled: a compiled network draws, which sees the attributes of layers alone; other draws wait meanwhile.

        Yields:
            A function from the numbers of the rows of a batch to the context in which to draw it.
        """
        with self.weights_lock.exclusive() if compiled else self.weights_lock.shared():
            resolved = None if looks is None else self._resolve(looks)
            current = self._current_adaptations() if looks is None else {}

            def batch(rows: Sequence[int]):
                acting = current if resolved is None else self._of_rows([resolved[i] for i in rows])
                return self._installed(acting) if compiled else self._acting(acting)

            yield batch

    def _current_adaptations(self) -> dict[str, Adaptation | None]:
        with bookkeeping:
            if any(layer.active_adaptation() is not layer.adaptation for layer in self._layers.values()):
                # inside a `using` block
                return {path: layer.active_adaptation() for path, layer in self._layers.items()}
            return self._unwritten if self.fused is not None else self._blends_of(self.current())

    def _resolve(self, looks: Sequence[Look]) -> list[dict[str, LayerBlend]]:
        """What each look makes of the layers now, by path; later changes of the bank do not reach it."""
        self.refuse_while_fused("switch adapters")
        resolved = []
        with bookkeeping:
            for i, look in enumerate(looks):
                if i and look == looks[i - 1]:
                    resolved.append(resolved[-1])
                else:
                    self.check(look)
                    resolved.append(self._blends_of(look))
        return resolved

    def _of_rows(self, resolved: Sequence[dict[str, LayerBlend]]) -> dict[str, Adaptation]:
        """Path → what acts there if the rows of a batch have these looks, or all of them the only one."""
        runs: list[list] = []
        for blends in resolved:
            if runs and runs[-1][0] == blends:
                runs[-1][1] += 1
            else:
                runs.append([blends, 1])
        acting = {}
        for path in self._layers:
            here = [(blends.get(path), count) for blends, count in runs]
            if any(blend is not None for blend, _ in here):
                acting[path] = here[0][0] if len(here) == 1 else RowBlend(here)
        with bookkeeping:
            self._trim(acting)
        return acting

    @contextmanager
    def _installed(self, acting: Mapping[str, Adaptation]):
        """Put `acting` into the attributes that a compiled network sees; the current look comes back afterwards."""
        with bookkeeping:
            self._compiled_draw = acting
            self._install()
        try:
            self.refresh()
            yield
        finally:
            with bookkeeping:
                self._compiled_draw = None
                self._install()

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
    def _acting(self, acting: Mapping[str, Adaptation]):
        try:
            with adapted({layer: acting.get(path) for path, layer in self._layers.items()}):
                yield
        finally:
            with bookkeeping:
                self._trim({})

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
                layer.adaptation(*layer.stored())

    def cached_bytes(self) -> int:
        """Bytes of effective weights kept, the acting ones included."""
        return self._ledger[0]

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
        """Let the current look act on whoever is in no `using` block; a compiled draw that is under way ends first."""
        if self._compiled_draw is not None:
            acting = self._compiled_draw
        else:
            acting = self._unwritten if self.fused is not None else self._blends_of(self.current())
        for path, layer in self._layers.items():
            layer.adaptation = acting.get(path)
        self._trim({})

    def _trim(self, acting: Mapping[str, Adaptation]) -> None:
        """Bound what is kept of looks besides `acting` and the one that acts outside of `using` blocks."""
        if self._ledger[0] <= self.cache_bytes and len(self._cache) <= CACHE_LAYERS:
            return
        adaptations = [*acting.values(), *(layer.adaptation for layer in self._layers.values())]
        used = {id(blend) for each in adaptations if each is not None for blend in each.blends()}
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
