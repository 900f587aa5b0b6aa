"""The boundary: every error of the libraries we call is one sentence, a bug says that it is one, signals have codes."""

import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan.cli import app
from fewshot_gan.utils.errors import BUG, REFUSED, Ended, boundary, explain, is_bug, needing, script
from fewshot_gan.utils.files import replace_file
from fewshot_gan.utils.text import plain, plain_lines

ROOT = Path(__file__).parents[2]


def broken_safetensors(folder):
    from safetensors.torch import load_file

    (folder / "x.safetensors").write_bytes(b"\x02")
    load_file(folder / "x.safetensors")


def safetensors_on_a_full_disk(folder):
    from safetensors import SafetensorError

    raise SafetensorError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space" }')


def no_picture(folder):
    (folder / "x.png").write_bytes(b"no picture")
    Image.open(folder / "x.png")


def huge_picture(folder):
    Image._decompression_bomb_check((10**6, 10**6))


def httpx_without_a_server(folder):
    import httpx

    httpx.get("http://127.0.0.1:9/", trust_env=False)


def hub_answers_500(folder):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    raise HfHubHTTPError("500 Server Error", response=httpx.Response(500, request=httpx.Request("GET", "http://x")))


def of_gradio(folder):
    import gradio

    raise gradio.Error("too large")


def yaml_of_a_card(folder):
    import yaml

    yaml.safe_load("a: [1")


def parquet(folder):
    from pyarrow import parquet

    (folder / "x.parquet").write_bytes(b"PAR1")
    parquet.read_table(folder / "x.parquet")


def onnx_session(folder):
    import onnxruntime

    onnxruntime.InferenceSession(b"no model")


def openvino_graph(folder):
    import openvino

    (folder / "x.xml").write_text("<net", encoding="utf-8")
    openvino.Core().read_model(folder / "x.xml")


def tokenizer(folder):
    import tokenizers

    tokenizers.Tokenizer.from_str("{")


def of_a_bare_exception(folder):
    raise Exception("all that some libraries say")


FAULTS = {
    broken_safetensors: "safetensors: Error while deserializing header",
    safetensors_on_a_full_disk: "the disk is full; free some space, or choose a place on another disk",
    no_picture: "PIL: cannot identify image file",
    huge_picture: "PIL: Image size (1000000000000 pixels) exceeds limit",
    httpx_without_a_server: "httpx: ",
    hub_answers_500: "huggingface_hub: 500 Server Error",
    of_gradio: "gradio: 'too large'",
    yaml_of_a_card: "yaml: while parsing a flow sequence",
    parquet: "pyarrow: ",
    onnx_session: "onnxruntime: ",
    openvino_graph: "openvino: ",
    tokenizer: "EOF while parsing an object",
    of_a_bare_exception: "all that some libraries say",
    lambda folder: torch.zeros(2, 3) @ torch.zeros(2, 3): "torch: mat1 and mat2 shapes cannot be multiplied",
    lambda folder: torch.zeros(1, device="cuda:7"): "",  # what torch says depends on how it was built
    lambda folder: torch.empty(2**55): "out of memory (",
    lambda folder: torch.load(folder / "nowhere.pt"): "nowhere.pt: there is no such file or folder",
    lambda folder: torch.Generator().manual_seed(2**70): "",
    lambda folder: zipfile.ZipFile(ROOT / "LICENSE"): "File is not a zip file",
    lambda folder: zlib.decompress(b"x"): "Error -5 while decompressing data",
    lambda folder: struct.unpack("<Q", b"x"): "unpack requires a buffer of 8 bytes",
    lambda folder: pickle.loads(b"\x80\x04X"): "pickle data was truncated",
    lambda folder: pickle.loads(b""): "Ran out of input",
    lambda folder: json.loads("[" * 10**5): "something that was given is nested too deeply to be read (",
    lambda folder: json.loads("{"): "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    lambda folder: b"\xff".decode("utf-8"): "a text is not UTF-8 ('utf-8' codec can't decode byte 0xff",
    lambda folder: bytearray(2**62): "out of memory; use smaller batches",
    lambda folder: int(float("inf")): "cannot convert float infinity to integer",
    lambda folder: __import__("no_such_package"): "the no_such_package package is not installed",
    lambda folder: (folder / "nowhere").read_text("utf-8"): "nowhere: there is no such file or folder",
    lambda folder: (
        ROOT / "LICENSE" / "x"
    ).mkdir(): "LICENSE/x: a part of this path is a file where a folder is needed",
    lambda folder: folder.mkdir(): ": something of this name is there already; choose another path",
    lambda folder: folder.read_bytes(): ": it is a folder; give a file",
    lambda folder: (folder / ("x" * 300)).touch(): "the name is too long; choose a shorter one",
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.items(), ids=lambda x: getattr(x, "__name__", None))
def test_errors_of_libraries_are_one_sentence(fault, sentence, tmp_path, capsys):
    with pytest.raises(Ended) as end, boundary():
        fault(tmp_path)
    out, err = capsys.readouterr()
    assert end.value.code == REFUSED and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and sentence in err and err == f"{end.value}\n"


@pytest.mark.parametrize(
    "bug",
    [KeyError("colour"), TypeError("x"), IndexError(), AttributeError("y"), ZeroDivisionError(), AssertionError()],
)
def test_bugs_say_that_they_are(bug, capsys, monkeypatch):
    for debug in (False, True):
        monkeypatch.setenv("FEWSHOT_GAN_DEBUG", str(int(debug)))
        with pytest.raises(Ended) as end, boundary():
            raise bug
        err = capsys.readouterr().err
        assert end.value.code == BUG and f"error: {type(bug).__name__}: " in err
        assert "this is a bug of fewshot_gan: run it again with --debug" in err
        assert ("Traceback (most recent call last)" in err) == debug and (debug or err.count("\n") == 1)


def test_what_is_a_bug():
    class Theirs(AttributeError):
        __module__ = "theirs"

    assert is_bug(Theirs()) and is_bug(NotImplementedError()) and is_bug(ModuleNotFoundError(name="fewshot_gan.x"))
    assert not is_bug(NotImplementedError("no CUDA here")) and not is_bug(ModuleNotFoundError(name="scipy"))


def test_messages_command_no_terminal(capsys):
    evil = "a\x1b[31mred\x1b[0m \x1b]0;title\x07b\x9b2Jc\r\n\x00d\u202ee\u2028f\x1bPq\x1b\\g"
    assert plain(evil) == "ared bc d e fg"
    assert plain_lines("  a\n\x1b[2J  b") == "  a\n  b"
    assert len(plain("x" * 10**6, 600)) <= 600 and plain("a" * 500 + "the way out", 60).endswith(
        " ... " + "a" * 14 + "the way out"
    )
    for error in (ValueError(evil), KeyError(evil), OSError(errno.ENOSPC, "x", f"/{evil}")):
        with pytest.raises(Ended), boundary(debug=True):
            raise error
        assert not set(capsys.readouterr().err) & set("\x1b\x9b\x07\r\x00\u202e")


def test_the_number_of_a_failed_write_is_found():
    for error in (
        OSError(errno.ENOSPC, "No space left on device", "/x/y.png"),
        OSError(errno.EROFS, "Read-only file system", b"/x"),
        OSError(errno.EACCES, "Permission denied", "a", None, "b"),
        OSError(errno.EFBIG, "File too large"),
    ):
        assert not is_bug(error) and "Errno" not in explain(error)
    assert explain(OSError(errno.ENOSPC, "", "/x/y.png")).startswith("/x/y.png: the disk is full")
    assert explain(OSError(errno.ECONNREFUSED, "Connection refused")) == "[Errno 111] Connection refused"


def test_temporary_files_are_named_as_what_they_become(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(path):
        path.write_bytes(b"half")
        raise full

    with pytest.raises(OSError) as caught:
        replace_file(tmp_path / "faces.png", write)
    assert explain(caught.value) == f"{tmp_path}/faces.png: {explain(OSError(errno.ENOSPC, ''))}"
    assert os.listdir(tmp_path) == []
    for name, shown in ((".12.3-x.png", "/a/x.png"), (".faces-9yope9sa", "/a"), ("tmpab_cd12x", "/a"), (".x", "/a/.x")):
        assert explain(OSError(errno.EROFS, "", f"/a/{name}")).startswith(f"{shown}: the disk can only be read")
    assert explain(OSError(errno.EROFS, "", "tmpab_cd12x")).startswith(".: the disk can only be read")


def test_threads_that_nobody_waits_for(capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "/logs/events")

    before = threading.excepthook
    with boundary():
        thread = threading.Thread(target=fail, name="writer")
        thread.start()
        thread.join()
    assert threading.excepthook is before
    assert capsys.readouterr().err == (
        "warning: the thread writer ended: /logs/events: the disk is full; free some space, or choose a place on "
        "another disk\n"
    )


def test_a_full_disk_under_torch_save():
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    with pytest.raises((OSError, RuntimeError)) as caught:
        torch.save({"x": torch.zeros(10_000)}, Full())
    assert "the disk is full" in explain(caught.value)


def test_needing_names_the_extra():
    with pytest.raises(ImportError, match=r"training needs the no_such package, .*pip install 'fewshot_gan\[train\]'"):
        with needing("training", "train"):
            import no_such  # noqa: F401
    with pytest.raises(ModuleNotFoundError), needing("training", "train"):
        import fewshot_gan.no_such  # noqa: F401


# ----------------------------------------------------------------------------------------------------------- processes


def python(code, *arguments, **options):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


WRITER = """
import sys, time
from pathlib import Path
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import replace_file

def write(path):
    path.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)

with script():
    replace_file(Path(sys.argv[1]), write)
"""
SCRIPT = """
import sys
from fewshot_gan.utils.errors import script

with script():
    sys.exit(int(sys.argv[1]) or 1 // 0)
"""
LOUD = SCRIPT.replace("sys.exit(int(sys.argv[1]) or 1 // 0)", "for i in range(10**5): print('x' * 100)")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_half_written(number, code, tmp_path):
    with python(
        WRITER, tmp_path / "x.bin", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    ) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(number)
        said = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in said[1] and said[1].startswith("stopped by ")
    assert os.listdir(tmp_path) == []


def test_a_command_that_is_stopped_leaves_no_folder(base_folder, tmp_path):
    code = "from fewshot_gan.cli import app; app()"
    options = ("--base", base_folder, "--separate", "--num-images", 10**6, "--out", tmp_path / "faces")
    with python(code, "generate", *options) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".*.staged/faces/*.png")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(tmp_path.glob(".*.staged/faces/*.png"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143 and os.listdir(tmp_path) == []


def test_debug_stands_anywhere(tmp_path):
    for line in (["--debug", "info", "no-such"], ["info", "no-such", "--debug"], ["info", "--debug", "no-such"]):
        result = CliRunner().invoke(app, line)
        assert (
            result.exit_code == 2
            and "Traceback" in result.stderr
            and result.stderr.splitlines()[-1].startswith("error: there")
        )
    for line, code, shown in (
        (["0"], 1, False),
        (["--debug", "0"], 1, True),
        (["0", "--debug"], 1, True),
        (["7"], 7, False),
    ):
        with python(SCRIPT, *line) as process:
            _, err = process.communicate(timeout=30)
        assert process.returncode == code and ("Traceback" in err) == shown


def test_output_that_nobody_takes():
    with python(LOUD) as process:
        assert process.stdout.read(3) == "xxx"
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, "")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-c", "from fewshot_gan.cli import app; app()", "list"]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (
            done.returncode == 2 and done.stderr.startswith("error: the disk is full") and done.stderr.count("\n") == 1
        )


def test_a_boundary_gives_signals_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with boundary():
        assert signal.getsignal(signal.SIGTERM) is not before
        with boundary():
            pass
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("said", "code"), [("error: no such run", 2), ("forgotten: ink\x1b[2J", 1), (7, 7), (None, None)]
)
def test_exits_of_scripts(said, code, capsys):
    with pytest.raises(SystemExit) as end, script():
        sys.exit(said)
    assert end.value.code == code
    assert capsys.readouterr().err == (f"{plain(said)}\n" if isinstance(said, str) else "")
