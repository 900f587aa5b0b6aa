"""`fewshot-gan`: generate, export, evaluate, invert, adapt, demo, convert, push, info, list; light to import."""

import glob
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ... import hub
from ...data import grids
from ...hub import cards
from ...training.interrupt import interruptible
from ...utils.errors import DEBUG, needing
from ...utils.files import finish_replacing, replace_file, replace_text, write_folder
from ...utils.json_files import read_json
from ...utils.memory import keep_freed_memory
from ...utils.safetensors_files import read_header, read_tensors
from ...utils.text import plain
from ...version import __version__
from .options import (
    AdapterKind,
    Adapters,
    Base,
    BatchSize,
    ExportFormat,
    FileFormat,
    MethodName,
    NoiseMode,
    OneSentence,
    Preset,
    Psi,
    Space,
    Threads,
    Weights,
    count,
    number,
    parse_weight,
    path_argument,
    path_option,
    seed_option,
)

SAVED = ("generator", "discriminator")

app = typer.Typer(
    cls=OneSentence,
    help="Few-shot GAN adaptation: pictures from a base, and from what a few images taught it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool):
    if wanted:
        print(f"fewshot_gan {__version__}")
        raise typer.Exit()


def _begin(num_threads: int | None):
    """Threads to compute with, and no progress bar for loading two files; those of long runs stay."""
    from diffusers.utils import logging

    from ...utils.threads import set_threads

    set_threads(num_threads)
    logging.disable_progress_bar()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback of an error; {DEBUG}=1 does the same.")
    ] = False,
):
    keep_freed_memory()


# ----------------------------------------------------------------------------------------------------------- generate


@app.command()
def generate(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="One per adapter, in order; default 1. By depth: coarse:0,middle:0.5,fine:1 or 4:0,32:1."),
    ] = None,
    num_images: Annotated[int, count("How many pictures.")] = 4,
    seed: Annotated[int, seed_option("One seed, one set of pictures.")] = 0,
    psi: Psi = None,
    noise_mode: Annotated[NoiseMode, typer.Option(help="Per-pixel noise.")] = NoiseMode.const,
    class_label: Annotated[
        list[int] | None,
        number("Of class-conditional bases: one for all; repeat for one per picture.", 0, 2**31 - 1),
    ] = None,
    batch_size: BatchSize = 8,
    latents: Annotated[Path | None, path_option("File of fewshot-gan invert, instead of random ones.")] = None,
    out: Annotated[Path | None, path_option("The grid's file, or with --separate and --format the folder.")] = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="One file per picture instead of a grid; all of them or none.")
    ] = False,
    file_format: Annotated[
        FileFormat | None,
        typer.Option(
            "--format", help="A folder of any number of pictures instead of a grid; the same command again resumes."
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        count("Pictures per file of webdataset (tar) and parquet; default 1024."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="A row of the base, then one per adapter.")] = False,
    interpolate: Annotated[
        int | None,
        number("Pictures per row, from one adapter to the next; with one, from the base.", 2, 1000),
    ] = None,
    num_threads: Threads = None,
):
    """Write pictures of a base, with or without adapters."""
    start = time.perf_counter()
    names, weights = _named(adapter, weight)
    if interpolate is not None and (not 1 <= len(names) <= 2 or compare or separate or weight or file_format):
        raise ValueError(
            "--interpolate takes one --adapter or two, and neither --weight, --compare, --separate nor --format; "
            f"got {len(names)} adapters"
        )
    if separate and file_format:
        raise ValueError("--separate writes a folder of png files in one go, --format in any number; give one")
    if shard_size is not None and not file_format:
        raise ValueError("--shard-size is of --format webdataset and parquet; give one of these, or leave it out")
    out = out or Path("faces" if separate or file_format else "faces.png")
    if separate:
        _refuse_existing(out)
    elif not file_format:
        grids.check_grid(out, 1, 1, 1)

    from ...pipeline import BASE
    from .. import generation

    _begin(num_threads)
    processes = generation.launched()
    if processes and not file_format:
        raise ValueError("several processes write a folder together with --format; else start a single one")
    pipe, loaded = _pipeline(base, names, weights)
    options = {"seed": seed, "truncation_psi": psi, "noise_mode": noise_mode.value, "batch_size": batch_size}
    if class_label:
        options["class_labels"] = class_label[0] if len(class_label) == 1 else class_label
    if latents is not None:
        options["latents"] = _read_latents(latents)
        num_images = len(options["latents"])
    looks = [{}, *({n: w} for n, w in loaded.items())] if compare else [loaded]
    columns = interpolate or (num_images if compare else math.ceil(math.sqrt(num_images)))
    if not (separate or file_format):
        grids.check_grid(out, num_images * (interpolate or len(looks)), columns, pipe.generator.resolution)
    if interpolate is not None:
        first, last = [BASE, *loaded][-2:]
        images = pipe.interpolate(first, last, interpolate, num_images=num_images, **options).images
        replace_file(out, grids.make_grid(images, columns).save)
        print(f"{out}  ({len(images)} pictures, {time.perf_counter() - start:.1f} s)")
        return
    if file_format or separate:
        options["looks"] = {f"{next(iter(look), 'base')}-" if compare else "": look for look in looks}
    if file_format:
        pipe.to(generation.device())
        options |= {"file_format": file_format.value, "shard_size": shard_size}
        generation.write_pictures(pipe, out, num_images, **options)
    elif separate:

        def write(folder):
            generation.write_pictures(pipe, folder, num_images, **options)
            (folder / generation.MANIFEST).unlink()  # whole or not there: nothing to go on from

        write_folder(out, write)
    else:
        rows = []
        for look in looks:
            pipe.set_adapters(look)
            rows += pipe(num_images, **options).images
        replace_file(out, grids.make_grid(rows, columns).save)
    if processes:
        processes.destroy_process_group()
    if not processes or processes.is_main_process:
        print(f"{out}  ({num_images * len(looks)} pictures, {time.perf_counter() - start:.1f} s)")


def _named(adapter: list[str] | None, weight: list[str] | None) -> tuple[list[str], list]:
    """What --adapter and --weight name: sources, and a weight for each."""
    names, weights = list(adapter or []), [parse_weight(text) for text in weight or []]
    if weights and len(weights) != len(names):
        raise ValueError(f"{len(names)} adapters but {len(weights)} weights; give one --weight per --adapter")
    return names, weights or [1.0] * len(names)


def _pipeline(base: str, names: list[str], weights: list):
    """The base with its adapters loaded, and their weights by the names they have there."""
    from ...adapters.io import name_of
    from ...pipeline import BASE, FewShotGAN

    pipe, loaded = FewShotGAN.from_pretrained(base), {}
    for i, (source, weight) in enumerate(zip(names, weights, strict=True)):
        name = name_of(source)
        name = name if name not in (*loaded, BASE, "", "base") else f"{name}-{i + 1}"
        pipe.load_adapter(source, name)
        loaded[name] = weight
    return pipe, loaded


# ------------------------------------------------------------------------------------------------------------- export


@app.command()
def export(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Weights = None,
    psi: Psi = None,
    file_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Default: by the ending of --out, else openvino.")
    ] = None,
    out: Annotated[
        Path | None,
        path_option("NAME.onnx, or NAME.xml, which has NAME.bin beside it; default: generator."),
    ] = None,
    num_threads: Threads = None,
):
    """Write a base and its adapters as one network for ONNX Runtime or OpenVINO, checked against torch."""
    start = time.perf_counter()
    names, weights = _named(adapter, weight)

    from ..export import SUFFIX, export_generator

    ending = SUFFIX[(file_format or ExportFormat.openvino).value]
    out = out or Path(f"generator{ending}")
    if file_format and out.suffix != ending:
        raise ValueError(f"--out {out} is no file of --format {file_format.value}; give a name ending in {ending}")
    _begin(num_threads)
    pipe, loaded = _pipeline(base, names, weights)
    pipe.set_adapters(loaded)
    error = export_generator(pipe, out, truncation_psi=psi)
    print(f"{out}  ({pipe.generator.resolution} px, within {error:.0e} of torch, {time.perf_counter() - start:.1f} s)")


# ----------------------------------------------------------------------------------------------------------- evaluate


@app.command()
def evaluate(
    data: Annotated[
        str | None, typer.Argument(help="True pictures: folder, zip archive, embedded set, or datasets id.")
    ] = None,
    *,
    base: Annotated[str | None, typer.Option(help="Embedded name, folder or Hub repo; default: ffhq.")] = None,
    adapter: Adapters = None,
    weight: Weights = None,
    num_images: Annotated[int | None, count("Pictures to draw; default 1000.")] = None,
    seed: Annotated[int | None, seed_option("Of the pictures; default 0.")] = None,
    psi: Psi = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="What judges: efficientnet-lite0 (default) or -lite2, inception-v3, or CLIP or any vision model of "
            "transformers: folder or repo."
        ),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="What measures distances of pairs: an EfficientNet, lpips-vgg or lpips-alex.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Name of the domain, for CLIP's quality.")] = None,
    neighbour: Annotated[
        int | None,
        number("Which neighbour precision, recall, density and coverage look at; default 3.", 1, 10**6),
    ] = None,
    batch_size: BatchSize = 8,
    protocol: Annotated[
        Path | None,
        path_option("A report: compute it again, and say whether it is equal. What is not given is as there."),
    ] = None,
    beside: Annotated[Path | None, path_option("A report to print beside, if its protocol is the same.")] = None,
    cache_dir: Annotated[Path | None, path_option("Keep the true pictures' statistics here.")] = None,
    out: Annotated[Path | None, path_option("The report; default: evaluation.json, with --protocol none.")] = None,
    num_threads: Threads = None,
):
    """Compare what a base and its adapters draw with true pictures: Fréchet, KID, precision, recall and more."""
    start = time.perf_counter()
    with needing("evaluation", "train"):
        from .. import evaluation
    from ..generation import device, launched

    published, other = (None if path is None else evaluation.read_report(path) for path in (protocol, beside))
    source = {"data": data, "base": base, "adapter": adapter, "weight": weight}
    asked = {"num_images": num_images, "seed": seed, "truncation_psi": psi}
    asked |= {"features": features, "pairs": pairs, "text": text, "neighbour": neighbour}
    if published is not None:
        there = published.get("source", {})
        source = {name: there.get(name) if value is None else value for name, value in source.items()}
        kept = published["protocol"]
        asked = {name: kept.get(name) if value is None else value for name, value in asked.items()}
    if source["data"] is None:
        raise ValueError("give the true pictures: a folder, an embedded set or a datasets id")
    out = out or (Path("evaluation.json") if published is None else None)
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; give a file name like evaluation.json")
    names, weights = _named(source["adapter"], source["weight"])
    _begin(num_threads)
    pipe, loaded = _pipeline(source["base"] or "ffhq", names, weights)
    pipe.set_adapters(loaded)
    pipe.to(device())
    asked = {name: value for name, value in asked.items() if value is not None}
    folder = hub.embedded_datasets().get(source["data"], source["data"])
    report = evaluation.evaluate(pipe, folder, batch_size=batch_size, cache_dir=cache_dir, **asked)
    report["source"] = {
        "data": hub.portable_name(source["data"]),
        "base": hub.portable_name(source["base"] or "ffhq"),
        "adapter": [hub.portable_name(name) for name in names],
        "weight": source["weight"],
    }
    state = launched()
    if state and not state.is_main_process:
        return
    beside_it = {} if other is None else evaluation.compare(report, other)
    apart = [] if published is None else evaluation.differences(published, report)
    if out is not None:
        text = json.dumps(report, indent=1) + "\n"
        replace_text(out, text)
    for name, value in report["results"].items():
        print(f"{name:24}{value:12.5g}" + (f"{beside_it[name][1]:12.5g}" if beside_it else ""))
    if out is not None:
        print(f"{out}  ({time.perf_counter() - start:.1f} s)")
    if published is not None:
        print(f"not equal to {protocol}: {plain('; '.join(apart))}" if apart else f"equal to {protocol}")
        raise typer.Exit(1 if apart else 0)


# ------------------------------------------------------------------------------------------------------------- invert


@app.command()
def invert(
    photos: Annotated[list[Path], path_argument("Pictures; cropped to the centre square.")],
    base: Base = "ffhq",
    space: Annotated[Space, typer.Option(help="w keeps to what the base knows, w+ comes closer.")] = Space.w,
    steps: Annotated[int, count("Of the optimisation.")] = 150,
    seed: Annotated[int, seed_option("Of its noise.")] = 0,
    out: Annotated[
        Path,
        path_option("File of the latents; a picture of the result, NAME-sheet.png, beside it."),
    ] = "latents.safetensors",
    num_threads: Threads = None,
):
    """Find latents of your own photos, for generate --latents."""
    start = time.perf_counter()
    if out.is_dir() or out.suffix != ".safetensors":
        raise ValueError(f"--out {out} is no file of latents; give a name ending in .safetensors")
    sheet = out.with_name(f"{out.stem}-sheet.png")
    if sheet.resolve() in [photo.resolve() for photo in photos]:
        raise ValueError(f"{sheet}, where the result is shown, is one of the photos; give another --out")

    from safetensors.torch import save_file

    from ...pipeline import FewShotGAN

    _begin(num_threads)
    pipe = FewShotGAN.from_pretrained(base)
    given = [_squared(path, pipe.generator.resolution) for path in photos]
    found = pipe.invert(given, space=space.value, steps=steps, seed=seed)
    replace_file(out, lambda path: save_file({"latents": found.latents.contiguous()}, path))
    drawn = pipe(latents=found.latents).images
    replace_file(sheet, grids.make_grid([*given, *drawn], len(drawn)).save)
    quality = ", ".join(f"{path.name} {value:.1f} dB" for path, value in zip(photos, found.psnr, strict=True))
    print(f"{out}  ({quality}; {time.perf_counter() - start:.0f} s)")


def _squared(path: Path, size: int):
    """The photo as it is inverted."""
    from PIL import Image

    from ...data.images import read_image, square

    return Image.fromarray(square(read_image(path), size).permute(1, 2, 0).numpy())


def _read_latents(path: Path):
    from ...models.latents import check_latents

    try:
        names = sorted(read_header(path).tensors)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no latents ({error}); fewshot-gan invert writes such files") from error
    if names != ["latents"]:
        raise ValueError(f"{path} holds {plain(', '.join(names))[:200] or 'nothing'}, not latents")
    return check_latents(read_tensors(path)["latents"], name=f"the latents in {path}")


# -------------------------------------------------------------------------------------------------------------- adapt


@app.command()
@interruptible()  # Ctrl-C and SIGTERM end it with a checkpoint, exit code 130 or 143
def adapt(
    data: Annotated[
        str | None, typer.Argument(help="Folder or zip archive of about ten pictures, embedded set, or datasets id.")
    ] = None,
    *,
    out: Annotated[Path, path_option("Folder of the adapter; the same command again resumes.")],
    text: Annotated[
        str | None, typer.Option(help="The look in words instead, e.g. 'anime painting'; needs CLIP.")
    ] = None,
    base: Base = "ffhq",
    adapter: Annotated[AdapterKind | None, typer.Option(help="How it is stored; default: the method's.")] = None,
    rank: Annotated[int | None, number("Of left; 0: one factor per weight.", 0, 10_000)] = None,
    method: Annotated[
        MethodName | None, typer.Option(help="Paper whose losses teach it; default lfs_gan, for words hyperdomainnet.")
    ] = None,
    preset: Annotated[Preset | None, typer.Option(help="few_images: for a CPU; others: as published.")] = None,
    steps: Annotated[int | None, count("Training steps.")] = None,
    learning_rate: Annotated[float | None, number("Of the factors.", 1e-12, 1000, "1e-12 to 1000, e.g. 0.005")] = None,
    batch_size: Annotated[int | None, count("Pictures per step.")] = None,
    real_zoom: Annotated[
        float | None,
        number(
            "Enlarge pictures up to this at random, if framed more widely than the base's.", 1, 16, "1 to 16, e.g. 1.5"
        ),
    ] = None,
    seed: Annotated[int | None, seed_option("Of everything random.")] = None,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Upload the adapter when done.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="Repo id; default: the folder's name.")] = None,
    num_threads: Threads = None,
):
    """Teach a base a new look from about ten pictures, or from words."""
    with needing("training", "train"):
        from ...training import adapt as adaptation
    argv = [f"--output_dir={out}", f"--base={base}"]
    method = method or (MethodName.hyperdomainnet if text else MethodName.lfs_gan)
    if (data is None) == (text is None):
        raise ValueError("a look is shown by pictures or named by words: give a folder of about ten, or --text")
    if text is not None and method is not MethodName.hyperdomainnet:
        raise ValueError(f"--method {method.value} learns from pictures; --text needs hyperdomainnet")
    if preset is not None and preset.value not in (known := adaptation.METHODS[method.value].presets):
        raise ValueError(f"--method {method.value} has no preset {preset.value!r}; known: {', '.join(known)}")
    if real_zoom is not None and not adaptation.METHODS[method.value].objective.uses_images:
        raise ValueError(f"--method {method.value} looks at whole pictures, never enlarged; leave out --real-zoom")
    given = {
        "data": data,
        "text": text,
        "preset": preset and preset.value,
        "adapter": adapter and adapter.value,
        "rank": rank,
        "max_train_steps": steps,
        "learning_rate": learning_rate,
        "train_batch_size": batch_size,
        "real_zoom": real_zoom,
        "seed": seed,
        "hub_model_id": hub_model_id,
        "num_threads": num_threads,
    }
    argv += [f"--{name}={value}" for name, value in given.items() if value is not None]
    argv += ["--push_to_hub"] if push_to_hub else []
    start = time.perf_counter()
    _begin(num_threads)
    adaptation.run(adaptation.parser(method.value).parse_args(argv))
    print(f"{out}  ({time.perf_counter() - start:.0f} s)")


# --------------------------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    base: Base = "ffhq",
    adapter: Annotated[
        list[str] | None, typer.Option(help="A look beside the embedded ones: folder or Hub repo; repeat for more.")
    ] = None,
    port: Annotated[int, number("Of the page.", 1, 65535)] = 7860,
    host: Annotated[
        str, typer.Option(help="127.0.0.1: this machine alone; 0.0.0.0: whoever can reach it.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which others reach the page, besides this machine's own; repeat for more."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Serve the page without opening it.")] = False,
    num_threads: Threads = None,
):
    """Open a page in the browser: faces in many looks, your photo, a look of your own."""
    from ..demo import serve

    _begin(num_threads)
    serve(base, adapter or [], host, port, not no_browser, allowed_host or [])


# ------------------------------------------------------------------------------------------------------------ convert


@app.command()
def convert(
    src: Annotated[
        Path,
        path_argument("StyleGAN2 .pkl or .pt, SNGAN, BigGAN, GP-GAN .pth, or MobileStyleGAN's IR."),
    ],
    out: Annotated[Path, path_argument("Folder to write, new or empty.")],
    base: Annotated[
        str | None, typer.Option(help="Of an adapter of HyperDomainNet, LFS-GAN, AdaFM or GAN Memory: its base.")
    ] = None,
):
    """Turn a published checkpoint into a folder that `--base` takes, or with --base an adapter into one of ours."""
    start = time.perf_counter()
    _refuse_existing(out)

    if base is not None:
        from ...convert.adapters import write_adapter

        write_folder(out, lambda folder: write_adapter(src, base, folder, out.absolute()))
        print(f"{out}  (an adapter of {base}, {time.perf_counter() - start:.1f} s)")
        return
    from ...convert import convert_checkpoint
    from ...pipeline import FewShotGAN

    networks = convert_checkpoint(src)
    if "generator" not in networks:
        raise ValueError(f"{src} holds a discriminator alone; give the file or folder that has the generator too")
    pipe = FewShotGAN(networks["generator"], networks.get("discriminator"))
    write_folder(out, pipe.save_pretrained)
    found = [
        f"{name} of {cards.count_numbers(network):,} numbers" for name, network in networks.items() if name in SAVED
    ]
    resolution = networks["generator"].resolution
    print(f"{out}  ({resolution} px, {', '.join(found)}, {time.perf_counter() - start:.1f} s)")


# --------------------------------------------------------------------------------------------------------------- push


@app.command()
def push(
    folder: Annotated[Path, path_argument("An adapter, a folder of several, or a base.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub, made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repo.")] = False,
    token: Annotated[str | None, typer.Option(help="With write access; default: that of `hf auth login`.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, made if it is not there.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload with fewshot_gan",
):
    """Share an adapter or a base on the Hub, with a model card."""
    folder = finish_replacing(folder)
    patterns = _check_pushable(folder)
    if not (folder / "README.md").is_file():
        _write_card(folder, repo_id)
    from ...hub.reports import numbered_card

    options = {"token": token, "private": private or None, "revision": revision, "commit_message": message}
    instead = _portable(folder) | numbered_card(folder)
    print(hub.push_folder(folder, repo_id, allow_patterns=patterns, instead=instead, **options))


def _check_pushable(folder: Path) -> list[str]:
    """Patterns of the files that belong to what `folder` holds, once they are known to be whole."""
    found = []
    if (index := folder / "model_index.json").is_file():
        listed = {name: value for name, value in read_json(index).items() if isinstance(value, list) and value[0]}
        parts = [name for name in listed if not name.startswith("_")]
        patterns = ["model_index.json", "README.md", "images/*.png", "pipeline.py"]
        patterns += [f"{name}/{files}" for name in parts for files in ("*.json", "*.safetensors", "fewshot_gan.py")]
        weights = {name: list((folder / name).glob("*.safetensors")) for name in parts}
    elif found := _adapters_in(folder):
        patterns = ["README.md", *cards.PUBLISHED] if folder in found else ["README.md"]
        patterns += [f"{glob.escape(f.name)}/{p}" for f in found if f != folder for p in cards.PUBLISHED]
        weights = {f.name: list(f.glob("adapter_model*.safetensors")) for f in found}
    else:
        raise FileNotFoundError(
            f"nothing to push in {folder}: it is no adapter (adapter_config.json), no folder of adapters, and no base "
            "(model_index.json)"
        )
    for adapter in found:
        _read_config(adapter)
    for name, files in weights.items():
        if not files:
            raise FileNotFoundError(f"{name} in {folder} has no weights (.safetensors); save it again")
        for file in files:
            if not read_header(file).tensors:
                raise ValueError(f"{file} is damaged or cut short: it has no tensors; fetch or save the file again")
    return patterns


def _portable(folder: Path) -> dict[str, bytes]:
    """Configs of adapters that call their base by a folder of this machine, as they may be read elsewhere."""
    instead = {}
    for path in (f / "adapter_config.json" for f in _adapters_in(folder)):
        config = read_json(path)
        if (base := cards.portable_base(config)) != config.get("base_model_name_or_path"):
            portable = json.dumps({**config, "base_model_name_or_path": base}, indent=1) + "\n"
            instead[path.relative_to(folder).as_posix()] = portable.encode()
    return instead


def _write_card(folder: Path, repo_id: str) -> None:
    name, repo_id = repo_id.rsplit("/", 1)[-1], repo_id if "/" in repo_id else None
    if (folder / "model_index.json").is_file():
        from ...pipeline import FewShotGAN

        _begin(None)
        cards.write_base_card(FewShotGAN.from_pretrained(folder), folder, name, repo_id=repo_id)
    elif (folder / "adapter_config.json").is_file():
        from ...adapters import read_adapter

        cards.write_adapter_card(read_adapter(folder), folder, name, repo_id=repo_id)
    else:
        cards.write_collection_card(folder, name, repo_id=repo_id)


def _adapters_in(folder: Path) -> list[Path]:
    """The folder itself if it is an adapter, else its subfolders that are."""
    if (folder / "adapter_config.json").is_file():
        return [folder]
    return list(hub.adapter_folders(folder).values())


# --------------------------------------------------------------------------------------------------------------- info


@app.command()
def info(
    adapter: Annotated[str, typer.Argument(help="Embedded name, folder or Hub repo.")],
    subfolder: Annotated[str | None, typer.Option(help="Folder inside it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="For a private repo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object per adapter.")] = False,
):
    """Show what an adapter is: its type, size, base and the layers it changes."""
    folder = hub.resolve_folder(adapter, kind="adapter", subfolder=subfolder, revision=revision, token=token)
    found = _adapters_in(folder)
    if not found:
        raise FileNotFoundError(f"{adapter} is no adapter: neither it nor a subfolder has an adapter_config.json")
    known = [_facts(f, Path(subfolder or adapter).name if f == folder else f.name) for f in found]
    print(json.dumps(known, indent=1) if as_json else "\n".join(map(_describe, known)))


def _facts(folder: Path, name: str) -> dict:
    """What the config and the headers of the weights of one adapter say."""
    config = _read_config(folder)
    files = sorted(folder.glob("adapter_model*.safetensors"), key=lambda file: len(file.name))  # no variant comes first
    if not files:
        raise FileNotFoundError(f"{folder} is not an adapter folder: it has no adapter_model.safetensors")
    return {
        "name": name,
        "adapter_type": config.pop("adapter_type"),
        "values": _count(files[0]),
        "bytes": {file.name: file.stat().st_size for file in files},
        "base_model_name_or_path": config.pop("base_model_name_or_path", None),
        "base_fingerprint": config.pop("base_fingerprint", None),
        "layers": dict(Counter(spec["role"] for spec in config.pop("target_modules").values())),
        "training": config.pop("training", None) or {},
        "config": config,
    }


def _describe(facts: dict) -> str:
    def listed(settings: dict) -> str:
        shown = {k: v for k, v in sorted(settings.items()) if isinstance(v, str | int | float)}  # nested ones: --json
        return plain(", ".join(f"{key} {value}" for key, value in shown.items())) or "none"

    sizes = list(facts["bytes"].values())
    others = "".join(f"; {name} {size:,} bytes" for name, size in list(facts["bytes"].items())[1:])
    base, mark = facts["base_model_name_or_path"] or "not recorded", facts["base_fingerprint"] or "not recorded"
    roles = ", ".join(f"{number} {role}" for role, number in facts["layers"].items())
    return "\n".join(
        [
            plain(f"{facts['name']}: {facts['adapter_type']}, {facts['values']:,} numbers, {sizes[0]:,} bytes{others}"),
            f"  base: {plain(base)}, fingerprint {plain(mark)}",
            f"  layers: {sum(facts['layers'].values())} ({plain(roles)})",
            f"  config: {listed(facts['config'])}",
            f"  training: {listed(facts['training'])}",
        ]
    )


# --------------------------------------------------------------------------------------------------------------- list


@app.command(name="list")
def list_embedded():
    """Show what ships inside the package and works offline."""
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
        kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["adapter_type"]
        weights = folder / "adapter_model.safetensors"
        print(f"  {name} (for {folder.parent.name}): {kind}, {_count(weights):,} numbers, {_size(weights)}")
    datasets = hub.embedded_datasets()
    print("datasets" if datasets else "datasets: none")
    for name, folder in datasets.items():
        pictures = list(folder.glob("*.png"))
        print(f"  {name}: {len(pictures)} pictures, {_size(*pictures)}")


def _read_config(folder: Path) -> dict:
    """The config of an adapter, of which the parts that are shown are known to be there."""
    path = folder / "adapter_config.json"
    config = read_json(path)
    layers = config.get("target_modules")
    if (
        not isinstance(config.get("adapter_type"), str)
        or not isinstance(layers, dict)
        or not all(isinstance(spec, dict) and isinstance(spec.get("role"), str) for spec in layers.values())
        or not isinstance(config.get("training") or {}, dict)
    ):
        raise ValueError(f"{path} is damaged or no adapter config; fetch or save the file again")
    return config


def _count(weights: Path) -> int:
    return read_header(weights).numel


def _size(*files: Path) -> str:
    size = sum(f.stat().st_size for f in files)
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


# ------------------------------------------------------------------------------------------- files, whole or not at all


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder; choose another, or remove it first")
