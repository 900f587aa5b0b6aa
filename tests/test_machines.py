"""Other people's machines: home folders, encodings, threads, caches, disks, proxies, and what the package declares."""

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.cli import app
from fewshot_gan.utils.errors import fault_of_disk
from fewshot_gan.utils.threads import available_cores, requested_threads, set_threads, usual_threads

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, and a working folder beside it in which `~` must not appear."""
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(work)
    yield home
    assert os.listdir(work) == []


@pytest.fixture(scope="module")
def adapter_folder(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "ink"
    adapter = LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator, rank=2)
    adapter.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pencil(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pencil"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


# -------------------------------------------------------------------------------------------------------------- home


def test_home_in_python(home, base_folder, adapter_folder, pencil, features, monkeypatch):
    shutil.copytree(base_folder, home / "base")
    shutil.copytree(adapter_folder, home / "ink")
    shutil.copytree(pencil, home / "pencil")
    pipe = FewShotGAN.from_pretrained("~/base").load_adapter("~/ink")
    assert pipe.base_name == str(home / "base") and pipe.active_adapters() == ["ink"]
    pipe.load_adapter(Path("~/ink"), "again")
    pipe.save_adapter("~/saved", "ink")
    pipe.save_adapter("~/several", ["ink", "again"])
    assert FewShotGAN.from_pretrained("~/base").load_adapters("~/several") == ["again", "ink"]
    pipe.save_pretrained("~/copy")
    assert sorted(os.listdir(home / "copy")) == ["discriminator", "generator", "model_index.json", "pipeline.py"]
    pipe.bank.adapters["ink"].save_pretrained(Path("~/bare"))

    from fewshot_gan.apps.evaluation import evaluate
    from fewshot_gan.apps.export import export_generator
    from fewshot_gan.apps.generation import write_pictures

    write_pictures(pipe, "~/faces", 2)
    assert (home / "faces" / "00001.png").is_file()
    monkeypatch.setattr("fewshot_gan.features.load_features", lambda **kwargs: features)
    found = pipe.invert("~/pencil/0.png", steps=1)
    assert found.latents.shape[0] == 1
    export_generator(pipe, "~/net/generator.onnx")
    assert os.listdir(home / "net") == ["generator.onnx"]
    monkeypatch.setattr("fewshot_gan.apps.evaluation.load_features", lambda *args: features)
    features.sha256, features.resize, features.spatial_resize = "", "", ""
    report = evaluate(pipe, "~/pencil", num_images=4, neighbour=2, cache_dir="~/cache")
    assert report["protocol"]["num_true"] == 3 and len(os.listdir(home / "cache")) == 1


def test_home_on_the_command_line(home, base_folder, adapter_folder, pencil, features, monkeypatch):
    shutil.copytree(base_folder, home / "base")
    shutil.copytree(adapter_folder, home / "ink")
    shutil.copytree(pencil, home / "pencil")
    monkeypatch.setattr("fewshot_gan.features.load_features", lambda **kwargs: features)
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda **kwargs: features)
    run("generate", "--base=~/base", "--adapter=~/ink", "--num-images=1", "--out=~/new/faces.png")
    run("generate", "--base=~/base", "--num-images=1", "--separate", "--out=~/separate")
    run("invert", "~/pencil/0.png", "--base=~/base", "--steps=1", "--out=~/me.safetensors")
    run("generate", "--base=~/base", "--latents=~/me.safetensors", "--out=~/me.png")
    run("info", "~/ink")
    run("adapt", "~/pencil", "--base=~/base", "--steps=1", "--batch-size=2", "--out=~/runs/ink", "--num-threads=1")
    config = json.loads((home / "runs" / "ink" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(home / "base")
    made = {"base", "ink", "pencil", "new", "separate", "me.safetensors", "me-sheet.png", "me.png", "runs"}
    assert {name for name in os.listdir(home) if not name.startswith(".")} == made  # matplotlib has hidden ones


def test_home_of_sources(home, pencil):
    from fewshot_gan.hub import resolve_folder

    for call in (
        lambda: run("convert", "~/no.pt", "~/base"),
        lambda: run("push", "~/no-folder", "me/x"),
        lambda: run("evaluate", "pencil", "--protocol=~/no.json"),
    ):
        with pytest.raises(AssertionError, match=re.escape(str(home))):  # the message names the place that was meant
            call()
    (home / "cache").write_text("", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match=re.escape(f"the cache {home}/cache is no folder")):
        resolve_folder("me/ink", cache_dir="~/cache")


def test_home_in_scripts(home):
    from fewshot_gan.catalogue import METHODS
    from fewshot_gan.training import hypernetwork, look_hypernetwork, lottery
    from fewshot_gan.training.command_line import parse

    for method in METHODS:
        run = parse(method, ["--base=~/base", "--data=~/data", "--output_dir=~/out"])
        assert (run.base, run.data, run.output_dir) == tuple(str(home / name) for name in ("base", "data", "out"))
    run = look_hypernetwork.parse(["--base=~/base", "--output_dir=~/out"])
    assert run.options.base == str(home / "base") and run.training.output_dir == str(home / "out")
    run = hypernetwork.parse(["--base=~/base", "--texts=~/x.txt", "--output_dir=~/out"])
    assert (run.options.texts, run.training.output_dir) == (str(home / "x.txt"), str(home / "out"))
    run = lottery.parse(["--data=~/data", "--ticket=~/ticket", "--output_dir=~/out"])
    places = run.options.data, run.options.ticket, run.output_dir
    assert places == tuple(str(home / name) for name in ("data", "ticket", "out"))
    assert lottery.parse(["--data=me/data", "--ticket=random:0.67", "--output_dir=x"]).options.data == "me/data"


SCRIPTS = [*sorted((ROOT / "training").glob("*.py")), ROOT / "hub_cards" / "publish.py"]
BARE = {"measured.py", "stepper.py"}  # started by other scripts alone, which read what they say


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_expand_paths_and_end_in_one_sentence(path):
    tree = ast.parse(path.read_text("utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if getattr(call.func, "attr", None) == "add_argument":
            assert "Path" not in [ast.unparse(k.value) for k in call.keywords if k.arg == "type"], ast.unparse(call)
    starts = [node.body for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    for body in starts if path.name not in BARE else ():
        assert len(body) == 1 and ast.unparse(body[0]).startswith("with script():")


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("lfs.py", ["--data=nowhere", "--output_dir=out"], "folder nowhere does not exist"),
        ("benchmark_adapters.py", ["--out=x.json", "--num_threads=0"], "num_threads=0: give 1 to 1024"),
        ("make_data.py", ["--faces=2", "--base=no-such", "--out=x"], "there is no base 'no-such'"),
    ],
)
def test_scripts_refuse_in_one_sentence(name, arguments, sentence, tmp_path):
    command = [sys.executable, str(ROOT / "training" / name), *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert said[-1].startswith("error: ") and sentence in said[-1]
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------- encodings


@pytest.fixture(scope="session")
def locales(tmp_path_factory):
    """Environments whose text is CP1252, and ASCII; Python's own UTF-8 mode is off."""
    off = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = {"ASCII": {**off, "LC_ALL": "C"}}
    if shutil.which("localedef"):
        folder = tmp_path_factory.mktemp("locales")
        made = subprocess.run(
            ["localedef", "-i", "en_US", "-f", "CP1252", str(folder / "en_US.CP1252")], capture_output=True, text=True
        )
        if (folder / "en_US.CP1252").is_dir():
            found["CP1252"] = {**off, "LC_ALL": "en_US.CP1252", "LOCPATH": str(folder)}
        else:
            print(made.stderr)
    return found


@pytest.fixture(params=["CP1252", "ASCII"])
def foreign(request, locales, tmp_path):
    """Run Python in such a locale; gives what was done, with output as bytes."""
    if request.param not in locales:
        pytest.skip(
            "no CP1252 locale: localedef, or its sources, are not installed; on Debian: apt-get install locales"
        )

    def call(*arguments, **more):
        env = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
        env |= {"PYTHONPATH": os.pathsep.join(sys.path), **locales[request.param], **more}
        return subprocess.run([sys.executable, *map(str, arguments)], env=env, cwd=tmp_path, capture_output=True)

    asked = call("-c", "import locale, sys; print(sys.flags.utf8_mode, locale.getencoding())").stdout.decode().split()
    assert asked[0] == "0" and asked[1].upper() in (
        {"CP1252"} if request.param == "CP1252" else {"ANSI_X3.4-1968", "US-ASCII"}
    )
    return call


COMMANDS = """
import json, sys
from fewshot_gan.cli import app
for line in json.loads(sys.argv[1]):
    try:
        app(line)
    except SystemExit as end:
        print("->", end.code, flush=True)
"""


def test_foreign_encodings(foreign, base_folder, pencil, tmp_path, monkeypatch):
    """What wrote or read text in the locale's encoding, with a card whose letters that lacks."""
    from helpers.hub_server import connected

    data = shutil.copytree(pencil, tmp_path / "data")
    style, licence = "Zeichnung „Lorelei“ → ψ ≥ 1", "Łódź, 漢字"
    text = json.dumps({"style": style, "licence": {"text": licence}}, ensure_ascii=False)
    (data / "dataset.json").write_text(text, encoding="utf-8")
    adapt = ["adapt", str(data), "--base", str(base_folder), "--out", "look", "--num-threads=1"]
    adapt += ["--steps=5", "--batch-size=2"]
    lines = [["list"], adapt, ["info", "look"], ["push", "look", "me/look", "--token=write-me"]]
    lines += [["evaluate", "--help"], ["info", "\u2192\u03c8"]]
    with connected(monkeypatch, tmp_path / "cache") as server:
        hub = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        done = foreign("-c", COMMANDS, json.dumps(lines), HF_HOME=str(tmp_path / "cache"), **hub)
        files = server.files("me/look")
    out, err = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
    print(out, err)
    assert [line for line in out.splitlines() if line.startswith("->")] == ["-> 0"] * 5 + ["-> 2"], err
    assert "Traceback" not in err and "UnicodeEncodeError" not in err and err.count("error: ") == 1
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    for card in (files["README.md"].decode("utf-8"), (tmp_path / "look" / "README.md").read_text("utf-8")):
        assert licence in card and style in card
    config = json.loads((tmp_path / "look" / "adapter_config.json").read_text("utf-8"))
    assert (config["training"]["images"], config["training"]["images_licence"]) == (style, licence)


def test_letters_that_the_console_lacks(foreign):
    code = (
        "from fewshot_gan.utils.errors import script\n"
        "with script():\n    print('ψ ≥ 1 → × ½'); raise ValueError('ψ\\udcff → no')"
    )
    done = foreign("-X", "utf8=0", "-c", code.encode("ascii", "backslashreplace").decode())
    assert done.returncode == 2 and rb"\u03c8 \u2265 1 \u2192 " in done.stdout, done
    assert done.stderr.startswith(b"error: \\u03c8") and b"no" in done.stderr


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.fixture
def no_wish(monkeypatch):
    """Nobody asked for a number of threads, and no launcher is at work."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return monkeypatch


def groups(tmp_path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Control groups as Linux shows them."""
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    (tmp_path / "self").write_text(own, encoding="utf-8")
    return tmp_path / "cgroup", tmp_path / "self"


V1 = {"cpu.cfs_quota_us": "{}", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # a container of its own
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),  # the group above it counts
        ("0::/../../x\n", {"cpu.max": "200000 100000"}, 2),  # a group whose name its container does not see
        ("0::/\n", {"unified/cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/docker/1\n1:name=systemd:/\n", {f"cpu/{k}": v.format(400_000) for k, v in V1.items()}, 4),
        ("4:cpu,cpuacct:/d\n", {f"cpu,cpuacct/d/{k}": v.format(100_000) for k, v in V1.items()}, 1),
        ("1:cpu:/\n", {f"cpu/{k}": v.format(-1) for k, v in V1.items()}, 64),
        ("1:cpuset:/\n", {f"cpuset/{k}": v.format(100_000) for k, v in V1.items()}, 64),
        ("0::/\n", {"cpu.max": "damaged"}, 64),
        ("", {}, 64),
    ],
)
def test_cores_of_a_container(own, files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)  # Python 3.13
    places = groups(tmp_path, own, files)
    assert available_cores(*places) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 1, raising=False)
    assert available_cores(*places) == 1
    assert available_cores(tmp_path / "nowhere", tmp_path / "nowhere") == 1


def test_threads_that_somebody_asks_for(no_wish):
    cores = available_cores()
    assert usual_threads() == cores and usual_threads(processes=cores + 1) == 1
    for wish, threads in (("3", 3), ("5,2", 5), ("0", None), ("many", None), ("-1", None), (" 7 ", 7)):
        no_wish.setenv("OMP_NUM_THREADS", wish)
        assert requested_threads() == threads and usual_threads() == (threads or cores)
    for launcher in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        no_wish.setenv(launcher, "no")
        no_wish.setenv("OMP_NUM_THREADS", "1")  # what both set where nobody asked
        assert usual_threads() == cores
        no_wish.setenv("OMP_NUM_THREADS", "2")
        assert usual_threads() == 2
        no_wish.delenv(launcher)
    no_wish.delenv("OMP_NUM_THREADS")
    no_wish.setenv("LOCAL_WORLD_SIZE", "2")  # of 16 processes on 8 machines
    assert usual_threads(processes=16) == max(1, cores // 2)


def test_threads_of_torch(no_wish):
    torch.set_num_threads(5)
    assert set_threads(3) == torch.get_num_threads() == 3
    no_wish.setattr("fewshot_gan.utils.threads.available_cores", lambda: 2)
    assert set_threads() == torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert set_threads() == 1  # torch's own choice, unless it is more than there are cores
    torch.set_num_threads(5)
    no_wish.setenv("OMP_NUM_THREADS", "5")
    assert set_threads() == 5
    for odd in (0, -1, 10**9):
        with pytest.raises(ValueError, match=f"num_threads={odd}: give 1 to 1024"):
            set_threads(odd)


def test_commands_set_their_threads(base_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    for threads in (2, 3):
        run("generate", "--base", base_folder, "--num-images=1", f"--num-threads={threads}")
        assert torch.get_num_threads() == threads
    computing = {"generate", "export", "evaluate", "invert", "restyle", "adapt", "demo"}
    computing |= {"walk", "mix", "directions", "reproduce"}
    group = typer.main.get_command(app)
    assert computing == {n for n, c in group.commands.items() if any("--num-threads" in p.opts for p in c.params)}


def test_one_place_counts_cores():
    counting = set()
    for path in (*(ROOT / "src" / "fewshot_gan").rglob("*.py"), *(ROOT / "training").glob("*.py")):
        if "cpu_count()" in path.read_text("utf-8"):
            counting.add(path.name)
    assert counting == {"threads.py", "report.py"}  # the report says how many cores the machine has


def test_only_commands_set_threads():
    """`import fewshot_gan` and the library's functions leave torch's threads alone."""
    setting = {}
    for path in sorted((ROOT / "src" / "fewshot_gan").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(call.endswith(("set_num_threads", "set_threads", "set_num_interop_threads")) for call in calls):
            setting[path.relative_to(ROOT / "src" / "fewshot_gan").as_posix()] = tree
    assert set(setting) <= {"apps/cli/root.py", "utils/threads.py", "training/adapt.py", "training/launch.py"}
    for path, tree in setting.items():
        on_import = [
            n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
        ]
        calls = [ast.unparse(n.func) for part in on_import for n in ast.walk(part) if isinstance(n, ast.Call)]
        assert not [call for call in calls if call.endswith("threads")], path


# ------------------------------------------------------------------------------------------------------ caches, disks


@pytest.fixture
def server(monkeypatch, tmp_path):
    from helpers.hub_server import connected

    with connected(monkeypatch, tmp_path / "cache") as hub:
        hub.commit("me/ink", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x" * 4096})
        yield hub


def test_a_cache_that_is_a_file(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from fewshot_gan.hub import fetch_model, resolve_folder

    (tmp_path / "file").write_text("", encoding="utf-8")
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for cache in (tmp_path / "file", tmp_path / "file" / "hub"):
            sentence = re.escape(f"the cache {cache} is no folder: {tmp_path / 'file'} is a file; set HF_HOME to")
            with pytest.raises(NotADirectoryError, match=sentence):
                resolve_folder("me/ink", kind="adapter", cache_dir=cache)
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
            with pytest.raises(NotADirectoryError, match=sentence):
                resolve_folder("me/ink", kind="adapter")
            with pytest.raises(NotADirectoryError, match=sentence):
                fetch_model("me/ink", "encoder", "")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "your share of the disk is used up"),
        (errno.EROFS, "the disk can only be read"),
        (errno.EACCES, "no permission"),
    ],
)
def test_a_cache_that_takes_nothing(server, tmp_path, monkeypatch, number, said):
    from fewshot_gan.hub import fetch_model, resolve_folder

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "blob"))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    sentence = (
        re.escape(f"the cache {tmp_path / 'cache' / 'hub'} cannot take adapter 'me/ink': ") + f".*{said}; set HF_HOME"
    )
    with pytest.raises(OSError, match=sentence) as caught:
        resolve_folder("me/ink", kind="adapter")
    assert "interrupted" not in str(caught.value) and "network" not in str(caught.value)
    with pytest.raises(OSError, match=f"cannot take encoder 'me/ink': .*{said}"):
        fetch_model("me/ink", "encoder", "")


def test_a_network_that_nobody_permits_is_no_disk():
    refused = ConnectionError("[Errno 1] Operation not permitted")
    refused.__cause__ = PermissionError(errno.EPERM, "Operation not permitted")
    assert fault_of_disk(refused) is None
    refused.__cause__ = PermissionError(errno.EPERM, "Operation not permitted", "/cache")
    assert fault_of_disk(refused) == "/cache: no permission; choose another place, or change the permissions"


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))"  # stands for a full disk


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of files")
def test_a_disk_that_takes_nothing(base_folder, tmp_path):
    measured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it writes files too
    env = {**measured, "PYTHONPATH": os.pathsep.join(sys.path)}
    ways = (["--out=faces.png"], ["--separate", "--out=a"], ["--format=webdataset", "--out=b"])
    lines = [["generate", f"--base={base_folder}", "--num-images=4", *way] for way in ways]
    command = [sys.executable, "-c", LIMITED + COMMANDS, json.dumps(lines)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["->", "2"] * len(ways), done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == len(ways) and all("the file would grow beyond what this disk" in line for line in said)
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".tar")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: the disk can only be read"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: no permission; choose another place"),
    ],
)
def test_folders_that_take_nothing(base_folder, adapter_folder, tmp_path, monkeypatch, error, said):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "save", refuse)
    result = CliRunner().invoke(app, ["generate", "--base", str(base_folder), "--num-images=1"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and said in result.stderr
    monkeypatch.setattr(Path, "mkdir", refuse)
    result = CliRunner().invoke(app, ["generate", "--base", str(base_folder), "--num-images=1", "--out=new/faces.png"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and said in result.stderr
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------ proxies


def test_the_demo_asks_no_proxy_for_itself(monkeypatch):
    from fewshot_gan.apps.demo import reached_directly

    class Page(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{page.server_address[1]}/"
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
            for before in (None, "example.org, .intern"):
                for name in ("NO_PROXY", "no_proxy"):
                    monkeypatch.delenv(name, raising=False) if before is None else monkeypatch.setenv(name, before)
                with pytest.raises(httpx.ConnectError):
                    httpx.head(address)
                with reached_directly("10.0.0.7"):
                    assert httpx.head(address).status_code == 200
                    assert {"localhost", "127.0.0.1", "10.0.0.7"} <= set(os.environ["NO_PROXY"].split(","))
                    assert before is None or {"example.org", ".intern"} <= set(os.environ["no_proxy"].split(","))
                assert os.environ.get("NO_PROXY") == os.environ.get("no_proxy") == before
        finally:
            page.shutdown()
            thread.join()


# ------------------------------------------------------------------------------------------- what the package declares

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IMPORTED_AS = {
    "dlib_bin": "dlib",  # where a distribution's name is not that of what it brings
    "pillow": "PIL",
    "dicebear_core": "dicebear",
    "pyyaml": "yaml",
}


def declared(requirements) -> set[str]:
    """Names by which requirements are imported."""
    names = {re.match(r"[\w.-]+", requirement)[0].replace("-", "_").lower() for requirement in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"fewshot_gan"}


def test_imports_are_declared():
    always, extras = declared(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    known = always | set().union(*(declared(extra) for extra in extras.values()))
    package, imports = ROOT / "src" / "fewshot_gan", {}
    for path in (p for p in package.rglob("*.py") if "torch-ext" not in p.parts):
        for name in imported(path):
            imports.setdefault(name, set()).add(path.relative_to(package).as_posix())
    assert {"torch", "PIL", "tqdm", "typer", "pyarrow", "gradio"} <= set(imports)
    assert {name: files for name, files in imports.items() if name not in known} == {}
    scripts = {path.stem for path in (ROOT / "training").glob("*.py")}
    for path in (ROOT / "training").glob("*.py"):
        assert imported(path) - known - scripts == set(), path


def test_what_the_first_command_needs_is_always_there():
    """`import fewshot_gan.pipeline` and `fewshot-gan` import nothing of an extra at their beginning."""
    always = declared(PROJECT["dependencies"])
    code = "import sys, fewshot_gan.pipeline, fewshot_gan.apps.generation, fewshot_gan.cli; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("fewshot_gan")}
    for name in loaded:
        source = ROOT / "src" / Path(*name.split("."))
        path = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
        body = ast.parse(path.read_text("utf-8")).body
        first = {n.module for n in body if isinstance(n, ast.ImportFrom) and not n.level}
        first |= {alias.name for n in body if isinstance(n, ast.Import) for alias in n.names}
        first = {name.partition(".")[0] for name in first} - sys.stdlib_module_names
        assert first <= always | {"fewshot_gan"}, path


def test_the_licence_names_the_weights():
    assert PROJECT["license"] == "Apache-2.0 AND LicenseRef-non-commercial-stylegan2-ffhq"
    cards = "src/fewshot_gan/assets/bases/*/README.md"
    assert PROJECT["license-files"] == ["LICENSE", cards]
    texts = {path.parent.name: path.read_text("utf-8") for path in ROOT.glob(cards)}
    assert texts.keys() == {"ffhq", "ffhq-256"}
    for text in texts.values():
        assert "license_name: non-commercial-stylegan2-ffhq" in text and "**non-commercial**" in text
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License")]  # beside an expression they are forbidden
