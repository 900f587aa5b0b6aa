"""What the options of `fewshot-gan` accept, and how the command line refuses: in one sentence."""

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

_USAGE: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)  # typer's own or click's


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


class NoiseMode(StrEnum):
    const = "const"
    random = "random"
    none = "none"


def path_option(help: str):
    """An option of a path, in which `~` is expanded: no shell does that in `--out=~/faces.png`."""
    return typer.Option(help=help, parser=user_path)


def path_argument(help: str):
    """As `path_option`, of an argument."""
    return typer.Argument(help=help, parser=user_path)


def number(help: str, least: float, most: float, said: str | None = None):
    """An option of a number, or of several, that refuses NaN and what is beyond `least` … `most`.

    Args:
        help: of the option.
        least, most: limits, both allowed.
        said: the limits in words.
    """

    def check(parameter: typer.CallbackParam, value):
        for given in value if isinstance(value, list | tuple) else () if value is None else (value,):
            if not least <= given <= most:
                raise ValueError(f"--{parameter.name.replace('_', '-')} {given}: give {said or f'{least} to {most}'}")
        return value

    return typer.Option(help=help, callback=check)


def entry_option(catalogue: Catalogue, help: str, names: Iterable[str] | None = None):
    """An option that names an entry of a catalogue; plugins are imported for names of theirs alone.

    Args:
        catalogue: of methods, adapters, …
        help: of the option.
        names: to list in the help; None: all of this package.
    """

    def check(value: str | None) -> str | None:
        return None if value is None else catalogue.find(value).name

    return typer.Option(help=f"{help} One of {', '.join(names or catalogue.own())}, or of a plugin.", callback=check)


def count(help: str):
    """An option of a number of things."""
    return number(help, 1, 10**9, "1 or more, up to a billion")


def seed_option(help: str):
    """An option of a seed."""
    return number(help, 0, 2**63 - 1, "0 or more, below 2^63")


def parse_weight(text: str) -> float | dict:
    """`0.5`, or a schedule over depth: `coarse:0,fine:1` or `4:0,32:1`."""
    from ...adapters.looks import parse_weight

    return parse_weight(text, "--weight")


class OneSentence(TyperGroup):
    """Commands that end as `utils.errors.boundary` says; what the parser refuses is one line as well."""

    def main(self, args=None, *others, standalone_mode: bool = True, **options):
        tolerate_encodings()
        given = sys.argv[1:] if args is None else list(args)
        if "--debug" in given:  # known wherever it stands
            args = ["--debug", *(word for word in given if word != "--debug")]
        if not standalone_mode:
            return super().main(args, *others, standalone_mode=False, **options)
        try:
            code = super().main(args, *others, standalone_mode=False, **options)
        except _USAGE as error:
            refused: Any = error
            message = plain(refused.format_message()).replace("Value error, ", "").rstrip(".")
            if type(refused).__name__ == "NoArgsIsHelpError":
                print(refused.format_message(), end="", file=sys.stderr)  # the help, where it was not shown already
            else:
                place = refused.ctx.command_path if getattr(refused, "ctx", None) else "fewshot-gan"
                print(f"error: {message[:1].lower()}{message[1:]}; see {place} --help", file=sys.stderr)
            code = refused.exit_code
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx):
        with boundary(debug=ctx.params.get("debug", False), through=(_USAGE, typer.Exit, typer.Abort)):
            return super().invoke(ctx)


Adapters = Annotated[list[str] | None, typer.Option(help="Embedded name, folder or Hub repo; repeat to blend.")]
Weights = Annotated[list[str] | None, typer.Option(help="One per adapter, as of generate; default 1.")]
Base = Annotated[str, typer.Option(help="Embedded name, folder or Hub repo.")]
Psi = Annotated[
    float | None, number("Truncation; default: the base's own.", -1000, 1000, "a number such as 0.7, -1000 to 1000")
]
BatchSize = Annotated[int, count("Pictures per forward pass.")]
Threads = Annotated[
    int | None,
    number("CPU threads; default: OMP_NUM_THREADS, else what cores, affinity and container allow.", 1, MAX_THREADS),
]
