"""A package of somebody else adds a backbone, an adapter kind and a method: the one of docs/extend.md, installed."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-looks\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[fewshot_gan.plugins]\ntiny = tiny_looks\n",
    "RECORD": "",
}


def wheel(path: Path, module: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_looks.py", module)
        for name, text in INFO.items():
            archive.writestr(f"tiny_looks-1.0.dist-info/{name}", text)
    return path


def installed(folder: Path, module: str) -> Path:
    """The plugin, installed by pip into a folder of its own."""
    file = wheel(folder / "tiny_looks-1.0-py3-none-any.whl", module)
    place = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", place, file]
    subprocess.run(command, check=True, capture_output=True)
    return place


def run(place: Path, *command, check: bool = True) -> subprocess.CompletedProcess:
    paths = [str(place), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=env, cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("plugin"), "\n\n".join(EXAMPLES))


@pytest.fixture(scope="module")
def base(plugin, tmp_path_factory):
    """A base of the plugin's backbone, and four pictures."""
    folder = tmp_path_factory.mktemp("base")
    code = f"""
import torch
from PIL import Image
from tiny_looks import StraightGenerator
from fewshot_gan import FewShotGAN
torch.manual_seed(0)
FewShotGAN(StraightGenerator()).save_pretrained({str(folder / "straight")!r})
for i in range(4):
    Image.new("RGB", (40, 40), (40 * i, 10, 200)).save({str(folder)!r} + f"/{{i}}.png")
"""
    run(plugin, "-c", code)
    (folder / "pictures").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "pictures" / path.name)
    return folder


def test_each_example_is_short():
    assert len(EXAMPLES) == 3
    for example in EXAMPLES:
        assert sum(bool(line.strip()) for line in example.splitlines()) < 40


def test_a_plugin_is_trained_saved_loaded_and_described(plugin, base):
    out = base / "my-colours"
    adapt = ["adapt", base / "pictures", "--base", base / "straight", "--method", "colours"]
    adapt += ["--steps", "3", "--batch-size", "2", "--out", out]
    code = f"""
from pathlib import Path
from fewshot_gan import FewShotGAN
from fewshot_gan.cli import app
adapt, out = {list(map(str, adapt))}, {str(out)!r}
app([*adapt, "--dry-run"], standalone_mode=False)
print("written:", Path(out).exists())
app(adapt, standalone_mode=False)
app(["info", out], standalone_mode=False)
pipe = FewShotGAN.from_pretrained({str(base / "straight")!r})
before = pipe(1, seed=0, output_type="pt").images
pipe.load_adapter(out, "mine")
after = pipe(1, seed=0, output_type="pt").images
pipe.fuse_adapters()
fused = pipe(1, seed=0, output_type="pt").images
print(type(pipe.generator).__name__, bool((before != after).any()), float((fused - after).abs().max()) < 1e-4)
"""
    estimate, _, rest = run(plugin, "-c", code).stdout.partition("written: False")
    assert "adapter: gain, " in estimate and "steps: 3 of 2 pictures" in estimate and "time: about" in estimate
    assert "my-colours: gain, " in rest and rest.splitlines()[-1] == "StraightGenerator True True"
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["adapter_type"], config["method"]) == ("gain", "colours")
    assert config["training"]["warmth_weight"] == 10.0 and config["training"]["learning_rate"] == 0.01
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "- Type: gain per input channel" in card and "- Objective: colours alone" in card


def test_the_scripts_and_the_bench_know_it(plugin, base, tmp_path):
    script = ["training/adapt.py", "colours", "--base", base / "straight", "--data", base / "pictures"]
    script += ["--output_dir", tmp_path / "run", "--max_train_steps", "2", "--train_batch_size", "2"]
    script += ["--warmth_weight", "5", "--report_to", "none"]
    bench = ["training/bench.py", "--list", "--output_dir", tmp_path / "bench", "--profile", "gpu"]
    code = f"""
import runpy, sys
sys.path.insert(0, "training")
for command in ({list(map(str, script))}, ["training/adapt.py", "colours", "--help"], {list(map(str, bench))}):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end
"""
    told = run(plugin, "-c", code).stdout
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["training"]["warmth_weight"] == 5
    assert "--warmth_weight" in told and "colours-gain/" in told


def test_without_the_plugin_its_files_say_what_is_missing(plugin, base, tmp_path):
    place = tmp_path / "none"
    place.mkdir()
    out = base / "my-colours"
    if not out.exists():
        pytest.skip("the adapter of the test above was not made")
    code = f"""
from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import Adapter
for load, path in ((Adapter.from_pretrained, {str(out)!r}), (FewShotGAN.from_pretrained, {str(base / "straight")!r})):
    try:
        load(path)
    except ValueError as error:
        print(error)
"""
    told = run(place, "-c", code).stdout
    assert "of type 'gain'; known types: adafm, blend, " in told
    assert "others need the package that defines them" in told and "StraightGenerator" in told


def test_a_plugin_that_cannot_be_imported_is_left_out(tmp_path):
    place = installed(tmp_path, "import there_is_no_such_package\n")
    told = run(place, "-c", "from fewshot_gan.catalogue import METHODS; print(*METHODS)")
    assert told.stdout.split()[:2] == ["lfs_gan", "d3t"]
    assert "the plugin 'tiny' (tiny_looks) cannot be imported and is left out: ModuleNotFoundError" in told.stderr


def test_two_classes_of_one_name_are_refused(tmp_path):
    module = "from fewshot_gan import register_method\n\n@register_method('d3t')\nclass Other:\n    pass\n"
    place = installed(tmp_path, module)
    told = run(place, "-c", "from fewshot_gan.catalogue import METHODS; print(METHODS['d3t'].path); list(METHODS)")
    assert told.stdout.strip() == "fewshot_gan.methods.d3t:D3TMethod"
    assert "tiny_looks:Other cannot be the method 'd3t': fewshot_gan.methods.d3t:D3TMethod has this name" in told.stderr


def test_a_class_that_is_refused_leaves_the_built_in_one():
    from fewshot_gan.adapters import LeFTAdapter
    from fewshot_gan.adapters.registry import adapter_class

    with pytest.raises(ValueError, match="Mine cannot be the adapter type 'left': .*LeFTAdapter has this name"):

        class Mine(LeFTAdapter):
            adapter_type = "left"

    assert adapter_class("left", "it") is LeFTAdapter
