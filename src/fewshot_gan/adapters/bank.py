"""Many adapters in one generator: which are loaded and how strongly each acts. Stored weights are never written."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hub import embedded_base_of, embedded_bases, is_repo_id
from ..models.layers import Adaptation, adaptable_layers, adapted
from ..ops.weight_cache import tensors_version
from ..utils.hashing import fingerprint
from ..utils.locks import SharedLock
from ..utils.offloading import execution_device
from .base import MOST_PHOTOS, Adapter, Factors
from .blend import BlendAdapter
from .copies import bank_state, restore_bank
from .effective import BankAdaptation, LayerBlend, RowBlend, bank_lock, row_adaptations
from .fusing import Fusing
from .looks import BASE, Look, Weight, check_weight, row_order, shown_look, weight_at
from .spec import LayerSpec, stored

CACHE_BYTES = 512 * 2**20  # of effective weights cached for looks besides the active one
CACHE_LAYERS = 10_000
ADAPTER_NAME = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*"  # can name a folder


class AdapterBank(Fusing):
    """The adapters of one generator.

    The current look (`activate`) acts on every thread that calls the generator outside of a `using` block. A `using`
    block acts on its own thread only, so that threads can draw different looks at the same time. If two banks share a
    generator, the look that was chosen last acts outside of such blocks.

    Args:
        model: a generator with `AdaptableLayer`s.
        cache_bytes: bytes of effective weights that may be cached for looks besides the active one; switching back to
            a cached look computes nothing.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = CACHE_BYTES):
        super().__init__()
        self.model, self.cache_bytes = model, cache_bytes
        self.adapters: dict[str, Adapter] = {}
        self.active: dict[str, Weight] = {}
        self.enabled, self._ledger = True, [0]
        self._layers = dict(adaptable_layers(model))
        self._factors: dict[str, dict[str, Factors]] = {}
        self._cache: OrderedDict[tuple, LayerBlend] = OrderedDict()  # keys: (path, (adapter name, α), …)
        self.weights_lock = SharedLock()  # shared while drawing, exclusive while the generator's weights are written
        self._compiled_draw: Mapping[str, Adaptation | None] | None = None  # acts while a compiled network draws
        self._mark: list[tuple | None] = [None]  # (stamp of the weights, their fingerprint); shared like `fuser`
        self._install()

    def __getstate__(self) -> dict:
        return bank_state(self)

    def __setstate__(self, state: dict) -> None:
        restore_bank(self, state)

    def add(self, name: str, adapter: Adapter, replace: bool = False) -> None:
        """Load `adapter` under `name` without activating it.

        Args:
            name: a name that a folder could have.
            adapter: made for this generator.
            replace: replace the adapter of that name; the new one is active if the old one was.

        Raises:
            ValueError: the name is taken or invalid; the adapter was made for another base, i.e. layers are missing or
                differ, or the fingerprint differs; a value of the adapter is not finite.
        """
        self.refuse_while_fused("load an adapter")
        self.check_name(name, replace)
        if embedded_base_of(adapter.config.base_fingerprint):  # names the base; of another size no layer would fit
            self._check_base(name, adapter)
        for path, spec in adapter.config.target_modules.items():
            wanted = LayerSpec(**{**spec, "shape": tuple(spec["shape"])})
            own = LayerSpec.of(self._layers[path]) if path in self._layers else None
            if own != wanted:
                difference = "no such layer" if own is None else f"shape {own.shape}"
                if own is not None and own.shape == wanted.shape:
                    difference = f"{own.role} with bias {own.bias} and demodulation {own.demodulation!r}"
                raise ValueError(
                    f"adapter {name!r} does not fit this {type(self.model).__name__}: it adapts {path} of shape "
                    f"{wanted.shape}, here {difference}; {self._way_out(adapter)}"
                )
        self._check_base(name, adapter)
        self._check_latents(name, adapter)
        try:
            adapter.check()
        except ValueError as error:
            raise ValueError(f"adapter {name!r}: {error}") from error
        adapter.to(execution_device(self.model))  # pyright: ignore[reportArgumentType]  diffusers' wrapper hides self
        with bank_lock:
            self._forget(name)
            self.adapters[name], self._factors[name] = adapter, adapter.factors()
            self._install()

    def check_name(self, name: str, replace: bool = False) -> None:
        """Refuse a name under which no adapter can be loaded; see `add`.

        Raises:
            ValueError: the name is taken or invalid.
        """
        if name == BASE:
            raise ValueError(f"{BASE!r} names the unadapted generator; choose another adapter_name")
        if not isinstance(name, str) or not re.fullmatch(ADAPTER_NAME, name):
            raise ValueError(f"adapter name {name!r} cannot be that of a folder (empty, '/', '.x', …); choose another")
        if name in self.adapters and not replace:
            raise ValueError(
                f"an adapter {name!r} is already loaded; give this one another adapter_name, or delete that one first"
            )

    def _check_latents(self, name: str, adapter: Adapter) -> None:
        """Refuse latents of photos that this generator cannot draw.

        Raises:
            ValueError: they have another shape than w or w+ of this generator, or are too many.
        """
        if adapter.latents is None:
            return
        model: Any = self.model
        shape = tuple(adapter.latents.shape)
        known = [(model.w_dim,), (model.num_ws, model.w_dim)] if getattr(model, "has_styles", False) else []
        if shape[1:] not in known or shape[0] > MOST_PHOTOS:
            takes = " or ".join(str(["P", *size]).replace("'", "") for size in known) or "none"
            raise ValueError(
                f"adapter {name!r} holds latents of shape {list(shape)}, and this {type(model).__name__} takes "
                f"{takes}, P at most {MOST_PHOTOS}; the file is damaged or of another base: fetch it again"
            )

    def _check_base(self, name: str, adapter: Adapter) -> None:
        """Refuse an adapter whose config has the fingerprint of another base.

        Raises:
            ValueError: names that base: an embedded one by its present name.
        """
        mark, called = adapter.config.base_fingerprint, adapter.config.base_model_name_or_path
        if mark is not None and mark != (own_fingerprint := self.fingerprint()):
            known = embedded_base_of(mark)
            also = f", which its config calls {called!r}" if known and called not in (None, known) else ""
            raise ValueError(
                f"adapter {name!r} was trained on {known or called!r} (fingerprint {mark}){also}, not on this "
                f"generator (fingerprint {own_fingerprint}); {self._way_out(adapter)}"
            )

    def fingerprint(self) -> str:
        """Return `fingerprint(model)`; it is computed again only after a weight changed."""
        if (cached := self.known_fingerprint()) is not None:
            return cached
        value = fingerprint(self.model)
        self.remember_fingerprint(value)
        return value

    def known_fingerprint(self) -> str | None:
        """Return the cached fingerprint; None if there is none or a weight changed."""
        stamp, (marked, mark) = self._weights_stamp(), self._mark[0] or (None, None)
        return None if stamp is None or stamp != marked else mark

    def remember_fingerprint(self, value: str) -> None:
        """Cache `value` as the fingerprint until a weight changes; of cast weights it is that of the originals."""
        self._mark[0] = self._weights_stamp(), value

    def _weights_stamp(self) -> tuple | None:
        """Return a stamp that changes with the weights, see `tensors_version`.

        The fingerprint of weights that were cast cannot be computed, so it must survive a move to another device: their
        stamp leaves the memory addresses out.
        """
        with torch.inference_mode(False):  # the stamp depends on the mode, the weights do not
            if self.model.dtype == torch.float32:
                return tensors_version(list(self.model.state_dict(keep_vars=True).values()))
            parameters = list(self.model.parameters())
            if any(parameter.is_meta for parameter in parameters):
                return ()  # offloaded weights are not written to
            stamps = tensors_version(parameters)
        return None if stamps is None else tuple((id(p), *s[2:]) for p, s in zip(parameters, stamps[1:], strict=True))

    @staticmethod
    def _way_out(adapter: Adapter) -> str:
        base = embedded_base_of(adapter.config.base_fingerprint) or adapter.config.base_model_name_or_path
        if not base:
            return "load the base it was made for"
        if base in embedded_bases() or is_repo_id(base) or Path(base).is_dir():
            return f"load its base with FewShotGAN.from_pretrained({base!r})"
        return f"its base {base!r} is not on this machine; get it from whoever made the adapter"

    def remove(self, *names: str) -> None:
        """Unload adapters and free the weights cached for them.

        Other active adapters stay active. If none is left, the first loaded one becomes active, with a warning, as in
        PEFT.

        Raises:
            ValueError: a name is not loaded; then no adapter is unloaded.
        """
        self.refuse_while_fused("delete an adapter")
        with bank_lock:
            self.check(dict.fromkeys(names, 1.0))
            deleted = [name for name in names if name in self.active]
            active: dict[str, Weight] = {name: w for name, w in self.active.items() if name not in names}
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
        """Make exactly these adapters active, each with its weight.

        Args:
            look: `{adapter name: weight}`; any number is allowed, 0 switches an adapter off, values outside of 0…1
                extrapolate.

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        self.refuse_while_fused("switch adapters")
        with bank_lock:
            self.check(look)
            self.active, self.enabled = dict(look), True
            self._install()

    def enable(self, enabled: bool = True) -> None:
        """Switch the active adapters on, or off without forgetting which they are."""
        self.refuse_while_fused("switch adapters")
        with bank_lock:
            self.enabled = enabled
            self._install()

    @contextmanager
    def using(self, look: Look):
        """Let `look` act in this thread for the duration of a `with` block."""
        with self.using_rows([look]):
            yield

    @contextmanager
    def using_rows(self, looks: Sequence[Look]):
        """Let each row of a batch have its own look, in this thread, for the duration of a `with` block.

        Neighbouring rows with the same weights at a layer are convolved together, see `row_order`. In float32 a row
        equals the same image drawn alone to 1e-4; in half precision the two differ by rounding.

        Args:
            looks: one per row, or a single one for all rows.

        Raises:
            ValueError: an adapter is not loaded, or a weight is no number or schedule.
        """
        with self._adapted(self._adaptations_of_rows(self._resolve(looks))):
            yield

    def in_block(self) -> bool:
        """Return whether this thread is inside a block of `using`, `using_rows` or `using_vectors`."""
        return any(layer.active_adaptation() is not layer.adaptation for layer in self._layers.values())

    @contextmanager
    def drawing(self, looks: Sequence[Look] | None, compiled: bool = False):
        """Keep the generator's weights and the looks as they are now while this thread draws several batches.

        Args:
            looks: one per row of all batches together; None: the current look for all rows.
            compiled: a compiled network draws. It reads the `adaptation` attributes of the layers, which all threads
                share, so other draws wait.

        Yields:
            A function that takes the row numbers of a batch and returns the context in which to draw it.

        Raises:
            ValueError: an adapter is not loaded, or adapters are fused by another pipeline of this generator.
        """
        with self.weights_lock.exclusive() if compiled else self.weights_lock.shared():
            self.refuse_weights_fused_elsewhere()
            resolved = None if looks is None else self._resolve(looks)
            current = self._current_adaptations() if looks is None else {}

            def batch_context(rows: Sequence[int]):
                adaptations = current if resolved is None else self._adaptations_of_rows([resolved[i] for i in rows])
                return self._installed(adaptations) if compiled else self._adapted(adaptations)

            yield batch_context

    def _current_adaptations(self) -> Mapping[str, Adaptation | None]:
        """Return module path → adaptation that acts in this thread now."""
        with bank_lock:
            if self.in_block():
                return {path: layer.active_adaptation() for path, layer in self._layers.items()}
            return self._unwritten if self.fused is not None else self._blends_of(self.current())

    def _resolve(self, looks: Sequence[Look]) -> list[dict[str, LayerBlend]]:
        """Return the blends of each look by module path, as they are now: later changes of the bank do not matter."""
        self.refuse_while_fused("switch adapters")
        resolved = []
        with bank_lock:
            for i, look in enumerate(looks):
                if i and look == looks[i - 1]:
                    resolved.append(resolved[-1])
                else:
                    self.check(look)
                    resolved.append(self._blends_of(look))
        return resolved

    def _adaptations_of_rows(self, resolved: Sequence[dict[str, LayerBlend]]) -> dict[str, Adaptation | None]:
        """Return module path → adaptation of a batch.

        Args:
            resolved: blends of each row, see `_resolve`; a single entry is for all rows.
        """
        runs: list[tuple[dict[str, LayerBlend], int]] = []  # neighbouring rows of one look: (blends, number of rows)
        for blends in resolved:
            if runs and runs[-1][0] == blends:
                runs[-1] = blends, runs[-1][1] + 1
            else:
                runs.append((blends, 1))
        adaptations: dict[str, Adaptation | None] = {}
        for path in self._layers:
            layer_runs = [(blends.get(path), count) for blends, count in runs]
            if any(blend is not None for blend, _ in layer_runs):
                adaptations[path] = layer_runs[0][0] if len(layer_runs) == 1 else RowBlend(layer_runs)
        with bank_lock:
            self._trim(adaptations)
        return adaptations

    @contextmanager
    def _installed(self, adaptations: Mapping[str, Adaptation | None]):
        """Set the `adaptation` attributes that a compiled network reads; afterwards restore the current look."""
        self._compiled_draw = adaptations
        try:
            self.refresh()
            yield
        finally:
            with bank_lock:
                self._compiled_draw = None
                self._install()

    @contextmanager
    def using_vectors(self, deltas: Mapping[str, torch.Tensor]):
        """Let predicted numbers act instead of the loaded adapters, for the duration of a `with` block.

        Gradients reach the numbers: this is how a hypernetwork is trained.

        Args:
            deltas: module path → numbers of each row, or of one for all rows. Of a convolution δ `[B, C_in]`, as of a
                `DomainVectorAdapter` after demodulation. Of an affine layer Δw `[B, w_dim]`, as of a `DeltaWAdapter`.
                Of a bias, or a layer that draws RGB, differences `[B, *shape]` of the stored weight.

        Raises:
            ValueError: there is no such layer, or it has another number of channels.
        """
        self.refuse_while_fused("switch adapters")
        with self._adapted(row_adaptations(deltas, self._layers, type(self.model).__name__)):
            yield

    @contextmanager
    def _adapted(self, adaptations: Mapping[str, Adaptation | None]):
        """Let each layer compute with its adaptation by module path, else with its stored weight, in this thread."""
        try:
            with adapted({layer: adaptations.get(path) for path, layer in self._layers.items()}):
                yield
        finally:
            with bank_lock:
                self._trim({})

    def __repr__(self) -> str:
        loaded = ", ".join(f"{name} ({adapter.adapter_type})" for name, adapter in self.adapters.items()) or "none"
        return f"AdapterBank(loaded: {loaded}; active: {shown_look(self.current())})"

    def current(self) -> Look:
        """Return the look that acts outside of `using` blocks."""
        return self.active if self.enabled else {}

    def row_order(self, looks: Sequence[Look]) -> list[int]:
        """Return the order of the rows of a batch in which it is drawn fastest, see `looks.row_order`.

        Raises:
            ValueError: an adapter is not loaded.
        """
        with bank_lock:
            for look in looks:
                self.check(look)
            return row_order(looks, lambda name: self.adapters[name].only_scales)

    def blend(self, look: Look) -> BlendAdapter:
        """Return a new adapter that does the same as `look`; a person in it acts on all pictures.

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
        """Move all loaded adapters to a device."""
        for adapter in self.adapters.values():
            adapter.to(device)

    def check(self, look: Look) -> None:
        """Refuse a look that names an adapter that is not loaded, or a weight that is no number or schedule.

        Raises:
            ValueError: the first such name, with the names that are loaded, or the first such weight.
        """
        for name, weight in look.items():
            if name == BASE:
                raise ValueError(
                    f"{BASE!r} is the generator without adapters; use disable_adapters or set_adapters([])"
                )
            if not isinstance(name, str) or name not in self.adapters:
                loaded = ", ".join(map(repr, self.adapters)) or "none"
                raise ValueError(f"adapter {name!r} is not loaded; loaded: {loaded}; load it with load_adapter")
            check_weight(weight, name)
            if isinstance(weight, Mapping) and getattr(self.model, "layer_resolution", None) is None:
                raise ValueError(f"{type(self.model).__name__} has no depth to schedule weights over; give one number")

    def refresh(self) -> None:
        """Let the layers act as this bank says, with weights up to date: no compiled network can tell that they are."""
        with bank_lock:
            self._install()
        for layer in self._layers.values():
            if layer.adaptation is not None:
                layer.adaptation(*stored(layer))

    def cached_bytes(self) -> int:
        """Return the bytes of effective weights that are cached, those of the active look included."""
        return self._ledger[0]

    # ------------------------------------------------------------------ inside

    def _layer_weight(self, weight: Weight, path: str) -> float:
        """Return α of a weight at the layer at `path`."""
        if not isinstance(weight, Mapping):
            return float(weight)
        model: Any = self.model
        return weight_at(weight, model.layer_resolution(path))

    def _blends_of(self, look: Look) -> dict[str, LayerBlend]:
        """Return module path → blend of the layers that `look` changes; looks that agree at a layer share its blend."""
        parts_by_path: dict[str, list[tuple[str, float]]] = {}
        for name, weight in look.items():
            for path in self._factors[name]:
                if alpha := self._layer_weight(weight, path):
                    parts_by_path.setdefault(path, []).append((name, alpha))
        blends = {}
        for path, named_parts in parts_by_path.items():
            key = (path, *named_parts)
            if key not in self._cache:
                parts = [(self._factors[name][path], alpha) for name, alpha in named_parts]
                self._cache[key] = LayerBlend(self._layers[path], parts, self._ledger)
            self._cache.move_to_end(key)
            blends[path] = self._cache[key]
        return blends

    def _install(self) -> None:
        """Set the `adaptation` of every layer: of the compiled draw that is under way, else of the current look."""
        if self._compiled_draw is not None:
            adaptations = self._compiled_draw
        else:
            adaptations = self._unwritten if self.fused is not None else self._blends_of(self.current())
        for path, layer in self._layers.items():
            layer.adaptation = adaptations.get(path)
        self._trim({})

    def _trim(self, adaptations: Mapping[str, Adaptation | None]) -> None:
        """Drop the blends used longest ago until the cache is within its limits.

        Args:
            adaptations: about to be used, so kept; so is the look that acts outside of `using` blocks.
        """
        if self._ledger[0] <= self.cache_bytes and len(self._cache) <= CACHE_LAYERS:
            return
        in_use = [*adaptations.values(), *(layer.adaptation for layer in self._layers.values())]
        kept = {id(blend) for each in in_use if isinstance(each, BankAdaptation) for blend in each.blends()}
        for key in list(self._cache):
            if self._ledger[0] <= self.cache_bytes and len(self._cache) <= CACHE_LAYERS:
                break
            if id(self._cache[key]) not in kept:
                self._cache.pop(key).forget(for_good=True)

    def _forget(self, name: str) -> None:
        """Drop the blends that an adapter takes part in."""
        for key in [key for key in self._cache if any(name == used for used, _ in key[1:])]:
            self._cache.pop(key).forget(for_good=True)
