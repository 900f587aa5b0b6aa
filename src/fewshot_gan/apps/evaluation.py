"""Numbers that can be trusted: what a pipeline draws against true pictures, with the protocol that they depend on.

A report is a dict for a JSON file: `protocol` (what is compared with what, and how), `network` (what drew), `results`,
`versions`. Reports of different protocols are not compared, and one that was published can be computed again.
"""

import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from .. import metrics
from ..data.datasets import load_images
from ..data.images import to_floats
from ..features import FeatureNetwork, load_features
from ..features.efficientnet import EFFICIENTNETS
from ..features.encoders import CLIP_DEFAULT, Encoder, load_encoder, templated
from ..features.lpips import LPIPS
from ..hub import fetch_model, is_repo_id, portable_name
from ..hub.reports import compare as compare  # whoever evaluates reads and compares reports
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

KEPT = 10_000  # feature vectors held of each side, for what needs pairs or logits
FEW = 100  # true pictures up to which each is taken for a cluster of its own
DIVERSE = 200  # first pictures that diversity is measured of
SUBSETS = {"num_subsets": 100, "seed": 2020}  # of KID; of 1000 pictures each, or all there are
SQUARED = "centre crop, Pillow Lanczos"  # see training.data.load_images


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
    batch_size: int = 8,
    cache_dir=None,
) -> dict:
    """Draw pictures and compare them with true ones.

    Pictures are drawn and described a batch at a time; what is held does not grow with `num_images` beyond 10,000
    feature vectors. Processes started by torchrun or accelerate launch share the drawing.

    Args:
        pipe: with its acting adapters.
        data: folder, embedded set or `datasets` id of true pictures; cropped and resized to the generator's size.
        num_images: pictures `pipe(num_images, seed=seed)` to draw, 2 or more. Fréchet distances of fewer than some
            thousands are biased upwards: compare only equal numbers.
        seed, truncation_psi, batch_size: as in `FewShotGAN.__call__`.
        features: the judge: a network of `features.load_features`, e.g. "inception-v3" or a vision model of
            transformers as a local folder or Hub repo id. Of CLIP its embeddings take the place of features.
        pairs: what measures distances of pairs: an EfficientNet-Lite, or "lpips-vgg" or "lpips-alex"; None: the judge
            itself where it is an EfficientNet-Lite, Lite0 beside others.
        text: name of the domain, for CLIP's quality.
        neighbour: k of precision, recall, density and coverage.
        cache_dir: folder in which the true pictures' statistics are kept by their hash; None: nothing is kept.

    Returns:
        The report. `results`: `frechet` (arXiv 1706.08500), `kid` (1801.01401, of all pairs) with `kid_subsets_mean`
        and `_std`, `precision`, `recall`, `density`, `coverage` (1904.06991, 2002.09797), `diversity` (mean LPIPS-like
        distance of pairs); with up to 100 true pictures also `intra_cluster` (2104.06820) and
        `balanced_intra_cluster` (2308.11917); of CLIP `clip_diversity` and with a text `clip_quality` (2210.08884); of
        Inception-v3 `inception_score` and `inception_score_std` of ten parts of the first 10,000 (1606.03498).

    Raises:
        FileNotFoundError, ValueError: no such data, too few pictures, an unknown network, a text without CLIP.
        ImportError: the network's package is not installed.
    """
    if num_images < 2:
        raise ValueError(f"num_images={num_images}: give 2 or more, thousands for a Fréchet distance that compares")
    seed = check_seed(seed)
    judge = _load_judge(expanded(features), pairs, text, pipe._execution_device)
    true = load_images(data, pipe.generator.resolution)
    if not 1 <= neighbour < min(num_images, len(true)):
        raise ValueError(f"neighbour={neighbour} of {num_images} drawn and {len(true)} true pictures: give fewer")
    psi = pipe.config.truncation_psi if truncation_psi is None else truncation_psi
    protocol = {
        "num_images": num_images,
        "num_true": len(true),
        "data_sha256": hashlib.sha256(true.numpy().tobytes()).hexdigest(),
        "resolution": pipe.generator.resolution,
        "resize": SQUARED,
        **judge.protocol,
        "kept": KEPT,
        "neighbour": neighbour,
        "kid": SUBSETS | {"size": min(1000, num_images, len(true))},
        "seed": seed,
        "truncation_psi": psi,
        "noise_mode": "const",
    }
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
    real = _true_statistics(true, judge, protocol, cache_dir)
    drawn = _drawn_statistics(pipe, judge, num_images, seed, psi, batch_size)
    report["results"] = _results(drawn, real, true, judge, protocol)
    return json.loads(json.dumps(report))  # as it will be read


class _Judge(NamedTuple):
    pooled: Callable[[torch.Tensor], torch.Tensor]  # [B, 3, R, R] → [B, D]
    eyes: FeatureNetwork  # for distances of pairs
    encoder: Encoder | None
    logits: Callable[[torch.Tensor], torch.Tensor] | None  # [B, D] → [B, C]
    protocol: dict


def _load_judge(name: str, pairs: str | None, text: str | None, device) -> _Judge:
    encoder = logits = None
    if _is_clip(name):
        encoder = load_encoder(name, device)
        pooled = lambda images: encoder.image(images.to(device))  # noqa: E731
        sha256, resize = encoder.identity, f"torch bicubic, antialiased, shorter side to {encoder.size} px, centre crop"
    elif text is not None:
        raise ValueError(f"text {text!r} is for CLIP, and {name!r} is none; let it judge, e.g. {CLIP_DEFAULT!r}")
    elif name in LPIPS:
        raise ValueError(f"features={name!r} compares pairs and nothing else; give it as pairs")
    else:
        network = load_features(name, device)
        pooled, logits = network.pooled, getattr(network, "logits", None)
        sha256, resize = network.sha256, network.resize
    known = {"features": portable_name(name), "features_sha256": sha256, "features_resize": resize}
    usual = name if name in EFFICIENTNETS else next(iter(EFFICIENTNETS))
    pairs = pairs or usual
    if pairs not in (*EFFICIENTNETS, *LPIPS):
        raise ValueError(f"pairs={pairs!r}: what compares pairs is one of {', '.join([*EFFICIENTNETS, *LPIPS])}")
    eyes = load_features(pairs, device)
    if pairs != name:
        known["pairs_sha256"] = eyes.sha256
    if pairs != usual:
        known |= {"pairs": pairs, "pairs_resize": eyes.spatial_resize}
    return _Judge(pooled, eyes, encoder, logits, known | ({} if text is None else {"text": text}))


def _is_clip(name: str) -> bool:
    if not (Path(name).is_dir() or is_repo_id(name)):
        return False
    folder = fetch_model(name, "judge", "give a local folder, or use 'efficientnet-lite0', which needs no network")
    try:
        return read_json(folder / "config.json")["model_type"] == "clip"
    except (OSError, ValueError, KeyError, TypeError):
        return False  # whoever loads it says what is wrong


class _Statistics:
    """What is known of a set: moments of all pictures, features of the first `KEPT`, the first few pictures."""

    def __init__(self):
        self.moments, self.rows, self.pictures = metrics.FeatureMoments(), [], []

    def update(self, pictures: torch.Tensor, judge: _Judge, start: int) -> None:
        """Take in pictures `start`, `start` + 1, … `[B, 3, R, R]` in [-1, 1]."""
        features = judge.pooled(pictures).cpu()
        self.moments.update(features)
        if start < KEPT:
            self.rows.append(features[: KEPT - start])
        if start < DIVERSE:
            self.pictures.append(pictures[: DIVERSE - start].cpu())

    def merge(self, other: "_Statistics") -> None:
        """Take in what follows."""
        self.moments.merge(other.moments)
        self.rows += other.rows
        self.pictures += other.pictures


def _drawn_statistics(pipe, judge, num_images, seed, psi, batch_size) -> _Statistics:
    state = launched()
    rank, count = (state.process_index, state.num_processes) if state else (0, 1)
    first, stop = num_images * rank // count, num_images * (rank + 1) // count
    found, start = _Statistics(), first
    options = {"skip": first, "seed": seed, "batch_size": batch_size, "output_type": "pt"}
    if stop > first:
        for output in pipe.stream(stop - first, truncation_psi=psi, **options):
            found.update(output.images * 2 - 1, judge, start)
            start += len(output.images)
    if not state:
        return found
    parts = [None] * count
    torch.distributed.all_gather_object(parts, found)
    whole = _Statistics()
    for part in parts:
        whole.merge(part)
    return whole


def _true_statistics(true: torch.Tensor, judge, protocol, cache_dir) -> _Statistics:
    found = _Statistics()
    known = {name: protocol[name] for name in ("data_sha256", "features_sha256", "features_resize", "kept")}
    path = None
    if cache_dir is not None:
        path = user_path(cache_dir) / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                stored = read_tensors(path)
                found.moments = metrics.FeatureMoments.of(int(stored["count"]), stored["mean"], stored["covariance"])
                found.rows = [stored["rows"]]
                return found
            except (ValueError, OSError, KeyError):
                pass  # cut short by somebody else's hand: computed again, and written anew
    for start in range(0, len(true), 64):
        found.update(to_floats(true[start : start + 64]), judge, start)
    if path is not None:
        m = found.moments
        tensors = {"count": torch.tensor(m.count), "mean": m.mean, "covariance": m.covariance}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors["rows"] = torch.cat(found.rows)
        replace_file(path, lambda temp: save_file(tensors, temp))
    return found


def _results(drawn: _Statistics, real: _Statistics, true: torch.Tensor, judge, protocol) -> dict[str, float]:
    a, b = torch.cat(drawn.rows), torch.cat(real.rows)
    mean, std = metrics.kernel_distance_of_subsets(a, b, **protocol["kid"])
    results = {
        "frechet": metrics.frechet_distance(drawn.moments, real.moments),
        "kid": metrics.kernel_distance(a, b),
        "kid_subsets_mean": mean,
        "kid_subsets_std": std,
        **metrics.precision_recall(b, a, protocol["neighbour"]),
    }
    codes = metrics.spatial_embedding(torch.cat(drawn.pictures), judge.eyes)
    apart = metrics.pairwise_distances(codes)
    results["diversity"] = metrics.mean_of_pairs(apart)
    if len(true) <= FEW:
        clusters = metrics.pairwise_distances(codes, metrics.spatial_embedding(to_floats(true), judge.eyes)), apart
        results["intra_cluster"] = metrics.intra_cluster_distance(*clusters)
        results["balanced_intra_cluster"] = metrics.balanced_intra_cluster_distance(*clusters)
    if judge.logits is not None:
        parts = min(10, len(a))
        results["inception_score"], results["inception_score_std"] = metrics.inception_score(judge.logits(a), parts)
    if judge.encoder is not None:
        results["clip_diversity"] = metrics.clip_diversity(a)
        if text := protocol.get("text"):
            results["clip_quality"] = metrics.clip_quality(a, templated(judge.encoder, [text])[0].cpu())
    return results


# ----------------------------------------------------------------------------------------------- reports beside another
