"""What users of diffusers expect of any pipeline, for pipelines of this package's networks."""

from functools import wraps

from diffusers import DiffusionPipeline
from torch import nn

from .models.network import evaluating


class NetworkPipeline(DiffusionPipeline):
    """A diffusers pipeline whose parts are in evaluation mode."""

    def register_modules(self, **modules) -> None:
        for module in modules.values():
            if isinstance(module, nn.Module):
                module.eval()
        super().register_modules(**modules)


def drawing(method):
    """Let a method of a pipeline draw in evaluation mode, whatever mode the generator was put in meanwhile.

    In training mode a picture would depend on its batch (batch normalisation), and drawing would change the network.
    """

    @wraps(method)
    def draw(pipe, *args, **options):
        with evaluating(pipe.generator):
            return method(pipe, *args, **options)

    return draw
