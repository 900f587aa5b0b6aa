"""Train a network that predicts a look from one picture, on families of photo filters; behind the script."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters.look_hypernetwork import LookHyperNetwork
from ..features import load_features
from ..features.encoders import load_encoder
from ..methods.look_prediction import Look, LookPredictionConfig, LookPredictionObjective
from ..pipeline import FewShotGAN
from ..utils.ranges import Range, check_number
from .command_line import make_parser, optional
from .config import JUDGED, TrackingOptions, given_options, take
from .domains import apply_filter
from .engine import Trainer, TrainingConfig
from .families import FAMILIES
from .hypernetwork import completed
from .idle import refuse_idle
from .launch import command, default_precision, holding, start, start_trackers

ENCODER = "look"
TAUGHT = 1_000_000  # looks of a family are trained with numbers below; larger numbers stay for judging
SETTINGS = {
    "learning_rate": 1e-3,
    "adam_beta1": 0.9,
    "max_train_steps": 1000,
    "lr_decay_start": 0.6,
    "lr_final": 0.05,
    "truncation_psi": 0.8,
    "ema_decay": 0.0,
    "augment": "none",
}
RARE = {"halftone": 0.25, "hatch": 0.25, "mosaic": 0.25, "grain": 0.5}  # a vector cannot draw patterns: the rest is 1


@dataclass(frozen=True)
class LookHypernetworkOptions:
    """Options of the network and of what it learns.

    Attributes:
        base: embedded name, folder or repo id.
        families: of filters, whose looks are learned.
        width, depth, neck: see `LookHyperNetwork`.
    """

    base: str = field(
        default="ffhq",
        metadata={"aliases": ["--pretrained_model_name_or_path"], "help": "embedded name, folder or repo id"},
    )
    families: list[str] | None = field(
        default=None, metadata={"help": f"families of filters to learn from; default: all of {', '.join(FAMILIES)}"}
    )
    width: int = field(default=256, metadata={"help": "width of the hidden layers; default 256"})
    depth: int = field(default=2, metadata={"help": "residual blocks; default 2"})
    neck: int = field(default=120, metadata={"help": "width of the last hidden layer; default 120"})

    def __post_init__(self):
        for name in ("width", "depth", "neck"):
            check_number(name, getattr(self, name), Range(1), whole=True)
        if unknown := sorted({*(self.families or ())} - FAMILIES.keys()):
            raise ValueError(f"families {', '.join(unknown)} are not known; choose from {', '.join(FAMILIES)}")


@dataclass(frozen=True)
class LookHypernetworkRun:
    """Resolved settings of a training."""

    options: LookHypernetworkOptions
    training: TrainingConfig
    objective: LookPredictionConfig
    tracking: TrackingOptions


def make_run(**chosen: Any) -> LookHypernetworkRun:
    """Resolve a training: options that were given, then defaults.

    Args:
        chosen: fields of the four dataclasses of a run; None means not given.

    Raises:
        ValueError: values out of range, that cannot act, or that contradict each other.
    """
    given = given_options(chosen)
    chosen = dict(given)
    options = LookHypernetworkOptions(**take(chosen, LookHypernetworkOptions))
    usual = {"mixed_precision": default_precision(), **SETTINGS}
    training = TrainingConfig(**{**usual, **take(chosen, TrainingConfig)})
    objective = LookPredictionConfig(**take(chosen, LookPredictionConfig))
    tracking = TrackingOptions(**take(chosen, TrackingOptions))
    if chosen:
        raise ValueError(f"--{next(iter(chosen))} is no option of this training; leave it out")
    refuse_idle(given, training.output_dir, training, objective)
    return LookHypernetworkRun(options, training, objective, tracking)


def parser():
    """Make the parser of the script. Its options are the fields of the dataclasses of a run."""
    parts = [
        optional(LookHypernetworkOptions),
        optional(TrackingOptions),
        optional(TrainingConfig, JUDGED, ("output_dir",), usual=SETTINGS),
        optional(LookPredictionConfig),
    ]
    return make_parser(parts, (__doc__ or "").splitlines()[0])


def parse(argv: Sequence[str] | None = None) -> LookHypernetworkRun:
    """Parse the arguments of the script; see `make_run` for errors."""
    return make_run(**vars(parser().parse_args(argv)))


def draw_look(families: Sequence[str], random: torch.Generator) -> Look:
    """Draw a look of one of `families`, each as often as another except those of `RARE`."""
    shares = torch.tensor([RARE.get(family, 1.0) for family in families], dtype=torch.float32, device="cpu")
    family = families[int(torch.multinomial(shares, 1, generator=random))]
    number = int(torch.randint(TAUGHT, (), generator=random, device="cpu"))
    return partial(apply_filter, name=f"{family}-{number}")


def run(config: LookHypernetworkRun) -> LookHyperNetwork:
    """Train, write the hypernetwork, and push it if asked.

    Raises:
        ValueError, OSError, ImportError: bad base or folder, each with one sentence.
        TrainingDiverged, Interrupted: as of `Trainer.train`.
    """
    training, tracking = config.training, config.tracking
    accelerator = start(
        training.output_dir,
        seed=training.seed,
        mixed_precision=training.mixed_precision,
        report_to=tracking.report_to,
        num_threads=tracking.num_threads,
    )
    with holding(training.output_dir, accelerator):
        return train(config, accelerator)


def train(config: LookHypernetworkRun, accelerator: Accelerator) -> LookHyperNetwork:
    """Train in a folder that is locked; see `run`."""
    options, training, objective, tracking = config.options, config.training, config.objective, config.tracking
    pipe, device = FewShotGAN.from_pretrained(options.base), accelerator.device
    families, encoder = list(options.families or FAMILIES), load_encoder(ENCODER, device)
    record = {**asdict(objective), **asdict(training), "families": families}
    for name in ("output_dir", *JUDGED):
        record.pop(name)
    network = LookHyperNetwork.for_model(
        pipe.generator,
        encoder,
        width=options.width,
        depth=options.depth,
        neck=options.neck,
        base_model_name_or_path=options.base,
        training=record,
    ).to(device)
    losses = LookPredictionObjective(
        objective, network, encoder, load_features(device=device), partial(draw_look, families), ", ".join(families)
    )
    accelerator.print(f"hypernetwork of {network.num_values():,} numbers for looks of {network.num_deltas:,}")
    trainer = Trainer(pipe.generator, network, losses, None, training, accelerator)
    trainer.report.title = f"A network that predicts looks of {options.base} (after HyperDomainNet, arXiv 2210.08884)"
    trainer.report.data = f"filters of {len(families)} families: {', '.join(families)}"
    trainer.last_state()  # refuses a folder of other settings, before anything is written
    settings = {**asdict(options), **asdict(training), **asdict(objective), **asdict(tracking)}
    start_trackers(accelerator, "look_prediction", tracking.report_to, settings)
    return completed(trainer, tracking)


def main(argv: Sequence[str] | None = None) -> LookHyperNetwork:
    """Entry point of the script, see `launch.command`."""
    with command():
        return run(parse(argv))
