"""AdaFM transfer: low-level filters of generator and discriminator are kept, and modulated (ICML 2020, 2002.11810).

GmDn keeps m groups of the generator and n of the discriminator, counted from the picture: the image convolution, then
one resolution each. Kept filters of the generator get a scale and a shift from step `adafm_start` on; everything else
of it is retrained. Differs from the paper in style-based generators: these have mapping, noise and styles already, so
the specific part is their own low-resolution blocks and styles, retrained from where they are, and needs no scale
matcher; the discriminator's last layer is not drawn anew. Of a GP-GAN the specific part is the paper's own, see
`tailored_networks`. Of both, the discriminator is updated before the generator, and images get no noise.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn

from ..adapters.adafm import WEIGHT_RATE, AdaFMFactors
from ..models import GPGANDiscriminator, GPGANGenerator, TailoredGenerator
from ..models.layers import adaptable_layers
from ..utils.ranges import NOT_NEGATIVE
from .losses import r1_penalty
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
