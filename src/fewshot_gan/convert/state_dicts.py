"""Find the state dicts in a training's checkpoint, under any wrapper and prefix, by their tensor names.

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

MAX_DEPTH, MAX_NAMES = 5, 1_000_000  # of nested dicts that are searched
WRAPPERS = {"module", "_orig_mod"}  # parts of a prefix that torch adds
NO_NETWORK = ("optim", "sched")  # parts of names of other training state


class StateDict(NamedTuple):
    """The tensors of one network.

    Attributes:
        where: dotted path in the file: "g_ema", "state_dict.decoder"; empty if the file is a state dict.
        kind: kind of the network, a key of `marks`.
        tensors: name without prefix → tensor.
        beside: name → value of other entries around it that are not dicts, the nearest of each name.
    """

    where: str
    kind: str
    tensors: dict[str, torch.Tensor]
    beside: dict


def find(data, marks: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]) -> list[StateDict]:
    """Return every network in `data` that has all marks of a kind; if several kinds match, the one with most marks.

    A warning names weights of unknown networks.

    Args:
        data: contents of a file.
        marks: kind → tensor names that together identify a state dict of this kind.
        others: marks of similar networks that are not supported; they win if two kinds have equally many marks.

    Raises:
        ConversionError: all marks of a kind but one exist, so the file is damaged.
    """
    networks, left_out = [], []
    every = dict(sorted((others | marks).items(), key=lambda item: -len(item[1])))
    for path, entries, beside in named_dicts(data):
        kind_by_prefix, almost = {}, None
        for prefix, counts in _counts(entries, every).items():
            full = [kind for kind in every if counts[kind] == len(every[kind])]
            near = [kind for kind in marks if counts[kind] == len(marks[kind]) - 1 > 1]
            if full:
                kind_by_prefix[prefix] = full[0]
            elif near:
                almost = prefix, near[0]
        if almost and not kind_by_prefix:
            prefix, kind = almost
            lacking = next(mark for mark in marks[kind] if prefix + mark not in plain_names(entries))
            where = _where(path, prefix) or "the file"
            raise ConversionError(
                f"{where} looks like the {kind} but has no tensor {prefix + lacking!r}; it is damaged"
            )
        for prefix, kind in kind_by_prefix.items():
            tensors = {name.removeprefix(prefix): v for name, v in entries.items() if name.startswith(prefix)}
            outside = {_bare(name): value for name, value in entries.items() if not name.startswith(prefix)}
            networks.append(StateDict(_where(path, prefix), kind, tensors, beside | outside))
        unknown = {_bare(name): value for name, value in entries.items() if not name.startswith(tuple(kind_by_prefix))}
        left_out += _unknown(path, unknown)
    if networks and left_out:
        logger.warning("left out, because it is of no known network: %s", ", ".join(left_out))
    return networks


def plain_names(tensors: dict) -> set[str]:
    """Return the tensor names, with those of pruned weights as before pruning."""
    return {*tensors, *(name.removesuffix("_mask") for name in tensors if name.endswith(".weight_mask"))}


def named_dicts(data) -> Iterator[tuple[tuple[str, ...], dict, dict]]:
    """Yield (path, dict, entries beside it) for every nested dict whose keys are all text.

    Raises:
        ConversionError: there are too many names, as in dicts that contain each other.
    """
    pending: list[tuple[tuple[str, ...], dict, dict]] = [((), data, {})] if isinstance(data, dict) else []
    names = 0
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
    """Return prefix → kind → number of the kind's marks with that prefix."""
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
    """Return a name without its wrappers."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    return ".".join(parts)


def _unknown(path: tuple[str, ...], entries: dict) -> list[str]:
    """Describe the entries of a dict that look like weights, by their first name and number."""
    if any(word in part.lower() for word in NO_NETWORK for part in path):
        return []
    weights = [name for name, value in entries.items() if "." in name and getattr(value, "ndim", 0) > 1]
    parts = Counter(_where(path, name.partition(".")[0]) for name in weights)
    return [f"{part} ({count} weights)" for part, count in parts.items()]
