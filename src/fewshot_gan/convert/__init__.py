"""Published checkpoints → our networks: recognised by content, every tensor accounted for, no code of theirs run."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from ..utils.files import user_path
from .check import checked
from .report import ConversionError

__all__ = ["ConversionError", "convert_checkpoint"]

RECOGNISED = (
    "a StyleGAN2 pickle of NVIDIA's (.pkl), a StyleGAN2 checkpoint of the PyTorch port (.pt: g_ema, params_ema, pSp's "
    "and e4e's decoder, or the state dict itself), checkpoints of SNGAN, GP-GAN and BigGAN (.pth, .pt; of "
    "BigGAN-PyTorch and StudioGAN a file, or a folder of one for G and one for D), and a folder, wheel or zip with "
    "MobileStyleGAN's MappingNetwork.xml and SynthesisNetwork.xml"
)
_TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save before 1.6 begin


@checked
def convert_checkpoint(src: str | Path) -> dict:
    """Convert a published checkpoint; `FewShotGAN(generator, discriminator).save_pretrained` makes a base of it.

    Args:
        src: file or folder; its content decides what it is, not its name.

    Returns:
        "generator", and where the checkpoint has them "generator_raw" (not averaged) and "discriminator", in eval mode.

    Raises:
        ConversionError: unknown, unsupported, damaged or unsafe file.
        FileNotFoundError: there is no `src`.
    """
    src = user_path(src)
    if not src.exists():
        raise FileNotFoundError(f"there is no {src} to convert")
    from . import mobile_stylegan_ir, stylegan2_nvidia

    if src.is_dir():
        if folder := mobile_stylegan_ir.find(src):
            return {"generator": mobile_stylegan_ir.convert(folder)}
        if networks := _convert_torch_folder(src):
            return networks
        raise ConversionError(f"the folder {src.name} holds no known checkpoint; recognised are {RECOGNISED}")
    with src.open("rb") as file:
        head = file.read(len(_TORCH_LEGACY))
    if head == _TORCH_LEGACY:
        return _convert_torch_file(src)
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:  # a pickle and its protocol
        return stylegan2_nvidia.convert(src)
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(src) as archive:
                names = archive.namelist()
                if any(name.endswith(mobile_stylegan_ir.SYNTHESIS_FILE) for name in names):
                    return {"generator": _convert_archived_ir(archive, names)}
        except zipfile.BadZipFile as error:
            raise ConversionError(f"{src.name} is damaged or cut short ({error}); download it again") from error
        if any(name.endswith("data.pkl") for name in names):
            return _convert_torch_file(src)
    raise ConversionError(f"{src.name} is no known checkpoint; recognised are {RECOGNISED}")


def _convert_torch_file(path: Path) -> dict:
    from . import networks, torch_file

    data = torch_file.read(path)
    return networks.convert(networks.find(data), path.name, data)


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


def _convert_archived_ir(archive: zipfile.ZipFile, names: list[str]):
    """Unpack the four files of the two networks side by side, wherever the archive has them, and convert them."""
    from . import mobile_stylegan_ir

    with tempfile.TemporaryDirectory() as folder:
        for xml in (mobile_stylegan_ir.MAPPING_FILE, mobile_stylegan_ir.SYNTHESIS_FILE):
            for wanted in (xml, xml.replace(".xml", ".bin")):
                found = [name for name in names if name.rsplit("/", 1)[-1] == wanted]
                if len(found) != 1:
                    raise ConversionError(f"the archive holds {len(found)} files {wanted} instead of one")
                with archive.open(found[0]) as packed, open(Path(folder) / wanted, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        return mobile_stylegan_ir.convert(Path(folder))
