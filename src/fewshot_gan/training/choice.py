"""Choose the method of a run from its pictures; behind `fewshot-gan adapt` and the demo without a named method."""

import os
from pathlib import Path
from typing import Any

import torch

from ..catalogue import METHODS, USUAL_METHOD
from ..data.datasets import load_images
from ..data.images import to_floats
from ..features import load_features
from ..hub import data_source
from ..methods.choose import Choice, choose
from ..models.labels import unlike_plain_styles
from ..pipeline import FewShotGAN
from .checkpoints import begun_config


@torch.inference_mode(False)
def choose_method(base: str, data: str, folder: str | os.PathLike) -> tuple[str, dict[str, Any], str]:
    """Choose the method for a set of pictures, see `methods.choose.choose`, or take that of a run to go on with.

    Args:
        base: embedded name, folder or repo id.
        data: image folder, zip archive, embedded set or `datasets` id.
        folder: output folder of the run.

    Returns:
        The method, further options of `make_run`, and the reason.

    Raises:
        ValueError, OSError: bad data or base, each with one sentence.
    """
    if (begun := _begun(Path(folder))) is not None:
        return *begun, f"the run in {folder} uses it"
    pipe = FewShotGAN.from_pretrained(base)
    if torch.cuda.is_available():
        pipe.to("cuda")
    choice = choose_for(pipe, load_images(data_source(data), pipe.generator.resolution))
    return choice.method, choice.options, choice.reason


def _begun(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Return method and options of the run in a folder, or None."""
    config = begun_config(folder)
    if config.get("method") not in METHODS:
        return None
    training = config.get("training") or {}
    options = {name: training.get(name) for name in ("preset", "real_zoom")}
    options["adapter"] = config.get("adapter_type")
    return config["method"], {name: value for name, value in options.items() if value is not None}


def choose_for(pipe, pictures: torch.Tensor) -> Choice:
    """Choose the method for pictures, uint8 `[K, 3, R, R]`, on a loaded base."""
    if unlike_plain_styles(pipe.generator):
        return Choice(USUAL_METHOD, reason="this base has no styles, or has classes")
    device = pipe.generator.device
    return choose(pipe, to_floats(pictures).to(device), load_features(device=device))
