"""`fewshot-gan export`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import Adapters, Base, ExportFormat, Psi, Threads, Weights, path_option
from .root import app, begin
from .sources import load_pipeline, named_looks


@app.command()
def export(
    base: Base = "ffhq",
    adapter: Adapters = None,
    weight: Weights = None,
    psi: Psi = None,
    file_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Default: by the ending of --out, else openvino.")
    ] = None,
    out: Annotated[
        Path | None,
        path_option("NAME.onnx, or NAME.xml, which has NAME.bin beside it; default: generator."),
    ] = None,
    num_threads: Threads = None,
):
    """Write a base and its adapters as one network for ONNX Runtime or OpenVINO, checked against torch."""
    start = time.perf_counter()
    names, weights = named_looks(adapter, weight)

    from ..export import SUFFIX, export_generator

    ending = SUFFIX[(file_format or ExportFormat.openvino).value]
    out = out or Path(f"generator{ending}")
    if file_format and out.suffix != ending:
        raise ValueError(f"--out {out} is no file of --format {file_format.value}; give a name ending in {ending}")
    begin(num_threads)
    pipe, loaded = load_pipeline(base, names, weights)
    pipe.set_adapters(loaded)
    error = export_generator(pipe, out, truncation_psi=psi)
    print(f"{out}  ({pipe.generator.resolution} px, within {error:.0e} of torch, {time.perf_counter() - start:.1f} s)")
