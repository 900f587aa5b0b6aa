"""Convert published checkpoints: recognise them by content, account for every tensor, and never run their code."""

import logging
import tempfile
from pathlib import Path

from ..models.bounds import check_finite, limit_size
from ..utils.conversion import CodeRefused
from ..utils.files import user_path
from ..utils.random import float32_on_cpu
from ..utils.text import in_short
from .check import check
from .report import ConversionError

__all__ = ["ConversionError", "convert_checkpoint"]

logger = logging.getLogger(__name__)

RECOGNISED = (
    "a StyleGAN2 pickle of NVIDIA's (.pkl), a StyleGAN2 checkpoint of the PyTorch port (.pt: g_ema, params_ema, pSp's "
    "and e4e's decoder, or the state dict itself), checkpoints of SNGAN, GP-GAN and BigGAN (.pth, .pt; of "
    "BigGAN-PyTorch and StudioGAN a file, or a folder of one for G and one for D), and a folder, wheel or zip with "
    "MobileStyleGAN's MappingNetwork.xml and SynthesisNetwork.xml"
)


def convert_checkpoint(src: str | Path) -> dict:
    """Convert a published checkpoint; `FewShotGAN(generator, discriminator).save_pretrained` makes a base of it.

    Args:
        src: file or folder; recognised by its content, not its name.

    Returns:
        "generator", and if the checkpoint has them "generator_raw" (not averaged) and "discriminator", in eval mode.

    Raises:
        ConversionError: the file is unknown, unsupported, damaged or unsafe, or has weights that are not finite.
        FileNotFoundError: `src` does not exist.
    """
    src = user_path(src)
    if not src.exists():
        raise FileNotFoundError(f"there is no {src} to convert")
    try:
        with limit_size(_size(src)), float32_on_cpu():
            networks = _convert_folder(src) if src.is_dir() else _convert_file(src)
        for role, network in networks.items():
            check_finite(network, f"the {role} in {src.name}")
        check(networks)
    except (ConversionError, OSError, ImportError):
        raise
    except Exception as error:  # sizes and values that no network has can cause any error in the converters
        if isinstance(error, ValueError):
            raise ConversionError(f"{src.name} cannot be converted: {in_short(error)}") from error
        raise ConversionError(
            f"{src.name} cannot be converted: it has tensors of sizes or values that no network of its kind has "
            f"({type(error).__name__}: {in_short(error)}); it is damaged, or its layout is another one"
        ) from error
    return networks


def _size(src: Path) -> int:
    """Return an upper bound of the bytes of a checkpoint's tensors."""
    paths = [*_torch_files(src), *src.rglob("*.bin")] if src.is_dir() else [src]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _torch_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".pt") and not path.is_dir())


def _convert_folder(folder: Path) -> dict:
    from . import mobile_stylegan_ir

    if ir_folder := mobile_stylegan_ir.find(folder):
        return {"generator": mobile_stylegan_ir.convert(ir_folder)}
    if networks := _convert_torch_folder(folder):
        return networks
    raise ConversionError(f"the folder {folder.name} holds no known checkpoint; recognised are {RECOGNISED}")


def _convert_file(path: Path) -> dict:
    from ..utils import untrusted
    from . import mobile_stylegan_ir, stylegan2_nvidia

    if untrusted.is_pickle(path):
        return stylegan2_nvidia.convert(path)
    contents = untrusted.open_checkpoint(path)
    if contents.kind == "tensors":
        return _convert_tensors(contents.value, path.name)
    if contents.kind == "ir":
        with tempfile.TemporaryDirectory() as folder:
            for name, data in contents.value.items():
                (Path(folder) / name).write_bytes(data)
            return {"generator": mobile_stylegan_ir.convert(Path(folder))}
    raise ConversionError(f"{path.name} is no known checkpoint; recognised are {RECOGNISED}")


def _convert_tensors(data, name: str) -> dict:
    from . import adapters, networks

    if paper := adapters.find_paper(data):
        raise ConversionError(
            f"{name} is an adapter of {paper}; give --base (in Python import_adapter), the converted base that it was "
            "trained on"
        )
    return networks.convert(networks.find(data), name, data)


def _convert_torch_folder(folder: Path) -> dict:
    """Convert a folder with one network per file, as BigGAN's `G.pth`, `G_ema.pth`, `D.pth`.

    Files without a network are ignored, and those that hold code, with a warning: settings of a training are such.

    Raises:
        ConversionError: a file is damaged, or there is no network, but code.
    """
    from . import networks, torch_file

    state_dicts, refused = [], []
    for path in _torch_files(folder):
        try:
            state_dicts += networks.find({path.stem: torch_file.read(path)})
        except CodeRefused as error:
            refused.append(error)
    if refused and not state_dicts:
        raise refused[0]
    for error in refused:
        logger.warning("%s; the other files are converted without it", error)
    return networks.convert(state_dicts, folder.name) if state_dicts else {}
