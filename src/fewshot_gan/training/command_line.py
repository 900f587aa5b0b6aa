"""Command lines of the training scripts: `HfArgumentParser` reads the fields of dataclasses."""

import argparse
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, Optional, cast

from transformers import HfArgumentParser

from ..catalogue import ADAPTERS, METHODS
from .config import JUDGED, PRESETS, RunConfig, RunOptions, TrackingOptions, make_run, trainable, usual_settings
from .engine import TrainingConfig


def parser(method: str) -> HfArgumentParser:
    """Make the parser of a method's script. Its options are the fields of the dataclasses of `make_run`.

    Raises:
        ValueError: there is no such method.
    """
    cls = METHODS.load(method)
    run_help = {
        "adapter": {
            "choices": trainable(),
            "help": f"default {cls.adapter}; usual --learning_rate: "
            + ", ".join(f"{kind} {entry.learning_rate:g}" for kind, entry in ADAPTERS.items() if entry.learning_rate),
        },
        "preset": {
            "choices": list(cls.presets),
            "help": "; ".join(f"{name}: {PRESETS.get(name, 'see the method')}" for name in cls.presets),
        },
    }
    skipped = () if cls.Objective.uses_images else JUDGED
    usual = usual_settings(cls, cls.adapter, cls.presets[0])
    parts = [
        optional(RunOptions, required=("data",) if cls.needs_images else (), more=run_help),
        optional(cls.Options),
        *map(optional, dict.fromkeys(ADAPTERS.load(kind).Options for kind in trainable())),
        optional(TrackingOptions),
        optional(TrainingConfig, skipped, ("output_dir",), usual=usual, published=cls.published),
        optional(cls.Config, usual="the preset's"),
    ]
    p = make_parser(parts, f"Adapt a base to about ten images: {METHODS[method].described}.")
    p.add_argument("--dry_run", action="store_true", help="say what the run would do and take; train nothing")
    return p


def parse(method: str, argv: Sequence[str] | None = None) -> RunConfig:
    """Parse the arguments of a script into a run.

    Raises:
        ValueError: see `make_run`.
        SystemExit: argparse refuses the arguments.
    """
    return make_run(method, **vars(parser(method).parse_args(argv)))


def optional(
    cls: type,
    skipped: Iterable[str] = (),
    required: Iterable[str] = (),
    more: Mapping[str, dict] | None = None,
    usual: Mapping[str, Any] | str | None = None,
    published: Mapping[str, Mapping[str, Any]] | None = None,
) -> type:
    """Make a dataclass with the fields of `cls`, whose defaults are None: not given.

    Args:
        cls: a dataclass.
        skipped: fields to leave out.
        required: fields that must be given.
        more: field → metadata beside its own.
        usual: field → default, for help texts; or one word for all.
        published: preset → field → default.
    """
    documented = attribute_docs(cls)
    made = []
    for option in fields(cls):
        if option.name in skipped:
            continue
        metadata = {**option.metadata, **(more or {}).get(option.name, {})}
        if "help" not in metadata:
            metadata["help"] = _help(option, documented.get(option.name, ""), usual, published)
        metadata["help"] = metadata["help"].replace("%", "%%")
        if option.name in required:
            made.append((option.name, option.type, field(metadata=metadata)))
        else:
            made.append((option.name, Optional[_bare(option.type)], field(default=None, metadata=metadata)))  # noqa: UP045
    return make_dataclass(cls.__name__, made, kw_only=True)


def _bare(kind):
    """Return `X` of a type `X | None`."""
    return getattr(kind, "__args__", (kind,))[0] if type(None) in getattr(kind, "__args__", ()) else kind


def _help(option, text: str, usual, published) -> str:
    if usual is None:
        return text
    default = usual if isinstance(usual, str) else usual.get(option.name, option.default)
    said = "" if default is MISSING else f"default {default}"
    said += "".join(f", {preset} {of[option.name]}" for preset, of in (published or {}).items() if option.name in of)
    return "; ".join(filter(None, (text, said)))


def attribute_docs(cls: type) -> dict[str, str]:
    """Return field → description, from the "Attributes" of the docstrings of a dataclass and its base classes."""
    documented: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")[2].splitlines()
        names: list[str] = []
        for line in lines:
            if not line.startswith("    "):
                break
            entry = re.fullmatch(r"    ((?:\w+)(?:, \w+)*): (.*)", line)
            if entry:
                names = entry[1].split(", ")
                documented |= dict.fromkeys(names, entry[2])
            else:
                documented |= {name: f"{documented[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in documented.items()}


def make_parser(parts: Sequence[type], description: str) -> HfArgumentParser:
    """Make a parser of the fields of dataclasses. A bool has the options `--NAME` and `--no-NAME`."""
    others = [_without_flags(part) for part in parts]
    p = HfArgumentParser(cast(Any, others), description=description, formatter_class=argparse.HelpFormatter)
    for part in parts:
        for option in fields(part):
            if _is_flag(option):
                action, text = argparse.BooleanOptionalAction, option.metadata["help"]
                p.add_argument(f"--{option.name}", action=action, default=None, help=text)
    return p


def _is_flag(option) -> bool:
    return option.type is bool or option.type == Optional[bool]  # noqa: UP045


def _without_flags(part: type) -> type:
    made = [(o.name, o.type, _same(o)) for o in fields(part) if not _is_flag(o)]
    return make_dataclass(part.__name__, made, kw_only=True)


def _same(option):
    if option.default is MISSING:
        return field(metadata=option.metadata)
    return field(default=option.default, metadata=option.metadata)
