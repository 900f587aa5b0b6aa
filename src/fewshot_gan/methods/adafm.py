"""AdaFM transfer: keep and modulate the low-level filters of a pretrained GAN (ICML 2020, arXiv 2002.11810).

GmDn keeps m groups of layers of the generator and n of the discriminator. Groups are counted from the image: the first
is the image convolution, each further one a resolution. The kept filters of the generator get a scale and a shift,
which are trained from step `adafm_start` on. All other layers of the generator, the specific part, are retrained.

Differences from the paper:

- The specific part of a style-based generator is its own low-resolution blocks and styles, which start from their
  pretrained weights. There is no scale matcher, and the last layer of the discriminator keeps its weights.
- The specific part of a GP-GAN is the paper's own, see `tailored_networks`.
- For both, the discriminator is updated before the generator, and images get no noise.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Self, cast

import torch
from torch import nn

from ..adapters import Adapter
from ..adapters.adafm import WEIGHT_RATE, AdaFMFactors
from ..hub import portable_name
from ..models import GPGANDiscriminator, GPGANGenerator, TailoredGenerator
from ..models.layers import adaptable_layers
from ..utils.hashing import fingerprint
from ..utils.random import initialised
from ..utils.ranges import NOT_NEGATIVE
from .method import Method, Run
from .objective import Batch, Objective, ObjectiveConfig

MODULATED = ("conv", "depthwise")  # roles of modulated layers; image heads and shortcuts are kept unchanged
PENALTIES = ("real", "real_fake")


@dataclass(frozen=True)
class AdaFMConfig(ObjectiveConfig):
    """Weights of `ObjectiveConfig`, and settings of the kept layers.

    Attributes:
        groups: GmDn, e.g. "G4D2"; 0 keeps no group. A projected discriminator takes Gm alone, e.g. "G4", since its
            features are frozen anyway.
        adafm_start: first step that trains scales and shifts; before it, kept filters do not change.
        penalty: images that R1 is computed on, "real" or "real_fake"; the paper uses the latter for 25 images.
        weight_rate: learning rate of retrained layers and shifts, relative to that of scales, above 0 up to 10; 1 as
            published.
    """

    groups: str = "G4D2"
    adafm_start: int = 10_000
    penalty: str = "real"
    weight_rate: float = WEIGHT_RATE

    RANGES = ObjectiveConfig.RANGES | {"adafm_start": NOT_NEGATIVE}

    def __post_init__(self):
        super().__post_init__()
        parse_groups(self.groups)
        if not 0 < self.weight_rate <= 10:
            raise ValueError(f"weight_rate={self.weight_rate}: give a number above 0, up to 10, e.g. {WEIGHT_RATE}")
        if self.penalty not in PENALTIES:
            raise ValueError(f"unknown penalty {self.penalty!r}; known: {', '.join(PENALTIES)}")
        if self.freeze_d:
            raise ValueError(f"freeze_d={self.freeze_d}: groups={self.groups!r} says what is kept; leave it out")

    @classmethod
    def paper(cls) -> Self:
        """Return the published terms and weights, on the base's own discriminator."""
        # the paper's penalty 10 ‖∇D‖² is r1_penalty with weight 20
        return cls(r1_weight=20.0, r1_every=1, style_mixing=0.0, weight_rate=1.0)

    @classmethod
    def few_images(cls) -> Self:
        """Return weights for a discriminator on pretrained features; scales and shifts learn from the first step."""
        return cls(discriminator="projected", r1_weight=0.0, groups="G4", style_mixing=0.0, adafm_start=0)


def parse_groups(groups: str) -> tuple[int, int | None]:
    """Return m and n of "GmDn"; n is None for "Gm".

    Raises:
        ValueError: `groups` has another form.
    """
    match = re.fullmatch(r"G(\d+)(?:D(\d+))?", groups)
    if not match:
        raise ValueError(f"groups={groups!r} is not of the form GmDn; for example G4D2")
    return int(match[1]), None if match[2] is None else int(match[2])


def split_generator(model: nn.Module, kept: int) -> tuple[list[str], list[str]]:
    """Return the paths of the layers that AdaFM modulates, and of those that are retrained (the specific part).

    Args:
        model: a generator.
        kept: number m of kept groups, counted from the image: the image head, then one resolution each. Styles, noise,
            constants and biases of their own belong to the specific part even at kept resolutions.

    Raises:
        ValueError: the generator has fewer groups.
    """
    layers = dict(adaptable_layers(model))
    layer_resolution = cast(Callable[[str], int], model.layer_resolution)  # a method of every generator
    sizes = {path: layer_resolution(path) for path in layers}
    filters = {path for path, layer in layers.items() if layer.role in MODULATED}
    resolutions = sorted({sizes[path] for path in filters}, reverse=True)
    if not 0 <= kept <= 1 + len(resolutions):
        raise ValueError(
            f"G{kept} keeps {kept} groups, this {type(model).__name__} has {1 + len(resolutions)}: the image head and "
            f"{len(resolutions)} resolutions; give G0 to G{1 + len(resolutions)}"
        )
    least = resolutions[kept - 2] if kept > 1 else float("inf")
    modulated = [path for path in layers if path in filters and sizes[path] >= least]
    heads = [path for path, layer in layers.items() if layer.role == "to_rgb"]
    untouched = {path for path in heads if sizes[path] >= least} | ({heads[-1]} if kept else set())
    untouched |= {path for path, layer in layers.items() if layer.role == "skip" and sizes[path] >= least}
    return modulated, [path for path in layers if path not in untouched and path not in modulated]


def tailored_networks(
    generator: GPGANGenerator, discriminator: GPGANDiscriminator, kept: int, seed: int = 0, **options
) -> tuple[TailoredGenerator, GPGANDiscriminator]:
    """Return the networks that AdaFM transfer of a GP-GAN starts from (§3.2).

    Args:
        generator, discriminator: the source's networks; they are not changed.
        kept: m of GmDn.
        seed: seed of all new parameters.
        options: further arguments of `TailoredGenerator`, e.g. `z_dim`, `gain`.

    Returns:
        A generator with a new specific part in front of the kept scales, and the source's discriminator with a new last
        layer of one logit.

    Raises:
        ValueError: the generator has fewer groups.
    """
    with initialised(seed):
        new = TailoredGenerator.from_source(generator, kept, **options)
        config = {**discriminator.config, "num_classes": 1}
        new_discriminator = cast(GPGANDiscriminator, type(discriminator).from_config(config))  # diffusers: maybe a pair
    copied = {name: tensor for name, tensor in discriminator.state_dict().items() if not name.startswith("out.")}
    new_discriminator.load_state_dict(new_discriminator.state_dict() | copied)
    return new, new_discriminator


class AdaFMObjective(Objective):
    """Adversarial fine-tuning with kept groups of the discriminator, and scales and shifts that learn later.

    Args:
        config, real: see `Objective`.
        options: `discriminator`, `projected`, `features` and `seed`, see `Objective`.

    Raises:
        ValueError: the discriminator has fewer groups, or it is a projected one, which has none.
    """

    config: AdaFMConfig

    def __init__(self, config: AdaFMConfig, real: torch.Tensor, **options):
        super().__init__(config, real, **options)
        kept = parse_groups(config.groups)[1]
        if config.discriminator == "projected" and kept:
            alone = config.groups.partition("D")[0]
            raise ValueError(f"groups={config.groups!r}: features below heads are kept anyway; give groups={alone!r}")
        if kept:
            self._freeze_groups(kept)

    def _freeze_groups(self, kept: int) -> None:
        groups = getattr(self.discriminator, "groups", None)
        if groups is None:
            raise ValueError(
                f"D{kept} keeps {kept} groups, but a {type(self.discriminator).__name__} is not divided into groups; "
                "give D0"
            )
        if kept > len(groups):
            raise ValueError(
                f"D{kept} keeps {kept} groups, this discriminator has {len(groups)}; give D0 to D{len(groups)}"
            )
        for group in groups[:kept]:
            group.requires_grad_(False)

    def prepare(self, adapter, step: int) -> None:
        """Train scales and shifts from step `adafm_start` on."""
        learns = step >= self.config.adafm_start
        for factors in adapter.factors().values():
            if isinstance(factors, AdaFMFactors):  # not factors.requires_grad_: styles and noise may be its submodules
                factors.gamma.requires_grad_(learns)
                factors.beta.requires_grad_(learns)

    def discriminator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().discriminator_losses(batch), self.config
        if "r1" in losses and c.penalty == "real_fake":
            losses["r1_fake"] = c.r1_every * batch.fake.r1_penalty(self.discriminator, c.r1_weight)
        return losses


@dataclass(frozen=True)
class AdaFMOptions:
    """Options of the new specific part of a GP-GAN.

    Attributes:
        z_dim: size of its latent z; None means the base's.
        matcher_gain: initial gain of its scale matcher; None means 1000.
    """

    z_dim: int | None = field(
        default=None,
        metadata={
            "help": "GP-GAN bases: size of z of the new layers; default: the base's; the paper uses 4 for 25 images"
        },
    )
    matcher_gain: float | None = field(
        default=None, metadata={"help": "GP-GAN bases: initial gain of the scale matcher; default 1000"}
    )


class AdaFMMethod(Method):
    """AdaFM transfer (arXiv 2002.11810)."""

    name = "adafm"
    Config, Objective, Options, adapter = AdaFMConfig, AdaFMObjective, AdaFMOptions, "adafm"
    published = {
        "paper": {
            **{"max_train_steps": 60_000, "train_batch_size": 16, "learning_rate": 1e-4},
            **{"d_learning_rate": 1e-4, "ema_decay": 0.999, "augment": "flip", "truncation_psi": 1.0},
            **{"lr_warmup_steps": 0, "lr_final": 1.0, "checkpointing_steps": 5000, "sample_steps": 1000},
        }
    }
    source: str | None = None  # name of the GP-GAN that the new base was made from

    def check(self, run) -> None:
        if run.adapter != self.adapter:
            raise ValueError(f"--adapter {run.adapter}: AdaFM transfer trains an adafm adapter; leave it out")
        if run.objective.adafm_start >= run.training.max_train_steps:
            raise ValueError(
                f"adafm_start={run.objective.adafm_start} of {run.training.max_train_steps} steps: scales and shifts "
                "would never learn; start earlier or train longer"
            )

    def prepare_base(self, run: Run) -> None:
        """Put a new specific part in front of the kept scales of a GP-GAN; refuse other generators without styles."""
        if run.pipe.generator.has_styles:
            if self.options.z_dim is not None or self.options.matcher_gain is not None:
                raise ValueError(
                    f"--z_dim and --matcher_gain configure the new layers of a GP-GAN, and {run.base} is none; "
                    "leave them out"
                )
            return
        if not isinstance(run.pipe.generator, GPGANGenerator):
            super().prepare_base(run)
        if run.pipe.discriminator is None:
            raise ValueError(f"{run.base} has no discriminator to transfer; convert it with its discriminator")
        for option, value, usual in (
            ("preset", run.preset, "paper"),
            ("discriminator", run.config.discriminator, "source"),
            ("truncation_psi", run.training.truncation_psi, 1.0),
            ("style_mixing", run.config.style_mixing, 0.0),
            ("path_length_weight", run.config.path_length_weight, 0.0),
            ("content_weight", run.config.content_weight, 0.0),
            ("structure_weight", run.config.structure_weight, 0.0),
            ("diversity", run.config.diversity, "own"),
        ):
            if value != usual:
                raise ValueError(
                    f"--{option} {value} does not fit a GP-GAN such as {run.base}; give --{option} {usual}"
                )
        if run.push_to_hub:
            raise ValueError(
                "--push_to_hub: the adapter of a GP-GAN needs the base that this run saves beside it; leave it out, "
                f"push {run.folder}/base with fewshot-gan push, then the adapter with push_to_hub(…, base=its id)"
            )
        if self.options.z_dim is not None and self.options.z_dim < 1:
            raise ValueError(f"z_dim={self.options.z_dim}: give 1 or more, or leave it out")
        if self.options.matcher_gain is not None and not 0 < self.options.matcher_gain < inf:
            raise ValueError(f"matcher_gain={self.options.matcher_gain}: give a number above 0, e.g. 1000")
        options = {"z_dim": self.options.z_dim, "gain": self.options.matcher_gain}
        options = {option: value for option, value in options.items() if value is not None}
        groups, _ = parse_groups(run.config.groups)
        networks = tailored_networks(run.pipe.generator, run.pipe.discriminator, groups, run.training.seed, **options)
        self.source, run.base, run.pipe = run.base, str(run.folder / "base"), type(run.pipe)(*networks)

    def record(self, run: Run) -> dict:
        if self.source is None:
            return {}
        generator = run.pipe.generator
        gain = generator.config.gain
        return {"source": portable_name(self.source), "z_dim": generator.z_dim, "matcher_gain": gain}

    def prepare_adapter(self, run: Run) -> Adapter:
        modulated, specific = split_generator(run.pipe.generator, parse_groups(run.config.groups)[0])
        adapter = run.new_adapter(target_modules=modulated, layers_to_save=specific)
        adapter.weight_rate = run.config.weight_rate
        return adapter

    def after_save(self, run: Run) -> None:
        """Save the new base that the adapter of a GP-GAN is trained for, without its untrained discriminator.

        Raises:
            ValueError: the folder holds another base.
        """
        if self.source is None:
            return
        folder = Path(run.base)
        if (folder / "model_index.json").is_file():
            present = type(run.pipe).from_pretrained(folder).generator
            if fingerprint(present) != fingerprint(run.pipe.generator):
                raise ValueError(
                    f"{folder} holds the base of a run with other settings; use them again to resume, or start anew: "
                    "choose another output folder"
                )
            return
        run.pipe.register_modules(discriminator=None)
        run.pipe.save_pretrained(folder)
