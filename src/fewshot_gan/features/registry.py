"""Load feature networks by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from ..hub import is_repo_id
from ..utils.files import expanded
from .backbone import BackboneFeatures
from .base import FeatureNetwork
from .efficientnet import EFFICIENTNETS
from .inception import InceptionFeatures
from .lpips import LPIPS

NETWORKS = {  # name → function or class that makes it
    **EFFICIENTNETS,
    "inception-v3": InceptionFeatures,
    **LPIPS,
}


def load_features(name: str = "efficientnet-lite0", device: str | torch.device | None = None) -> FeatureNetwork:
    """Load the frozen network `name`. Calls with equal arguments return the same object, so do not move it.

    Args:
        name: "efficientnet-lite0" or "efficientnet-lite2", which need no network connection. For metrics only:
            "inception-v3", "lpips-vgg", "lpips-alex", or a vision model of transformers as a local folder or Hub repo
            id.
        device: of the network; None: the CPU.

    Raises:
        ValueError: an unknown name, or a folder or repo without a vision model.
        FileNotFoundError: the Hub has no such repo, or weights cannot be fetched.
        ImportError: the packages that define it, or carry the weights, are not installed.
    """
    return _load(expanded(name), str(torch.device(device or "cpu")))


@cache
@torch.inference_mode(False)  # cached weights made in inference mode could not lead gradients
def _load(name: str, device: str) -> FeatureNetwork:
    if name in NETWORKS:
        return NETWORKS[name]().to(device)
    if not (Path(name).is_dir() or is_repo_id(name)):
        raise ValueError(
            f"feature network {name!r} is not known; choose one of {sorted(NETWORKS)}, or give a model of transformers"
        )
    return BackboneFeatures(name).to(device)
