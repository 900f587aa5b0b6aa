"""The papers' own adapter files → our adapters, bound to a converted base.

Known are domain vectors of HyperDomainNet, modulations of LFS-GAN, and those of AdaFM transfer and GAN Memory.
"""

import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..adapters import Adapter
from ..models import GPGANGenerator, TailoredGenerator
from ..utils.files import user_path
from . import adapters_gp_gan, adapters_stylegan2, networks, state_dicts, torch_file
from .report import ConversionError, SourceTensors

BASE_FOLDER = "base"  # beside an adapter whose generator is made of the converted base


class Paper(NamedTuple):
    """How adapters of a paper look, and what reads them.

    Attributes:
        pattern: of a tensor's name, after any prefix, that only such files have.
        read: (tensors, settings beside them, generator) → adapter.
    """

    pattern: str
    read: Callable[[SourceTensors, dict, nn.Module], Adapter]


PAPERS = {
    "HyperDomainNet (arXiv 2210.08884)": Paper(r"heads\.conv_\d+\..+", adapters_stylegan2.hyperdomainnet),
    "LFS-GAN (arXiv 2308.11917)": Paper(
        r"(?:style\.\d+|(?:conv1|to_rgb1|convs\.\d+|to_rgbs\.\d+)\.conv(?:\.modulation)?)\.weight_modulation\.\w+",
        adapters_stylegan2.lfs_gan,
    ),
    "AdaFM transfer (arXiv 2002.11810)": Paper(
        rf"resnet_\d+_\d+\.{adapters_gp_gan.ADAFM}\d\.style_(?:gama|beta)", adapters_gp_gan.adafm
    ),
    "GAN Memory (arXiv 2006.07543)": Paper(r"AdaFM_fc\.(?:gamma|beta)", adapters_gp_gan.gan_memory),
}


class Found(NamedTuple):
    """An adapter's tensors, without the prefix of their names, and what stands beside them."""

    file: str
    paper: str
    where: str
    tensors: dict[str, torch.Tensor]
    settings: dict


def import_adapter(src: str | Path, generator) -> Adapter:
    """Turn the adapter file of a paper's authors into an adapter of a converted base.

    Args:
        src: file of `torch.save`; its content decides of which paper it is.
        generator: the base that it was trained on, or a pipeline with it; see `adapter_base` for AdaFM transfer.

    Returns:
        The adapter, which draws with `generator` what the authors' code draws with theirs.

    Raises:
        ConversionError: the file is no adapter of these papers, is damaged or unsafe, has numbers that are not finite,
            belongs to another base, or does what no adapter can; every tensor that is missing, left over or of another
            shape is named.
        FileNotFoundError: there is no `src`.
    """
    found = _read(src)
    adapter = _bind(found, getattr(generator, "generator", generator))
    if (bank := getattr(generator, "bank", None)) is not None:  # a pipeline knows its weights as they were stored
        adapter.register_to_config(base_fingerprint=bank.fingerprint(), base_model_name_or_path=generator.base_name)
    return adapter


def adapter_base(src: str | Path, generator) -> nn.Module:
    """The network that the adapter in `src` belongs to, to be given to `import_adapter`.

    AdaFM transfer puts a small network of its own in front of the last scales of a GP-GAN. Of a `GPGANGenerator` the
    answer is such a `TailoredGenerator`, drawn from a fixed seed, so that all adapters of one base share it. All others
    belong to the generator itself.

    Args:
        src: see `import_adapter`.
        generator: the converted base, or a pipeline with it.

    Raises:
        ConversionError: see `import_adapter`.
    """
    return _base_of(_read(src), getattr(generator, "generator", generator))


def write_adapter(src: str | Path, base: str, folder: Path, out: Path) -> Adapter:
    """Write an imported adapter with its card, and in `base/` the generator that it needs if `base` is not it.

    Args:
        src: see `import_adapter`.
        base: embedded name, folder or repo id of the converted base.
        folder: where to write.
        out: where the folder will be in the end.

    Raises:
        ConversionError, FileNotFoundError: see `import_adapter`.
    """
    from ..hub.cards import write_adapter_card
    from ..pipeline import FewShotGAN

    found = _read(src)  # what is no adapter is said before a base is loaded
    pipe = FewShotGAN.from_pretrained(base)
    generator = _base_of(found, pipe.generator)
    adapter = _bind(found, generator)
    own = isinstance(generator, TailoredGenerator) and generator is not pipe.generator
    adapter.register_to_config(
        base_model_name_or_path=str(out / BASE_FOLDER) if own else base,
        training=adapter.config.training | ({"source": base} if own else {}),
    )
    if own:
        FewShotGAN(generator).save_pretrained(folder / BASE_FOLDER)
    adapter.save_pretrained(folder)
    write_adapter_card(adapter, folder, out.name)
    return adapter


def paper_of(data) -> str | None:
    """The paper whose adapter a file holds, None if there is none."""
    found = _find(data)
    return found[0].paper if found else None


def _read(src: str | Path) -> Found:
    path = user_path(src)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path} to import")
    if path.is_dir():
        raise ConversionError(f"{path.name} is a folder; give the adapter's file")
    found = _find(torch_file.read(path), path.name)
    if not found:
        raise ConversionError(
            f"{path.name} is no adapter of {', '.join(PAPERS)}; a whole generator converts without a base"
        )
    if len(found) > 1:
        averaged = [one for one in found if networks.AVERAGED.search(one.where)]
        if len(averaged) != 1:
            places = " and ".join(one.where or "the file" for one in found[:2])
            raise ConversionError(f"{path.name} holds several adapters: {places}; save one of them alone")
        found = averaged
    return found[0]


def _find(data, file: str = "") -> list[Found]:
    """Adapters in what a file holds, under any wrapper and prefix."""
    root = data if isinstance(data, dict) else {}
    nested = {name: value for name, value in root.items() if isinstance(value, dict)}
    found = []
    for path, entries, beside in state_dicts.named_dicts(data):
        for paper, (pattern, _) in PAPERS.items():
            core = re.compile(rf"(?<![^.]){pattern}\Z")
            match = next((m for name in entries if (m := core.search(name))), None)
            if match is None:
                continue
            prefix = match.string[: match.start()]
            tensors = {k.removeprefix(prefix): v for k, v in entries.items() if isinstance(v, torch.Tensor)}
            settings = {k: v for k, v in entries.items() if not isinstance(v, torch.Tensor)}
            where = ".".join(part for part in path if part not in state_dicts.WRAPPERS)
            found.append(Found(file, paper, where, tensors, {**nested, **beside, **settings}))
            break
    return found


@contextmanager
def _said_of(found: Found):
    """Errors inside the block become a sentence about the file.

    Raises:
        ConversionError: there was one.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(
            f"{found.file}, an adapter of {found.paper}, cannot be bound to this base: {reason}"
        ) from error


def _base_of(found: Found, generator: nn.Module) -> nn.Module:
    if isinstance(generator, GPGANGenerator) and adapters_gp_gan.SPECIFIC in found.tensors:
        with _said_of(found):
            return adapters_gp_gan.tailored(SourceTensors(found.tensors), generator)
    return generator


def _bind(found: Found, generator: nn.Module) -> Adapter:
    with _said_of(found):
        _check_numbers(found.tensors)
        adapter = PAPERS[found.paper].read(SourceTensors(found.tensors), found.settings, generator)
        adapter.check()
    training = {**(adapter.config.training or {}), "imported_from": found.file, "paper": found.paper}
    adapter.register_to_config(training=training)
    return adapter.eval().requires_grad_(False)


def _check_numbers(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConversionError(f"{name} is of {tensor.dtype}, not of floating-point numbers; the file is damaged")
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{name} has NaN or infinite numbers, so the adapter would only draw noise")
