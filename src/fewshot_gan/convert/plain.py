"""Convert checkpoints of the PyTorch implementations of SNGAN and GP-GAN.

SNGAN: `gen_state_dict`, `dis_state_dict`, `avg_gen_state_dict`, with or without spectral norm in D, pruned ones too.
GP-GAN: `generator`, `discriminator`, `generator_test`.
"""

from collections.abc import Callable

from ..models.gp_gan import GPGANDiscriminator, GPGANGenerator
from ..models.sngan import SNGANDiscriminator, SNGANGenerator
from .fill import fill, levels, torch_sigma
from .report import SourceTensors

MARKS = {  # kind: see `state_dicts.find`
    "SNGAN generator": ("l1.weight", "block2.c_sc.bias", "b5.weight"),
    "SNGAN discriminator": ("l5.weight_orig", "block1.c1.weight_orig", "block1.c_sc.bias"),
    "SNGAN discriminator without spectral norm": ("l5.weight", "block1.c1.weight", "block1.c_sc.bias"),
    "GP-GAN generator": ("embedding.weight", "fc.weight", "conv_img.weight", "resnet_0_0.conv_0.weight"),
    "GP-GAN discriminator": ("fc.weight", "conv_img.weight", "resnet_0_0.conv_0.weight"),
}


# --------------------------------------------------------------------------------------------------------------- SNGAN


def _sngan_generator(tensors: dict) -> SNGANGenerator:
    source = SourceTensors(tensors)
    blocks = levels(tensors, r"block(\d+)\.c1\.")
    channels = source["block2.c1.weight"].shape[0]
    model = SNGANGenerator(channels, source["l1.weight"].shape[1], 4 << blocks)
    parts = {"conv0": "c1", "conv1": "c2", "skip": "c_sc", "norm0": "b1", "norm1": "b2"}
    top = {"linear": "l1", "norm": "b5", "to_rgb": "c5"}

    def rename(path: str) -> str:
        path = path.removesuffix(".norm") if path.count(".") and path.endswith(".norm") else path
        block, _, layer = path.partition(".")
        return f"block{int(block[1:]).bit_length() - 2}.{parts[layer]}" if layer else top[block]

    return fill(model, tensors, rename)


def _sngan_discriminator(tensors: dict) -> SNGANDiscriminator:
    source = SourceTensors(tensors)
    normed = "l5.weight_orig" in source
    weight = source["block1.c1.weight_orig" if normed else "block1.c1.weight"]
    model = SNGANDiscriminator(weight.shape[0], spectral_norm=normed)  # the resolution comes from the generator
    parts = {"conv0": "c1", "conv1": "c2", "skip": "c_sc"}

    def rename(path: str) -> str:
        block, _, layer = path.partition(".")
        return f"block{int(block[-1]) + 1}.{parts[layer]}" if layer else "l5"

    return fill(model, tensors, rename, torch_sigma)


# -------------------------------------------------------------------------------------------------------------- GP-GAN


def gp_gan_name(scale_of: Callable[[int], int], top: dict[str, str]) -> Callable[[str], str]:
    """Return a function from our module path to that of the checkpoint.

    Args:
        scale_of: resolution → number of the scale in the checkpoint.
        top: names of modules outside of the scales.
    """

    def rename(path: str) -> str:
        if path in top:
            return top[path]
        res, index, layer = path.split(".")
        part = {"conv0": "conv_0", "conv1": "conv_1", "skip": "conv_s"}[layer]
        return f"resnet_{scale_of(int(res[1:]))}_{index}.{part}"

    return rename


def _gp_gan_sizes(source: SourceTensors, downwards: bool) -> tuple[list[int], dict]:
    """Return the widths from 4×4 on, and further arguments of both networks."""
    count = levels(source.tensors, r"resnet_(\d+)_0\.")
    blocks = levels(source.tensors, r"resnet_0_(\d+)\.")
    ends = [source[f"resnet_{i}_{blocks - 1}.conv_1.weight"].shape[0] for i in range(count)]
    widths = [source["resnet_0_0.conv_0.weight"].shape[1], *ends]
    return (widths[::-1] if downwards else widths), {
        "blocks_per_scale": blocks,
        "image_kernel": source["conv_img.weight"].shape[-1],
    }


def _gp_gan_generator(tensors: dict) -> GPGANGenerator:
    source = SourceTensors(tensors)
    widths, shared = _gp_gan_sizes(source, downwards=False)
    classes, size = source["embedding.weight"].shape
    z_dim = source["fc.weight"].shape[1] - size
    # networks with one block per scale, such as CelebA's, do not normalise the embedding
    normalise = shared["blocks_per_scale"] != 1
    model = GPGANGenerator(
        widths, num_classes=classes, z_dim=z_dim, embedding_dim=size, normalise_embedding=normalise, **shared
    )
    top = {"embedding": "embedding", "linear": "fc", "to_rgb": "conv_img"}
    return fill(model, tensors, gp_gan_name(lambda res: res.bit_length() - 3, top))


def _gp_gan_discriminator(tensors: dict) -> GPGANDiscriminator:
    source = SourceTensors(tensors)
    widths, shared = _gp_gan_sizes(source, downwards=True)
    model = GPGANDiscriminator(widths, num_classes=source["fc.weight"].shape[0], **shared)
    top = {"from_rgb": "conv_img", "out": "fc"}
    scales = model.resolution.bit_length()
    return fill(model, tensors, gp_gan_name(lambda res: scales - res.bit_length(), top))


CONVERTERS = {
    "SNGAN generator": _sngan_generator,
    "SNGAN discriminator": _sngan_discriminator,
    "SNGAN discriminator without spectral norm": _sngan_discriminator,
    "GP-GAN generator": _gp_gan_generator,
    "GP-GAN discriminator": _gp_gan_discriminator,
}
