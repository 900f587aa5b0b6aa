"""SHA-256 hashes that identify files, tensors, adapters and networks, and detect damage."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

SHORT = 16  # hex digits of a hash that serves as a name


def hash_file(path: Path) -> str:
    """Return all 64 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Return sixteen hex digits of a text's SHA-256, in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def hash_tensor(tensor: "torch.Tensor") -> str:
    """Return sixteen hex digits for the bits of a tensor's values; the shape does not count."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:SHORT]


def hash_tensors(tensors: "Mapping[str, torch.Tensor]", config: Mapping | None = None) -> str:
    """Return sixteen hex digits for the bits of named tensors and for a config.

    Args:
        tensors: name → tensor, e.g. a state dict.
        config: JSON values. Keys that begin with `_`, such as the folder of a loaded config, do not count.
    """
    import torch

    config = {k: v for k, v in dict(config or {}).items() if not k.startswith("_")}
    sha256 = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha256.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()[:SHORT]


def fingerprint(model: "nn.Module", tensors: "Mapping[str, torch.Tensor] | None" = None) -> str:
    """Return sixteen hex digits that identify a network's config and weights.

    An option of a later version counts only if it differs from its default (`Network.LATER_OPTIONS`). Weights are
    rounded to float16, then to bfloat16, so that a base has one fingerprint in float32 and float16. A base that was
    cast to bfloat16 has another fingerprint unless its weights are stored in float16; `FewShotGAN` therefore remembers
    the fingerprint of the stored weights.

    Args:
        model: a network with a diffusers `config`.
        tensors: name → tensor to hash instead of the network's weights, e.g. the stored ones.
    """
    import torch

    from .offloading import stored_state

    later: Mapping = getattr(model, "LATER_OPTIONS", {})
    model_config: Any = model.config
    config = {k: v for k, v in dict(model_config).items() if not k.startswith("_") and (k, v) not in later.items()}
    sha256 = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted((stored_state(model) if tensors is None else tensors).items()):
        sha256.update(name.encode())
        rounded = tensor.detach().to("cpu", torch.float16).to(torch.bfloat16)
        sha256.update(rounded.contiguous().view(torch.int16).numpy().tobytes())
    return sha256.hexdigest()[:SHORT]
