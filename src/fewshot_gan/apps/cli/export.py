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
        path_option(
            "NAME.onnx, or NAME.xml, which has NAME.bin beside it; for web a folder. Default: generator, or site."
        ),
    ] = None,
    person: Annotated[
        str | None,
        typer.Option(help="Web: folder, zip or Hub repo of an adapter of a person, whom the page draws too."),
    ] = None,
    consent: Annotated[
        str | None, typer.Option(help="Web: whose face it is, and that this person agreed; the page shows it.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Web: title of the page.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Web: folder, .tgz or URL of onnxruntime-web; default: npm fetches the pinned version."),
    ] = None,
    num_threads: Threads = None,
):
    """Write a base and its adapters as one network for ONNX Runtime or OpenVINO, or as a web page that draws by itself.

    The file is checked against torch. A page has each adapter as a look with a slider; --weight sets where it stands
    first.
    """
    start = time.perf_counter()
    names, weights = named_looks(adapter, weight)
    web = file_format == ExportFormat.web
    of_page = {"consent": consent, "title": title, "runtime": runtime}
    for name, value in {"person": person, **of_page}.items():
        if value is not None and not web:
            raise ValueError(f"--{name} is of web pages: give --format web, or leave it out")
    if web:
        begin(num_threads)
        if weight is None:  # the page opens with the first look
            weights = [float(not i) for i in range(len(names))]
        _export_site(base, names, weights, person, out or Path("site"), truncation_psi=psi, **of_page)
        return

    from ..export import SUFFIX, export_generator

    ending = SUFFIX[(file_format or ExportFormat.openvino).value]
    out = out or Path(f"generator{ending}")
    if file_format and out.suffix != ending:
        raise ValueError(f"--out {out} is no file of --format {file_format.value}; give a name ending in {ending}")
    begin(num_threads)
    pipe, _ = load_pipeline(base, names, weights)
    error = export_generator(pipe, out, truncation_psi=psi)
    print(f"{out}  ({pipe.generator.resolution} px, within {error:.0e} of torch, {time.perf_counter() - start:.1f} s)")


def _export_site(base: str, names: list[str], weights: list, person: str | None, out: Path, **options) -> None:
    start = time.perf_counter()
    from ..website import export_site

    sources, strengths = (names, weights) if person is None else ([*names, person], [*weights, 1.0])
    pipe, loaded = load_pipeline(base, sources, strengths, persons=True)
    pipe.set_adapters([])
    someone = None if person is None else list(loaded)[-1]
    looks = {name: strength for name, strength in loaded.items() if name != someone}
    site = export_site(pipe, out, looks, person=someone, **options)
    worst, seconds = max(site.differences.values()), time.perf_counter() - start
    size = f"{site.download / 1e6:.1f} MB to load besides ONNX Runtime"
    print(f"{out}/  ({size}, {len(looks)} looks, within {worst:.2g}/255 of torch, {seconds:.1f} s)")
    print(f"look at it: python -m http.server -d {out}")
