"""Adapters of GP-GAN: AdaFM transfer with its specific part, and GAN Memory's tasks; see `import_adapter`."""

import re

import torch
from torch import nn

from ..adapters import AdaFMAdapter, GANMemoryAdapter
from ..models import GPGANGenerator, TailoredGenerator
from ..models.layers import adaptable_layers
from ..utils.random import float32_on_cpu, initialised
from .fill import levels
from .plain import gp_gan_name
from .report import ConversionError, SourceTensors, check_frozen

ADAFM = r"small_(?:adafm|style_adain)_"  # names for training on all images, and on twenty-five
SPECIFIC = "small_fc.weight"  # a tensor of the specific part of AdaFM transfer
FIRST_BLOCK = 2  # the authors' number of the first block of the specific part
SEED = 0


def adafm(source: SourceTensors, settings: dict, generator: nn.Module) -> AdaFMAdapter:
    """Read `style_gama` and `style_beta` of the kept scales, and the specific part as a difference to `generator`'s.

    Base weights in the file must equal those of `generator`.

    Args:
        source: the file's tensors.
        settings: other values in the file; not used.
        generator: a `TailoredGenerator` (see `adapter_base`), or a `GPGANGenerator` without a specific part.

    Raises:
        ValueError: see `import_adapter`.
    """
    if not isinstance(generator, GPGANGenerator | TailoredGenerator):
        raise ConversionError(f"it belongs to a GP-GAN, not to a {type(generator).__name__}")
    specific = SPECIFIC in source
    if specific and not isinstance(generator, TailoredGenerator):
        raise ConversionError(
            "it has a network of its own in front of the kept scales, which a GPGANGenerator has no place for; give "
            "adapter_base(file, generator) instead"
        )
    own = []
    if specific and isinstance(generator, TailoredGenerator):
        own = [path for path, _ in adaptable_layers(generator) if not generator.is_kept(path)]
    modulated = _modulated(source, generator)
    adapter = AdaFMAdapter.for_model(generator, target_modules=list(modulated), layers_to_save=own, method="adafm")
    layers, state = dict(adaptable_layers(generator)), {}
    for path, (module, shape) in modulated.items():
        shape = (*shape[:2], 1, 1)
        state[f"{path}.gamma"] = source.take(f"{module}.style_gama", shape)
        state[f"{path}.beta"] = source.take(f"{module}.style_beta", shape)
    for path in own:
        leaves = zip(("weight", "bias"), layers[path].stored(), strict=True)
        for leaf, stored in ((leaf, stored) for leaf, stored in leaves if stored is not None):
            trained = _specific_tensor(source, path, leaf, stored.shape)
            state[f"{path}.{leaf}_delta"] = trained - stored.detach().float().cpu()
    _check_kept(source, generator)
    source.discard("small_embedding.weight")  # nothing reads it
    source.finish()
    adapter.load_state_dict(state)
    return adapter


def tailored(source: SourceTensors, generator: GPGANGenerator) -> TailoredGenerator:
    """Return a generator with a specific part of the file's sizes, initialised from a fixed seed, and the kept scales.

    Raises:
        ConversionError: `generator` has too few scales, or the sizes do not fit each other.
    """
    kept, total = levels(source.tensors, r"resnet_(\d+)_0\."), len(generator.resolutions)
    if kept > total - 2:
        raise ConversionError(
            f"it keeps {kept} scales behind a network of its own; of the {total} of this base it could keep {total - 2}"
        )
    layers = levels(source.tensors, r"small_style\.(\d+)\.linear\.")
    first = source["small_style.1.linear.weight"]
    if first.ndim != 2:
        raise ConversionError(f"small_style.1.linear.weight is of {tuple(first.shape)}, which is no matrix")
    style, z = first.shape
    for name, width in ((SPECIFIC, z), (f"small_net_{FIRST_BLOCK}.adain_0.style.linear.weight", style)):
        if source[name].ndim != 2 or source[name].shape[1] != width:  # before tensors of these sizes are allocated
            raise ConversionError(f"{name} is of {tuple(source[name].shape)}; small_style needs {width} columns")
    with initialised(SEED), float32_on_cpu():
        new = TailoredGenerator.from_source(generator, 1 + kept, z_dim=z, style_dim=style, mapping_layers=layers)
    return new.eval()


def gan_memory(source: SourceTensors, settings: dict, generator: nn.Module) -> GANMemoryAdapter:
    """Read a task's γ, β and bias shifts of the fully connected layer and all convolutions of the blocks.

    Args:
        source: the file's tensors.
        settings: other values in the file; not used.
        generator: the base, a `GPGANGenerator`.

    Raises:
        ValueError: see `import_adapter`.
    """
    if not isinstance(generator, GPGANGenerator):
        raise ConversionError(f"it belongs to a GP-GAN, not to a {type(generator).__name__}")
    adapter, state = GANMemoryAdapter.for_model(generator), {}
    assert isinstance(adapter, GANMemoryAdapter)
    for path, spec in adapter.config["target_modules"].items():
        out, inn, *_ = spec["shape"]
        if path == "linear":
            state |= {f"{path}.{x}": source.take(f"AdaFM_fc.{x}", (1, out)).T for x in ("gamma", "beta")}
            state[f"{path}.bias_shift"] = source.take("AdaFM_fc_b", (out,))
            continue
        block, _, number = _kept_name(path).rpartition(".conv_")
        state[f"{path}.gamma"] = source.take(f"{block}.AdaFM_{number}.style_gama", (out, inn, 1, 1))
        state[f"{path}.beta"] = source.take(f"{block}.AdaFM_{number}.style_beta", (out, inn, 1, 1))
        state[f"{path}.bias_shift"] = source.take(f"{block}.AdaFM_b{number}", (out,))
    source.finish()
    adapter.load_state_dict(state)
    return adapter


_kept_name = gp_gan_name(
    lambda res: res.bit_length() - 3, {"to_rgb": "conv_img", "embedding": "embedding", "linear": "fc"}
)


def _modulated(source: SourceTensors, generator: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return our path → (the file's module of γ and β, shape of the weight) for the convolutions of modulated scales.

    Raises:
        ConversionError: the base has no such scale.
    """
    pattern = re.compile(rf"(resnet_(\d+)_\d+)\.({ADAFM})\d\.")
    matches = [match for match in map(pattern.match, source.tensors) if match]
    module_name, scales = matches[0][3], {int(match[2]) for match in matches}
    resolutions: list[int] = getattr(generator, "kept_resolutions", None) or getattr(generator, "resolutions")  # noqa: B009
    if missing := [i for i in sorted(scales) if 4 << min(i, 16) not in resolutions]:
        raise ConversionError(
            f"it modulates resnet_{missing[0]}_0, of {4 << min(missing[0], 16)} px; this base keeps those of "
            f"{', '.join(map(str, resolutions))} px"
        )
    paths = {}
    for path, layer in adaptable_layers(generator):
        if path.count(".") == 2 and layer.role == "conv" and (match := re.match(r"b(\d+)\.\d+\.", path)):
            if int(match[1]).bit_length() - 3 in scales:
                block, _, number = _kept_name(path).rpartition(".conv_")
                paths[path] = f"{block}.{module_name}{number}", tuple(layer.weight.shape)
    return paths


def _specific_tensor(source: SourceTensors, path: str, leaf: str, shape) -> torch.Tensor:
    """Return a tensor of the specific part in the shape of our layer."""
    shape = tuple(shape)
    if match := re.fullmatch(r"mapping\.fc(\d+)", path):
        return source.take(f"small_style.{2 * int(match[1]) + 1}.linear.{leaf}", shape)
    if path == "linear":
        return source.take(f"small_fc.{leaf}", shape)
    if path == "matcher":
        name = {"weight": "weight", "bias": "beta"}[leaf]
        return source.take(f"small_H.{name}", (1, *shape, 1, 1)).reshape(shape)
    if path.startswith("matcher.norm"):
        name = "bias" if path.endswith("shift") else "weight"
        return source.take(f"small_H.norm.{name}", shape[1:])[None]
    match = re.fullmatch(r"b(\d+)\.(.+)", path)
    assert match is not None  # all other layers are in blocks
    res, layer = match.groups()
    block = f"small_net_{int(res).bit_length() - 4 + FIRST_BLOCK}"
    if layer.startswith("noise"):
        return source.take(f"{block}.noise_{layer[-1]}.weight", (1, *shape, 1, 1)).reshape(shape)
    if layer.startswith("style"):
        return source.take(f"{block}.adain_{layer[5]}.style.linear.{leaf}", shape)
    if layer == "conv1":
        return source.take(f"{block}.conv_1.conv.{leaf}", shape)
    name = f"{block}.{'conv_s' if layer == 'skip' else 'conv_0'}.{leaf}"
    if leaf == "bias":
        return source.take(name, shape)
    return source.take(name, (shape[1], shape[0], *shape[2:])).transpose(0, 1)  # transposed convolutions are [I, O, …]


def _check_kept(source: SourceTensors, generator: nn.Module) -> None:
    """Check that base weights in the file equal those of `generator`."""
    frozen = {}
    for ours, value in generator.state_dict().items():
        path, _, leaf = ours.rpartition(".")
        if not isinstance(generator, TailoredGenerator) or generator.is_kept(path):
            frozen[f"{_kept_name(path)}.{leaf}"] = value
    check_frozen(source, frozen)
