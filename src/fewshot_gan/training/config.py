"""Settings of an adaptation run, resolved from the options that a user gave."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..adapters import Adapter
from ..catalogue import ADAPTERS, METHODS, USUAL_METHOD
from ..methods.method import Method
from ..methods.objective import ObjectiveConfig
from ..utils.files import expanded
from ..utils.ranges import NOT_NEGATIVE, check_number
from .engine import TrainingConfig
from .idle import refuse_idle
from .launch import default_precision

PRESETS = {
    "few_images": "signals that learn a set of pictures in few steps, on pretrained features",
    "large_gap": "few_images without projected images, feature transfer and distillation, for looks far from the base",
    "pairs": "large_gap, with colours of skin and hair that follow the person",
    "strokes": "few_images with lighter weights on content and structure, for lora",
    "pattern": "few_images for dots, hatching and mosaics: lines of the source are kept where they are broad",
    "abstract": "the published terms alone, on pretrained features",
    "paper": "terms and weights as published, on the base's own discriminator; rates too of cdc, lfs_gan and adafm",
    "image": "terms, weights and rates as published, for a picture",
    "text": "terms, weights and rates as published, for words",
}
JUDGED = ("d_learning_rate", "augment", "real_zoom")  # settings of methods that show training images to a discriminator
PATHS = (
    "base",
    "data",
    "output_dir",
    "previous",
    "projections",
    "start_from",
    "texts",
    "ticket",
)  # options in which `~` is expanded


@dataclass(frozen=True)
class TrackingOptions:
    """Trackers, threads and upload of a run.

    Attributes:
        report_to: a tracker of Accelerate, or "none".
        num_threads: CPU threads per process; 0: `OMP_NUM_THREADS`, or what cores and container allow.
        push_to_hub, hub_model_id: upload the result, to this repo.

    Raises:
        ValueError: a repo is named, and nothing is uploaded to it; or `num_threads` is no number of threads.
    """

    report_to: str = field(default="tensorboard", metadata={"help": "Accelerate tracker, or none"})
    num_threads: int = field(default=0, metadata={"help": "CPU threads per process; default: OMP_NUM_THREADS, or all"})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the result when done"})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "repo id of --push_to_hub; default: the output folder's name"}
    )

    def __post_init__(self):
        check_number("num_threads", self.num_threads, NOT_NEGATIVE, whole=True)
        if self.hub_model_id and not self.push_to_hub:
            raise ValueError(
                f"--hub_model_id {self.hub_model_id} names where to upload, and nothing is uploaded; give "
                "--push_to_hub too, or leave it out"
            )


@dataclass(frozen=True)
class RunOptions:
    """Base, data, adapter and preset of a run.

    Attributes:
        base: embedded name, folder or repo id.
        data: image folder, zip archive, embedded set or `datasets` id; None: the look is named by words.
        adapter: kind of adapter; None: the method's.
        preset: weights and settings to start from; None: the method's default.
        start_from: adapter whose layers a new one starts from; None: it starts as the identity.
    """

    base: str = field(
        default="ffhq",
        metadata={"aliases": ["--pretrained_model_name_or_path"], "help": "embedded name, folder or repo id"},
    )
    data: str | None = field(
        default=None,
        metadata={
            "aliases": ["--train_data_dir"],
            "help": "image folder, zip archive, embedded set, or datasets id",
        },
    )
    adapter: str | None = None
    preset: str | None = None
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "adapter whose layers a new one starts from, of the same kind; it may be of a smaller base with "
            "the same lower layers"
        },
    )


@dataclass(frozen=True)
class RunConfig:
    """An adaptation run with every setting filled in.

    Attributes:
        method: with its options.
        base, data: see `RunOptions`.
        adapter: kind of adapter.
        adapter_options: options of that kind.
        preset: name of the preset that `training` and `objective` start from.
        start_from: see `RunOptions`.
        training: settings of the run.
        objective: weights of the terms.
        tracking: trackers, threads, the Hub.
        dry_run: say what the run would do and take; train and write nothing.
    """

    method: Method
    base: str
    data: str | None
    adapter: str
    adapter_options: Any
    preset: str
    training: TrainingConfig
    objective: ObjectiveConfig
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    dry_run: bool = False
    start_from: str | None = None

    @property
    def output_dir(self) -> str:
        return self.training.output_dir

    @property
    def adapter_class(self) -> type[Adapter]:
        return ADAPTERS.load(self.adapter)

    def flat(self) -> dict[str, Any]:
        """Return option → value of all settings, for trackers."""
        named = {"method": self.method.name, "base": self.base, "data": self.data}
        named |= {"adapter": self.adapter, "preset": self.preset, "start_from": self.start_from}
        for part in (self.method.options, self.adapter_options, self.training, self.objective, self.tracking):
            named |= asdict(part)
        return named


def make_run(method: str = USUAL_METHOD, **options: Any) -> RunConfig:
    """Resolve an adaptation run: options that were given, then the preset's, then defaults.

    Args:
        method: name of a method, see `catalogue.METHODS`.
        options: fields of `RunOptions`, `TrainingConfig` and `TrackingOptions`, of the method's `Config` and `Options`,
            of the adapter's `Options`; and `dry_run`. None means not given.

    Raises:
        ValueError: an unknown name, a value out of range, an option that cannot act, or options that contradict each
            other; in one sentence.
    """
    method_class = METHODS.load(method)
    given = given_options(options)
    chosen = dict(given)
    dry_run = bool(chosen.pop("dry_run", False))
    run_options = RunOptions(**take(chosen, RunOptions))
    tracking = TrackingOptions(**take(chosen, TrackingOptions))
    chosen_method = method_class(method_class.Options(**take(chosen, method_class.Options)))
    adapter = run_options.adapter or method_class.adapter
    adapter_class = ADAPTERS.load(adapter)
    if not ADAPTERS[adapter].trainable:
        raise ValueError(f"--adapter {adapter} is not trained by a method; choose one of {', '.join(trainable())}")
    adapter_options = adapter_class.Options(**take(chosen, adapter_class.Options))
    for name in chosen:
        for other in trainable():
            if name in _names(ADAPTERS.load(other).Options):
                raise ValueError(f"--{name} is of --adapter {other}; {adapter} has none")
    if method_class.needs_images and run_options.data is None:
        raise ValueError(f"--method {method} learns from pictures; give --data")
    preset = run_options.preset or chosen_method.default_preset()
    if preset not in method_class.presets:
        raise ValueError(f"--method {method} has no preset {preset!r}; known: {', '.join(method_class.presets)}")
    training = _training(method_class, adapter, preset, chosen)
    objective = getattr(method_class.Config, preset)()
    objective = replace(objective, **take(chosen, method_class.Config))
    if chosen:
        raise ValueError(f"--{next(iter(chosen))} is no option of --method {method} with --adapter {adapter}")
    run = RunConfig(
        method=chosen_method,
        base=run_options.base,
        data=run_options.data,
        adapter=adapter,
        adapter_options=adapter_options,
        preset=preset,
        training=training,
        objective=objective,
        tracking=tracking,
        dry_run=dry_run,
        start_from=run_options.start_from,
    )
    chosen_method.check(run)
    chosen_method.complete(objective)
    refuse_idle(given, run.output_dir, training, objective)
    return run


def trainable() -> list[str]:
    """Return the names of the kinds of adapters that a method can train."""
    return [name for name, entry in ADAPTERS.items() if entry.trainable]


def usual_rate(adapter: str) -> float:
    """Return the default learning rate of a kind of adapter."""
    return ADAPTERS[adapter].learning_rate or TrainingConfig.learning_rate


def usual_settings(method: type[Method], adapter: str, preset: str) -> dict[str, Any]:
    """Return the defaults of `TrainingConfig` for a method, adapter and preset."""
    settings = method.settings | method.published.get(preset, {})
    if adapter != method.adapter or "learning_rate" not in settings:  # published rates are those of its own adapter
        settings |= {"learning_rate": usual_rate(adapter)}
    return {"mixed_precision": default_precision(), **settings}


def _training(method: type[Method], adapter: str, preset: str, chosen: dict[str, Any]) -> TrainingConfig:
    names = [name for name in JUDGED if name in chosen]
    if names and not method.Objective.uses_images:
        raise ValueError(f"--method {method.name} shows no training image to a discriminator; leave out --{names[0]}")
    settings = take(chosen, TrainingConfig)
    if "output_dir" not in settings:
        raise ValueError("there is no output folder; give --output_dir")
    return TrainingConfig(**{**usual_settings(method, adapter, preset), **settings})


def _names(options: type) -> list[str]:
    return [option.name for option in fields(options)]


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None, with `~` expanded in paths."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: expanded(str(value)) if name in PATHS else value for name, value in given.items()}


def take(chosen: dict[str, Any], options: type) -> dict[str, Any]:
    """Remove the fields of a dataclass from `chosen` and return them."""
    return {name: chosen.pop(name) for name in _names(options) if name in chosen}
