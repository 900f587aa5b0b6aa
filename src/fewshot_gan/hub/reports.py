"""What a report of `fewshot-gan evaluate` becomes on a card: a table for people, and `model-index` for the Hub."""

import math
from collections.abc import Mapping
from pathlib import Path

from ..utils.files import user_path
from ..utils.json_files import read_json
from ..utils.text import in_short

REPORT = "evaluation.json"  # what `fewshot-gan evaluate` calls it, beside the weights
RESULTS = {  # of a report: what a card calls it, and how it is written
    "frechet": ("Fréchet distance", "{:.1f}"),
    "kid": ("KID × 1e3", "{:.1f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "density": ("density", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "diversity": ("diversity (distance of pairs)", "{:.2f}"),
}


def report_lines(reports: Mapping[str, Mapping]) -> list[str]:
    """A table of reports of `fewshot-gan evaluate`, of one protocol, and what that is.

    Args:
        reports: heading of a column → report.

    Raises:
        ValueError: the protocols differ.
    """
    first, *others = reports.values()
    if others:
        from ..apps.evaluation import compare

        for other in others:
            compare(first, other)
    protocol, versions = first["protocol"], first["versions"]
    rows = [
        f"| {title} | {' | '.join(form.format(_scaled(name, r['results'][name])) for r in reports.values())} |"
        for name, (title, form) in RESULTS.items()
        if name in first["results"]
    ]
    return [
        f"| | {' | '.join(reports)} |",
        f"|---|{'---|' * len(reports)}",
        *rows,
        "",
        f"{protocol['num_images']:,} pictures (seed {protocol['seed']}, psi {protocol['truncation_psi']}) against "
        f"{protocol['num_true']:,} true ones (SHA-256 `{protocol['data_sha256'][:12]}`), {protocol['resolution']} px, "
        f"judged by {protocol['features']} (weights `{protocol['features_sha256'][:12]}`); KID of all pairs, k = "
        f"{protocol['neighbour']}; torch {versions['torch']} on a CPU. Fréchet distances of so few pictures are biased "
        "upwards and compare only with those of this table.",
        "",
    ]


def _scaled(name: str, value: float) -> float:
    return value * 1e3 if name == "kid" else value


_NONE, _TEXTS = type(None), (list, type(None))
_KINDS = {  # of what a report says, and somebody may have written by hand
    "protocol": {
        "num_images": int,
        "seed": int,
        "truncation_psi": (int, float),
        "neighbour": int,
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
    """A report from its JSON file.

    Raises:
        ValueError: the file holds none.
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
    """The report on these weights: the one that is given, or that lies beside them.

    Args:
        mark: fingerprint of the base.
        adapter: that must act alone; None: the base itself.
        report: of `evaluation.evaluate`, or its file; None: `evaluation.json` in `folder`, if it is of these weights.
        folder: of the weights.

    Raises:
        ValueError: the report that is given is none, or of other weights.
    """
    try:
        found = report if isinstance(report, Mapping) else read_report(folder / REPORT if report is None else report)
        if not _is_of(mark, adapter, found):
            raise ValueError(f"the report is of other weights: {found['network']}; evaluate these, or leave it out")
    except ValueError:
        if report is None:
            return None
        raise
    return found


def _is_of(mark: str | None, adapter, report: Mapping) -> bool:
    from ..adapters.base import digest

    drawn = report["network"].get("adapters")
    if report["network"].get("base_fingerprint") != mark or not isinstance(drawn, Mapping):
        return False
    wanted = [] if adapter is None else [(digest(adapter.state_dict(), adapter.config), 1.0)]
    return [(a.get("sha256"), a.get("weight")) for a in drawn.values() if isinstance(a, Mapping)] == wanted


def eval_results(report: Mapping) -> list:
    """`huggingface_hub.EvalResult` of each number of a report that a card shows."""
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
            metric_args={key: protocol[key] for key in ("num_images", "seed", "truncation_psi", "resolution")},
        )
        for name, (title, _) in RESULTS.items()
        if math.isfinite(report["results"].get(name, math.nan))
    ]


def numbered_card(folder: Path) -> dict[str, bytes]:
    """`README.md` of an adapter or base with the numbers of the report that lies beside it in its front matter.

    Returns:
        Empty where there is no such report, or the card has numbers of its own.
    """
    from huggingface_hub import ModelCard

    if not (folder / REPORT).is_file():
        return {}
    card = ModelCard.load(folder / "README.md")
    if (folder / "model_index.json").is_file():
        from ..adapters import fingerprint
        from ..pipeline import FewShotGAN

        report = report_of(fingerprint(FewShotGAN.from_pretrained(folder).generator), None, None, folder)
    elif (folder / "adapter_config.json").is_file():
        from ..adapters import read_adapter

        adapter = read_adapter(folder)
        report = report_of(adapter.config.base_fingerprint, adapter, None, folder)
    else:
        return {}
    if report is None or card.data.eval_results:
        return {}
    card.data.model_name = card.data.model_name or folder.absolute().name
    card.data.eval_results = eval_results(report)
    return {"README.md": str(card).encode()}
