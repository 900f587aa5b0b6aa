"""Import adapter files of papers' authors as adapters of a converted base.

Supported: HyperDomainNet (domain vectors), LFS-GAN, AdaFM transfer and GAN Memory (modulations).
"""

import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

from ..adapters import Adapter
from ..models import AnyGenerator, GPGANGenerator, TailoredGenerator
from ..utils.files import user_path
from . import adapters_gp_gan, adapters_stylegan2, networks, state_dicts, torch_file
from .report import ConversionError, SourceTensors

BASE_FOLDER = "base"  # beside an adapter that needs a generator of its own


class Paper(NamedTuple):
    """The format of a paper's adapter files.

    Attributes:
        pattern: regular expression of a tensor name, after any prefix, that only such files have.
        read: function of (tensors, settings beside them, generator) that returns the adapter.
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


class AdapterFile(NamedTuple):
    """An adapter in a file.

    Attributes:
        file: name of the file.
        paper: a key of `PAPERS`.
        where: dotted path of the adapter in the file.
        tensors: name without prefix → tensor.
        settings: other values in the file.
    """

    file: str
    paper: str
    where: str
    tensors: dict[str, torch.Tensor]
    settings: dict


def import_adapter(src: str | Path, generator) -> Adapter:
    """Turn the adapter file of a paper's authors into an adapter of a converted base.

    Args:
        src: a file of `torch.save`; the paper is recognised by its content.
        generator: the base that it was trained on, or a pipeline with it; see `adapter_base` for AdaFM transfer.

    Returns:
        The adapter, which gives the same images with `generator` as the authors' code gives with their network.

    Raises:
        ConversionError: the file is not an adapter of these papers, is damaged or unsafe, has values that are not
            finite, belongs to another base, or does something that adapters do not support. The message names every
            tensor that is missing, left over or of another shape.
        FileNotFoundError: `src` does not exist.
        ValueError: adapters are fused into the pipeline.
    """
    adapter_file = _read(src)
    adapter = _bind(adapter_file, _whole(generator))
    if (bank := getattr(generator, "bank", None)) is not None:  # a pipeline has the fingerprint of the stored weights
        adapter.register_to_config(base_fingerprint=bank.fingerprint(), base_model_name_or_path=generator.base_name)
    return adapter


def adapter_base(src: str | Path, generator) -> nn.Module:
    """Return the network that the adapter in `src` belongs to, as argument of `import_adapter`.

    AdaFM transfer puts a small network before the last scales of a GP-GAN. For a `GPGANGenerator` this returns such a
    `TailoredGenerator`, initialised from a fixed seed, so that all adapters of one base share it. Other adapters belong
    to the generator itself.

    Args:
        src: see `import_adapter`.
        generator: the converted base, or a pipeline with it.

    Raises:
        ConversionError, ValueError: see `import_adapter`.
    """
    return _base_of(_read(src), _whole(generator))


def write_adapter(src: str | Path, base: str, folder: Path, out: Path) -> Adapter:
    """Write an imported adapter with its card, and in `base/` the generator that it needs if that is not `base`.

    Args:
        src: see `import_adapter`.
        base: embedded name, folder or repo id of the converted base.
        folder: folder to write.
        out: final path of the folder.

    Raises:
        ConversionError, FileNotFoundError: see `import_adapter`.
    """
    from ..hub.cards import write_adapter_card
    from ..pipeline import FewShotGAN

    adapter_file = _read(src)  # before the base is loaded, to report a wrong file at once
    pipe = FewShotGAN.from_pretrained(base)
    generator = _base_of(adapter_file, pipe.generator)
    adapter = _bind(adapter_file, generator)
    needs_base = isinstance(generator, TailoredGenerator) and generator is not pipe.generator
    adapter.register_to_config(
        base_model_name_or_path=str(out / BASE_FOLDER) if needs_base else base,
        training=adapter.config["training"] | ({"source": base} if needs_base else {}),
    )
    if needs_base:
        FewShotGAN(cast(AnyGenerator, generator)).save_pretrained(folder / BASE_FOLDER)
    adapter.save_pretrained(folder)
    write_adapter_card(adapter, folder, out.name)
    return adapter


def find_paper(data) -> str | None:
    """Return the paper of the first adapter in a file's contents, or None."""
    adapter_files = _find(data)
    return adapter_files[0].paper if adapter_files else None


def _read(src: str | Path) -> AdapterFile:
    path = user_path(src)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path} to import")
    if path.is_dir():
        raise ConversionError(f"{path.name} is a folder; give the adapter's file")
    candidates = _find(torch_file.read(path), path.name)
    if not candidates:
        raise ConversionError(
            f"{path.name} is no adapter of {', '.join(PAPERS)}; a whole generator converts without a base"
        )
    if len(candidates) > 1:
        averaged = [candidate for candidate in candidates if networks.AVERAGED.search(candidate.where)]
        if len(averaged) != 1:
            places = " and ".join(candidate.where or "the file" for candidate in candidates[:2])
            raise ConversionError(f"{path.name} holds several adapters: {places}; save one of them alone")
        candidates = averaged
    return candidates[0]


def _find(data, file: str = "") -> list[AdapterFile]:
    """Find the adapters in a file's contents, under any wrapper and prefix."""
    root = data if isinstance(data, dict) else {}
    nested = {name: value for name, value in root.items() if isinstance(value, dict)}
    adapter_files = []
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
            adapter_files.append(AdapterFile(file, paper, where, tensors, {**nested, **beside, **settings}))
            break
    return adapter_files


@contextmanager
def _binding_errors(adapter_file: AdapterFile):
    """Turn errors of a `with` block into a sentence about the file.

    Raises:
        ConversionError: the block raised an error.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(
            f"{adapter_file.file}, an adapter of {adapter_file.paper}, cannot be bound to this base: {reason}"
        ) from error


def _whole(generator) -> nn.Module:
    """Return the network of a pipeline whose weights are those of its base, or the network itself."""
    if (bank := getattr(generator, "bank", None)) is not None:
        bank.refuse_while_fused("import an adapter")
    return getattr(generator, "generator", generator)


def _base_of(adapter_file: AdapterFile, generator: nn.Module) -> nn.Module:
    if isinstance(generator, GPGANGenerator) and adapters_gp_gan.SPECIFIC in adapter_file.tensors:
        with _binding_errors(adapter_file):
            return adapters_gp_gan.tailored(SourceTensors(adapter_file.tensors), generator)
    return generator


def _bind(adapter_file: AdapterFile, generator: nn.Module) -> Adapter:
    with _binding_errors(adapter_file):
        _check_numbers(adapter_file.tensors)
        source = SourceTensors(adapter_file.tensors)
        adapter = PAPERS[adapter_file.paper].read(source, adapter_file.settings, generator)
        adapter.check()
    training = {**(adapter.config["training"] or {}), "imported_from": adapter_file.file, "paper": adapter_file.paper}
    adapter.register_to_config(training=training)
    return adapter.eval().requires_grad_(False)


def _check_numbers(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConversionError(f"{name} is of {tensor.dtype}, not of floating-point numbers; the file is damaged")
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{name} has NaN or infinite numbers, so the adapter would only draw noise")
