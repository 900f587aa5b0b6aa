"""Our networks filled from state dicts that name the same tensors otherwise."""

import re
from collections.abc import Callable

import torch

from .report import ConversionError, SourceTensors

MAX_LEVELS = 16  # more than any network has blocks
SIGMA = ".parametrizations.weight.0."  # below it torch keeps the vectors _u and _v of spectral normalisation
RAW = ".parametrizations.weight.original"


def fill(model: torch.nn.Module, tensors: dict, rename: Callable[[str], str], sigma=None, leaves=()):
    """Every tensor of `model` from the one of its name over there.

    Args:
        model: of the right size.
        tensors: the state dict.
        rename: our module path → theirs.
        sigma: (source, their layer, shape of the weight) → its raw name there, u `[O]` and v `[n]`; of networks
            with spectral norm.
        leaves: one of our names, or its last part → their last part, where they differ.

    Raises:
        ConversionError: tensors are missing, left over or of another shape, each named.
    """
    source, state, leaves = SourceTensors(tensors), {}, dict(leaves)
    for ours, value in model.state_dict().items():
        path, _, leaf = ours.partition(SIGMA) if SIGMA in ours else ours.rpartition(".")
        theirs = leaves.get(ours, leaves.get(leaf, leaf))
        if leaf == "num_batches_tracked":
            name = f"{rename(path)}.{theirs}"
            state[ours] = source.take(name, ()).long() if name in source else value
        elif ours.endswith(RAW):
            layer = rename(ours.removesuffix(RAW))
            name, u, v = sigma(source, layer, value.shape)
            state[ours] = source.take(name, value.shape)
            state[ours.replace("original", "0._u")], state[ours.replace("original", "0._v")] = u, v
        elif SIGMA not in ours:
            name = f"{rename(path)}.{theirs}"
            shape = (1,) if not value.ndim and name in source and source[name].ndim else value.shape  # one number
            state[ours] = source.take(name, shape).reshape(value.shape)
    source.finish()
    model.load_state_dict(state)
    return model


def torch_sigma(source: SourceTensors, layer: str, shape):
    """`torch.nn.utils.spectral_norm`: weight_orig, weight_u, weight_v."""
    vectors = (source.take(f"{layer}.weight_{x}", (n,)) for x, n in (("u", shape[0]), ("v", shape[1:].numel())))
    return f"{layer}.weight_orig", *vectors


def levels(tensors: dict, pattern: str) -> int:
    """How many different numbers the first group of `pattern` has among the names.

    Raises:
        ConversionError: none, or more than any network has.
    """
    found = {match[1] for name in tensors if (match := re.match(pattern, name))}
    if not found:
        example = pattern.replace(r"(\d+)", "0").replace("\\", "")
        raise ConversionError(f"the checkpoint has no tensor like {example}; it is not of the layout it looked like")
    if len(found) > MAX_LEVELS:
        raise ConversionError(
            f"the checkpoint has {len(found)} blocks, more than the {MAX_LEVELS} of any known network"
        )
    return len(found)
