"""Adapt a base to about ten images by any of the methods; behind the scripts and `fewshot-gan adapt`."""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from ..adapters import Adapter, FullAdapter, GANMemoryAdapter, fingerprint, trainable_types
from ..adapters.domain_vector import PARAMETRIZATIONS, PLACEMENTS
from ..data.datasets import load_images, provenance
from ..data.images import to_bytes, to_floats
from ..features import load_features
from ..features.encoders import CLIP_DEFAULT, load_encoder
from ..hub import embedded_datasets, portable_name
from ..hub.cards import write_adapter_card
from ..inversion import SPACES, VERSION, invert, latent_statistics, lpips_network
from ..methods.adafm import AdaFMConfig, AdaFMObjective, parse_groups, split_generator, tailored_networks
from ..methods.cdc import CDCConfig, CDCObjective
from ..methods.d3t import D3TConfig, D3TObjective
from ..methods.finetune import FinetuneConfig, FinetuneObjective
from ..methods.hyperdomain import HyperDomainConfig, HyperDomainObjective
from ..methods.lfs_gan import LFSConfig, LFSObjective
from ..models import GPGANGenerator
from ..models.latents import check_latents
from ..models.layers import as_ws
from ..pipeline import FewShotGAN
from ..utils.files import expanded, replace_file
from ..utils.hashing import hash_tensor
from ..utils.safetensors_files import read_header, read_tensors
from .checkpoints import ANEW
from .engine import Trainer, TrainingConfig
from .launch import PRECISIONS, add_tracking_options, command, holding, launched_precision, start, start_trackers

OPTIONS = {  # of which adapter
    "rank": "left",
    "placement": "domain_vector",
    "parametrization": "domain_vector",
    "low_rank": "gan_memory",
}


@dataclass(frozen=True)
class Method:
    """One paper as the scripts offer it.

    Attributes:
        help: its name.
        config, objective: classes of its weights and its losses.
        adapter: what it usually trains.
        presets: classmethods of `config`, the default first.
        settings: defaults of `TrainingConfig` that are its own.
        published: preset → settings that it was published with, in their place.
        least_images: it learns from so many.
    """

    help: str
    config: type
    objective: type
    adapter: str
    presets: tuple[str, ...] = ("few_images", "paper")
    settings: dict = field(default_factory=dict)
    published: dict[str, dict] = field(default_factory=dict)
    least_images: int = 2


CONSTANT = {"lr_warmup_steps": 0, "lr_final": 1.0, "ema_decay": 0.0, "truncation_psi": 1.0}  # HyperDomainNet's runs
METHODS = {
    "lfs_gan": Method("LFS-GAN (arXiv 2308.11917)", LFSConfig, LFSObjective, "left"),
    "d3t": Method(
        "D3T-GAN (arXiv 2205.06032)",
        D3TConfig,
        D3TObjective,
        "left",
        ("few_images", "large_gap", "abstract", "paper"),
    ),
    "cdc": Method("cross-domain correspondence (arXiv 2104.06820)", CDCConfig, CDCObjective, "full"),
    "finetune": Method(
        "TransferGAN (arXiv 1805.01677), FreezeD (arXiv 2002.10964), or from scratch",
        FinetuneConfig,
        FinetuneObjective,
        "full",
    ),
    "adafm": Method(
        "AdaFM transfer (arXiv 2002.11810)",
        AdaFMConfig,
        AdaFMObjective,
        "adafm",
        published={
            "paper": {
                **{"max_train_steps": 60_000, "train_batch_size": 16, "learning_rate": 1e-4},
                **{"d_learning_rate": 1e-4, "ema_decay": 0.999, "augment": "flip", "truncation_psi": 1.0},
                **{"lr_warmup_steps": 0, "lr_final": 1.0, "checkpointing_steps": 5000, "sample_steps": 1000},
            }
        },
    ),
    "hyperdomainnet": Method(
        "HyperDomainNet (arXiv 2210.08884)",
        HyperDomainConfig,
        HyperDomainObjective,
        "domain_vector",
        ("few_images", "image", "text"),
        {"adam_beta1": 0.9, "adam_beta2": 0.999, "augment": "none"},
        {
            "text": {"learning_rate": 0.1, "max_train_steps": 300, **CONSTANT},
            "image": {"learning_rate": 0.01, "max_train_steps": 100, **CONSTANT},
        },
        least_images=1,
    ),
}
PRESETS = {
    "few_images": "signals that learn a set of pictures in few steps, on pretrained features",
    "large_gap": "few_images without projected images, feature transfer and distillation, for looks far from the base",
    "abstract": "the published terms alone, on pretrained features",
    "paper": "the terms and weights as published, on the base's own discriminator; rates as in few_images, but adafm's",
    "image": "terms, weights and rates as published, for a picture",
    "text": "terms, weights and rates as published, for words",
}
JUDGED = ("d_learning_rate", "augment", "real_zoom")  # settings of methods that show training images to a judge
# what is in units of weights bursts at the rate of factors, factors at that of vectors
RATES = {"full": 2e-4, "gan_memory": 2e-4, "adafm": 1e-3, "domain_vector": 0.02}
PROJECTION = {"space": "w", "projection_steps": 150, "projection_prior": 0.05}  # what projected images depend on
CLIPS = [CLIP_DEFAULT, "openai/clip-vit-base-patch16"]  # whose losses are summed for words, as published
PROJECTING = (D3TObjective, HyperDomainObjective)


def usual_rate(adapter: str) -> float:
    """Learning rate of a kind of adapter, unless told or published."""
    return RATES.get(adapter, TrainingConfig.learning_rate)


def parser(method: str) -> argparse.ArgumentParser:
    """Command-line options; every field of the method's config and of `TrainingConfig` is one."""
    of = METHODS[method]
    p = argparse.ArgumentParser(description=f"Adapt a base to about ten images: {of.help}.")
    p.set_defaults(method=method, scratch=False)
    name_or_path = {"type": expanded, "help": "embedded name, folder or repo id"}
    p.add_argument("--pretrained_model_name_or_path", "--base", default="ffhq", **name_or_path)
    led_by_words = of.objective is HyperDomainObjective
    p.add_argument(
        *("--train_data_dir", "--data"),
        required=not led_by_words,
        type=expanded,
        help="image folder, embedded set, or datasets id",
    )
    kinds, rates = sorted(trainable_types()), ", ".join(f"{kind} {rate:g}" for kind, rate in RATES.items())
    p.add_argument(
        "--adapter", choices=kinds, default=of.adapter, help=f"default {of.adapter}; its usual --learning_rate: {rates}"
    )
    p.add_argument("--rank", type=int, help="of left: default 1; 0 = one factor per weight")
    p.add_argument("--placement", choices=PLACEMENTS, help="of domain_vector: default post_demod")
    p.add_argument("--parametrization", choices=PARAMETRIZATIONS, help="of domain_vector: default input")
    p.add_argument("--low_rank", action="store_true", default=None, help="of gan_memory: few components, compressed")
    p.add_argument(
        "--previous", type=expanded, help="of gan_memory: run of the task before, whose components this one has too"
    )
    p.add_argument(
        "--preset",
        choices=of.presets,
        default=None if led_by_words else of.presets[0],
        help="; ".join(f"{name}: {PRESETS[name]}" for name in of.presets),
    )
    if led_by_words:
        p.add_argument("--text", help="the look in words, e.g. 'pencil drawing', instead of --data")
        p.add_argument("--origin", help="what the base draws, in words; with --text, default photo")
        p.add_argument(
            "--encoder", nargs="+", help="features, or CLIP as folders or repo ids; default: features, or two CLIPs"
        )
    if of.objective in PROJECTING:
        add_projection_options(p)
        p.add_argument("--projections", type=expanded, help="file of the projections; default: in the output folder")
    if of.objective is AdaFMObjective:
        p.add_argument("--z_dim", type=int, help="of a GP-GAN's specific part; default: the base's, 4 for 25 images")
        p.add_argument("--matcher_gain", type=float, help="of a GP-GAN's scale matcher at first; default 1000")
    if of.objective is FinetuneObjective:
        p.add_argument("--scratch", action="store_true", help="forget the base's weights first; with --adapter full")
    usual = {"learning_rate": usual_rate(of.adapter), **of.settings}
    add_run_options(p, of.config, usual, of.objective.uses_images, of.published)
    return p


def add_projection_options(p: argparse.ArgumentParser) -> None:
    """Options of `projections`; their defaults come with `fill_projection_options`."""
    p.set_defaults(projections=None)
    usual = {name: f"default {value}" for name, value in PROJECTION.items()}
    p.add_argument("--space", choices=SPACES, help=f"of the projected images; {usual['space']}")
    p.add_argument("--projection_steps", type=int, help=f"of each projection; {usual['projection_steps']}")
    p.add_argument(
        "--projection_prior", type=float, help=f"pull of a projection towards the mean w; {usual['projection_prior']}"
    )


def fill_projection_options(args: argparse.Namespace, config) -> None:
    """Defaults of the options that were not given.

    Raises:
        ValueError: one was given, but no term of `config` uses projected images.
    """
    for name, usual in {**PROJECTION, "projections": None}.items():
        if (value := getattr(args, name)) is None:
            setattr(args, name, usual)
        elif not config.needs_latents:
            raise ValueError(f"--{name} {value} is of projected images, but no term here uses any; leave it out")


def add_run_options(
    p: argparse.ArgumentParser, config: type, settings: dict, judged: bool, published: dict[str, dict] | None = None
) -> None:
    """Options of every run: trackers, threads, the Hub, and the fields of `TrainingConfig` and `config`."""
    add_tracking_options(p)
    p.add_argument("--push_to_hub", action="store_true")
    p.add_argument("--hub_model_id", help="repo id of --push_to_hub; default: the output folder's name")
    for cls in (TrainingConfig, config):
        for option in fields(cls):
            required = option.name == "output_dir"
            usual = settings.get(option.name, option.default)
            if option.name in JUDGED and not judged:
                continue
            shown = "" if required else f"default {usual}" if cls is TrainingConfig else "default: the preset's"
            shown += "".join(f", {k} {of[option.name]}" for k, of in (published or {}).items() if option.name in of)
            kind = {"action": argparse.BooleanOptionalAction} if option.type is bool else {"type": option.type}
            kind |= {"type": expanded} if option.name == "output_dir" else {}
            p.add_argument(f"--{option.name}", default=argparse.SUPPRESS, required=required, help=shown, **kind)


def configure(args: argparse.Namespace, config: type, settings: dict) -> tuple[TrainingConfig, Any]:
    """Settings of the run and weights of the terms: what was given, else `settings` and the preset's, else the usual.

    The settings are filled in in `args` too.
    """
    launched = launched_precision()
    settings = {"mixed_precision": launched if launched in PRECISIONS else "no", **settings}
    for option in fields(TrainingConfig):
        if option.name not in vars(args):
            setattr(args, option.name, settings.get(option.name, option.default))
    given = vars(args)
    training = TrainingConfig(**{f.name: given[f.name] for f in fields(TrainingConfig)})
    preset = getattr(config, args.preset)()
    return training, replace(preset, **{f.name: given[f.name] for f in fields(config) if f.name in given})


def resolve(args: argparse.Namespace) -> tuple[TrainingConfig, Any]:
    """All that the given options mean, filled in in `args` too.

    Raises:
        ValueError: options that contradict each other, that nothing here uses, or that are out of range.
    """
    given, of = vars(args), METHODS[args.method]
    for name, kind in (OPTIONS | {"previous": "gan_memory"}).items():
        if given[name] is not None and args.adapter != kind:
            raise ValueError(f"--{name} is of --adapter {kind}; {args.adapter} has none")
    if args.scratch and args.adapter != "full":
        raise ValueError(f"--scratch forgets every weight, which --adapter {args.adapter} cannot store; use full")
    if of.objective is AdaFMObjective and args.adapter != of.adapter:
        raise ValueError(f"--adapter {args.adapter}: AdaFM transfer trains an adafm adapter; leave it out")
    if (args.train_data_dir is None) == (given.get("text") is None):
        raise ValueError("a look is shown by pictures or named by words; give --data or --text")
    if given.get("origin") and args.text is None:
        raise ValueError(f"--origin {args.origin!r} belongs to --text; with --data the base's own pictures say it")
    args.preset = args.preset or ("text" if given.get("text") else "few_images")
    settings = of.settings | of.published.get(args.preset, {})
    if args.adapter != of.adapter or "learning_rate" not in settings:  # published rates are of the published adapter
        settings |= {"learning_rate": usual_rate(args.adapter)}
    training, config = configure(args, of.config, settings)
    if of.objective is AdaFMObjective and config.adafm_start >= training.max_train_steps:
        raise ValueError(
            f"adafm_start={config.adafm_start} of {training.max_train_steps} steps: scales and shifts would never "
            "learn; start earlier or train longer"
        )
    if of.objective in PROJECTING:
        fill_projection_options(args, config)
    return training, config


def run(args: argparse.Namespace, on_step: Callable[[Trainer, dict[str, float]], None] | None = None) -> Adapter:
    """Train, write the adapter with its card, and push it if asked.

    Args:
        args: of `parser`.
        on_step: of `Trainer.train`: to watch a run, or to end it.

    Returns:
        The trained adapter.

    Raises:
        ValueError, OSError, ImportError: bad options, data, base, packages or folder, each with one sentence.
        TrainingDiverged, Interrupted: as of `Trainer.train`.
    """
    training, config = resolve(args)
    accelerator = start(args)
    with holding(args.output_dir, accelerator):
        return train(args, training, config, accelerator, on_step)


def train(
    args: argparse.Namespace, training: TrainingConfig, config, accelerator: Accelerator, on_step=None
) -> Adapter:
    """`run` with options that are filled in, in a folder that is held."""
    given, of = vars(args), METHODS[args.method]
    pipe = FewShotGAN.from_pretrained(args.pretrained_model_name_or_path)
    base = args.pretrained_model_name_or_path
    tailored = not pipe.generator.has_styles
    if tailored:
        pipe, base = tailor(args, config, pipe), str(Path(args.output_dir) / "base")
    elif given.get("matcher_gain") is not None or given.get("z_dim") is not None:
        raise ValueError("--z_dim and --matcher_gain are of the part that a GP-GAN gets; leave them out")
    images = real = None
    if args.train_data_dir is not None:
        data = embedded_datasets().get(args.train_data_dir, args.train_data_dir)
        images = load_images(data, pipe.generator.resolution, of.least_images)
    record = {**asdict(config), **asdict(training), "preset": args.preset}
    record |= {"text": args.text} if images is None else {"num_images": len(images), **provenance(data)}
    record |= {"scratch": True} if args.scratch else {}
    if of.objective is HyperDomainObjective:
        args.encoder = args.encoder or (["features"] if args.text is None else CLIPS)
        record |= {"encoder": [portable_name(name) for name in args.encoder]}
        if args.text is not None:
            args.origin = args.origin or "photo"
            record["origin"] = args.origin
    if config.needs_latents:
        record |= {name: given[name] for name in PROJECTION}
    for name in ("output_dir", *(() if of.objective.uses_images else JUDGED)):
        record.pop(name)
    options = {"method": args.method, "training": record, "base_model_name_or_path": base}
    for name in OPTIONS:
        if (value := given[name]) is not None:
            options[name] = value or None  # rank 0 is None, one factor per weight
    if of.objective is AdaFMObjective:
        modulated, specific = split_generator(pipe.generator, parse_groups(config.groups)[0])
        options |= {"target_modules": modulated, "layers_to_save": specific}
        if tailored:
            own = {"source": portable_name(args.pretrained_model_name_or_path), "z_dim": pipe.generator.z_dim}
            record |= own | {"matcher_gain": pipe.generator.config.gain}
    if args.previous:
        adapter = GANMemoryAdapter.after(Adapter.from_pretrained(args.previous), pipe.generator, **options)
        record["previous"] = portable_name(args.previous)
    else:
        adapter = trainable_types()[args.adapter].for_model(pipe.generator, **options)
    if of.objective is AdaFMObjective:
        adapter.weight_rate = config.weight_rate
    if args.low_rank and not adapter.compressible():
        raise ValueError(
            f"--low_rank: no convolution of {base} is wide enough to be stored in components; leave it out"
        )
    if args.scratch:
        adapter = forget(pipe.generator, options)
    if images is not None:
        real = to_floats(images).to(accelerator.device)
    objective = build(args, config, pipe, real, accelerator)
    whole = pipe.generator.num_parameters()
    accelerator.print(
        f"{args.adapter}: {adapter.num_values():,} numbers, {adapter.num_values() / whole:.2%} of the "
        f"generator's {whole:,}; {repr(args.text) if images is None else f'{len(images)} images'}; "
        f"{training.max_train_steps} steps"
    )
    trainer = Trainer(pipe.generator, adapter, objective, images, training, accelerator)
    trainer.report.title = f"{of.help}: a {args.adapter} adapter of {base}"
    trainer.report.data = (
        f"the words {args.text!r}" if images is None else f"{len(images)} images of {args.train_data_dir}"
    )
    start_trackers(args, accelerator, args.method)
    if tailored and accelerator.is_main_process:
        keep_base(pipe, Path(base))
    name, grid = Path(training.output_dir).name, trainer.folder / "samples"
    grid = None if args.low_rank else grid  # it was drawn before

    def finish(result: Adapter) -> Adapter:
        if args.low_rank:
            result = compress(result, training.output_dir, accelerator)
            trainer.report_saved(result)
        if accelerator.is_main_process:
            write_adapter_card(result, training.output_dir, name, grid=grid)
        return result

    result = trainer.train(on_step=on_step, finish=finish)
    if accelerator.device.type == "cuda":
        accelerator.print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    if accelerator.is_main_process and args.push_to_hub:
        result.push_to_hub(args.hub_model_id or name, grid=grid)
    accelerator.end_training()
    return result


def compress(adapter: GANMemoryAdapter, folder: str, accelerator: Accelerator) -> GANMemoryAdapter:
    """`adapter` of few components, written over the whole one."""
    small = adapter.compressed()
    small.round_to_half()
    accelerator.print(
        f"compressed: {small.num_values():,} of {adapter.num_values():,} numbers, components of "
        f"{len(small.ranks)} layers"
    )
    if accelerator.is_main_process:
        small.save_pretrained(folder)
    return small


def keep_base(pipe: FewShotGAN, folder: Path) -> None:
    """Write the generator that a GP-GAN's adapter is of; the discriminator only begins to learn.

    Raises:
        ValueError: the folder holds another one.
    """
    if (folder / "model_index.json").is_file():
        there, new = (fingerprint(x) for x in (FewShotGAN.from_pretrained(folder).generator, pipe.generator))
        if there != new:
            raise ValueError(f"{folder} holds the base of a run with other settings; use them again to resume, {ANEW}")
        return
    pipe.register_modules(discriminator=None)
    pipe.save_pretrained(folder)


def tailor(args: argparse.Namespace, config, pipe: FewShotGAN) -> FewShotGAN:
    """The base that AdaFM transfer of a GP-GAN adapts: kept scales behind a fresh specific part.

    Raises:
        ValueError: another base, another method, or settings that such a base has no use for.
    """
    g, d, name = pipe.generator, pipe.discriminator, args.pretrained_model_name_or_path
    if not isinstance(g, GPGANGenerator) or not isinstance(config, AdaFMConfig):
        raise ValueError(
            f"{name} is a {type(g).__name__}; these methods adapt style-based generators, e.g. 'ffhq', AdaFM transfer "
            "GP-GANs too, and training/lottery.py trains the others"
        )
    if d is None:
        raise ValueError(f"{name} has no discriminator to transfer; convert it with its discriminator")
    for option, value, usual in (
        ("preset", args.preset, "paper"),
        ("discriminator", config.discriminator, "source"),
        ("truncation_psi", args.truncation_psi, 1.0),
        ("style_mixing", config.style_mixing, 0.0),
        ("path_length_weight", config.path_length_weight, 0.0),
        ("content_weight", config.content_weight, 0.0),
        ("structure_weight", config.structure_weight, 0.0),
    ):
        if value != usual:
            raise ValueError(f"--{option} {value} does not fit a GP-GAN such as {name}; give --{option} {usual}")
    if args.push_to_hub:
        raise ValueError(
            "--push_to_hub: the adapter of a GP-GAN needs the base that is made beside it; leave it out, push "
            f"{args.output_dir}/base with fewshot-gan push, then the adapter with push_to_hub(…, base=its id)"
        )
    if args.z_dim is not None and args.z_dim < 1:
        raise ValueError(f"z_dim={args.z_dim}: give 1 or more, or leave it out")
    if args.matcher_gain is not None and not 0 < args.matcher_gain < inf:
        raise ValueError(f"matcher_gain={args.matcher_gain}: give a number above 0, e.g. 1000")
    options = {"z_dim": args.z_dim, "gain": args.matcher_gain}
    options = {option: value for option, value in options.items() if value is not None}
    return FewShotGAN(*tailored_networks(g, d, parse_groups(config.groups)[0], args.seed, **options))


def build(args, config, pipe: FewShotGAN, real: torch.Tensor | None, accelerator: Accelerator):
    """The method's objective for training images `real` `[K, 3, R, R]`, or for words."""
    of, device = METHODS[args.method], accelerator.device

    def projected():
        with accelerator.main_process_first():
            return projections(Path(args.output_dir) / "projections.safetensors", pipe, real, args)

    if of.objective is HyperDomainObjective:
        latents = as_layers(projected(), pipe.generator) if real is not None and config.needs_latents else None
        shown = {"target": args.text, "origin": args.origin} if real is None else {"references": real}
        features = load_features(device=device) if config.needs_features else None
        encoders = [load_encoder(name, device) for name in args.encoder]
        return HyperDomainObjective(config, encoders, reference_latents=latents, features=features, **shown)
    judge, heads = deepcopy(pipe.discriminator), deepcopy(pipe.projected_discriminator)
    if args.scratch:  # heads without a past are made for the images at hand
        judge, heads = judge and type(judge).from_config(judge.config), None
    features = load_features(device=device)
    options = {"discriminator": judge, "projected": heads, "features": features, "seed": args.seed}
    if issubclass(of.objective, CDCObjective):
        options["z_dim"] = pipe.generator.z_dim
    if config.needs_latents:
        options |= {"codes": projected(), "w_std": latent_statistics(pipe.generator)[1].cpu()}
    return of.objective(config, real, **options)


def as_layers(latents: torch.Tensor, generator) -> torch.Tensor:
    """w `[K, D]` or w+ `[K, L, D]` as w+, where the generator is."""
    latents = latents.to(generator.device)
    return as_ws(latents, generator.num_ws, generator.w_dim) if latents.ndim == 2 else latents


def projections(path: Path, pipe: FewShotGAN, real: torch.Tensor, args) -> torch.Tensor:
    """Training images projected into the base's latent space (D3T-GAN), read or computed and kept.

    Kept in the file that the user named (`args.projections`), or in `path`.

    Returns:
        w `[K, D]`, or w+ `[K, L, D]` with `--space w+`.

    Raises:
        ValueError: the user named a file that holds others.
    """
    generator, path = pipe.generator.to(real.device), Path(args.projections or path)
    made_of = {
        "images": hash_tensor(real),
        "base": pipe.bank.fingerprint(),
        "inversion": VERSION,
        **{name: str(getattr(args, name)) for name in (*PROJECTION, "seed")},
    }
    if lpips_network(str(real.device)) is not None:  # with other eyes other latents are found
        made_of["perceptual"] = "lpips"
    if path.is_file():
        if read_header(path).metadata.get("made_of") == json.dumps(made_of):
            return check_latents(read_tensors(path)["codes"], name=f"codes of {path}")
        if args.projections:
            raise ValueError(
                f"{path} holds projections of other images, another base or other settings; name another file to make, "
                "or delete this one"
            )
    found = invert(
        generator,
        real,
        space=args.space,
        steps=args.projection_steps,
        prior_weight=args.projection_prior,
        seed=args.seed,
    )
    codes = (found.latents if args.space == "w+" else found.latents[:, 0]).contiguous()
    quality = " ".join(f"{value:.1f}" for value in found.psnr)
    print(f"projected {len(codes)} images: {quality} dB")
    metadata = {"made_of": json.dumps(made_of), "psnr": quality}
    tensors = {"codes": codes, "reconstructions": to_bytes(found.images)}
    replace_file(path, lambda temp: save_file(tensors, temp, metadata))
    return codes


@torch.no_grad()
def forget(generator, options: dict) -> FullAdapter:
    """The difference from `generator` to a newly initialised one; buffers (noise images, mean w) stay."""
    fresh = type(generator).from_config(generator.config)
    buffers = dict(generator.named_buffers())
    for name, buffer in fresh.named_buffers():
        buffer.copy_(buffers[name])
    return FullAdapter.difference(generator, fresh, **options)


def main(method: str, argv=None) -> None:
    """Entry point of the scripts, see `launch.command`."""
    args = parser(method).parse_args(argv)
    with command():
        run(args)
