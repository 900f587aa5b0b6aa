"""A base and its looks as a web page: what the browser draws is what torch draws, and nothing leaves the page.

The browser tests need Chromium, and ONNX Runtime Web: npm fetches it, or `FEWSHOT_GAN_ORT_WEB` names its .tgz.
"""

import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.adapter_kinds import KINDS, half_masks
from helpers.hub_server import connected
from helpers.networks import tiny_mobile, tiny_stylegan2
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan.adapters import DomainVectorAdapter, LeFTAdapter, LoRAAdapter, TicketAdapter
from fewshot_gan.apps import website
from fewshot_gan.apps.web_graphs import change_graph, changed, network_graphs, tensors_of
from fewshot_gan.apps.website import export_site
from fewshot_gan.cli import app
from fewshot_gan.pipeline import FewShotGAN

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
WEB = Path(website.__file__).parents[1] / "assets" / "web"
CONSENT = "This is nobody: a test, and <b>it agreed</b>."
LOOKS = {"dots": (LeFTAdapter, {}), "a b:c,d": (DomainVectorAdapter, {"parametrization": "separable"})}
LOOKS |= {"lines": (LoRAAdapter, {"rank": 2})}


@pytest.fixture(scope="module")
def fake_runtime(tmp_path_factory):
    """A folder with files of the names of ONNX Runtime Web."""
    folder = tmp_path_factory.mktemp("runtime")
    for kind in website.MODULES:
        for name in website._names(kind):
            (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture(scope="module", autouse=True)
def graphs_are_made_once():
    """The graphs of a base depend on its settings alone, since its weights are their inputs."""
    made = {}

    def known(generator):
        settings = (type(generator), json.dumps(dict(generator.config), sort_keys=True))
        if settings not in made:
            made[settings] = network_graphs(generator)
        return dict(made[settings])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(website, "network_graphs", known)
        yield


def make_pipe(perturbed):
    pipe = FewShotGAN(tiny_mobile())
    for seed, (name, (kind, options)) in enumerate(LOOKS.items()):
        pipe.load_adapter(perturbed(kind.for_model(pipe.generator, **options), seed, 0.1), name)
    shape = [1, pipe.generator.num_ws, pipe.generator.w_dim]
    person = perturbed(LeFTAdapter.for_model(pipe.generator, latents_shape=shape), 7, 0.1)
    person.person_latents.copy_(pipe.map_latents(pipe.latents(seed=99)).half().float())
    pipe.load_adapter(person, "someone")
    pipe.set_adapters([])
    return pipe


@pytest.fixture(scope="module")
def pipe():
    def perturbed(adapter, seed, std):
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(torch.randn(p.shape, generator=random) * std)
        adapter.round_to_half()
        return adapter

    return make_pipe(perturbed)


# ---------------------------------------------------------------------------------------------------------- the graphs


def outputs_of(change, base):
    values = [base[name] for name in change.reads] + [x.numpy() for x in change.tensors.values()]
    session = onnxruntime.InferenceSession(change.graph.model)
    return session.run(None, dict(zip(change.graph.inputs, values, strict=True)))


@pytest.mark.parametrize(
    "kind",
    [
        "left-1",
        "domain-post",
        "domain-separable",
        "domain-full",
        "lora",
        "delta-w",
        "delta-w-shared",
        "full",
    ],
)
def test_every_kind_of_adapter_changes_weights_as_in_torch(kind, perturbed):
    pipe, (cls, options) = FewShotGAN(tiny_mobile()), KINDS[kind]
    one, two = (perturbed(cls.for_model(pipe.generator, **options), seed, 0.1) for seed in (1, 2))
    pipe.load_adapter(one, "one")
    pipe.load_adapter(two, "two")
    pipe.set_adapters(["one", "two"], [0.7, -0.4])
    base = {name: tensor.numpy() for name, tensor in tensors_of(pipe.generator).items()}
    change = change_graph(pipe.generator, one)
    known = {}
    first, second = (outputs_of(change_graph(pipe.generator, each, known), base) for each in (one, two))
    assert len(known) == (2 if kind == "delta-w-shared" else 1)  # adapters of one kind share a graph
    got = changed(base, [(change, 0.7, first), (change, -0.4, second)])
    pipe.fuse_adapters()
    moved = 0
    for name, tensor in pipe.generator.state_dict().items():
        np.testing.assert_allclose(got[name], tensor.numpy(), rtol=2e-5, atol=2e-5, err_msg=name)
        moved += not np.array_equal(got[name], base[name])
    assert moved > 0


def test_tickets_and_their_bits():
    generator = tiny_mobile()
    pipe = FewShotGAN(generator)
    pipe.load_adapter(TicketAdapter.for_model(generator, masks=half_masks(generator, 3)), "ticket")
    base = {name: tensor.numpy() for name, tensor in tensors_of(generator).items()}
    change = change_graph(generator, pipe.bank.adapters["ticket"])
    got = changed(base, [(change, 1.0, outputs_of(change, base))])
    pipe.set_adapters("ticket")
    pipe.fuse_adapters()
    for name, tensor in generator.state_dict().items():
        np.testing.assert_allclose(got[name], tensor.numpy(), atol=1e-6, err_msg=name)
    assert any((got[name] == 0).any() for name in got)


def test_the_networks_take_their_weights_as_inputs():
    generator = tiny_mobile()
    graphs = network_graphs(generator)
    tensors = {name: tensor.numpy() for name, tensor in tensors_of(generator).items()}
    assert {name for graph in graphs.values() for name in graph.inputs} - {"latent"} <= tensors.keys()
    z = torch.randn(1, 16)
    feeds = [{name: tensors[name] for name in graph.inputs if name != "latent"} for graph in graphs.values()]
    (w,) = onnxruntime.InferenceSession(graphs["mapping"].model).run(None, {"latent": z.numpy(), **feeds[0]})
    np.testing.assert_allclose(w, generator.mapping(z)[:, 0].detach(), atol=1e-5)
    ws = torch.randn(1, generator.num_ws, 16)
    (image,) = onnxruntime.InferenceSession(graphs["synthesis"].model).run(None, {"latent": ws.numpy(), **feeds[1]})
    np.testing.assert_allclose(image, generator.synthesis(ws).detach(), atol=1e-4)
    assert (
        b"weight" in graphs["synthesis"].model and str(Path(__file__).parent).encode() not in graphs["synthesis"].model
    )


@pytest.mark.parametrize("seed", [0, 7, 123456, 2**32 - 1])
def test_a_seed_draws_the_same_numbers_as_torch(seed):
    if NODE is None:
        pytest.skip("node is not installed")
    code = (
        f"import('{(WEB / 'random.mjs').as_uri()}').then(m => console.log(JSON.stringify([...m.normals({seed}, 512)])))"
    )
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, check=True, encoding="utf-8")
    want = torch.randn(1, 512, generator=torch.Generator().manual_seed(seed))[0]
    np.testing.assert_allclose(json.loads(done.stdout), want, atol=2e-6)


# ---------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_has_all_that_the_page_needs(pipe, fake_runtime, tmp_path):
    out, strengths = tmp_path / "site", {"dots": 1, "a b:c,d": 0.5}
    site = export_site(
        pipe, out, strengths, person="someone", consent=CONSENT, runtime=str(fake_runtime), title="A <b> page"
    )
    files = {p.relative_to(out).as_posix(): p.stat().st_size for p in out.rglob("*") if p.is_file()}
    assert files == site.files and set(site.differences) == {"__base__", "dots", "a b:c,d", "someone"}
    content = json.loads((out / "site.json").read_text(encoding="utf-8"))
    assert sorted(content["files"]) == sorted(files)
    numbers = sum(tensor.numel() for tensor in pipe.generator.state_dict().values())
    assert sum(chunk["bytes"] for chunk in content["chunks"]) == 2 * numbers
    assert [(look["name"], look["strength"]) for look in content["looks"]] == [("dots", 1), ("a b:c,d", 0.5)]
    for look in (*content["looks"], content["person"]):
        for part in ("graph", "data"):
            assert files[look[part]["file"]] == look[part]["bytes"]
    assert content["person"]["consent"] == CONSENT and "Not recorded" in content["licence"]
    for name, hosts in (("index.html", ""), ("app.mjs", ""), ("engine.mjs", ""), ("sw.js", "")):
        text = (out / name).read_text(encoding="utf-8")
        assert "__" not in re.sub(r"__proto__", "", text), name
        assert re.findall(r"https?://[^\s\"']+", text) == ([hosts] if hosts else [])
    assert "<title>A &lt;b&gt; page</title>" in (out / "index.html").read_text(encoding="utf-8")
    before = (out / "sw.js").read_text(encoding="utf-8")
    (out / "CNAME").write_text("faces.example.org", encoding="utf-8")  # the owner's own file stays
    export_site(pipe, out, {"lines": 1}, runtime="https://example.org/ort/dist")
    assert (out / "CNAME").is_file() and not [*out.glob("runtime/*/*"), *out.glob("looks/1.*")]
    assert "script-src 'self' 'wasm-unsafe-eval' https://example.org blob:" in (out / "index.html").read_text(
        encoding="utf-8"
    )
    assert (out / "sw.js").read_text(encoding="utf-8") != before  # visitors get the new page
    assert json.loads((out / "site.json").read_text(encoding="utf-8"))["person"] is None


def test_refusals(pipe, fake_runtime, tmp_path, monkeypatch, perturbed):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine", encoding="utf-8")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "site.json").write_text('{"files": ["index.html"]}', encoding="utf-8")
    (foreign / "index.html").write_text("somebody's", encoding="utf-8")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for out, looks, options, message in (
        (full, {}, {}, "has files that are no page of fewshot_gan; give an empty folder"),
        (full / "thesis.txt", {}, {}, "thesis.txt is a file; give a folder"),
        (tmp_path / "a", {"nothing": 1}, {}, "there is no adapter 'nothing'; loaded are dots, a b:c,d, lines, someone"),
        (tmp_path / "a", {"dots": 2}, {}, "strength 2 of dots: the sliders of a page go from 0 to 1.5"),
        (tmp_path / "a", {}, {"person": "dots", "consent": "yes"}, "'dots' is a look, not a person"),
        (tmp_path / "a", {"someone": 1}, {}, "'someone' is a person, not a look; give it with --person and --consent"),
        (tmp_path / "a", {}, {"consent": "yes"}, "a consent belongs to a person"),
        (tmp_path / "a", {}, {"truncation_psi": 2}, "truncation_psi=2: the slider of a page goes from 0 to 1.2"),
        (foreign, {}, {}, "has files that are no page of fewshot_gan"),
        (tmp_path / "a", {}, {"person": "someone"}, "a page with a person needs a consent"),
        (tmp_path / "a", {}, {"runtime": str(lacking)}, "has no ort.wasm.min.mjs; give the folder `dist` or the .tgz"),
        (tmp_path / "a", {}, {"runtime": str(full / "thesis.txt")}, "has no ort.wasm.min.mjs"),
    ):
        with pytest.raises(ValueError, match=message):
            export_site(pipe, out, looks, **{"runtime": str(fake_runtime), **options})
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator).to(torch.float16), "halved")
    try:
        with pytest.raises(ValueError, match="'halved' is in float16, and exported networks compute in float32; load"):
            export_site(pipe, tmp_path / "a", {"halved": 1}, runtime=str(fake_runtime))
    finally:
        pipe.set_adapters([])
        pipe.delete_adapters("halved")
    with pytest.raises(ValueError, match="a StyleGAN2Generator demodulates its weights when it runs"):
        export_site(FewShotGAN(tiny_stylegan2()), tmp_path / "a", {})
    large = FewShotGAN(tiny_mobile())
    with torch.no_grad():
        large.generator.synthesis.const[0, 0, 0] = 1e5  # no number of fp16
    export_site(large, tmp_path / "large", {}, runtime=str(fake_runtime))
    numbers = sum(tensor.numel() for tensor in large.generator.state_dict().values())
    assert next((tmp_path / "large" / "model").glob("0.*.bin")).stat().st_size == 4 * numbers
    monkeypatch.setattr(website, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="the page would draw the base otherwise than torch, by .* of 255"):
        export_site(pipe, tmp_path / "a", {}, runtime=str(fake_runtime))
    with monkeypatch.context() as patch:
        patch.setattr(website, "TOLERANCE", 1.0)
        patch.setattr(website, "_differences", lambda *given: {"__base__": 0.1, "dots": float("nan")})
        with pytest.raises(ValueError, match="would draw 'dots' otherwise than torch, by nan of 255"):
            export_site(pipe, tmp_path / "a", {"dots": 1}, runtime=str(fake_runtime))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(website, "TOLERANCE", 1.0)
    with pytest.raises(OSError, match="npm, which fetches onnxruntime-web, is not installed: install Node.js, or give"):
        export_site(pipe, tmp_path / "a", {})
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())
    assert (full / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_adapters_without_numbers_of_their_own_and_clones(pipe, fake_runtime, tmp_path):
    """Blends and tickets are constants of their graphs, so that two of them never share one."""
    pipe.add_weighted_adapter(["dots", "lines"], [0.5, 0.5], "half")
    pipe.add_weighted_adapter(["dots", "lines"], [1.0, 0.2], "other")
    ticket = TicketAdapter.for_model(pipe.generator, masks=half_masks(pipe.generator, 3))
    pipe.load_adapter(ticket, "ticket")
    out = tmp_path / "clone"
    (out / ".git").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("ref: refs/heads/main", encoding="utf-8")  # of the repo of GitHub Pages
    try:
        site = export_site(pipe, out, {"half": 1, "other": 0, "ticket": 0}, runtime=str(fake_runtime))
    finally:
        pipe.set_adapters([])
        pipe.delete_adapters(["half", "other", "ticket"])
    assert max(site.differences.values()) < 1 and (out / ".git" / "HEAD").is_file()
    looks = json.loads((out / "site.json").read_text(encoding="utf-8"))["looks"]
    assert len({look["graph"]["file"] for look in looks}) == 3


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_command_and_spaces(base_folder, fake_runtime, tmp_path, perturbed, monkeypatch):
    adapter = perturbed(
        LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator, base_model_name_or_path="me/base")
    )
    adapter.save_pretrained(tmp_path / "dots")
    out = tmp_path / "site"
    command = ["export", "--base", base_folder, "--adapter", tmp_path / "dots", "--out", out]
    refused = invoke(*command, "--title", "Dots")
    assert refused.exit_code == 2 and "--title is of web pages: give --format web" in refused.stderr
    done = invoke(*command, "--format", "web", "--runtime", fake_runtime, "--title", "Dots")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"site/  \(0\.\d MB to load besides ONNX Runtime, 1 looks, within \S+/255 of torch", done.stdout)
    assert json.loads((out / "site.json").read_text(encoding="utf-8"))["looks"][0]["strength"] == 1
    listed = invoke("push", out, "me/dots", "--space", "static", "--dry-run")
    assert listed.exit_code == 0 and re.search(r"[\d,]+ engine\.mjs\n", listed.stdout)
    assert "files would be pushed to me/dots" in listed.stdout
    wrong = invoke("push", tmp_path / "dots", "me/dots", "--space", "static", "--dry-run")
    assert wrong.exit_code == 2 and "is no web page (site.json is missing)" in wrong.stderr
    wrong = invoke("push", out, "me/dots", "--space", "gradio", "--dry-run")
    assert wrong.exit_code == 2 and "holds no adapter" in wrong.stderr
    for settings, message in (
        ({"latents_shape": [1, 16]}, "'dots' is or holds a person; a Space would show it to everybody as a look"),
        ({"parts": [{}, {"latents_shape": [1, 16]}]}, "'dots' is or holds a person"),
        ({"base_model_name_or_path": str(tmp_path)}, "which a Space does not have; push it first"),
    ):
        changed_folder = tmp_path / "changed" / "dots"
        shutil.copytree(tmp_path / "dots", changed_folder, dirs_exist_ok=True)
        config = json.loads((tmp_path / "dots" / "adapter_config.json").read_text(encoding="utf-8"))
        (changed_folder / "adapter_config.json").write_text(json.dumps(config | settings), encoding="utf-8")
        wrong = invoke("push", changed_folder, "me/dots", "--space", "gradio", "--dry-run")
        assert wrong.exit_code == 2 and message in wrong.stderr
    sly = tmp_path / "sly"
    shutil.copytree(out, sly)
    (sly / "site.json").write_text(json.dumps({"files": ["../sly/index.html"]}), encoding="utf-8")
    listed = invoke("push", sly, "me/dots", "--space", "static", "--dry-run")
    assert "index.html" in listed.stdout and "sly" not in listed.stdout  # nothing is written beside the folder
    dry = invoke("push", tmp_path / "dots", "me/dots", "--dry-run")
    assert dry.exit_code == 0 and "README.md, would be written" in dry.stdout
    assert not (tmp_path / "dots" / "README.md").exists()
    with connected(monkeypatch, tmp_path / "cache") as hub:
        for source, space, repo in ((out, "static", "me/dots-page"), (tmp_path / "dots", "gradio", "me/dots-demo")):
            done = invoke("push", source, repo, "--space", space, "--token", "write-me")
            assert done.exit_code == 0, done.stderr
            assert hub.repos[repo].sdk == space and done.stdout.strip() == repo
        page, demo = (hub.files(repo) for repo in ("me/dots-page", "me/dots-demo"))
    for name, content in page.items():
        assert name == "README.md" or content == (out / name).read_bytes(), name
    assert set(page) == {*json.loads(page["site.json"])["files"], "README.md"}
    readme = page["README.md"].decode()
    assert "sdk: static" in readme and "cross-origin-embedder-policy: require-corp" in readme
    assert set(demo) == {
        "README.md",
        "app.py",
        "requirements.txt",
        *(f"looks/dots/{n}" for n in ("README.md", "adapter_config.json", "adapter_model.safetensors")),
    } - (set() if (tmp_path / "dots" / "README.md").is_file() else {"looks/dots/README.md"})
    assert "serve('me/base', LOOKS" in demo["app.py"].decode() and "sdk: gradio" in demo["README.md"].decode()
    compile(demo["app.py"], "app.py", "exec")


# --------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    if given := os.environ.get("FEWSHOT_GAN_ORT_WEB"):
        return given
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install --no-install-recommends chromium")
    try:
        return str(website._from_npm(tmp_path_factory.mktemp("npm")))
    except OSError as error:
        pytest.skip(str(error))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(pipe, runtime, tmp_path_factory):
    """Address and server of the page."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install --no-install-recommends chromium")
    out = tmp_path_factory.mktemp("site") / "page"
    export_site(pipe, out, dict.fromkeys(LOOKS, 0.0), person="someone", consent=CONSENT, runtime=runtime)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", server
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Page:
    def __init__(self, browser, address, width=1280, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page, self.address, self.drawn, self.wrong = self.context.new_page(), address, None, []
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda r: self._note(r.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)

    def _note(self, url):
        if not url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(url)

    def visit(self, link=""):
        self.drawn = None
        self.page.goto(self.address + link)
        return self.wait()

    def wait(self):
        """Wait for another picture than the one that was waited for last."""
        other = "" if self.drawn is None else f':not([data-drawn="{self.drawn}"])'
        self.page.wait_for_selector(f"body[data-drawn]{other}")
        self.drawn = self.page.get_attribute("body", "data-drawn")
        return self

    def go(self, link):
        self.page.goto(self.address + link)
        return self.wait()

    def picture(self, kind="PNG"):
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=f"Save {kind}").click()
        assert download.value.suggested_filename.endswith(f".{kind.lower()}")
        return np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)


def pictures(pipe, **options):
    return np.asarray(pipe(1, **options).images[0]).astype(int)


def test_the_page_draws_what_torch_draws(browser, site, pipe):
    page = Page(browser, site[0]).visit("#seed=7&psi=0.6&look=&device=wasm")
    assert page.page.get_attribute("body", "data-engine").startswith("wasm")
    sign = "a%2520b%253Ac%252Cd"  # encoded twice: as a name, and in the address
    for link, options in (
        ("look=", {"adapter_names": "__base__"}),
        ("look=dots:1", {"adapter_names": "dots"}),
        (f"look=dots:0.5,{sign}:0.7", {"adapter_names": {"dots": 0.5, "a b:c,d": 0.7}}),
        (f"look={sign}:1,lines:0.25", {"adapter_names": {"a b:c,d": 1.0, "lines": 0.25}}),
    ):
        page.go(f"#seed=7&psi=0.6&{link}&device=wasm&n={page.drawn}")
        assert np.abs(page.picture() - pictures(pipe, seed=7, truncation_psi=0.6, **options)).max() <= 1, link
    page.go("#seed=7&psi=0.6&look=&to=8&at=0.25")
    ws = pipe.map_latents(pipe.latents(seeds=[7, 8]), truncation_psi=0.6)
    assert np.abs(page.picture() - pictures(pipe, latents=ws[:1].lerp(ws[1:], 0.25))).max() <= 1
    for look, names in (("", None), ("dots:1", "dots"), ("dots:0.5", {"dots": 0.5})):
        page.go(f"#face=person&look={look}")
        options = {} if names is None else {"adapter_names": names}
        assert (
            np.abs(
                page.picture()
                - np.asarray(
                    pipe.draw_person("someone", **{"adapter_names": {"someone": 1.0}, **options}).images[0]
                ).astype(int)
            ).max()
            <= 1
        )
    assert page.picture("WebP").shape == (32, 32, 3)
    assert page.page.locator("#consent").inner_text() == f"The person: {CONSENT}"
    assert "except the person" in page.page.locator("header").inner_text() and page.wrong == []
    page.context.close()


def test_the_link_the_controls_and_a_visit_without_a_network(browser, site):
    page = Page(browser, site[0]).visit()
    page.page.get_by_label("Seed", exact=True).fill("12")
    page.wait()
    page.page.get_by_role("slider", name="dots").focus()
    for _ in range(4):
        page.page.keyboard.press("ArrowRight")
        page.wait()
    assert re.search(r"#seed=12&psi=[\d.]+&look=dots:0.04$", page.page.url)
    shown = page.picture()
    other = Page(browser, site[0]).visit(page.page.url.removeprefix(site[0]))
    assert np.array_equal(other.picture(), shown)
    other.context.close()
    page.page.get_by_role("button", name="Eight more faces").click()
    page.page.get_by_role("button", name="Show face 20").click()
    page.wait()
    assert "seed=20" in page.page.url and page.page.get_by_label("Seed", exact=True).input_value() == "20"
    page.page.get_by_role("button", name="Play").click()
    page.page.wait_for_url(re.compile("at="))
    page.page.get_by_role("button", name="Pause").click()
    page.context.set_offline(True)
    page.page.goto("about:blank")
    page.visit("#seed=12&look=dots:0.04")
    assert np.array_equal(page.picture(), shown)
    assert page.wrong == []
    page.context.close()


def test_controls_at_the_same_time(browser, site, pipe):
    """Small pictures, a slider and new seeds at once: each picture is drawn with its own looks."""
    page = Page(browser, site[0]).visit("#seed=3&look=")
    page.page.get_by_role("button", name="Eight more faces").click()
    for seed in (30, 31, 32):
        page.page.get_by_label("Seed", exact=True).fill(str(seed))
        page.page.get_by_role("slider", name="dots").fill("1")
    page.page.get_by_role("button", name="Show face 11").wait_for()
    page.page.wait_for_url(re.compile(r"#seed=32&psi=[\d.]+&look=dots:1$"))
    assert np.abs(page.picture() - pictures(pipe, seed=32, adapter_names="dots")).max() <= 1
    page.page.get_by_role("button", name="Show face 11").click()
    page.page.wait_for_url(re.compile("seed=11"))
    page.go("#seed=1&look=100%25:1,%zz:2")  # typed by somebody
    assert "look=" in page.page.url and page.wrong == []
    page.context.close()


def test_a_look_that_is_gone_leaves_the_page_alive(browser, site):
    page = Page(browser, site[0])
    page.page.route("**/looks/0.*.bin", lambda route: route.fulfill(status=404, body="gone"))
    page.context.add_init_script("delete Navigator.prototype.serviceWorker")
    page.page.goto(page.address + "#seed=1&look=dots:1")
    page.page.get_by_text(re.compile(r"could not be drawn: looks/0\.\w+\.bin: the server says 404")).wait_for()
    page.go("#seed=1&look=lines:1")
    assert page.page.get_by_role("button", name="New face").is_enabled()
    page.context.close()


def test_every_look_works_without_a_network(browser, site):
    page = Page(browser, site[0]).visit("#seed=1&look=")
    names = json.loads(page.page.request.get(f"{site[0]}site.json").text())["files"]
    looks = [name for name in names if name.startswith("looks/")]
    for _ in range(100):
        kept = page.page.evaluate(
            "async () => (await (await caches.open((await caches.keys())[0])).keys()).map(r => new URL(r.url).pathname)"
        )
        if all(f"/{name}" in kept for name in looks):
            break
        page.page.wait_for_timeout(100)
    page.context.set_offline(True)
    page.visit("#seed=1&look=lines:1")
    page.context.close()


@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1280, "light")])
def test_every_control_has_a_name_and_fits(browser, site, width, scheme):
    page = Page(browser, site[0], width, color_scheme=scheme, reduced_motion="reduce").visit()
    page.page.get_by_role("button", name="Eight more faces").click()
    page.page.get_by_role("button", name="Show face 8").wait_for()
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    snapshot = page.page.locator("body").aria_snapshot()
    roles = "button|link|textbox|spinbutton|slider|checkbox|img"
    assert not [line for line in snapshot.splitlines() if re.match(rf"\s*- '?({roles})\b(?! \"|')", line)], snapshot
    reached = []
    for _ in range(40):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate("document.activeElement.id"))
    assert {"new", "png", "webp", "link", "seed", "psi", "person", "look-0", "to", "at", "play", "more"} <= set(reached)
    assert page.wrong == []
    page.context.close()


class FromAnywhere(Quiet):
    """A server whose files pages of other origins may load, as those that packages are loaded from."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
        super().end_headers()


def test_a_runtime_of_another_server(browser, pipe, runtime, tmp_path):
    folders = tmp_path / "dist", tmp_path / "site"
    folders[0].mkdir()
    for name, data in website._runtime_files(Path(runtime)).items():
        (folders[0] / name).write_bytes(data)
    handlers = [partial(kind, directory=str(f)) for kind, f in zip((FromAnywhere, Quiet), folders, strict=True)]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in handlers]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    dist, address = (f"http://127.0.0.1:{server.server_address[1]}/" for server in servers)
    export_site(pipe, folders[1], {"dots": 1.0}, runtime=dist)
    page = Page(browser, address).visit("#seed=7&look=dots:1")
    assert np.abs(page.picture() - pictures(pipe, seed=7, adapter_names="dots")).max() <= 1
    assert page.wrong and all(wrong.startswith(dist) for wrong in page.wrong)  # nothing else was asked for
    page.context.close()
    for server in servers:
        server.shutdown()


def test_what_goes_wrong_is_said(browser, site):
    page = Page(browser, site[0])
    page.page.route("**/model/0.*.bin", lambda route: route.fulfill(status=404, body="gone"))
    page.context.add_init_script("delete Navigator.prototype.serviceWorker")
    page.page.goto(page.address)
    page.page.get_by_text(
        re.compile(r"The page could not be started: model/0\.\w+\.bin: the server says 404")
    ).wait_for()
    page.context.close()
