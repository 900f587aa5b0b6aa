"""Find and train lottery tickets of GANs on limited data (arXiv 2103.00397); behind training/lottery.py."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters import Adapter, TicketAdapter, fingerprint
from ..adapters.ticket import magnitude_masks, sparsity_of
from ..data.datasets import choose_subset, load_labelled
from ..methods.lottery import prune_randomly
from ..models import (
    BigGANDiscriminator,
    BigGANGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
)
from ..models.biggan import biggan_config
from ..models.plain import PlainDiscriminator, PlainGenerator
from ..pipeline import FewShotGAN
from ..utils.random import check_seed, initialised
from .checkpoints import ANEW, begun_settings, latest_checkpoint, remove_leftovers
from .command_line import make_parser, optional
from .config import TrackingOptions, given_options, take
from .idle import refuse_idle
from .launch import command, holding, start, start_trackers
from .limited import LimitedConfig, LimitedTrainer
from .limited_styles import StyleConfig, StyleTrainer, lazy_adam
from .report import Report

BACKBONES = ("sngan", "biggan", "stylegan2")
BIGGAN = {  # resolution → settings of the published run that differ from SNGAN's (arXiv 2103.00397, appendix)
    size: {
        "max_train_steps": 100_000,
        "ema_decay": 0.9999,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-6,
        "flip": True,
        **own,
    }
    for size, own in {
        32: {"d_batch_size": 64, "g_batch_size": 64, "adam_beta1": 0.5, "ema_start": 1000},
        64: {
            **{"d_batch_size": 256, "g_batch_size": 256, "d_steps": 1, "ema_start": 20_000},
            **{"learning_rate": 1e-4, "d_learning_rate": 4e-4},
        },
        128: {"d_batch_size": 256, "g_batch_size": 256, "d_steps": 2, "ema_start": 20_000},
    }.items()
}
PRUNE_RATE = 0.2
STYLE_SETTINGS = [
    option.name for option in fields(StyleConfig) if option.name not in LimitedConfig.__dataclass_fields__
]
PARTS = {"generator": "ticket", "discriminator": "ticket_discriminator"}  # network → folder of its ticket


@dataclass(frozen=True)
class LotteryOptions:
    """Options of a search for tickets: data, networks, rounds.

    Attributes:
        data: folder or zip archive of images, or of folders (classes), or a data set id.
        num, percent, subset_seed: train on a part of the images, see `data.datasets.choose_subset`.
        backbone, resolution, channels, d_channels: new networks; widths default to the published ones. With `base`,
            the backbone says how its networks are trained.
        base: start from these networks instead.
        init_seed: of new networks; None: the run's seed.
        rounds: of pruning after dense training.
        prune_rate: share of the remaining weights that goes in each round.
        prune: "G" or "GD": whether the discriminator is pruned too.
        ticket: train this ticket once instead of finding one.
        allow_other_init: train a ticket from other weights than it was drawn from.
        distil: later rounds learn the dense discriminator's logits too.
    """

    data: str = field(
        metadata={"help": "folder or zip archive of images, or of folders (classes), or a data set id owner/name"}
    )
    num: int | None = field(default=None, metadata={"help": "train on so many of the images, chosen by --subset_seed"})
    percent: float | None = field(default=None, metadata={"help": "train on this share of the images"})
    subset_seed: int = field(default=0, metadata={"help": "seed of the choice of images; default 0"})
    backbone: str = field(default="sngan", metadata={"choices": list(BACKBONES), "help": "default sngan"})
    resolution: int = field(default=32, metadata={"help": "side of the pictures in px; default 32"})
    channels: int | None = field(
        default=None,
        metadata={"help": "width of the generator; default: as published, 256 of SNGAN, at most 512 of StyleGAN2"},
    )
    d_channels: int | None = field(
        default=None, metadata={"help": "width of the discriminator; default: as published, 128 of SNGAN"}
    )
    base: str | None = field(
        default=None,
        metadata={
            "aliases": ["--pretrained_model_name_or_path"],
            "help": "start from and rewind to this base's networks",
        },
    )
    init_seed: int | None = field(
        default=None,
        metadata={"help": "seed of θ₀; default: --seed, which is of all that is drawn in training"},
    )
    rounds: int = field(default=0, metadata={"help": "rounds of pruning after dense training; 5 of 0.2 leave a third"})
    prune_rate: float = field(
        default=PRUNE_RATE, metadata={"help": "share of the remaining weights that goes each round; default 0.2"}
    )
    prune: str = field(
        default="G",
        metadata={"choices": ["G", "GD"], "help": "prune the generator alone or the discriminator too"},
    )
    ticket: str | None = field(
        default=None,
        metadata={"help": "train this ticket once instead of finding one: a round's folder, or random:0.67"},
    )
    allow_other_init: bool = field(
        default=False, metadata={"help": "train a ticket from other weights than it was drawn from"}
    )
    distil: bool = field(default=False, metadata={"help": "later rounds learn the dense discriminator's logits too"})

    def __post_init__(self):
        check_seed(self.subset_seed)
        if self.init_seed is not None:
            check_seed(self.init_seed)
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: give 0 (dense alone) or more")
        if not 0 < self.prune_rate < 1:
            raise ValueError(f"prune_rate={self.prune_rate} is not in 0 < prune_rate < 1; 0.2 prunes a fifth")
        if self.ticket and self.rounds:
            raise ValueError(
                f"--ticket trains a ticket that is there, --rounds {self.rounds} finds one; give one of them"
            )
        if self.distil and not self.rounds:
            raise ValueError("--distil teaches the rounds after the dense one; give --rounds")
        if not self.rounds and (self.prune != "G" or self.prune_rate != PRUNE_RATE):
            raise ValueError(
                "--prune and --prune_rate are of --rounds, which find a ticket; give --rounds or leave them out"
            )
        for name in ("channels", "d_channels"):
            if (value := getattr(self, name)) is not None and (value < 8 or value % 8):
                raise ValueError(f"{name}={value}: give a multiple of 8")
        if self.base and (self.channels or self.d_channels or self.init_seed is not None):
            raise ValueError(
                "--channels, --d_channels and --init_seed are of new networks, --base has its own; leave them out"
            )
        if self.backbone == "stylegan2" and self.distil:
            raise ValueError("--distil teaches logits of a hinge loss; --backbone stylegan2 has the logistic one")
        if self.backbone == "biggan" and self.resolution not in BIGGAN:
            raise ValueError(f"BigGAN is laid out for {', '.join(map(str, BIGGAN))} px, not {self.resolution}")


@dataclass(frozen=True)
class LotteryRun:
    """Resolved settings of a search for tickets."""

    options: LotteryOptions
    training: LimitedConfig  # a StyleConfig for StyleGAN2
    report_to: str = "tensorboard"
    num_threads: int = 0

    @property
    def output_dir(self) -> str:
        return self.training.output_dir

    def flat(self) -> dict[str, Any]:
        """Return option → value of all settings."""
        reported = {"report_to": self.report_to, "num_threads": self.num_threads}
        return {**asdict(self.options), **reported, **asdict(self.training)}


def make_run(**chosen: Any) -> LotteryRun:
    """Resolve a search: options that were given, then the published settings of the backbone, then defaults.

    Args:
        chosen: fields of `LotteryOptions` and `LimitedConfig`, `report_to`, `num_threads`; None means not given.

    Raises:
        ValueError: options that contradict each other, cannot act, or are out of range.
    """
    given = given_options(chosen)
    chosen = dict(given)
    options = LotteryOptions(**take(chosen, LotteryOptions))
    if "distillation_weight" in chosen and not options.distil:
        raise ValueError("--distillation_weight is of --distil; give both or neither")
    if options.distil and chosen.get("distillation_weight") == 0:
        raise ValueError(
            "--distillation_weight 0 with --distil teaches nothing; give a weight above 0, e.g. 1, or leave both out"
        )
    usual = BIGGAN[options.resolution] if options.backbone == "biggan" else {}
    if options.backbone == "stylegan2":
        usual = style_rates(chosen)
    config_class = StyleConfig if options.backbone == "stylegan2" else LimitedConfig
    training = config_class(**{**usual, **take(chosen, config_class)})
    if of_styles := take(chosen, StyleConfig):
        raise ValueError(f"--{next(iter(of_styles))} is of --backbone stylegan2; {options.backbone} has none")
    reported = {name: chosen.pop(name) for name in ("report_to", "num_threads") if name in chosen}
    if chosen:
        raise ValueError(f"--{next(iter(chosen))} is no option of a search for tickets; leave it out")
    refuse_idle(given, f"{training.output_dir}/round-00", training, options)
    return LotteryRun(options, training, **reported)


def style_rates(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return Adam's usual rates and β2 for StyleGAN2, see `lazy_adam`; of a run of an older version, those of then.

    Args:
        chosen: fields of `StyleConfig`.
    """
    begun = begun_settings(Path(chosen.get("output_dir", "")) / "round-00")
    if begun and "d_adam_beta2" not in begun:
        return {"d_adam_beta2": None}
    rates = {}
    for part, term in (("", "path_length"), ("d_", "r1")):
        lazy = (chosen.get(name, getattr(StyleConfig, name)) for name in (f"{term}_weight", f"{term}_every"))
        rates[f"{part}learning_rate"], rates[f"{part}adam_beta2"] = lazy_adam(*lazy)
    return rates | ({"d_adam_beta2": None} if "adam_beta2" in chosen else {})


def parser():
    """Make the parser of the script. Its options are the fields of the dataclasses of a run."""
    settings = {option.name: f"{option.default}, or the backbone's own" for option in fields(LimitedConfig)}
    settings |= {name: f"{getattr(StyleConfig, name)}, of stylegan2" for name in STYLE_SETTINGS}
    parts = [
        optional(LotteryOptions, required=("data",)),
        optional(TrackingOptions, skipped=("push_to_hub", "hub_model_id")),
        optional(StyleConfig, required=("output_dir",), usual=settings),
    ]
    return make_parser(parts, (__doc__ or "").splitlines()[0])


def parse(argv: Sequence[str] | None = None) -> LotteryRun:
    """Parse the arguments of the script; see `make_run` for errors."""
    return make_run(**vars(parser().parse_args(argv)))


def networks(search: LotteryRun, classes: int | None) -> tuple[Any, Any]:
    """Return generator and discriminator with the first weights θ₀: a base's, or drawn from `init_seed`.

    Raises:
        ValueError: the base has no discriminator, or BigGAN meets data without classes.
    """
    if search.options.base:
        pipe = FewShotGAN.from_pretrained(search.options.base)
        g, d = pipe.generator, pipe.discriminator
        styles = isinstance(g, StyleGAN2Generator) and isinstance(d, StyleGAN2Discriminator)
        if not styles and not (isinstance(g, PlainGenerator) and isinstance(d, PlainDiscriminator)):
            raise ValueError(
                f"{search.options.base} is a {type(g).__name__} with "
                f"{'no discriminator' if d is None else type(d).__name__}; tickets are found of SNGAN, BigGAN, GP-GAN "
                "and StyleGAN2 with their discriminators"
            )
        if styles != (search.options.backbone == "stylegan2"):
            fitting = "give --backbone stylegan2" if styles else "leave --backbone stylegan2 out"
            raise ValueError(f"{search.options.base} is a {type(g).__name__}; {fitting}")
        return g, d
    with initialised(search.training.seed if search.options.init_seed is None else search.options.init_seed):
        if search.options.backbone == "sngan":
            g = SNGANGenerator(search.options.channels or 256, resolution=search.options.resolution)
            return g, SNGANDiscriminator(search.options.d_channels or 128, search.options.resolution)
        if search.options.backbone == "stylegan2":
            size, widths = search.options.resolution, (search.options.channels, search.options.d_channels)
            g_width, d_width = (width or 512 for width in widths)  # up to 64 px; above, half as wide at each doubling
            g = StyleGAN2Generator(size, 64 * g_width, g_width)
            return g, StyleGAN2Discriminator(size, 64 * d_width, d_width)
        if classes is None:
            raise ValueError("BigGAN is class-conditional; give a folder of folders, or use --backbone sngan")
        made = []
        for cls, part, width in (
            (BigGANGenerator, "generator", search.options.channels),
            (BigGANDiscriminator, "discriminator", search.options.d_channels),
        ):
            options = biggan_config(search.options.resolution, part, num_classes=classes)
            if width is not None:
                least = min(options["block_channels"])
                options["block_channels"] = [width * wide // least for wide in options["block_channels"]]
            made.append(cls(**options))
        return tuple(made)


def run(search: LotteryRun) -> list[Path]:
    """Train, prune, rewind and train again; each round is a base in `round-KK`, with the ticket that it was trained on.

    Returns:
        Folders of the rounds.

    Raises:
        ValueError, OSError: bad options, data, base, ticket or folder, each with one sentence.
        TrainingDiverged, Interrupted: as of `engine.Trainer.train`.
    """
    accelerator = start(
        search.output_dir, seed=search.training.seed, report_to=search.report_to, num_threads=search.num_threads
    )
    with holding(search.output_dir, accelerator):
        return find(search, accelerator)


def find(search: LotteryRun, accelerator: Accelerator) -> list[Path]:
    """Search in a folder that is locked; see `run`."""
    images, labels, names = load_labelled(search.options.data, search.options.resolution)
    rows = choose_subset(len(images), search.options.num, search.options.percent, search.options.subset_seed)
    images, labels = images[rows], None if labels is None else labels[rows]
    out, classes = Path(search.output_dir), len(names) or None
    g, d = networks(search, classes)
    if g.num_classes is None:  # the network has no classes, so those of the data are ignored
        labels = classes = None
    elif g.num_classes != (classes or 1):
        raise ValueError(
            f"{search.options.data} has {classes or 'no'} classes, the networks have {g.num_classes}; use data "
            "of as many, or new networks"
        )
    ticket: dict[str, Any] = read_masks(search.options.ticket, g, d, search) if search.options.ticket else {}
    accelerator.print(f"{type(g).__name__}, {len(images)} images, {classes or 'no'} classes; θ₀ {fingerprint(g)}")
    if search.training.ema_decay and search.training.ema_start >= search.training.max_train_steps:  # by the backbone
        accelerator.print(
            f"no weights are averaged: the average begins at step {search.training.ema_start}, after the "
            f"{search.training.max_train_steps} of the run; give --ema_start below that for one"
        )
    start_trackers(accelerator, "lottery", search.report_to, search.flat())
    steps = (search.options.rounds + 1) * search.training.max_train_steps
    report = Report(out, accelerator, steps, f"lottery: {search.options.rounds} rounds of pruning a {type(g).__name__}")
    report.images, report.data = images, f"{len(images)} images of {search.options.data}, {classes or 'no'} classes"
    report.settings = {k: v for k, v in search.flat().items() if v is not None}
    report.facts = {"First weights": f"fingerprint {fingerprint(g)}", "Generator": f"{g.num_parameters():,} numbers"}
    with report.watched():
        folders = train_rounds(search, report, ticket, images, labels, classes)
        report.end("finished")
    accelerator.end_training()
    return folders


def train_rounds(
    search: LotteryRun, report: Report, ticket: dict, images: torch.Tensor, labels, classes: int | None
) -> list[Path]:
    """Train each round from θ₀ with the masks of the round before; return the folders of the rounds."""
    accelerator, out = report.accelerator, report.folder
    folders, teacher = [], None
    for number in range(search.options.rounds + 1):
        folder = out / f"round-{number:02d}"
        g, d = networks(search, classes)  # rewind to θ₀
        masks: dict[str, Any] = read_masks(folder, g, d, search) if number else ticket
        shares = ", ".join(f"{name} {sparsity_of(of):.2%} pruned" for name, of in masks.items()) or "dense"
        accelerator.print(f"round {number}: {shares}")
        weight = (search.training.distillation_weight or 1.0) if teacher is not None else 0.0
        training = replace(search.training, output_dir=str(folder), distillation_weight=weight)
        tag = f"{folder.name}/"  # names of a round's curves
        trainer_class: Any = StyleTrainer if isinstance(training, StyleConfig) else LimitedTrainer
        trainer = trainer_class(g, d, images, training, accelerator, labels, masks, teacher, tag)
        trainer.keeps_length = any((out / f"round-{number + 1:02d}" / part).is_dir() for part in PARTS.values())
        if search.options.ticket:
            trainer.last_state()  # refuses a folder of other settings, before anything is written
            write_tickets(folder, search, classes, masks, len(images), accelerator)
        report.rounds[folder.name], trainer.report.parent = trainer.report, report
        trainer.train()
        folders.append(folder)
        if number == 0 and search.options.distil:
            teacher = trainer.discriminator
        if number < search.options.rounds:
            pruned = {
                name: magnitude_masks(getattr(trainer, name), search.options.prune_rate, masks=masks.get(name))
                for name in (PARTS if search.options.prune == "GD" else ("generator",))
            }
            write_tickets(out / f"round-{number + 1:02d}", search, classes, pruned, len(images), accelerator)
    return folders


def write_tickets(
    folder: Path, search: LotteryRun, classes, masks: dict[str, dict], num_images: int, accelerator
) -> None:
    """Write the masks of a round as tickets of θ₀, before the round is trained.

    Raises:
        ValueError: the folder has other tickets, of a run with other settings.
    """
    if accelerator.is_main_process:
        known = {}
        for name, part in PARTS.items():
            remove_leftovers(folder / part)
            if (folder / part / "adapter_config.json").is_file():  # otherwise a kill left it incomplete
                known[name] = Adapter.from_pretrained(folder / part).masks()
        same = all(
            there.keys() == masks.get(name, {}).keys()
            and all(torch.equal(there[k], m.cpu()) for k, m in masks[name].items())
            for name, there in known.items()
        )
        if not same or (known.keys() != masks.keys() and latest_checkpoint(folder)):
            raise ValueError(f"{folder} holds tickets of a run with other settings; use them again to resume, {ANEW}")
        start_of = dict(zip(PARTS, networks(search, classes), strict=True))
        for name, of in masks.items():
            if name in known:
                continue
            record = {**asdict(search.training), "sparsity": sparsity_of(of), "num_images": num_images}
            record.pop("output_dir")
            ticket = TicketAdapter.for_model(start_of[name], masks=of, method="lottery", training=record)
            ticket.save_pretrained(folder / PARTS[name])
    accelerator.wait_for_everyone()


def read_masks(source: str | Path, generator, discriminator, search: LotteryRun) -> dict[str, dict]:
    """Read the masks of a round's folder, or draw random ones for the generator (`random:SPARSITY`).

    Raises:
        FileNotFoundError: there is no ticket.
        ValueError: it is another kind of adapter, of another network, or drawn from other weights.
    """
    kind, _, share = str(source).partition(":")
    if kind == "random":
        try:
            pruned = float(share)
        except ValueError:
            raise ValueError(f"--ticket {source}: give the sparsity, e.g. random:0.67") from None
        return {"generator": prune_randomly(generator, pruned, torch.Generator().manual_seed(search.training.seed))}
    masks = {}
    for (name, folder), network in zip(PARTS.items(), (generator, discriminator), strict=True):
        path = Path(source) / folder
        if name == "discriminator" and not path.is_dir():
            continue
        ticket = Adapter.from_pretrained(path)
        if not isinstance(ticket, TicketAdapter):
            raise ValueError(f"{path} holds an adapter of type {ticket.adapter_type!r}, not a ticket")
        drawn_from, have = ticket.config.base_fingerprint, fingerprint(network)
        if drawn_from != have and not search.options.allow_other_init:
            raise ValueError(
                f"{path} was drawn from weights θ₀ with fingerprint {drawn_from}, these have {have}; use the seed and "
                "networks of that run, or --allow_other_init for a random ticket"
            )
        masks[name] = ticket.masks()
    return masks


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script, see `launch.command`."""
    with command():
        run(parse(argv))
