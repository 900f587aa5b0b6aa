"""The base class of generators and discriminators: config, loading, saving and output."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self, cast
from weakref import WeakKeyDictionary

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import get_device
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..utils.offloading import refuse_hooks, refuse_offloaded
from .bounds import Checked

ALIGNMENT = 64  # bytes, of tensors that torch allocates
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # supported by the networks
_lock = threading.Lock()
_evaluating: WeakKeyDictionary = WeakKeyDictionary()  # network: [open blocks, its modules in training mode]
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's names of device map strategies


@dataclass
class NetworkOutput(BaseOutput):
    """The result of a network's `forward` with `return_dict=True`.

    Attributes:
        sample: images `[B, 3, R, R]` of a generator, or logits of a discriminator.
        features: feature maps by name, if requested.
    """

    sample: Any
    features: dict[str, torch.Tensor] | None = None


def network_output(sample, features: dict | None, return_dict: bool | None):
    """Return the result of a network's `forward` in the form that the caller asked for.

    Args:
        sample: images or logits.
        features: feature maps by name, or None if not requested.
        return_dict: None returns `sample`, or a pair with the features, as plain torch modules do. False returns a
            tuple and True a `NetworkOutput`, as diffusers does.
    """
    values = (sample,) if features is None else (sample, features)
    if return_dict:
        return NetworkOutput(*values)
    return sample if return_dict is None and features is None else values


class Network(Checked, ModelMixin, ConfigMixin):
    """A diffusers model that computes the same bits after saving and loading.

    Tensors of a safetensors file may start at any address. On some processors matrix products round differently for
    unaligned memory, so loaded tensors are moved to memory that torch aligns.

    Attributes:
        LATER_OPTIONS: constructor options that were added after bases were published → the values that keep the old
            behaviour. `fingerprint` leaves out options with these values, so that adapters of older bases still fit.
    """

    LATER_OPTIONS: ClassVar[dict] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> Self:
        """Load as diffusers does; `dtype` and `torch_dtype` are two names of one option, None keeps the stored dtype.

        A `device_map` strategy, e.g. "auto", places the whole network on one device, since it is small.

        Raises:
            ValueError: `dtype` and `torch_dtype` differ or are not supported, or a device map has "disk".
        """
        dtype = settle_dtype(kwargs)
        device_map = kwargs.get("device_map")
        if device_map in STRATEGIES:
            kwargs["device_map"] = {"": get_device()}
        if isinstance(device_map, Mapping) and "disk" in device_map.values():  # diffusers would lose the noise images
            raise ValueError(
                "device_map has 'disk', where buffers would be lost; give 'cpu', or use disk_offload later"
            )
        default_dtype = torch.get_default_dtype()
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, dtype=dtype, **kwargs)
        finally:  # diffusers changes the default dtype, and does not restore it if loading fails
            torch.set_default_dtype(default_dtype)
        network: Network = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*network.parameters(), *network.buffers()):
            if isinstance(dtype, torch.dtype) and "quantization_config" not in kwargs and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)  # also non-persistent buffers, which diffusers does not cast
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()
        return cast(Self, loaded)  # a pair only with output_loading_info

    @wraps(ModelMixin.save_pretrained)  # pipelines inspect the signature
    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # same signature through `wraps`
        self, save_directory, *args, **kwargs
    ) -> None:
        """Save as diffusers does.

        Raises:
            ValueError: the weights are offloaded layer by layer.
        """
        refuse_offloaded(self, "save")
        super().save_pretrained(save_directory, *args, **kwargs)

    def __getstate__(self) -> dict:
        refuse_hooks(self, "copy")
        return super().__getstate__()

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Save memory: recompute the features inside each block of a generator in the backward pass.

        Args:
            gradient_checkpointing_func: a function of a block and its inputs; None means torch's non-reentrant
                checkpoint.

        Raises:
            ValueError: this is a discriminator, which does not support it.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func or _recompute)

    def enable_layerwise_casting(self, *args, **kwargs) -> None:
        """Raise an error: adapters need the stored weights, which layerwise casting would round.

        Raises:
            ValueError: always; the message names the alternative.
        """
        raise ValueError(
            f"{type(self).__name__} does not cast layer by layer: adapters act on the stored weights, which 8 bits "
            "would round, and they are few; load it with dtype=torch.float16 or torch.bfloat16"
        )

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # diffusers lists positional arguments as defaults, and would replace them by the defaults of the class
        arguments = {name: value for name, value in config_dict.items() if name != "_use_default_values"}
        return super().extract_init_dict(arguments, **kwargs)


def stored_weights(folder: Path, variant: str | None = None) -> list[str]:
    """Return the names of the weight files of a variant in `folder`: one file, or shards and their index."""
    suffix = "" if variant is None else re.escape(f".{variant}")
    weights = rf"diffusion_pytorch_model{suffix}(-\d+-of-\d+)?\.(safetensors|bin)"
    index = rf"diffusion_pytorch_model\.(safetensors|bin)\.index{suffix}\.json"
    return [path.name for path in Path(folder).glob("*") if re.fullmatch(f"{weights}|{index}", path.name)]


def _recompute(block: Callable, *args):
    """torch's non-reentrant checkpoint, for frozen parameters and second derivatives; pickles contain this name."""
    return checkpoint(block, *args, use_reentrant=False)


def settle_dtype(options: dict) -> torch.dtype | Mapping | None:
    """Remove `dtype` and `torch_dtype`, two names of one option, from the options of `from_pretrained`.

    Returns:
        A dtype, None, or for pipelines a mapping of component names to dtypes.

    Raises:
        ValueError: the two differ, or the networks do not support a dtype.
    """
    dtype, torch_dtype = options.pop("dtype", None), options.pop("torch_dtype", None)
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} are two names of one option; give one of them")
    dtype = torch_dtype if dtype is None else dtype
    for value in dtype.values() if isinstance(dtype, Mapping) else [] if dtype is None else [dtype]:
        if value not in DTYPES:
            raise ValueError(f"dtype={value!r}: give one of {', '.join(map(str, DTYPES))}")
    return dtype


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Put `network` in evaluation mode for a `with` block; safe for several threads.

    The last open block, in any thread, restores the mode that each module had before the first one.
    """
    with _lock:
        if network not in _evaluating:
            _evaluating[network] = [0, [module for module in network.modules() if module.training]]
        _evaluating[network][0] += 1
        for module in _evaluating[network][1]:
            module.training = False
    try:
        yield network
    finally:
        with _lock:
            _evaluating[network][0] -= 1
            if not _evaluating[network][0]:
                for module in _evaluating.pop(network)[1]:
                    module.training = True
