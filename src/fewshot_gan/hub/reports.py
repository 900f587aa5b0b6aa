"""Reports of `fewshot-gan evaluate`: read, compared, and shown on cards as a table and as `model-index` of the Hub."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..utils.files import user_path
from ..utils.hashing import hash_tensors
from ..utils.json_files import read_json
from ..utils.text import in_short

REPORT = "evaluation.json"  # file name that `fewshot-gan evaluate` uses, in the folder of the weights
RESULTS = {  # name in a report → (name on a card, format)
    "frechet": ("Fréchet distance", "{:.1f}"),
    "kid": ("KID × 1e3", "{:.1f}"),
    "native_frechet": ("Fréchet distance of native crops", "{:.1f}"),
    "native_kid": ("KID of native crops × 1e3", "{:.1f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "density": ("density", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "diversity": ("diversity (distance of pairs)", "{:.2f}"),
}


_DRAWING = ("num_images", "seed", "truncation_psi", "resolution")  # settings on the Hub's page
_MANY = 10_000  # pictures; Fréchet distances of fewer are clearly biased
_CROPPING = ("crops", "crop_size", "crop_seed")


def report_lines(reports: Mapping[str, Mapping]) -> list[str]:
    """Return Markdown lines: a table of reports of one protocol, and a sentence on the protocol.

    Args:
        reports: heading of a column → report.

    Raises:
        ValueError: the protocols differ.
    """
    first, *others = reports.values()
    for other in others:
        compare(first, other)
    protocol, versions = first["protocol"], first["versions"]
    rows = [
        f"| {title} | {' | '.join(form.format(_scaled(name, r['results'][name])) for r in reports.values())} |"
        for name, (title, form) in RESULTS.items()
        if name in first["results"]
    ]
    native = ""
    if "crops" in protocol:
        native = f"; native crops: {protocol['crops']} of {protocol['crop_size']} px from each picture"
    bias = ""
    if min(protocol["num_images"], protocol["num_true"]) < _MANY:
        bias = " Fréchet distances of so few pictures are biased upwards and compare only with those of this table."
    return [
        f"| | {' | '.join(reports)} |",
        f"|---|{'---|' * len(reports)}",
        *rows,
        "",
        f"{protocol['num_images']:,} pictures (seed {protocol['seed']}, psi {protocol['truncation_psi']}) against "
        f"{protocol['num_true']:,} true ones (SHA-256 `{protocol['data_sha256'][:12]}`), {protocol['resolution']} px, "
        f"judged by {protocol['features']} (weights `{protocol['features_sha256'][:12]}`); KID of all pairs, k = "
        f"{protocol['neighbour']}{native}; torch {versions['torch']}.{bias}",
        "",
    ]


def _scaled(name: str, value: float) -> float:
    return value * 1e3 if name in ("kid", "native_kid") else value


_NONE, _TEXTS = type(None), (list, type(None))
_KINDS = {  # types of the fields that are checked, since a report may have been written by hand
    "protocol": {
        "num_images": int,
        "seed": int,
        "truncation_psi": (int, float),
        "neighbour": int,
        "crops": (int, _NONE),
        "dtype": (str, _NONE),
        "features": str,
        "pairs": (str, _NONE),
        "text": (str, _NONE),
    },
    "network": {"base_fingerprint": str, "adapters": dict},
    "results": {},
    "versions": {},
    "source": {"data": (str, _NONE), "base": (str, _NONE), "adapter": _TEXTS, "weight": _TEXTS},
}


def read_report(path) -> dict:
    """Read a report from its JSON file.

    Raises:
        ValueError: the file holds no report.
    """
    try:
        report = read_json(user_path(path))
        for part, known in _KINDS.items():
            table = report.get(part, {}) if part == "source" else report[part]
            if not isinstance(table, dict):
                raise TypeError(f"{part} is no table")
            for name, kinds in known.items():
                if not isinstance(value := table.get(name), kinds) or isinstance(value, bool):
                    raise TypeError(f"{name} of its {part} is {value!r}")
                if isinstance(value, list) and not all(isinstance(entry, str) for entry in value):
                    raise TypeError(f"{name} of its {part} is no list of texts")
        for name, value in report["results"].items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"{name} of its results is {value!r}, no number")
        for name, adapter in report["network"]["adapters"].items():
            if not isinstance(adapter, dict) or not isinstance(adapter.get("sha256"), str) or "weight" not in adapter:
                raise TypeError(f"its adapter {name} has no sha256 and weight")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no report of fewshot-gan evaluate ({in_short(error)})") from error
    return report


def report_of(mark: str | None, adapter, report, folder: Path) -> Mapping | None:
    """Return the report on some weights: the given one, or the one in their folder.

    Args:
        mark: fingerprint of the base.
        adapter: the only adapter that acted, at weight 1; None: the base alone.
        report: of `evaluation.evaluate`, or its file; None: `evaluation.json` in `folder`, if it is of these weights.
        folder: of the weights.

    Returns:
        The report; None if none is given and there is none in the folder.

    Raises:
        ValueError: the given report is invalid or of other weights.
    """
    try:
        checked = report if isinstance(report, Mapping) else read_report(folder / REPORT if report is None else report)
        if not _is_of(mark, adapter, checked):
            raise ValueError(f"the report is of other weights: {checked['network']}; evaluate these, or leave it out")
    except ValueError:
        if report is None:
            return None
        raise
    return checked


def _is_of(mark: str | None, adapter, report: Mapping) -> bool:
    """Return whether a report is of this base and this adapter alone."""
    drawn = report["network"].get("adapters")
    if report["network"].get("base_fingerprint") != mark or not isinstance(drawn, Mapping):
        return False
    wanted = [] if adapter is None else [(hash_tensors(adapter.state_dict(), adapter.config), 1.0)]
    return [(a.get("sha256"), a.get("weight")) for a in drawn.values() if isinstance(a, Mapping)] == wanted


def eval_results(report: Mapping) -> list:
    """Return `huggingface_hub.EvalResult`s of the results of a report that a card shows."""
    from huggingface_hub import EvalResult

    protocol, source = report["protocol"], report.get("source") or {}
    data = str(source.get("data") or f"pictures {protocol['data_sha256'][:12]}")
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_args={"num_images": protocol["num_true"], "sha256": protocol["data_sha256"]},
            metric_type=name,
            metric_name=f"{title.removesuffix(' × 1e3')}, judged by {protocol['features']}",
            metric_value=float(report["results"][name]),
            metric_args={key: protocol[key] for key in (*_DRAWING, *(_CROPPING if "native" in name else ()))},
        )
        for name, (title, _) in RESULTS.items()
        if math.isfinite(report["results"].get(name, math.nan))
    ]


def check_comparable(report: Mapping, other: Mapping, same_network: bool = False) -> None:
    """Refuse reports whose numbers do not compare; neither needs results.

    Args:
        report, other: of `evaluation.evaluate`. One without a `dtype` is of float32, as all were in older versions.
        same_network: whether base and adapters must be equal too.

    Raises:
        ValueError: the protocols or the networks differ; the message names the difference.
    """
    mine, theirs = ({"dtype": "float32"} | dict(x["protocol"]) for x in (report, other))
    apart = [
        f"{name} {mine.get(name, 'not given')!r} and {theirs.get(name, 'not given')!r}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name) and name != "features"  # a name of any kind; the hash counts
    ]
    if apart:
        raise ValueError(f"numbers of different protocols do not compare: {'; '.join(apart)}")
    for part in ("base_fingerprint", "adapters") if same_network else ():
        there, here = (_unnamed(x["network"][part]) for x in (report, other))
        if there != here:
            raise ValueError(f"the report is of another network: {part} {there} there, {here} here")


def compare(report: Mapping, other: Mapping) -> dict[str, tuple[float, float]]:
    """Return name → results of both reports.

    Raises:
        ValueError: their protocols differ, or `other` lacks results; the message names the difference.
    """
    check_comparable(report, other)
    if missing := sorted(report["results"].keys() - other["results"].keys()):
        raise ValueError(f"the other report lacks {', '.join(missing)}; make it again with this version")
    return {name: (value, other["results"][name]) for name, value in report["results"].items()}


def differences(report: Mapping, other: Mapping, tolerance: float = 1e-4) -> list[str]:
    """Return a sentence for each result of `other` that differs from `report`; an empty list if it is reproduced.

    Args:
        report, other: of one protocol and one network.
        tolerance: relative; absolute, a hundredth of it, since a KID may be near 0. Processors round differently.

    Raises:
        ValueError: the protocols or the networks differ.
    """
    check_comparable(report, other, same_network=True)
    return [
        f"{name} is {theirs:.6g} instead of {mine:.6g}"
        for name, (mine, theirs) in compare(report, other).items()
        if not math.isclose(mine, theirs, rel_tol=tolerance, abs_tol=tolerance / 100)
    ]


def _unnamed(adapters):
    """Return the hashes and weights of adapters without their names, which may differ between users."""
    if not isinstance(adapters, Mapping):
        return adapters
    return sorted((a["sha256"], json.dumps(a["weight"], sort_keys=True)) for a in adapters.values())
