"""AdaFM transfer: low-level filters of generator and discriminator are kept, and modulated (ICML 2020, 2002.11810).

GmDn keeps m groups of the generator and n of the discriminator, counted from the picture: the image convolution, then
one resolution each. Kept filters of the generator get a scale and a shift from step `adafm_start` on; everything else
of it is retrained. Differs from the paper in style-based generators: these have mapping, noise and styles already, so
the specific part is their own low-resolution blocks and styles, retrained from where they are, and needs no scale
matcher; the discriminator's last layer is not drawn anew. Of a GP-GAN the specific part is the paper's own, see
`tailored_networks`. Of both, the discriminator is updated before the generator, and images get no noise.
"""

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import torch
from torch import nn

from ..adapters import Adapter
from ..adapters.adafm import WEIGHT_RATE, AdaFMFactors
from ..hub import portable_name
from ..models import GPGANDiscriminator, GPGANGenerator, TailoredGenerator
from ..models.layers import adaptable_layers
from ..utils.hashing import fingerprint
from ..utils.ranges import NOT_NEGATIVE
from .losses import r1_penalty
from .method import Method, Run
from .objective import Batch, Objective, ObjectiveConfig

MODULATED = ("conv", "depthwise")  # filters of kept groups; the image head's and shortcuts' are kept as they are
PENALTIES = ("real", "real_fake")


@dataclass(frozen=True)
class AdaFMConfig(ObjectiveConfig):
    """`ObjectiveConfig`, and what is kept.

    Attributes:
        groups: GmDn, e.g. "G4D2"; D0 keeps nothing. Heads on frozen features keep these features anyway: "G4".
        adafm_start: from this step on scales and shifts learn; before it kept filters stay as they are.
        penalty: R1 "real", or on "real_fake" as for twenty-five images.
        weight_rate: learning rate of retrained layers and shifts beside that of scales; 1 as published.
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
    def paper(cls) -> "AdaFMConfig":
        # 10 ‖∇D‖², without the half of `r1_penalty`
        return cls(r1_weight=20.0, r1_every=1, style_mixing=0.0, weight_rate=1.0)

    @classmethod
    def few_images(cls) -> "AdaFMConfig":
        projected = {"discriminator": "projected", "r1_weight": 0.0, "groups": "G4"}
        return cls(**projected, style_mixing=0.0, adafm_start=0)


def parse_groups(groups: str) -> tuple[int, int | None]:
    """m and n of GmDn, n None of Gm.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"G(\d+)(?:D(\d+))?", groups)
    if not found:
        raise ValueError(f"groups={groups!r} is not of the form GmDn; for example G4D2")
    return int(found[1]), None if found[2] is None else int(found[2])


def split_generator(model: nn.Module, kept: int) -> tuple[list[str], list[str]]:
    """Paths of the layers that AdaFM modulates, and of those that are retrained (the specific part).

    Args:
        model: a generator.
        kept: m groups from the picture on: the image head, then a resolution each. Styles, noise, constants and lone
            biases of kept resolutions belong to the specific part.

    Raises:
        ValueError: there are not as many groups.
    """
    layers = dict(adaptable_layers(model))
    sizes = {path: model.layer_resolution(path) for path in layers}
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
    """What AdaFM transfer of a GP-GAN starts from (§3.2): a fresh specific part in front of the kept scales.

    Args:
        generator, discriminator: of the source; they are left as they are.
        kept: m of GmDn.
        seed: of all that is new.
        options: of `TailoredGenerator`, e.g. `z_dim`, `gain`.

    Returns:
        The tailored generator, and the source's discriminator with a last layer of one logit, drawn anew.

    Raises:
        ValueError: there are not as many groups.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = TailoredGenerator.from_source(generator, kept, **options)
        judge = type(discriminator).from_config({**discriminator.config, "num_classes": 1})
    known = {name: tensor for name, tensor in discriminator.state_dict().items() if not name.startswith("out.")}
    judge.load_state_dict(judge.state_dict() | known)
    return new, judge


class AdaFMObjective(Objective):
    """Adversarial training of the specific part and the modulation, with kept groups of the discriminator.

    Args:
        config, real, discriminator, projected, features, seed: see `Objective`.

    Raises:
        ValueError: more groups than the discriminator has, or groups of one whose features are frozen anyway.
    """

    def __init__(self, config: AdaFMConfig, real, **options):
        super().__init__(config, real, **options)
        kept = parse_groups(config.groups)[1]
        if config.discriminator == "projected" and kept:
            alone = config.groups.partition("D")[0]
            raise ValueError(f"groups={config.groups!r}: features below heads are kept anyway; give groups={alone!r}")
        if kept:
            self._keep(kept)

    def _keep(self, kept: int) -> None:
        parts = self.discriminator.groups
        if kept > len(parts):
            raise ValueError(
                f"D{kept} keeps {kept} groups, this discriminator has {len(parts)}; give D0 to D{len(parts)}"
            )
        for part in parts[:kept]:
            part.requires_grad_(False)

    def prepare(self, adapter, step: int) -> None:
        learns = step >= self.config.adafm_start
        for factors in adapter.factors().values():
            if isinstance(factors, AdaFMFactors):  # its own two tensors: styles and noise may lie below it
                factors.gamma.requires_grad_(learns)
                factors.beta.requires_grad_(learns)

    def discriminator_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses, c = super().discriminator_losses(batch), self.config
        if "r1" in losses and c.penalty == "real_fake":
            losses["r1_fake"] = c.r1_every * r1_penalty(self.discriminator, batch.fake.colour, c.r1_weight)
        return losses


@dataclass(frozen=True)
class AdaFMOptions:
    """Options of the specific part that a GP-GAN gets.

    Attributes:
        z_dim: size of its latent z.
        matcher_gain: first gain of its scale matcher.
    """

    z_dim: int | None = field(
        default=None, metadata={"help": "size of z of a GP-GAN's specific part; default: the base's, 4 for 25 images"}
    )
    matcher_gain: float | None = field(
        default=None, metadata={"help": "first gain of a GP-GAN's scale matcher; default 1000"}
    )


class AdaFMMethod(Method):
    """AdaFM transfer as a method."""

    name = "adafm"
    Config, Objective, Options, adapter = AdaFMConfig, AdaFMObjective, AdaFMOptions, "adafm"
    published = {
        "paper": {
            **{"max_train_steps": 60_000, "train_batch_size": 16, "learning_rate": 1e-4},
            **{"d_learning_rate": 1e-4, "ema_decay": 0.999, "augment": "flip", "truncation_psi": 1.0},
            **{"lr_warmup_steps": 0, "lr_final": 1.0, "checkpointing_steps": 5000, "sample_steps": 1000},
        }
    }
    source: str | None = None  # name of the GP-GAN that a tailored base was made of

    def check(self, run) -> None:
        if run.adapter != self.adapter:
            raise ValueError(f"--adapter {run.adapter}: AdaFM transfer trains an adafm adapter; leave it out")
        if run.objective.adafm_start >= run.training.max_train_steps:
            raise ValueError(
                f"adafm_start={run.objective.adafm_start} of {run.training.max_train_steps} steps: scales and shifts "
                "would never learn; start earlier or train longer"
            )

    def prepare_base(self, run: Run) -> None:
        """Put a new specific part in front of the kept scales of a GP-GAN; other plain generators are refused."""
        if run.pipe.generator.has_styles:
            if self.options.z_dim is not None or self.options.matcher_gain is not None:
                raise ValueError("--z_dim and --matcher_gain are of the part that a GP-GAN gets; leave them out")
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
        ):
            if value != usual:
                raise ValueError(
                    f"--{option} {value} does not fit a GP-GAN such as {run.base}; give --{option} {usual}"
                )
        if run.push_to_hub:
            raise ValueError(
                "--push_to_hub: the adapter of a GP-GAN needs the base that is made beside it; leave it out, push "
                f"{run.folder}/base with fewshot-gan push, then the adapter with push_to_hub(…, base=its id)"
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
        own = {"source": portable_name(self.source), "z_dim": generator.z_dim}
        return own | {"matcher_gain": generator.config.gain}

    def prepare_adapter(self, run: Run) -> Adapter:
        modulated, specific = split_generator(run.pipe.generator, parse_groups(run.config.groups)[0])
        adapter = run.new_adapter(target_modules=modulated, layers_to_save=specific)
        adapter.weight_rate = run.config.weight_rate
        return adapter

    def after_save(self, run: Run) -> None:
        """Write the generator that a GP-GAN's adapter is made for; its discriminator is only beginning to learn.

        Raises:
            ValueError: the folder holds another one.
        """
        if self.source is None:
            return
        folder = Path(run.base)
        if (folder / "model_index.json").is_file():
            present = type(run.pipe).from_pretrained(folder).generator
            if fingerprint(present) != fingerprint(run.pipe.generator):
                raise ValueError(
                    f"{folder} holds the base of a run with other settings; use them again to resume, or choose "
                    "another output folder"
                )
            return
        run.pipe.register_modules(discriminator=None)
        run.pipe.save_pretrained(folder)
