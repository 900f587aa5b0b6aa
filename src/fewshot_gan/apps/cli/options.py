"""Option types of `fewshot-gan` with their limits, and error messages of one sentence."""

import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...catalogue import Catalogue
from ...utils.errors import boundary, tolerate_encodings
from ...utils.files import user_path
from ...utils.text import plain
from ...utils.threads import MAX_THREADS

MOST_SEEDS = 10_000
SEED_LIMIT = 2**63  # as `utils.random.LIMIT`, whose module imports torch
# The class of usage errors; newer versions of typer define it themselves, older ones take click's.
_USAGE: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Space(StrEnum):
    w = "w"
    w_plus = "w+"


class FileFormat(StrEnum):
    png = "png"
    webdataset = "webdataset"
    parquet = "parquet"


class ExportFormat(StrEnum):
    openvino = "openvino"
    onnx = "onnx"
    web = "web"


class SpaceKind(StrEnum):
    static = "static"
    gradio = "gradio"


class NoiseMode(StrEnum):
    const = "const"
    random = "random"
    none = "none"


def path_option(help: str):
    """Declare a path option and expand `~`, which shells leave as it is in `--out=~/faces.png`."""
    return typer.Option(help=help, parser=user_path)


def path_argument(help: str):
    """Declare a path argument, see `path_option`."""
    return typer.Argument(help=help, parser=user_path)


def number(help: str, least: float, most: float, said: str | None = None):
    """Declare an option for one or several numbers; refuse NaN and numbers outside `least` to `most`.

    Args:
        help: help text.
        least, most: limits, inclusive.
        said: the limits in words, for the error message.
    """

    def check(parameter: typer.CallbackParam, value):
        for given in value if isinstance(value, list | tuple) else () if value is None else (value,):
            if not least <= given <= most:
                raise ValueError(f"--{parameter.name.replace('_', '-')} {given}: give {said or f'{least} to {most}'}")
        return value

    return typer.Option(help=help, callback=check)


def entry_option(catalogue: Catalogue, help: str, names: Iterable[str] | None = None):
    """Declare an option for a name of a catalogue; plugins are imported only for a name that this package lacks.

    Args:
        catalogue: the methods or the kinds of adapters.
        help: help text.
        names: names that the help text lists; None: all that this package defines.
    """

    def check(value: str | None) -> str | None:
        return None if value is None else catalogue.find(value).name

    return typer.Option(help=f"{help} One of {', '.join(names or catalogue.own())}, or of a plugin.", callback=check)


def count(help: str):
    """Declare an option for a count: 1 to a billion."""
    return number(help, 1, 10**9, "1 or more, up to a billion")


def seed_option(help: str):
    """Declare an option for a seed: 0 to 2^63 − 1."""
    return number(help, 0, SEED_LIMIT - 1, "0 or more, below 2^63")


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """Parse seeds such as `0-35,42`.

    Raises:
        ValueError: another text, a seed of 2^63 or more, or more than 10,000 seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        ends = [first, last] if dash else [first]
        if not all(end.isascii() and end.isdigit() for end in ends):
            raise ValueError(f"{option} {text}: give whole numbers and ranges, like 0-35,42")
        if not all(len(end) < 20 and int(end) < SEED_LIMIT for end in ends):  # Python reads no number of 5000 digits
            raise ValueError(f"{option} {text}: give seeds below 2^63")
        low, high = int(first), int(ends[-1])
        if not 0 <= high - low < MOST_SEEDS - len(seeds):
            raise ValueError(f"{option} {text}: {part} is no rising range, or there are more than {MOST_SEEDS:,} seeds")
        seeds += range(low, high + 1)
    return seeds


def parse_numbers(text: str, option: str, least: float, most: float) -> list[float]:
    """Parse numbers joined by commas.

    Raises:
        ValueError: another text, or a number out of range.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: give numbers joined by commas, like 0.3,0.5,0.7") from None
    if not all(least <= value <= most for value in numbers):  # refuses NaN too
        raise ValueError(f"{option} {text}: give numbers from {least:g} to {most:g}")
    return numbers


def parse_strengths(texts: Iterable[str]) -> dict[str, float]:
    """Parse edits such as `smile=1.5`.

    Raises:
        ValueError: another text, or a direction that is named twice.
    """
    strengths: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            strength = float(value)
        except ValueError:
            strength = None
        if not name.strip() or strength is None or name.strip() in strengths:
            raise ValueError(f"--edit {text}: give each direction once, with its strength, like smile=1.5")
        strengths[name.strip()] = strength
    return strengths


def parse_weight(text: str) -> float | dict:
    """Parse a weight, `0.5`, or a schedule over depth, `coarse:0,fine:1` or `4:0,32:1`."""
    from ...adapters.looks import parse_weight

    return parse_weight(text, "--weight")


class OneSentence(TyperGroup):
    """A command group whose errors are one sentence, usage errors included; see `utils.errors.boundary`."""

    def main(self, args=None, *others, standalone_mode: bool = True, **options):
        tolerate_encodings()
        given = sys.argv[1:] if args is None else list(args)
        if "--debug" in given:  # accepted before and after the command
            args = ["--debug", *(word for word in given if word != "--debug")]
        if not standalone_mode:
            return super().main(args, *others, standalone_mode=False, **options)
        try:
            code = super().main(args, *others, standalone_mode=False, **options)
        except _USAGE as error:
            refused: Any = error
            message = plain(refused.format_message()).replace("Value error, ", "").rstrip(".")
            if type(refused).__name__ == "NoArgsIsHelpError":
                print(refused.format_message(), end="", file=sys.stderr)  # the help text
            else:
                place = refused.ctx.command_path if getattr(refused, "ctx", None) else "fewshot-gan"
                print(f"error: {message[:1].lower()}{message[1:]}; see {place} --help", file=sys.stderr)
            code = refused.exit_code
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx):
        with boundary(debug=ctx.params.get("debug", False), through=(_USAGE, typer.Exit, typer.Abort)):
            return super().invoke(ctx)


Adapters = Annotated[list[str] | None, typer.Option(help="Embedded name, folder, zip or Hub repo; repeat to blend.")]
Weights = Annotated[list[str] | None, typer.Option(help="Weight of each adapter, see generate; default 1.")]
Base = Annotated[str, typer.Option(help="Embedded name, folder or Hub repo.")]
Psi = Annotated[
    float | None, number("Truncation; default: the base's own.", -1000, 1000, "a number such as 0.7, -1000 to 1000")
]
BatchSize = Annotated[int, count("Pictures per forward pass.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds of single pictures, like 0-35,42, instead of --seed.")]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit", help="Change the faces: direction=strength, like smile=1.5; repeat for more. See directions."
    ),
]
Threads = Annotated[
    int | None,
    number("CPU threads; default: OMP_NUM_THREADS, else what cores, affinity and container allow.", 1, MAX_THREADS),
]
