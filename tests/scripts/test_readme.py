"""README.md does what it says: every block of it runs, in a folder where only the files that it names are.

TABLE is what is run of each command, smaller, and on the 256 px base where the size does not matter; python blocks run
as they stand but for PYTHON. A new command in the README needs a row here, and a row whose command is gone fails as
well.
"""

import re
import shlex
import shutil
import subprocess
import sys
from functools import partialmethod
from importlib.metadata import entry_points, metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.adapter_files import MAPPING, domain
from helpers.hub_server import connected
from helpers.plain_checkpoints import biggan
from helpers.saved_models import tiny_clip
from helpers.stylegan2_checkpoints import W, pt_generator
from PIL import ImageChops
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.cli import app
from fewshot_gan.features import encoders

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

# command as in the README: (what is shortened in it, files that are there afterwards, what it says)
SMALL_GAN = (
    "--max_train_steps 1 --channels 8 --d_channels 8 --d_batch_size 2 --g_batch_size 2 --d_steps 1 --num_threads 1"
)
TABLE = {
    # the installation is what CI does before it comes here
    "pip install torch==2.13.0 . && fewshot-gan generate --adapter sketch --compare --num-images 6 --out faces.png": (
        {"pip install torch==2.13.0 . && ": ""},
        ["faces.png"],
        r"faces.png  \(12 pictures",
    ),
    "pip install torch==2.13.0 -e '.[test]' && python -m pytest": None,  # this is it
    "pip install torch==2.13.0 '.[demo]'": None,
    "fewshot-gan demo": None,  # a browser drives it in test_demo.py
    "fewshot-gan list": ({}, [], r"sketch \(for ffhq\): lora"),
    "fewshot-gan generate --adapter sketch --adapter poster --interpolate 6 --out strip.png": (
        {"--interpolate 6": "--interpolate 6 --num-images 1 --base ffhq-256"},
        ["strip.png"],
        r"\(6 pictures",
    ),
    "fewshot-gan walk --seeds 1,5,9 --adapter sketch --out walk.webp": (
        {"walk.webp": "walk.webp --base ffhq-256 --frames 4"},
        ["walk.webp"],
        r"\(4 frames",
    ),
    "fewshot-gan walk --looks --adapter sketch --adapter poster --out looks.webp": (
        {"looks.webp": "looks.webp --base ffhq-256 --frames 3"},
        ["looks.webp"],
        r"\(3 frames",
    ),
    "fewshot-gan mix --rows 1-4 --cols 10-14 --out mix.png": (
        {"1-4": "1-2 --base ffhq-256", "10-14": "10-11"},
        ["mix.png"],
        r"\(8 pictures",
    ),
    'fewshot-gan generate --seeds 0-5,42 --edit smile=2 --edit "hair length=1.5" --out edited.png': (
        {"0-5,42": "0-1,42 --base ffhq-256"},
        ["edited.png"],
        r"\(3 pictures",
    ),
    "fewshot-gan generate --num-images 4 --truncations 0,0.3,0.5,0.7,1 --out truncations.png": (
        {"--num-images 4": "--num-images 1 --base ffhq-256"},
        ["truncations.png"],
        r"\(5 pictures",
    ),
    "fewshot-gan directions --out directions.png": (
        {"directions.png": "directions.png --base ffhq-256"},
        ["directions.png"],
        r"rows: .*smile",
    ),
    "fewshot-gan generate --adapter sketch --num-images 100000 --format webdataset --batch-size 4 --out sketches/": (
        {"100000": "5 --base ffhq-256", "--batch-size 4": "--batch-size 2 --shard-size 3"},
        ["sketches/00000.tar", "sketches/00001.tar", "sketches/.generation.json"],
        r"\(5 pictures",
    ),
    "torchrun --nproc_per_node 8 -m fewshot_gan.cli generate --adapter sketch --num-images 100000 --format parquet "
    "--out sketches/": (
        {
            "--nproc_per_node 8": "--nproc_per_node 2",
            "100000": "4 --shard-size 2 --base ffhq-256",
            "sketches/": "others/",
        },
        ["others/00000.parquet", "others/00001.parquet"],  # another format is refused in sketches/
        r"\(4 pictures",
    ),
    "fewshot-gan export --adapter sketch --format onnx --out sketch.onnx": (
        {"--format onnx": "--format onnx --base ffhq-256"},
        ["sketch.onnx"],
        "256 px, within",
    ),
    "fewshot-gan evaluate my-pictures/ --adapter sketch --num-images 5000 --out report.json": (
        {"5000": "10 --base ffhq-256"},
        ["report.json"],
        r"^frechet +\d",
    ),
    "fewshot-gan evaluate my-pictures/ --protocol report.json": ({}, ["report.json"], "equal to report.json"),
    "pip install torch==2.13.0 '.[train,photo]'": None,
    "fewshot-gan restyle photo.jpg --adapter sketch --adapter ink --out me.png --keep me/": (
        {"--out me.png": "--out me.png --steps 1 --base ffhq-256"},
        ["me.png", "me/adapter_model.safetensors"],
        r"photo, likeness, sketch, ink, adapter in me",
    ),
    "fewshot-gan generate --person me/ --adapter poster": (
        {"--adapter poster": "--adapter poster --base ffhq-256"},
        ["faces.png"],
        r"\(1 pictures",
    ),
    "fewshot-gan invert photo.jpg --out me.safetensors": (
        {"--out me.safetensors": "--out me.safetensors --steps 1 --base ffhq-256"},
        ["me.safetensors", "me-sheet.png"],
        r"photo.jpg \d+\.\d dB",
    ),
    "fewshot-gan generate --latents me.safetensors --adapter sketch": (
        {"--adapter sketch": "--adapter sketch --base ffhq-256"},
        ["faces.png"],
        r"\(1 pictures",
    ),
    "fewshot-gan push FOLDER me/my-look": (
        {"FOLDER": "mine"},
        ["hub:me/my-look/adapter_model.safetensors"],
        "me/my-look",
    ),
    "pip install torch==2.13.0 '.[export]'": None,
    "fewshot-gan export --format web --adapter sketch --adapter toon --out site/": (
        {"--adapter sketch --adapter toon": "--adapter sketch --base ffhq-256 --runtime https://example.org/ort"},
        ["site/index.html", "site/site.json"],
        "MB to load besides ONNX Runtime, 1 looks",
    ),
    "fewshot-gan push site/ me/my-look-page --space static": (
        {},
        ["hub:me/my-look-page/site.json", "hub:me/my-look-page/README.md"],
        "me/my-look-page",
    ),
    "fewshot-gan push runs/mine me/my-look-demo --space gradio": (
        {"runs/mine": "mine"},
        ["hub:me/my-look-demo/app.py", "hub:me/my-look-demo/looks/mine/adapter_config.json"],
        "me/my-look-demo",
    ),
    "fewshot-gan info me/my-look": ({}, [], "left, 90,998 numbers"),
    "fewshot-gan adapt my_ten_images/ --out runs/mine": (
        {"--out runs/mine": "--out runs/mine --steps 1 --batch-size 2 --base ffhq-256"},
        ["runs/mine/adapter_model.safetensors"],
        "runs/mine",
    ),
    "fewshot-gan generate --adapter runs/mine --compare --out mine.png": (
        {"--compare": "--compare --num-images 1 --base ffhq-256"},
        ["mine.png"],
        r"\(2 pictures",
    ),
    'fewshot-gan adapt --text "anime painting" --out runs/anime': (  # CLIP: a tiny one, in the Hub's place
        {"--out runs/anime": "--out runs/anime --steps 1 --batch-size 1 --base ffhq-256"},
        ["runs/anime/adapter_model.safetensors"],
        "runs/anime",
    ),
    # one base in one folder: the README's three ways to make it would refuse each other's
    "fewshot-gan convert network-snapshot.pkl my_base/": ({"my_base": "a"}, ["a/model_index.json"], "32 px"),
    "fewshot-gan convert 550000.pt my_base/": ({"my_base": "b"}, ["b/model_index.json"], "32 px"),
    "fewshot-gan convert G_ema.pth my_base/": ({}, ["my_base/model_index.json"], "16 px"),
    "fewshot-gan generate --base my_base --class-label 207": ({}, ["faces.png"], r"\(4 pictures"),
    "fewshot-gan convert td_anime.pt looks/anime --base my_base": (
        {"my_base": "b"},
        ["looks/anime/adapter_model.safetensors"],
        "an adapter of b",
    ),
    "python training/make_data.py --faces 3000 --resolution 32 --out data/faces": (
        {"3000": "4"},
        ["data/faces/000.png"],
        "4 faces at 32 px",
    ),
    "accelerate launch training/lottery.py --data data/faces --num 1000 --rounds 5 --output_dir runs/ticket": (
        {"--num 1000": "--num 4", "--rounds 5": f"--rounds 1 --num_threads 1 {SMALL_GAN}"},
        ["runs/ticket/round-00/model_index.json", "runs/ticket/round-01/ticket/adapter_config.json"],
        "",
    ),
    "accelerate launch training/adafm.py --data my_hundred_images --groups G4 --output_dir runs/mine": (
        {
            "--data": "--base ffhq-256 --data",
            "--groups G4": "--groups G4 --max_train_steps 1 --train_batch_size 1 --sample_steps 0 --num_threads 1",
        },
        ["runs/mine/adapter_model.safetensors"],
        "",
    ),
}
PYTHON = {  # what is shortened in python blocks
    'pipe.invert("photo.jpg")': 'pipe.invert("photo.jpg", steps=1)',
    'pipe.personalize("photo.jpg")': 'pipe.personalize("photo.jpg", steps=1, inversion_steps=1)',
}


# ------------------------------------------------------------------------------------------------- what the README has


def blocks():
    """`(language, code, line, section)` of every fenced block."""
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        before = TEXT[: match.start(2)]
        found.append((match[1], match[2], before.count("\n"), re.findall(r"^## (.+)$", before, re.MULTILINE)[-1:]))
    return found


def commands(code):
    """The commands of a bash block without their comments."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s+)#\s.*$", "", line).strip())]


BASH = [(section[0] if section else "Start", commands(code)) for kind, code, _, section in blocks() if kind == "bash"]
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
INLINE = [" ".join(span.split()) for span in re.findall(r"`(fewshot-gan [^`]+)`", PROSE)]


def test_every_block_is_one_that_runs_here():
    assert {kind for kind, *_ in blocks()} == {"bash", "python"}
    assert TEXT.count("```") == 2 * len(blocks())
    shown = [command for _, block in BASH for command in block] + INLINE
    assert set(shown) - set(TABLE) == set(), "give what is new in README.md a row in TABLE"
    assert set(TABLE) - set(shown) == set(), "rows of TABLE that README.md does not have any more"
    python = "".join(code for kind, code, *_ in blocks() if kind == "python")
    assert [wanted for wanted in PYTHON if python.count(wanted) != 1] == []


@pytest.mark.parametrize("page", ["README.md", "training/README.md", "training/RESULTS.md"])
def test_links_pictures_and_files_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    named = re.findall(r"`((?:training|tests|src|docs)/[\w./-]+)`", text)
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    missing = [name for name in named if not (ROOT / name).exists()]
    for target in (a or b for a, b in targets):
        path, _, anchor = target.partition("#")
        if not path.startswith(("https://", "http://")):
            if not ((ROOT / page).parent / path).exists() or (anchor and not path and anchor not in headings):
                missing.append(target)
    assert missing == []


# ----------------------------------------------------------------------------------------------------------- the files


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten faces of the base, one drawing of it, and an adapter folder."""
    folder = tmp_path_factory.mktemp("pictures")
    pipe = FewShotGAN.from_pretrained("ffhq-256").load_adapter("sketch")
    for i, image in enumerate(pipe(10, seed=50, adapter_names="__base__").images):
        image.save(folder / f"{i}.png")
    pipe(1, seed=70).images[0].save(folder / "one_drawing.png")
    pipe.save_adapter(folder / "mine", "sketch")
    return folder


@pytest.fixture
def place(pictures, nvidia, tmp_path, monkeypatch):
    """A folder with what the README names and nothing else, as one's own; the Hub is the one of the tests."""
    here = tmp_path / "here"
    for name in ("my_ten_images", "my_hundred_images", "my-pictures"):
        (here / name).mkdir(parents=True)
        for i in range(10):
            (here / name / f"{i}.png").symlink_to(pictures / f"{i}.png")
    shutil.copy(ROOT / "tests" / "golden" / "astronaut.jpg", here / "photo.jpg")
    (here / "one_drawing.png").symlink_to(pictures / "one_drawing.png")
    (here / "training").symlink_to(ROOT / "training")
    nvidia.write(here / "network-snapshot.pkl", nvidia.networks())
    tensors = pt_generator(1, MAPPING)
    torch.save({"g_ema": tensors, "latent_avg": torch.zeros(W)}, here / "550000.pt")
    torch.save(domain("cin_mult"), here / "td_anime.pt")
    g_ema, _ = biggan()
    classes = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    torch.save({**g_ema, "shared.weight": classes}, here / "G_ema.pth")
    shutil.copytree(pictures / "mine", here / "mine")
    monkeypatch.chdir(here)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with connected(monkeypatch, tmp_path / "cache") as hub:
        monkeypatch.setenv("HF_TOKEN", "write-me")  # as after `hf auth login`
        yield SimpleNamespace(path=here, hub=hub)
    encoders._load.cache_clear()  # of the tiny CLIP that bears a real one's name


def give_clip(hub, folder):
    """Tiny CLIPs under the names of the two that words are read with."""
    for seed, name in enumerate(("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16")):
        made = tiny_clip(folder / name, seed=seed)
        hub.commit(name, {path.name: path.read_bytes() for path in made.iterdir()})


# ------------------------------------------------------------------------------------------------------------ commands


def run(command):
    """What a command line prints: ours in this process, others in their own."""
    program, *arguments = shlex.split(command)
    if program == "fewshot-gan":
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, f"{command}\n{done.stderr}"
        return done.stdout
    modules = {"torchrun": "torch.distributed.run --standalone", "accelerate": "accelerate.commands.accelerate_cli"}
    start = [] if program == "python" else ["-m", *modules[program].split()]
    done = subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def check(command, place):
    """Run what TABLE makes of a command of the README; each part of it is known to be there."""
    if TABLE[command] is None:
        return
    shorter, files, says = TABLE[command]
    for there, instead in shorter.items():
        assert command.count(there) == 1, f"{there!r} is to be shortened in {command!r}"
        command = command.replace(there, instead)
    printed = "".join(run(part) for part in command.split(" && "))
    assert re.search(says, printed), f"{command}\n{printed}"
    for name in files:
        if name.startswith("hub:"):
            owner, repo, path = name.removeprefix("hub:").split("/", 2)
            assert place.hub.files(f"{owner}/{repo}")[path]
        else:
            assert (place.path / name).stat().st_size > 0, name


@pytest.mark.parametrize("section, block", BASH, ids=[section for section, _ in BASH])
def test_commands(section, block, place, monkeypatch):
    if section == "Your own photo":  # `restyle --steps` are those of the adapter; the latent is found in one as well
        monkeypatch.setattr(FewShotGAN, "personalize", partialmethod(FewShotGAN.personalize, inversion_steps=1))
    for command in block:
        check(command, place)


def test_commands_in_the_text(place, tmp_path):
    give_clip(place.hub, tmp_path / "clips")
    for command in INLINE:
        check(command, place)


def test_the_command_and_the_extras_are_installed():
    (command,) = entry_points(group="console_scripts", name="fewshot-gan")
    assert command.load() is app
    extras = re.findall(r"'\.\[([\w,]+)\]'", TEXT)
    assert {"test", "train", "export", "kernels"} <= {name for extra in extras for name in extra.split(",")}
    assert {name for extra in extras for name in extra.split(",")} <= set(
        metadata("fewshot_gan").get_all("Provides-Extra")
    )


# -------------------------------------------------------------------------------------------------------------- python


def after_use(names):
    assert [image.size for image in names["images"]] == [(1024, 1024)] * 4
    assert names["images"][0].tobytes() != names["same_faces"][0].tobytes()
    again = names["pipe"](num_images=2, seed=0, batch_size=1, adapter_names="__base__")
    for one, other in zip(again.images, names["same_faces"], strict=False):  # in batches of another size
        extrema = ImageChops.difference(one, other).getextrema()
        assert max(most for _, most in extrema) <= 1  # a pixel may round to the next grey level


def after_many(names):
    assert len(names["mixed"]) == 4 and len(names["strip"]) == 6 and Path("mine/adapter_model.safetensors").is_file()
    base = FewShotGAN.from_pretrained("ffhq").generator.state_dict()
    assert all(torch.equal(v, base[k]) for k, v in names["pipe"].generator.state_dict().items() if k in base)
    assert names["pipe"].active_adapters() == ["ink"]


def after_photo(names):
    assert names["mine"][0].size == (1024, 1024) and len(names["found"].psnr) == 1
    assert len(names["looks"]) == 4 and len(names["strip"]) == 5


def after_share(names):
    files = names["hub"].files("me/my-look")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert any(path.startswith("images/") for path in files)


def after_teach(names):
    assert names["pipe"].active_adapters() == ["one_drawing"]


def after_faces(names):
    assert (len(names["older"]), len(names["grid"]), len(names["frames"])) == (3, 6, 6)
    assert ImageChops.difference(names["older"][0], names["older"][1]).getbbox()


AFTER = {
    "Your own photo": after_photo,
    "Looks in Python": after_use,
    "Many looks at once": after_many,
    "Faces you choose": after_faces,
    "Teach it a new look": after_teach,
    "Share it": after_share,
}


def test_python(place):
    """One program of all python blocks, in order; runs/hyper, which takes hours, holds an untaught hypernetwork."""
    from fewshot_gan.adapters import DomainHyperNetwork

    torch.manual_seed(0)
    shutil.rmtree("mine")  # the program's own is to come
    base, eyes = FewShotGAN.from_pretrained("ffhq").generator, encoders.load_encoder("features")
    options = {"width": 16, "backbone_depth": 1, "head_depth": 1, "base_model_name_or_path": "ffhq"}
    DomainHyperNetwork.for_model(base, eyes, **options).save_pretrained("runs/hyper")
    names, sections = {"__name__": "__main__"}, []
    for _, code, line, (section,) in [block for block in blocks() if block[0] == "python"]:
        for there, instead in PYTHON.items():
            code = code.replace(there, instead)
        exec(compile("\n" * line + code, ROOT / "README.md", "exec"), names)
        AFTER[section]({**names, "hub": place.hub})
        sections.append(section)
    assert sections == list(AFTER)
