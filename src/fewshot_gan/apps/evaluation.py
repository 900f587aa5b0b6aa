"""Evaluation: metrics of a pipeline's pictures against real ones, in reports that name all settings they depend on.

A report is a dict for a JSON file: `protocol` (settings of the measurement), `network` (base and adapters), `results`
and `versions`. Reports of different protocols are never compared, and a published report can be computed again.

Shape legend: B batch, R side of a picture, D size of a feature vector, C number of classes.
"""

import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file

from .. import metrics
from ..data.datasets import load_images
from ..data.images import to_floats
from ..features import FeatureNetwork, load_features
from ..features.efficientnet import EFFICIENTNETS
from ..features.encoders import CLIP_DEFAULT, Encoder, load_encoder, templated
from ..features.lpips import LPIPS
from ..hub import data_source, fetch_model, is_repo_id, portable_name
from ..hub.reports import check_comparable as check_comparable  # part of this module's interface, as the next three
from ..hub.reports import compare as compare
from ..hub.reports import differences as differences
from ..hub.reports import read_report as read_report
from ..pipeline import FewShotGAN
from ..utils.files import expanded, replace_file, user_path
from ..utils.hashing import hash_tensors
from ..utils.json_files import read_json
from ..utils.random import check_seed
from ..utils.safetensors_files import read_tensors
from ..version import __version__
from .generation import launched

KEPT = 10_000  # feature vectors held of each set, for metrics that need pairs or logits
FEW = 100  # largest number of real pictures for the intra-cluster distances, where each picture is a cluster
DIVERSE = 200  # number of pictures, the first ones, from which diversity is measured
SUBSETS = {"num_subsets": 100, "seed": 2020}  # of KID; with 1000 pictures each, or all if there are fewer
SQUARED = "centre crop, Pillow Lanczos"  # how `load_images` makes squares


def evaluate(
    pipe: FewShotGAN,
    data,
    *,
    num_images: int = 1000,
    seed: int = 0,
    truncation_psi: float | None = None,
    features: str = "efficientnet-lite0",
    pairs: str | None = None,
    text: str | None = None,
    neighbour: int = 3,
    crops: int = metrics.CROPS,
    batch_size: int = 8,
    cache_dir=None,
    check: Callable[[dict], object] | None = None,
) -> dict:
    """Draw pictures and compare them with real ones.

    Pictures are drawn and measured a batch at a time; memory does not grow with `num_images` beyond 10,000 feature
    vectors. Processes started by torchrun or accelerate launch share the drawing.

    Args:
        pipe: the pipeline; its active adapters act.
        data: folder, embedded set or `datasets` id of real pictures; cropped and resized to the generator's size.
        num_images: number of pictures `pipe(num_images, seed=seed)` to draw, 2 or more, of all classes in turn if there
            are any. Fréchet distances of fewer than some thousands are biased upwards: compare only equal numbers.
        seed, truncation_psi, batch_size: as in `FewShotGAN.__call__`.
        features: the judge, i.e. the feature network: one of `features.load_features`, e.g. "inception-v3", or a vision
            model of transformers as a local folder or Hub repo id. For CLIP, the features are its embeddings.
        pairs: network that measures distances of pairs: an EfficientNet-Lite, "lpips-vgg" or "lpips-alex". None: the
            judge if it is an EfficientNet-Lite, else Lite0.
        text: name of the domain, not blank, for the quality measured by CLIP.
        neighbour: k of precision, recall, density and coverage.
        crops: number of crops of 256 px at full size from each picture, drawn and real, for the native metrics (see
            `metrics.crops`). 0: none. Pictures of 256 px and below have none.
        cache_dir: folder for the statistics of the real pictures, by their hash; None: they are not cached.
        check: called with the report, still without `results`, before the first picture is drawn; what it raises ends
            the evaluation, see `check_comparable`.

    Returns:
        The report. `results`: `frechet` (arXiv 1706.08500), `kid` (1801.01401, over all pairs) with `kid_subsets_mean`
        and `kid_subsets_std`, `precision`, `recall`, `density`, `coverage` (1904.06991, 2002.09797), `diversity` (mean
        LPIPS-like distance of pairs). Up to 100 real pictures also: `intra_cluster` (2104.06820) and
        `balanced_intra_cluster` (2308.11917). With CLIP: `clip_diversity`, and with a text `clip_quality` (2210.08884).
        Above 256 px: `native_kid` and `native_frechet`, the distances of native crops, unless `crops` is 0.
        With Inception-v3: `inception_score` and `inception_score_std` over ten parts of the first 10,000 (1606.03498).

    Raises:
        FileNotFoundError, ValueError: there is no such data, there are too few pictures, a number is none or out of
            range, a network is unknown, or a text is blank or too long or given without CLIP.
        ImportError: the network's package is not installed.
    """
    counts = {
        "num_images": (num_images, 2, "give 2 or more, thousands for a Fréchet distance that compares"),
        "neighbour": (neighbour, 1, "give a whole number, 1 or more, typically 3"),
        "crops": (crops, 0, f"give 0 for no native metrics, or 1 or more, typically {metrics.CROPS}"),
    }
    for name, (value, least, advice) in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: {advice}")
    num_images, neighbour, crops = (int(value) for value, *_ in counts.values())  # JSON takes no numbers of NumPy
    pipe.check_inputs(num_images, batch_size, truncation_psi=truncation_psi)
    psi = pipe.config.truncation_psi if truncation_psi is None else truncation_psi
    seed = check_seed(seed)
    judge = _load_judge(expanded(features), pairs, text, pipe._execution_device)
    real = load_images(data_source(data), pipe.generator.resolution)
    if neighbour >= min(num_images, len(real)):
        raise ValueError(f"neighbour={neighbour} of {num_images} drawn and {len(real)} true pictures: give fewer")
    protocol = {
        "num_images": num_images,
        "num_true": len(real),
        "data_sha256": hashlib.sha256(real.numpy().tobytes()).hexdigest(),
        "resolution": pipe.generator.resolution,
        "dtype": str(pipe.generator.dtype).removeprefix("torch."),
        "resize": SQUARED,
        **judge.protocol,
        "kept": KEPT,
        "neighbour": neighbour,
        "kid": SUBSETS | {"size": min(1000, num_images, len(real))},
        "seed": seed,
        "truncation_psi": float(psi),
        "noise_mode": "const",
    }
    if crops and pipe.generator.resolution > metrics.CROP_SIZE:
        protocol |= {"crops": crops, "crop_size": metrics.CROP_SIZE, "crop_seed": metrics.CROP_SEED}
    adapters = {name: (weight, pipe.bank.adapters[name]) for name, weight in pipe.bank.current().items()}
    report = {
        "protocol": protocol,
        "network": {
            "base": portable_name(pipe.base_name),
            "base_fingerprint": pipe.bank.fingerprint(),
            "adapters": {
                name: {"weight": weight, "sha256": hash_tensors(adapter.state_dict(), adapter.config)}
                for name, (weight, adapter) in adapters.items()
            },
        },
        "versions": {"fewshot_gan": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "pillow")},
    }
    if check is not None:
        check(json.loads(json.dumps(report)))
    real_statistics = _real_statistics(real, judge, protocol, cache_dir)
    drawn_statistics = _drawn_statistics(pipe, judge, protocol, batch_size)
    report["results"] = _results(drawn_statistics, real_statistics, real, judge, protocol)
    return json.loads(json.dumps(report))  # with the types that reading the file gives


class _Judge(NamedTuple):
    """The networks that measure.

    Attributes:
        pooled: pictures `[B, 3, R, R]` in [-1, 1] → features `[B, D]`.
        pair_network: measures distances of pairs.
        encoder: CLIP, if it is the judge.
        prompts: CLIP's embeddings `[P, D]` of the text in its templates, if there is a text.
        logits: features `[B, D]` → logits `[B, C]`, if the judge classifies.
        protocol: the settings of the report's protocol that say which networks these are.
    """

    pooled: Callable[[torch.Tensor], torch.Tensor]
    pair_network: FeatureNetwork
    encoder: Encoder | None
    prompts: torch.Tensor | None
    logits: Callable[[torch.Tensor], torch.Tensor] | None
    protocol: dict


def _load_judge(name: str, pairs: str | None, text: str | None, device) -> _Judge:
    """Load the networks that `features` and `pairs` of `evaluate` name."""
    encoder = prompts = logits = None
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise ValueError(f"text={text!r}: name the look in words, like 'pencil drawing', or leave it out")
    if _is_clip(name):
        encoder = clip = load_encoder(name, device)
        prompts = None if text is None else templated(clip, [text])[0].cpu()  # a text that is too long is refused here

        def pooled(images: torch.Tensor) -> torch.Tensor:
            return clip.image(images.to(device))

        sha256, resize = clip.identity, f"torch bicubic, antialiased, shorter side to {clip.size} px, centre crop"
    elif text is not None:
        raise ValueError(f"text {text!r} is for CLIP, and {name!r} is none; let it judge, e.g. {CLIP_DEFAULT!r}")
    elif name in LPIPS:
        raise ValueError(f"features={name!r} compares pairs and nothing else; give it as pairs")
    else:
        network = load_features(name, device)
        pooled, logits = network.pooled, getattr(network, "logits", None)
        sha256, resize = network.sha256, network.resize
    protocol = {"features": portable_name(name), "features_sha256": sha256, "features_resize": resize}
    default_pairs = name if name in EFFICIENTNETS else next(iter(EFFICIENTNETS))
    pairs = pairs or default_pairs
    if pairs not in (*EFFICIENTNETS, *LPIPS):
        raise ValueError(f"pairs={pairs!r}: what compares pairs is one of {', '.join([*EFFICIENTNETS, *LPIPS])}")
    pair_network = load_features(pairs, device)
    if pairs != name:
        protocol["pairs_sha256"] = pair_network.sha256
    if pairs != default_pairs:
        protocol |= {"pairs": pairs, "pairs_resize": pair_network.spatial_resize}
    if text is not None:
        protocol["text"] = text
    return _Judge(pooled, pair_network, encoder, prompts, logits, protocol)


def _is_clip(name: str) -> bool:
    """Return whether a judge's name is the folder or repo of a CLIP model."""
    if not (Path(name).is_dir() or is_repo_id(name)):
        return False
    folder = fetch_model(name, "judge", "give a local folder, or use 'efficientnet-lite0', which needs no network")
    try:
        return read_json(folder / "config.json")["model_type"] == "clip"
    except (OSError, ValueError, KeyError, TypeError):
        return False  # loading it as a vision model gives the error message


class _Statistics:
    """Statistics of a set of pictures, updated batch by batch.

    Attributes:
        moments: of the features of all pictures.
        rows: features `[B, D]` of the first `KEPT` pictures, one tensor per batch.
        pictures: the first `DIVERSE` pictures, one tensor per batch.
        native_moments: of the features of all native crops.
        native_rows: features `[B, n, D]` of the n native crops of the first `KEPT` pictures, one tensor per batch.

    Args:
        crops: number n of native crops of each picture; 0: none.
    """

    def __init__(self, crops: int = 0):
        self.crops = crops
        self.moments = metrics.FeatureMoments()
        self.rows: list[torch.Tensor] = []
        self.pictures: list[torch.Tensor] = []
        self.native_moments = metrics.FeatureMoments()
        self.native_rows: list[torch.Tensor] = []

    def update(self, pictures: torch.Tensor, judge: _Judge, start: int) -> None:
        """Add pictures.

        Args:
            pictures: `[B, 3, R, R]` in [-1, 1].
            judge: computes their features.
            start: number of the first one in the set.
        """
        features = judge.pooled(pictures).cpu()
        self.moments.update(features)
        if start < KEPT:
            self.rows.append(features[: KEPT - start])
        if start < DIVERSE:
            self.pictures.append(pictures[: DIVERSE - start].cpu())
        if self.crops:
            size = metrics.CROP_SIZE
            places = metrics.crop_places(len(pictures), pictures.shape[-1], self.crops, size, skip=start)
            features = judge.pooled(metrics.native_crops(pictures, places, size)).cpu()
            self.native_moments.update(features)
            if start < KEPT:
                self.native_rows.append(features.unflatten(0, (-1, self.crops))[: KEPT - start])

    def merge(self, other: "_Statistics") -> None:
        """Add the statistics of the pictures that follow in the set."""
        self.moments.merge(other.moments)
        self.rows += other.rows
        self.pictures += other.pictures
        self.native_moments.merge(other.native_moments)
        self.native_rows += other.native_rows


def _drawn_statistics(pipe: FewShotGAN, judge: _Judge, protocol: dict, batch_size: int) -> _Statistics:
    """Return the statistics of drawn pictures; each process draws a share of them."""
    state = launched()
    rank, count = (state.process_index, state.num_processes) if state else (0, 1)
    num_images, psi, crops = protocol["num_images"], protocol["truncation_psi"], protocol.get("crops", 0)
    first, stop = num_images * rank // count, num_images * (rank + 1) // count
    own, start = _Statistics(crops), first
    options: dict[str, Any] = {"skip": first, "seed": protocol["seed"], "batch_size": batch_size, "output_type": "pt"}
    if (labels := pipe.some_labels(num_images)) is not None:
        options["class_labels"] = labels[first:stop]
    if stop > first:
        for output in pipe.stream(stop - first, truncation_psi=psi, **options):
            pictures = cast(torch.Tensor, output.images)  # of the output type "pt"
            own.update(pictures * 2 - 1, judge, start)
            start += len(pictures)
    if not state:
        return own
    parts: list[Any] = [None] * count
    torch.distributed.all_gather_object(parts, own)
    total = _Statistics(crops)
    for part in parts:
        total.merge(part)
    return total


def _real_statistics(real: torch.Tensor, judge: _Judge, protocol: dict, cache_dir) -> _Statistics:
    """Return the statistics of the real pictures uint8 `[N, 3, R, R]`, from the cache if they are in it."""
    statistics = _Statistics(protocol.get("crops", 0))
    key = {name: protocol[name] for name in ("data_sha256", "features_sha256", "features_resize", "kept")}
    key |= {name: protocol[name] for name in ("crops", "crop_size", "crop_seed") if name in protocol}
    path = None
    if cache_dir is not None:
        path = user_path(cache_dir) / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                stored = read_tensors(path)
                statistics.moments, statistics.rows = _stored(stored, "")
                if statistics.crops:
                    statistics.native_moments, statistics.native_rows = _stored(stored, "native_")
                return statistics
            except (ValueError, OSError, KeyError):
                pass  # a damaged file: the statistics are computed and written again
    for start in range(0, len(real), 64):
        statistics.update(to_floats(real[start : start + 64]), judge, start)
    if path is not None:
        tensors = _to_store(statistics.moments, statistics.rows, "")
        if statistics.crops:
            tensors |= _to_store(statistics.native_moments, statistics.native_rows, "native_")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temp: save_file(tensors, temp))
    return statistics


def _to_store(moments: metrics.FeatureMoments, rows: list[torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    tensors = {"count": torch.tensor(moments.count), "mean": moments.mean, "covariance": moments.covariance}
    return {prefix + name: tensor for name, tensor in (tensors | {"rows": torch.cat(rows)}).items()}


def _stored(tensors: dict[str, torch.Tensor], prefix: str) -> tuple[metrics.FeatureMoments, list[torch.Tensor]]:
    count, mean, covariance, rows = (tensors[prefix + name] for name in ("count", "mean", "covariance", "rows"))
    return metrics.FeatureMoments.of(int(count), mean, covariance), [rows]


def _results(
    drawn: _Statistics, real: _Statistics, real_pictures: torch.Tensor, judge: _Judge, protocol: dict
) -> dict[str, float]:
    """Return the metrics, see `evaluate`."""
    drawn_features, real_features = torch.cat(drawn.rows), torch.cat(real.rows)
    mean, std = metrics.kernel_distance_of_subsets(drawn_features, real_features, **protocol["kid"])
    results = {
        "frechet": metrics.frechet_distance(drawn.moments, real.moments),
        "kid": metrics.kernel_distance(drawn_features, real_features),
        "kid_subsets_mean": mean,
        "kid_subsets_std": std,
        **metrics.precision_recall(real_features, drawn_features, protocol["neighbour"]),
    }
    if drawn.crops:
        results["native_frechet"] = metrics.frechet_distance(drawn.native_moments, real.native_moments)
        native = torch.cat(drawn.native_rows), torch.cat(real.native_rows)
        results["native_kid"] = metrics.crop_kernel_distance(*native)
    embeddings = metrics.spatial_embedding(torch.cat(drawn.pictures), judge.pair_network)
    distances = metrics.pairwise_distances(embeddings)
    results["diversity"] = metrics.mean_of_pairs(distances)
    if len(real_pictures) <= FEW:
        real_embeddings = metrics.spatial_embedding(to_floats(real_pictures), judge.pair_network)
        clusters = metrics.pairwise_distances(embeddings, real_embeddings), distances
        results["intra_cluster"] = metrics.intra_cluster_distance(*clusters)
        results["balanced_intra_cluster"] = metrics.balanced_intra_cluster_distance(*clusters)
    if judge.logits is not None:
        score, score_std = metrics.inception_score(judge.logits(drawn_features), min(10, len(drawn_features)))
        results["inception_score"], results["inception_score_std"] = score, score_std
    if judge.encoder is not None:
        results["clip_diversity"] = metrics.clip_diversity(drawn_features)
        if judge.prompts is not None:
            results["clip_quality"] = metrics.clip_quality(drawn_features, judge.prompts)
    return results
