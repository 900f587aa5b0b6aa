"""Choose the method of a run from its pictures; behind `fewshot-gan adapt` and the demo without a named method."""

import torch

from ..data.datasets import load_images
from ..data.images import to_floats
from ..features import load_features
from ..hub import embedded_datasets
from ..methods.choose import Choice, choose
from ..pipeline import FewShotGAN

USUAL = "lfs_gan"  # method of bases without styles or faces to compare with


@torch.inference_mode(False)
def choose_method(base: str, data: str) -> Choice:
    """Choose the method for a set of pictures, see `methods.choose.choose`.

    Args:
        base: embedded name, folder or repo id.
        data: image folder, zip archive, embedded set or `datasets` id.

    Raises:
        ValueError, OSError: bad data or base, each with one sentence.
    """
    pipe = FewShotGAN.from_pretrained(base)
    return choose_for(pipe, load_images(str(embedded_datasets().get(data, data)), pipe.generator.resolution))


def choose_for(pipe, pictures: torch.Tensor) -> Choice:
    """Choose the method for pictures, uint8 `[K, 3, R, R]`, on a loaded base."""
    if not pipe.generator.has_styles or getattr(pipe.generator, "num_classes", None):
        return Choice(USUAL, reason="on this base it is the only method that needs no counterparts of the pictures")
    device = pipe.generator.device
    return choose(pipe, to_floats(pictures).to(device), load_features(device=device))
