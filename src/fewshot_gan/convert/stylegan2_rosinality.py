"""StyleGAN2 from checkpoints of the widespread PyTorch port (`.pt` with `g_ema`, `g`, `d`, `latent_avg`)."""

import logging
import re

import torch

from ..models.stylegan2 import FIR_TAPS, StyleGAN2Discriminator, StyleGAN2Generator
from .report import ConversionError, SourceTensors
from .stylegan2_nvidia import channel_rule, is_standard_filter

logger = logging.getLogger(__name__)

MAPPING_LR = 0.01  # fixed in that code
W_AVG_SAMPLES, W_AVG_SEED = 10_000, 0
UP_GAIN = 4.0  # kernels of up-sampling filters are stored times 2²


def convert(data: dict, name: str) -> dict[str, torch.nn.Module]:
    """Rebuild the networks of a checkpoint in fp32.

    Args:
        data: what the `.pt` file holds.
        name: of the file, for messages.

    Returns:
        "generator" (`g_ema` where there is one), "generator_raw" (`g`, where there is `g_ema` too) and "discriminator"
        (`d`, where there is one), all in eval mode.

    Raises:
        ConversionError: the file is not of this layout.
    """
    found = {k: data[k] for k in ("g_ema", "g", "d") if isinstance(data, dict) and isinstance(data.get(k), dict)}
    if not found.keys() & {"g", "g_ema"}:
        held = sorted(map(str, data))[:8] if isinstance(data, dict) else type(data).__name__
        raise ConversionError(f"{name} holds no generator: neither g nor g_ema among {held}")
    average = data.get("latent_avg")
    networks = {"generator": convert_generator(found.get("g_ema", found.get("g")), average)}
    if {"g", "g_ema"} <= found.keys():
        networks["generator_raw"] = convert_generator(found["g"], average)
    if "d" in found:
        networks["discriminator"] = convert_discriminator(found["d"])
    return networks


def convert_generator(tensors: dict, latent_avg: torch.Tensor | None = None) -> StyleGAN2Generator:
    """One generator state dict → ours.

    Args:
        tensors: name → tensor.
        latent_avg: `[D]`, the mean w; None = estimate it from mapped samples with a fixed seed.

    Raises:
        ConversionError: see `convert`.
    """
    source = SourceTensors(tensors)
    levels = len({m[1] for name in source.tensors if (m := re.match(r"to_rgbs\.(\d+)\.", name))})
    widths = {4: source["conv1.conv.weight"].shape[1]}
    widths |= {8 << i: source[f"convs.{2 * i + 1}.conv.weight"].shape[1] for i in range(levels)}
    base, maximum = channel_rule(widths)
    w_dim, z_dim = source["style.1.weight"].shape
    model = StyleGAN2Generator(
        resolution=_supported(4 << levels),
        channel_base=base,
        channel_max=maximum,
        z_dim=z_dim,
        w_dim=w_dim,
        num_mapping_layers=sum(re.fullmatch(r"style\.\d+\.weight", name) is not None for name in source.tensors),
        mapping_lr_multiplier=MAPPING_LR,
    ).eval()
    state = {}
    for ours, value in model.state_dict().items():
        if ours != "mapping.w_avg":
            theirs, shape = _generator_name(ours, value.shape)
            state[ours] = source.take(theirs, shape).reshape(value.shape)
    _discard_filters(source)
    source.finish()
    if latent_avg is not None and torch.as_tensor(latent_avg).numel() != w_dim:
        raise ConversionError(f"latent_avg has {torch.as_tensor(latent_avg).numel()} numbers instead of {w_dim}")
    model.load_state_dict({**state, "mapping.w_avg": torch.zeros(w_dim, dtype=torch.float32, device="cpu")})
    model.mapping.w_avg.copy_(_mean_w(model) if latent_avg is None else latent_avg.flatten())
    return model


def convert_discriminator(tensors: dict) -> StyleGAN2Discriminator:
    """One discriminator state dict → ours.

    Raises:
        ConversionError: see `convert`.
    """
    source = SourceTensors(tensors)
    levels = len({m[1] for name in source.tensors if (m := re.match(r"convs\.(\d+)\.conv1\.", name))})
    resolution = _supported(4 << levels)
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


def _supported(resolution: int) -> int:
    if not 16 <= resolution <= 1024:
        raise ConversionError(f"the blocks make {resolution} pixels a side; StyleGAN2 has 16 to 1024")
    return resolution


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
    z = torch.randn(
        W_AVG_SAMPLES,
        model.z_dim,
        generator=torch.Generator().manual_seed(W_AVG_SEED),
        dtype=torch.float32,
        device="cpu",
    )
    with torch.no_grad():
        return model.mapping(z)[:, 0].double().mean(0).float()


def _generator_name(ours: str, shape) -> tuple[str, tuple[int, ...]]:
    """Their name of one of our tensors, and the shape it has there."""
    shape = tuple(shape)
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", ours):
        return f"style.{int(match[1]) + 1}.{match[2]}", shape  # style.0 normalises z
    if ours == "synthesis.b4.const":
        return "input.input", (1, *shape)
    res, layer, leaf = re.fullmatch(r"synthesis\.b(\d+)\.(\w+)\.(.+)", ours).groups()
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
    """Their name of one of our tensors."""
    res, layer, leaf = re.fullmatch(r"b(\d+)\.(\w+)\.(weight|bias)", ours).groups()
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
