"""Train a hypernetwork on many domains at once (HyperDomainNet, arXiv 2210.08884, §4); behind the script."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters import DomainHyperNetwork, HyperNetwork
from ..data.datasets import load_labelled
from ..data.images import to_bytes, to_floats
from ..features import load_features
from ..features.encoders import load_encoder
from ..hub.cards import write_hypernetwork_card
from ..methods.hyperdomain import CLIPS, CONSTANT, HyperDomainConfig, HyperNetworkObjective
from ..methods.projections import ProjectionOptions, as_layers, complete, project, recorded
from ..pipeline import FewShotGAN
from ..utils.ranges import Range, check_number
from .checkpoints import PROJECTED
from .command_line import make_parser, optional
from .config import JUDGED, TrackingOptions, given_options, take
from .engine import Trainer, TrainingConfig
from .idle import refuse_idle
from .launch import command, default_precision, holding, start, start_trackers

PRESETS = ("hypernetwork", "hypernetwork_few_images", "hypernetwork_images")
SETTINGS = {  # published for words; a moving average would not match the statistics of batch norm
    "learning_rate": 5e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "ema_decay": 0.0,
    "train_batch_size": 8,
    "augment": "none",
}
PUBLISHED = {
    "hypernetwork": {"max_train_steps": 10_000, **CONSTANT},
    "hypernetwork_images": {"max_train_steps": 800, **CONSTANT},
}


@dataclass(frozen=True)
class HypernetworkOptions(ProjectionOptions):
    """Options of a hypernetwork: domains, encoders, size.

    Attributes:
        base: embedded name, folder or repo id.
        data: folder or zip archive with one folder of images per domain.
        texts: file with one domain per line, in place of `data`.
        encoder: encoders whose losses are summed; the first is what the network reads.
        width: of all hidden layers.
        backbone_depth, head_depth: layers before the heads, and of each head.
        preset: weights and settings to start from.
    """

    base: str = field(
        default="ffhq",
        metadata={"aliases": ["--pretrained_model_name_or_path"], "help": "embedded name, folder or repo id"},
    )
    data: str | None = field(
        default=None, metadata={"help": "folder or zip archive with one folder of images per domain"}
    )
    texts: str | None = field(
        default=None,
        metadata={"help": "file with one domain per line, 'Target' or 'Target - Source'; instead of --data"},
    )
    encoder: list[str] | None = field(
        default=None,
        metadata={"help": "features, or CLIP as folders or repo ids; the first is what the network reads"},
    )
    width: int = field(default=512, metadata={"help": "width of all hidden layers; default 512"})
    backbone_depth: int = field(default=4, metadata={"help": "layers before the heads; default 4"})
    head_depth: int = field(default=2, metadata={"help": "layers of each head; default 2"})
    preset: str | None = field(
        default=None,
        metadata={
            "choices": list(PRESETS),
            "help": "default: hypernetwork for texts, ..._few_images for images; ..._images: as published, on their "
            "latents",
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "backbone_depth", "head_depth"):
            check_number(name, getattr(self, name), Range(1), whole=True)
        if (self.data is None) == (self.texts is None):
            raise ValueError("domains are shown by pictures or named by words; give --data or --texts")


@dataclass(frozen=True)
class HypernetworkRun:
    """Resolved settings of a hypernetwork's training."""

    options: HypernetworkOptions
    training: TrainingConfig
    objective: HyperDomainConfig
    tracking: TrackingOptions


def make_run(**chosen: Any) -> HypernetworkRun:
    """Resolve the training of a hypernetwork: options that were given, then the preset's, then defaults.

    Args:
        chosen: fields of `HypernetworkOptions`, `TrainingConfig`, `HyperDomainConfig`, `TrackingOptions`; None means
            not given.

    Raises:
        ValueError: values out of range, that cannot act, or that contradict each other.
    """
    given = given_options(chosen)
    chosen = dict(given)
    options = HypernetworkOptions(**take(chosen, HypernetworkOptions))
    preset = options.preset or PRESETS[options.texts is None]
    usual = {"mixed_precision": default_precision(), **SETTINGS, **PUBLISHED.get(preset, {})}
    training = TrainingConfig(**{**usual, **take(chosen, TrainingConfig)})
    objective = replace(getattr(HyperDomainConfig, preset)(), **take(chosen, HyperDomainConfig))
    tracking = TrackingOptions(**take(chosen, TrackingOptions))
    if chosen:
        raise ValueError(f"--{next(iter(chosen))} is no option of a hypernetwork's training; leave it out")
    if training.ema_decay:
        raise ValueError(
            f"ema_decay={training.ema_decay}: batch norm's statistics would not belong to averaged weights; 0"
        )
    if objective.tt_direction_weight and training.train_batch_size < 2:
        raise ValueError("train_batch_size=1: pictures of a step are compared with one another; give 2 or more")
    refuse_idle(given, training.output_dir, training, objective)
    return HypernetworkRun(complete(replace(options, preset=preset), objective), training, objective, tracking)


def parser():
    """Make the parser of the script. Its options are the fields of the dataclasses of a run."""
    parts = [
        optional(HypernetworkOptions),
        optional(TrackingOptions),
        optional(TrainingConfig, JUDGED, ("output_dir",), usual=SETTINGS, published=PUBLISHED),
        optional(HyperDomainConfig, usual="the preset's"),
    ]
    return make_parser(parts, (__doc__ or "").splitlines()[0])


def parse(argv: Sequence[str] | None = None) -> HypernetworkRun:
    """Parse the arguments of the script; see `make_run` for errors."""
    return make_run(**vars(parser().parse_args(argv)))


def read_texts(path: str | Path) -> tuple[list[str], list[str]]:
    """Read a list of domains: targets, and sources, which are "photo" in lines without " - ".

    Raises:
        FileNotFoundError: no such file.
        ValueError: fewer than two domains, or one twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; give one with a domain per line, e.g. 'Anime Painting - Photo'")
    lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    pairs = [(target.strip(), origin.strip() or "photo") for target, _, origin in (x.partition(" - ") for x in lines)]
    targets = [target for target, _ in pairs]
    if len(set(targets)) < max(2, len(targets)):
        raise ValueError(f"{path} names {len(set(targets))} domains in {len(targets)} lines; give 2 or more, each once")
    return targets, [origin for _, origin in pairs]


def run(config: HypernetworkRun) -> DomainHyperNetwork:
    """Train, write the hypernetwork, and push it if asked.

    Raises:
        ValueError, OSError, ImportError: bad data, encoder, base or folder, each with one sentence.
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


def train(config: HypernetworkRun, accelerator: Accelerator) -> DomainHyperNetwork:
    """Train in a folder that is locked; see `run`."""
    if config.objective.needs_latents:  # refuses what it refuses before minutes of projections
        with torch.random.fork_rng():
            make_trainer(config, accelerator, dry=True).last_state(except_for=PROJECTED)
    trainer = make_trainer(config, accelerator)
    trainer.last_state()  # refuses a folder of other settings, before anything is written
    parts = config.options, config.training, config.objective, config.tracking
    settings = {name: value for part in parts for name, value in asdict(part).items()}
    start_trackers(accelerator, "hyperdomainnet", config.tracking.report_to, settings)
    return completed(trainer, config.tracking)


def make_trainer(config: HypernetworkRun, accelerator: Accelerator, dry: bool = False) -> Trainer:
    """Return the trainer of a run; a dry one has the mean w in place of projections, and writes nothing."""
    options, training, objective = config.options, config.training, config.objective
    pipe = FewShotGAN.from_pretrained(options.base)
    device = accelerator.device
    names_of_encoders = options.encoder or (CLIPS[:1] if options.texts else ["features"])
    encoders = [load_encoder(name, device) for name in names_of_encoders]
    pictures: list[torch.Tensor] = []  # of each domain, in [-1, 1]
    if options.texts:
        names, origins = read_texts(options.texts)
        domains: dict[str, Any] = {"targets": names, "origins": origins}
    else:
        data = str(options.data)
        if not Path(data).exists():
            raise FileNotFoundError(f"folder {data} does not exist; give one with a folder of images per domain")
        images, domain, names = load_labelled(data, pipe.generator.resolution)
        if domain is None:
            raise ValueError(f"{data} has images, but no folders of them; give a folder of images per domain")
        pictures = [to_floats(images[domain == n].to(device)) for n in range(len(names))]
        domains = {"references": pictures}
        if objective.needs_latents:
            files = [Path(training.output_dir) / "projections" / f"{name}.safetensors" for name in names]
            given = [options.projections and str(Path(options.projections) / file.name) for file in files]
            with accelerator.main_process_first():
                codes = [
                    project(path, pipe, x, replace(options, projections=own), training.seed, dry)
                    for path, own, x in zip(files, given, pictures, strict=True)
                ]
            domains["reference_latents"] = [as_layers(w, pipe.generator) for w in codes]
    record = {**asdict(objective), **asdict(training), "domains": names}
    if objective.needs_latents:
        record |= recorded(options)
    for name in ("output_dir", *JUDGED):
        record.pop(name)
    network = DomainHyperNetwork.for_model(
        pipe.generator,
        encoders[0],
        width=options.width,
        backbone_depth=options.backbone_depth,
        head_depth=options.head_depth,
        base_model_name_or_path=options.base,
        training=record,
    ).to(device)
    features = load_features(device=device) if objective.needs_features else None
    losses = HyperNetworkObjective(objective, network, encoders, features=features, **domains)
    if not dry:
        accelerator.print(
            f"hypernetwork of {network.num_values():,} numbers for vectors of {network.num_deltas:,}; {len(names)} "
            "domains"
        )
    trainer = Trainer(pipe.generator, network, losses, None, training, accelerator)
    trainer.report.title = f"HyperDomainNet (arXiv 2210.08884): a hypernetwork of {options.base}"
    trainer.report.data = f"{len(names)} domains: {', '.join(names)}"
    if pictures:
        trainer.report.images = to_bytes(torch.cat([images[:1] for images in pictures]))
    return trainer


def completed(trainer: Trainer, tracking: TrackingOptions) -> Any:
    """Train a hypernetwork to the end, write its card, and push it if asked; return it in evaluation mode."""
    folder, accelerator = trainer.config.output_dir, trainer.accelerator
    name = Path(folder).name

    def finish(trained: HyperNetwork) -> HyperNetwork:
        if accelerator.is_main_process:
            write_hypernetwork_card(trained, folder, name)
        return trained

    network: Any = trainer.train(finish=finish)
    if accelerator.is_main_process and tracking.push_to_hub:
        network.push_to_hub(tracking.hub_model_id or name)
    accelerator.end_training()
    return network.eval()


def main(argv: Sequence[str] | None = None) -> DomainHyperNetwork:
    """Entry point of the script, see `launch.command`."""
    with command():
        return run(parse(argv))
