"""Train a hypernetwork on many domains at once (HyperDomainNet, arXiv 2210.08884, §4); behind the script."""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from ..adapters import DomainHyperNetwork
from ..data.datasets import load_labelled
from ..data.images import to_bytes, to_floats
from ..features import load_features
from ..features.encoders import load_encoder
from ..hub.cards import write_hypernetwork_card
from ..methods.hyperdomain import HyperDomainConfig, HyperNetworkObjective
from ..pipeline import FewShotGAN
from ..utils.files import expanded
from ..utils.ranges import Range, check_number
from .adapt import (
    CLIPS,
    CONSTANT,
    JUDGED,
    PROJECTION,
    add_projection_options,
    add_run_options,
    as_layers,
    configure,
    fill_projection_options,
    projections,
)
from .engine import Trainer, TrainingConfig
from .launch import command, holding, start, start_trackers

PRESETS = ("hypernetwork", "hypernetwork_few_images", "hypernetwork_images")
SETTINGS = {  # of words as published; the average would leave batch norm's statistics behind
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


def parser() -> argparse.ArgumentParser:
    """Command-line options; every field of `HyperDomainConfig` and `TrainingConfig` is one."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    name_or_path = {"type": expanded, "help": "embedded name, folder or repo id"}
    p.add_argument("--pretrained_model_name_or_path", "--base", default="ffhq", **name_or_path)
    p.add_argument("--data", type=expanded, help="folder or zip archive with one folder of images per domain")
    texts = "file with one domain per line, 'Target' or 'Target - Source'; instead of --data"
    p.add_argument("--texts", type=expanded, help=texts)
    p.add_argument("--encoder", nargs="+", help="features, or CLIP as folders or repo ids; the first is what it reads")
    p.add_argument("--width", type=int, default=512, help="of all hidden layers")
    p.add_argument("--backbone_depth", type=int, default=4)
    p.add_argument("--head_depth", type=int, default=2)
    p.add_argument(
        "--preset",
        choices=PRESETS,
        help="default: hypernetwork for texts, ..._few_images for images; ..._images: as published, on their latents",
    )
    add_projection_options(p)
    add_run_options(p, HyperDomainConfig, SETTINGS, HyperNetworkObjective.uses_images, PUBLISHED)
    return p


def read_texts(path: str | Path) -> tuple[list[str], list[str]]:
    """Targets and sources of a list of domains; a line without " - " is changed from "photo".

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


def run(args: argparse.Namespace) -> DomainHyperNetwork:
    """Train, write the hypernetwork, and push it if asked.

    Raises:
        ValueError, OSError, ImportError: bad options, data, encoder, base or folder, each with one sentence.
        TrainingDiverged, Interrupted: as of `Trainer.train`.
    """
    if (args.data is None) == (args.texts is None):
        raise ValueError("domains are shown by pictures or named by words; give --data or --texts")
    args.preset = args.preset or PRESETS[args.texts is None]
    training, config = configure(args, HyperDomainConfig, SETTINGS | PUBLISHED.get(args.preset, {}))
    fill_projection_options(args, config)
    if args.ema_decay:
        raise ValueError(f"ema_decay={args.ema_decay}: batch norm's statistics would not belong to averaged weights; 0")
    for name, least in (("width", 1), ("backbone_depth", 1), ("head_depth", 1)):
        check_number(name, getattr(args, name), Range(least), whole=True)
    accelerator = start(args)
    with holding(args.output_dir, accelerator):
        return train(args, training, config, accelerator)


def train(args: argparse.Namespace, training: TrainingConfig, config, accelerator: Accelerator) -> DomainHyperNetwork:
    """`run` with options that are filled in, in a folder that is held."""
    pipe = FewShotGAN.from_pretrained(args.pretrained_model_name_or_path)
    device = accelerator.device
    encoders = [load_encoder(name, device) for name in args.encoder or (CLIPS[:1] if args.texts else ["features"])]
    if args.texts:
        names, origins = read_texts(args.texts)
        domains = {"targets": names, "origins": origins}
    else:
        if not Path(args.data).expanduser().exists():
            raise FileNotFoundError(f"folder {args.data} does not exist; give one with a folder of images per domain")
        images, domain, names = load_labelled(args.data, pipe.generator.resolution)
        if domain is None:
            raise ValueError(f"{args.data} has images, but no folders of them; give a folder of images per domain")
        shown = [to_floats(images[domain == n].to(device)) for n in range(len(names))]
        domains = {"references": shown}
        if config.needs_latents:
            files = [Path(args.output_dir) / "projections" / f"{name}.safetensors" for name in names]
            with accelerator.main_process_first():
                found = [projections(path, pipe, x, args) for path, x in zip(files, shown, strict=True)]
            domains["reference_latents"] = [as_layers(w, pipe.generator) for w in found]
    record = {**asdict(config), **asdict(training), "domains": names}
    if config.needs_latents:
        record |= {name: getattr(args, name) for name in PROJECTION}
    for name in ("output_dir", *JUDGED):
        record.pop(name)
    network = DomainHyperNetwork.for_model(
        pipe.generator,
        encoders[0],
        width=args.width,
        backbone_depth=args.backbone_depth,
        head_depth=args.head_depth,
        base_model_name_or_path=args.pretrained_model_name_or_path,
        training=record,
    ).to(device)
    features = load_features(device=device) if config.needs_features else None
    objective = HyperNetworkObjective(config, network, encoders, features=features, **domains)
    accelerator.print(
        f"hypernetwork of {network.num_values():,} numbers for vectors of {network.num_deltas:,}; {len(names)} domains"
    )
    trainer = Trainer(pipe.generator, network, objective, None, training, accelerator)
    trainer.report.title = f"HyperDomainNet (arXiv 2210.08884): a hypernetwork of {args.pretrained_model_name_or_path}"
    trainer.report.data = f"{len(names)} domains: {', '.join(names)}"
    if not args.texts:
        trainer.report.images = to_bytes(torch.cat([images[:1] for images in shown]))
    start_trackers(args, accelerator, "hyperdomainnet")
    name = Path(training.output_dir).name

    def finish(result: DomainHyperNetwork) -> DomainHyperNetwork:
        if accelerator.is_main_process:
            write_hypernetwork_card(result, training.output_dir, name)
        return result

    result = trainer.train(finish=finish)
    if accelerator.is_main_process and args.push_to_hub:
        result.push_to_hub(args.hub_model_id or name)
    accelerator.end_training()
    return result.eval()


def main(argv=None) -> DomainHyperNetwork:
    """Entry point of the scripts, see `launch.command`."""
    args = parser().parse_args(argv)
    with command():
        return run(args)
