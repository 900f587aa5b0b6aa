"""Cards of published repos: the lint passes, and catches each breakage; they are not stale; publishing round-trips."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.hub_server import connected
from huggingface_hub import ModelCard
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import DomainHyperNetwork
from fewshot_gan.hub import ASSETS
from fewshot_gan.ops import dispatch

ROOT = Path(__file__).parents[2] / "hub_cards"
MODULES = ("facts", "lint", "build", "publish")
CARDS = ("ffhq", "ffhq-256", "sketch", "ink", "poster", "lorelei", "toon", "looks", "stylegan-ops")


@pytest.fixture(scope="module")
def scripts():
    """`hub_cards/build.py` and `publish.py` as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        import build
        import publish

        yield build, publish
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def staged(scripts, tmp_path_factory):
    """Name → folder of each repo as it would be published from what is kept; read only."""
    build, _ = scripts
    folder = tmp_path_factory.mktemp("staged")
    return {name: build.stage(name, folder / name) for name in build.repos()}


@pytest.fixture
def lint(scripts):
    build, _ = scripts
    return lambda name, folder, **options: build.problems(name, build.repos(**options)[name], folder)


def kept_files(root: Path) -> dict[str, bytes]:
    found = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}


@pytest.mark.parametrize("name", CARDS)
def test_the_kept_cards_are_right(name, staged, lint):
    assert lint(name, staged[name]) == []


def test_they_are_what_the_weights_give_now(scripts, tmp_path):
    build, _ = scripts
    assert build.build(tmp_path) == list(CARDS)
    assert kept_files(tmp_path) == kept_files(ROOT)


def test_they_stay_small_and_quote_sections_that_exist(scripts):
    build, _ = scripts
    assert sum(map(len, kept_files(ROOT).values())) < 2.3e6
    results = (ROOT.parent / "training" / "RESULTS.md").read_text(encoding="utf-8")
    for about in (*build.repos().values(), build.facts.HYPERNETWORK):
        assert not about.results or f"\n## {about.results}\n" in results
        assert about.results or about.kind == "collection"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def card(old, new):
    return lambda folder: edit(folder / "README.md", old, new)


def report(file, change):
    def apply(folder):
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        change(found)
        (folder / file).write_text(json.dumps(found), encoding="utf-8")

    return apply


def shown(folder):
    """A grid that says it shows other weights."""
    path = folder / "images" / "grid.jpg"
    with Image.open(path) as image:
        image.save(path, "JPEG", comment=b'{"base": "ffhq"}')


def weights(folder):
    """One bit of the adapter."""
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def renamed(found):
    found["network"]["adapters"]["sketch"]["sha256"] = "0" * 16


BREAKAGES = {
    "no licence": (card("license: other\n", ""), "the front matter has no license"),
    "no link to it": (card("license_link:", "link:"), "the front matter has no license_link"),
    "unknown field": (
        card("license_name:", "licence_nom: x\nlicense_name:"),
        "licence_nom, which the Hub",
    ),
    "free licence": (card("license: other", "license: mit"), "license is mit"),
    "no library": (card("library_name: fewshot_gan\n", ""), "the front matter has no library_name"),
    "other task": (card("pipeline_tag: uncond", "pipeline_tag: cond"), "pipeline_tag is conditional"),
    "no base": (card("base_model: fewshot-gan/ffhq\n", ""), "the front matter has no base_model"),
    "base without owner": (
        card("base_model: fewshot-gan/ffhq", "base_model: ffhq"),
        "base_model ffhq names no owner",
    ),
    "no YAML": (card("license: other", "license: [other"), "the front matter is not valid"),
    "no section": (card("## Limits and misuse", "## More"), "there is no section 'Limits and misuse'"),
    "dead link": (card("](images/grid.jpg)", "](images/faces.jpg)"), "the link images/faces.jpg leads to nothing"),
    "dead sample": (card("url: images/grid.jpg", "url: images/g.jpg"), "the link images/g.jpg leads to nothing"),
    "link to the disk": (
        card("## Lineage", "## Lineage\n[x](/home/me/x)"),
        "somebody's machine: /home/",
    ),
    "unfinished": (card("## Lineage", "## Lineage\nTODO"), "unfinished: TODO"),
    "other hash": (
        card("config.json | 11,606 |", "config.json | 7,943 |"),
        "adapter_config.json is",
    ),
    "a file more": (
        lambda folder: (folder / "notes.md").write_text("x", encoding="utf-8"),
        "notes.md would be published, and the card",
    ),
    "a file less": (
        lambda folder: (folder / "report_base.json").unlink(),
        "the card lists report_base.json",
    ),
    "other weights": (weights, "report.json is stale"),
    "stale report": (report("report.json", renamed), "report.json is stale: it is of other weights"),
    "other numbers": (
        report("report.json", lambda r: r["results"].update(kid=0.0)),
        "numbers are not those of",
    ),
    "other model-index": (
        card("type: kid\n      value: 0.", "type: kid\n      value: 1."),
        "model-index are not those of",
    ),
    "other protocol": (report("report_base.json", lambda r: r["protocol"].update(seed=1)), "do not belong together"),
    "no report": (report("report.json", lambda r: r.pop("protocol")), "report.json cannot be read"),
    "stale grid": (shown, "images/grid.jpg is stale: it shows other weights"),
    "damaged weights": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "there is no card"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_the_lint_catches(what, staged, lint, tmp_path):
    change, want = BREAKAGES[what]
    folder = shutil.copytree(staged["sketch"], tmp_path / "sketch")
    change(folder)
    assert want in "; ".join(lint("sketch", folder))


def test_stale_weights_give_no_cards(scripts, staged, tmp_path, monkeypatch):
    """All or nothing: a look that was trained anew keeps its old numbers for nobody."""
    build, publish = scripts
    assets = shutil.copytree(ASSETS / "adapters", tmp_path / "assets" / "adapters").parent
    (assets / "bases").symlink_to(ASSETS / "bases")
    weights(assets / "adapters" / "ffhq" / "ink")
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", assets)
    with pytest.raises(ValueError, match="the card of ink was not written: the report is of other weights"):
        build.build(tmp_path / "out", names=["lorelei", "ink"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="nothing was published; ink: adapter_model.safetensors is not the file"):
        publish.prepare(tmp_path / "prepared", "me", ["ink", "sketch"])


@pytest.mark.parametrize("name", ["ffhq-256", "sketch"])
def test_the_numbers_of_a_report_are_in_the_front_matter(name):
    """`model-index` is what the Hub shows and sorts by; arXiv ids and tables it does not read."""
    data = ModelCard.load(ROOT / name / "README.md").data
    report = json.loads((ROOT / name / "report.json").read_text(encoding="utf-8"))
    assert data.model_name == name
    shown = {result.metric_type: result.metric_value for result in data.eval_results}
    assert shown == {key: report["results"][key] for key in shown} and {"frechet", "kid", "recall"} <= shown.keys()


def test_grids_show_what_the_weights_draw():
    pipe = FewShotGAN.from_pretrained("ffhq").load_adapter("lorelei")
    with Image.open(ROOT / "lorelei" / "images" / "grid.jpg") as grid:
        assert grid.size == (8 * 260 - 4, 2 * 260 - 4)
        for row, look in enumerate(("__base__", "lorelei")):
            drawn = pipe(1, seed=0, adapter_names=look).images[0].resize((256, 256), Image.Resampling.LANCZOS)
            kept = grid.crop((0, 260 * row, 256, 260 * row + 256))
            a, b = (torch.tensor(list(x.convert("L").tobytes())).float() for x in (drawn, kept))
            assert (a - b).abs().mean() < 4  # of 255: what JPEG costs; the next face is 40 away


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("kernels.resolver.CACHE_DIR", str(tmp_path / "kernels"))
    with connected(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_without_push_it_only_tells(scripts, hub, capsys):
    _, publish = scripts
    publish.main(["--org", "me", "--repos", "poster"])
    said = capsys.readouterr()
    assert "nothing was created or uploaded" in said.err and hub.log == []
    lines = said.out.splitlines()
    assert lines[0].startswith("me/poster  (model, ") and len(lines) == 7
    rows = {name: (int(size.replace(",", "")), mark) for name, size, mark in map(str.split, lines[1:])}
    content = (ASSETS / "adapters/ffhq/poster/adapter_model.safetensors").read_bytes()
    assert rows["adapter_model.safetensors"] == (len(content), hashlib.sha256(content).hexdigest())
    assert set(rows) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "images/grid.jpg"} | {
        "report.json",
        "report_base.json",
    }


def test_names_that_are_not_there(scripts, hub, capsys):
    _, publish = scripts
    with pytest.raises(SystemExit):
        publish.main(["--org", "me", "--repos", "hypernetwork"])  # there is none: only with --hypernetwork FOLDER
    assert "there is no repo hypernetwork; known: ffhq, " in capsys.readouterr().err


def run_card(hub, repo_id: str) -> dict:
    """What the Python code on a published card leaves behind."""
    code = re.search(r"```python\n(.*?)```", hub.files(repo_id)["README.md"].decode(), re.S)[1]
    assert repo_id in code
    exec(code, scope := {})
    return scope


def test_all_of_it_there_and_back(scripts, staged, hub):
    _, publish = scripts
    publish.main(["--org", "me", "--push", "--token", "write-me"])
    assert set(hub.repos) == {f"me/{name}" for name in CARDS}
    for name, folder in staged.items():
        here = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        here["README.md"] = here["README.md"].replace(b"fewshot-gan/", b"me/")
        assert hub.files(f"me/{name}") == here
        assert len(hub.repos[f"me/{name}"].messages) == 2  # that of creating it, and one commit

    embedded = FewShotGAN.from_pretrained("ffhq").load_adapter("sketch")
    drawn = run_card(hub, "me/sketch")
    assert [x.tobytes() for x in drawn["images"]] == [x.tobytes() for x in embedded(4, seed=0).images]
    pipe = drawn["pipe"].load_adapter("me/looks", "lore", subfolder="lorelei")
    want = embedded.load_adapter("lorelei")(1, seed=3, adapter_names="lorelei", output_type="pt").images
    assert torch.equal(pipe(1, seed=3, adapter_names="lore", output_type="pt").images, want)

    assert ("POST", "/api/kernels/me/stylegan-ops/commit/main") in hub.log  # a kernel repo, the others are models
    ran = run_card(hub, "me/stylegan-ops")
    x = torch.randn(1, 2, 3, 3)
    assert ran["y"].shape == (4, 64, 32, 32)
    assert torch.equal(ran["ops"].bias_act(x, activation="lrelu"), torch.nn.functional.leaky_relu(x, 0.2) * 2**0.5)
    files = hub.files("me/stylegan-ops", "v1")
    code = {p.name: p.read_bytes() for p in dispatch.BUNDLED.iterdir() if p.suffix == ".py"}
    for folder in ("torch-ext/stylegan_ops", "build/torch-cpu", "build/torch-cuda"):
        assert {name: files[f"{folder}/{name}"] for name in code} == code
    assert json.loads(files["build/torch-cuda/metadata.json"])["backend"] == {"type": "cuda"}


def test_a_private_repo_and_a_public_one(scripts, hub, capsys):
    _, publish = scripts
    command = ["--repos", "ffhq-256", "--private", "--push", "--token"]
    publish.main(["--org", "me", *command, "write-me"])
    assert hub.repos["me/ffhq-256"].private
    hub.commit("you/ffhq-256", {"README.md": b"old"})
    with pytest.raises(SystemExit):
        publish.main(["--org", "you", *command, "write-you"])
    assert "is there already and public" in capsys.readouterr().err
    assert hub.files("you/ffhq-256") == {"README.md": b"old"}


def test_a_hypernetwork_only_where_there_is_one(scripts, lint, hub, tmp_path):
    build, publish = scripts
    pipe = FewShotGAN.from_pretrained("ffhq")
    size = {"embedding_dim": 24, "width": 8, "backbone_depth": 1, "head_depth": 1}
    network = DomainHyperNetwork.for_model(pipe.generator, **size, base_model_name_or_path="ffhq").eval()
    network.register_to_config(encoder=str(tmp_path / "eyes"))
    network.save_pretrained(tmp_path / "hyper")
    with pytest.raises(ValueError, match="holds no record of a training"):
        build.build(tmp_path / "out", hypernetwork=tmp_path / "hyper", names=["hypernetwork"])
    network.register_to_config(training={"domains": ["pencil", "ink"], "max_train_steps": 3})
    network.save_pretrained(tmp_path / "hyper")
    publish.main(["--org", "me", "--repos", "hypernetwork", "--hypernetwork", str(tmp_path / "hyper")])
    build.build(tmp_path / "out", hypernetwork=tmp_path / "hyper", names=["hypernetwork"])
    text = ModelCard.load(tmp_path / "out" / "hypernetwork" / "README.md")
    assert text.data.base_model == "fewshot-gan/ffhq" and "nothing is claimed of how good" in text.text
    assert str(tmp_path) not in str(text)
    folder = build.stage("hypernetwork", tmp_path / "staged", tmp_path / "out", tmp_path / "hyper")
    assert lint("hypernetwork", folder, hypernetwork=tmp_path / "hyper") == []
    loaded = DomainHyperNetwork.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    assert "[hypernetwork]" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "[hypernetwork]" not in (ROOT / "README.md").read_text(encoding="utf-8")
