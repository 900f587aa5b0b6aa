"""The documentation builds without a warning, and does not where something in it leads nowhere."""

import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_builds(tmp_path):
    command = [sys.executable, ROOT / "docs" / "build.py", tmp_path / "docs"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    front = (tmp_path / "docs" / "fewshot_gan.html").read_text(encoding="utf-8")
    assert "Teach it a new look" in front and ").images" in front.replace("</span>", "")
    pages = tmp_path / "docs" / "fewshot_gan"
    names = {page.relative_to(pages).with_suffix("").as_posix() for page in pages.rglob("*.html")}
    assert {"adapters", "hub", "hub/cards", "metrics", "pipeline"} <= names
    pipeline = (tmp_path / "docs" / "fewshot_gan" / "pipeline.html").read_text(encoding="utf-8")
    for name in ("__call__", "load_adapter", "push_to_hub"):
        assert f'id="FewShotGAN.{name}"' in pipeline
    assert (tmp_path / "docs" / "training" / "images" / "photo.jpg").is_file()


def test_what_leads_nowhere_is_named(docs, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture.png").write_bytes(b"png")
    (tmp_path / "sub" / "other.html").write_text('<p id="there">x</p>', encoding="utf-8")
    links = ["sub/other.html#there", "#own", "picture.png", "https://arxiv.org/abs/2308.11917"]
    dead = ["sub/none.html", "sub/other.html#none", "#none", "none.png"]
    html = "".join(f'<a href="{link}">x</a>' for link in links + dead[:3]) + f'<img src="{dead[3]}"><h2 id="own">x</h2>'
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    pages = {name: docs.Page(tmp_path / name) for name in ("page.html", "sub/other.html")}
    assert docs.dead_links(tmp_path, pages) == [f"page.html leads to {link}, which is not there" for link in dead]


def test_names_that_are_not_there_are_named(docs, tmp_path):
    class Bank:
        size: int

        def add(self):
            """Add."""

    module = types.ModuleType("fewshot_gan")
    module.Bank, Bank.__module__ = Bank, "fewshot_gan"
    modules = {"fewshot_gan": docs.pdoc.doc.Module(module)}
    quoted = ["Bank.add()", "Bank.size", "Bank.lose", "fewshot_gan.Bank", "fewshot_gan.Tank", "torch.Tensor", "W + b.c"]
    code = "".join(f"<code>{name}</code>" for name in quoted)
    (tmp_path / "page.html").write_text(
        f'<div class="docstring">{code}<pre><code>Bank.old()</code></pre></div>', encoding="utf-8"
    )
    found = docs.unknown_names({"page.html": docs.Page(tmp_path / "page.html")}, modules)
    assert [line.split("`")[1] for line in found] == ["Bank.lose", "fewshot_gan.Tank"]


def test_a_folder_of_something_else_is_left_alone(docs, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        docs.main([str(tmp_path)])
    assert "is no folder of documentation" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


def test_the_gallery_shows_every_look(tmp_path, base_folder, perturbed):
    spec = importlib.util.spec_from_file_location("docs_gallery", ROOT / "docs" / "gallery.py")
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    adapter = perturbed(LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator))
    adapter.save_pretrained(tmp_path / "d<ts")
    gallery.main([str(tmp_path / "out"), "--base", str(base_folder), "--adapter", str(tmp_path / "d<ts")])
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'src="([^"]+)"', page)
    assert shown == ["base.jpg", "0-0.jpg", "0-1.jpg", "0.webp"] and "<h2>d&lt;ts</h2>" in page
    for name in shown:
        with Image.open(tmp_path / "out" / name) as image:
            assert getattr(image, "n_frames", 1) == (gallery.FRAMES if name.endswith("webp") else 1)
    with pytest.raises(SystemExit):
        gallery.main([str(tmp_path / "out"), "--seeds", "1", "2"])
