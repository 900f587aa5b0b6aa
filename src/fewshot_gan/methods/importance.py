"""Importance of filters: keep those that matter for the look, prune those that do not fit it.

AdAM (arXiv 2210.16559) and RICK (arXiv 2304.05978) measure a filter by its Fisher information F = E[(∂L/∂W)²], L being
the generator's loss: the more the loss depends on a filter of the source, the more of it should be kept. As in RICK, F
is taken from the gradients of the training itself and the filters are chosen anew every few steps.

Differences from the papers: filters are ranked within their layer, because layers store weights at different scales;
the discriminator is not touched; AdAM's low-rank modulation of kept filters is left out, they do not change.
"""

from typing import NamedTuple

import torch
from torch import nn

from ..adapters.adafm import AdaFMFactors
from ..adapters.base import Adapter, Factors
from ..adapters.full import FullFactors
from ..adapters.spec import stored
from ..models.layers import adaptable_layers

ROLES = ("conv", "depthwise")  # layers whose filters are ranked; the image head has only three


class Filters(NamedTuple):
    """One layer of an adapter: its filters `[O, …]`."""

    measured: nn.Parameter  # its gradients give F; row o belongs to filter o
    kept: list[nn.Parameter]  # do not change where a filter is kept
    pruned: list[tuple[nn.Parameter, torch.Tensor | None]]  # parameters that become −weight, or 0 if it is None


def filters_of(factors: Factors, weight: torch.Tensor) -> Filters | None:
    """Return the filters of a layer with this stored weight; None if its factors do not act on filters."""
    if isinstance(factors, FullFactors):
        biases = [] if factors.bias_delta is None else [factors.bias_delta]
        return Filters(factors.weight_delta, [factors.weight_delta, *biases], [(factors.weight_delta, weight)])
    if isinstance(factors, AdaFMFactors):
        return Filters(factors.gamma, [factors.gamma, factors.beta], [(factors.gamma, None), (factors.beta, None)])
    return None


class FilterImportance:
    """Choose the filters that a training keeps, changes and prunes.

    For AdaFM, F is that of the scales γ of a filter, E[(∂L/∂γ)²].

    Args:
        adapter: `full` or `adafm`, attached to the generator.
        generator: the base.
        keep: share of the filters of a layer, those of highest F, that stay as they are until the next choice.
        prune: share of the filters of a layer, those of lowest F, that become zero by the end. Each choice prunes its
            part of them, for good.
        every: steps from one choice to the next. All filters change before the first one.
        steps: length of the run.

    Raises:
        ValueError: the adapter has no filters of its own, or nothing is left to change.
    """

    def __init__(self, adapter: nn.Module, generator: nn.Module, keep: float, prune: float, every: int, steps: int):
        if keep + prune >= 1:
            raise ValueError(f"keep_filters={keep} and prune_filters={prune} leave no filter to change; give less")
        self.keep, self.prune, self.every = keep, prune, every
        self.choices = max(1, (steps - 1) // every)  # the last step ends the run
        self.generator = generator
        self.filters = self._of(adapter)
        if not self.filters:
            kind = getattr(adapter, "adapter_type", type(adapter).__name__)
            raise ValueError(
                f"keep_filters={keep} and prune_filters={prune} choose filters of convolutions, and --adapter {kind} "
                "changes none one by one; use --adapter full or adafm"
            )
        self.fisher = {path: torch.zeros(len(f.measured)) for path, f in self.filters.items()}
        self.is_kept = {path: torch.zeros(len(f.measured), dtype=torch.bool) for path, f in self.filters.items()}
        self.is_pruned = {path: torch.zeros(len(f.measured), dtype=torch.bool) for path, f in self.filters.items()}

    def _of(self, adapter: nn.Module) -> dict[str, Filters]:
        layers = {path: layer for path, layer in adaptable_layers(self.generator) if layer.role in ROLES}
        of = adapter.factors() if isinstance(adapter, Adapter) else {}
        found = {path: filters_of(factors, stored(layers[path])[0]) for path, factors in of.items() if path in layers}
        return {path: filters for path, filters in found.items() if filters is not None}

    @torch.no_grad()
    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Add this step's gradients to F, choose if it is time, and remove the gradients of what must not change.

        Args:
            optimizer: of the adapter; its momentum of filters that must not change becomes 0.
            step: number of the step, from 0.
        """
        for path, filters in self.filters.items():
            if filters.measured.grad is not None:
                self.fisher[path] += filters.measured.grad.detach().float().square().flatten(1).mean(1).cpu()
        if step > 0 and step % self.every == 0:
            self._choose(step // self.every)
        for path, filters in self.filters.items():
            for rows, parameters in (
                (self.is_kept[path], filters.kept),
                (self.is_pruned[path], [parameter for parameter, _ in filters.pruned]),
            ):
                index = rows.nonzero()[:, 0]
                for parameter in parameters if len(index) else []:
                    place = index.to(parameter.device)
                    if parameter.grad is not None:
                        parameter.grad[place] = 0
                    if (momentum := optimizer.state.get(parameter, {}).get("exp_avg")) is not None:
                        momentum[place] = 0

    def _choose(self, choice: int) -> None:
        for path, fisher in self.fisher.items():
            total, order = len(fisher), fisher.argsort(stable=True)
            order = order[~self.is_pruned[path][order]]
            due = round(self.prune * total * min(1.0, choice / self.choices)) - int(self.is_pruned[path].sum())
            self.is_pruned[path][order[: max(0, due)]] = True
            self.is_kept[path].zero_()
            self.is_kept[path][order[len(order) - round(self.keep * total) :]] = True
            fisher.zero_()

    @torch.no_grad()
    def enforce(self, adapter: nn.Module) -> None:
        """Make the pruned filters of `adapter`, the trained one or a copy of it, zero."""
        for path, filters in self._of(adapter).items() if self.prune else ():
            rows = self.is_pruned[path].nonzero()[:, 0]
            for parameter, weight in filters.pruned if len(rows) else []:
                place = rows.to(parameter.device)
                parameter[place] = 0 if weight is None else -weight[place].to(parameter)

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return F since the last choice, and the choice."""
        return {"fisher": self.fisher, "is_kept": self.is_kept, "is_pruned": self.is_pruned}

    def load_state_dict(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        for name, values in self.state_dict().items():
            values.update({path: tensor.clone() for path, tensor in state[name].items()})
