"""Run every converted network once."""

from typing import Any

import torch

from ..utils.random import seeded
from .report import ConversionError

SEED = 0


@torch.no_grad()
def check(networks: dict[str, Any]) -> None:
    """Generate one image with every generator, and pass it to the discriminator.

    Args:
        networks: any of "generator", "generator_raw" and "discriminator", in eval mode.

    Raises:
        ConversionError: a network fails, its result has the wrong shape or is not finite, or generator and
            discriminator have different image sizes.
    """
    picture = None
    for role in ("generator_raw", "generator"):
        if role in networks:
            network = networks[role]
            z = torch.randn(1, network.z_dim, generator=seeded(SEED), dtype=torch.float32, device="cpu")
            picture = _run(role, network, z, (1, 3, network.resolution, network.resolution))
    if "discriminator" in networks:
        network = networks["discriminator"]
        size = network.resolution
        if picture is None:
            picture = torch.zeros((1, 3, size, size), dtype=torch.float32, device="cpu")
        if picture.shape[-1] != size:
            raise ConversionError(
                f"the generator draws {picture.shape[-1]} px and the discriminator takes {size} px; give the files of "
                "one training"
            )
        _run("discriminator", network, picture, (1, 1))


def _run(role: str, network: Any, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    classes = getattr(network, "num_classes", None)
    options = {"class_labels": torch.zeros(1, dtype=torch.long, device="cpu")} if classes else {}
    try:
        result = network(x.to(network.device, network.dtype), **options)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(f"the converted {role} does not run ({reason}); its layout is another one") from error
    if tuple(result.shape) != shape:
        raise ConversionError(f"the converted {role} gives {tuple(result.shape)} instead of {shape}")
    if not torch.isfinite(result).all():
        raise ConversionError(f"the converted {role} gives numbers that are not finite; the checkpoint is damaged")
    return result
