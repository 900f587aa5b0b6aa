"""`fewshot-gan convert`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ...hub import cards
from ...utils.files import write_folder
from .options import path_argument
from .root import app, refuse_existing

SAVED = {"generator", "discriminator"}


@app.command()
def convert(
    src: Annotated[
        Path,
        path_argument("Checkpoint: StyleGAN2 .pkl or .pt, SNGAN, BigGAN or GP-GAN .pth, or the IR of MobileStyleGAN."),
    ],
    out: Annotated[Path, path_argument("Folder to write, new or empty.")],
    base: Annotated[
        str | None, typer.Option(help="Base of an adapter file of HyperDomainNet, LFS-GAN, AdaFM or GAN Memory.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store the networks in fp16: half the bytes. Loading casts them to fp32.")
    ] = False,
):
    """Convert a published checkpoint into a folder that `--base` takes; with --base, convert a published adapter."""
    start = time.perf_counter()
    refuse_existing(out)

    if base is not None:
        if half:
            raise ValueError("--half stores networks in fp16, and --base converts an adapter; leave one of them out")
        from ...convert.adapters import write_adapter

        write_folder(out, lambda folder: write_adapter(src, base, folder, out.absolute()))
        print(f"{out}  (an adapter of {base}, {time.perf_counter() - start:.1f} s)")
        return
    from ...convert import convert_checkpoint
    from ...models.bounds import check_finite
    from ...pipeline import FewShotGAN

    networks = convert_checkpoint(src)
    if "generator" not in networks:
        raise ValueError(f"{src} holds a discriminator alone; give the file or folder that has the generator too")
    if half:
        for name in SAVED & networks.keys():
            check_finite(networks[name].half(), f"the {name} in {src.name}, cast to fp16 by --half,")
    pipe = FewShotGAN(networks["generator"], networks.get("discriminator"))
    write_folder(out, pipe.save_pretrained)
    converted = [
        f"{name} of {cards.count_numbers(network):,} numbers" for name, network in networks.items() if name in SAVED
    ]
    resolution = networks["generator"].resolution
    print(f"{out}  ({resolution} px, {', '.join(converted)}, {time.perf_counter() - start:.1f} s)")
