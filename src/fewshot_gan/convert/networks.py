"""From what files of torch hold to networks: state dicts are found, recognised and converted, of every family alike."""

import re

import torch

from ..models.sngan import SNGANDiscriminator
from . import biggan, plain, state_dicts, stylegan2_rosinality, unsupported
from .report import ConversionError
from .state_dicts import StateDict

FAMILIES = (stylegan2_rosinality, plain, biggan)
MARKS = {kind: marks for family in FAMILIES for kind, marks in family.MARKS.items()}
CONVERTERS = {kind: convert for family in (*FAMILIES, unsupported) for kind, convert in family.CONVERTERS.items()}
AVERAGED = {"ema", "avg", "average", "averaged", "test"}  # words in the names of a generator's moving average
SHOWN, LENGTH = 8, 60  # names of a message, and characters of each


def find(data) -> list[StateDict]:
    """Networks of a known kind in what a file holds, see `state_dicts.find`."""
    return state_dicts.find(data, MARKS, unsupported.MARKS)


def convert(found: list[StateDict], name: str, data=None) -> dict[str, torch.nn.Module]:
    """What `find` found as networks, see `convert_checkpoint`.

    Args:
        found: of one file or folder.
        name: of it, for messages.
        data: what it holds, for the message if there is nothing in it.

    Raises:
        ConversionError: there is no network, none that draws, two for one role, or a tensor is missing, left over or
            of another shape.
    """
    if not found:
        raise ConversionError(f"{name} holds no generator of a known layout, but {_contents(data)}")
    networks, sources = {}, {}
    for state_dict in found:
        where = state_dict.where or name
        role = "discriminator" if "discriminator" in state_dict.kind else "generator"
        if role == "generator" and AVERAGED & {*re.split(r"[^a-z]+", state_dict.where.lower())}:
            role = "generator_averaged"
        if role in sources:
            raise ConversionError(f"both {sources[role]} and {where} are a {role}; give the file or folder of one")
        sources[role] = where
        networks[role] = _convert_one(state_dict)
    if "generator_averaged" in networks:
        if "generator" in networks:
            networks["generator_raw"] = networks["generator"]
        networks["generator"] = networks.pop("generator_averaged")
    if "generator" not in networks and not any(state_dict.kind in biggan.CONVERTERS for state_dict in found):
        raise ConversionError(f"{name} holds no generator, only a {found[0].kind} ({sources['discriminator']})")
    _fit_resolution(**networks)
    return {role: network.eval() for role, network in networks.items()}


def _fit_resolution(generator=None, discriminator=None, **others) -> None:
    """SNGAN's discriminator sums over whatever size is left: it judges what its generator draws."""
    if generator is not None and isinstance(discriminator, SNGANDiscriminator):
        discriminator.resolution = generator.resolution
        discriminator.register_to_config(resolution=generator.resolution)


def _convert_one(state_dict: StateDict) -> torch.nn.Module:
    tensors = _unpruned(state_dict.tensors)
    convert = CONVERTERS[state_dict.kind]
    if state_dict.kind in (stylegan2_rosinality.GENERATOR, stylegan2_rosinality.BASICSR_GENERATOR):
        return convert(tensors, state_dict.beside.get("latent_avg"))
    return convert(tensors)


def _unpruned(tensors: dict) -> dict:
    """Pruned weights as they are used: `weight_orig` times `weight_mask`.

    Raises:
        ConversionError: one of the two is missing.
    """
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith(".weight_mask")]:
        weight = name.removesuffix("_mask")
        if f"{weight}_orig" not in tensors:
            raise ConversionError(f"the checkpoint has {name} but no {weight}_orig, so it is cut short")
        tensors[weight] = tensors.pop(f"{weight}_orig") * tensors.pop(name)
    return tensors


def _contents(data) -> str:
    if not isinstance(data, dict):
        return f"a {type(data).__name__}"
    names = [str(name)[:LENGTH] for name in list(data)[:SHOWN]]
    return f"{names}" + (f" and {len(data) - SHOWN} more" if len(data) > SHOWN else "")
