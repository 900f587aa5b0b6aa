"""Weights of networks from other packages: exceptions of their download, and their hash."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection
from http.client import HTTPException

import torch
from torch import nn

from ..utils.errors import fault_of_disk

# Raised by downloading and reading a checkpoint: no network, a wrong hash, a truncated file, an HTML page instead.
FETCHING = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, HTTPException)


def fault_of_cache(error: Exception) -> str | None:
    """Return the sentence for a download that failed because of the disk of torch's cache; None for other errors."""
    if (fault := fault_of_disk(error)) is None:
        return None
    return f"cannot keep its weights: {fault.partition('; ')[0]}; set TORCH_HOME to a folder that can be written"


def hash_of_weights(module: nn.Module, also: str = "", without: Collection[str] = ()) -> str:
    """Return the SHA-256 of a network's parameters and buffers by name.

    Args:
        module: the network.
        also: text that is hashed too, e.g. settings.
        without: names that are left out.
    """
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name in without:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
