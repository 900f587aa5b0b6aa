"""Weights of other packages' networks: what fetching them raises, and their hash."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection
from http.client import HTTPException

import torch
from torch import nn

from ..utils.errors import fault_of_disk

# What fetching and reading a checkpoint raises: no network, a wrong hash, a cut file, a page instead of it.
FETCHING = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, HTTPException)


def fault_of_cache(error: Exception) -> str | None:
    if (fault := fault_of_disk(error)) is None:
        return None
    return f"cannot keep its weights: {fault.partition('; ')[0]}; set TORCH_HOME to a folder that can be written"


def hash_of_weights(module: nn.Module, also: str = "", without: Collection[str] = ()) -> str:
    """Of a network's parameters and buffers by name but those `without`, and of `also`."""
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name in without:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
