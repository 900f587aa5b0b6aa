"""The protocols of the field, from one command: train the published methods, measure them alike, write a table.

`cdc10` is that of cross-domain correspondence (arXiv 2104.06820 §4), which later papers share: a StyleGAN2 of FFHQ at
256 px, ten pictures of a new domain, the Fréchet distance of 5,000 drawn pictures to the whole domain in Inception-v3
features, and the intra-cluster LPIPS of 1,000 drawn pictures around the ten.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from .. import metrics
from ..data.datasets import load_images
from ..data.images import to_bytes, to_floats
from ..features import FeatureNetwork, load_features
from ..hub import portable_name
from ..methods.cdc import CDCMethod
from ..pipeline import FewShotGAN
from ..pipeline_inputs import check_whole_number
from ..training.adapt import run
from ..training.config import make_run
from ..utils.files import replace_text
from ..utils.hashing import hash_tensors
from ..utils.json_files import read_json
from ..utils.random import check_seed
from ..version import __version__
from .evaluation import evaluate

LEAST = 4  # pictures, drawn and true, that can be measured: one more than the neighbours that `evaluate` looks at
FINETUNED = {**CDCMethod.published["paper"], "path_length_weight": 2.0}  # what CDC's own baselines were trained with


@dataclass(frozen=True)
class Row:
    """A row of the table: a method and the options of `make_run` that differ from its preset `paper`.

    Attributes:
        name: heading of the row.
        method: name in `catalogue.METHODS`.
        options: further options.
    """

    name: str
    method: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How methods are trained and measured.

    Attributes:
        rows: key → row.
        num_images: drawn pictures of the Fréchet distance.
        features: feature network of the Fréchet distance.
        num_diverse: drawn pictures of the intra-cluster distance.
        pairs: network of the intra-cluster distance.
        max_members: pictures that are compared in a cluster.
        truncation_psi: of all drawn pictures.
        resolution: of the base, in px.
        num_targets: training pictures.
    """

    rows: dict[str, Row]
    num_images: int = 5000
    features: str = "inception-v3"
    num_diverse: int = 1000
    pairs: str = "lpips-vgg"
    max_members: int = 50
    truncation_psi: float = 1.0
    resolution: int = 256
    num_targets: int = 10


PROTOCOLS = {
    "cdc10": Protocol(
        {
            "transfergan": Row("TransferGAN (1805.01677)", "finetune", FINETUNED),
            "freezed": Row("FreezeD (2002.10964)", "finetune", {**FINETUNED, "freeze_d": 4}),
            "ada": Row("ADA (2006.06676)", "finetune", {**FINETUNED, "augment": "ada"}),
            "cdc": Row("CDC (2104.06820)", "cdc", {}),
            "dcl": Row("DCL (2203.03190)", "cdc", {"diversity": "dcl"}),
            "delta_w": Row("Δw (2305.06671)", "finetune", {**FINETUNED, "adapter": "delta_w"}),
            "lfs": Row("LFS-GAN (2308.11917)", "lfs_gan", {}),
            "d3t": Row("D3T-GAN (2205.06032)", "d3t", FINETUNED),
        }
    )
}


def reproduce(
    name: str,
    base: str,
    target: str,
    out: Path,
    *,
    truth: str | None = None,
    methods: Iterable[str] = (),
    steps: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    say: Callable[[str], None] = print,
) -> dict:
    """Train and measure the methods of a protocol; the same call goes on where it stopped.

    Writes a folder for each method, `reproduction.json` and `table.md` into `out`.

    Args:
        name: of the protocol, a key of `PROTOCOLS`.
        base: converted network with its discriminator, a folder or repo id.
        target: training pictures, see `load_images`.
        out: folder.
        truth: 4 or more pictures of the whole domain; None: no Fréchet distance is measured. It may be added later:
            the same call with it measures what lacks the distance.
        methods: keys of the protocol's rows; empty: all.
        steps: training steps; None: as published.
        num_images: drawn pictures of the Fréchet distance, and at most of the intra-cluster distance, 4 or more; None:
            as published.
        seed: of training and of the drawn pictures.
        batch_size: drawn pictures in memory at once.
        say: called with a line about each step.

    Returns:
        The content of `reproduction.json`: "protocol", and "rows" by key with "results" and what they depend on.

    Raises:
        ValueError, OSError: an unknown protocol or method, a base or pictures that do not fit, too few pictures, or
            results in `out` that were made with other options.
        ImportError: a network that measures is not installed.
    """
    protocol = PROTOCOLS.get(name)
    if protocol is None:
        raise ValueError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    chosen = list(methods) or list(protocol.rows)
    for method in chosen:
        if method not in protocol.rows:
            raise ValueError(f"{name} has no method {method!r}; known: {', '.join(protocol.rows)}")
    num_images = protocol.num_images if num_images is None else num_images
    check_whole_number("num_images", num_images, LEAST)  # hours of training come before what they are needed for
    check_whole_number("batch_size", batch_size)
    settings = _settings(name, protocol, base, target, truth, steps, int(num_images), check_seed(seed))
    path, report = out / "reproduction.json", {"protocol": settings, "rows": {}, "version": __version__}
    if path.is_file():
        known = read_json(path)
        if changed := _changed(known.get("protocol", {}), settings):
            raise ValueError(
                f"{out} has results with another {', '.join(changed)}; use the same options to go on, or another folder"
            )
        report["rows"] = known.get("rows", {})
    for network in (*((protocol.features,) if truth is not None else ()), protocol.pairs):
        load_features(network)  # hours of training come after what is missing here
    for method in chosen:
        row, folder = protocol.rows[method], out / method
        say(f"{row.name}: training")
        options = {"preset": "paper", "seed": seed, "report_to": "none", **row.options}
        options |= {} if steps is None else {"max_train_steps": steps, "checkpointing_steps": max(1, steps // 4)}
        run(make_run(row.method, base=base, data=target, output_dir=str(folder), **options))
        pipe = FewShotGAN.from_pretrained(base).load_adapter(folder, "measured")
        sha256 = hash_tensors(pipe.bank.adapters["measured"].state_dict())
        there = report["rows"].get(method, {})
        if there.get("adapter_sha256") != sha256 or (truth is not None and "fid" not in there["results"]):
            say(f"{row.name}: measuring")
            results = measure(pipe, protocol, target, truth, settings, batch_size, out / "statistics")
            numbers = pipe.bank.adapters["measured"].num_values()
            done = {"name": row.name, "results": results, "numbers": numbers, "adapter_sha256": sha256}
            report["rows"][method] = {**done, "options": {key: str(value) for key, value in options.items()}}
            replace_text(path, json.dumps(report, indent=1) + "\n")
            replace_text(out / "table.md", table(report) + "\n")
    return report


def _settings(name, protocol: Protocol, base, target, truth, steps, num_images, seed) -> dict:
    """Return what the numbers depend on, checked."""
    pipe = FewShotGAN.from_pretrained(base)
    resolution = pipe.generator.resolution
    if pipe.discriminator is None:
        raise ValueError(f"{base} has no discriminator, which {name} starts from; convert a checkpoint that has one")
    if resolution != protocol.resolution:
        raise ValueError(f"{base} draws {resolution} px, and {name} is defined for {protocol.resolution} px")
    pictures = load_images(target, resolution)
    if len(pictures) != protocol.num_targets:
        raise ValueError(f"{target} has {len(pictures)} pictures, and {name} learns from {protocol.num_targets}")
    hashes = {"target": hashlib.sha256(pictures.numpy().tobytes()).hexdigest()}
    if truth is not None:
        whole = load_images(truth, resolution)
        if len(whole) < LEAST:
            raise ValueError(
                f"{truth} has {len(whole)} pictures; give {LEAST} or more of the whole domain, or no truth"
            )
        hashes["truth"] = hashlib.sha256(whole.numpy().tobytes()).hexdigest()
    return {
        "name": name,
        "base": portable_name(base),
        "base_fingerprint": pipe.bank.fingerprint(),
        "sha256": hashes,
        "steps": steps,
        "num_images": num_images,
        "num_diverse": min(num_images, protocol.num_diverse),
        "truncation_psi": protocol.truncation_psi,
        "seed": seed,
    }


def _changed(known: dict, settings: dict) -> list[str]:
    """Return the names of settings that differ from the recorded ones; a truth may come where none was."""
    there, here = ({**x, **x.get("sha256", {})} for x in (known, settings))
    names = [name for name in here if name not in ("sha256", "truth") and there.get(name) != here[name]]
    return names + ["truth"] * ("truth" in there and there["truth"] != here.get("truth"))


def measure(
    pipe: FewShotGAN, protocol: Protocol, target: str, truth: str | None, settings: dict, batch_size: int, cache: Path
) -> dict[str, float]:
    """Return the results of the pipeline's active adapter: `intra_lpips`, and `fid` if there is a truth.

    Args:
        pipe: base with its adapter.
        protocol: the protocol.
        target, truth: see `reproduce`.
        settings: with num_images, num_diverse, truncation_psi and seed.
        batch_size: drawn pictures in memory at once.
        cache: folder for the statistics of the truth.
    """
    drawn = {"seed": settings["seed"], "truncation_psi": settings["truncation_psi"], "batch_size": batch_size}
    references = to_floats(load_images(target, pipe.generator.resolution))
    pictures = [
        to_bytes(cast(torch.Tensor, part.images) * 2 - 1)
        for part in pipe.stream(settings["num_diverse"], output_type="pt", **drawn)
    ]
    network = load_features(protocol.pairs)
    results = {"intra_lpips": intra_lpips(torch.cat(pictures), references, network, protocol.max_members)}
    if truth is not None:
        report = evaluate(
            pipe,
            truth,
            num_images=settings["num_images"],
            features=protocol.features,
            crops=0,
            cache_dir=cache,
            **drawn,
        )
        results["fid"] = report["results"]["frechet"]
    return results


def intra_lpips(
    pictures: torch.Tensor, references: torch.Tensor, network: FeatureNetwork, max_members: int = 50
) -> float:
    """Return the intra-cluster distance around the references (arXiv 2104.06820), a cluster in memory at a time.

    Args:
        pictures: uint8 `[N, 3, R, R]`.
        references: `[K, 3, R, R]` in [-1, 1].
        network: its spatial vectors are compared, e.g. LPIPS.
        max_members: pictures, the first ones, that are compared in a cluster.
    """
    centres = metrics.spatial_embedding(references, network)
    nearest = torch.cat(
        [
            metrics.pairwise_distances(metrics.spatial_embedding(to_floats(part), network), centres).argmin(1)
            for part in pictures.split(16)
        ]
    )
    distances = []
    for cluster in range(len(references)):
        members = (nearest == cluster).nonzero()[:max_members, 0]
        if len(members) > 1:
            embedded = metrics.spatial_embedding(to_floats(pictures[members]), network)
            distances.append(metrics.mean_of_pairs(metrics.pairwise_distances(embedded)))
    return sum(distances) / len(distances) if distances else 0.0


def table(report: dict) -> str:
    """Return the rows as a Markdown table, with what was measured below it."""
    settings = report["protocol"]
    lines = ["| method | FID | intra-LPIPS | numbers |", "|---|---|---|---|"]
    for row in report["rows"].values():
        results = row["results"]
        fid = f"{results['fid']:.2f}" if "fid" in results else "not measured"
        lines.append(f"| {row['name']} | {fid} | {results['intra_lpips']:.3f} | {row['numbers']:,} |")
    steps = "as many steps as published" if settings["steps"] is None else f"{settings['steps']:,} steps"
    return "\n".join(
        [
            *lines,
            "",
            f"Protocol {settings['name']}, base {settings['base']} ({settings['base_fingerprint']}), {steps}, "
            f"{settings['num_images']:,} and {settings['num_diverse']:,} drawn pictures, seed {settings['seed']}.",
        ]
    )
