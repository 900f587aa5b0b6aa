"""The base class of methods of few-shot adaptation, and the training run that its hooks receive.

A method consists of its losses (`Objective`), their weights (`Config`), the kind of adapter that it trains by default
(`adapter`) and further options for its users (`Options`). `training.adapt.run` trains any method.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..adapters import Adapter
from ..features import FeatureNetwork, load_features
from ..utils.options import NoOptions
from . import objective


class Run(Protocol):
    """A training run, as the hooks of a method receive it; `training.adapt.Run` implements it.

    The run loads the base, calls `Method.prepare_base` and then loads the images.

    Attributes:
        base: name, folder or repo id of the base; `Method.prepare_base` may set it.
        pipe: the base, a `FewShotGAN`; `Method.prepare_base` may replace it, e.g. by one with a larger generator.
        config: weights of the losses, of the class `Method.Config`.
        training: settings of the run, a `training.engine.TrainingConfig`.
        adapter_kind: type of the adapter, e.g. "left".
        preset: name of the preset.
        images: training images `[K, 3, R, R]` in [−1, 1], R the generator's resolution; None if the look is named by
            words. Not set yet in `Method.prepare_base`.
        folder: output folder.
        device: device of the training.
        dry: whether this is a dry run, which trains nothing and must not write files.
        push_to_hub: whether the adapter will be uploaded.
    """

    base: str
    pipe: Any
    config: Any
    training: Any
    adapter_kind: str
    preset: str
    images: torch.Tensor | None
    folder: Path
    device: torch.device
    dry: bool
    push_to_hub: bool

    def print(self, text: str) -> None:
        """Print a line, in the main process only."""
        ...

    def new_adapter(self, **options) -> Adapter:
        """Return a new adapter of the chosen kind for `pipe.generator`.

        Args:
            options: further arguments of `Adapter.fresh`, e.g. `target_modules`.
        """
        ...

    def main_process_first(self) -> Any:
        """Return a context that the main process enters first; the others wait until it has left.

        Compute a file inside it once, and let the other processes read it.
        """
        ...


class Method:
    """A method of few-shot adaptation. Subclasses set class attributes and override the hooks that differ.

    A training calls the hooks in the order in which they are defined here; each has a default.

    Attributes:
        name: name on command lines; `register_method` sets it.
        Config: frozen dataclass of weights, with one classmethod per preset that returns an instance.
        Objective: class of the losses, an `objective.Objective`.
        Options: frozen dataclass of further options. Each field has a default, and `metadata["help"]` for command
            lines.
        adapter: kind of adapter that is trained by default.
        presets: names of presets, each a classmethod of `Config`; the first is the default.
        settings: values of `TrainingConfig` fields that replace their defaults, for all presets.
        published: preset → values of `TrainingConfig` fields that it has, such as those that the paper uses.
        least_images: smallest number of training images.
        needs_images: whether training images are required; False if the look may be named by words instead.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type] = objective.ObjectiveConfig
    Objective: ClassVar[type] = objective.Objective
    Options: ClassVar[type] = NoOptions
    adapter: ClassVar[str] = "full"
    presets: ClassVar[tuple[str, ...]] = ("few_images", "paper")
    settings: ClassVar[dict[str, Any]] = {}
    published: ClassVar[dict[str, dict[str, Any]]] = {}
    least_images: ClassVar[int] = 2
    needs_images: ClassVar[bool] = True

    def __init__(self, options=None):
        self.options = self.Options() if options is None else options

    def default_preset(self) -> str:
        """Return the preset of a run that names none."""
        return self.presets[0]

    def check(self, run) -> None:
        """Refuse settings that contradict each other, before anything is loaded.

        Args:
            run: all settings, a `training.config.RunConfig`; the weights are `run.objective`.

        Raises:
            ValueError: the settings contradict each other; the message is one sentence and names a way out.
        """

    def complete(self, config) -> None:
        """Fill in defaults of `self.options` that depend on the weights `config`, an instance of `Config`.

        Raises:
            ValueError: an option is given that no term uses.
        """

    def prepare_base(self, run: Run) -> None:
        """Refuse a base that this method cannot adapt, or replace `run.pipe` and `run.base`.

        By default, generators without styles are refused.

        Raises:
            ValueError: this method cannot adapt the base; the message is one sentence and names a way out.
        """
        generator = run.pipe.generator
        if not generator.has_styles:
            raise ValueError(
                f"{run.base} is a {type(generator).__name__}; these methods adapt style-based generators, e.g. 'ffhq', "
                "AdaFM transfer GP-GANs too, and training/lottery.py trains the others"
            )

    def record(self, run: Run) -> dict[str, Any]:
        """Return further JSON values for the training record in the adapter's config.

        Settings, weights and data are recorded anyway.
        """
        return {}

    def prepare_adapter(self, run: Run) -> Adapter:
        """Return the adapter to train. A new one does not change the generator's images before it is trained.

        By default it is a new adapter of the kind that the user chose.
        """
        return run.new_adapter()

    def build_objective(self, run: Run) -> objective.Objective:
        """Return the losses, by default `Objective(run.config, run.images, **self.judges(run))`."""
        return self.Objective(run.config, run.images, **self.judges(run))

    def judges(self, run: Run) -> dict[str, Any]:
        """Return the keyword arguments of `Objective`, which `build_objective` passes on.

        By default these are trainable copies of the base's discriminators, the feature network, and the seed. Override
        it to add arguments of your own.
        """
        return {
            "discriminator": deepcopy(run.pipe.discriminator),
            "projected": deepcopy(run.pipe.projected_discriminator),
            "features": self.features(run),
            "seed": run.training.seed,
        }

    def features(self, run: Run) -> FeatureNetwork:
        """Return the frozen feature network of losses and projected discriminators, by default EfficientNet-Lite0."""
        return load_features(device=run.device)

    def after_save(self, run: Run) -> None:
        """Write further files of the adapter to `run.folder`; the main process calls it once before the first step."""
