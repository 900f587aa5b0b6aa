"""State dicts in what a training saved: found under every wrapper and prefix, recognised by their tensors' names.

`{"state_dict": …}` and `{"params_ema": …}` are wrappers; `module.` (several GPUs) and `decoder.` (the generator inside
a larger network) are prefixes.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .report import ConversionError

logger = logging.getLogger(__name__)

MAX_DEPTH, MAX_NAMES = 5, 1_000_000  # of dicts in dicts that are looked into
WRAPPERS = {"module", "_orig_mod"}  # parts of a prefix that say how a network was run, not what it is
NO_NETWORK = ("optim", "sched")  # parts of the names of what a training keeps beside its networks


class StateDict(NamedTuple):
    """One network's tensors.

    Attributes:
        where: the names that lead to it, joined by dots: "g_ema", "state_dict.decoder"; "" = the file is one.
        kind: one of the kinds that were looked for.
        tensors: name → tensor, without the prefix.
        beside: what stands next to it and is no dict: name → value, the nearest of each name.
    """

    where: str
    kind: str
    tensors: dict[str, torch.Tensor]
    beside: dict


def find(data, marks: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]) -> list[StateDict]:
    """Every network in `data` that has all the names of its kind's marks; of several kinds the one with most counts.

    What looks like weights and is of no kind is named in a warning.

    Args:
        data: what a file holds.
        marks: kind → names of tensors that only state dicts of this kind have together.
        others: the same of networks that look like these and are others; of two equal fits this one counts.

    Raises:
        ConversionError: all marks of a kind but one are there, so the file is damaged.
    """
    networks, left_out = [], []
    every = dict(sorted((others | marks).items(), key=lambda item: -len(item[1])))
    for path, entries, beside in _dicts(data):
        found, almost = {}, None
        for prefix, counts in _counts(entries, every).items():
            full = [kind for kind in every if counts[kind] == len(every[kind])]
            near = [kind for kind in marks if counts[kind] == len(marks[kind]) - 1 > 1]
            if full:
                found[prefix] = full[0]
            elif near:
                almost = prefix, near[0]
        if almost and not found:
            prefix, kind = almost
            lacking = next(mark for mark in marks[kind] if prefix + mark not in plain_names(entries))
            where = _where(path, prefix) or "the file"
            raise ConversionError(
                f"{where} looks like the {kind} but has no tensor {prefix + lacking!r}; it is damaged"
            )
        for prefix, kind in found.items():
            tensors = {name.removeprefix(prefix): v for name, v in entries.items() if name.startswith(prefix)}
            outside = {_bare(name): value for name, value in entries.items() if not name.startswith(prefix)}
            networks.append(StateDict(_where(path, prefix), kind, tensors, beside | outside))
        unknown = {_bare(name): value for name, value in entries.items() if not name.startswith(tuple(found))}
        left_out += _unknown(path, unknown)
    if networks and left_out:
        logger.warning("left out, because it is of no known network: %s", ", ".join(left_out))
    return networks


def plain_names(tensors: dict) -> set[str]:
    """Names, those of pruned weights without what pruning appends."""
    return {*tensors, *(name.removesuffix("_mask") for name in tensors if name.endswith(".weight_mask"))}


def _dicts(data) -> Iterator[tuple[tuple[str, ...], dict, dict]]:
    """(path, dict, what stands beside it) of every dict whose keys are all names.

    Raises:
        ConversionError: there are more names than any training saves, as in dicts that hold each other.
    """
    pending, names = [((), data, {})] if isinstance(data, dict) else [], 0
    while pending:
        path, entries, beside = pending.pop()
        names += len(entries)
        if names > MAX_NAMES:
            raise ConversionError(f"more than {MAX_NAMES:,} names; this is no checkpoint of a known network")
        if entries and all(isinstance(name, str) for name in entries):
            yield path, entries, beside
        if len(path) < MAX_DEPTH and any(isinstance(value, dict) for value in entries.values()):
            beside = beside | {name: value for name, value in entries.items() if not isinstance(value, dict)}
            inner = [((*path, str(name)), v, beside) for name, v in entries.items() if isinstance(v, dict)]
            pending += reversed(inner)  # in the file's order


def _counts(entries: dict, marks: dict[str, tuple[str, ...]]) -> dict[str, Counter]:
    """Prefix → kind → how many of the kind's marks have it."""
    kinds, counts = defaultdict(list), defaultdict(Counter)
    for kind, names in marks.items():
        for name in names:
            kinds[name].append(kind)
    longest = max(name.count(".") for name in kinds) + 1
    for name in plain_names(entries):
        parts = name.split(".")
        for i in range(max(0, len(parts) - longest), len(parts)):
            for kind in kinds.get(".".join(parts[i:]), ()):
                counts["".join(f"{part}." for part in parts[:i])][kind] += 1
    return counts


def _where(path: tuple[str, ...], prefix: str) -> str:
    return ".".join(part for part in (*path, *prefix.split(".")) if part and part not in WRAPPERS)


def _bare(name: str) -> str:
    """A name without the wrappers before it."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    return ".".join(parts)


def _unknown(path: tuple[str, ...], entries: dict) -> list[str]:
    """What of a dict looks like weights: its parts, and how many tensors each has."""
    if any(word in part.lower() for word in NO_NETWORK for part in path):
        return []
    weights = [name for name, value in entries.items() if "." in name and getattr(value, "ndim", 0) > 1]
    parts = Counter(_where(path, name.partition(".")[0]) for name in weights)
    return [f"{part} ({count} weights)" for part, count in parts.items()]
