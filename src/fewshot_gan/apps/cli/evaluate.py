"""`fewshot-gan evaluate`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from ... import hub
from ...utils.errors import needing
from ...utils.files import replace_text
from ...utils.text import plain
from .options import Adapters, BatchSize, Psi, Threads, Weights, count, number, path_option, seed_option
from .root import app, begin
from .sources import load_pipeline, named_looks


@app.command()
def evaluate(
    data: Annotated[
        str | None, typer.Argument(help="True pictures: folder, zip archive, embedded set, or datasets id.")
    ] = None,
    *,
    base: Annotated[str | None, typer.Option(help="Base: embedded name, folder or Hub repo; default ffhq.")] = None,
    adapter: Adapters = None,
    weight: Weights = None,
    num_images: Annotated[int | None, count("Pictures to draw; default 1000.")] = None,
    seed: Annotated[int | None, seed_option("Seed of the pictures; default 0.")] = None,
    psi: Psi = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature network: efficientnet-lite0 (default), efficientnet-lite2, inception-v3, or a folder or "
            "repo of CLIP or of any vision model of transformers."
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="Network that measures distances of pairs: an EfficientNet, lpips-vgg or lpips-alex."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Name of the look, for CLIP's quality score.")] = None,
    neighbour: Annotated[
        int | None,
        number("Number of the neighbour that precision, recall, density and coverage use; default 3.", 1, 10**6),
    ] = None,
    crops: Annotated[
        int | None,
        number("Crops of 256 px at full size, from each picture, for native metrics; default 2; 0: none.", 0, 100),
    ] = None,
    batch_size: BatchSize = 8,
    protocol: Annotated[
        Path | None,
        path_option(
            "Compute this report again and say whether it is equal; options that are not given are taken from it."
        ),
    ] = None,
    beside: Annotated[
        Path | None, path_option("Print this report's numbers beside; its protocol must be the same.")
    ] = None,
    cache_dir: Annotated[Path | None, path_option("Keep the statistics of the true pictures in this folder.")] = None,
    out: Annotated[
        Path | None, path_option("File of the report; default evaluation.json, and none with --protocol.")
    ] = None,
    num_threads: Threads = None,
):
    """Compare drawn pictures with true ones: Fréchet distance, KID, precision, recall and more."""
    start = time.perf_counter()
    with needing("evaluation", "train"):
        from .. import evaluation
    from ..generation import device, launched

    published, other = (None if path is None else evaluation.read_report(path) for path in (protocol, beside))
    source = {"data": data, "base": base, "adapter": adapter, "weight": weight}
    asked = {"num_images": num_images, "seed": seed, "truncation_psi": psi}
    asked |= {"features": features, "pairs": pairs, "text": text, "neighbour": neighbour}
    asked["crops"] = crops
    if published is not None:
        there = dict(published.get("source", {}))
        if there.get("base") in hub.embedded_bases():  # it may have had another name when the report was made
            known = hub.embedded_base_of(published["network"]["base_fingerprint"])
            there["base"] = known or there["base"]
        source = {name: there.get(name) if value is None else value for name, value in source.items()}
        kept = {"crops": 0} | published["protocol"]  # without crops, also in reports of older versions
        asked = {name: kept.get(name) if value is None else value for name, value in asked.items()}
    if source["data"] is None:
        raise ValueError("give the true pictures: a folder, an embedded set or a datasets id")
    out = out or (Path("evaluation.json") if published is None else None)
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; give a file name like evaluation.json")
    if out is not None and (file := next((p for p in out.parents if p.exists() and not p.is_dir()), None)):
        raise ValueError(f"--out {out} lies below {file}, which is a file; give a name in a folder")
    names, weights = named_looks(source["adapter"], source["weight"])
    begin(num_threads)
    pipe, _ = load_pipeline(source["base"] or "ffhq", names, weights)
    pipe.to(device())
    asked = {name: value for name, value in asked.items() if value is not None}

    def check(report) -> None:  # before hours of drawing
        if other is not None:
            evaluation.check_comparable(report, other)
        if published is not None:
            evaluation.check_comparable(published, report, same_network=True)

    report = evaluation.evaluate(pipe, source["data"], batch_size=batch_size, cache_dir=cache_dir, check=check, **asked)
    report["source"] = {
        "data": hub.portable_name(source["data"]),
        "base": hub.portable_name(source["base"] or "ffhq"),
        "adapter": [hub.portable_name(name) for name in names],
        "weight": source["weight"],
    }
    state = launched()
    if state and not state.is_main_process:
        return
    if out is not None:  # first: results that the others lack are no reason to lose these
        replace_text(out, json.dumps(report, indent=1) + "\n")
    beside_it = {} if other is None else evaluation.compare(report, other)
    apart = [] if published is None else evaluation.differences(published, report)
    for name, value in report["results"].items():
        print(f"{name:24}{value:12.5g}" + (f"{beside_it[name][1]:12.5g}" if beside_it else ""))
    if out is not None:
        print(f"{out}  ({time.perf_counter() - start:.1f} s)")
    if published is not None:
        print(f"not equal to {protocol}: {plain('; '.join(apart))}" if apart else f"equal to {protocol}")
        raise typer.Exit(1 if apart else 0)
