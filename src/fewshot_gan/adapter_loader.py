"""Methods of a pipeline for adapters, under the names of diffusers and PEFT: load, choose, blend, fuse, save."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from .adapters import BASE, HyperNetwork
from .adapters.bank import ADAPTER_NAME
from .adapters.base import Adapter
from .adapters.io import load_adapter, name_of, refuse_unknown, warn_of_base
from .adapters.looks import parse_look
from .data.images import check_range
from .hub import HUB_OPTIONS, adapter_folders, embedded_base_of, folders_per_base, resolve_folder
from .hub.names import warn_of_namesake
from .pipeline_inputs import as_floats
from .utils.files import user_path

if TYPE_CHECKING:
    from .pipeline_base import NetworkPipeline as Pipeline
else:
    Pipeline = object  # a mixin: the pipeline comes from the other base class


def free_name(source, taken: Iterable[str]) -> str:
    """Return a name for an adapter that is not taken: `name_of`, or this with a number.

    Args:
        source: of the adapter. Of one whose folder has a name that no adapter can have, like ".x", it is "look".
        taken: names that it must not have.
    """
    name, taken = name_of(source) or "", {BASE, *taken}
    name = name if re.fullmatch(ADAPTER_NAME, name) else "look"
    return next(free for free in chain([name], (f"{name}-{i}" for i in count(2))) if free not in taken)


class AdapterMixin(Pipeline):
    """Methods of `FewShotGAN` that load adapters into its `bank`, make them active, and save them."""

    def load_adapter(
        self,
        pretrained_model_name_or_path_or_dict=None,
        adapter_name: str | None = None,
        *,
        hotswap: bool = False,
        **options,
    ) -> Self:
        """Load an adapter and make it the only active one.

        Args:
            pretrained_model_name_or_path_or_dict: embedded name ("sketch", of this pipeline's base), local folder, Hub
                repo id, weights file, zip archive, a state dict (with `config=`, or in a pair with its config), or an
                `Adapter`.
            adapter_name: its name in this pipeline. None: the subfolder or the last part of the path; "default" for an
                `Adapter`; "default_0", "default_1", … for state dicts.
            hotswap: replace the loaded adapter of that name and keep its weight, instead of refusing the name.
            options: of `adapters.io.load_adapter`: `state_dict`, `config`, `variant`, `low_cpu_mem_usage`,
                `torch_device`, `is_trainable`, `dtype` or `torch_dtype`, and of the Hub `subfolder`, `revision`,
                `token`, `cache_dir`, `local_files_only`, `force_download`. The adapter then follows the generator's
                device, and keeps its dtype.

        Returns:
            The pipeline itself, so that calls chain.

        Raises:
            FileNotFoundError: there is no such adapter, or no network connection, and the message lists embedded
                adapters; or only other embedded bases have an adapter of this name.
            ValueError: the adapter is damaged or made for another base, its name is taken, or the folder holds several
                adapters and no `subfolder` is given.
        """
        self.bank.refuse_while_fused("load an adapter")
        refuse_unknown(options, "state_dict", "config", "variant")
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, Adapter):
            if options:
                raise ValueError(f"an Adapter is loaded as it is; {', '.join(options)} are for names and paths")
            adapter, name = source, adapter_name or "default"
        else:
            adapter = load_adapter(self._embedded_folder(source) or source, **options)
            name = adapter_name or name_of(source, options.get("subfolder")) or self._free_name()
        if hotswap and name not in self.bank.adapters:
            raise ValueError(f"hotswap replaces a loaded adapter, but there is no {name!r}; load it without hotswap")
        self.bank.add(name, adapter, replace=hotswap)
        warn_of_base(adapter, name, self.base_name)
        if not hotswap:
            self.bank.activate({name: 1.0})
        return self

    def _free_name(self) -> str:
        names = (f"default_{i}" for i in count(len(self.bank.adapters)))  # as diffusers; one may have been deleted
        return next(name for name in names if name not in self.bank.adapters)

    def _embedded_folder(self, source) -> Path | None:
        """Return the folder of the embedded adapter `source` of this pipeline's base; None for any other source.

        Raises:
            FileNotFoundError: other embedded bases have an adapter of this name, and this base has none.
        """
        if not isinstance(source, str) or not (folders := folders_per_base(source)):
            return None
        base = self.base_name if self.base_name in folders else embedded_base_of(self.bank.fingerprint())
        if base in folders:
            warn_of_namesake(source, "adapter")
            return folders[base]
        if Path(source).exists():
            return Path(source).absolute()  # a path, not the embedded name
        bases, other = " and ".join(map(repr, folders)), next(iter(folders))
        raise FileNotFoundError(
            f"the embedded adapter {source!r} is of {bases}, not of this base; load its base with "
            f"FewShotGAN.from_pretrained({other!r}) (--base {other}), or give the folder or repo of an adapter of "
            "this base"
        )

    def load_adapters(self, pretrained_model_name_or_path, *, variant: str | None = None, **options) -> list[str]:
        """Load all adapters in the subfolders of a folder or repo, under the names of these; either all or none.

        The active adapters stay the same.

        Args:
            pretrained_model_name_or_path: local folder, or Hub repo id.
            variant: of the weights files.
            options: as of `load_adapter`.

        Returns:
            Names of the loaded adapters.

        Raises:
            FileNotFoundError: there is no such folder, or no adapter in it.
            ValueError: as `load_adapter`.
        """
        self.bank.refuse_while_fused("load an adapter")
        refuse_unknown(options)
        hub_options = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        folder = resolve_folder(pretrained_model_name_or_path, kind="adapter", **hub_options)
        if not (folders := adapter_folders(folder)):
            raise FileNotFoundError(f"{str(pretrained_model_name_or_path)!r} holds no adapter folders")
        added = []
        try:
            for name, path in folders.items():
                self.bank.add(name, load_adapter(path, variant=variant, **options))
                added.append(name)
        except BaseException:
            self.bank.remove(*added)
            raise
        for name in added:
            warn_of_base(self.bank.adapters[name], name, self.base_name)
        return added

    def set_adapters(
        self, adapter_names: str | Sequence[str] | Mapping[str, Any], weights=None, *, adapter_weights=None
    ) -> None:
        """Make exactly these loaded adapters active, blended; undoes `disable_adapters`.

        Args:
            adapter_names: a name, a list of names, or `{name: weight}`; an empty list: the base alone.
            weights: one for all adapters, or one per adapter; None: 1. A weight is any number (0 = off, negative and
                above 1 extrapolate), or a schedule over depth: `{"coarse": 0.0, "fine": 1.0}`, `{4: 0.2, 32: 1.0}`. An
                entry holds from its resolution up to the next; "coarse", "middle", "fine" are 4, 16 and 64. The lowest
                entry also holds for all layers below it; 0 is the mapping network.
            adapter_weights: another name of `weights`, as in pipelines of diffusers.

        Raises:
            ValueError: an adapter is not loaded or is named twice, there is not one weight per adapter, or a weight is
                no number or schedule.
        """
        if weights is not None and adapter_weights is not None:
            raise ValueError("weights and adapter_weights are two names of one option; give one")
        self.bank.activate(parse_look(adapter_names, adapter_weights if weights is None else weights))

    def add_weighted_adapter(self, adapter_names: Sequence[str], weights, adapter_name: str) -> None:
        """Load a blend of loaded adapters as a new adapter, which can be saved, shared, or blended again.

        The active adapters stay the same.

        Args:
            adapter_names, weights: as in `set_adapters`.
            adapter_name: name of the new adapter.

        Raises:
            ValueError: as `set_adapters`, or the new name is taken.
        """
        if not (look := parse_look(adapter_names, weights)):
            raise ValueError("add_weighted_adapter blends adapters; name at least one")
        self.bank.refuse_while_fused("load an adapter")
        self.bank.add(adapter_name, self.bank.blend(look))

    def fuse_adapters(
        self, adapter_names: str | Sequence[str] | None = None, weights=None, *, safe_fusing: bool = False
    ) -> None:
        """Write the active adapters into the generator's weights, for speed or to save the result as a new base.

        Copies of the original weights are kept; `unfuse_adapters` puts them back bit for bit. Until then other adapters
        cannot be made active. A fused adapter of a person acts on all pictures, not on those of its photos alone.

        Args:
            adapter_names, weights: adapters to make active first, as in `set_adapters`; None: those that are active,
                with their weights.
            safe_fusing: refuse to write weights that would not be finite; then nothing changes.

        Raises:
            ValueError: adapters are already fused, none is active, `set_adapters` refuses the arguments, `weights` are
                given without `adapter_names`, or weights would not be finite.
        """
        self.bank.refuse_while_fused("fuse again")
        if adapter_names is None and weights is not None:
            raise ValueError(f"weights={weights!r} belong to adapter_names; name the adapters, or leave weights out")
        before = self.bank.active, self.bank.enabled
        if adapter_names is not None:
            self.set_adapters(adapter_names, weights)
        try:
            self.bank.fuse(safe_fusing)
        except BaseException:
            if self.bank.fused is None:
                self.bank.activate(before[0])
                self.bank.enable(before[1])
            raise

    def unfuse_adapters(self) -> None:
        """Undo `fuse_adapters`: put the original weights back. The adapters stay active.

        Raises:
            ValueError: nothing is fused.
        """
        self.bank.unfuse()

    def active_adapters(self) -> list[str]:
        """Return the names of the active adapters; none while they are disabled."""
        return list(self.bank.active) if self.bank.enabled else []

    def get_active_adapters(self) -> list[str]:
        """Return `active_adapters`, under the name that pipelines of diffusers use."""
        return self.active_adapters()

    def loaded_adapters(self) -> list[str]:
        """Return the names of the loaded adapters, in the order in which they were loaded."""
        return list(self.bank.adapters)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return component → names of its adapters, as pipelines of diffusers do: `{"generator": ["sketch", "ink"]}`.

        All adapters belong to the generator. Without adapters the result is empty.
        """
        return {"generator": self.loaded_adapters()} if self.bank.adapters else {}

    def disable_adapters(self) -> None:
        """Generate with the base alone, until `enable_adapters` or `set_adapters`."""
        self.bank.enable(False)

    def enable_adapters(self) -> None:
        """Undo `disable_adapters`."""
        self.bank.enable(True)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload adapters. If no active one is left, the first loaded one becomes active, with a warning.

        Raises:
            ValueError: an adapter is not loaded; then none is unloaded.
        """
        self.bank.remove(*parse_look(adapter_names))

    def save_adapter(
        self,
        save_directory,
        adapter_name: str | Sequence[str] | None = None,
        *,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_options,
    ) -> None:
        """Write loaded adapters to a folder: config, weights, and a card unless there is one.

        Args:
            save_directory: folder of the adapter; for a list of adapters, the parent of their folders.
            adapter_name: a name, or a list of names; None: the active adapter.
            variant: the weights are written to `adapter_model.<variant>.safetensors`.
            push_to_hub: also upload the adapter, see `push_to_hub`.
            repo_id: repo to upload to; None: the folder's name.
            push_options: of `push_to_hub`.

        Raises:
            ValueError: an adapter is not loaded, or several are active and none is named.
        """
        from .hub.cards import portable_base, write_adapter_card

        folder = user_path(save_directory)
        if adapter_name is None or isinstance(adapter_name, str):
            adapter_name = self._one_adapter(adapter_name)
            folders = {adapter_name: folder}
        else:
            folders = {name: folder / name for name in parse_look(adapter_name)}
            self.bank.check(dict.fromkeys(folders, 1.0))
            if push_to_hub or not folders:
                raise ValueError(
                    "push_to_hub of save_adapter uploads one adapter; push several one by one"
                    if push_to_hub
                    else "save_adapter got an empty list; name the adapters to save"
                )
        for name, target in folders.items():
            adapter = self.bank.adapters[name]
            adapter.save_pretrained(target, variant=variant)
            if not (target / "README.md").exists():
                write_adapter_card(adapter, target, name, base=portable_base(adapter.config, self.base_name))
        if push_to_hub:
            repo_id = repo_id or folder.absolute().name
            self.push_to_hub(repo_id, adapter_name=next(iter(folders)), variant=variant, **push_options)

    def _one_adapter(self, adapter_name: str | None) -> str:
        """Return the given name if it is loaded, or that of the only active adapter."""
        if adapter_name is None:
            if len(self.bank.active) != 1:
                raise ValueError(f"{len(self.bank.active)} adapters are active; say which with adapter_name=")
            (adapter_name,) = self.bank.active
        self.bank.check({adapter_name: 1.0})
        return adapter_name

    def adapter_from_text(
        self, text: str, hypernetwork, adapter_name: str | None = None, encoder=None, **hub_options
    ) -> Self:
        """Predict an adapter from a text with a hypernetwork, load it and make it the only active one.

        Args:
            text: name of the domain, e.g. "pencil drawing".
            hypernetwork: a `HyperNetwork` of this base, local folder, or Hub repo id.
            adapter_name: name of the new adapter; None: the text's letters and digits.
            encoder: an `Encoder`; None: the one that the hypernetwork was trained with.
            hub_options: of the hypernetwork's folder or repo, as in `load_adapter`.

        Returns:
            The pipeline itself, so that calls chain.

        Raises:
            FileNotFoundError: there is no such hypernetwork or encoder, or no network connection.
            ValueError: the encoder reads no text or is another than in training, the hypernetwork is of another base,
                or the name is taken.
        """
        network, encoder = self._hypernetwork(hypernetwork, encoder, **hub_options)
        adapter = network.adapter(encoder.text([text])[0], text=text)
        return self.load_adapter(adapter, adapter_name or _name_from(text))

    @torch.no_grad()
    def adapter_from_image(
        self, images, hypernetwork, adapter_name: str | None = None, encoder=None, **hub_options
    ) -> Self:
        """Predict an adapter from pictures of one look with a hypernetwork, load it and make it the only active one.

        Args:
            images: as in `invert`, but tensors may have any H and W. The mean of their embeddings is taken.
            adapter_name: name of the new adapter; None: the name of the first file, else "image".
            hypernetwork, encoder, hub_options: as in `adapter_from_text`.

        Returns:
            The pipeline itself.

        Raises:
            FileNotFoundError: a path without a file, or as `adapter_from_text`.
            ValueError: there is no picture, or as `adapter_from_text`.
        """
        network, encoder = self._hypernetwork(hypernetwork, encoder, **hub_options)
        first = images[0] if isinstance(images, list | tuple) and images else images
        images = as_floats(images, self.generator.resolution)
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise ValueError(f"images of shape {tuple(images.shape)} are not [N, 3, H, W]; give at least one picture")
        check_range(images)
        adapter = network.adapter(encoder.image(images.to(self._execution_device)).mean(0), images=len(images))
        return self.load_adapter(
            adapter, adapter_name or _name_from(Path(first).stem if isinstance(first, str | Path) else "image")
        )

    def _hypernetwork(self, hypernetwork, encoder, **hub_options):
        """Load a hypernetwork and its encoder, and check that they fit each other; return both."""
        from .features.encoders import load_encoder

        self.bank.refuse_while_fused("load an adapter")
        if unknown := hub_options.keys() - (() if isinstance(hypernetwork, HyperNetwork) else HUB_OPTIONS):
            raise ValueError(f"unknown options for this hypernetwork: {', '.join(sorted(unknown))}")
        if not isinstance(hypernetwork, HyperNetwork):
            hypernetwork = HyperNetwork.from_pretrained(hypernetwork, **hub_options)
        if encoder is None:
            if hypernetwork.config.encoder is None:
                raise ValueError("the hypernetwork does not say which encoder it was trained with; give encoder=")
            encoder = load_encoder(hypernetwork.config.encoder, self._execution_device)
        hypernetwork.check_encoder(encoder)
        return hypernetwork, encoder


def _name_from(text: str) -> str:
    """Return a valid adapter name: the words of `text`, joined by dashes."""
    return "-".join(re.findall(r"\w+", text.lower()))[:64] or "default"
