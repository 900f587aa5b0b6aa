"""Convert StyleGAN2 pickles of stylegan2-ada-pytorch and of later NVIDIA repositories with the same networks."""

import logging
import re
from math import inf
from pathlib import Path

import torch

from ..models.stylegan2 import FIR_TAPS, StyleGAN2Discriminator, StyleGAN2Generator, block_channels
from ..models.stylegan2_layout import ARCHITECTURES
from ..ops import setup_filter
from ..utils.stored_networks import PersistentObject
from ..utils.untrusted import read_checkpoint
from .report import ConversionError, SourceTensors

logger = logging.getLogger(__name__)

UNLIMITED = r"\.skip$|^b4\.fromrgb$"  # layers that never have a clamp
WHOLE_BATCH = 1 << 16  # minibatch group when the file says "the whole batch"


def convert(path: Path) -> dict[str, torch.nn.Module]:
    """Rebuild the networks of a pickle in fp32, without running any code of it.

    Args:
        path: the `.pkl` file: a dictionary of networks, or a generator alone.

    Returns:
        "generator" (the moving average `G_ema` where there is one), "generator_raw" (`G`, where there is `G_ema` too)
        and "discriminator" (`D`, where there is one), all in eval mode.

    Raises:
        ConversionError: not a StyleGAN2 of a supported kind, unexpected tensors, or a file that names code.
    """
    data = read_checkpoint(path, "networks")
    if isinstance(data, PersistentObject):  # one network and nothing around it
        data = {"D" if data.class_name == "Discriminator" else "G_ema": data}
    if not isinstance(data, dict):
        raise ConversionError(f"{Path(path).name} holds a {type(data).__name__} instead of the networks G, D and G_ema")
    networks_by_name = {k: data[k] for k in ("G_ema", "G", "D") if isinstance(data.get(k), PersistentObject)}
    if networks_by_name.keys() == {"D"}:
        raise ConversionError(
            f"{Path(path).name} holds a discriminator alone and no generator (G or G_ema); give the file that has both"
        )
    if not networks_by_name:
        raise ConversionError(
            f"{Path(path).name} holds no generator: neither G nor G_ema among {sorted(map(str, data))}"
        )
    generator = networks_by_name.get("G_ema") or networks_by_name["G"]
    networks: dict[str, torch.nn.Module] = {"generator": convert_generator(generator)}
    if {"G", "G_ema"} <= networks_by_name.keys():
        networks["generator_raw"] = convert_generator(networks_by_name["G"])
    if "D" in networks_by_name:
        networks["discriminator"] = convert_discriminator(networks_by_name["D"])
    return networks


def convert_generator(network: PersistentObject) -> StyleGAN2Generator:
    """Convert a stored generator. One without noise layers gets noise of strength 0, which is equivalent.

    Raises:
        ConversionError: see `convert`.
    """
    source, modules = SourceTensors(network.tensors()), network.modules()
    if any(name.startswith("synthesis.input.") for name in source.tensors):
        raise ConversionError(
            "this is a StyleGAN3 generator, whose layers StyleGAN2 does not have; only StyleGAN2 converts"
        )
    _refuse_other_kinds(network, modules, "Generator")
    resolutions = _resolutions(source, "synthesis.")
    base, maximum = channel_rule({r: source[f"synthesis.b{r}.conv1.weight"].shape[0] for r in resolutions})
    w_dim = source["mapping.w_avg"].shape[0]
    classes = _classes(network, source)
    mapping, entering = _mapping(network, source, modules, w_dim)
    if (z_dim := entering - classes.get("embed_dim", 0)) < 1:
        raise ConversionError(
            f"the generator has no z (z_dim={z_dim}): its pictures depend on the class alone; such networks "
            "cannot be converted"
        )
    drawing = [r for r in resolutions if f"synthesis.b{r}.torgb.weight" in source]
    residual = any(re.fullmatch(r"synthesis\.b\d+\.skip\.weight", name) for name in source.tensors)
    architecture = "resnet" if residual else "orig" if drawing == resolutions[-1:] else "skip"
    _check_architectures(network, modules, "synthesis.b", architecture)
    model = StyleGAN2Generator(
        resolution=resolutions[-1],
        channel_base=base,
        channel_max=maximum,
        z_dim=z_dim,
        w_dim=w_dim,
        conv_clamp=_conv_clamp(network, modules, "synthesis.b"),
        architecture=architecture,
        **mapping,
        **classes,
    ).eval()
    absent = {}
    if not any("noise" in name for name in source.tensors):
        logger.warning("the generator has no noise layers: they are converted as noise of strength 0")
        absent = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if ".noise." in name}
    return _fill(model, source, absent)


def convert_discriminator(network: PersistentObject) -> StyleGAN2Discriminator:
    """Convert a stored discriminator.

    Raises:
        ConversionError: see `convert`.
    """
    source, modules = SourceTensors(network.tensors()), network.modules()
    _refuse_other_kinds(network, modules, "Discriminator")
    resolutions = _resolutions(source, "")
    # conv0 of a block has the width of its input, the head that of the last block
    widths = {r: source[f"b{r}.conv0.weight"].shape[0] for r in resolutions if r > 4}
    head = source["b4.conv.weight"].shape
    base, maximum = channel_rule(widths | {4: head[0]})
    epilogue = network.init_kwargs.get("epilogue_kwargs") or {}
    group = modules.get("b4.mbstd", {}).get("group_size", epilogue.get("mbstd_group_size", 4))
    classes = _classes(network, source)
    if classes:
        cmap_dim = source["b4.out.weight"].shape[0]
        mapping, _ = _mapping(network, source, modules, cmap_dim)
        classes |= {"cmap_dim": cmap_dim, **mapping}
    residual = any(re.fullmatch(r"b\d+\.skip\.weight", name) for name in source.tensors)
    architecture = "resnet" if residual else "skip" if "b4.fromrgb.weight" in source else "orig"
    _check_architectures(network, modules, "b", architecture)
    model = StyleGAN2Discriminator(
        resolution=resolutions[-1],
        channel_base=base,
        channel_max=maximum,
        mbstd_group_size=WHOLE_BATCH if group is None else int(group),
        mbstd_num_channels=head[1] - head[0],
        conv_clamp=_conv_clamp(network, modules, "b"),
        architecture=architecture,
        **classes,
    ).eval()
    return _fill(model, source)


def channel_rule(widths: dict[int, int]) -> tuple[int, int]:
    """Find `(channel_base, channel_max)` with `width = min(channel_base // resolution, channel_max)` everywhere.

    Args:
        widths: resolution → width, all powers of two from 4 up.

    Raises:
        ConversionError: the widths follow no such rule.
    """
    maximum = max(widths.values())
    narrow = [r * width for r, width in widths.items() if width < maximum]
    base = max(narrow) if narrow else maximum * max(widths)
    if any(block_channels(r, base, maximum) != width for r, width in widths.items()):
        raise ConversionError(
            f"the widths {dict(sorted(widths.items()))} do not follow min(channel_base // resolution, channel_max), "
            "the only rule StyleGAN2Generator and StyleGAN2Discriminator know"
        )
    return base, maximum


def is_standard_filter(f: torch.Tensor, gains=(1.0,)) -> bool:
    """Return whether `f` is the 2-D kernel of [1, 3, 3, 1] times one of `gains`."""
    standard = setup_filter(FIR_TAPS)
    f = torch.outer(f, f) if f.ndim == 1 else f
    return f.shape == standard.shape and any(torch.allclose(f.float(), standard * g, atol=1e-6) for g in gains)


def _resolutions(source, prefix) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"b(\d+)\.")
    resolutions = sorted({int(match[1]) for name in source.tensors if (match := pattern.match(name))})
    if not resolutions or resolutions != [4 << i for i in range(len(resolutions))]:
        raise ConversionError(f"the blocks have resolutions {resolutions}; StyleGAN2 has 4, 8, 16, …")
    if not 16 <= (resolution := resolutions[-1]) <= 1024:
        raise ConversionError(
            f"the network is of {resolution}×{resolution} pictures; 16×16 to 1024×1024 can be converted"
        )
    return resolutions


def _classes(network, source) -> dict:
    """Return `num_classes` and `embed_dim`; an empty dict for a network without classes."""
    classes = network.state.get("c_dim", network.init_kwargs.get("c_dim", 0))
    if "mapping.embed.weight" in source:
        embed_dim, classes = source["mapping.embed.weight"].shape
        return {"num_classes": classes, "embed_dim": embed_dim}
    if classes:
        raise ConversionError(
            f"the {network.class_name.lower()} has c_dim={classes}, but no embedding of the classes (mapping.embed); "
            "NVIDIA's StyleGAN2 has one"
        )
    return {}


def _mapping(network, source, modules, w_dim: int) -> tuple[dict, int]:
    """Return the arguments of the mapping network to `w_dim`, and its input size."""
    num_layers = sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in source.tensors)
    kwargs = network.init_kwargs.get("mapping_kwargs") or {}
    rate = modules.get("mapping.fc0", {}).get("bias_gain", kwargs.get("lr_multiplier", 0.01))
    options = {"num_mapping_layers": num_layers, "mapping_lr_multiplier": float(rate)}
    if not num_layers:
        return options, w_dim
    width, entering = source["mapping.fc0.weight"].shape
    return options | ({"mapping_dim": width} if num_layers > 1 and width != w_dim else {}), entering


def _refuse_other_kinds(network, modules, class_name):
    """Refuse networks that look alike but compute something else."""
    kwargs, state = network.init_kwargs, network.state
    if network.class_name != class_name:
        raise ConversionError(f"the network's class is {network.class_name!r}; StyleGAN2's is {class_name!r}")
    if (channels := state.get("img_channels", kwargs.get("img_channels", 3))) != 3:
        raise ConversionError(
            f"the {class_name.lower()} makes or takes {channels} image channels; only 3 can be converted"
        )
    for path, attributes in modules.items():
        if (activation := attributes.get("activation", "lrelu")) not in ("lrelu", "linear"):
            raise ConversionError(f"{path} has activation {activation!r}; StyleGAN2 has 'lrelu' and 'linear'")


def _check_architectures(network, modules, block_prefix, architecture: str) -> None:
    """Refuse a network whose stated architecture differs from that of its tensors."""
    kwargs = network.init_kwargs
    stated = {"the network": kwargs, "its synthesis network": kwargs.get("synthesis_kwargs") or {}}
    stated |= {path: attributes for path, attributes in modules.items() if path.startswith(block_prefix)}
    for name, attributes in stated.items():
        if (own := attributes.get("architecture", architecture)) != architecture:
            raise ConversionError(
                f"{name} has architecture {own!r}, but the layers of {architecture!r}; known: "
                f"{', '.join(ARCHITECTURES)}"
            )


def _conv_clamp(network, modules, block_prefix) -> float | None:
    """Return the clamp of all convolutions except those that never have one.

    Raises:
        ConversionError: clamps differ, are missing, are not numbers above 0, or belong to a layer that never has one.
    """
    clamp_by_path = {
        path: attributes["conv_clamp"]
        for path, attributes in modules.items()
        if path.startswith(block_prefix) and "conv_clamp" in attributes
    }
    if limited := [path for path, clamp in clamp_by_path.items() if re.search(UNLIMITED, path) and clamp is not None]:
        raise ConversionError(
            f"{limited[0]} has conv_clamp={clamp_by_path[limited[0]]!r}; in NVIDIA's StyleGAN2 it has none"
        )
    clamps = [clamp for path, clamp in clamp_by_path.items() if not re.search(UNLIMITED, path)]
    if not clamps:  # the two repositories have other names and other defaults, so only what is written counts
        kwargs = network.init_kwargs
        clamps = [x["conv_clamp"] for x in (kwargs, kwargs.get("synthesis_kwargs") or {}) if "conv_clamp" in x]
    if not clamps:
        raise ConversionError("the file does not say whether the convolutions are clamped (conv_clamp)")
    if any(clamp != clamps[0] for clamp in clamps):
        different = sorted({repr(clamp) for clamp in clamps})
        raise ConversionError(
            f"the convolutions have different conv_clamp values ({', '.join(different)}); only one for all converts"
        )
    if clamps[0] is None:
        return None
    if not isinstance(clamps[0], int | float) or not 0 < clamps[0] < inf:
        raise ConversionError(f"conv_clamp={clamps[0]!r} is no number above 0; the file is damaged")
    return float(clamps[0])


def _fill(model, source: SourceTensors, absent: dict[str, torch.Tensor] | None = None):
    """Load every tensor of `model` from `source` or `absent`, account for the fixed filters, refuse the rest."""
    state = dict(absent or {})
    for ours, value in model.state_dict().items():
        if ours not in state:
            state[ours] = source.take(_their_name(ours), value.shape)
    for name in source.tensors:
        if name.endswith("resample_filter"):
            if not is_standard_filter(source[name]):
                raise ConversionError(
                    f"{name} is not the filter {list(FIR_TAPS)}, the only one these networks have here"
                )
            source.discard(name)
    source.finish()
    model.load_state_dict(state)
    return model


def _their_name(ours: str) -> str:
    """Return NVIDIA's name of a tensor: `synthesis.b8.conv0.noise_const` for `synthesis.b8.conv0.noise.const`."""
    ours = ours.replace(".noise.", ".noise_")
    return ours.replace(".to_rgb.", ".torgb.").replace(".from_rgb.", ".fromrgb.")
