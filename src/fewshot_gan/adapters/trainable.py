"""What a training asks of the module whose numbers it learns: an adapter, or a network that predicts adapters."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..utils.options import NoOptions, given
from ..utils.ranges import Range, check_number

if TYPE_CHECKING:
    from .bank import AdapterBank


@dataclass(frozen=True)
class RankOptions:
    """Options of a new adapter of low-rank factors.

    Attributes:
        rank: of the factors of a layer; 0: one factor per weight.
    """

    rank: int | None = field(
        default=None,
        metadata={"help": "rank of the factors: of left default 1, 0 = one factor per weight; of lora default 8"},
    )

    def __post_init__(self):
        if self.rank is not None:
            check_number("rank", self.rank, Range(0, 10_000), whole=True)


class Trainable(nn.Module):
    """Hooks of a training, with what usually serves.

    Attributes:
        Options: frozen dataclass of what a user may choose for a new one; each field has a default, and
            `metadata["help"]`.
    """

    Options: ClassVar[type] = NoOptions

    if TYPE_CHECKING:  # what the classes that derive from this one inherit from diffusers or define
        adapter_type: ClassVar[str]

        @property
        def config(self) -> Any: ...

        @classmethod
        def for_model(cls, model: nn.Module, **options: Any) -> "Any": ...
        def num_values(self) -> int: ...
        def round_to_half(self) -> None: ...
        def save_pretrained(self, save_directory: Any, **options: Any) -> None: ...

    @classmethod
    def fresh(cls, generator: nn.Module, options, **settings: Any) -> "Trainable":
        """What a training starts from.

        Args:
            generator: the base.
            options: of `cls.Options`.
            settings: of the constructor, e.g. the record of the training.
        """
        return cls.for_model(generator, **given(options), **settings)

    def attach(self, bank: "AdapterBank", name: str) -> None:
        """Make it loadable under `name` in the bank of the generator that is trained."""

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """For an optimiser: parameters of one rate each, with "rate", their share of `learning_rate`."""
        rates: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            rates.setdefault(self.rate_of(name), []).append(parameter)
        return [{"params": p, "rate": rate, "lr": rate * learning_rate} for rate, p in rates.items()]

    def rate_of(self, name: str) -> float:
        """Learning rate of a parameter, as a share of the run's."""
        return 1.0

    def penalty(self, step: int) -> torch.Tensor | None:
        """A loss of its own numbers at a step of its training; None: there is none."""
        return None

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """Buffers that a resumed run must have in common with its beginning."""
        return {}

    def finished(self) -> "Trainable":
        """What is stored after the last step."""
        return self
