"""One tiny network of every class, what its `forward` takes, and how results compare."""

import json

import torch

from fewshot_gan import ProjectedDiscriminator
from fewshot_gan.models import (
    BigGANDiscriminator,
    BigGANGenerator,
    GPGANDiscriminator,
    GPGANGenerator,
    MobileStyleGANGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    TailoredGenerator,
)
from fewshot_gan.models.network import Network
from helpers.networks import TinyFeatures, tiny_discriminator, tiny_mobile, tiny_stylegan2

SHAPES = {0: 16, 2: 8, 7: 8}  # feature levels of the projected discriminator and the size of their maps
SETTINGS = {  # of every class; lists as files have them
    BigGANDiscriminator: {"block_channels": [8, 8], "down": [True, True], "attention_after": 1, "resolution": 16},
    BigGANGenerator: {"block_channels": [8, 8, 8], "attention_after": 1, "chunk_dim": 4, "shared_dim": 8},
    GPGANDiscriminator: {"channels": [8, 8, 8, 8], "num_classes": 3},
    GPGANGenerator: {"channels": [8, 8, 8, 8], "num_classes": 3, "z_dim": 8, "embedding_dim": 4},
    MobileStyleGANGenerator: {"block_channels": [4, 4], "z_dim": 3, "w_dim": 3, "num_mapping_layers": 2},
    SNGANDiscriminator: {"channels": 8},
    SNGANGenerator: {"channels": 8, "z_dim": 8, "resolution": 16},
    StyleGAN2Discriminator: {"resolution": 16, "channel_base": 64, "channel_max": 8},
    StyleGAN2Generator: {"resolution": 16, "channel_base": 64, "channel_max": 8, "z_dim": 8, "w_dim": 8},
    TailoredGenerator: {"channels": [8, 8, 8], "style_blocks": 1, "z_dim": 8, "style_dim": 8, "mapping_layers": 2},
}


def small(network: type[Network], **more) -> Network:
    return network(**SETTINGS[network], **more)


GENERATORS = {
    "mobile": lambda: tiny_mobile(),
    "stylegan2": lambda: tiny_stylegan2(resolution=16),
    "labelled": lambda: small(
        StyleGAN2Generator, num_mapping_layers=2, architecture="resnet", num_classes=3, embed_dim=4, mapping_dim=6
    ),
    "sngan": lambda: small(SNGANGenerator),
    "biggan": lambda: small(BigGANGenerator, num_classes=3),
    "gp_gan": lambda: small(GPGANGenerator, blocks_per_scale=1),
    "tailored": lambda: small(TailoredGenerator, blocks_per_scale=1, gain=1.0),
}
DISCRIMINATORS = {
    "stylegan2": lambda: tiny_discriminator(resolution=16),
    "labelled": lambda: small(StyleGAN2Discriminator, architecture="skip", num_classes=3),
    "sngan": lambda: small(SNGANDiscriminator, resolution=16),
    "biggan": lambda: small(BigGANDiscriminator, num_classes=3),
    "gp_gan": lambda: small(GPGANDiscriminator, blocks_per_scale=1),
    "projected": lambda: ProjectedDiscriminator({k: TinyFeatures.WIDTH for k in SHAPES}, {0: 2, 2: 1, 7: 1}),
}
NETWORKS = {f"{name}-G": make for name, make in GENERATORS.items()}
NETWORKS |= {f"{name}-D": make for name, make in DISCRIMINATORS.items()}


def made(name: str, seed: int = 0, training: bool = False) -> Network:
    """A network whose every parameter matters: none is zero."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network.train(training)


def inputs(network: Network, batch: int = 2, seed: int = 0) -> list:
    """What its `forward` takes, but for labels."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(network, ProjectedDiscriminator):
        width = TinyFeatures.WIDTH
        return [{k: torch.randn(batch, width, n, n, generator=random) for k, n in SHAPES.items()}]
    size = (network.z_dim,) if hasattr(network, "z_dim") else (3, network.resolution, network.resolution)
    return [torch.randn(batch, *size, generator=random)]


def labels(network: Network, batch: int = 2) -> dict:
    """The `class_labels` that its `forward` wants."""
    classes = getattr(network, "num_classes", None)
    return {} if classes is None else {"class_labels": torch.arange(batch) % classes}


def tensors(value) -> list[torch.Tensor]:
    """The floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def cast(value, dtype: torch.dtype):
    """`value` with its floating-point tensors in `dtype`."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return {k: cast(v, dtype) for k, v in value.items()} if isinstance(value, dict) else [cast(v, dtype) for v in value]


@torch.no_grad()
def result(network: Network, **options) -> list[torch.Tensor]:
    return tensors(network(*cast(inputs(network), network.dtype), **labels(network), **options))


def arguments(network: Network) -> dict:
    """Its config as JSON has it, without notes on where it comes from."""
    config = json.loads(network.to_json_string())
    return {name: value for name, value in config.items() if not name.startswith("_")}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


def differ(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest difference over the largest value."""
    largest = max(y.abs().max() for y in b)
    return float(max((x.float() - y.float()).abs().max() for x, y in zip(a, b, strict=True)) / largest)
