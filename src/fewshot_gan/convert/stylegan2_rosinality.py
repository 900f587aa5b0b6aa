"""Convert StyleGAN2 checkpoints of the widespread PyTorch port and of projects based on it.

Supported: `.pt` with `g_ema`, `g`, `d`, `latent_avg`; encoders whose `decoder` is its generator (pSp, e4e); BasicSR's
networks, whose `params_ema` have other names for the same tensors.
"""

import logging
import re

import torch

from ..models.stylegan2 import FIR_TAPS, StyleGAN2Discriminator, StyleGAN2Generator
from ..utils.random import seeded
from .report import ConversionError, SourceTensors
from .stylegan2_nvidia import channel_rule, is_standard_filter

logger = logging.getLogger(__name__)

GENERATOR, DISCRIMINATOR = "StyleGAN2 generator", "StyleGAN2 discriminator"
BASICSR_GENERATOR, BASICSR_DISCRIMINATOR = "BasicSR StyleGAN2 generator", "BasicSR StyleGAN2 discriminator"
MARKS = {  # kind: see `state_dicts.find`
    GENERATOR: ("style.1.weight", "conv1.conv.weight", "to_rgb1.conv.weight"),
    DISCRIMINATOR: ("convs.0.0.weight", "final_conv.0.weight", "final_linear.0.weight"),
    BASICSR_GENERATOR: ("style_mlp.1.weight", "style_conv1.modulated_conv.weight", "constant_input.weight"),
    BASICSR_DISCRIMINATOR: ("conv_body.0.0.weight", "final_conv.0.weight", "final_linear.0.weight"),
}
BASICSR_NAMES = (  # pattern of a name of BasicSR's, the port's
    (r"style_mlp\.", "style."),
    (r"constant_input\.weight", "input.input"),
    (r"(style_conv1|style_convs\.\d+)\.weight", r"\1.noise.weight"),
    (r"style_conv(1|s\.)", r"conv\1"),
    (r"modulated_conv\.", "conv."),
    (r"noises\.noise(\d+)", r"noises.noise_\1"),
    (r"conv_body\.", "convs."),
)
MAPPING_LR = 0.01  # fixed in that code
W_AVG_SAMPLES, W_AVG_SEED, NOISE_SEED = 10_000, 0, 0
UP_GAIN = 4.0  # kernels of up-sampling filters are stored times 2²


def convert_generator(tensors: dict, latent_avg=None) -> StyleGAN2Generator:
    """Convert a generator state dict, in float32.

    Args:
        tensors: name → tensor. `noises.noise_i`, which the first files did not have, are drawn from a fixed seed.
        latent_avg: the mean w, `[D]`, or `[L, D]` with one row per layer; None = estimate it from mapped samples with a
            fixed seed.

    Raises:
        ConversionError: a tensor is missing, left over or of another shape, or the network is another one.
    """
    tensors = dict(tensors)
    latent_avg = tensors.pop("latent_avg", latent_avg)  # a buffer, where the generator is a part of an encoder
    _refuse_without_noise(tensors)
    source = SourceTensors(tensors)
    levels = len({m[1] for name in source.tensors if (m := re.match(r"to_rgbs\.(\d+)\.", name))})
    resolution = _supported(levels)
    widths = {4: source["conv1.conv.weight"].shape[1]}
    widths |= {8 << i: source[f"convs.{2 * i + 1}.conv.weight"].shape[1] for i in range(levels)}
    base, maximum = channel_rule(widths)
    w_dim, z_dim = source["style.1.weight"].shape
    model = StyleGAN2Generator(
        resolution=resolution,
        channel_base=base,
        channel_max=maximum,
        z_dim=z_dim,
        w_dim=w_dim,
        num_mapping_layers=sum(re.fullmatch(r"style\.\d+\.weight", name) is not None for name in source.tensors),
        mapping_lr_multiplier=MAPPING_LR,
    ).eval()
    own_noise = any(name.startswith("noises.") for name in source.tensors)
    state = {} if own_noise else _drawn_noise(model)
    for ours, value in model.state_dict().items():
        if ours != "mapping.w_avg" and ours not in state:
            theirs, shape = generator_name(ours, value.shape)
            state[ours] = source.take(theirs, shape).reshape(value.shape)
    _discard_filters(source)
    source.finish()
    mean = None if latent_avg is None else _one_mean(latent_avg, model.num_ws, w_dim)
    model.load_state_dict({**state, "mapping.w_avg": model.mapping.w_avg if mean is None else mean})
    if mean is None:
        model.mapping.w_avg.copy_(_mean_w(model))
    return model


def convert_discriminator(tensors: dict) -> StyleGAN2Discriminator:
    """Convert a discriminator state dict, in float32.

    Raises:
        ConversionError: see `convert_generator`.
    """
    source = SourceTensors(tensors)
    levels = len({m[1] for name in source.tensors if (m := re.match(r"convs\.(\d+)\.conv1\.", name))})
    resolution = _supported(levels)
    widths = {resolution >> (i - 1): source[f"convs.{i}.conv1.0.weight"].shape[0] for i in range(1, levels + 1)}
    head = source["final_conv.0.weight"].shape
    base, maximum = channel_rule(widths | {4: head[0]})
    model = StyleGAN2Discriminator(resolution, base, maximum, mbstd_num_channels=head[1] - head[0]).eval()
    state = {
        ours: source.take(_discriminator_name(ours, resolution), value.shape)
        for ours, value in model.state_dict().items()
    }
    _discard_filters(source)
    source.finish()
    model.load_state_dict(state)
    return model


def _supported(levels: int) -> int:
    """Return the image size for a number of blocks after the first one at 4 × 4 pixels."""
    if not 2 <= levels <= 8:
        size = 4 << min(levels, 12)
        raise ConversionError(f"this StyleGAN2 is of {size} × {size} pixels; those of 16 to 1024 convert")
    return 4 << levels


def _refuse_without_noise(tensors: dict) -> None:
    if not any(name.endswith(".noise.weight") for name in tensors):
        raise ConversionError(
            "this StyleGAN2 was trained without noise layers (it has no noise.weight), which all that convert have"
        )


def _discard_filters(source: SourceTensors) -> None:
    for name in source.tensors:
        if name.endswith(".kernel"):
            if not is_standard_filter(source[name], gains=(1.0, UP_GAIN)):
                raise ConversionError(
                    f"{name} is not the filter {list(FIR_TAPS)}, the only one these networks have here"
                )
            source.discard(name)


def _mean_w(model: StyleGAN2Generator) -> torch.Tensor:
    logger.warning("no latent_avg in the checkpoint: w_avg is the mean of %d mapped samples", W_AVG_SAMPLES)
    z = torch.randn(W_AVG_SAMPLES, model.z_dim, generator=seeded(W_AVG_SEED), dtype=torch.float32, device="cpu")
    with torch.no_grad():
        return model.mapping(z.to(model.dtype))[:, 0].double().mean(0).float()


def _one_mean(latent_avg, num_ws: int, w_dim: int) -> torch.Tensor:
    """Return the mean w `[D]` for `[D]`, `[1, D]` or one row per layer; warn if the rows differ, and average them.

    Raises:
        ConversionError: the shape is another one.
    """
    mean = torch.as_tensor(latent_avg).detach().float()
    if mean.shape not in ((w_dim,), (1, w_dim), (num_ws, w_dim)):
        raise ConversionError(
            f"latent_avg has the shape {tuple(mean.shape)} instead of ({w_dim},), or ({num_ws}, {w_dim}) with one row "
            "per layer"
        )
    rows = mean.reshape(-1, w_dim)
    if torch.equal(rows, rows[:1].expand_as(rows)):
        return rows[0].clone()
    logger.warning("latent_avg differs from layer to layer: w_avg is the mean of its %d rows", len(rows))
    return rows.mean(0)


def _drawn_noise(model: StyleGAN2Generator) -> dict[str, torch.Tensor]:
    """Return random noise images for a checkpoint without them: our name → `[H, W]`."""
    logger.warning("no noises in the checkpoint: the fixed noise images are drawn from seed %d", NOISE_SEED)
    generator = seeded(NOISE_SEED)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float32, device="cpu")
        for name, value in model.state_dict().items()
        if name.endswith("noise.const")
    }


def generator_name(ours: str, shape) -> tuple[str, tuple[int, ...]]:
    """Return the port's name and shape of one of our tensors."""
    shape = tuple(shape)
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", ours):
        return f"style.{int(match[1]) + 1}.{match[2]}", shape  # style.0 normalises z
    if ours == "synthesis.b4.const":
        return "input.input", (1, *shape)
    match = re.fullmatch(r"synthesis\.b(\d+)\.(\w+)\.(.+)", ours)
    assert match is not None, ours
    res, layer, leaf = match.groups()
    level = int(res).bit_length() - 4  # -1 for 4×4, 0 for 8×8, …
    if layer == "to_rgb":
        prefix = "to_rgb1" if level < 0 else f"to_rgbs.{level}"
        leaves = {"bias": ("bias", (1, 3, 1, 1))}
    else:
        index = 2 * level + int(layer[-1])
        prefix = "conv1" if level < 0 else f"convs.{index}"
        leaves = {"bias": ("activate.bias", shape), "noise.strength": ("noise.weight", (1,))}
        if leaf == "noise.const":
            return f"noises.noise_{index + 1 if level >= 0 else 0}", (1, 1, *shape)
    leaves |= {
        "weight": ("conv.weight", (1, *shape)),
        "affine.weight": ("conv.modulation.weight", shape),
        "affine.bias": ("conv.modulation.bias", shape),
    }
    theirs, shape = leaves[leaf]
    return f"{prefix}.{theirs}", shape


def _discriminator_name(ours: str, resolution: int) -> str:
    """Return the port's name of one of our tensors."""
    match = re.fullmatch(r"b(\d+)\.(\w+)\.(weight|bias)", ours)
    assert match is not None, ours
    res, layer, leaf = match.groups()
    heads = {"conv": "final_conv.0.weight" if leaf == "weight" else "final_conv.1.bias"}
    heads |= {"fc": f"final_linear.0.{leaf}", "out": f"final_linear.1.{leaf}"}
    heads["from_rgb"] = "convs.0.0.weight" if leaf == "weight" else "convs.0.1.bias"
    if layer in heads:
        return heads[layer]
    index = (resolution // int(res)).bit_length()
    inner = {
        ("conv0", "weight"): "conv1.0.weight",
        ("conv0", "bias"): "conv1.1.bias",
        ("conv1", "weight"): "conv2.1.weight",  # after the blur
        ("conv1", "bias"): "conv2.2.bias",
        ("skip", "weight"): "skip.1.weight",
    }
    return f"convs.{index}.{inner[layer, leaf]}"


def _port_names(tensors: dict) -> dict:
    """Rename BasicSR's tensors to the names of the port."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in BASICSR_NAMES:
            name = re.sub(f"\\b{pattern}", replacement, name)
        renamed[name] = value
    return renamed


CONVERTERS = {
    GENERATOR: convert_generator,
    DISCRIMINATOR: convert_discriminator,
    BASICSR_GENERATOR: lambda tensors, latent_avg=None: convert_generator(_port_names(tensors), latent_avg),
    BASICSR_DISCRIMINATOR: lambda tensors: convert_discriminator(_port_names(tensors)),
}
