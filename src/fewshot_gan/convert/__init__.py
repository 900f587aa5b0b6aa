"""Published checkpoints → our networks: recognised by content, every tensor accounted for, no code of theirs run."""

import tempfile
from pathlib import Path

from ..models.bounds import check_finite, limit_size
from ..utils.files import user_path
from ..utils.text import in_short
from .check import check
from .report import ConversionError

__all__ = ["ConversionError", "convert_checkpoint"]

RECOGNISED = (
    "a StyleGAN2 pickle of NVIDIA's (.pkl), a StyleGAN2 checkpoint of the PyTorch port (.pt: g_ema, params_ema, pSp's "
    "and e4e's decoder, or the state dict itself), checkpoints of SNGAN, GP-GAN and BigGAN (.pth, .pt; of "
    "BigGAN-PyTorch and StudioGAN a file, or a folder of one for G and one for D), and a folder, wheel or zip with "
    "MobileStyleGAN's MappingNetwork.xml and SynthesisNetwork.xml"
)


def convert_checkpoint(src: str | Path) -> dict:
    """Convert a published checkpoint; `FewShotGAN(generator, discriminator).save_pretrained` makes a base of it.

    Args:
        src: file or folder; its content decides what it is, not its name.

    Returns:
        "generator", and where the checkpoint has them "generator_raw" (not averaged) and "discriminator", in eval mode.

    Raises:
        ConversionError: unknown, unsupported, damaged or unsafe file, or weights that are no finite numbers.
        FileNotFoundError: there is no `src`.
    """
    src = user_path(src)
    if not src.exists():
        raise FileNotFoundError(f"there is no {src} to convert")
    try:
        with limit_size(_size(src)):
            networks = _convert_folder(src) if src.is_dir() else _convert_file(src)
        for role, network in networks.items():
            check_finite(network, f"the {role} in {src.name}")
        check(networks)
    except (ConversionError, OSError, ImportError):
        raise
    except Exception as error:  # whatever sizes and values that no network has make of the converters
        if isinstance(error, ValueError):
            raise ConversionError(f"{src.name} cannot be converted: {in_short(error)}") from error
        raise ConversionError(
            f"{src.name} cannot be converted: it has tensors of sizes or values that no network of its kind has "
            f"({type(error).__name__}: {in_short(error)}); it is damaged, or its layout is another one"
        ) from error
    return networks


def _size(src: Path) -> int:
    """Bytes that the numbers of a checkpoint can take."""
    paths = [*src.glob("*.pth"), *src.rglob("*.bin")] if src.is_dir() else [src]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _convert_folder(folder: Path) -> dict:
    from . import mobile_stylegan_ir

    if found := mobile_stylegan_ir.find(folder):
        return {"generator": mobile_stylegan_ir.convert(found)}
    if networks := _convert_torch_folder(folder):
        return networks
    raise ConversionError(f"the folder {folder.name} holds no known checkpoint; recognised are {RECOGNISED}")


def _convert_file(path: Path) -> dict:
    from ..utils import untrusted
    from . import mobile_stylegan_ir, stylegan2_nvidia

    if untrusted.is_pickle(path):
        return stylegan2_nvidia.convert(path)
    found = untrusted.open_checkpoint(path)
    if found.kind == "tensors":
        return _convert_tensors(found.value, path.name)
    if found.kind == "ir":
        with tempfile.TemporaryDirectory() as folder:
            for name, data in found.value.items():
                (Path(folder) / name).write_bytes(data)
            return {"generator": mobile_stylegan_ir.convert(Path(folder))}
    raise ConversionError(f"{path.name} is no known checkpoint; recognised are {RECOGNISED}")


def _convert_tensors(data, name: str) -> dict:
    from . import adapters, networks

    if paper := adapters.paper_of(data):
        raise ConversionError(
            f"{name} is an adapter of {paper}; give --base (in Python import_adapter), the converted base that it was "
            "trained on"
        )
    return networks.convert(networks.find(data), name, data)


def _convert_torch_folder(folder: Path) -> dict:
    """Files of one network each, as BigGAN's `G.pth`, `G_ema.pth`, `D.pth`; others in the folder are left alone."""
    from . import networks, torch_file

    found, reason = [], None
    for path in sorted(folder.glob("*.pth")):
        try:
            data = torch_file.read(path)
        except ConversionError as error:  # a training's settings, for example, which hold code
            reason = reason or error
            continue
        found += networks.find({path.stem: data})
    if reason and not found:
        raise reason
    return networks.convert(found, folder.name) if found else {}
