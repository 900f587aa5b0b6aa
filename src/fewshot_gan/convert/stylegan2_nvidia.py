"""StyleGAN2 from the pickles of stylegan2-ada-pytorch and of later NVIDIA repositories with the same networks."""

import re
from math import inf
from pathlib import Path

import torch

from ..models.stylegan2 import FIR_TAPS, StyleGAN2Discriminator, StyleGAN2Generator, block_channels
from ..ops import setup_filter
from . import restricted_pickle
from .report import ConversionError, SourceTensors

UNLIMITED = r"\.skip$"  # layers without a clamp where all others have one
WHOLE_BATCH = 1 << 16  # minibatch group when the file says "the whole batch"


def convert(path: Path) -> dict[str, torch.nn.Module]:
    """Rebuild the networks of a pickle in fp32, without running any code of it.

    Args:
        path: the `.pkl` file.

    Returns:
        "generator" (the moving average `G_ema` where there is one), "generator_raw" (`G`, where there is `G_ema` too)
        and "discriminator" (`D`, where there is one), all in eval mode.

    Raises:
        ConversionError: not a StyleGAN2 of a supported kind, unexpected tensors, or a file that names code.
    """
    data = restricted_pickle.load(path)
    if not isinstance(data, dict):
        raise ConversionError(f"{Path(path).name} holds a {type(data).__name__} instead of the networks G, D and G_ema")
    found = {k: data[k] for k in ("G_ema", "G", "D") if isinstance(data.get(k), restricted_pickle.PersistentObject)}
    if not found.keys() & {"G", "G_ema"}:
        raise ConversionError(
            f"{Path(path).name} holds no generator: neither G nor G_ema among {sorted(map(str, data))}"
        )
    networks = {"generator": convert_generator(found.get("G_ema") or found["G"])}
    if {"G", "G_ema"} <= found.keys():
        networks["generator_raw"] = convert_generator(found["G"])
    if "D" in found:
        networks["discriminator"] = convert_discriminator(found["D"])
    return networks


def convert_generator(network: restricted_pickle.PersistentObject) -> StyleGAN2Generator:
    """One stored generator → ours.

    Raises:
        ConversionError: see `convert`.
    """
    source, modules = SourceTensors(network.tensors()), network.modules()
    if any(name.startswith("synthesis.input.") for name in source.tensors):
        raise ConversionError("this is a StyleGAN3 generator; only StyleGAN2 can be converted")
    _refuse_other_kinds(network, modules, "Generator", "skip", "synthesis.b")
    resolutions = _resolutions(source, "synthesis.")
    base, maximum = channel_rule({r: source[f"synthesis.b{r}.conv1.weight"].shape[0] for r in resolutions})
    num_layers = sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in source.tensors)
    mapping_kwargs = network.init_kwargs.get("mapping_kwargs") or {}
    model = StyleGAN2Generator(
        resolution=resolutions[-1],
        channel_base=base,
        channel_max=maximum,
        z_dim=source["mapping.fc0.weight"].shape[1],
        w_dim=source["mapping.w_avg"].shape[0],
        num_mapping_layers=num_layers,
        mapping_lr_multiplier=float(
            modules.get("mapping.fc0", {}).get("bias_gain", mapping_kwargs.get("lr_multiplier", 0.01))
        ),
        conv_clamp=_conv_clamp(modules, "synthesis.b", network.init_kwargs.get("synthesis_kwargs") or {}),
    ).eval()
    return _fill(model, source)


def convert_discriminator(network: restricted_pickle.PersistentObject) -> StyleGAN2Discriminator:
    """One stored discriminator → ours.

    Raises:
        ConversionError: see `convert`.
    """
    source, modules = SourceTensors(network.tensors()), network.modules()
    _refuse_other_kinds(network, modules, "Discriminator", "resnet", "b")
    resolutions = _resolutions(source, "")
    # every block tells its input's width, the head the last one's
    widths = {r: source[f"b{r}.conv0.weight"].shape[0] for r in resolutions if r > 4}
    head = source["b4.conv.weight"].shape
    base, maximum = channel_rule(widths | {4: head[0]})
    epilogue = network.init_kwargs.get("epilogue_kwargs") or {}
    group = modules.get("b4.mbstd", {}).get("group_size", epilogue.get("mbstd_group_size", 4))
    model = StyleGAN2Discriminator(
        resolution=resolutions[-1],
        channel_base=base,
        channel_max=maximum,
        mbstd_group_size=WHOLE_BATCH if group is None else int(group),
        mbstd_num_channels=head[1] - head[0],
        conv_clamp=_conv_clamp(modules, "b", network.init_kwargs),
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
    """Whether `f` is the 2-D kernel of [1, 3, 3, 1], up to one of the factors `gains`."""
    standard = setup_filter(FIR_TAPS)
    f = torch.outer(f, f) if f.ndim == 1 else f
    return f.shape == standard.shape and any(torch.allclose(f.float(), standard * g, atol=1e-6) for g in gains)


def _resolutions(source, prefix) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"b(\d+)\.")
    found = sorted({int(match[1]) for name in source.tensors if (match := pattern.match(name))})
    if len(found) < 3 or found != [4 << i for i in range(len(found))] or found[-1] > 1024:
        raise ConversionError(f"the blocks have resolutions {found}; StyleGAN2 has 4, 8, … up to 16–1024")
    return found


def _refuse_other_kinds(network, modules, class_name, architecture, block_prefix):
    """One sentence for each kind of network that looks alike but computes something else."""
    kwargs, state = network.init_kwargs, network.state
    if network.class_name != class_name:
        raise ConversionError(f"the network's class is {network.class_name!r}; StyleGAN2's is {class_name!r}")
    if c_dim := state.get("c_dim", kwargs.get("c_dim", 0)):
        raise ConversionError(
            f"the {class_name.lower()} is conditional (c_dim={c_dim}); only unconditional ones convert"
        )
    if (channels := state.get("img_channels", kwargs.get("img_channels", 3))) != 3:
        raise ConversionError(
            f"the {class_name.lower()} makes or takes {channels} image channels; only 3 can be converted"
        )
    for kwarg_set in (kwargs, kwargs.get("synthesis_kwargs") or {}):
        if (found := kwarg_set.get("architecture", architecture)) != architecture:
            raise ConversionError(
                f"the {class_name.lower()}'s architecture is {found!r}; only {architecture!r} converts"
            )
    for path, attributes in modules.items():
        if path.startswith(block_prefix) and (found := attributes.get("architecture", architecture)) != architecture:
            raise ConversionError(f"{path} has architecture {found!r}; only {architecture!r} can be converted")
        if (found := attributes.get("activation", "lrelu")) not in ("lrelu", "linear"):
            raise ConversionError(f"{path} has activation {found!r}; StyleGAN2 has 'lrelu' and 'linear'")


def _conv_clamp(modules, block_prefix, kwargs) -> float | None:
    """The clamp all convolutions share, but for skips, which have none: from their attributes, or else from `kwargs`.

    Raises:
        ConversionError: clamps that differ, one on a skip, or one that is no number above 0.
    """
    found = {
        path: attributes["conv_clamp"]
        for path, attributes in modules.items()
        if path.startswith(block_prefix) and "conv_clamp" in attributes
    }
    if limited := [path for path, clamp in found.items() if re.search(UNLIMITED, path) and clamp is not None]:
        raise ConversionError(f"{limited[0]} has conv_clamp={found[limited[0]]!r}; NVIDIA's shortcuts have none")
    clamps = [clamp for path, clamp in found.items() if not re.search(UNLIMITED, path)] or [kwargs.get("conv_clamp")]
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


def _fill(model, source: SourceTensors):
    """Load every tensor of `model` from `source`, account for the fixed filters, refuse the rest."""
    state = {ours: source.take(_their_name(ours), value.shape) for ours, value in model.state_dict().items()}
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
    """`synthesis.b8.conv0.noise.const` → `synthesis.b8.conv0.noise_const`."""
    ours = ours.replace(".noise.", ".noise_")
    return ours.replace(".to_rgb.", ".torgb.").replace(".from_rgb.", ".fromrgb.")
