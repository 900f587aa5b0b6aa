"""What a pipeline does with adapters, under the names of diffusers and PEFT: load, choose, blend, fuse, save."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Self

from .adapters.base import Adapter
from .adapters.io import load_adapter, name_of, refuse_unknown, warn_of_base
from .hub import HUB_OPTIONS, adapter_folders, resolve_folder
from .utils.files import user_path


class AdapterMixin:
    """The methods of `FewShotGAN` that load adapters into its `bank` and say which of them act."""

    def load_adapter(
        self,
        pretrained_model_name_or_path_or_dict=None,
        adapter_name: str | None = None,
        *,
        hotswap: bool = False,
        **options,
    ) -> Self:
        """Load an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path_or_dict: embedded name ("sketch"), local folder, Hub repo id, weights file, a
                state dict (with `config=`, or in a pair with it), or an `Adapter`.
            adapter_name: its name in this pipeline; None takes the subfolder or the last part of the path, "default" of
                an `Adapter`, and "default_0", "default_1", … of state dicts.
            hotswap: take the place of the loaded adapter of that name, with its weight, instead of refusing.
            options: of `adapters.loading.load_adapter`: `state_dict`, `config`, `variant`, `low_cpu_mem_usage`,
                `torch_device`, `is_trainable`, `dtype` or `torch_dtype`, and of the Hub `subfolder`, `revision`,
                `token`, `cache_dir`, `local_files_only`, `force_download`. The adapter then follows the generator's
                device, and keeps its dtype.

        Returns:
            The pipeline itself, so that calls chain.

        Raises:
            FileNotFoundError: no such adapter, or no network; the message says what is embedded.
            ValueError: damaged, made for another base, a name that is taken, or a folder of several adapters without
                `subfolder`.
        """
        self.bank.refuse_while_fused("load an adapter")
        refuse_unknown(options, "state_dict", "config", "variant")
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, Adapter):
            if options:
                raise ValueError(f"an Adapter is loaded as it is; {', '.join(options)} are for names and paths")
            adapter, name = source, adapter_name or "default"
        else:
            adapter = load_adapter(source, **options)
            name = adapter_name or name_of(source, options.get("subfolder")) or f"default_{len(self.bank.adapters)}"
        if hotswap and name not in self.bank.adapters:
            raise ValueError(f"hotswap replaces a loaded adapter, but there is no {name!r}; load it without hotswap")
        self.bank.add(name, adapter, replace=hotswap)
        warn_of_base(adapter, name, self.base_name)
        if not hotswap:
            self.bank.activate({name: 1.0})
        return self

    def load_adapters(self, pretrained_model_name_or_path, *, variant: str | None = None, **options) -> list[str]:
        """Load all adapters that lie side by side in a folder or repo, under the names of their folders.

        Which adapters are active stays as it is. All are loaded or none. Options are those of `load_adapter`.

        Returns:
            Their names.

        Raises:
            FileNotFoundError: no such folder, or none in it.
            ValueError: as `load_adapter`.
        """
        self.bank.refuse_while_fused("load an adapter")
        refuse_unknown(options)
        of_hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        folder = resolve_folder(pretrained_model_name_or_path, kind="adapter", **of_hub)
        if not (found := adapter_folders(folder)):
            raise FileNotFoundError(f"{str(pretrained_model_name_or_path)!r} holds no adapter folders")
        added = []
        try:
            for name, path in found.items():
                self.bank.add(name, load_adapter(path, variant=variant, **options))
                added.append(name)
        except BaseException:
            self.bank.remove(*added)
            raise
        return added

    def set_adapters(self, adapter_names: str | Sequence[str], weights=None, *, adapter_weights=None) -> None:
        """Let exactly these loaded adapters act, blended.

        Args:
            adapter_names: one, several, or `{name: weight}`; none: the base. Ends a `disable_adapters`.
            weights: one for all, or one per adapter; None: 1. Any number (0 = off, negative and above 1 extrapolate),
                or a schedule over depth: `{"coarse": 0.0, "fine": 1.0}`, `{4: 0.2, 32: 1.0}`. An entry holds from that
                resolution up to the next; "coarse", "middle", "fine" are 4, 16 and 64. The mapping network, 0, and
                whatever lies below the lowest entry go with it.
            adapter_weights: another name of `weights`, that of diffusers' pipelines.

        Raises:
            ValueError: not loaded, named twice, as many weights as names are not given, or a weight is no number.
        """
        if None not in (weights, adapter_weights):
            raise ValueError("weights and adapter_weights are two names of one option; give one")
        self.bank.activate(_look(adapter_names, adapter_weights if weights is None else weights))

    def add_weighted_adapter(self, adapter_names: Sequence[str], weights, adapter_name: str) -> None:
        """Make a blend of loaded adapters an adapter of its own, to be saved, shared, or blended again.

        Args:
            adapter_names, weights: as in `set_adapters`.
            adapter_name: of the new one; which adapters are active stays as it is.

        Raises:
            ValueError: as `set_adapters`, or the new name is taken.
        """
        if not (look := _look(adapter_names, weights)):
            raise ValueError("add_weighted_adapter blends adapters; name at least one")
        self.bank.refuse_while_fused("load an adapter")
        self.bank.add(adapter_name, self.bank.blend(look))

    def fuse_adapters(
        self, adapter_names: str | Sequence[str] | None = None, weights=None, *, safe_fusing: bool = False
    ) -> None:
        """Write the active adapters into the generator's weights, for speed or to save it as a base of its own.

        The original weights are kept; `unfuse_adapters` puts them back bit for bit. Until then the adapters cannot be
        switched.

        Args:
            adapter_names, weights: first `set_adapters` to these; None: as they are.
            safe_fusing: refuse weights that would not be finite numbers; then everything is as it was.

        Raises:
            ValueError: already fused, nothing active, what `set_adapters` refuses, or weights that are not finite.
        """
        self.bank.refuse_while_fused("fuse again")
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
        """Undo `fuse_adapters`; the adapters act again beside the weights.

        Raises:
            ValueError: nothing is fused.
        """
        self.bank.unfuse()

    def active_adapters(self) -> list[str]:
        """Names of the adapters that act now."""
        return list(self.bank.active) if self.bank.enabled else []

    def get_active_adapters(self) -> list[str]:
        """`active_adapters` under the name of diffusers' pipelines."""
        return self.active_adapters()

    def loaded_adapters(self) -> list[str]:
        """Names of the loaded adapters, in the order in which they were loaded."""
        return list(self.bank.adapters)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Component → names of the adapters loaded into it, as of diffusers' pipelines; empty where there are none.

        All adapters are the generator's: `{"generator": ["sketch", "ink"]}`. `loaded_adapters` gives the names alone.
        """
        return {"generator": self.loaded_adapters()} if self.bank.adapters else {}

    def disable_adapters(self) -> None:
        """Generate with the base alone until `enable_adapters`."""
        self.bank.enable(False)

    def enable_adapters(self) -> None:
        """Undo `disable_adapters`."""
        self.bank.enable(True)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload adapters. Others that act go on; if none does any more, the first that is left does, with a warning.

        Raises:
            ValueError: one is not loaded; then none is unloaded.
        """
        self.bank.remove(*_look(adapter_names))

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
            save_directory: the folder of the adapter; for a list, the folder in which each gets a folder of its name.
            adapter_name: which; a list: several; None: the active one.
            variant: the weights file is `adapter_model.<variant>.safetensors`.
            push_to_hub: afterwards upload the adapter, see `push_to_hub`.
            repo_id: where to; None: the folder's name.
            push_options: of `push_to_hub`.

        Raises:
            ValueError: not loaded, or several are active and none is named.
        """
        from .hub.cards import portable_base, write_adapter_card

        folder = user_path(save_directory)
        if adapter_name is None or isinstance(adapter_name, str):
            adapter_name = self._one_adapter(adapter_name)
            folders = {adapter_name: folder}
        else:
            folders = {name: folder / name for name in _look(adapter_name)}
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
            self.push_to_hub(repo_id, adapter_name=adapter_name, variant=variant, **push_options)

    def _one_adapter(self, adapter_name: str | None) -> str:
        if adapter_name is None:
            if len(self.bank.active) != 1:
                raise ValueError(f"{len(self.bank.active)} adapters are active; say which with adapter_name=")
            (adapter_name,) = self.bank.active
        self.bank.check({adapter_name: 1.0})
        return adapter_name


def _look(adapter_names, weights=None) -> dict:
    """Names and weights as users give them → `{name: weight}`; see `FewShotGAN.set_adapters`."""
    if isinstance(adapter_names, Mapping) and weights is None:
        return dict(adapter_names)
    names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"adapters {adapter_names!r}: give a name, a list of names, or {{name: weight}} without weights"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"adapters named twice: {', '.join(names)}; name each once, with its weight")
    weights = 1.0 if weights is None else weights
    weights = [weights] * len(names) if isinstance(weights, Real | Mapping | str) else list(weights)
    weights = [1.0 if weight is None else weight for weight in weights]
    if len(weights) != len(names):
        raise ValueError(f"{len(names)} adapters but {len(weights)} weights; give one weight per adapter")
    return dict(zip(names, weights, strict=True))
