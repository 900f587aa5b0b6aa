"""The command line: fast help, honest exit codes, one sentence per mistake, files whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from helpers.hub_server import connected
from helpers.run_pages import check_run, read_events, read_losses
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.apps.export import export_generator
from fewshot_gan.cli import app
from fewshot_gan.data.grids import GAP
from fewshot_gan.utils.safetensors_files import read_tensors
from fewshot_gan.version import __version__

COMMANDS = ("generate", "invert", "adapt", "demo", "convert", "push", "info", "list")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run in an empty folder; gives exit code, stdout and stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture
def refused(cli):
    """Run what must fail: one `error:` line, exit code 2, and no file more than before."""

    def call(*arguments):
        before = sorted(Path.cwd().rglob("*"))
        code, out, err = cli(*arguments)
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        assert sorted(Path.cwd().rglob("*")) == before
        return err

    return call


@pytest.fixture(scope="module")
def adapter_folder(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "ink"
    torch.manual_seed(0)
    record = {"base_model_name_or_path": "me/faces", "method": "lfs_gan", "training": {"seed": 7, "steps": 3}}
    adapter = LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator, rank=2, **record)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    adapter.save_pretrained(folder)
    return folder


def cells(path, columns, rows, size=32):
    """The pictures of a grid `[rows, columns, size, size, 3]`; checks size and white gaps."""
    grid = np.asarray(Image.open(path).convert("RGB"))
    step = size + GAP
    assert grid.shape == (rows * step - GAP, columns * step - GAP, 3)
    parts = [[grid[r * step :, c * step :][:size, :size] for c in range(columns)] for r in range(rows)]
    assert (grid[:, size:step] == 255).all() and (grid[size:step] == 255).all()
    return np.array(parts)


def pictures(base, **kwargs):
    return np.array([np.asarray(i) for i in FewShotGAN.from_pretrained(base)(**{"seed": 0, **kwargs}).images])


# ---------------------------------------------------------------------------------------------------------------- help


def run_python(code, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True)


def test_help_loads_nothing_heavy():
    code = """
import sys
from fewshot_gan.cli import app
for line in (["--help"], ["--version"], ["list"], *([name, "--help"] for name in sys.argv[1:])):
    sys.argv = ["fewshot-gan", *line]
    try:
        app()
    except SystemExit as end:
        assert not end.code, line
heavy = [m for m in ("torch", "diffusers", "numpy", "PIL", "huggingface_hub") if m in sys.modules]
assert not heavy, heavy
"""
    done = run_python(code, *COMMANDS)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("Usage: fewshot-gan") == 1 + len(COMMANDS) and __version__ in done.stdout


def test_help_texts_have_no_brackets():
    """Rich, which prints them, takes `[video]` for markup and leaves it out."""

    def texts(command):
        return [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]

    commands = typer.main.get_command(app).commands.values()
    assert not [text for command in commands for text in texts(command) if "[" in text]


def test_version_and_unknown_options(cli):
    assert cli("--version") == (0, f"fewshot_gan {__version__}\n", "")
    assert cli("generate", "--colour", "red")[0] == 2
    assert cli("invent")[0] == 2


# ------------------------------------------------------------------------------------------------------------ generate


def test_generate_writes_a_grid(cli, base_folder):
    code, out, err = cli("generate", "--base", base_folder, "--num-images", 3, "--out", "new/faces.png", "--psi", 0.5)
    assert code == 0 and err == "" and out.startswith("new/faces.png  (3 pictures, ") and out.endswith(" s)\n")
    grid = cells("new/faces.png", 2, 2)
    want = pictures(base_folder, num_images=3, truncation_psi=0.5)
    assert np.array_equal(grid.reshape(4, 32, 32, 3)[:3], want) and (grid[1, 1] == 255).all()
    assert os.listdir("new") == ["faces.png"]
    first = Path("new/faces.png").read_bytes()
    cli("generate", "--base", base_folder, "--num-images", 3, "--out", "new/faces.png", "--psi", 0.5, "--batch-size", 1)
    assert np.abs(cells("new/faces.png", 2, 2).astype(int) - grid).max() <= 1  # batches round differently
    cli("generate", "--base", base_folder, "--num-images", 3, "--out", "new/faces.png", "--psi", 0.5)
    assert Path("new/faces.png").read_bytes() == first
    assert cli("generate", "--base", base_folder)[0] == 0 and Path("faces.png").exists()


def test_compare_shows_the_same_faces_in_every_look(cli, base_folder, adapter_folder):
    assert cli("generate", "--base", base_folder, "--adapter", adapter_folder, "--num-images", 3, "--compare")[0] == 0
    grid = cells("faces.png", 3, 2)
    assert np.array_equal(grid[0], pictures(base_folder, num_images=3))
    pipe = FewShotGAN.from_pretrained(base_folder).load_adapter(adapter_folder)
    adapted = np.array([np.asarray(i) for i in pipe(3, seed=0).images])
    assert np.array_equal(grid[1], adapted) and (grid[0] != grid[1]).any()

    arguments = ["--adapter", adapter_folder, "--adapter", adapter_folder, "--weight", 0.0, "--weight", 1.0]
    assert cli("generate", "--base", base_folder, *arguments, "--num-images", 3, "--compare")[0] == 0
    assert np.array_equal(cells("faces.png", 3, 3), np.stack([grid[0], grid[0], grid[1]]))

    assert cli("generate", "--base", base_folder, *arguments, "--num-images", 4, "--out", "blend.webp")[0] == 0
    assert cli("generate", "--base", base_folder, "--adapter", adapter_folder, "--num-images", 3, "--separate")[0] == 0
    files = sorted(Path("faces").iterdir())
    assert [p.name for p in files] == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal([np.asarray(Image.open(p)) for p in files], adapted)
    arguments = ["--adapter", adapter_folder, "--separate", "--compare", "--out", "both", "--num-images", 1]
    assert cli("generate", "--base", base_folder, *arguments)[0] == 0
    assert sorted(os.listdir("both")) == ["base-00000.png", "ink-00000.png"]


def test_schedules_and_strips(cli, base_folder, adapter_folder):
    command = ["generate", "--base", base_folder, "--adapter", adapter_folder, "--num-images", 2]
    assert cli(*command, "--weight", "coarse:0,16:1", "--out", "fine.png")[0] == 0
    pipe = FewShotGAN.from_pretrained(base_folder).load_adapter(adapter_folder, "ink")
    pipe.set_adapters("ink", {"coarse": 0, 16: 1})
    want = np.array([np.asarray(i) for i in pipe(2, seed=0).images])
    assert np.array_equal(cells("fine.png", 2, 1)[0], want)

    code, out, _ = cli(*command, "--interpolate", 3, "--out", "strip.png")
    assert code == 0 and out.startswith("strip.png  (6 pictures, ")
    strip = cells("strip.png", 3, 2).astype(int)
    for column, look in enumerate(("__base__", {"ink": 0.5}, "ink")):
        want = np.array([np.asarray(i) for i in pipe(2, seed=0, adapter_names=look).images])
        assert np.abs(strip[:, column] - want).max() <= 1


def test_generate_refuses(refused, base_folder, adapter_folder, tmp_path):
    base = ("generate", "--base", base_folder)
    assert "--num-images 0: give 1 or more" in refused(*base, "--num-images", 0)
    assert "--batch-size 0: give 1 or more" in refused(*base, "--batch-size", 0)
    assert "1 adapters but 2 weights" in refused(*base, "--adapter", adapter_folder, "--weight", 1, "--weight", 2)
    assert "0 adapters but 1 weights" in refused(*base, "--weight", 1)
    for bad in ("a lot", "coarse:x", "coarse:0:1"):
        message = refused(*base, "--adapter", adapter_folder, "--weight", bad)
        assert f"--weight {bad} is neither a number nor like coarse:0,fine:1" in message
    assert "'huge' in the weights" in refused(*base, "--adapter", adapter_folder, "--weight", "huge:1")
    for more in ([], ["--adapter", adapter_folder, "--compare"]):
        assert "--interpolate takes one --adapter or two" in refused(*base, "--interpolate", 3, *more)
    assert "--interpolate 1: give 2 to 1000" in refused(*base, "--adapter", adapter_folder, "--interpolate", 1)
    assert "no picture file" in refused(*base, "--out", "faces.txt")
    assert "no picture file" in refused(*base, "--out", tmp_path)
    assert "not an empty folder" in refused(*base, "--separate", "--out", tmp_path)
    assert "no base 'no-such'; embedded bases:" in refused("generate", "--base", "no-such")
    assert "no adapter 'no-such'; embedded adapters:" in refused(*base, "--adapter", "no-such")
    assert "no network" in refused("generate", "--base", "nobody/nothing")
    assert "has no model_index.json" in refused("generate", "--base", tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in adapter_folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:2000])
    (damaged / "adapter_config.json").write_bytes((adapter_folder / "adapter_config.json").read_bytes())
    assert "damaged or cut short" in refused(*base, "--adapter", damaged)


NAN, HUGE = "nan", 10**30
ODD = {  # command line: what is said of it
    ("generate", "--psi", "1e39"): "--psi 1e+39: give a number such as 0.7, -1000 to 1000",
    ("generate", "--psi", NAN): "--psi nan: give a number such as 0.7, -1000 to 1000",
    ("generate", "--psi", "-inf"): "--psi -inf: give a number such as 0.7, -1000 to 1000",
    ("generate", "--psi", "much"): "invalid value for '--psi': ",
    ("generate", "--num-images", HUGE): f"--num-images {HUGE}: give 1 or more, up to a billion",
    ("generate", "--num-images", "9" * 5000): "invalid value for '--num-images': ",
    ("generate", "--num-images", -1): "--num-images -1: give 1 or more, up to a billion",
    ("generate", "--seed", -1): "--seed -1: give 0 or more, below 2^63",
    ("generate", "--seed", 2**63): f"--seed {2**63}: give 0 or more, below 2^63",
    ("generate", "--seed", "1.5"): "invalid value for '--seed': ",
    ("generate", "--batch-size", 0): "--batch-size 0: give 1 or more, up to a billion",
    ("generate", "--format", "parquet", "--shard-size", 0): "--shard-size 0: give 1 or more, up to a billion",
    ("generate", "--class-label", 3, "--class-label", -1): "--class-label -1: give 0 to 2147483647",
    ("generate", "--interpolate", HUGE): f"--interpolate {HUGE}: give 2 to 1000",
    ("generate", "--adapter", "ink", "--weight", "inf"): "--weight inf: give numbers from -1000 to 1000",
    ("generate", "--adapter", "ink", "--weight", "1e39"): "--weight 1e39: give numbers from -1000 to 1000",
    ("generate", "--adapter", "ink", "--weight", "4:nan,8:1"): "--weight 4:nan,8:1: give numbers from -1000 to 1000",
    ("generate", "--num-threads", 0): "--num-threads 0: give 1 to 1024",
    ("generate", "--noise-mode", "loud"): "invalid value for '--noise-mode': 'loud' is not one of 'const', 'random'",
    ("generate", "--weight"): "option '--weight' requires an argument; see ",
    ("generate", "--nois-mode", "none"): "no such option: --nois-mode",
    ("export", "--psi", "1e39"): "--psi 1e+39: give",
    ("evaluate", "pencil", "--num-images", 0): "--num-images 0: give 1 or more",
    ("evaluate", "pencil", "--seed", HUGE): f"--seed {HUGE}: give 0 or more, below 2^63",
    ("evaluate", "pencil", "--psi", NAN): "--psi nan: give",
    ("invert", "x.png", "--steps", -3): "--steps -3: give 1 or more, up to a billion",
    ("invert", "x.png", "--seed", -1): "--seed -1: give 0 or more, below 2^63",
    ("adapt", "pencil", "--out", "r", "--steps", 0): "--steps 0: give 1 or more, up to a billion",
    ("adapt", "pencil", "--out", "r", "--learning-rate", NAN): "--learning-rate nan: give 1e-12 to 1000, e.g. 0.005",
    ("adapt", "pencil", "--out", "r", "--learning-rate", 0): "--learning-rate 0.0: give 1e-12 to 1000, e.g. 0.005",
    ("adapt", "pencil", "--out", "r", "--rank", -1): "--rank -1: give 0 to 10000",
    ("adapt", "pencil", "--out", "r", "--real-zoom", NAN): "--real-zoom nan: give 1 to 16, e.g. 1.5",
    ("adapt", "pencil", "--out", "r", "--batch-size", HUGE): f"--batch-size {HUGE}: give 1 or more, up to a billion",
    ("adapt", "pencil", "--out", "r", "--seed", -1): "--seed -1: give 0 or more, below 2^63",
    ("adapt", "pencil"): "missing option '--out'; see ",
    ("demo", "--port", 99999): "--port 99999: give 1 to 65535",
    ("demo", "--port", 0): "--port 0: give 1 to 65535",
    ("invent",): "no such command 'invent'",
}


@pytest.mark.parametrize("line", ODD, ids=lambda line: " ".join(str(word)[:12] for word in line))
def test_odd_numbers_are_one_sentence(refused, line):
    assert f"error: {ODD[line]}" in refused(*line)


def test_odd_truncation_from_python(base_folder):
    pipe = FewShotGAN.from_pretrained(base_folder)
    for psi in (1e39, float("nan"), float("inf"), -2000, "0.7"):
        with pytest.raises(ValueError, match="truncation_psi=.*: give a number such as 0.7, -1000 to 1000"):
            pipe(1, truncation_psi=psi)
    with pytest.raises(ValueError, match="truncation_psi=nan: give a number such as 0.7"):
        export_generator(pipe, "generator.onnx", truncation_psi=float("nan"))


def test_a_failed_write_leaves_nothing(refused, base_folder, monkeypatch):
    def fail(self, *args, **kwargs):
        Path(args[0]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    Path("faces.png").write_bytes(b"old")
    assert "disk full" in refused("generate", "--base", base_folder)
    assert Path("faces.png").read_bytes() == b"old"
    assert "disk full" in refused("generate", "--base", base_folder, "--separate")


# --------------------------------------------------------------------------------------------------------------- adapt


@pytest.fixture
def pencil(tmp_path):
    folder = tmp_path / "pencil"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_adapt_trains_and_resumes(cli, base_folder, pencil, features, monkeypatch):
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda **kwargs: features)
    arguments = ["adapt", pencil, "--out", "runs/ink", "--base", base_folder, "--steps", 2, "--batch-size", 2]
    code, out, err = cli(*arguments, "--rank", 2, "--seed", 3)
    assert code == 0 and "runs/ink  (" in out and "chosen: --method lfs_gan --preset strokes" in out, err
    config = json.loads(Path("runs/ink/adapter_config.json").read_text(encoding="utf-8"))
    assert (config["adapter_type"], config["rank"], config["training"]["seed"]) == ("lora", 2, 3)
    assert config["training"]["max_train_steps"] == 2 and config["training"]["num_images"] == 3
    assert Path("runs/ink/README.md").exists() and Path("runs/ink/images/grid.jpg").exists()
    check_run("runs/ink", 2)
    scalars, pictures = read_events("runs/ink/logs")
    assert pictures["samples"] == [0, 2] and "to watch: runs/ink/report.html" in out
    for step, losses in read_losses("runs/ink"):
        assert {k: v[step - 1] for k, v in scalars.items()} == {
            k: (step, pytest.approx(v, rel=1e-6)) for k, v in losses.items()
        }
    weights = Path("runs/ink/adapter_model.safetensors").read_bytes()
    assert cli(*arguments, "--rank", 2, "--seed", 3)[0] == 0
    assert Path("runs/ink/adapter_model.safetensors").read_bytes() == weights
    assert cli("generate", "--base", base_folder, "--adapter", "runs/ink", "--compare")[0] == 0
    code, _, err = cli(*arguments, "--rank", 2, "--seed", 4)
    assert code == 2 and "seed was 3, now 4" in err and "Traceback" not in err


def test_adapt_with_the_papers_preset(cli, base_folder, pencil, features, monkeypatch):
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda **kwargs: features)
    code, _, err = cli(
        *("adapt", pencil, "--out", "run", "--base", base_folder, "--steps", 1, "--batch-size", 2),
        *("--preset", "paper", "--adapter", "domain_vector", "--learning-rate", 0.01),
    )
    config = json.loads(Path("run/adapter_config.json").read_text(encoding="utf-8"))
    assert code == 0 and config["adapter_type"] == "domain_vector", err
    assert config["training"]["discriminator"] == "source" and config["training"]["learning_rate"] == 0.01


def test_adapt_by_another_method(cli, base_folder, pencil, features, monkeypatch):
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda **kwargs: features)
    adapt = ("adapt", pencil, "--out", "run", "--base", base_folder, "--steps", 1, "--batch-size", 2)
    code, _, err = cli(*adapt, "--method", "finetune", "--real-zoom", 1.5)
    config = json.loads(Path("run/adapter_config.json").read_text(encoding="utf-8"))
    assert code == 0 and (config["adapter_type"], config["training"]["real_zoom"]) == ("full", 1.5), err


def test_adapt_refuses(refused, base_folder, pencil, tmp_path):
    adapt = ("adapt", pencil, "--base", base_folder, "--out", "run")
    assert "give a folder of about ten, or --text" in refused(*adapt, "--text", "anime")
    assert "give a folder of about ten, or --text" in refused("adapt", "--base", base_folder, "--out", "run")
    words = ("adapt", "--base", base_folder, "--out", "run", "--text", "anime")
    assert "--method d3t learns from pictures; --text needs hyperdomainnet" in refused(*words, "--method", "d3t")
    assert "--method lfs_gan has no preset 'image'; known: few_images, strokes, pattern, paper" in refused(
        *adapt, "--preset", "image"
    )
    assert "could not fetch the encoder 'openai/clip-vit-base-patch32'" in refused(*words)
    vector = ("--method", "hyperdomainnet", "--real-zoom", 2)
    assert "looks at whole pictures, never enlarged; leave out --real-zoom" in refused(*adapt, *vector)
    assert "--rank is of --adapter left" in refused(*adapt, "--adapter", "domain_vector", "--rank", 2)
    assert "--steps 0: give 1 or more" in refused(*adapt, "--steps", 0)
    assert "--learning-rate -1.0: give 1e-12 to 1000" in refused(*adapt, "--learning-rate", -1)
    assert "--rank -1: give 0 to" in refused(*adapt, "--rank", -1)
    assert "no base 'no-such'" in refused("adapt", pencil, "--base", "no-such", "--out", "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no image" in refused("adapt", empty, "--base", base_folder, "--out", "run")
    (empty / "a.png").write_bytes((pencil / "0.png").read_bytes())
    assert "only one image" in refused("adapt", empty, "--base", base_folder, "--out", "run")
    assert "does not exist" in refused("adapt", "nowhere", "--base", base_folder, "--out", "run")


def test_adapt_without_the_extra(pencil):
    code = "import sys\nsys.modules['accelerate'] = None\nfrom fewshot_gan.cli import app\napp()"
    done = run_python(code, "adapt", str(pencil), "--out", str(pencil / "run"))
    assert done.returncode == 2 and done.stdout == "" and not (pencil / "run").exists()
    assert done.stderr.startswith("error: training needs the accelerate package") and done.stderr.count("\n") == 1
    assert "pip install 'fewshot_gan[train]'" in done.stderr


# ------------------------------------------------------------------------------------------------------------- convert


def test_convert_writes_a_base(cli, refused, mobile, discriminator, monkeypatch, base_folder):
    networks = {"generator": mobile, "generator_raw": mobile, "discriminator": discriminator}
    monkeypatch.setattr("fewshot_gan.convert.convert_checkpoint", lambda src: networks)
    Path("some.pkl").write_bytes(b"\x80\x02")
    code, out, err = cli("convert", "some.pkl", "bases/mine")
    assert code == 0 and out.startswith("bases/mine  (32 px, generator of ") and "discriminator of " in out, err
    assert os.listdir("bases") == ["mine"]
    assert sorted(os.listdir("bases/mine")) == ["discriminator", "generator", "model_index.json", "pipeline.py"]
    assert np.array_equal(pictures("bases/mine", num_images=2), pictures(base_folder, num_images=2))
    assert "not an empty folder" in refused("convert", "some.pkl", "bases/mine")
    assert "not an empty folder" in refused("convert", "some.pkl", "some.pkl")
    monkeypatch.setattr("fewshot_gan.pipeline.FewShotGAN.save_pretrained", lambda self, out: 1 / 0)
    code, out, err = cli("convert", "some.pkl", "bases/other")
    assert (code, out, err.count("\n")) == (1, "", 1) and "ZeroDivisionError: division by zero; this is a bug" in err
    assert os.listdir("bases") == ["mine"]


def test_convert_stores_half_precision(cli, refused, mobile, discriminator, monkeypatch, base_folder, adapter_folder):
    """Half the bytes; adapters of the network in fp32 still fit, and what fp16 cannot hold is refused."""
    Path("some.pkl").write_bytes(b"\x80\x02")
    convert = "fewshot_gan.convert.convert_checkpoint"
    for name, options in (("whole", ()), ("half", ("--half",))):
        networks = {"generator": deepcopy(mobile), "discriminator": deepcopy(discriminator)}
        monkeypatch.setattr(convert, lambda src, networks=networks: networks)
        assert cli("convert", "some.pkl", name, *options)[0] == 0
    for part in ("generator", "discriminator"):
        whole, half = (read_tensors(next(Path(name, part).glob("*.safetensors"))) for name in ("whole", "half"))
        assert {t.dtype for t in half.values()} == {torch.float16}
        assert all(torch.equal(whole[k].half(), v) for k, v in half.items()) and whole.keys() == half.keys()
    pipe = FewShotGAN.from_pretrained("half").load_adapter(adapter_folder)
    assert pipe.generator.dtype == torch.float32
    difference = pictures("half", num_images=2).astype(int) - pictures(base_folder, num_images=2)
    assert abs(difference).max() <= 4  # rounded weights, hardly seen
    mobile.synthesis.const.data.fill_(1e5)
    monkeypatch.setattr(convert, lambda src: {"generator": mobile})
    said = refused("convert", "some.pkl", "large", "--half")
    assert "cast to fp16 by --half, has weights that are no finite real numbers: synthesis.const" in said
    assert "--half stores networks in fp16" in refused("convert", "some.pkl", "large", "--half", "--base", base_folder)
    assert not Path("large").exists()


def test_info_shows_an_embedded_adapter_of_each_base(cli, base_folder, adapter_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", tmp_path / "assets")
    for base in ("one", "two"):
        shutil.copytree(base_folder, tmp_path / "assets" / "bases" / base)
        look = shutil.copytree(adapter_folder, tmp_path / "assets" / "adapters" / base / "ink") / "adapter_config.json"
        config = json.loads(look.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        look.write_text(json.dumps(config), encoding="utf-8")
    code, out, err = cli("info", "ink", "--json")
    assert code == 0 and [facts["base_model_name_or_path"] for facts in json.loads(out)] == ["one", "two"]
    pictures = tmp_path / "assets" / "datasets" / "drawings"
    pictures.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(pictures / "000.webp")
    (pictures / "dataset.json").write_text("{}", encoding="utf-8")
    code, out, err = cli("list")
    assert "ink (for one): left" in out and "ink (for two): left" in out and "drawings: 1 pictures" in out


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"PK\x03\x04", b"hello", b"\x80\x04N."])
def test_convert_refuses_what_it_does_not_know(refused, content):
    Path("some.pkl").write_bytes(content)
    assert "some.pkl" in refused("convert", "some.pkl", "out")


def test_convert_refuses_a_missing_source_and_an_unknown_folder(refused):
    assert "there is no nowhere.pt" in refused("convert", "nowhere.pt", "out")
    Path("folder").mkdir()
    assert "holds no known checkpoint" in refused("convert", "folder", "out")


# ---------------------------------------------------------------------------------------------------------------- push


@pytest.fixture
def server(monkeypatch, tmp_path):
    with connected(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def several(adapter_folder, tmp_path):
    """A folder of two adapters."""
    for look in ("ink", "oil"):
        shutil.copytree(adapter_folder, tmp_path / "looks" / look)
    return tmp_path / "looks"


def test_push_an_adapter(cli, server, adapter_folder, tmp_path):
    run = shutil.copytree(adapter_folder, tmp_path / "run")
    (run / "checkpoint-1").mkdir()
    shutil.copy(run / "adapter_model.safetensors", run / "checkpoint-1")
    shutil.copy(run / "adapter_model.safetensors", run / "adapter_model.fp16.safetensors")
    code, out, err = cli("push", run, "me/ink", "--token", "write-me", "--private", "--message", "First try")
    assert (code, out) == (0, "me/ink\n"), err
    files = server.files("me/ink")
    assert server.repos["me/ink"].private and server.repos["me/ink"].messages[-1] == "First try"
    weights = {"adapter_model.safetensors", "adapter_model.fp16.safetensors"}
    assert set(files) == {"README.md", "adapter_config.json", *weights}
    card = files["README.md"].decode()
    assert 'load_adapter("me/ink")' in card and "base_model: me/faces" in card and str(tmp_path) not in card

    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    (run / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path)}), encoding="utf-8"
    )
    assert cli("push", run, "me/local", "--token", "write-me")[0] == 0
    sent = server.files("me/local")["adapter_config.json"].decode()
    assert json.loads(sent)["base_model_name_or_path"] == tmp_path.name and str(tmp_path) not in sent
    assert str(tmp_path) in (run / "adapter_config.json").read_text(encoding="utf-8")  # here it stays as it was

    (run / "README.md").write_text("# my own words\n", encoding="utf-8")
    assert cli("push", run, "me/ink", "--token", "write-me", "--revision", "v2")[0] == 0
    assert server.files("me/ink", "v2")["README.md"] == b"# my own words\n"
    assert server.files("me/ink")["README.md"].decode() == card


def test_push_several_adapters(cli, server, several):
    (several / "notes").mkdir()
    (several / "notes" / "private.json").write_text("{}", encoding="utf-8")
    assert cli("push", several, "looks", "--token", "write-me")[:2] == (0, "me/looks\n")
    files = server.files("me/looks")
    parts = {
        f"{look}/{name}" for look in ("ink", "oil") for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert set(files) == {"README.md", *parts}
    assert "| [oil](oil) | left | " in files["README.md"].decode()
    code, out, _ = cli("info", "me/looks")
    assert code == 0 and out.splitlines()[0].startswith("ink: left, ") and "\noil: left, " in out
    assert cli("info", "me/looks", "--subfolder", "oil")[1] == out[out.index("oil: ") :]


def test_push_a_base(cli, server, base_folder, tmp_path):
    mine = shutil.copytree(base_folder, tmp_path / "mine")
    (mine / "training.log").write_text("private", encoding="utf-8")
    code, out, err = cli("push", mine, "me/faces", "--token", "write-me")
    assert (code, out) == (0, "me/faces\n"), err
    files = server.files("me/faces")
    assert {"README.md", "images/grid.jpg", "model_index.json", "generator/config.json"} <= set(files)
    assert "training.log" not in files and 'from_pretrained("me/faces")' in files["README.md"].decode()
    fetched = pictures("me/faces", num_images=2)
    assert np.array_equal(fetched, pictures(base_folder, num_images=2))


def test_push_refuses(refused, server, adapter_folder, base_folder, several, tmp_path):
    token = ("--token", "write-me")
    assert "nothing to push in" in refused("push", tmp_path / "nowhere", "me/ink", *token)
    assert "no adapter (adapter_config.json), no folder of adapters" in refused("push", tmp_path, "me/ink", *token)
    run = shutil.copytree(adapter_folder, tmp_path / "run")
    assert "run `hf auth login`" in refused("push", run, "me/ink")
    assert "may not write there" in refused("push", run, "me/ink", "--token", "read-me")
    weights = run / "adapter_model.safetensors"
    for cut in (
        weights.read_bytes()[:-1],
        b"",
        b"\xff" * 100,
        b"\x02" + b"\0" * 7 + b"{}",
        b"\x02" + b"\0" * 7 + b"[]",
    ):
        weights.write_bytes(cut)
        assert "damaged or cut short" in refused("push", run, "me/ink", *token)
    weights.unlink()
    assert "has no weights" in refused("push", run, "me/ink", *token)
    (several / "oil" / "adapter_model.safetensors").write_bytes(b"half")
    assert "oil/adapter_model.safetensors is damaged" in refused("push", several, "me/looks", *token)
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    (broken / "model_index.json").write_text("[]", encoding="utf-8")
    assert "model_index.json is damaged" in refused("push", broken, "me/faces", *token)
    shutil.copy(base_folder / "model_index.json", broken)
    shutil.rmtree(broken / "discriminator")
    assert "discriminator in" in refused("push", broken, "me/faces", *token)
    assert server.repos == {}


# ---------------------------------------------------------------------------------------------------------------- info


def test_info_of_a_folder(cli, adapter_folder):
    code, out, err = cli("info", adapter_folder, "--json")
    assert code == 0 and err == ""
    (facts,) = json.loads(out)
    adapter = LeFTAdapter.from_pretrained(adapter_folder)
    assert (facts["name"], facts["adapter_type"], facts["values"]) == ("ink", "left", adapter.num_values())
    size = (adapter_folder / "adapter_model.safetensors").stat().st_size
    assert facts["bytes"] == {"adapter_model.safetensors": size}
    assert facts["base_model_name_or_path"] == "me/faces"
    assert facts["base_fingerprint"] == adapter.config.base_fingerprint
    assert sum(facts["layers"].values()) == len(adapter.config.target_modules) and facts["layers"]["mapping"] == 2
    assert facts["training"] == {"seed": 7, "steps": 3} and facts["config"]["rank"] == 2

    code, out, _ = cli("info", adapter_folder)
    lines = out.splitlines()
    assert lines[0] == f"ink: left, {adapter.num_values():,} numbers, {size:,} bytes"
    assert lines[1] == f"  base: me/faces, fingerprint {adapter.config.base_fingerprint}"
    assert lines[2].startswith(f"  layers: {len(adapter.config.target_modules)} (2 mapping, ")
    assert "method lfs_gan, rank 2" in lines[3] and lines[4] == "  training: seed 7, steps 3"


def test_info_of_an_embedded_name_and_of_the_hub(cli, server, adapter_folder):
    assert cli("info", "sketch")[1].startswith("sketch: lora, ")
    old = server.commit("me/ink", {p.name: p.read_bytes() for p in adapter_folder.iterdir()}, private=True)
    server.commit(
        "me/ink", {"adapter_model.fp16.safetensors": (adapter_folder / "adapter_model.safetensors").read_bytes()}
    )
    assert cli("info", "me/ink")[0] == 2
    code, out, _ = cli("info", "me/ink", "--token", "read-me")
    assert code == 0 and out.startswith("ink: left, ") and "; adapter_model.fp16.safetensors " in out.splitlines()[0]
    code, out, _ = cli("info", "me/ink", "--token", "read-me", "--revision", old)
    assert code == 0 and "fp16" not in out


def test_info_builds_no_network(adapter_folder):
    code = "import sys\nfrom fewshot_gan.cli import app\napp(standalone_mode=False)\nassert 'torch' not in sys.modules"
    done = run_python(code, "info", str(adapter_folder))
    assert done.returncode == 0 and done.stdout.startswith("ink: left, "), done.stderr


def test_info_refuses(refused, adapter_folder, base_folder, tmp_path):
    assert "no adapter 'no-such'" in refused("info", "no-such")
    assert "is no adapter: neither it nor a subfolder" in refused("info", base_folder)
    assert "has no folder 'oil'" in refused("info", adapter_folder, "--subfolder", "oil")
    assert "leads out of" in refused("info", adapter_folder, "--subfolder", "..")
    run = shutil.copytree(adapter_folder, tmp_path / "run")
    for text in ("", "[]", "\xff", "{}", '{"adapter_type": "left", "target_modules": {"a": 1}}'):
        (run / "adapter_config.json").write_bytes(text.encode("latin-1"))
        assert "adapter_config.json is damaged" in refused("info", run)
    shutil.copy(adapter_folder / "adapter_config.json", run)
    (run / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refused("info", run)


# ---------------------------------------------------------------------------------------------------------------- list


def test_list_shows_what_is_embedded(cli, base_folder, adapter_folder, pencil, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", assets)
    assert cli("list") == (0, "bases: none\nadapters: none\ndatasets: none\n", "")
    shutil.copytree(base_folder, assets / "bases" / "tiny")
    shutil.copytree(adapter_folder, assets / "adapters" / "tiny" / "ink")
    shutil.copytree(pencil, assets / "datasets" / "pencil")
    (assets / "datasets" / "pencil" / "dataset.json").write_text("{}", encoding="utf-8")
    code, out, err = cli("list")
    pipe = FewShotGAN.from_pretrained(base_folder).load_adapter(adapter_folder)
    assert code == 0 and err == ""
    for module, name in ((pipe.generator, "generator"), (pipe.discriminator, "discriminator")):
        assert f"{name} {sum(t.numel() for t in module.state_dict().values()):,} numbers, " in out
    assert f"ink (for tiny): left, {pipe.bank.adapters['ink'].num_values():,} numbers, " in out
    assert "  pencil: 3 pictures, " in out


@pytest.mark.parametrize(
    "change",
    [
        "{oops",
        "[]",
        "[" * 50_000,
        {"adapter_type": None},
        {"adapter_type": ["left"]},
        {"target_modules": None},
        {"target_modules": {"a": {"shape": [1]}}},
        {"training": "x"},
        {"training": [1]},
    ],
)
def test_damaged_configs_are_named(refused, server, adapter_folder, several, tmp_path, change):
    run = shutil.copytree(adapter_folder, tmp_path / "damaged")
    for config in (run / "adapter_config.json", several / "oil" / "adapter_config.json"):
        text = (
            change
            if isinstance(change, str)
            else json.dumps({**json.loads(config.read_text(encoding="utf-8")), **change})
        )
        config.write_text(text, encoding="utf-8")
        folder = run if config.parent == run else several
        (folder / "README.md").write_text(
            "# mine\n", encoding="utf-8"
        )  # no card to write: the config is checked all the same
        for command in (("info", folder), ("push", folder, "me/damaged", "--token", "write-me")):
            assert f"{config.parent.name}/adapter_config.json is damaged" in refused(*command)
    assert server.repos == {}


def test_damaged_headers_are_named(refused, server, adapter_folder, tmp_path):
    run = shutil.copytree(adapter_folder, tmp_path / "damaged")
    weights = run / "adapter_model.safetensors"
    for entry in (
        {"data_offsets": [0, 4]},
        {"shape": "x", "data_offsets": [0, 4]},
        {"shape": [None], "data_offsets": [0, 4]},
    ):
        header = json.dumps({"w": entry}).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
        for command in (("info", run), ("push", run, "me/damaged", "--token", "write-me")):
            assert "damaged or cut short" in refused(*command)


# -------------------------------------------------------------------------------------------------------------- invert


def test_invert_then_generate(cli, refused, base_folder, adapter_folder, pencil, features, monkeypatch):
    monkeypatch.setattr("fewshot_gan.features.load_features", lambda **kwargs: features)
    photo = sorted(pencil.glob("*.png"))[0]
    code, out, err = cli("invert", photo, photo, "--base", base_folder, "--steps", 3, "--out", "me/mine.safetensors")
    assert code == 0 and out.startswith("me/mine.safetensors  (") and out.count(" dB") == 2, err
    assert sorted(os.listdir("me")) == ["mine-sheet.png", "mine.safetensors"]
    sheet = cells("me/mine-sheet.png", 2, 2)
    code, out, _ = cli(
        *("generate", "--base", base_folder, "--adapter", adapter_folder, "--compare"),
        *("--latents", "me/mine.safetensors", "--out", "ink.png"),
    )
    assert code == 0 and out.startswith("ink.png  (4 pictures, ")
    grid = cells("ink.png", 2, 2)
    assert np.abs(grid[0].astype(int) - sheet[1]).max() <= 1 and (grid[0] != grid[1]).any()

    shutil.copy(photo, "me.png")
    shutil.copy(photo, "me-sheet.png")
    short = ("--base", base_folder, "--steps", 1, "--out", "me.safetensors")
    assert "me-sheet.png would be overwritten by the picture of the result, but is one of the photos" in refused(
        "invert", "me-sheet.png", *short
    )
    shutil.copy(photo, "me.webp")
    os.symlink("me.webp", "link.webp")
    os.symlink("me.webp", "link.npz")
    for film in ("me.webp", "./link.webp"):
        assert "would be overwritten by the film, but is one of the photos; give another --video" in refused(
            "invert", "me.webp", *short, "--video", film
        )
    assert "link.npz would be overwritten by the latents, but is one of the photos; give another --out" in refused(
        "invert", "me.webp", *short, "--out", "link.npz"
    )
    assert "--face 1 chooses one face, and --all-faces takes each" in refused(
        "invert", "me.png", *short, "--face", 1, "--all-faces"
    )
    for name in ("me-sheet.png", "link.webp", "link.npz"):
        Path(name).unlink()
    assert cli("invert", "me.png", *short)[0] == 0
    assert Path("me.png").read_bytes() == photo.read_bytes()  # a photo beside the latents stays what it is

    code, out, err = cli("invert", "me.png", "--base", base_folder, "--steps", 5, "--out", "a.npz", "--video", "a.webp")
    with Image.open("a.webp") as film:
        assert code == 0 and film.n_frames == 5 and film.width > film.height, err
    film_of_two = ("invert", photo, photo, "--base", base_folder, "--steps", 5)
    assert "--video shows one face, and there are 2" in refused(*film_of_two, "--video", "b.webp")
    assert "--video a.mkv is no video" in refused(*film_of_two, "--video", "a.mkv") and not Path("b.webp").exists()
    assert "cannot be a file of latents" in refused("invert", photo, "--base", base_folder, "--out", "mine.png")
    assert "there is no picture 'nowhere.png'" in refused("invert", "nowhere.png", "--base", base_folder)
    assert "--steps 0: give 1" in refused("invert", photo, "--base", base_folder, "--steps", 0)
    generate = ("generate", "--base", base_folder, "--latents")
    assert "holds no latents" in refused(*generate, photo)
    assert "holds no latents" in refused(*generate, "nowhere.safetensors")
    weights = adapter_folder / "adapter_model.safetensors"
    assert "not latents" in refused(*generate, weights)
