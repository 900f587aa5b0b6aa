"""Write a web page that draws a base in looks, in the visitor's browser: a static folder for any web server.

The folder has the base in fp16, each look as a small file, a page in plain HTML with ES modules, and ONNX Runtime Web.
"""

import hashlib
import html
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch

from ..adapters.looks import BASE, LIKENESS
from ..hub import embedded_directions
from ..hub.cards import licence_of
from ..hub.spaces import INDEX
from ..models.layers import as_ws
from ..pipeline import FewShotGAN
from ..pipeline_person import WHOLE
from ..utils.files import finish_replacing, replacing, user_path
from ..utils.json_files import read_json
from .export import require, require_float32
from .web_graphs import Changed, Graph, change_graph, changed, network_graphs, tensors_of

PACKAGE, RUNTIME_VERSION = "onnxruntime-web", "1.30.0"
MODULES = {"wasm": "ort.wasm.min.mjs", "webgpu": "ort.webgpu.min.mjs"}
BINARIES = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}  # .mjs and .wasm
MOST_RUNTIME_BYTES = 2**26  # of one file of the runtime
CHUNK = 2**23  # bytes of a file of weights
MOST_STRENGTH, MOST_PSI = 1.5, 1.2  # of the page's sliders
TOLERANCE = 1.0  # of 255: how far pictures may be from torch's
PAGE = ("index.html", "style.css", "app.mjs", "engine.mjs", "random.mjs")


class Site(NamedTuple):
    """What was written.

    Attributes:
        files: path in the folder → bytes.
        differences: largest difference to torch's pictures, in steps of 8-bit pictures, of the base and of each look.
    """

    files: dict[str, int]
    differences: dict[str, float]

    @property
    def download(self) -> int:
        """Bytes that a visitor loads before the first picture, without ONNX Runtime."""
        return sum(size for name, size in self.files.items() if not name.startswith(("runtime/", "looks/")))


def export_site(
    pipe: FewShotGAN,
    out,
    looks: Mapping[str, float],
    *,
    person: str | None = None,
    consent: str | None = None,
    truncation_psi: float | None = None,
    runtime: str | None = None,
    title: str | None = None,
) -> Site:
    """Write the folder of a web page, and check that its networks draw what torch draws.

    Args:
        pipe: has the looks and the person loaded, and none fused.
        out: the folder; it is made, or a page that was written there before is replaced.
        looks: names of the looks that visitors choose from, and their strengths when the page opens, 0 to 1.5.
        person: name of an adapter of a person, whom the page draws as well.
        consent: whose face it is, and that this person agreed; the page shows it.
        truncation_psi: ψ when the page opens; None: the pipeline's.
        runtime: folder or .tgz of onnxruntime-web, or the URL of its folder `dist`, from which visitors then load it;
            None: npm fetches it.
        title: of the page; None: names the looks.

    Raises:
        ValueError: the base cannot be drawn so, an adapter is not loaded, a person without a consent, a folder with
            other files, a runtime without its files, or pictures that differ from torch's; nothing is written then.
        ImportError: the packages for export are not installed.
        OSError: npm is missing or fails.
    """
    require("web", ("onnx", "onnxscript", "onnxruntime"))
    out, generator = user_path(out), pipe.generator
    pipe.bank.refuse_while_fused("write a web page")
    psi = pipe.config.truncation_psi if truncation_psi is None else truncation_psi
    if not 0 <= psi <= MOST_PSI:
        raise ValueError(f"truncation_psi={psi}: the slider of a page goes from 0 to {MOST_PSI}")
    _check_adapters(pipe, looks, person, consent)
    shown = [*looks, *([person] if person else [])]
    require_float32(pipe, shown)
    old = _files_of(out)
    tensors = {name: tensor.float().cpu() for name, tensor in tensors_of(generator).items()}
    runtime_files = _runtime(runtime)
    graphs, known = network_graphs(generator), {}
    adapters = {name: pipe.bank.adapters[name] for name in shown}
    changes = {name: change_graph(generator, adapter, known) for name, adapter in adapters.items()}
    for halved in (True, False):  # what was never stored in fp16 may need all digits
        differences = _differences(pipe, graphs, tensors, changes, psi, person, halved)
        wrong = {name: value for name, value in differences.items() if not value <= TOLERANCE}  # also NaN
        if not wrong:
            break
    else:
        name, value = next(iter(wrong.items()))
        what = "the base" if name == BASE else repr(name)
        raise ValueError(
            f"the page would draw {what} otherwise than torch, by {value:.2g} of 255, more than {TOLERANCE:g}; "
            "nothing was written"
        )
    with replacing(out, gone=old) as folder:
        content = _model(folder, tensors, graphs, halved)
        content["looks"] = [
            {**_look(folder, str(i), name, changes[name], halved), "strength": strength}
            for i, (name, strength) in enumerate(looks.items())
        ]
        content["person"] = None
        if person:
            photos = [[float(f"{x:.7g}") for x in ws.flatten().tolist()] for ws in _photos(pipe, person)]
            content["person"] = _look(folder, "person", person, changes[person], halved)
            content["person"] |= {"photos": photos, "whole": WHOLE, "likeness": LIKENESS, "consent": consent}
        content["directions"] = _directions(pipe)
        content["runtime"] = _runtime_places(folder, runtime, runtime_files)
        content |= {"resolution": generator.resolution, "z_dim": generator.z_dim, "w_dim": generator.w_dim}
        content |= {"num_ws": generator.num_ws, "psi": psi, "licence": licence_of(pipe.bank.fingerprint())}
        _page(folder, content, title or (f"Faces in {', '.join(looks)}" if looks else "Faces"))
        written = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
    return Site(written, differences)


def _check_adapters(pipe: FewShotGAN, looks: Mapping[str, float], person: str | None, consent: str | None) -> None:
    """Check names, strengths, person and consent of `export_site`.

    Raises:
        ValueError: see there.
    """
    for name in (*looks, *([person] if person else [])):
        if name not in pipe.bank.adapters:
            raise ValueError(f"there is no adapter {name!r}; loaded are {', '.join(pipe.loaded_adapters()) or 'none'}")
    for name, strength in looks.items():
        if not isinstance(strength, int | float) or not 0 <= strength <= MOST_STRENGTH:
            raise ValueError(f"strength {strength} of {name}: the sliders of a page go from 0 to {MOST_STRENGTH}")
        if pipe.bank.adapters[name].latents is not None:
            raise ValueError(f"{name!r} is a person, not a look; give it with --person and --consent")
    if person and pipe.bank.adapters[person].latents is None:
        raise ValueError(f"{person!r} is a look, not a person: its file has no latents")
    if person and not (consent or "").strip():
        raise ValueError("a page with a person needs a consent, e.g. 'This is me, and I agree.'; the page shows it")
    if consent and not person:
        raise ValueError("a consent belongs to a person; give one, or leave it out")


def _files_of(out: Path) -> list[str]:
    """Return the files of a page that was written to `out` before.

    Raises:
        ValueError: `out` has other files.
    """
    if not out.exists():
        return []
    if not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    finish_replacing(out)
    paths = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    found = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    index = read_json(out / INDEX) if found and (out / INDEX).is_file() else {}
    if found and not isinstance(index.get("graphs"), dict):
        raise ValueError(f"{out} has files that are no page of fewshot_gan; give an empty folder")
    known = set(index.get("files", ()))
    return [name for name in found if name in known]


def _write(folder: Path, name: str, data: bytes, hashed: bool = True) -> dict[str, Any]:
    """Write a file; return its name and size, as the page reads them.

    Args:
        folder: of the page.
        name: of the file.
        data: its content.
        hashed: put a hash of the content into the name, so that browsers never take an old file for a new one.
    """
    path = folder / name
    if hashed:
        path = path.with_name(f"{path.stem}.{hashlib.sha256(data).hexdigest()[:10]}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"file": path.relative_to(folder).as_posix(), "bytes": len(data)}


def _stored(tensors: Sequence[torch.Tensor], halved: bool) -> bytes:
    """Return tensors one behind the other, in fp16 or fp32."""
    if not tensors:
        return b""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return (flat.half().numpy().astype("<f2") if halved else flat.numpy().astype("<f4")).tobytes()


def _model(
    folder: Path, tensors: Mapping[str, torch.Tensor], graphs: Mapping[str, Graph], halved: bool
) -> dict[str, Any]:
    """Write weights and graphs; return what the page has to know of them."""
    places, start = {}, 0
    for name, tensor in tensors.items():
        places[name] = [start, list(tensor.shape)]
        start += tensor.numel()
    data = _stored(list(tensors.values()), halved)
    chunks = [
        _write(folder, f"model/{i}.bin", data[at : at + CHUNK]) for i, at in enumerate(range(0, len(data), CHUNK))
    ]
    described = {
        part: {**_write(folder, f"model/{part}.onnx", graph.model), "inputs": graph.inputs}
        for part, graph in graphs.items()
    }
    return {"tensors": places, "chunks": chunks, "graphs": described, "halved": halved}


def _look(folder: Path, path: str, name: str, change: Changed, halved: bool) -> dict[str, Any]:
    """Write the files of an adapter; return what the page has to know of it."""
    own = zip(change.graph.inputs[len(change.reads) :], change.tensors.values(), strict=True)
    outputs = zip(change.graph.outputs, change.outputs, strict=True)
    return {
        "name": name,
        "graph": _write(folder, "looks/graph.onnx", change.graph.model),  # one file where looks share a graph
        "data": _write(folder, f"looks/{path}.bin", _stored(list(change.tensors.values()), halved)),
        "reads": change.reads,
        "own": [[named, list(tensor.shape)] for named, tensor in own],
        "outputs": [[output, target, kind] for output, (target, kind) in outputs],
    }


def _directions(pipe: FewShotGAN) -> list[dict[str, Any]]:
    if embedded_directions(pipe.bank.fingerprint()) is None:
        return []
    return [
        {
            "name": name,
            "start": each.start,
            "stop": each.stop,
            "vector": [float(f"{x:.4g}") for x in each.vector.tolist()],
        }
        for name, each in pipe.directions().items()
    ]


def _photos(pipe: FewShotGAN, person: str) -> torch.Tensor:
    """Return w+ `[P, num_ws, w_dim]` of the photos of a person."""
    latents: Any = pipe.bank.adapters[person].latents
    return as_ws(latents.detach().float().cpu(), pipe.generator.num_ws, pipe.generator.w_dim)


def _differences(pipe, graphs, tensors, changes: Mapping[str, Changed], psi: float, person, halved: bool):
    """Return by how much the graphs' pictures differ from torch's, of 255, of the base and under each adapter.

    Args:
        pipe, graphs, tensors, changes, psi, person: of the page.
        halved: whether the page has its numbers in fp16.
    """
    import onnxruntime

    def as_stored(tensor: torch.Tensor) -> np.ndarray:
        return (tensor.half().float() if halved else tensor).numpy()

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    sessions = {part: onnxruntime.InferenceSession(graph.model, quiet) for part, graph in graphs.items()}
    base = {name: as_stored(tensor) for name, tensor in tensors.items()}
    z, num_ws = pipe.latents(seed=0), pipe.generator.num_ws

    def run(part: str, latent, values) -> np.ndarray:
        weights = {name: np.ascontiguousarray(values[name]) for name in graphs[part].inputs if name != "latent"}
        results: Any = sessions[part].run(None, {"latent": latent, **weights})
        return results[0]

    def worst(name: str, values) -> float:
        options = {"num_images": 1, "output_type": "pt"}
        if name == person:
            ws = _photos(pipe, name)[:1].contiguous().numpy()
            wanted = pipe.draw_person(name, adapter_names={name: 1.0}, **options).images
        else:
            w, mean = run("mapping", z.numpy(), values), base["mapping.w_avg"]
            ws = np.repeat((mean + np.float32(psi) * (w - mean))[:, None], num_ws, 1)
            wanted = pipe(latents=z, truncation_psi=psi, adapter_names=name, **options).images
        drawn = torch.from_numpy(run("synthesis", ws, values)).clamp(-1, 1)
        return float((drawn - (wanted.float().cpu() * 2 - 1)).abs().max()) * 127.5

    found = {BASE: worst(BASE, base)}
    for name, change in changes.items():
        given = [base[read] for read in change.reads] + [as_stored(tensor) for tensor in change.tensors.values()]
        session = onnxruntime.InferenceSession(change.graph.model, quiet)
        outputs: Any = session.run(None, dict(zip(change.graph.inputs, given, strict=True)))
        found[name] = worst(name, changed(base, [(change, 1.0, outputs)]))
    return found


# ---------------------------------------------------------------------------------------------------------- the page


def _page(folder: Path, content: dict[str, Any], title: str) -> None:
    """Write the page, its worker that keeps it, and `site.json`."""
    host = content["runtime"]["host"]
    words = {"__TITLE__": html.escape(title), "__HOST__": f" {host} blob:" if host else ""}
    for name in PAGE:
        _write(folder, name, _filled(name, words), hashed=False)
    content["files"] = sorted(
        [*(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()), INDEX, "sw.js"]
    )
    _write(folder, INDEX, json.dumps(content, separators=(",", ":")).encode(), hashed=False)
    version = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        version.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    shell = ["./", *PAGE, INDEX]
    others = [name for name in content["files"] if name not in (*shell, "sw.js")]
    words |= {"__VERSION__": version.hexdigest()[:16], "__SHELL__": json.dumps(shell), "__OTHERS__": json.dumps(others)}
    _write(folder, "sw.js", _filled("sw.js", words), hashed=False)


def _filled(name: str, words: Mapping[str, str]) -> bytes:
    """Return a file of the page with values in the place of words."""
    text = (package_files("fewshot_gan") / "assets" / "web" / name).read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    return text.encode()


def _runtime_places(folder: Path, source: str | None, found: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """Write ONNX Runtime Web; return where the page finds it for each kind of device."""
    if _is_url(source):
        place = f"{source.rstrip('/')}/"
        host = "/".join(place.split("/")[:3])
        files = {kind: {name: 0 for name in _names(kind)} for kind in MODULES}
    else:
        content = hashlib.sha256(b"".join(data for members in found.values() for data in members.values()))
        place, host = f"runtime/{content.hexdigest()[:10]}/", None
        files = {kind: {name: len(data) for name, data in members.items()} for kind, members in found.items()}
        for members in found.values():
            for name, data in members.items():
                _write(folder, place + name, data, hashed=False)  # the runtime knows its files by name
    described: dict[str, Any] = {"host": host}
    for kind, sizes in files.items():
        wasm = f"{BINARIES[kind]}.wasm"
        described[kind] = {"module": place + MODULES[kind], "folder": place}
        described[kind]["wasm"] = {"file": place + wasm, "bytes": sizes[wasm]}
    return described


def _runtime(source: str | None) -> dict[str, dict[str, bytes]]:
    """Return the files of ONNX Runtime Web for each kind of device; none if visitors load it from a URL.

    Raises:
        ValueError: the source has not all files.
        OSError: npm is missing or fails.
    """
    if _is_url(source):
        return {}
    with tempfile.TemporaryDirectory() as temp:
        found = _runtime_files(_from_npm(Path(temp)) if source is None else user_path(source))
    return {kind: {name: found[name] for name in _names(kind)} for kind in MODULES}


def _is_url(source: str | None) -> TypeGuard[str]:
    return source is not None and re.match("https?://", source) is not None


def _names(kind: str) -> tuple[str, ...]:
    return MODULES[kind], f"{BINARIES[kind]}.mjs", f"{BINARIES[kind]}.wasm"


def _from_npm(folder: Path) -> Path:
    """Fetch the pinned package into `folder`; return its archive."""
    way_out = f"or give --runtime with a folder, a .tgz or a URL of {PACKAGE} {RUNTIME_VERSION}"
    npm = shutil.which("npm") or "npm"  # npm.cmd on Windows
    command = [npm, "pack", f"{PACKAGE}@{RUNTIME_VERSION}", "--silent", "--ignore-scripts"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600, text=True)
    except FileNotFoundError:
        raise OSError(f"npm, which fetches {PACKAGE}, is not installed: install Node.js, {way_out}") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (getattr(error, "stderr", "") or "").strip().splitlines()
        raise OSError(
            f"npm could not fetch {PACKAGE} {RUNTIME_VERSION} ({said[-1] if said else error}); {way_out}"
        ) from None
    return next(folder.glob("*.tgz"))


def _runtime_files(place: Path) -> dict[str, bytes]:
    """Return the files of a folder or archive of the package that a page needs.

    Raises:
        ValueError: one is not there, or too large.
    """
    wanted, found = [name for kind in MODULES for name in _names(kind)], {}
    if place.is_dir():
        for name in wanted:
            path = next((p for p in (place / name, place / "dist" / name) if p.is_file()), None)
            if path is not None and path.stat().st_size <= MOST_RUNTIME_BYTES:
                found[name] = path.read_bytes()
    else:
        with suppress(OSError, tarfile.TarError, EOFError), tarfile.open(place, "r:gz") as archive:
            for member in archive:  # in one pass: it is compressed as a whole
                name = member.name.removeprefix("package/dist/")
                if name in wanted and member.isfile() and member.size <= MOST_RUNTIME_BYTES:
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{place} has no {missing[0]}; give the folder `dist` or the .tgz of {PACKAGE} {RUNTIME_VERSION}"
        )
    return found
