"""Gradient checkpointing (arXiv 1604.06174): features inside a block are computed again for the backward pass.

The second run must be the first: it draws the same noise, with the same adapters, and leaves running statistics and
estimates of singular values as the first run made them.
"""

from collections.abc import Callable

import torch
from torch import nn

from .layers import AdaptableLayer, adapted


class Checkpointed:
    """Mixin of modules that run their blocks by `run`, which `enable_gradient_checkpointing` of a model switches."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable | None = None

    def run(self, block: nn.Module, *args):
        """`block(*args)`, whose inner features are computed again in the backward pass if that was switched on.

        The block must not overwrite its inputs, which are needed again.
        """
        if not self.gradient_checkpointing or not torch.is_grad_enabled():
            return block(*args)
        return self._gradient_checkpointing_func(Repeatable(block, args), *args)


class Repeatable:
    """`block` for several runs with the same inputs, all of which do what the first did.

    Args:
        block: a module.
        args: its inputs; generators of noise among them are set back for each run but the first.
    """

    def __init__(self, block: nn.Module, args: tuple):
        self.block = block
        listed = [each for arg in args for each in (arg if isinstance(arg, list) else [arg])]
        self.generators = [each for each in listed if isinstance(each, torch.Generator)]
        self.states = [generator.get_state() for generator in self.generators]
        layers = [module for module in block.modules() if isinstance(module, AdaptableLayer)]
        self.adaptations = {layer: layer.acting() for layer in layers}
        # batch and spectral normalisation
        learning = [m for m in block.modules() if m.training and (isinstance(m, nn.BatchNorm2d) or hasattr(m, "_u"))]
        self.statistics = [(m._buffers, {k: b.clone() for k, b in m._buffers.items()}) for m in learning]
        self.runs = 0

    def __call__(self, *args):
        self.runs += 1
        if self.runs == 1:
            return self.block(*args)
        states, learned = [g.get_state() for g in self.generators], [dict(buffers) for buffers, _ in self.statistics]
        try:
            self._set_generators(self.states)
            for buffers, first in self.statistics:  # others in their place: the backward pass may look at these too
                buffers.update({name: buffer.clone() for name, buffer in first.items()})
            with adapted(self.adaptations):
                return self.block(*args)
        finally:
            self._set_generators(states)
            for (buffers, _), now in zip(self.statistics, learned, strict=True):
                buffers.update(now)

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
