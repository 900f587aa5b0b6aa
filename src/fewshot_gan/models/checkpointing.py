"""Gradient checkpointing (arXiv 1604.06174): recompute the features inside a block in the backward pass.

The second run must repeat the first: same noise, same adapters, same running statistics and singular vectors. It must
also leave the statistics and vectors as the first run left them.
"""

from collections.abc import Callable

import torch
from torch import nn

from .layers import AdaptableLayer, adapted
from .spectral import is_spectral_norm


class Checkpointed:
    """Mixin for modules that call their blocks through `run`; a model's `enable_gradient_checkpointing` switches it."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable | None = None

    def run(self, block: nn.Module, *args):
        """Return `block(*args)`, recomputed in the backward pass if gradient checkpointing is on.

        The block must not overwrite its inputs, since the second run needs them.
        """
        if not self.gradient_checkpointing or not torch.is_grad_enabled():
            return block(*args)
        assert self._gradient_checkpointing_func is not None  # diffusers sets both attributes
        return self._gradient_checkpointing_func(Repeatable(block, args), *args)


class Repeatable:
    """A callable that runs `block` several times on the same inputs, each time exactly as the first time.

    Args:
        block: a module.
        args: its inputs; random generators among them (also in lists) are reset for every run after the first.
    """

    def __init__(self, block: nn.Module, args: tuple):
        self.block = block
        inputs = [item for arg in args for item in (arg if isinstance(arg, list) else [arg])]
        self.generators = [item for item in inputs if isinstance(item, torch.Generator)]
        self.states = [generator.get_state() for generator in self.generators]
        layers = [module for module in block.modules() if isinstance(module, AdaptableLayer)]
        self.adaptations = {layer: layer.active_adaptation() for layer in layers}
        updating = [m for m in block.modules() if m.training and (isinstance(m, nn.BatchNorm2d) or is_spectral_norm(m))]
        self.statistics = [(m, {name: b.clone() for name, b in m.named_buffers(recurse=False)}) for m in updating]
        self.runs = 0

    def __call__(self, *args):
        self.runs += 1
        if self.runs == 1:
            return self.block(*args)
        states = [generator.get_state() for generator in self.generators]
        current = [dict(module.named_buffers(recurse=False)) for module, _ in self.statistics]
        try:
            self._set_generators(self.states)
            for module, first in self.statistics:
                # new tensors instead of writes: autograd may have saved the current ones
                _set_buffers(module, {name: buffer.clone() for name, buffer in first.items()})
            with adapted(self.adaptations):
                return self.block(*args)
        finally:
            self._set_generators(states)
            for (module, _), buffers in zip(self.statistics, current, strict=True):
                _set_buffers(module, buffers)

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)


def _set_buffers(module: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    for name, buffer in buffers.items():
        setattr(module, name, buffer)
