"""Access to torch's spectral normalisation (arXiv 1802.05957), whose class is private.

`torch.nn.utils.parametrizations.spectral_norm` keeps estimates of the first singular vectors as buffers. Their names
are part of every state dict and so part of torch's public file format.
"""

from torch import nn

LEFT_VECTOR, RIGHT_VECTOR = "_u", "_v"


def is_spectral_norm(module: nn.Module) -> bool:
    """Return whether `module` is the parametrisation that `spectral_norm` registers for a matrix or filter."""
    return {LEFT_VECTOR, RIGHT_VECTOR} <= {name for name, _ in module.named_buffers(recurse=False)}
