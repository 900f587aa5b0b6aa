"""What users of diffusers expect of any pipeline, for pipelines of this package's networks."""

from functools import wraps

import torch
from diffusers import DiffusionPipeline
from torch import nn

from .models.network import evaluating
from .models.offloading import execution_device


class NetworkPipeline(DiffusionPipeline):
    """A diffusers pipeline whose parts are in evaluation mode."""

    def register_modules(self, **modules) -> None:
        for module in modules.values():
            if isinstance(module, nn.Module):
                module.eval()
        super().register_modules(**modules)

    @property
    def _execution_device(self) -> torch.device:
        """Where the generator computes, also while it is offloaded."""
        return execution_device(self.generator)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None):
        """As in diffusers; "cpu" works too, with weights that come and go: to see what offloading does."""
        if device is None or torch.device(device).type != "cpu":
            return super().enable_sequential_cpu_offload(gpu_id, device)
        from accelerate import cpu_offload

        self.remove_all_hooks()
        for part in self.components.values():
            if isinstance(part, nn.Module):  # not by diffusers, whose cpu:0 is another device to accelerate
                cpu_offload(part, torch.device("cpu"))


def drawing(method):
    """Let a method of a pipeline draw in evaluation mode, whatever mode the generator was put in meanwhile.

    In training mode a picture would depend on its batch (batch normalisation), and drawing would change the network.
    Afterwards a generator that is offloaded as a whole goes back.
    """

    @wraps(method)
    def draw(pipe, *args, **options):
        with evaluating(pipe.generator):
            drawn = method(pipe, *args, **options)
        pipe.maybe_free_model_hooks()
        return drawn

    return draw
