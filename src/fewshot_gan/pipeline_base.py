"""Loading, saving, uploading, moving and compiling of pipelines whose parts are networks of this package."""

import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.import_utils import is_accelerate_available
from torch import nn

from .adapters import BASE, AdapterBank, fingerprint
from .adapters.copies import share
from .hub import HUB_OPTIONS, PUSH_OPTIONS, resolve_folder
from .hub.base_files import check_index, stored_keys, stored_tensors
from .hub.names import written
from .models.network import evaluating, settle_dtype, stored_weights
from .pipeline_files import by_package, finish_base, without_code
from .utils.files import replacing, user_path
from .utils.offloading import execution_device, has_hooks
from .utils.text import plain

CARD_FACES = 6  # pictures per row on the card of an adapter


class NetworkPipeline(DiffusionPipeline):
    """A diffusers pipeline around a generator and its adapters, whose networks are in evaluation mode."""

    bank: AdapterBank
    _base_name: str | None = None
    _compiled: Callable | None = None  # the generator as `compile` made it
    if TYPE_CHECKING:  # diffusers annotates a plain dict, which has no attributes

        @property
        def config(self) -> Any: ...

    def register_modules(self, **modules) -> None:
        for module in modules.values():
            if isinstance(module, nn.Module):
                module.eval()
        super().register_modules(**modules)

    def register_to_config(self, **settings) -> None:
        """As in diffusers; networks of this package are recorded as `("fewshot_gan", class name)`, see `by_package`."""
        super().register_to_config(**{name: by_package(value) for name, value in settings.items()})

    def __repr__(self) -> str:
        kind, side = type(self.generator).__name__, self.generator.resolution
        return f"{type(self).__name__}(base: {self.base_name or 'made here'}, {kind}, {side} px; {self.bank!r})"

    def __getstate__(self) -> dict:  # copies and pickles cannot hold what torch.compile made
        return {**self.__dict__, "_compiled": None}

    @property
    def base_name(self) -> str | None:
        """Embedded name, folder or Hub repo id that the base was loaded from; None for networks made here."""
        return self._base_name or self.config.get("_name_or_path")

    @base_name.setter
    def base_name(self, name: str | None) -> None:
        self._base_name = name

    @classmethod
    def load_config(cls, *args, **kwargs) -> Any:
        """As in diffusers, but changed so that `from_pretrained` runs no file of the base, see `without_code`."""
        config = super().load_config(*args, **kwargs)
        return without_code(config) if isinstance(config, dict) else config

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> Any:
        """Return a pipeline that shares the networks and adapters of another one, without taking more memory.

        Each pipeline has its own active adapters. With another `generator=` there are no adapters, since they belong
        to the network that they were made for.

        Args:
            pipeline: the other pipeline.
            kwargs: parts and settings that replace those of `pipeline`, and `dtype`, to which the shared networks are
                cast; None leaves them as they are (diffusers casts to float32).

        Raises:
            ValueError: `pipeline` has no generator, or its adapters are fused.
        """
        bank = getattr(pipeline, "bank", None)
        if bank is not None:
            bank.refuse_while_fused("share the generator")
        kwargs["dtype"] = settle_dtype(kwargs) or pipeline.dtype
        names, _ = cls._get_signature_keys(cls)  # diffusers would pass no parts to classes that derive from ours
        parts = {name: part for name, part in pipeline.components.items() if name in names}
        # adapters name the fingerprint from before the cast
        kept = bank.fingerprint() if bank is not None and kwargs["dtype"] != pipeline.dtype else None
        new = super().from_pipe(pipeline, **{**parts, **kwargs})
        if bank is not None and new.generator is pipeline.generator:
            new.base_name = pipeline.base_name
            if kept is not None:
                bank.remember_fingerprint(kept)
            share(bank, new.bank)
        else:
            new.register_to_config(_name_or_path=None)
        return new

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> Self:
        """Load a base generator.

        Args:
            pretrained_model_name_or_path: embedded name ("ffhq"), local folder, or Hub repo id.
            kwargs: `subfolder`; for the Hub `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`;
                and those of diffusers (`dtype`, `variant`, `discriminator=None`, …). The default dtype is float32;
                `torch_dtype` is another name of `dtype`.

        Raises:
            FileNotFoundError: there is no such base, or no network connection; the message lists the embedded bases.
            ValueError: the weights are damaged, `dtype` is no dtype, or it differs from `torch_dtype`.
        """
        root, subfolder = user_path(pretrained_model_name_or_path).resolve(), kwargs.get("subfolder")
        folder = resolve_folder(pretrained_model_name_or_path, **{k: kwargs.pop(k) for k in HUB_OPTIONS if k in kwargs})
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder} is not a base: it has no model_index.json (fewshot-gan convert makes one)"
            )
        kwargs["dtype"] = settle_dtype(kwargs) or torch.float32
        check_index(folder, kwargs)
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())  # else diffusers warns at length
        try:
            pipe = super().from_pretrained(str(folder), **kwargs)
        except Exception as error:  # a damaged config can raise anything inside diffusers
            raise ValueError(f"could not load the base in {folder}: {plain(error)[:500]}") from error
        for name, module in pipe.components.items():
            if module is None or name in kwargs:
                continue
            own = module.state_dict()
            # a .bin file was loaded if there are no safetensors; weights that it lacks are still on "meta"
            stored = stored_keys(folder / name) or {k for k, t in own.items() if not t.is_meta}
            if missing := sorted(own.keys() - stored):
                raise ValueError(f"the {name} in {folder} lacks weights: {plain(', '.join(missing[:8]))}")
            if unknown := sorted(stored - own.keys()):
                names = plain(", ".join(unknown[:8]))
                raise ValueError(f"the {name} in {folder} has weights that it does not know: {names}")
        within = subfolder and folder.resolve().is_relative_to(root)  # of a local folder; a repo's name stays
        pipe.base_name = str(folder) if within else written(pretrained_model_name_or_path)
        if pipe.generator.dtype != torch.float32 and "generator" not in kwargs:
            if stored := stored_tensors(folder / "generator"):  # adapters name the fingerprint from before the cast
                pipe.bank.remember_fingerprint(fingerprint(pipe.generator, stored))
        return pipe

    def save_pretrained(self, save_directory, **kwargs) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the base, with fused adapters in its weights: `model_index.json`, `generator/`, `discriminator/`.

        A base that is already in the folder is replaced at once: a killed process leaves the old one or the new one.
        Small Python files let plain `DiffusionPipeline.from_pretrained(…, trust_remote_code=True)` load the base.

        Args:
            save_directory: folder, made if needed.
            kwargs: those of diffusers, and `push_to_hub`, `repo_id` and the options of `push_to_hub`.

        Raises:
            ValueError: some layers could not be fused, see `AdapterBank.fuse`, so the weights lack part of the look; or
                another pipeline of this generator has fused its adapters.
        """
        self.bank.refuse_weights_fused_elsewhere("save the base")
        if self.bank.fused:
            raise ValueError(
                f"{', '.join(map(repr, self.bank.active))} acts at {len(self.bank.fused)} layers that normalise their "
                "weights as they run (demodulation, spectral norm), which no weights can hold; save the adapter with "
                "save_adapter instead"
            )
        push_to_hub, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", None)
        push_options = {k: kwargs.pop(k) for k in PUSH_OPTIONS if k in kwargs}
        folder, variant = user_path(save_directory), kwargs.get("variant")
        parts = [name for name, network in self.components.items() if network is not None]
        outdated = [f"{name}/{file}" for name in parts for file in stored_weights(folder / name, variant)]
        with replacing(folder, outdated) as staged:
            super().save_pretrained(staged, **kwargs)
            finish_base(staged, self)
        if push_to_hub:
            self.push_to_hub(repo_id or folder.absolute().name, adapter_name=BASE, variant=variant, **push_options)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]  by keyword only, as the other options
        self,
        repo_id: str,
        *,
        adapter_name: str | None = None,
        variant: str | None = None,
        token: bool | str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload an adapter or the base, with a card that shows pictures of it.

        Args:
            repo_id: `owner/name`; created if it does not exist.
            adapter_name: adapter to upload; None: the active one, or the base if no adapter is loaded. "__base__": the
                base.
            variant: of the weights files, e.g. "fp16"; it does not cast, so call `to` first.
            token: with write access; None: the one of `hf auth login`.
            private: whether a new repo is private.
            revision: branch, created if it does not exist; None: main.
            commit_message: None: names the repo.
            create_pr: upload as a pull request.

        Returns:
            Full id of the repo.

        Raises:
            ValueError: the adapter is not loaded, several are active and none is named, there is no token, or the Hub
                refused or cannot be reached.
        """
        from .data.grids import SHEET_TILE, make_grid
        from .hub import push_folder
        from .hub.cards import write_base_card

        pipe: Any = self  # whose `__call__` the class that derives from this one has
        if adapter_name is None and not self.bank.adapters:
            adapter_name = BASE
        name = repo_id.rsplit("/", 1)[-1]
        options = {"token": token, "private": private, "revision": revision, "create_pr": create_pr}
        options["commit_message"] = commit_message or f"Upload {name} with fewshot_gan"
        if adapter_name != BASE:
            adapter_name = pipe._one_adapter(adapter_name)
            grid = None
            if self.bank.fused is None:
                count, person = CARD_FACES, self.bank.adapters[str(adapter_name)].latents
                same = {"seed": 0, "class_labels": pipe.some_labels(count)}
                if person is not None:  # elsewhere its adapter changes nothing
                    count = min(count, len(person))
                    same = {"person": adapter_name}
                rows = [pipe(count, adapter_names=[look] * count, **same).images for look in (BASE, adapter_name)]
                grid = make_grid([image for row in rows for image in row], count, SHEET_TILE)
            options |= {"base": self.base_name, "grid": grid, "variant": variant}
            return self.bank.adapters[str(adapter_name)].push_to_hub(repo_id, **options)
        with tempfile.TemporaryDirectory() as temp:
            self.save_pretrained(temp, variant=variant)
            write_base_card(self, temp, name, repo_id=repo_id)
            pushed = push_folder(temp, repo_id, **options)
        if self.bank.fused is None and (self.base_name is None or Path(self.base_name).exists()):
            self.base_name = pushed  # adapters that are pushed next name it as their base
        return pushed

    def to(self, *args, **kwargs) -> Self:
        """Move the networks to a device and/or dtype, and the loaded adapters to the device (they keep float32)."""
        others = [value for value in (*args, *kwargs.values()) if value != self.generator.dtype]
        cast = any(isinstance(value, torch.dtype) for value in others)
        # adapters name the fingerprint from before the cast
        kept = self.bank.fingerprint() if cast and self.bank.fuser[0] is None else None
        with self.bank.moving():
            super().to(*args, **kwargs)
        self.bank.to(self._execution_device)
        if kept is not None:
            self.bank.remember_fingerprint(kept)
        return self

    def compile(self, **options) -> Self:
        """Compile the generator with `torch.compile`; later calls of the pipeline use the compiled one.

        The first picture of each batch size, and of each combination of looks in a batch, takes about a minute.
        Switching between adapters of one type compiles nothing again. On a CPU it needs a C++ compiler and may be
        slower than uncompiled: measure. Calls with `noise_mode="random"` run uncompiled. `generator` itself stays as it
        is.

        Args:
            options: of `torch.compile`, e.g. `mode="max-autotune"` for one batch size on a GPU.

        Returns:
            The pipeline itself.
        """
        self._compiled = torch.compile(self.generator, **options)
        return self

    @property
    def _execution_device(self) -> torch.device:
        """Device on which the generator computes, also while it is offloaded."""
        return execution_device(self.generator)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None):
        """As in diffusers; the device "cpu" is accepted too, which shows offloading on a machine without a GPU."""
        fingerprint_before = self.bank.known_fingerprint()
        if device is None or torch.device(device).type != "cpu":
            super().enable_sequential_cpu_offload(gpu_id, device)  # pyright: ignore[reportArgumentType]  None is a GPU
        else:  # diffusers would ask for "cpu:0", which accelerate takes for a GPU-like device
            from accelerate import cpu_offload

            self.remove_all_hooks()
            for part in self.components.values():
                if isinstance(part, nn.Module):
                    cpu_offload(part, torch.device("cpu"))
        if fingerprint_before is not None:
            self.bank.remember_fingerprint(fingerprint_before)

    def remove_all_hooks(self) -> None:
        fingerprint_before = self.bank.known_fingerprint()
        super().remove_all_hooks()
        if fingerprint_before is not None:
            self.bank.remember_fingerprint(fingerprint_before)


def drawing(method):
    """Decorate a method of a pipeline that draws: it runs in evaluation mode, whatever mode the generator is in.

    In training mode a picture would depend on its batch (batch normalisation), and drawing would change the network.
    Adapters are not fused meanwhile. While the generator is offloaded or compiled, threads take turns, and a generator
    that is offloaded as a whole is moved back afterwards.
    """

    @wraps(method)
    def draw(pipe, *args, **options):
        # model offloading removes and makes its hooks anew after each call; this attribute stays meanwhile
        alone = getattr(pipe, "_offload_device", None) is not None or has_hooks(pipe.generator)
        lock = pipe.bank.weights_lock
        with evaluating(pipe.generator), lock.exclusive() if alone or pipe._compiled is not None else lock.shared():
            drawn = method(pipe, *args, **options)
            pipe.maybe_free_model_hooks()
        return drawn

    return draw
