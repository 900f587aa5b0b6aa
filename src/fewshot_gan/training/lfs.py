"""LFS-GAN (arXiv 2308.11917): adapt a base to about ten images; behind `training/lfs.py` and `fewshot-gan adapt`."""

import argparse
import os
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from ..adapters import Adapter, trainable_types
from ..adapters.domain_vector import PARAMETRIZATIONS, PLACEMENTS
from ..cards import write_adapter_card
from ..features import load_features
from ..hub import embedded_datasets
from ..methods.lfs_gan import LFSConfig, LFSObjective
from ..pipeline import FewShotGAN
from .data import load_images
from .engine import Trainer, TrainingConfig, TrainingDiverged

OPTIONS = {"rank": "left", "placement": "domain_vector", "parametrization": "domain_vector"}  # of which adapter


def parser() -> argparse.ArgumentParser:
    """Command-line options; every field of `LFSConfig` and `TrainingConfig` is one."""
    p = argparse.ArgumentParser(prog="lfs.py", description=__doc__.splitlines()[0])
    p.add_argument("--pretrained_model_name_or_path", "--base", default="ffhq", help="embedded name, folder or repo id")
    p.add_argument("--train_data_dir", "--data", required=True, help="image folder, embedded set, or datasets id")
    p.add_argument("--adapter", choices=sorted(trainable_types()), default="left")
    p.add_argument("--rank", type=int, help="of left: default 1; 0 = one factor per weight")
    p.add_argument("--placement", choices=PLACEMENTS, help="of domain_vector: default post_demod")
    p.add_argument("--parametrization", choices=PARAMETRIZATIONS, help="of domain_vector: default input")
    p.add_argument(
        "--preset",
        choices=("few_images", "paper"),
        default="few_images",
        help="few_images: projected discriminator, statistics and content, for a CPU; paper: LFS-GAN as published",
    )
    p.add_argument("--report_to", default="tensorboard", help="Accelerate tracker, or none")
    p.add_argument("--num_threads", type=int, default=0, help="CPU threads per process; default: all cores, shared")
    p.add_argument("--push_to_hub", action="store_true")
    p.add_argument("--hub_model_id", help="repo id of --push_to_hub; default: the output folder's name")
    for cls in (TrainingConfig, LFSConfig):
        for field in fields(cls):
            required = field.name == "output_dir"
            default = argparse.SUPPRESS if cls is LFSConfig or required else field.default
            kind = field.type if isinstance(field.type, type) else {"int": int, "float": float, "str": str}[field.type]
            shown = "" if required else f"default {field.default}" if cls is TrainingConfig else "default: the preset's"
            p.add_argument(f"--{field.name}", type=kind, default=default, required=required, help=shown)
    return p


def run(args: argparse.Namespace) -> Adapter:
    """Train, write the adapter with its card, and push it if asked.

    Returns:
        The trained adapter.

    Raises:
        ValueError, FileNotFoundError: bad options, data or base, each with one sentence.
        TrainingDiverged: a loss is not finite.
    """
    given = vars(args)
    for name, kind in OPTIONS.items():
        if given[name] is not None and args.adapter != kind:
            raise ValueError(f"--{name} is of --adapter {kind}; {args.adapter} has none")
    training = TrainingConfig(**{f.name: given[f.name] for f in fields(TrainingConfig)})
    preset = LFSConfig.paper() if args.preset == "paper" else LFSConfig.few_images()
    objective_config = replace(preset, **{f.name: given[f.name] for f in fields(LFSConfig) if f.name in given})
    log_with = None if args.report_to == "none" else args.report_to
    project = ProjectConfiguration(project_dir=training.output_dir, logging_dir=str(Path(training.output_dir) / "logs"))
    pipe = FewShotGAN.from_pretrained(args.pretrained_model_name_or_path)
    data = embedded_datasets().get(args.train_data_dir, args.train_data_dir)
    images = load_images(data, pipe.generator.resolution)
    accelerator = Accelerator(log_with=log_with, project_config=project)
    # `accelerate launch` gives each CPU process one thread unless told otherwise
    torch.set_num_threads(args.num_threads or max(1, (os.cpu_count() or 1) // accelerator.num_processes))
    torch.manual_seed(training.seed)  # the small noise of fresh factors and heads
    record = {**asdict(objective_config), **asdict(training), "num_images": len(images), "preset": args.preset}
    record.pop("output_dir")
    options = {"method": "lfs_gan", "training": record, "base_model_name_or_path": args.pretrained_model_name_or_path}
    for name in OPTIONS:
        if (value := given[name]) is not None:
            options[name] = value or None  # rank 0 is None, one factor per weight
    adapter = trainable_types()[args.adapter].for_model(pipe.generator, **options)
    real = (images.float() / 127.5 - 1).to(accelerator.device)
    objective = LFSObjective(
        objective_config,
        real,
        pipe.generator.z_dim,
        discriminator=deepcopy(pipe.discriminator) if pipe.discriminator is not None else None,
        features=load_features(device=accelerator.device),
        seed=training.seed,
    )
    whole = pipe.generator.num_parameters()
    accelerator.print(
        f"{args.adapter}: {adapter.num_values():,} numbers, {adapter.num_values() / whole:.2%} of the "
        f"generator's {whole:,}; {len(images)} images; {training.max_train_steps} steps"
    )
    trainer = Trainer(pipe.generator, adapter, objective, images, training, accelerator)
    if log_with:  # writes into the output folder: not before everything else is known to be good
        accelerator.init_trackers("lfs", {k: v for k, v in given.items() if isinstance(v, int | float | str)})
    result = trainer.train()
    if accelerator.is_main_process:
        name = Path(training.output_dir).name
        write_adapter_card(result, training.output_dir, name, grid=trainer.folder / "samples")
        if args.push_to_hub:
            result.push_to_hub(args.hub_model_id or name, grid=trainer.folder / "samples")
    accelerator.end_training()
    return result


def main(argv=None) -> None:
    """Entry point of the script: a bad option ends with its one sentence instead of a traceback."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, FileNotFoundError, TrainingDiverged) as error:
        raise SystemExit(f"error: {error}") from error
