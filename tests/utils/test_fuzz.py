"""Five hundred seeded mutations of a file of each format: read, or refused in one sentence, in little time and memory.

Formats that a process of its own reads are read here by the same code, and some of them through the process.
"""

import copy
import io
import json
import random
import re
import resource
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging
from helpers import mobile_ir, stylegan2_checkpoints
from helpers.biggan_checkpoints import port_discriminator, port_generator
from helpers.hostile import archive, saved
from helpers.networks import tiny_stylegan2
from helpers.plain_checkpoints import sngan
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import Adapter, LeFTAdapter
from fewshot_gan.apps.evaluation import read_report
from fewshot_gan.apps.generation import MANIFEST, _check_folder
from fewshot_gan.convert import ConversionError, convert_checkpoint, mobile_stylegan_ir, torch_file
from fewshot_gan.data.datasets import provenance
from fewshot_gan.data.images import read_image
from fewshot_gan.models import StyleGAN2Generator
from fewshot_gan.utils import untrusted
from fewshot_gan.utils.conversion import CodeRefused

CASES, THROUGH_THE_PROCESS = 500, 12
SECONDS, MEMORY = 10, 500 * 2**20  # of a case; bytes beside those that the process of the tests has before
ALLOWED = (ConversionError, CodeRefused, ValueError, FileNotFoundError)  # these very classes, and errors of the system
NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


# ---------------------------------------------------------------------------------------------------------- mutations


def mutated(data: bytes, rng: random.Random, near: bytes | None = None) -> bytes:
    """A few bytes changed, cut out, doubled or put in; half of the time within 60 bytes of a place that has `near`."""
    data = bytearray(data)
    places = [match.start() for match in re.finditer(re.escape(near), bytes(data))] if near else []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(data)
        at = rng.randrange(size + 1)
        if places and rng.random() < 0.5:
            at = min(size, rng.choice(places) + rng.randrange(60))
        match rng.randrange(8):
            case 0 | 1 if at < size:
                data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256), data[at] ^ (1 << rng.randrange(8))))
            case 2:
                width = rng.choice((2, 4, 8))
                data[at : at + width] = (rng.choice((*NUMBERS, size)) % 256**width).to_bytes(width, "little")
            case 3:
                del data[at : at + rng.choice((1, 2, 16, 300))]
            case 4:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 16, 300)))
            case 5:
                start = rng.randrange(size + 1)
                data[at:at] = data[start : start + rng.choice((4, 64, 600))]
            case 6 if rng.random() < 0.3:
                del data[at:]
            case 7 if digits := list(re.finditer(rb"\d+", bytes(data[at : at + 200]))):
                found = rng.choice(digits)
                number = str(rng.choice((-1, 1e400, "NaN", 10**400, *NUMBERS))).encode()
                data[at + found.start() : at + found.end()] = number
    return bytes(data)


def mutated_json(text: str, rng: random.Random) -> bytes:
    """Bytes, or a value somewhere in it, or its name, changed."""
    if rng.random() < 0.3:
        return mutated(text.encode(), rng)
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        _change_somewhere(value, rng)
    return json.dumps(rng.choice((value, value, value, [value], {"a": value}))).encode()


def _change_somewhere(value, rng) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(value[key], dict | list) or not value[key] or rng.random() < 0.3:
            break
        value = value[key]
    deep = []
    for _ in range(rng.choice((5, 500))):
        deep = [deep]
    odd = (
        None,
        True,
        [],
        {},
        "",
        "x" * 5000,
        "\x1b[2J\n",
        "\ud800",
        -1,
        0.5,
        float("nan"),
        float("inf"),
        10**400,
        deep,
    )
    match rng.randrange(4):
        case 0 if isinstance(value, dict):
            del value[key]
        case 1 if isinstance(value, dict):
            value[rng.choice(("", "\x1b[2J", "_x", "weight", key + "x"))] = value.pop(key)
        case 2 if isinstance(value, list):
            value += value[:50] * rng.choice((1, 100))
        case _:
            value[key] = rng.choice((*odd, *NUMBERS, [value[key]], {"a": value[key]}, str(value[key])))


# ------------------------------------------------------------------------------------------------------------ running


@contextmanager
def alarm(what):
    """An error after `SECONDS`, where the system has alarms: a hang is a failure and not the end of the tests."""

    def ring(number, frame):
        raise AssertionError(f"{what} takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """Most bytes that this process had in memory since `forget_peak`."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text("utf-8")) if status.is_file() else None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass  # then the peak of all tests before counts too


def fuzz(name: str, make, read, cases: int = CASES) -> None:
    """`make(rng)` writes the file of a case; `read()` reads it or refuses it.

    Raises:
        AssertionError: another error, more than one line, a hang, or too much memory.
    """
    outcomes, slowest = Counter(), 0.0
    forget_peak()
    before = peak()
    for case in range(cases):
        make(random.Random(f"{name} {case}"))
        start = time.perf_counter()
        try:
            with alarm(f"{name}, case {case},"):
                read()
            outcomes["read"] += 1
        except Exception as error:
            said = str(error)
            allowed = type(error) in ALLOWED or isinstance(error, OSError)
            assert allowed and said and said.isprintable(), (name, case, type(error), said[:300])
            outcomes["refused"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    grown = max(peak() - before, 0)
    figures = f"slowest {slowest:.2f} s, {grown / 2**20:.0f} MiB more"
    print(f"\n{name}: {cases} cases, {outcomes['read']} read, {outcomes['refused']} refused, {figures}", end="")
    assert slowest < SECONDS and grown < MEMORY and outcomes["refused"] > cases // 10


@pytest.fixture(autouse=True)
def quiet():
    """diffusers warns of every name that it does not know."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(untrusted, "_start", lambda file, numbers: None)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch, nvidia):
    """Format → (content, what is near its structure); networks of 16 px and four channels."""
    monkeypatch.setattr(stylegan2_checkpoints, "WIDTHS", {4: 4, 8: 4, 16: 4})
    monkeypatch.setattr(stylegan2_checkpoints, "RESOLUTIONS", [4, 8, 16])
    monkeypatch.setattr(stylegan2_checkpoints, "R", 16)
    pt = {"g_ema": stylegan2_checkpoints.pt_generator(1, mapping=2), "latent_avg": torch.zeros(6).numpy()}
    pkl = {
        "G_ema": nvidia.networks(stylegan2_checkpoints.pkl_generator(1), stylegan2_checkpoints.pkl_discriminator(2))[
            "G_ema"
        ]
    }
    monkeypatch.setattr(mobile_ir, "WIDTHS", (4, 4))
    mobile_ir.write(tmp_path / "ir")
    ir = {path.name: path.read_bytes() for path in (tmp_path / "ir").iterdir()}
    monkeypatch.setattr(mobile_stylegan_ir, "W_AVG_SAMPLES", 10_000)
    return {
        "pkl": (nvidia.write(tmp_path / "x.pkl", pkl).read_bytes(), b"_parameters"),
        "pt": (saved(pt), b"PK"),
        "pt_legacy": (saved(pt, zipped=False), b"_rebuild"),
        "zip": (archive({f"pkg/{name}": data for name, data in ir.items()}, compression=8), b"PK"),
        "ir": ir,
    }


# ------------------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("kind", ["pkl", "pt", "pt_legacy", "zip"])
def test_checkpoints(tmp_path, checkpoints, in_this_process, kind):
    content, near = checkpoints[kind]
    path = tmp_path / "mutated"
    path.write_bytes(content)
    assert convert_checkpoint(path)["generator"].resolution == 16
    fuzz(kind, lambda rng: path.write_bytes(mutated(content, rng, near)), lambda: convert_checkpoint(path))


def test_checkpoints_through_the_process(tmp_path, checkpoints):
    path = tmp_path / "mutated"
    for kind in ("pkl", "pt", "pt_legacy", "zip"):
        content, near = checkpoints[kind]

        def make(rng, content=content, near=near):
            path.write_bytes(mutated(content, rng, near))

        fuzz(f"{kind} through the process", make, lambda: convert_checkpoint(path), THROUGH_THE_PROCESS)


def changed(value, rng: random.Random):
    """Something else in place of a tensor or number of a checkpoint."""
    if not isinstance(value, torch.Tensor):
        return rng.choice((None, -1, "x", [], {}, 1e308, float("nan"), torch.zeros(3)))
    shapes = (value.flatten(), value[None], value[:0] if value.ndim else value, value.sum(), value.transpose(0, -1))
    kinds = (value.double() * 1e300, value.long(), value.bool(), value.half() * 1e5)
    wide = torch.zeros(rng.choice(((2**20,), (2**15, 1), (1, 2**15, 1, 1, 1), (1,) * 8)))
    return rng.choice((*shapes, *kinds, wide, None, "x\x1b[2J\n", 2**62, {"a": value}, [value, value]))


def test_state_dicts(tmp_path, checkpoints, in_this_process):
    """Values and names changed instead of bytes: what reading passes on to the converters."""
    path, port = tmp_path / "mutated", {"G": port_generator(32), "D": port_discriminator(32)}
    path.write_bytes(checkpoints["pt"][0])
    seeds = [torch_file.read(path), port, dict(zip("gd", sngan(), strict=True))]

    def make(rng):
        data = copy.deepcopy(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 5))):
            tensors = data[rng.choice([name for name in data if isinstance(data[name], dict)])]
            name = rng.choice(list(tensors))
            match rng.randrange(8):
                case 0:
                    del tensors[name]
                case 1:
                    tensors[rng.choice(("", "module.", "\x1b[31m", name)) + name] = tensors.pop(name)
                case 2:
                    tensors[rng.choice((1, None, 2.5, (1, 2), b"x"))] = tensors[name]
                case 3:
                    tensors |= {name.replace("0", str(i)): tensors[name] for i in range(rng.choice((3, 3000)))}
                case _:
                    tensors[name] = changed(tensors[name], rng)
            if not all(isinstance(name, str) for name in tensors):
                break
        torch.save(data, path)

    fuzz("state dicts", make, lambda: convert_checkpoint(path), CASES // 2)  # these take longest


def test_ir(tmp_path, checkpoints):
    files, folder = checkpoints["ir"], tmp_path / "mutated"
    folder.mkdir()

    def make(rng):
        changed = rng.choice(sorted(files) + [name for name in files if name.endswith("xml")] * 3)
        for name, data in files.items():
            (folder / name).write_bytes(mutated(data, rng) if name == changed else data)

    fuzz("ir", make, lambda: convert_checkpoint(folder))


@pytest.fixture
def base(tmp_path):
    FewShotGAN(tiny_stylegan2(resolution=16)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def weights(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_safetensors_of_a_base(base):
    path = weights(base / "generator")
    content = path.read_bytes()

    def make(rng):  # half of them in the header
        head, rest = content[:8000], content[8000:]
        path.write_bytes(mutated(head, rng) + rest if rng.random() < 0.5 else mutated(content, rng))

    fuzz("safetensors of a base", make, lambda: StyleGAN2Generator.from_pretrained(path.parent))


@pytest.fixture
def adapter(tmp_path):
    LeFTAdapter.for_model(tiny_stylegan2(resolution=16), rank=1).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_safetensors_of_an_adapter(adapter):
    path = weights(adapter)
    content = path.read_bytes()

    def make(rng):
        head, rest = content[:4000], content[4000:]
        path.write_bytes(mutated(head, rng) + rest if rng.random() < 0.5 else mutated(content, rng))

    fuzz("safetensors of an adapter", make, lambda: Adapter.from_pretrained(adapter))


EYES = {"features": "a", "pairs": None, "text": None}
REPORT = {
    "protocol": {"num_images": 10, "seed": 0, "truncation_psi": 0.7, "neighbour": 3, **EYES},
    "network": {"base_fingerprint": "00", "adapters": {"look": {"sha256": "00", "weight": 1.0}}},
    "results": {"fid": 1.5, "kid": 0.1},
    "versions": {"torch": "2"},
    "source": {"data": "x", "base": "ffhq", "adapter": ["look"], "weight": None},
}


def test_json(base, adapter, tmp_path):
    (tmp_path / "pictures").mkdir()
    licence = {"style": "ink", "licence": {"text": "CC0", "url": "x"}}
    files = {  # path: (content or None for that of the file, how it is read)
        base / "model_index.json": (None, lambda: FewShotGAN.from_pretrained(base)),
        base / "generator" / "config.json": (None, lambda: FewShotGAN.from_pretrained(base)),
        adapter / "adapter_config.json": (None, lambda: Adapter.from_pretrained(adapter)),
        tmp_path / "report.json": (REPORT, lambda: read_report(tmp_path / "report.json")),
        tmp_path / "pictures" / MANIFEST: (REPORT, lambda: _check_folder(tmp_path / "pictures", REPORT)),
        tmp_path / "dataset.json": (licence, lambda: provenance(tmp_path)),
    }
    for path, (content, read) in files.items():
        text = path.read_text(encoding="utf-8") if content is None else json.dumps(content)

        path.write_text(text, encoding="utf-8")
        read()  # as it is it can be read

        def make(rng, path=path, text=text):
            path.write_bytes(mutated_json(text, rng))

        fuzz(f"json: {path.name}", make, read, CASES // len(files) + 1)
        path.write_text(text, encoding="utf-8")


def test_png(tmp_path):
    path, file = tmp_path / "x.png", io.BytesIO()
    Image.effect_noise((24, 20), 90).convert("RGB").save(file, "png")
    content = file.getvalue()
    fuzz("png", lambda rng: path.write_bytes(mutated(content, rng, b"IHDR")), lambda: read_image(path))
