"""What a method of few-shot adaptation is: its settings, and the hooks that a training calls.

A method names its losses (`Objective`) and their weights (`Config`), the kind of adapter that it usually trains,
and what else a user may choose (`Options`). `training.adapt` runs any of them alike.
"""

from copy import deepcopy
from typing import Any, ClassVar, Protocol

import torch

from ..adapters import Adapter
from ..features import FeatureNetwork, load_features
from ..utils.options import NoOptions
from .objective import Objective, ObjectiveConfig


class Run(Protocol):
    """What a hook sees of a training; `training.adapt.Run` is one.

    Attributes:
        base: name, folder or repo id of the base that the adapter is made for; a hook may set it.
        pipe: the base; a hook may replace it, e.g. to put a new part in front of the generator.
        config: weights of the objective, of the class `Method.Config`.
        training: settings of the run, a `TrainingConfig`.
        adapter_kind: type name of the adapter.
        preset: name of the preset.
        images: `[K, 3, R, R]` in [−1, 1], R the generator's resolution; None: the look is named by words.
        folder: output folder.
        device: where to compute.
        dry: nothing is trained and nothing may be written.
        push_to_hub: the adapter is to be uploaded.
    """

    base: str
    pipe: Any
    config: Any
    training: Any
    adapter_kind: str
    preset: str
    images: torch.Tensor | None
    folder: Any
    device: torch.device
    dry: bool
    push_to_hub: bool

    def new_adapter(self, **options) -> Adapter:
        """A fresh adapter of the kind that the user chose, for `pipe.generator`."""
        ...

    def main_process_first(self) -> Any:
        """A context in which the main process comes first, and the others find what it wrote."""
        ...


class Method:
    """A way to teach a look. Subclasses set the class attributes and override the hooks that differ.

    Attributes:
        name: as command lines have it; `register_method` sets it.
        Config: class of the weights of the terms, a frozen dataclass with a classmethod per preset.
        Objective: class of the losses.
        Options: frozen dataclass of further options; each field has a default, and `metadata["help"]`.
        adapter: kind of adapter that it usually trains.
        presets: names of presets, the default first.
        settings: defaults of `TrainingConfig` that are the method's own.
        published: preset → settings that it was published with.
        least_images: it needs at least this many images.
        needs_images: False: the look may be named by words instead.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type] = ObjectiveConfig
    Objective: ClassVar[type] = Objective
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
        """The preset of a run that names none."""
        return self.presets[0]

    def complete(self, config) -> None:
        """Fill in `self.options` what was not given, once the weights are known.

        Raises:
            ValueError: an option that nothing uses with these weights.
        """

    def check(self, run) -> None:
        """Refuse settings that contradict each other, before anything is loaded.

        Args:
            run: `training.config.RunConfig`.

        Raises:
            ValueError: with one sentence.
        """

    def prepare_base(self, run: Run) -> None:
        """Refuse a base that this method cannot adapt, or change `run.pipe` and `run.base`.

        Raises:
            ValueError: with one sentence.
        """
        generator = run.pipe.generator
        if not generator.has_styles:
            raise ValueError(
                f"{run.base} is a {type(generator).__name__}; these methods adapt style-based generators, e.g. 'ffhq', "
                "AdaFM transfer GP-GANs too, and training/lottery.py trains the others"
            )

    def record(self, run: Run) -> dict[str, Any]:
        """What the adapter's config says of the training besides settings, weights and data."""
        return {}

    def prepare_adapter(self, run: Run) -> Adapter:
        """The fresh adapter that is trained."""
        return run.new_adapter()

    def judges(self, run: Run) -> dict[str, Any]:
        """Arguments of `Objective`: copies of the base's discriminators, which are trained, and frozen features."""
        return {
            "discriminator": deepcopy(run.pipe.discriminator),
            "projected": deepcopy(run.pipe.projected_discriminator),
            "features": self.features(run),
            "seed": run.training.seed,
        }

    def features(self, run: Run) -> FeatureNetwork:
        """The frozen feature network of losses and projected discriminators."""
        return load_features(device=run.device)

    def build_objective(self, run: Run) -> Objective:
        """The losses for `run.images`."""
        return self.Objective(run.config, run.images, **self.judges(run))

    def after_save(self, run: Run) -> None:
        """Write what belongs to the adapter besides its folder, in the main process, before the first step."""
