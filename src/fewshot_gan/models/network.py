"""What generators and discriminators of this package share: how they are built from a config, and loaded."""

import re
from pathlib import Path
from typing import ClassVar

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin

from .bounds import Checked

ALIGNMENT = 64  # bytes; where torch's own tensors begin


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
        """As in diffusers."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        network = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()
        return loaded

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
