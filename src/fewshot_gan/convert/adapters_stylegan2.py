"""Import adapters of StyleGAN2's PyTorch port: domain vectors of HyperDomainNet and modulations of LFS-GAN.

Both use the port's layer names; see `import_adapter`.
"""

import logging
from typing import Any

import torch
from torch import nn

from ..adapters import DomainVectorAdapter, LeFTAdapter
from ..models import StyleGAN2Generator
from .report import ConversionError, SourceTensors, check_frozen
from .stylegan2_rosinality import generator_name

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------------------------------------------- HyperDomainNet

INPUT, OUTPUT = ("delta", "params_in"), ("delta_out", "params_out")
GAMMA = ("delta_out", "gamma")  # 1 + δ itself
KERNEL = {"params_kernel": "a domain vector has one scale for all taps of a filter"}
PATCHES = {  # patch_key: our parametrisation, (our, their) tensor names, tensors that must be zero → reason
    "cin_mult": ("input", (INPUT,), {}),
    "cout_mult": ("output", (OUTPUT,), {}),
    "csep_mult": ("separable", (INPUT, OUTPUT), {}),
    "cfull_mult": ("full", (("delta_filter", "shift"),), {}),
    "aff_cout_no_beta": ("output", (GAMMA,), {}),
    "aff_cout": ("output", (GAMMA,), {"beta": "a domain vector scales weights, and adds nothing to them"}),
    "cink_mult": ("input", (INPUT,), KERNEL),
    "coutk_mult": ("output", (OUTPUT,), KERNEL),
}
OTHER_PATCHES = {
    "csep_delta": "adds to demodulated weights",
    "cfull_delta": "adds to demodulated weights",
    "svd_s": "moves singular values of the weights",
    "cin_delta": "has no formula in the authors' code",
    "cin_offset": "has no formula in the authors' code",
}
KEY_BY_TENSORS = {  # tensor names: patch_key of a file without one
    frozenset({"params_in"}): "cin_mult",
    frozenset({"params_out"}): "cout_mult",
}
MIXED_FROM = 7  # first row of w+ that image-to-image files replace


def hyperdomainnet(source: SourceTensors, settings: dict, generator: nn.Module) -> DomainVectorAdapter:
    """Read `heads.conv_k.*`, `patch_key`, `da_type` and `sg2_params` as a domain vector, which acts after demodulation.

    Args:
        source: the file's tensors.
        settings: other values in the file.
        generator: the base.

    Raises:
        ValueError: see `import_adapter`.
    """
    generator = _check_base(generator)
    _check_sizes(settings.get("sg2_params", settings.get("sg_2_params")), generator)
    key = _patch_key(source, settings)
    parametrization, parts, zeros = PATCHES[key]
    options = {"parametrization": parametrization, "method": "hyperdomainnet", "training": {"patch_key": key}}
    if isinstance(settings.get("da_type"), str):
        options["training"]["da_type"] = settings["da_type"]
    adapter = DomainVectorAdapter.for_model(generator, **options)
    assert isinstance(adapter, DomainVectorAdapter)
    state = {}
    for k, (path, spec) in enumerate(adapter.config["target_modules"].items()):
        out, inn, *kernel = spec["shape"]
        shapes = {"params_in": (1, inn, 1, 1), "shift": (out, inn, 1, 1), "params_kernel": (1, 1, *kernel)}
        for ours, theirs in parts:
            value = source.take(f"heads.conv_{k}.{theirs}", (1, *shapes.get(theirs, (out, 1, 1, 1))))
            own = adapter.get_parameter(f"{path}.{ours}")
            state[f"{path}.{ours}"] = (value - 1 if theirs == "gamma" else value).reshape(own.shape)
        for theirs in zeros:
            if source.take(f"heads.conv_{k}.{theirs}", (1, *shapes.get(theirs, (out, 1, 1, 1)))).any():
                raise ConversionError(f"heads.conv_{k}.{theirs} of patch_key={key!r} is not zero; {zeros[theirs]}")
    source.finish()
    adapter.load_state_dict(state)
    if (latents := settings.get("style_latents")) is not None:
        shape = tuple(getattr(latents, "shape", ()))
        logger.warning(
            "style_latents %s are no part of the adapter: for the authors' pictures draw w+ whose rows from %d on are "
            "these",
            shape,
            MIXED_FROM,
        )
    return adapter


def _patch_key(source: SourceTensors, settings: dict) -> str:
    if settings.get("model_type") == "mapper" or "mapper_config" in settings:
        raise ConversionError(
            "it is a mapper, which makes a vector for every text; import files of one domain, or train a hypernetwork "
            "with training/hypernetwork.py"
        )
    key = settings.get("patch_key")
    if key is None:
        leaves = frozenset(name.rpartition(".")[2] for name in source.tensors)
        if leaves not in KEY_BY_TENSORS:
            raise ConversionError(
                f"the file has no patch_key, and {', '.join(sorted(leaves)[:4])} may be factors or addends; add the key"
            )
        return KEY_BY_TENSORS[leaves]
    if not isinstance(key, str) or key not in OTHER_PATCHES | PATCHES:
        raise ConversionError(
            f"unknown patch_key {str(key)[:40]!r}; those that are domain vectors: {', '.join(PATCHES)}"
        )
    if key in OTHER_PATCHES:
        raise ConversionError(f"patch_key={key!r} {OTHER_PATCHES[key]}, which is no scale of channels or filters")
    return key


def _check_sizes(stated, generator: StyleGAN2Generator) -> None:
    """Check the sizes of the base that the file states."""
    sizes = {
        "img_size": generator.resolution,
        "latent_size": generator.w_dim,
        "map_layers": generator.mapping.num_layers,
    }
    for name, value in sizes.items():
        if isinstance(stated, dict) and isinstance(stated.get(name), int) and stated[name] != value:
            raise ConversionError(f"it was trained on a base of {name} {stated[name]}, and this one has {value}")


# -------------------------------------------------------------------------------------------------------------- LFS-GAN

CONV = {
    "mul_out": "w_mul1_out_channel_wise",
    "mul_core": "w_mul1_instance_wise",
    "mul_in": "w_mul2_in_channel_wise",
    "add_out": "w_add1_out_channel_bias",
    "add_core": "w_add1_instance_bias",
    "add_in": "w_add2_in_channel_bias",
    "add_kernel": "w_add2_instance_bias",
}
LINEAR = {"mul_out": "w_mul_out_dim", "mul_in": "w_mul_in_dim", "add_out": "w_add_out_dim", "add_in": "w_add_in_dim"}
WHOLE = {"gamma": "w_mul", "beta": "w_add"}  # rank None
BIAS = {"bias_mul": "b_mul", "bias_add": "b_add"}
MODULATION = ".weight_modulation."
MAX_RANK = 512


def lfs_gan(source: SourceTensors, settings: dict, generator: nn.Module) -> LeFTAdapter:
    """Read `*.weight_modulation.*` of mapping, affines, convolutions and to_rgb as a LeFT adapter.

    Without additive tensors in the file, those of the adapter are zero. Base weights in the file must equal those of
    `generator`.

    Args:
        source: the file's tensors.
        settings: other values in the file; `left_use_act` in `args` states whether there is a ReLU.
        generator: the base.

    Raises:
        ValueError: see `import_adapter`.
    """
    generator = _check_base(generator)
    rank = _rank(source)
    adapter = LeFTAdapter.for_model(generator, rank=rank, method="lfs_gan")
    assert isinstance(adapter, LeFTAdapter)
    adds = any(name.rpartition(".")[2].startswith(("w_add", "b_add")) for name in source.tensors)
    state = {}
    for ours, value in adapter.state_dict().items():
        path, _, leaf = ours.rpartition(".")
        layer = generator_name(f"{path}.weight", ())[0].removesuffix(".weight")
        factors = (
            WHOLE if rank is None else LINEAR if len(adapter.config["target_modules"][path]["shape"]) == 2 else CONV
        )
        if not adds and ("add" in leaf or leaf == "beta"):
            state[ours] = torch.zeros_like(value)
        else:
            state[ours] = source.take(f"{layer}{MODULATION}{(factors | BIAS)[leaf]}", value.shape)
    _check_own_weights(source, generator)
    source.finish()
    adapter.load_state_dict(state)
    if rank is None:
        return adapter
    options: dict[str, Any] = adapter.settings() | {"use_activation": False}
    without = LeFTAdapter(**options)
    without.load_state_dict(state)
    arguments = settings.get("args")
    stated = arguments.get("left_use_act") if isinstance(arguments, dict) else getattr(arguments, "left_use_act", None)
    if stated is False:
        return without
    convolutions: list[Any] = [factors for factors in without.factors().values() if hasattr(factors, "inner")]
    if stated is None and any((factors.inner() < 0).any() for factors in convolutions):
        logger.warning("the file does not say whether there was a ReLU (--left_use_act): taken for yes, as published")
    return adapter


def _rank(source: SourceTensors) -> int | None:
    """Return the rank of the factors, or None if there are none.

    Raises:
        ConversionError: the rank is too large.
    """
    for name, tensor in source.tensors.items():
        if name.rpartition(".")[2] in (LINEAR["mul_in"], CONV["mul_in"]) and tensor.ndim == 2:
            if not 1 <= tensor.shape[1] <= MAX_RANK:
                raise ConversionError(f"{name} is of rank {tensor.shape[1]}; 1 to {MAX_RANK} can be read")
            return tensor.shape[1]
    return None


def _check_own_weights(source: SourceTensors, generator: StyleGAN2Generator) -> None:
    """Check that base weights in the file equal those of `generator`; ignore noise, filters and the mean w."""
    frozen = {}
    for ours, value in generator.state_dict().items():
        if ours != "mapping.w_avg" and not ours.endswith("noise.const"):
            theirs, shape = generator_name(ours, value.shape)
            frozen[theirs] = value.reshape(shape)
    check_frozen(source, frozen)
    for name in source.tensors:
        if name.startswith("noises.") or name.endswith(".kernel") or name == "latent_avg":
            source.discard(name)


# ----------------------------------------------------------------------------------------------------------------- both


def _check_base(generator: nn.Module) -> StyleGAN2Generator:
    if not isinstance(generator, StyleGAN2Generator):
        raise ConversionError(f"it belongs to a StyleGAN2, not to a {type(generator).__name__}")
    architecture, num_classes = generator.config["architecture"], generator.config["num_classes"]
    if architecture != "skip" or num_classes is not None:
        raise ConversionError(
            f"it belongs to a StyleGAN2 with output skips and without classes; this one has architecture="
            f"{architecture!r} and num_classes={num_classes}"
        )
    return generator
