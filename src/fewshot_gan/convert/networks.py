"""Convert the contents of torch files: find state dicts, recognise their family, and convert them to networks."""

import logging
import os
import re
from collections import defaultdict

import torch

from ..models.sngan import SNGANDiscriminator
from . import biggan, plain, state_dicts, stylegan2_rosinality, unsupported
from .report import ConversionError
from .state_dicts import StateDict

logger = logging.getLogger(__name__)

FAMILIES = (stylegan2_rosinality, plain, biggan)
MARKS = {kind: marks for family in FAMILIES for kind, marks in family.MARKS.items()}
CONVERTERS = {kind: convert for family in (*FAMILIES, unsupported) for kind, convert in family.CONVERTERS.items()}
AVERAGED = re.compile(r"(^|[^a-z])(ema|avg|averaged?|generator_test)([^a-z]|$)", re.I)  # names of moving averages
SHOWN, LENGTH = 8, 60  # names in a message, and characters per name


def find(data) -> list[StateDict]:
    """Find the networks of known kinds in a file's contents; see `state_dicts.find`."""
    return state_dicts.find(data, MARKS, unsupported.MARKS)


def convert(found: list[StateDict], name: str, data=None) -> dict[str, torch.nn.Module]:
    """Convert state dicts to networks by role; see `convert_checkpoint`.

    Args:
        found: result of `find` for one file or folder.
        name: name of the file or folder, for messages.
        data: contents of the file, for the message if `found` is empty.

    Raises:
        ConversionError: there is no generator, two networks have one role, or a tensor is missing, left over or of
            another shape.
    """
    if not found:
        raise ConversionError(f"{name} holds no generator of a known layout, but {_contents(data)}")
    networks = {role: _convert_one(state_dict) for role, state_dict in _roles(found, name).items()}
    if "generator_averaged" in networks:
        if "generator" in networks:
            networks["generator_raw"] = networks["generator"]
        networks["generator"] = networks.pop("generator_averaged")
    if "generator" not in networks and not any(state_dict.kind in biggan.CONVERTERS for state_dict in found):
        raise ConversionError(f"{name} holds no generator, only a {found[0].kind} ({found[0].where or name})")
    _fit_resolution(**networks)
    return {role: network.eval() for role, network in networks.items()}


def _roles(found: list[StateDict], name: str) -> dict[str, StateDict]:
    """Return role → state dict; if there are current and best networks, the best.

    Raises:
        ConversionError: there are several state dicts for one role.
    """
    roles = defaultdict(list)
    generators = [state_dict.where.split(".") for state_dict in found if "discriminator" not in state_dict.kind]
    shared = len(os.path.commonprefix(generators)) if len(generators) > 1 else 0  # a wrapper "ema" of both says nothing
    for state_dict in found:
        role = "discriminator" if "discriminator" in state_dict.kind else "generator"
        averaged = role == "generator" and AVERAGED.search(".".join(state_dict.where.split(".")[shared:]))
        roles["generator_averaged" if averaged else role].append(state_dict)
    chosen = {}
    for role, several in roles.items():
        if any("best" in state_dict.where for state_dict in several):
            current = [state_dict.where for state_dict in several if "current" in state_dict.where]
            several = [state_dict for state_dict in several if state_dict.where not in current]
            if current:
                logger.warning("left out, because there is a best one: %s", ", ".join(current))
        if len(several) > 1:
            first, second = (state_dict.where or name for state_dict in several[:2])
            kind = "moving average of a generator" if role == "generator_averaged" else role
            raise ConversionError(f"both {first} and {second} are a {kind}; give the file or folder of one")
        chosen[role] = several[0]
    return chosen


def _fit_resolution(generator=None, discriminator=None, **others) -> None:
    """Set the resolution of SNGAN's discriminator, whose weights fit any, to that of the generator."""
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
    """Apply pruning masks: return `weight_orig` times `weight_mask` as the weight.

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
