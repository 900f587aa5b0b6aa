"""What generators and discriminators of this package share: how they are built from a config, loaded, and answer."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import get_device
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..utils.offloading import refuse_hooks, refuse_offloaded
from .bounds import Checked

ALIGNMENT = 64  # bytes; where torch's own tensors begin
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that networks compute in
_lock = threading.Lock()
_evaluating: WeakKeyDictionary = WeakKeyDictionary()  # network: [blocks that hold it, its modules in training mode]
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # of a device_map, as accelerate names them


@dataclass
class NetworkOutput(BaseOutput):
    """What `forward` of a network returns with `return_dict=True`.

    Attributes:
        sample: pictures `[B, 3, R, R]` of a generator, logits of a discriminator.
        features: feature maps by name, where they were asked for.
    """

    sample: Any
    features: dict[str, torch.Tensor] | None = None


def answer(sample, features: dict | None, return_dict: bool | None):
    """What a network's `forward` returns.

    Args:
        sample: pictures or logits.
        features: None where they were not asked for.
        return_dict: None: `sample` itself, as a torch module, and with features a pair. False: always a tuple, True: a
            `NetworkOutput`, both as in diffusers.
    """
    values = (sample,) if features is None else (sample, features)
    if return_dict:
        return NetworkOutput(*values)
    return sample if return_dict is None and features is None else values


class Network(Checked, ModelMixin, ConfigMixin):
    """A diffusers model that computes the same bits whether it was loaded or is still the one that was saved.

    Tensors of a safetensors file begin wherever the file has them. Some processors' products of matrices round
    differently there than in memory that torch laid out, so loaded tensors are moved to such memory.

    Attributes:
        LATER_OPTIONS: options of the constructor that came after bases were published, and the values at which they
            change nothing. `fingerprint` leaves them out at these values, so that adapters of older bases still fit.
    """

    LATER_OPTIONS: ClassVar[dict] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers; `dtype` and `torch_dtype` are two names of one option, None: as stored.

        A `device_map` by a strategy, e.g. "auto", places the whole network on one device: it is small.

        Raises:
            ValueError: the two differ, networks do not compute in it, or a device map has "disk".
        """
        dtype = settle_dtype(kwargs)
        places = kwargs.get("device_map")
        if places in STRATEGIES:
            kwargs["device_map"] = {"": get_device()}
        if isinstance(places, Mapping) and "disk" in places.values():  # diffusers would lose the noise images
            raise ValueError(
                "device_map has 'disk', where buffers would be lost; give 'cpu', or use disk_offload later"
            )
        usual = torch.get_default_dtype()
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, dtype=dtype, **kwargs)
        finally:  # diffusers loads under another default, and leaves it behind where loading fails
            torch.set_default_dtype(usual)
        network = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info
        for tensor in (*network.parameters(), *network.buffers()):
            if dtype is not None and "quantization_config" not in kwargs and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)  # of filters too, which no file holds
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()
        return loaded

    @wraps(ModelMixin.save_pretrained)  # of which pipelines ask the signature
    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in diffusers.

        Raises:
            ValueError: the weights are offloaded layer by layer.
        """
        refuse_offloaded(self, "save")
        super().save_pretrained(save_directory, *args, **kwargs)

    def __getstate__(self) -> dict:
        refuse_hooks(self, "copy")
        return super().__getstate__()

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Compute the features inside each block of a generator again in the backward pass, to hold less meanwhile.

        Args:
            gradient_checkpointing_func: of a block and its inputs; None: torch's, not the reentrant kind.

        Raises:
            ValueError: a discriminator, which has no such blocks.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func or _recompute)

    def enable_layerwise_casting(self, *args, **kwargs) -> None:
        """Not here: adapters are functions of the weights as stored, and would be of rounded ones.

        Raises:
            ValueError: always; the message says what to do instead.
        """
        raise ValueError(
            f"{type(self).__name__} does not cast layer by layer: adapters act on the stored weights, which 8 bits "
            "would round, and they are few; load it with dtype=torch.float16 or torch.bfloat16"
        )

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # diffusers notes arguments given by position as left out, and would build the default network from the config
        given = {name: value for name, value in config_dict.items() if name != "_use_default_values"}
        return super().extract_init_dict(given, **kwargs)


def stored_weights(folder: Path, variant: str | None = None) -> list[str]:
    """Names of the files in `folder` that hold a network's weights of that variant: one, or shards and their index."""
    of_variant = "" if variant is None else re.escape(f".{variant}")
    weights = rf"diffusion_pytorch_model{of_variant}(-\d+-of-\d+)?\.(safetensors|bin)"
    index = rf"diffusion_pytorch_model\.(safetensors|bin)\.index{of_variant}\.json"
    return [path.name for path in Path(folder).glob("*") if re.fullmatch(f"{weights}|{index}", path.name)]


def _recompute(block: Callable, *args):
    """torch's checkpoint of the kind that works with frozen parameters and second derivatives; pickles know it."""
    return checkpoint(block, *args, use_reentrant=False)


def settle_dtype(options: dict) -> torch.dtype | Mapping | None:
    """Take `dtype` and `torch_dtype`, two names of one option, out of the options of `from_pretrained`.

    Returns:
        A dtype, of pipelines also one per component by name, or None.

    Raises:
        ValueError: the two differ, or networks do not compute in one of them.
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
    """`network` in evaluation mode for a `with` block.

    After the last such block, of whichever thread, each of its modules is in the mode it was in before the first.
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
