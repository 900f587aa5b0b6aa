"""Convert BigGAN checkpoints of BigGAN-PyTorch and PyTorch-StudioGAN (a fork of which arXiv 2103.00397 used).

BigGAN-PyTorch: one file per network, `G_ema.pth`, `D.pth`; spectral norm with `u0`, attention as `blocks.i.1`.
StudioGAN: `model=G_ema-best-weights-step=N.pth` with `state_dict`; torch's spectral norm, attention as a separate
block, and an in-place ReLU before the discriminator's skips (see `shortcut_after_relu`).
"""

import re

import torch
import torch.nn.functional as F

from ..models.biggan import BigGANDiscriminator, BigGANGenerator
from .fill import fill, levels, torch_sigma
from .report import ConversionError, SourceTensors

MARKS = {  # kind: see `state_dicts.find`
    "BigGAN generator": ("shared.weight", "blocks.0.0.bn1.gain.weight", "output_layer.2.weight"),
    "BigGAN discriminator": ("embed.weight", "blocks.0.0.conv_sc.weight", "blocks.0.0.conv1.weight"),
    "StudioGAN BigGAN generator": (
        "shared.weight",
        "linear0.weight_orig",
        "blocks.0.0.bn1.gain.weight_orig",
        "blocks.0.0.conv2d0.weight_orig",
    ),
    "StudioGAN BigGAN discriminator": (
        "embedding.weight_orig",
        "linear1.weight_orig",
        "blocks.0.0.conv2d0.weight_orig",
    ),
}
STUDIOGAN_NORM_EPS = 1e-4  # of every batch norm there
PORT_NORM_EPS = 1e-5


def discriminator_layout(widths: list[int], has_skip: list[bool]) -> tuple[list[bool], int]:
    """Return which blocks halve the size, and the image size.

    In every published layout all blocks but the last halve the size (arXiv 1809.11096, table 4, and its ports for 64 to
    512 px), or all but the last two (32 px). 4 or 8 px remain. A last block that changes the width keeps the size.

    Args:
        widths: width of each block.
        has_skip: whether each block has a skip convolution, which it needs to change size or width.

    Raises:
        ConversionError: the layout is another one.
    """
    widens = [width != before for width, before in zip(widths, [3, *widths], strict=False)]
    down = [*has_skip[:-1], has_skip[-1] and not widens[-1]]
    flat = len(down) - sum(down)
    if flat not in (1, 2) or sorted(down, reverse=True) != down:
        halving = [i for i, halves in enumerate(down) if halves]
        raise ConversionError(
            f"the discriminator's blocks {halving} of {len(down)} halve the picture; known are layouts in which all "
            "but the last halve it (64 px and more), or all but the last two (32 px)"
        )
    return down, (4 * flat) << sum(down)


def one_attention(blocks: list[int]) -> int:
    """Return the number of blocks before the self-attention; 0 means no attention.

    Args:
        blocks: number of blocks before each self-attention.

    Raises:
        ConversionError: there are several.
    """
    if len(blocks) > 1:
        raise ConversionError(f"self-attention follows each of the blocks {blocks}; only networks with one convert")
    return blocks[0] if blocks else 0


# ------------------------------------------------------------------------------------------------------ BigGAN-PyTorch


def _port_sigma(source: SourceTensors, layer: str, shape):
    """Return weight name, u and v. The port stores only u0 `[1, O]` and runs one power iteration per use, as here."""
    name = f"{layer}.weight"
    u = source.take(f"{layer}.u0", (1, shape[0]))[0]
    source.discard(f"{layer}.sv0")  # σ itself
    matrix = source[name].float().flatten(1)
    if matrix.shape != (shape[0], shape[1:].numel()):  # `fill` names the shapes
        return name, u, torch.zeros(shape[1:].numel(), dtype=torch.float32, device="cpu")
    v = F.normalize(matrix.T @ u, dim=0)
    return name, F.normalize(matrix @ v, dim=0), v


PORT_PARTS = {"conv0": "conv1", "conv1": "conv2", "skip": "conv_sc", "norm0": "bn1", "norm1": "bn2"}


def _port_tensors(tensors: dict) -> dict:
    """Remove the second and further singular values, which do not normalise anything.

    Raises:
        ConversionError: the network has no spectral norm.
    """
    if not any(name.endswith(".u0") for name in tensors):
        raise ConversionError("this BigGAN was trained without spectral norm (no u0 beside its weights), ours has it")
    return {name: value for name, value in tensors.items() if not re.search(r"\.(u|sv)[1-9]\d*$", name)}


def _port_statistics(tensors: dict) -> tuple[dict, dict]:
    """Return the tensors, and the names of running mean and variance in the port's three kinds of batch norm.

    Raises:
        ConversionError: the file has sums of standing statistics, which cannot be read without the training's state.
    """
    if "output_layer.0.stored_mean" in tensors:
        return tensors, {"running_mean": "stored_mean", "running_var": "stored_var"}
    if "output_layer.0.bn.stored_mean" not in tensors:  # synchronised over several GPUs
        return tensors, {name: f"bn.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    counters = {name for name in tensors if name.endswith(".accumulation_counter")}
    if any(float(tensors[name].sum()) for name in counters):
        raise ConversionError("the batch norms hold sums of standing statistics; save the network without them")
    without_counters = {name: value for name, value in tensors.items() if name not in counters}
    return without_counters, {"running_mean": "bn.stored_mean", "running_var": "bn.stored_var"}


def _port_generator(tensors: dict) -> BigGANGenerator:
    tensors, statistics = _port_statistics(_port_tensors(tensors))
    source = SourceTensors(tensors)
    blocks = levels(tensors, r"blocks\.(\d+)\.0\.conv1")
    widths = [source["blocks.0.0.conv1.weight"].shape[1]]
    widths += [source[f"blocks.{i}.0.conv1.weight"].shape[0] for i in range(blocks)]
    attention = one_attention([i + 1 for i in range(blocks) if f"blocks.{i}.1.gamma" in source])
    classes, shared = source["shared.weight"].shape
    chunk = source["linear.weight"].shape[1]
    if source["blocks.0.0.bn1.gain.weight"].shape[1] == shared:
        raise ConversionError(
            "this BigGAN gives z to its first layer alone (trained without --hier); only those with a chunk of z for "
            "each block convert"
        )
    model = BigGANGenerator(widths, attention, chunk, shared, classes, norm_eps=PORT_NORM_EPS)
    top = {"shared": "shared", "linear": "linear", "norm": "output_layer.0", "to_rgb": "output_layer.2"}

    def rename(path: str) -> str:
        first, _, below = path.partition(".")
        if first == "attention":
            return f"blocks.{attention - 1}.1" + (f".{below}" if below else "")
        if not first.startswith("b"):
            return top[first]
        layer, _, inner = below.partition(".")
        inner = {"gain": ".gain", "shift": ".bias"}.get(inner, "")
        return f"blocks.{int(first[1:]).bit_length() - 4}.0.{PORT_PARTS[layer]}{inner}"

    return fill(model, tensors, rename, _port_sigma, statistics | {"norm.weight": "gain"})


def _port_discriminator(tensors: dict) -> BigGANDiscriminator:
    tensors = _port_tensors(tensors)
    source = SourceTensors(tensors)
    blocks = levels(tensors, r"blocks\.(\d+)\.0\.conv1")
    widths = [source[f"blocks.{i}.0.conv1.weight"].shape[0] for i in range(blocks)]
    attention = one_attention([i + 1 for i in range(blocks) if f"blocks.{i}.1.gamma" in source])
    skips = [f"blocks.{i}.0.conv_sc.weight" in source for i in range(blocks)]
    down, resolution = discriminator_layout(widths, skips)
    model = BigGANDiscriminator(widths, down, attention, source["embed.weight"].shape[0], resolution)

    def rename(path: str) -> str:
        first, _, below = path.partition(".")
        if first == "attention":
            return f"blocks.{attention - 1}.1" + (f".{below}" if below else "")
        if first in ("out", "embedding"):
            return {"out": "linear", "embedding": "embed"}[first]
        return f"blocks.{int(first[5:])}.0.{PORT_PARTS[below]}"

    return fill(model, tensors, rename, _port_sigma)


# ----------------------------------------------------------------------------------------------------------- StudioGAN

STUDIOGAN_PARTS = {
    "conv0": "conv2d1",
    "conv1": "conv2d2",
    "skip": "conv2d0",
    "norm0.norm": "bn1.bn",
    "norm0.gain": "bn1.gain",
    "norm0.shift": "bn1.bias",
    "norm1.norm": "bn2.bn",
    "norm1.gain": "bn2.gain",
    "norm1.shift": "bn2.bias",
    "theta": "conv1x1_theta",
    "phi": "conv1x1_phi",
    "g": "conv1x1_g",
    "o": "conv1x1_attn",
}


def _studiogan_blocks(tensors: dict) -> tuple[list[int], int, int]:
    """Return the numbers of residual blocks, the number of them before the attention (0: none), and its block number.

    Raises:
        ConversionError: a block is neither residual nor attention, or there are several attentions.
    """
    residual, attentions, numbers = [], [], []
    for i in range(levels(tensors, r"blocks\.(\d+)\.")):
        if f"blocks.{i}.0.conv2d1.weight_orig" in tensors:
            residual.append(i)
        elif f"blocks.{i}.0.conv1x1_theta.weight_orig" in tensors:
            attentions.append(len(residual))
            numbers.append(i)
        else:
            raise ConversionError(f"blocks.{i} is neither a residual block (conv2d1) nor attention (conv1x1_theta)")
    return residual, one_attention(attentions), numbers[0] if numbers else -1


def _studiogan_name(path: str, top: dict[str, str], blocks: dict[str, int]) -> str:
    """Return StudioGAN's name of one of our modules; `blocks`: our name → its block number."""
    first, _, below = path.partition(".")
    if first not in blocks:
        return top[first]
    return f"blocks.{blocks[first]}.0" + (f".{STUDIOGAN_PARTS[below]}" if below else "")


def _studiogan_generator(tensors: dict) -> BigGANGenerator:
    source = SourceTensors(tensors)
    residual, attention, number = _studiogan_blocks(tensors)
    convs = [source[f"blocks.{i}.0.conv2d1.weight_orig"].shape for i in residual]
    widths = [convs[0][1], *(shape[0] for shape in convs)]
    chunk = source["linear0.weight_orig"].shape[1]
    classes, shared = source["shared.weight"].shape
    model = BigGANGenerator(widths, attention, chunk, shared, classes, norm_eps=STUDIOGAN_NORM_EPS)
    top = {"shared": "shared", "linear": "linear0", "norm": "bn4", "to_rgb": "conv2d5"}
    blocks = {f"b{res}": i for res, i in zip(model.resolutions, residual, strict=True)} | {"attention": number}
    return fill(model, tensors, lambda p: _studiogan_name(p, top, blocks), torch_sigma, {"attention.gamma": "sigma"})


def _studiogan_discriminator(tensors: dict) -> BigGANDiscriminator:
    source = SourceTensors(tensors)
    residual, attention, number = _studiogan_blocks(tensors)
    widths = [source[f"blocks.{i}.0.conv2d1.weight_orig"].shape[0] for i in residual]
    skips = [f"blocks.{i}.0.conv2d0.weight_orig" in source for i in residual]
    down, resolution = discriminator_layout(widths, skips)
    classes = source["embedding.weight_orig"].shape[0]
    model = BigGANDiscriminator(widths, down, attention, classes, resolution, shortcut_after_relu=True)
    top = {"out": "linear1", "embedding": "embedding"}
    blocks = {f"block{i}": number for i, number in enumerate(residual)} | {"attention": number}
    return fill(model, tensors, lambda p: _studiogan_name(p, top, blocks), torch_sigma, {"attention.gamma": "sigma"})


CONVERTERS = {
    "BigGAN generator": _port_generator,
    "BigGAN discriminator": _port_discriminator,
    "StudioGAN BigGAN generator": _studiogan_generator,
    "StudioGAN BigGAN discriminator": _studiogan_discriminator,
}
