"""`fewshot-gan`: generate, adapt, convert, list. Heavy libraries load inside the commands: `--help` answers at once."""

import json
import math
import os
import struct
import sys
import tempfile
import time
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import hub
from .version import __version__

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
GAP = 4  # white pixels between the pictures of a grid
SAVED = ("generator", "discriminator")

app = typer.Typer(
    help="Few-shot GAN adaptation: pictures from a base, and from what a few images taught it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class AdapterKind(StrEnum):
    left = "left"
    domain_vector = "domain_vector"


class Preset(StrEnum):
    few_images = "few_images"
    paper = "paper"


class NoiseMode(StrEnum):
    const = "const"
    random = "random"
    none = "none"


@contextmanager
def one_sentence(*also: type[Exception]):
    """What the library refuses ends as one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError, *also) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error


def _show_version(wanted: bool):
    if wanted:
        print(f"fewshot_gan {__version__}")
        raise typer.Exit()


def _quiet():
    """No progress bar for loading two files; those of long runs stay."""
    from diffusers.utils import logging

    logging.disable_progress_bar()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
):
    pass


# ----------------------------------------------------------------------------------------------------------- generate


@app.command()
def generate(
    base: Annotated[str, typer.Option(help="Embedded name, folder or Hub repo.")] = "ffhq",
    adapter: Annotated[
        list[str] | None, typer.Option(help="Embedded name, folder or Hub repo; repeat to blend.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="One per adapter, in order; default 1.")] = None,
    num_images: Annotated[int, typer.Option(help="How many pictures.")] = 4,
    seed: Annotated[int, typer.Option(help="One seed, one set of pictures.")] = 0,
    psi: Annotated[float | None, typer.Option(help="Truncation; default: the base's own.")] = None,
    noise_mode: Annotated[NoiseMode, typer.Option(help="Per-pixel noise.")] = NoiseMode.const,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 8,
    out: Annotated[Path | None, typer.Option(help="The grid's file, or with --separate the folder.")] = None,
    separate: Annotated[bool, typer.Option("--separate", help="One file per picture instead of a grid.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="A row of the base, then one per adapter.")] = False,
):
    """Write pictures of a base, with or without adapters."""
    start = time.perf_counter()
    with one_sentence():
        names, weights = list(adapter or []), list(weight or [])
        if weights and len(weights) != len(names):
            raise ValueError(f"{len(names)} adapters but {len(weights)} weights; give one --weight per --adapter")
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images={num_images} and batch_size={batch_size}: both are at least 1")
        out = out or Path("faces" if separate else "faces.png")
        if separate:
            _refuse_existing(out)
        elif out.is_dir() or out.suffix.lower() not in PICTURES:
            raise ValueError(
                f"--out {out} is no picture file; give a name ending in {', '.join(PICTURES)}, or --separate"
            )

        from .pipeline import BASE, FewShotGAN

        _quiet()
        pipe = FewShotGAN.from_pretrained(base)
        loaded = {}  # name in the pipeline: weight
        for i, source in enumerate(names):
            name = Path(source).name
            name = name if name not in (*loaded, BASE, "") else f"{name}-{i + 1}"
            pipe.load_adapter(source, name)
            loaded[name] = weights[i] if weights else 1.0

        looks = [{}, *({n: w} for n, w in loaded.items())] if compare else [loaded]
        rows = []
        for look in looks:
            pipe.set_adapters(list(look), list(look.values()))
            rows.append(
                pipe(
                    num_images,
                    seed=seed,
                    truncation_psi=psi,
                    noise_mode=noise_mode.value,
                    batch_size=batch_size,
                ).images
            )
        if separate:
            prefixes = [f"{next(iter(look), 'base')}-" for look in looks] if compare else [""]
            files = {f"{p}{i:05d}.png": im for p, row in zip(prefixes, rows, strict=True) for i, im in enumerate(row)}
            _write_folder(out, lambda folder: [image.save(folder / name) for name, image in files.items()])
        else:
            columns = num_images if compare else math.ceil(math.sqrt(num_images))
            _write_picture(out, make_grid([image for row in rows for image in row], columns))
        print(f"{out}  ({sum(map(len, rows))} pictures, {time.perf_counter() - start:.1f} s)")


def make_grid(images: list, columns: int):
    """PIL images of one size, row by row, on white."""
    from PIL import Image

    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid


# -------------------------------------------------------------------------------------------------------------- adapt


@app.command()
def adapt(
    data: Annotated[str, typer.Argument(help="Folder with about ten pictures, embedded set, or datasets id.")],
    out: Annotated[str, typer.Option(help="Folder of the adapter; the same command again resumes.")],
    base: Annotated[str, typer.Option(help="Embedded name, folder or Hub repo.")] = "ffhq",
    adapter: Annotated[AdapterKind, typer.Option(help="How the change is stored.")] = AdapterKind.left,
    rank: Annotated[int | None, typer.Option(help="Of left; 0: one factor per weight.")] = None,
    preset: Annotated[Preset, typer.Option(help="few_images: for a CPU; paper: LFS-GAN.")] = Preset.few_images,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the factors.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Upload the adapter when done.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="Repo id; default: the folder's name.")] = None,
):
    """Teach a base a new look from about ten pictures."""
    with one_sentence():
        if rank is not None and adapter is not AdapterKind.left:
            raise ValueError(f"--rank is of --adapter left; {adapter.value} has none")
        try:
            from .training import lfs
            from .training.engine import TrainingDiverged
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fewshot_gan"):
                raise
            raise ImportError(
                f"training needs the {error.name} package, which is not installed: pip install 'fewshot_gan[train]'"
            ) from error
    argv = [f"--data={data}", f"--output_dir={out}", f"--base={base}"]
    argv += [f"--adapter={adapter.value}", f"--preset={preset.value}"]
    given = {
        "rank": rank,
        "max_train_steps": steps,
        "learning_rate": learning_rate,
        "train_batch_size": batch_size,
        "seed": seed,
        "hub_model_id": hub_model_id,
    }
    argv += [f"--{name}={value}" for name, value in given.items() if value is not None]
    argv += ["--push_to_hub"] if push_to_hub else []
    start = time.perf_counter()
    _quiet()
    with one_sentence(TrainingDiverged):
        lfs.run(lfs.parser().parse_args(argv))
    print(f"{out}  ({time.perf_counter() - start:.0f} s)")


# ------------------------------------------------------------------------------------------------------------ convert


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="StyleGAN2 .pkl or .pt, or a folder or wheel with MobileStyleGAN's IR.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
):
    """Turn a published checkpoint into a folder that `--base` takes."""
    start = time.perf_counter()
    with one_sentence():
        _refuse_existing(out)

        from .convert import convert_checkpoint
        from .pipeline import FewShotGAN

        networks = convert_checkpoint(src)
        pipe = FewShotGAN(networks["generator"], networks.get("discriminator"))
        _write_folder(out, pipe.save_pretrained)
        found = [f"{name} of {_numbers(network):,} numbers" for name, network in networks.items() if name in SAVED]
        resolution = networks["generator"].resolution
        print(f"{out}  ({resolution} px, {', '.join(found)}, {time.perf_counter() - start:.1f} s)")


def _numbers(network) -> int:
    return sum(t.numel() for t in network.state_dict().values())


# --------------------------------------------------------------------------------------------------------------- list


@app.command(name="list")
def list_embedded():
    """Show what ships inside the package and works offline."""
    with one_sentence():
        bases = {name: hub.ASSETS / "bases" / name for name in hub.embedded_bases()}
        print("bases" if bases else "bases: none")
        for name, folder in bases.items():
            parts = [
                f"{weights.parent.name} {_count(weights):,} numbers, {_size(weights)}"
                for weights in sorted(folder.glob("*/*.safetensors"))
            ]
            print(f"  {name}: {'; '.join(parts)}")
        adapters = hub.embedded_adapters()
        print("adapters" if adapters else "adapters: none")
        for name, folder in adapters.items():
            kind = json.loads((folder / "adapter_config.json").read_text())["adapter_type"]
            weights = folder / "adapter_model.safetensors"
            print(f"  {name} (for {folder.parent.name}): {kind}, {_count(weights):,} numbers, {_size(weights)}")
        datasets = hub.embedded_datasets()
        print("datasets" if datasets else "datasets: none")
        for name, folder in datasets.items():
            pictures = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES]
            print(f"  {name}: {len(pictures)} pictures, {_size(*pictures)}")


def _count(weights: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _size(*files: Path) -> str:
    size = sum(f.stat().st_size for f in files)
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


# ------------------------------------------------------------------------------------------- files, whole or not at all


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder; choose another, or remove it first")


def _write_folder(out: Path, write) -> None:
    """Let `write` fill a folder beside `out`, then rename it to `out`."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
        staged = Path(temp) / out.name
        staged.mkdir()
        write(staged)
        if out.is_dir():
            out.rmdir()
        os.replace(staged, out)


def _write_picture(out: Path, image) -> None:
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
        image.save(Path(temp) / out.name)
        os.replace(Path(temp) / out.name, out)


if __name__ == "__main__":
    app()
