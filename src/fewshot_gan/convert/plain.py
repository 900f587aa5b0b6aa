"""SNGAN, BigGAN and GP-GAN from the checkpoints that their PyTorch implementations write, recognised by tensor names.

SNGAN: `gen_state_dict`, `dis_state_dict`, `avg_gen_state_dict`, pruned ones (`weight_orig`, `weight_mask`) too. BigGAN:
one state dict per file. GP-GAN: `generator`, `discriminator`, `generator_test`.
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..models.biggan import BigGANDiscriminator, BigGANGenerator
from ..models.gp_gan import GPGANDiscriminator, GPGANGenerator
from ..models.sngan import SNGANDiscriminator, SNGANGenerator
from .report import ConversionError, SourceTensors

AVERAGED = ("avg_gen_state_dict", "generator_test", "G_ema")  # names of the moving average of a generator
MARKS = {  # kind: names that a state dict of it has
    "sngan_generator": {"l1.weight", "block2.c_sc.bias", "b5.weight"},
    "sngan_discriminator": {"l5.weight_orig", "block1.c_sc.bias"},
    "biggan_generator": {"shared.weight", "blocks.0.0.bn1.gain.weight"},
    "biggan_discriminator": {"embed.weight", "blocks.0.0.conv_sc.weight"},
    "gp_gan_generator": {"embedding.weight", "conv_img.weight", "resnet_0_0.conv_0.weight"},
    "gp_gan_discriminator": {"fc.weight", "conv_img.weight", "resnet_0_0.conv_0.weight"},
}
SIGMA = ".parametrizations.weight.0."  # below it torch keeps the vectors _u and _v
RAW = ".parametrizations.weight.original"


def find(data: dict) -> dict[str, tuple[str, dict]]:
    """Name in the file → (kind, tensors) of every network of these families; the file's own state dict is named "".

    A prefix that a wrapper for several GPUs puts before every name is taken off.
    """
    found = {}
    for name, tensors in {"": data, **data}.items():
        if isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors):
            tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
            if kind := next((kind for kind, marks in MARKS.items() if marks <= _plain_names(tensors)), None):
                found[name] = kind, tensors
    return found


def convert(found: dict[str, tuple[str, dict]]) -> dict[str, torch.nn.Module]:
    """What `find` found as networks, see `convert_checkpoint`.

    Raises:
        ConversionError: tensors are missing, left over or of another shape, each named.
    """
    networks, sources = {}, {}
    for name, (kind, tensors) in found.items():
        role = "discriminator" if kind.endswith("discriminator") else "generator"
        role = f"{role}_averaged" if name.startswith(AVERAGED) else role
        if role in sources:
            raise ConversionError(f"both {sources[role]} and {name} are a {role}; give the file or folder of one")
        sources[role], networks[role] = name, CONVERTERS[kind](_masked(tensors))
    if "generator_averaged" in networks:
        if "generator" in networks:
            networks["generator_raw"] = networks["generator"]
        networks["generator"] = networks.pop("generator_averaged")
    return {name: network.eval() for name, network in networks.items()}


def _plain_names(tensors: dict) -> set[str]:
    """Names, those of pruned weights without what pruning appends."""
    pruned = {name.removesuffix("_mask") for name in tensors if name.endswith(".weight_mask")}
    return {*tensors, *pruned}


def _masked(tensors: dict) -> dict:
    """Pruned weights as they are used: `weight_orig` times `weight_mask`."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith(".weight_mask")]:
        weight = name.removesuffix("_mask")
        if f"{weight}_orig" not in tensors:
            raise ConversionError(f"the checkpoint has {name} but no {weight}_orig, so it is cut short")
        tensors[weight] = tensors.pop(f"{weight}_orig") * tensors.pop(name)
    return tensors


def _fill(model: torch.nn.Module, tensors: dict, rename: Callable[[str], str], sigma=None, leaves=()):
    """Every tensor of `model` from the one of its name over there.

    Args:
        model: of the right size.
        tensors: the state dict.
        rename: our module path → theirs.
        sigma: (source, their layer, shape of the weight) → its raw name there, u `[O]` and v `[n]`; of networks
            with spectral norm.
        leaves: one of our names, or its last part → their last part, where they differ.
    """
    source, state, leaves = SourceTensors(tensors), {}, dict(leaves)
    for ours, value in model.state_dict().items():
        path, _, leaf = ours.partition(SIGMA) if SIGMA in ours else ours.rpartition(".")
        if leaf == "num_batches_tracked":
            name = f"{rename(path)}.{leaf}"
            state[ours] = source.take(name, ()).long() if name in source else value
        elif ours.endswith(RAW):
            layer = rename(ours.removesuffix(RAW))
            name, u, v = sigma(source, layer, value.shape)
            state[ours] = source.take(name, value.shape)
            state[ours.replace("original", "0._u")], state[ours.replace("original", "0._v")] = u, v
        elif SIGMA not in ours:
            state[ours] = source.take(f"{rename(path)}.{leaves.get(ours, leaves.get(leaf, leaf))}", value.shape)
    source.finish()
    model.load_state_dict(state)
    return model


def _levels(tensors: dict, pattern: str) -> int:
    """How many different numbers the first group of `pattern` has among the names.

    Raises:
        ConversionError: none.
    """
    found = {match[1] for name in tensors if (match := re.match(pattern, name))}
    if not found:
        raise ConversionError(f"the checkpoint has no tensor like {pattern}; it is not of the layout it looked like")
    return len(found)


# --------------------------------------------------------------------------------------------------------------- SNGAN


def _torch_sigma(source: SourceTensors, layer: str, shape):
    """`torch.nn.utils.spectral_norm`: weight_orig, weight_u, weight_v."""
    vectors = (source.take(f"{layer}.weight_{x}", (n,)) for x, n in (("u", shape[0]), ("v", shape[1:].numel())))
    return f"{layer}.weight_orig", *vectors


def _sngan_generator(tensors: dict) -> SNGANGenerator:
    source = SourceTensors(tensors)
    blocks = _levels(tensors, r"block(\d+)\.c1\.")
    channels = source["block2.c1.weight"].shape[0]
    model = SNGANGenerator(channels, source["l1.weight"].shape[1], 4 << blocks)
    parts = {"conv0": "c1", "conv1": "c2", "skip": "c_sc", "norm0": "b1", "norm1": "b2"}
    top = {"linear": "l1", "norm": "b5", "to_rgb": "c5"}

    def rename(path: str) -> str:
        path = path.removesuffix(".norm") if path.count(".") and path.endswith(".norm") else path
        block, _, layer = path.partition(".")
        return f"block{int(block[1:]).bit_length() - 2}.{parts[layer]}" if layer else top[block]

    return _fill(model, tensors, rename)


def _sngan_discriminator(tensors: dict) -> SNGANDiscriminator:
    source = SourceTensors(tensors)
    model = SNGANDiscriminator(source["block1.c1.weight_orig"].shape[0])
    parts = {"conv0": "c1", "conv1": "c2", "skip": "c_sc"}

    def rename(path: str) -> str:
        block, _, layer = path.partition(".")
        return f"block{int(block[-1]) + 1}.{parts[layer]}" if layer else "l5"

    return _fill(model, tensors, rename, _torch_sigma)


# -------------------------------------------------------------------------------------------------------------- BigGAN


def _biggan_sigma(source: SourceTensors, layer: str, shape):
    """u0 `[1, O]` alone is kept there, and one power iteration taken at each use: so its result is what we keep."""
    name = f"{layer}.weight"
    u = source.take(f"{layer}.u0", (1, shape[0]))[0]
    source.discard(f"{layer}.sv0")  # σ itself
    matrix = source[name].float().flatten(1)
    v = (
        F.normalize(matrix.T @ u, dim=0)
        if len(matrix) == len(u)
        else torch.zeros(shape[1:].numel(), dtype=torch.float32, device="cpu")
    )
    return name, F.normalize(matrix @ v, dim=0) if len(v) == matrix.shape[1] else u, v


BIGGAN_PARTS = {"conv0": "conv1", "conv1": "conv2", "skip": "conv_sc", "norm0": "bn1", "norm1": "bn2"}


def _biggan_generator(tensors: dict) -> BigGANGenerator:
    source = SourceTensors(tensors)
    blocks = _levels(tensors, r"blocks\.(\d+)\.0\.conv1")
    widths = [source["blocks.0.0.conv1.weight"].shape[1]]
    widths += [source[f"blocks.{i}.0.conv1.weight"].shape[0] for i in range(blocks)]
    attention = next((i + 1 for i in range(blocks) if f"blocks.{i}.1.gamma" in source), 0)
    classes, shared = source["shared.weight"].shape
    chunk = source["linear.weight"].shape[1]
    model = BigGANGenerator(widths, attention, chunk, shared, classes, norm_eps=1e-5)
    top = {"shared": "shared", "linear": "linear", "norm": "output_layer.0", "to_rgb": "output_layer.2"}

    def rename(path: str) -> str:
        first, _, rest = path.partition(".")
        if first == "attention":
            return f"blocks.{attention - 1}.1" + (f".{rest}" if rest else "")
        if not first.startswith("b"):
            return top[first]
        layer, _, inner = rest.partition(".")
        inner = {"gain": ".gain", "shift": ".bias"}.get(inner, "")
        return f"blocks.{int(first[1:]).bit_length() - 4}.0.{BIGGAN_PARTS[layer]}{inner}"

    leaves = {"running_mean": "stored_mean", "running_var": "stored_var", "norm.weight": "gain"}
    return _fill(model, tensors, rename, _biggan_sigma, leaves)


def _biggan_discriminator(tensors: dict) -> BigGANDiscriminator:
    source = SourceTensors(tensors)
    blocks = _levels(tensors, r"blocks\.(\d+)\.0\.conv1")
    widths = [source[f"blocks.{i}.0.conv1.weight"].shape[0] for i in range(blocks)]
    attention = next((i + 1 for i in range(blocks) if f"blocks.{i}.1.gamma" in source), 0)
    # a block that keeps its width has a skip convolution if it halves the size, and only then
    down = [widths[i] != (widths[i - 1] if i else 3) or f"blocks.{i}.0.conv_sc.weight" in source for i in range(blocks)]
    # what reaches the sum is 8 px in the CIFAR layout, whose last two blocks keep the size, and 4 px in the others
    resolution = (8 if blocks - sum(down) > 1 else 4) << sum(down)
    classes = source["embed.weight"].shape[0]
    model = BigGANDiscriminator(widths, down, attention, classes, resolution)

    def rename(path: str) -> str:
        first, _, rest = path.partition(".")
        if first == "attention":
            return f"blocks.{attention - 1}.1" + (f".{rest}" if rest else "")
        if first in ("out", "embedding"):
            return {"out": "linear", "embedding": "embed"}[first]
        return f"blocks.{int(first[5:])}.0.{BIGGAN_PARTS[rest]}"

    return _fill(model, tensors, rename, _biggan_sigma)


# -------------------------------------------------------------------------------------------------------------- GP-GAN


def _gp_gan_name(scale_of: Callable[[int], int], top: dict[str, str]) -> Callable[[str], str]:
    def rename(path: str) -> str:
        if path in top:
            return top[path]
        res, index, layer = path.split(".")
        part = {"conv0": "conv_0", "conv1": "conv_1", "skip": "conv_s"}[layer]
        return f"resnet_{scale_of(int(res[1:]))}_{index}.{part}"

    return rename


def _gp_gan_sizes(source: SourceTensors, downwards: bool) -> tuple[list[int], dict]:
    """Widths from 4×4 on, and what else both networks share."""
    count = _levels(source.tensors, r"resnet_(\d+)_0\.")
    blocks = _levels(source.tensors, r"resnet_0_(\d+)\.")
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
    one = shared["blocks_per_scale"] == 1  # CelebA's and the like: the embedding goes in as it is
    model = GPGANGenerator(
        widths, num_classes=classes, z_dim=z_dim, embedding_dim=size, normalise_embedding=not one, **shared
    )
    top = {"embedding": "embedding", "linear": "fc", "to_rgb": "conv_img"}
    return _fill(model, tensors, _gp_gan_name(lambda res: res.bit_length() - 3, top))


def _gp_gan_discriminator(tensors: dict) -> GPGANDiscriminator:
    source = SourceTensors(tensors)
    widths, shared = _gp_gan_sizes(source, downwards=True)
    model = GPGANDiscriminator(widths, num_classes=source["fc.weight"].shape[0], **shared)
    top = {"from_rgb": "conv_img", "out": "fc"}
    scales = model.resolution.bit_length()
    return _fill(model, tensors, _gp_gan_name(lambda res: scales - res.bit_length(), top))


CONVERTERS = {
    "sngan_generator": _sngan_generator,
    "sngan_discriminator": _sngan_discriminator,
    "biggan_generator": _biggan_generator,
    "biggan_discriminator": _biggan_discriminator,
    "gp_gan_generator": _gp_gan_generator,
    "gp_gan_discriminator": _gp_gan_discriminator,
}
