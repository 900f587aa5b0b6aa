"""Checkpoints that ask for too much, or hold more than tensors: refused in a sentence, in little memory and time."""

import argparse
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import hostile
from helpers.stylegan2_checkpoints import pt_generator

from fewshot_gan.convert import ConversionError, convert_checkpoint, torch_file
from fewshot_gan.utils import untrusted
from fewshot_gan.utils.reading import Refused
from fewshot_gan.utils.reading.opcodes import check
from fewshot_gan.utils.stored_networks import PersistentObject

BOMBS = hostile.bombs()
READER = Path(untrusted.__file__).parent


# ------------------------------------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_a_sentence(tmp_path, name, monkeypatch):
    content, why = BOMBS[name]
    (tmp_path / name).write_bytes(content)
    start, said = time.perf_counter(), []
    with pytest.raises(ConversionError, match=f"{name} was refused: .*{why}") as caught:
        convert_checkpoint(tmp_path / name)
    assert time.perf_counter() - start < 10 and "\n" not in str(caught.value)
    said.append(str(caught.value))
    monkeypatch.setattr(untrusted, "_start", lambda file, numbers: None)  # where no process can be started
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(tmp_path / name)
    assert said == [str(caught.value)]


def test_bombs_take_little_memory(tmp_path):
    """The reader's own peak, of every bomb: started by a process so small that its pages do not count."""
    for name, (content, _) in BOMBS.items():
        (tmp_path / name).write_bytes(content)
    launcher = (
        "import json, os, subprocess, sys\n"
        "peaks = {}\n"
        "for name in sorted(os.listdir(sys.argv[2])):\n"
        "    with open(os.path.join(sys.argv[2], name), 'rb') as file:\n"
        "        command = [sys.executable, '-I', '-S', '-c', sys.argv[3], sys.argv[1], 'numbers']\n"
        "        process = subprocess.Popen(command, stdin=file, stdout=subprocess.DEVNULL)\n"
        "    peaks[name] = os.wait4(process.pid, 0)[2].ru_maxrss\n"
        "print(json.dumps(peaks))\n"
    )
    command = [sys.executable, "-I", "-S", "-c", launcher, str(READER), str(tmp_path), untrusted._START]
    peaks = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    print({name: f"{kilobytes / 1024:.0f} MiB" for name, kilobytes in peaks.items()})
    assert peaks.keys() == BOMBS.keys() and max(peaks.values()) < 150 * 1024  # in kB; torch alone takes 300 MiB


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on this system")
def test_pipes_and_devices_are_no_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero"):
        with pytest.raises(ConversionError, match="no regular file"):
            convert_checkpoint(path)
    with pytest.raises(ConversionError, match="no regular file"):  # in a folder too
        convert_checkpoint(tmp_path)


def module(children: dict, name: str = "Generator") -> PersistentObject:
    return PersistentObject(name, {"_modules": children})


def test_modules_are_counted_by_visits(tmp_path):
    shared = {"a": module({}), "b": module({})}
    assert list(module(shared).modules()) == ["", "a", "b"]
    below = module({})
    for _ in range(30):  # 2^30 visits of 30 paths: the two names are one as text
        below = module({1: below, "1": below})
    with pytest.raises(ConversionError, match="10000 modules"):
        below.modules()
    below = module({})
    for _ in range(40):
        below = module({"a": below})
    with pytest.raises(ConversionError, match="32 levels"):
        below.modules()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_network_is_no_larger_than_its_file(tmp_path, zipped):
    """Weights of 1×1 are parts of one storage of 128 kB; the network of that width would take 90 GB."""
    tensors, wide = pt_generator(1), torch.zeros(2**15).view(1, 2**15, 1, 1, 1)
    tensors |= {f"{name}.conv.weight": wide for name in ("conv1", "convs.1", "convs.3", "convs.5")}
    torch.save({"g_ema": tensors}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match="a StyleGAN2Generator of these settings has more than .* the weights at"):
        convert_checkpoint(tmp_path / "x.pt")


def test_settings_that_loop_are_bounded(tmp_path):
    tensors = pt_generator(1) | {f"style.{i}.weight": torch.zeros(0) for i in range(9, 5000)}
    torch.save({"g_ema": tensors}, tmp_path / "x.pt")
    with pytest.raises(
        ConversionError, match="StyleGAN2Generator: num_mapping_layers is 4,999; at least 0 and at most 64"
    ):
        convert_checkpoint(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------------------------------ opcodes


@pytest.mark.parametrize(
    "stream, why",
    [
        (b"\x80\x02i__main__\nx\n.", "the pickle opcode INST"),
        (b"\x80\x02(c__main__\nx\no.", "the pickle opcode OBJ"),
        (b"\x80\x02\x82\x01.", "the pickle opcode EXT1"),
        (b"\x80\x02Pid\n.", "the pickle opcode PERSID"),
        (b"\x80\x05\x97.", "the pickle opcode NEXT_BUFFER"),
        (b"\x80\x02q\x00.", "nothing to remember"),
        (b"\x80\x02h\x00.", "not remembered"),
        (b"\x80\x02\x85.", "values are missing"),
        (b"\x80\x02N(\x85.", "values are missing"),
        (b"\x80\x02t.", "a mark is missing"),
        (b"\x80\x02Ns.", "values are missing"),
        (b"\x80\x02\xff.", "no pickle opcode"),
        (b"\x80\x02N", "no pickle opcode"),
        (b"\x80\x02}(" + b"N" * 65 + b"tNs.", "a key of more than 64 values"),
        (b"\x80\x02}((" + b"N" * 65 + b"tNu.", "a key of more than 64 values"),
        (b"\x80\x04(" + b"(" + b"N" * 65 + b"t\x91.", "a key of more than 64 values"),
        (b"\x80\x02((" + b"N" * 65 + b"tNd.", "a key of more than 64 values"),
    ],
)
def test_opcodes_are_looked_through_first(stream, why):
    with pytest.raises(Refused, match=why):
        check(io.BytesIO(stream), len(stream))


def test_opcodes_of_ordinary_pickles_pass():
    shared = [1, (2, 3)]
    value = {"a": shared, "b": [shared, {4, 5}, frozenset("xy")], (1, "k"): 1.5, 7: None, "n": 2**77, "t": "x" * 9999}
    value |= {"many": [str(i) for i in range(5000)], "tuple": tuple(range(5000)), "bytes": bytes(10**6), "e": ()}
    for protocol in range(2, 6):
        data = pickle.dumps(value, protocol=protocol)
        file = io.BytesIO(b"before" + data + b"after")
        file.seek(6)
        check(file, len(data) + 5)
        assert file.tell() == 6 and pickle.load(file) == value


# ------------------------------------------------------------------------------------------------ what a file may hold


def roundtrip(tmp_path, value, zipped):
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    return torch_file.read(tmp_path / "x.pt")


def equal(a, b) -> bool:
    if isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in b)
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("process", [True, False])
def test_a_file_of_torch_comes_back_as_it_was(tmp_path, zipped, process, monkeypatch):
    if not process:
        monkeypatch.setattr(untrusted, "_start", lambda file, numbers: None)
    random = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, generator=random)
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    value = {
        "types": {name: (9 * whole).to(getattr(torch, name)) for name in names},
        "views": [whole, whole[2:, 1:3], whole.t(), whole[:, None, 0]],
        "parameter": torch.nn.Parameter(whole[0]).detach(),
        "odd": [torch.tensor(3.0), torch.zeros(0, 3), torch.tensor([True])],
        "plain": [
            None,
            True,
            1,
            -(2**70),
            1.5,
            float("inf"),
            "ä\udc80" * 70,
            (),
            (1, ("x",)),
            {1: 2, "k": [3]},
            b"\x00\xff",
        ],
    }
    read = roundtrip(tmp_path, value | {"parameter": torch.nn.Parameter(whole[0])}, zipped)
    assert equal(read, value)
    assert read["views"][0].data_ptr() == read["views"][2].data_ptr()  # shared numbers stay shared
    special = OrderedDict(a=Counter("ab"), s={1, "x"}, args=argparse.Namespace(lr=0.1, sizes=[1]), n=torch.Size([2, 3]))
    read = roundtrip(tmp_path, special, zipped)
    assert read["a"] == {"a": 1, "b": 1} and read["s"] == {1, "x"} and tuple(read["n"]) == (2, 3)
    assert vars(read["args"]) == {"lr": 0.1, "sizes": [1]}


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_and_arrays_are_read(tmp_path, zipped):
    kinds = "f8 f4 f2 i8 i4 i2 i1 u1 b1 u2 u4 u8".split()
    arrays = {kind: np.arange(-3, 9).reshape(2, 3, 2).astype(kind) for kind in kinds}
    value = {
        "arrays": arrays | {"fortran": np.asfortranarray(arrays["f4"]), "none": np.zeros((0, 2)), "one": np.array(2.5)},
        "scalars": {kind: np.dtype(kind).type(1) for kind in kinds},
        "best_fid": np.float64(12.25),
        "texts": np.array(["a", "b"]),  # no numbers: nothing to convert
    }
    read = roundtrip(tmp_path, value, zipped)
    for kind, array in value["arrays"].items():
        assert equal(read["arrays"][kind], torch.from_numpy(array.copy()))
    assert all(float(read["scalars"][kind]) == 1 for kind in kinds)
    assert read["best_fid"] == 12.25 and type(read["best_fid"]) is float and read["texts"] is None


def test_numpy_that_lies_or_is_no_number_is_refused(tmp_path):
    class Lying:
        def __init__(self, shape, data, kind="f8"):
            self.state = (1, shape, np.dtype(kind), False, data)

        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state

    for zipped in (True, False):
        with pytest.raises(
            ConversionError, match=r"a NumPy array of shape \(1000000000000,\) does not fit its 8 bytes"
        ):
            roundtrip(tmp_path, {"a": Lying((10**12,), bytes(8))}, zipped)
        with pytest.raises(ConversionError, match="byte order of other machines"):
            roundtrip(tmp_path, {"a": np.arange(3, dtype=">f8")}, zipped)
    read = roundtrip(tmp_path, {"a": np.array([{"x": 1}], dtype=object)}, True)
    assert read == {"a": None}


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_refused_without_unsafe_advice(tmp_path, zipped):
    for value in (
        torch.nn.Linear(2, 2),
        {"G": torch.nn.Sequential(torch.nn.Linear(2, 2))},
        {"f": torch.nn.functional.relu},
    ):
        with pytest.raises(ConversionError, match=r"so it holds code.*state_dict\(\)") as caught:
            roundtrip(tmp_path, value, zipped)
        said = str(caught.value)
        assert not re.search("weights_only|safe_globals|\x1b|\n", said) and said.isprintable()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_are_refused(tmp_path, dtype):
    for zipped in (True, False):
        with pytest.raises(ConversionError, match=rf"complex numbers \({str(dtype)[6:]}\)"):
            roundtrip(tmp_path, {"a": torch.ones(2, dtype=dtype)}, zipped)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_other_kinds_are_called_so(tmp_path, zipped):
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
    for tensor in (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), quantised):
        with pytest.raises(ConversionError, match="sparse, quantised or nested"):
            roundtrip(tmp_path, {"a": tensor}, zipped)


def test_what_contains_itself_is_refused(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(ConversionError, match="contains itself"):
        roundtrip(tmp_path, loop, True)
    deep = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(ConversionError, match="200 levels"):
        roundtrip(tmp_path, deep, True)


# ------------------------------------------------------------------------------------------------------- the process


def test_reading_works_from_threads_and_in_a_frozen_program(tmp_path, monkeypatch):
    torch.save({"a": torch.arange(5)}, tmp_path / "x.pt")
    read = []
    threads = [
        threading.Thread(target=lambda: read.append(torch_file.read(tmp_path / "x.pt")), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with open(tmp_path / "x.pt", "rb") as file:
        assert untrusted._start(file) is None
    read.append(torch_file.read(tmp_path / "x.pt"))
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(sys, "executable", "/opt/app/server")  # Python inside another program
    read.append(torch_file.read(tmp_path / "x.pt"))
    assert len(read) == 6 and all(torch.equal(value["a"], torch.arange(5)) for value in read)


@pytest.mark.parametrize(
    "script, why",
    [
        ("import time; time.sleep(60)", "takes longer than a file of its size may take"),
        ("import os; os._exit(3)", "damaged or cut short"),
        ("import sys; sys.stdout.write('x' * 20)", "damaged or cut short"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "takes longer than a file of its size may take"),
    ],
)
def test_a_reader_that_ends_badly_is_a_sentence(tmp_path, monkeypatch, script, why):
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pt")
    monkeypatch.setattr(untrusted, "_START", script)
    monkeypatch.setattr(untrusted, "SPARE_SECONDS", -7)  # 1 s in all
    with pytest.raises(ConversionError, match=why):
        torch_file.read(tmp_path / "x.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce these limits")
def test_the_reader_is_limited(tmp_path):
    script = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from reading import child\n"
        "child._limit_this_process(300 * 2**20, 1)\n"
        "try: bytearray(2**30)\n"
        "except MemoryError: print('no memory', flush=True)\n"
        "while True: pass\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script, str(READER)], capture_output=True, timeout=60)
    assert done.stdout == b"no memory\n" and done.returncode == -signal.SIGXCPU
