"""The Hub over real HTTP: push, fetch, revisions, permissions; no network, half a download and many readers at once."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.hub_server import HubServer, connected
from huggingface_hub import HfApi, constants

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.hub import embedded_adapters, push_folder, resolve_folder
from fewshot_gan.hub.cards import write_adapter_card

WEIGHTS = b"weights" * 5000
LOOK = {
    "adapter_config.json": b'{"adapter_type": "left"}',
    "adapter_model.safetensors": WEIGHTS,
    "README.md": b"# ink\n",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with connected(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    """The client's waits between retries take no time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def folder(tmp_path):
    """An adapter folder as training leaves it, with files that are nobody else's business."""
    for name, content in {**LOOK, "images/grid.png": b"png", "samples/step-1.png": b"png", ".cache/x": b"x"}.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run"


def refusal(name="me/ink", error=FileNotFoundError, **options):
    with pytest.raises(error) as caught:
        resolve_folder(name, **{"kind": "adapter", **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def push_refusal(folder, repo_id, error=ValueError, **options):
    with pytest.raises(error) as caught:
        push_folder(folder, repo_id, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------------------------------------- push


def test_push_is_one_commit_and_comes_back(hub, folder):
    assert push_folder(folder, "ink", token="write-me") == "me/ink"  # the token's owner
    assert hub.files("me/ink") == {k: v for k, v in contents(folder).items() if not k.startswith(".")}
    assert hub.repos["me/ink"].messages == ["initial commit", "Upload with fewshot_gan"]
    assert HfApi(token="write-me").whoami()["name"] == "me"
    fetched = resolve_folder("me/ink", kind="adapter")
    assert contents(fetched) == LOOK and not any(name.endswith(".png") for name in hub.fetched())

    (folder / "adapter_model.safetensors").write_bytes(b"better")
    assert push_folder(folder, "me/ink", token="write-me", commit_message="More steps") == "me/ink"
    assert hub.repos["me/ink"].messages[2:] == ["More steps"]
    assert (resolve_folder("me/ink", kind="adapter") / "adapter_model.safetensors").read_bytes() == b"better"
    assert (fetched / "adapter_model.safetensors").read_bytes() == WEIGHTS  # a snapshot does not change


def test_push_to_a_branch_and_as_a_pull_request(hub, folder):
    push_folder(folder, "me/ink", token="write-me", allow_patterns=["adapter_*", "README.md"])
    assert hub.files("me/ink") == LOOK
    (folder / "README.md").write_bytes(b"# v2\n")
    push_folder(folder, "me/ink", token="write-me", revision="wip/v2")
    (folder / "README.md").write_bytes(b"# v3\n")
    push_folder(folder, "me/ink", token="write-me", revision="wip/v2")  # the branch is there by now
    (folder / "README.md").write_bytes(b"# yours\n")
    assert push_folder(folder, "me/ink", token="write-you", create_pr=True) == "me/ink"
    seen = {name: hub.files("me/ink", name)["README.md"] for name in ("main", "wip/v2", "refs/pr/1")}
    assert seen == {"main": b"# ink\n", "wip/v2": b"# v3\n", "refs/pr/1": b"# yours\n"}
    for revision, text in seen.items():
        assert (resolve_folder("me/ink", kind="adapter", revision=revision) / "README.md").read_bytes() == text


def test_push_refuses(hub, folder, tmp_path):
    assert "needs a token with write access; run `hf auth login`" in push_refusal(folder, "me/ink")
    assert "needs a token with write access" in push_refusal(folder, "me/ink", token="stale")
    for token in ("read-me", "write-you"):
        message = push_refusal(folder, "me/ink", token=token)
        assert "may not write there (HTTP 403: you have no right" in message and hub.url in message
    for bad in ("me/ink/deep", "me/-ink", "me/i nk", ""):
        assert "a repo id is 'owner/name'" in push_refusal(folder, bad, token="write-me")
    assert "no file in" in push_refusal(tmp_path / "none", "me/ink", FileNotFoundError, token="write-me")
    nothing = push_refusal(folder, "me/ink", FileNotFoundError, token="write-me", allow_patterns=["*.bin"])
    assert "no file that matches *.bin" in nothing
    assert hub.repos == {}
    hub.commit("me/ink", LOOK)
    assert "may not write there" in push_refusal(folder, "me/ink", token="read-me")
    assert "may not write there" in push_refusal(folder, "me/ink", token="read-me", revision="wip")
    hub.fail(1, 507, on="/commit/")
    assert "the Hub refused (HTTP 507: failing on purpose)" in push_refusal(folder, "me/ink", token="write-me")
    assert hub.files("me/ink") == LOOK and list(hub.repos["me/ink"].branches) == ["main"]  # nothing came half-way


@pytest.mark.parametrize("link", ["README.md", "images/more"])
def test_push_follows_no_link_out_of_the_folder(hub, folder, tmp_path, link):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.md").write_text("mine", encoding="utf-8")
    (folder / link).unlink(missing_ok=True)
    (folder / link).symlink_to(tmp_path / "private" / ("secret.md" if link.endswith(".md") else ""))
    if link.endswith(".md"):
        assert f"{link} in {folder} is a link to a file outside" in push_refusal(folder, "me/ink", token="write-me")
        assert hub.repos == {}
        (folder / link).unlink()
        (folder / link).symlink_to("images/grid.png")  # inside
    push_folder(folder, "me/ink", token="write-me")
    assert not any(b"mine" in content for content in hub.files("me/ink").values())


def test_push_gives_up_after_its_time(hub, folder, monkeypatch):
    monkeypatch.setattr("fewshot_gan.hub.push.PUSH_SECONDS", 0.5)
    hub.hang.clear()
    message = push_refusal(folder, "me/ink", token="write-me")
    assert "could not push to 'me/ink': no answer within" in message and f"look at {hub.url}/me/ink " in message
    message = push_refusal(folder, "me/ink", token="write-me", repo_type="space", space_sdk="static")
    assert f"look at {hub.url}/spaces/me/ink " in message
    hub.hang.set()


def test_too_many_requests_are_called_so(hub, folder, impatient):
    hub.commit("me/ink", LOOK)
    hub.fail(1000, 429)
    message = refusal()
    assert "too many requests" in message and "HTTP 429" in message and "no network" not in message
    assert "too many requests" in push_refusal(folder, "me/ink", token="write-me")


@pytest.mark.parametrize("path", ["adapter_model.safetensors", "adapter_config.json"])  # by SHA-256, by git's SHA-1
def test_a_download_is_what_the_server_announced(hub, path):
    hub.commit("me/ink", LOOK)
    hub.spoiled = {path}
    message = refusal(error=ValueError)
    assert message.startswith(f"{path} is not what the Hub announced: its hash is ") and "load it again" in message
    refusal(error=ValueError)  # it did not stay in the cache
    hub.spoiled = set()
    assert contents(resolve_folder("me/ink", kind="adapter")) == LOOK


def test_private_stays_private(hub, folder):
    push_folder(folder, "me/secret", token="write-me", private=True)
    assert hub.repos["me/secret"].private
    push_folder(folder, "me/secret", token="write-me")
    assert hub.repos["me/secret"].private
    hub.commit("me/open", {"README.md": b"# open\n"})
    message = push_refusal(folder, "me/open", token="write-me", private=True)
    assert "already and public" in message and f"{hub.url}/me/open/settings" in message
    assert hub.files("me/open") == {"README.md": b"# open\n"}


def test_push_without_network(hub, folder, monkeypatch):
    hub.stop()
    assert "the Hub cannot be reached (" in push_refusal(folder, "me/ink", token="write-me")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in push_refusal(folder, "me/ink", token="write-me")


# --------------------------------------------------------------------------------------------------------------- fetch


def test_revisions(hub):
    first = hub.commit("me/ink", LOOK)
    hub.commit("me/ink", {"README.md": b"# newer\n"})
    hub.commit("me/ink", {"README.md": b"# branch\n"}, branch="wip/v2")
    for revision, text in ((None, b"# newer\n"), (first, b"# ink\n"), ("wip/v2", b"# branch\n")):
        assert contents(resolve_folder("me/ink", kind="adapter", revision=revision)) == {**LOOK, "README.md": text}
    for revision in ("v9", "0" * 40):
        message = refusal(revision=revision)
        assert f"adapter 'me/ink' has no revision '{revision}'" in message and f"{hub.url}/me/ink" in message


def test_only_the_subfolder_is_downloaded(hub):
    looks = {f"{look}/{name}": content for look in ("ink", "looks/[1]") for name, content in LOOK.items()}
    hub.commit("me/looks", {**looks, "ink/images/grid.png": b"png", "README.md": b"# looks\n"})
    assert contents(resolve_folder("me/looks", kind="adapter", subfolder="ink")) == LOOK
    assert set(hub.fetched()) == {f"ink/{name}" for name in LOOK}
    assert contents(resolve_folder("me/looks", kind="adapter", subfolder="./looks/[1]/")) == LOOK
    everything = resolve_folder("me/looks", kind="adapter")
    assert contents(everything) == {**looks, "README.md": b"# looks\n"}
    message = refusal("me/looks", subfolder="oil")
    assert "'me/looks' has no folder 'oil' at revision 'main'" in message and f"{hub.url}/me/looks" in message


def test_a_subfolder_cannot_leave(hub, folder, monkeypatch):
    own = embedded_adapters("ffhq")["ink"]  # as if one base alone had this look
    monkeypatch.setattr("fewshot_gan.hub.fetch.folders_per_base", lambda look: {"ffhq": own} if look == "ink" else {})
    for bad in ("..", "../run", "images/../..", "/etc", "C:\\", "\\\\host\\share", "a\\..\\..\\b"):
        for name in ("me/ink", str(folder), "ink"):
            assert "leads out of" in refusal(name, ValueError, subfolder=bad)
    assert hub.log == []
    assert resolve_folder(folder, kind="adapter", subfolder="images") == folder / "images"
    assert "has no folder 'nothing'" in refusal(str(folder), subfolder="nothing")
    assert "has no folder 'nothing'" in refusal("ink", subfolder="nothing")  # an embedded one


def test_who_may_read(hub):
    hub.commit("me/secret", LOOK, private=True)
    hub.commit("me/gated", LOOK, gated=True)
    for name, token in (("me/secret", None), ("me/secret", "write-you"), ("me/none", None), ("me/none", "read-me")):
        message = refusal(name, token=token)  # one answer for missing and hidden repos, as the Hub gives
        assert f"the Hub has no adapter '{name}' that you may read; embedded adapters: " in message
        assert "a private repo needs `hf auth login` or token=" in message
    for token in (None, "read-me"):
        assert f"ask for access at {hub.url}/me/gated" in refusal("me/gated", token=token)
    hub.fail(1, 403, on="/api/models/me/ink")
    assert "you may not read adapter 'me/ink'" in refusal(token="read-me")
    assert "did not accept the token" in refusal("me/secret", token="stale")
    assert contents(resolve_folder("me/secret", kind="adapter", token="read-me")) == LOOK
    Path(constants.HF_TOKEN_PATH).parent.mkdir(exist_ok=True)
    Path(constants.HF_TOKEN_PATH).write_text("read-me", encoding="utf-8")  # what `hf auth login` leaves
    assert contents(resolve_folder("me/secret", kind="adapter", force_download=True)) == LOOK


def test_impossible_names(hub):
    assert "the Hub has no such names" in refusal("me/a--b..c")
    for name in ("../ink", "a/b/c", "https://example.org/me/ink", "ink "):
        assert f"there is no adapter '{name}'; embedded adapters: " in refusal(name)
    assert hub.log == []


# ----------------------------------------------------------------------------------------------------- the Hub is away


def unplug(hub, monkeypatch):
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):  # nothing listens on that port
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub.url, "http://127.0.0.1:9"))


def go_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def break_down(hub, monkeypatch):
    hub.fail(1000)


@pytest.mark.parametrize("leave", [unplug, go_offline, break_down])
def test_without_the_hub_the_cache_answers(hub, monkeypatch, impatient, leave, tmp_path):
    old = hub.commit("me/ink", {**LOOK, "extra/config.json": b"{}"})
    warm = resolve_folder("me/ink", kind="adapter")
    assert resolve_folder("me/ink", kind="adapter", local_files_only=True) == warm
    leave(hub, monkeypatch)
    asked = len(hub.log)
    assert resolve_folder("me/ink", kind="adapter", local_files_only=True) == warm and len(hub.log) == asked
    for options in ({}, {"revision": "main"}, {"revision": old}):
        assert resolve_folder("me/ink", kind="adapter", **options) == warm
    assert resolve_folder("me/ink", kind="adapter", subfolder="extra") == warm / "extra"
    for options in ({"name": "me/other"}, {"revision": "v9"}, {"cache_dir": tmp_path / "cold"}):
        for local in (False, True):
            message = refusal(**options, local_files_only=local)
            assert message.startswith("could not fetch adapter 'me/") and "no network, or not in the cache" in message
            assert "embedded adapters: " in message and "give its folder" in message


def test_local_files_only_asks_nobody(hub):
    hub.commit("me/ink", LOOK)
    assert "not in the cache" in refusal(local_files_only=True) and hub.log == []


@pytest.mark.parametrize("leave", [unplug, go_offline])
def test_half_a_download_is_not_a_snapshot(hub, monkeypatch, impatient, leave):
    hub.commit("me/ink", LOOK)
    hub.cut = 1000  # the small files arrive, the weights never
    message = refusal()
    assert "the download of adapter 'me/ink' was interrupted (" in message and "load it again" in message
    (snapshots,) = Path(constants.HF_HUB_CACHE).glob("*/snapshots")
    names = set().union(*map(contents, snapshots.iterdir()))
    assert "adapter_config.json" in names and "adapter_model.safetensors" not in names
    assert "holds only a part of adapter 'me/ink'" in refusal(local_files_only=True)
    with monkeypatch.context() as away:
        leave(hub, away)
        message = refusal()
        assert "holds only a part of adapter 'me/ink'" in message and "load it again with network" in message
    hub.cut = None
    assert contents(resolve_folder("me/ink", kind="adapter")) == LOOK
    assert contents(resolve_folder("me/ink", kind="adapter", local_files_only=True)) == LOOK


def test_a_download_that_falters_goes_on(hub, impatient):
    hub.commit("me/ink", LOOK)
    resume = hub.resolve

    def falter(request, *where):
        hub.cut = 1000 if "range" not in request.headers else None
        return resume(request, *where)

    hub.resolve = falter
    assert contents(resolve_folder("me/ink", kind="adapter")) == LOOK
    hub.commit("me/oil", LOOK)
    hub.fail(2, 500, on="adapter_model")
    assert contents(resolve_folder("me/oil", kind="adapter")) == LOOK


def test_an_interrupted_update(hub, impatient):
    first = hub.commit("me/ink", LOOK)
    resolve_folder("me/ink", kind="adapter")
    hub.commit("me/ink", {"adapter_model.safetensors": WEIGHTS[::-1]})
    hub.cut = 1000
    assert "was interrupted" in refusal()
    assert "holds only a part" in refusal(local_files_only=True)  # not the old weights under the new name
    assert contents(resolve_folder("me/ink", kind="adapter", revision=first)) == LOOK
    hub.cut = None
    assert contents(resolve_folder("me/ink", kind="adapter"))["adapter_model.safetensors"] == WEIGHTS[::-1]


def test_a_part_in_the_cache_is_not_the_whole(hub):
    hub.commit("me/looks", {f"{look}/{name}": content for look in ("ink", "oil") for name, content in LOOK.items()})
    resolve_folder("me/looks", kind="adapter", subfolder="ink")
    hub.stop()
    assert contents(resolve_folder("me/looks", kind="adapter", subfolder="ink")) == LOOK
    for options in ({}, {"subfolder": "oil"}):
        assert "holds only a part of adapter 'me/looks'" in refusal("me/looks", **options)


@pytest.mark.parametrize("name", ["../../../../evil.json", "ink/../../../../../evil.json"])
def test_file_names_that_leave_the_folder(hub, tmp_path, name):
    hub.commit("me/ink", {**LOOK, name: b"{}"})
    before = set(contents(tmp_path))
    assert "'me/ink' is not safe to load, and was not: " in refusal(error=ValueError)
    assert not list(tmp_path.rglob("evil*")) and not list(Path(constants.HF_HUB_CACHE).rglob("evil*"))
    new = set(contents(tmp_path)) - before
    assert all(path.startswith("cache/hub/") for path in new)


# --------------------------------------------------------------------------------------------------------- all at once


def start_python(code, hub, home):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


def test_many_readers_of_an_empty_cache(hub, tmp_path):
    files = {**LOOK, **{f"part{i}/config.json": b"[%d]" % i for i in range(8)}}
    hub.commit("me/ink", files)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: resolve_folder("me/ink", kind="adapter"), range(8)))
    assert len(set(found)) == 1 and contents(found[0]) == files
    code = "from fewshot_gan.hub import resolve_folder; print(resolve_folder('me/ink', kind='adapter'))"
    readers = [start_python(code, hub, tmp_path / "home") for _ in range(4)]
    found = [reader.communicate(timeout=120)[0].strip() for reader in readers]
    assert len(set(found)) == 1 and contents(Path(found[0])) == files


# ----------------------------------------------------------------------------------------------- pipeline and adapters

LOAD = """
import json, sys
from fewshot_gan import FewShotGAN
pipe = FewShotGAN.from_pretrained("me/faces", token="read-me").load_adapter("me/looks", subfolder="ink")
pipe.load_adapter("me/ink", "same", revision="v1", token="read-me")
looks = {n: pipe(2, seed=0, output_type="np", adapter_names=n).images.tolist() for n in ("__base__", "ink", "same")}
print(json.dumps(looks))
"""


def test_a_base_and_adapters_travel_to_another_process(hub, base_folder, perturbed, tmp_path):
    from fewshot_gan import FewShotGAN

    pipe = FewShotGAN.from_pretrained(base_folder)
    assert pipe.push_to_hub("me/faces", token="write-me", private=True) == "me/faces"
    torch.manual_seed(0)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator)), "ink")
    assert pipe.push_to_hub("ink", token="write-me", private=True, revision="v1") == "me/ink"
    pipe.save_adapter(tmp_path / "looks" / "ink", "ink")
    push_folder(tmp_path / "looks", "me/looks", token="write-me")
    assert {"model_index.json", "README.md", "generator/config.json"} <= set(hub.files("me/faces"))
    pushed = set(hub.files("me/ink", "v1"))
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= pushed
    for repo, revision in (("me/faces", "main"), ("me/ink", "v1")):
        assert hub.repos[repo].private
        assert not any(str(base_folder.parent).encode() in content for content in hub.files(repo, revision).values())
    own = {name: pipe(2, seed=0, output_type="np", adapter_names=name).images for name in ("__base__", "ink")}

    for state in ("up", "down"):
        if state == "down":
            hub.stop()
        reader = start_python(LOAD, hub, tmp_path / "home")
        looks = json.loads(reader.communicate(timeout=120)[0])
        for name, like in (("__base__", "__base__"), ("ink", "ink"), ("same", "ink")):
            assert abs(torch.tensor(looks[name]) - torch.from_numpy(own[like])).max() < 1e-5, (state, name)


def test_a_hypernetwork_travels_without_the_folders_it_was_made_from(hub, base_folder, mobile, tmp_path):
    from fewshot_gan.adapters import DomainHyperNetwork

    encoder = SimpleNamespace(name=str(tmp_path / "my-clip"), identity="0" * 16, dim=8)
    names = {"base_model_name_or_path": str(base_folder), "encoder": encoder.name}
    size = {"width": 8, "backbone_depth": 1, "head_depth": 1}
    record = {"seed": 0, "domains": [f"look {i}" for i in range(60)]}
    options = {**size, "base_model_name_or_path": str(base_folder), "training": record}
    network = DomainHyperNetwork.for_model(mobile, encoder, **options)
    assert network.push_to_hub("me/hyper", token="write-me", base="me/faces") == "me/hyper"
    assert {name: network.config[name] for name in names} == names  # here it still knows where they are
    network.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="me/again", token="write-me")
    for repo in ("me/hyper", "me/again"):
        files = hub.files(repo)
        assert {"README.md", "config.json", "diffusion_pytorch_model.safetensors"} <= set(files)
        assert not any(str(tmp_path.parent).encode() in content for content in files.values())
        assert not any(str(base_folder.parent).encode() in content for content in files.values())
        assert f'adapter_from_image("photo.png", "{repo}")' in files["README.md"].decode()
        assert "| domains | 60, named in config.json |" in files["README.md"].decode()
    fetched = DomainHyperNetwork.from_pretrained("me/hyper")
    assert (fetched.config.base_model_name_or_path, fetched.config.encoder) == ("me/faces", "my-clip")
    assert all(torch.equal(v, fetched.state_dict()[k]) for k, v in network.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- the server


def test_the_server_speaks_like_the_hub(hub):
    """What the client asks only now and then, through the client."""
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    sha = hub.commit("me/ink", {**LOOK, "images/grid.png": b"png"})
    api = HfApi(token="write-me")
    assert [f.path for f in api.list_repo_tree("me/ink")] == ["README.md", *list(LOOK)[:2], "images"]
    assert [f.path for f in api.list_repo_tree("me/ink", "images")] == ["images/grid.png"]
    (info,) = api.get_paths_info("me/ink", ["adapter_model.safetensors", "none"])
    assert info.size == info.lfs.size == len(WEIGHTS)
    api.create_branch("me/ink", branch="a/b")
    assert {b.name: b.target_commit for b in api.list_repo_refs("me/ink").branches} == {"main": sha, "a/b": sha}
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch("me/ink", branch="a/b")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("me/ink", "none.json")
    api.delete_file("README.md", "me/ink")
    assert "README.md" not in hub.files("me/ink")
    with HubServer() as another:
        assert another.url != hub.url and another.repos == {}


def test_cards_load_what_was_pushed(hub, base_folder, tmp_path):
    """A card that names its own title, no repo, would make readers load something else, or nothing."""
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator), "sketch")
    assert pipe.push_to_hub("short", token="write-me") == "me/short"
    assert b'pipe.load_adapter("me/short")' in hub.files("me/short")["README.md"]
    pipe.push_to_hub("base", adapter_name="__base__", token="write-me")
    assert b'FewShotGAN.from_pretrained("me/base")' in hub.files("me/base")["README.md"]
    pipe.save_adapter(tmp_path / "drawings", "sketch", push_to_hub=True, token="write-me")
    card = hub.files("me/drawings")["README.md"]
    assert b'pipe.load_adapter("me/drawings")' in card
    title = write_adapter_card(pipe.bank.adapters["sketch"], tmp_path / "drawings", "sketch").read_bytes()
    assert b'pipe.load_adapter("sketch")' in title  # as trainings write it
    push_folder(tmp_path / "drawings", "me/final", token="write-me")
    assert hub.files("me/final")["README.md"] == title.replace(b'load_adapter("sketch"', b'load_adapter("me/final"')
