"""Fill networks from state dicts with other tensor names."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch

from ..models.spectral import LEFT_VECTOR, RIGHT_VECTOR
from .report import ConversionError, SourceTensors

MAX_LEVELS = 16  # blocks; no network has as many
SIGMA = ".parametrizations.weight.0."  # prefix of torch's singular vectors of spectral normalisation
RAW = ".parametrizations.weight.original"
Model = TypeVar("Model", bound=torch.nn.Module)


def fill(
    model: Model,
    tensors: dict,
    rename: Callable[[str], str],
    sigma: Callable | None = None,
    leaf_names: Mapping[str, str] = MappingProxyType({}),
) -> Model:
    """Load every tensor of `model` from a state dict with other names, and return the model.

    Args:
        model: a network of the right size.
        tensors: the state dict.
        rename: function from our module path to that of the state dict.
        sigma: for networks with spectral norm, a function of (source, layer name, shape of the weight) that returns the
            name of the raw weight, u `[O]` and v `[n]`.
        leaf_names: our tensor name, or its last part → last part in the state dict, where they differ.

    Raises:
        ConversionError: tensors are missing, left over or of another shape; the message names them.
    """
    source, state = SourceTensors(tensors), {}
    for ours, value in model.state_dict().items():
        path, _, leaf = ours.partition(SIGMA) if SIGMA in ours else ours.rpartition(".")
        their_leaf = leaf_names.get(ours, leaf_names.get(leaf, leaf))
        if leaf == "num_batches_tracked":
            name = f"{rename(path)}.{their_leaf}"
            state[ours] = source.take(name, ()).long() if name in source else value
        elif ours.endswith(RAW):
            assert sigma is not None
            layer = rename(ours.removesuffix(RAW))
            name, u, v = sigma(source, layer, value.shape)
            state[ours] = source.take(name, value.shape)
            state[ours.replace("original", f"0.{LEFT_VECTOR}")] = u
            state[ours.replace("original", f"0.{RIGHT_VECTOR}")] = v
        elif SIGMA not in ours:
            name = f"{rename(path)}.{their_leaf}"
            shape = (1,) if not value.ndim and name in source and source[name].ndim else value.shape  # a scalar
            state[ours] = source.take(name, shape).reshape(value.shape)
    source.finish()
    model.load_state_dict(state)
    return model


def torch_sigma(source: SourceTensors, layer: str, shape):
    """Return name, u and v of a weight with `torch.nn.utils.spectral_norm`: weight_orig, weight_u, weight_v."""
    vectors = (source.take(f"{layer}.weight_{x}", (n,)) for x, n in (("u", shape[0]), ("v", shape[1:].numel())))
    return f"{layer}.weight_orig", *vectors


def levels(tensors: dict, pattern: str) -> int:
    """Return the number of different values of the first group of `pattern` among the tensor names.

    Raises:
        ConversionError: there is none, or more than any network has.
    """
    numbers = {match[1] for name in tensors if (match := re.match(pattern, name))}
    if not numbers:
        example = pattern.replace(r"(\d+)", "0").replace("\\", "")
        raise ConversionError(f"the checkpoint has no tensor like {example}; it is not of the layout it looked like")
    if len(numbers) > MAX_LEVELS:
        raise ConversionError(
            f"the checkpoint has {len(numbers)} blocks, more than the {MAX_LEVELS} of any known network"
        )
    return len(numbers)
