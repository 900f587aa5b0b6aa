"""Find and train lottery tickets of GANs on limited data (arXiv 2103.00397); behind training/lottery.py."""

import argparse
from dataclasses import asdict, fields
from pathlib import Path

import torch
from accelerate import Accelerator

from ..adapters import Adapter, TicketAdapter, fingerprint
from ..adapters.ticket import magnitude_masks, sparsity_of
from ..data.datasets import choose_subset, load_labelled
from ..methods.lottery import prune_randomly
from ..models import BigGANDiscriminator, BigGANGenerator, SNGANDiscriminator, SNGANGenerator
from ..models.biggan import biggan_config
from ..models.plain import PlainDiscriminator, PlainGenerator
from ..pipeline import FewShotGAN
from ..utils.files import expanded
from .checkpoints import ANEW, latest_checkpoint, remove_leftovers
from .launch import add_tracking_options, command, holding, start, start_trackers
from .limited import LimitedConfig, LimitedTrainer
from .report import Report

BACKBONES = ("sngan", "biggan")
BIGGAN = {  # picture size: settings of its published run, where they differ from SNGAN's (arXiv 2103.00397, appendix)
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
PARTS = {"generator": "ticket", "discriminator": "ticket_discriminator"}  # network: folder of its mask


def parser() -> argparse.ArgumentParser:
    """Command-line options; every field of `LimitedConfig` is one."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = "folder or zip archive of images, or of folders (classes), or a data set id owner/name"
    p.add_argument("--data", required=True, type=expanded, help=data)
    p.add_argument("--num", type=int, help="train on so many of the images, chosen by --subset_seed")
    p.add_argument("--percent", type=float, help="train on this share of the images")
    p.add_argument("--subset_seed", type=int, default=0)
    p.add_argument("--backbone", choices=BACKBONES, default="sngan")
    p.add_argument("--resolution", type=int, default=32)
    p.add_argument("--channels", type=int, help="width of the generator; default: as published, 256 of SNGAN")
    p.add_argument("--d_channels", type=int, help="width of the discriminator; default: as published, 128 of SNGAN")
    base = "start from and rewind to this base's networks"
    p.add_argument("--pretrained_model_name_or_path", "--base", type=expanded, help=base)
    p.add_argument("--init_seed", type=int, help="of θ₀; default: --seed, which is of all that is drawn in training")
    p.add_argument("--rounds", type=int, default=0, help="of pruning after dense training; 5 of 0.2 leave a third")
    p.add_argument("--prune_rate", type=float, default=PRUNE_RATE, help="share of the remaining that goes each round")
    p.add_argument(
        "--prune", choices=("G", "GD"), default="G", help="prune the generator alone or the discriminator too"
    )
    ticket = "train this ticket once instead of finding one: a round's folder, or random:0.67"
    p.add_argument("--ticket", type=expanded, help=ticket)
    p.add_argument(
        "--allow_other_init", action="store_true", help="train a ticket from other weights than it was drawn from"
    )
    p.add_argument("--distil", action="store_true", help="later rounds learn the dense discriminator's logits too")
    add_tracking_options(p)
    for option in fields(LimitedConfig):
        required = option.name == "output_dir"
        shown = "" if required else f"default {option.default}, or BigGAN's own"
        kind = {"action": argparse.BooleanOptionalAction} if option.type is bool else {"type": option.type}
        kind |= {"type": expanded} if option.name == "output_dir" else {}
        p.add_argument(f"--{option.name}", default=argparse.SUPPRESS, required=required, help=shown, **kind)
    return p


def configure(args: argparse.Namespace) -> LimitedConfig:
    """Settings of the run: what was given, else the backbone's published ones; filled in in `args` too.

    Raises:
        ValueError: options that contradict each other or are out of range.
    """
    if args.rounds < 0:
        raise ValueError(f"rounds={args.rounds}: give 0 (dense alone) or more")
    if not 0 < args.prune_rate < 1:
        raise ValueError(f"prune_rate={args.prune_rate} is not in 0 < prune_rate < 1; 0.2 prunes a fifth")
    if args.ticket and args.rounds:
        raise ValueError(f"--ticket trains a ticket that is there, --rounds {args.rounds} finds one; give one of them")
    if args.distil and not args.rounds:
        raise ValueError("--distil teaches the rounds after the dense one; give --rounds")
    if "distillation_weight" in vars(args) and not args.distil:
        raise ValueError("--distillation_weight is of --distil; give both or neither")
    if not args.rounds and (args.prune != "G" or args.prune_rate != PRUNE_RATE):
        raise ValueError(
            "--prune and --prune_rate are of --rounds, which find a ticket; give --rounds or leave them out"
        )
    for name in ("channels", "d_channels"):
        if (value := getattr(args, name)) is not None and (value < 8 or value % 8):
            raise ValueError(f"{name}={value}: give a multiple of 8")
    if args.pretrained_model_name_or_path and (args.channels or args.d_channels or args.init_seed is not None):
        raise ValueError(
            "--channels, --d_channels and --init_seed are of new networks, --base has its own; leave them out"
        )
    if args.backbone == "biggan" and args.resolution not in BIGGAN:
        raise ValueError(f"BigGAN is laid out for {', '.join(map(str, BIGGAN))} px, not {args.resolution}")
    usual = BIGGAN[args.resolution] if args.backbone == "biggan" else {}
    for option in fields(LimitedConfig):
        if option.name not in vars(args):
            setattr(args, option.name, usual.get(option.name, option.default))
    return LimitedConfig(**{f.name: getattr(args, f.name) for f in fields(LimitedConfig)})


def networks(args: argparse.Namespace, classes: int | None):
    """θ₀ of generator and discriminator: a base's, or drawn from `init_seed` alone.

    Raises:
        ValueError: the base has no discriminator, or BigGAN meets data without classes.
    """
    if args.pretrained_model_name_or_path:
        pipe = FewShotGAN.from_pretrained(args.pretrained_model_name_or_path)
        g, d = pipe.generator, pipe.discriminator
        if not isinstance(g, PlainGenerator) or not isinstance(d, PlainDiscriminator):
            raise ValueError(
                f"{args.pretrained_model_name_or_path} is a {type(g).__name__} with "
                f"{'no discriminator' if d is None else type(d).__name__}; tickets are found of SNGAN, BigGAN and "
                "GP-GAN with their discriminators"
            )
        return g, d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed if args.init_seed is None else args.init_seed)
        if args.backbone == "sngan":
            g = SNGANGenerator(args.channels or 256, resolution=args.resolution)
            return g, SNGANDiscriminator(args.d_channels or 128, args.resolution)
        if classes is None:
            raise ValueError("BigGAN is class-conditional; give a folder of folders, or use --backbone sngan")
        made = []
        for cls, part, width in (
            (BigGANGenerator, "generator", args.channels),
            (BigGANDiscriminator, "discriminator", args.d_channels),
        ):
            options = biggan_config(args.resolution, part, num_classes=classes)
            if width is not None:
                least = min(options["block_channels"])
                options["block_channels"] = [width * wide // least for wide in options["block_channels"]]
            made.append(cls(**options))
        return tuple(made)


def run(args: argparse.Namespace) -> list[Path]:
    """Train, prune, rewind and train again; each round is a base in `round-KK`, with the ticket that it was trained on.

    Returns:
        Folders of the rounds.

    Raises:
        ValueError, OSError: bad options, data, base, ticket or folder, each with one sentence.
        TrainingDiverged, Interrupted: as of `engine.Trainer.train`.
    """
    config, accelerator = configure(args), start(args)
    with holding(args.output_dir, accelerator):
        return find(args, config, accelerator)


def find(args: argparse.Namespace, config: LimitedConfig, accelerator: Accelerator) -> list[Path]:
    """`run` with options that are filled in, in a folder that is held."""
    images, labels, names = load_labelled(args.data, args.resolution)
    rows = choose_subset(len(images), args.num, args.percent, args.subset_seed)
    images, labels = images[rows], None if labels is None else labels[rows]
    out, classes = Path(args.output_dir), len(names) or None
    g, d = networks(args, classes)
    if g.num_classes is None:  # the network knows no classes: what the data says of them is left alone
        labels = classes = None
    elif g.num_classes != (classes or 1):
        raise ValueError(
            f"{args.data} has {classes or 'no'} classes, the networks have {g.num_classes}; use data of as many, or "
            "new networks"
        )
    ticket = read_masks(args.ticket, g, d, args) if args.ticket else {}
    accelerator.print(f"{type(g).__name__}, {len(images)} images, {classes or 'no'} classes; θ₀ {fingerprint(g)}")
    start_trackers(args, accelerator, "lottery")
    steps = (args.rounds + 1) * config.max_train_steps
    report = Report(out, accelerator, steps, f"lottery: {args.rounds} rounds of pruning a {type(g).__name__}")
    report.images, report.data = images, f"{len(images)} images of {args.data}, {classes or 'no'} classes"
    report.settings = {k: v for k, v in vars(args).items() if v is not None}
    report.facts = {"First weights": f"fingerprint {fingerprint(g)}", "Generator": f"{g.num_parameters():,} numbers"}
    with report.watched():
        folders = train_rounds(args, config, report, ticket, labels, classes)
        report.end("finished")
    accelerator.end_training()
    return folders


def train_rounds(args, config: LimitedConfig, report: Report, ticket: dict, labels, classes: int | None) -> list[Path]:
    """Each round from θ₀, on what the prunings before it left; their folders."""
    accelerator, images, out = report.accelerator, report.images, report.folder
    folders, teacher = [], None
    for number in range(args.rounds + 1):
        folder = out / f"round-{number:02d}"
        g, d = networks(args, classes)  # rewind: nothing of the round before is left
        masks = read_masks(folder, g, d, args) if number else ticket
        shares = ", ".join(f"{name} {sparsity_of(of):.2%} pruned" for name, of in masks.items()) or "dense"
        accelerator.print(f"round {number}: {shares}")
        settings = asdict(config) | {"output_dir": str(folder)}
        settings["distillation_weight"] = (config.distillation_weight or 1.0) if teacher is not None else 0.0
        tag = f"{folder.name}/"  # each round has curves of its own
        trainer = LimitedTrainer(g, d, images, LimitedConfig(**settings), accelerator, labels, masks, teacher, tag)
        trainer.keeps_length = any((out / f"round-{number + 1:02d}" / part).is_dir() for part in PARTS.values())
        if args.ticket:
            write_tickets(folder, args, classes, masks, config, len(images), accelerator)
        report.rounds[folder.name], trainer.report.parent = trainer.report, report
        trainer.train()
        folders.append(folder)
        if number == 0 and args.distil:
            teacher = trainer.discriminator
        if number < args.rounds:
            pruned = {
                name: magnitude_masks(getattr(trainer, name), args.prune_rate, masks=masks.get(name))
                for name in (PARTS if args.prune == "GD" else ("generator",))
            }
            write_tickets(out / f"round-{number + 1:02d}", args, classes, pruned, config, len(images), accelerator)
    return folders


def write_tickets(folder: Path, args, classes, masks: dict[str, dict], config, num_images: int, accelerator) -> None:
    """A round's masks as tickets of θ₀, before it is trained on them.

    Raises:
        ValueError: the folder has other tickets, of a run with other settings.
    """
    if accelerator.is_main_process:
        known = {}
        for name, part in PARTS.items():
            remove_leftovers(folder / part)
            if (folder / part / "adapter_config.json").is_file():  # else a kill left it half-written
                known[name] = Adapter.from_pretrained(folder / part).masks()
        same = all(
            there.keys() == masks.get(name, {}).keys()
            and all(torch.equal(there[k], m.cpu()) for k, m in masks[name].items())
            for name, there in known.items()
        )
        if not same or (known and known.keys() != masks.keys() and latest_checkpoint(folder)):
            raise ValueError(f"{folder} holds tickets of a run with other settings; use them again to resume, {ANEW}")
        start_of = dict(zip(PARTS, networks(args, classes), strict=True))
        for name, of in masks.items():
            if name in known:
                continue
            record = {**asdict(config), "sparsity": sparsity_of(of), "num_images": num_images}
            record.pop("output_dir")
            ticket = TicketAdapter.for_model(start_of[name], masks=of, method="lottery", training=record)
            ticket.save_pretrained(folder / PARTS[name])
    accelerator.wait_for_everyone()


def read_masks(source: str | Path, generator, discriminator, args: argparse.Namespace) -> dict[str, dict]:
    """Masks of a round's folder, or random ones (`random:SPARSITY`, drawn from the seed) for the generator.

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
        return {"generator": prune_randomly(generator, pruned, torch.Generator().manual_seed(args.seed))}
    masks = {}
    for (name, folder), network in zip(PARTS.items(), (generator, discriminator), strict=True):
        path = Path(source) / folder
        if name == "discriminator" and not path.is_dir():
            continue
        ticket = Adapter.from_pretrained(path)
        if not isinstance(ticket, TicketAdapter):
            raise ValueError(f"{path} holds an adapter of type {ticket.adapter_type!r}, not a ticket")
        drawn_from, have = ticket.config.base_fingerprint, fingerprint(network)
        if drawn_from != have and not args.allow_other_init:
            raise ValueError(
                f"{path} was drawn from weights θ₀ with fingerprint {drawn_from}, these have {have}; use the seed and "
                "networks of that run, or --allow_other_init for a random ticket"
            )
        masks[name] = ticket.masks()
    return masks


def main(argv=None) -> None:
    """Entry point of the script, see `launch.command`."""
    args = parser().parse_args(argv)
    with command():
        run(args)
