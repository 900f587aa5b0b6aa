"""Fine-tuning baselines: TransferGAN (arXiv 1805.01677) and FreezeD (arXiv 2002.10964).

Both use the adversarial loss of `Objective` alone, with a discriminator that starts from the source's weights.
TransferGAN trains all weights; FreezeD freezes the lower layers of the discriminator (`freeze_d`).
"""

from dataclasses import dataclass, field

import torch

from ..adapters import Adapter, FullAdapter
from .method import Method, Run
from .objective import Objective, ObjectiveConfig


class FinetuneConfig(ObjectiveConfig):
    """The weights of `ObjectiveConfig`."""


class FinetuneObjective(Objective):
    """Plain adversarial fine-tuning."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of fine-tuning.

    Attributes:
        scratch: train newly initialised weights instead of the base's.
    """

    scratch: bool = field(
        default=False, metadata={"help": "start from random weights instead of the base's; needs --adapter full"}
    )


class FinetuneMethod(Method):
    """Fine-tuning: TransferGAN, FreezeD, or training from scratch."""

    name = "finetune"
    Config, Objective, Options, adapter = FinetuneConfig, FinetuneObjective, FinetuneOptions, "full"

    def check(self, run) -> None:
        if self.options.scratch and run.start_from:
            raise ValueError("--scratch starts from random weights, and --start_from from an adapter; leave one out")
        if self.options.scratch and run.adapter != "full":
            raise ValueError(f"--scratch replaces every weight, which --adapter {run.adapter} cannot store; use full")

    def record(self, run: Run) -> dict:
        return {"scratch": True} if self.options.scratch else {}

    def prepare_adapter(self, run: Run) -> Adapter:
        adapter = super().prepare_adapter(run)
        if not self.options.scratch:
            return adapter
        settings = {name: adapter.config[name] for name in ("method", "training", "base_model_name_or_path")}
        return difference_to_new(run.pipe.generator, settings)

    def judges(self, run: Run) -> dict:
        judges = super().judges(run)
        if self.options.scratch:  # without `projected`, the objective makes new heads for the training images
            discriminator = judges["discriminator"]
            judges["discriminator"] = discriminator and type(discriminator).from_config(discriminator.config)
            judges["projected"] = None
        return judges


@torch.no_grad()
def difference_to_new(generator, settings: dict) -> FullAdapter:
    """Return an adapter that turns `generator` into a newly initialised one with the same buffers.

    Args:
        generator: generator of the base; its buffers are the noise images and the mean w.
        settings: further fields of the adapter's config.
    """
    fresh = type(generator).from_config(generator.config)
    buffers = dict(generator.named_buffers())
    for name, buffer in fresh.named_buffers():
        buffer.copy_(buffers[name])
    return FullAdapter.difference(generator, fresh, **settings)
