"""Fine-tuning baselines: TransferGAN (arXiv 1805.01677) and FreezeD (arXiv 2002.10964).

Both are the shared objective alone: an adversarial loss from a discriminator that starts where the source's ended.
TransferGAN trains everything; FreezeD keeps the discriminator's lower layers (`freeze_d`).
"""

from dataclasses import dataclass, field

import torch

from ..adapters import Adapter, FullAdapter
from .method import Method, Run
from .objective import Objective, ObjectiveConfig


class FinetuneConfig(ObjectiveConfig):
    """`ObjectiveConfig` as it is."""


class FinetuneObjective(Objective):
    """Plain adversarial fine-tuning."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of fine-tuning.

    Attributes:
        scratch: start from newly initialised weights instead of the base's.
    """

    scratch: bool = field(default=False, metadata={"help": "forget the base's weights first; with --adapter full"})


class FinetuneMethod(Method):
    """Fine-tuning as a method: the whole base, or a generator that starts anew."""

    name = "finetune"
    Config, Objective, Options, adapter = FinetuneConfig, FinetuneObjective, FinetuneOptions, "full"

    def check(self, run) -> None:
        if self.options.scratch and run.adapter != "full":
            raise ValueError(f"--scratch forgets every weight, which --adapter {run.adapter} cannot store; use full")

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
        if self.options.scratch:  # heads without a past are made for the images at hand
            discriminator = judges["discriminator"]
            judges["discriminator"] = discriminator and type(discriminator).from_config(discriminator.config)
            judges["projected"] = None
        return judges


@torch.no_grad()
def difference_to_new(generator, settings: dict) -> FullAdapter:
    """The difference from `generator` to a newly initialised one; buffers (noise images, mean w) stay.

    Args:
        generator: the base.
        settings: of the adapter.
    """
    fresh = type(generator).from_config(generator.config)
    buffers = dict(generator.named_buffers())
    for name, buffer in fresh.named_buffers():
        buffer.copy_(buffers[name])
    return FullAdapter.difference(generator, fresh, **settings)
