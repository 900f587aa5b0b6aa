"""torch's spectral normalisation (arXiv 1802.05957), whose class is private.

It keeps estimates of the first singular vectors as buffers. Their names are part of every state dict and so part of
torch's public file format.
"""

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

LEFT_VECTOR, RIGHT_VECTOR = "_u", "_v"
ModuleType = TypeVar("ModuleType", bound=nn.Module)


class SpectralNorm(_SpectralNorm):
    """torch's parametrisation, without power iterations where there are no numbers.

    A network that is loaded is built on the meta device first. The iterations at the start, 15 for each layer, would
    take most of the time of loading, and their results are replaced by the stored vectors.
    """

    def _power_method(self, weight_mat: torch.Tensor, n_power_iterations: int) -> None:
        if weight_mat.device.type != "meta":
            super()._power_method(weight_mat, n_power_iterations)


def spectral_norm(module: ModuleType, eps: float = 1e-12) -> ModuleType:
    """Divide the weight of `module`, whose rows are outputs, by its largest singular value; return `module`."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    parametrize.register_parametrization(module, "weight", SpectralNorm(weight, eps=eps))
    return module


def is_spectral_norm(module: nn.Module) -> bool:
    """Return whether `module` is the parametrisation that `spectral_norm`, or torch's own, registers for a matrix."""
    return {LEFT_VECTOR, RIGHT_VECTOR} <= {name for name, _ in module.named_buffers(recurse=False)}
