"""The demo's server: whom it answers, what it leaves behind, how many may wait."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.apps.demo_guard import PREFIX, SameSite, private_folder
from fewshot_gan.apps.drawing import FIRST
from fewshot_gan.apps.jobs import Job
from fewshot_gan.apps.studio import Studio

BOUNDARY = "----of-this-test"


@pytest.fixture
def studio(base_folder):
    studio = Studio(str(base_folder))
    yield studio
    studio.close()


# ------------------------------------------------------------------------------------------------- looks and visitors


def taught(studio, key, label="mine"):
    """What a finished training leaves."""
    file = Path(studio._folder.name) / f"{uuid.uuid4().hex}.zip"
    file.write_bytes(b"zip")
    studio.visitor(key).looks[label], studio.visitor(key).files[label] = "internal", file
    return file


def test_opening_the_page_costs_nobody_a_look(studio, monkeypatch):
    monkeypatch.setattr(studio.pipe, "delete_adapters", lambda names: None)
    key = studio.enter(None)
    file = taught(studio, key)
    for _ in range(250):
        studio.labels(studio.enter(None))
    assert studio.labels(key) == ["mine"] and file.exists()
    assert len(studio._visitors) <= 102  # and those who opened it are not kept for ever
    for _ in range(101):
        taught(studio, studio.enter(None))
    assert studio.labels(key) == [] and not file.exists()  # as many others who have looks do


@pytest.mark.parametrize("label", ["preview", "base", "default", "pictures"])
def test_a_look_of_any_name_stays(studio, features, base_folder, monkeypatch, tmp_path, label):
    monkeypatch.setattr(type(features), "sha256", "0" * 64, raising=False)
    for place in ("methods.method", "features"):
        monkeypatch.setattr(f"fewshot_gan.{place}.load_features", lambda device="cpu", **kwargs: features.to(device))
    key = studio.enter(None)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, studio.pipe(3, seed=5).images, strict=True):
        image.save(file)
    job = studio.teach(key, [str(file) for file in files], label, steps=6)
    end = time.monotonic() + 120
    while not job.over and time.monotonic() < end:
        time.sleep(0.02)
    assert (job.state, job.error) == ("done", "") and studio.labels(key) == [label]
    assert studio.draw(key, [{label: 1.0}])[0].tobytes() != studio.draw(key, [{}])[0].tobytes()
    assert not any(key in name or label in name for name in studio.pipe.bank.adapters)  # messages may name adapters
    assert list(studio.pipe.bank.adapters) == list(studio.visitor(key).looks.values())  # the preview is gone
    more = studio.teach_more(key, 2)
    while not more.over and time.monotonic() < end:
        time.sleep(0.02)
    assert (more.state, more.error) == ("done", "")


def test_any_number_may_wait(studio):
    """Whoever waits holds no thread: 300 watchers see their jobs go on, on one event loop."""
    keys = [studio.enter(None) for _ in range(300)]
    for key in keys:
        studio.visitor(key).jobs["look"] = Job("look", 9)

    async def visit(key):
        return [job.state async for job in studio.watch(key, "look", every=0.05)]

    async def all_of_them():
        visits = [asyncio.create_task(visit(key)) for key in keys]
        await asyncio.sleep(0.3)
        assert threading.active_count() < 20
        for key in keys:
            studio.visitor(key).jobs["look"].state = "done"
        return await asyncio.wait_for(asyncio.gather(*visits), 30)

    for states in asyncio.run(all_of_them()):
        assert states[0] == "waiting" and states[-1] == "done"


# ------------------------------------------------------------------------------------------------- hosts and origins


@pytest.mark.parametrize(
    "host, origin, allowed",
    [
        ("localhost:7860", None, True),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", True),
        ("[::1]:7860", "http://[::1]:7860", True),
        ("192.168.0.7:7860", "http://192.168.0.7:7860", True),
        (f"{socket.gethostname()}:7860", None, True),
        ("faces.example:443", "https://faces.example", True),
        ("Faces.Example", None, True),
        ("127.0.0.1:7860", "https://faces.example", True),  # a proxy that names itself in Origin alone
        ("evil.example:7860", None, False),  # a name that its owner points to this machine
        ("127.0.0.1.evil.example", None, False),
        ("", None, False),
        ("[", None, False),
        ("127.0.0.1:7860", "http://evil.example", False),  # a form of another site
        ("127.0.0.1:7860", "null", False),
        ("127.0.0.1:7860", "http://127.0.0.1:8000", False),  # another server on this machine
        ("localhost:7860", "http://[", False),
        ("localhost:7860", "http://localhost:8000", False),
    ],
)
def test_who_is_answered(host, origin, allowed):
    reason = SameSite(None, ["faces.example"]).refusal(host, origin)
    assert (reason is None) == allowed
    assert allowed or "--allowed-host NAME" in reason


# ------------------------------------------------------------------------------------------------- the real server


@contextmanager
def served(base_folder, temp, *options):
    """Address and process of a demo whose temporary files lie in `temp`."""
    temp.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fewshot_gan.cli", "demo", "--no-browser", "--port", str(port)]
    command += ["--base", str(base_folder), *options]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temp)}, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("http") for line in process.stdout)
        yield f"127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def ask(address, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def upload(address, content=b"\x89PNG private", **headers):
    body = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="me.png"\r\n\r\n'.encode()
    body += content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return ask(
        address, "POST", "/gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={BOUNDARY}", **headers
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_visitors_survives_the_server(base_folder, tmp_path, number):
    temp = tmp_path / "temp"
    with served(base_folder, temp) as (address, process):
        assert upload(address)[0] == 200
        assert upload(address, Origin="http://evil.example")[0] == 403
        assert ask(address, "GET", "/", Host="evil.example")[0] == 403 and ask(address, "GET", "/")[0] == 200
        (private,) = temp.glob(f"{PREFIX}*")
        assert private.stat().st_mode & 0o777 == 0o700
        assert [p.read_bytes() for p in temp.rglob("me.png")] == [b"\x89PNG private"]
        process.send_signal(number)
        assert process.wait(timeout=60) == (143 if number == signal.SIGTERM else -9)
    if number == signal.SIGKILL:  # what it could not remove the next server does
        assert private.exists()
        with served(base_folder, temp) as (address, process):
            assert not private.exists()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    assert list(temp.glob(f"{PREFIX}*")) == [] and not any(b"private" in p.read_bytes() for p in files_in(temp))


def test_folders_of_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive, dead, link = (tmp_path / f"{PREFIX}{pid}-x" for pid in (os.getpid(), 2**22 + 1, 2**22 + 2))
    (tmp_path / "kept").mkdir()
    alive.mkdir()
    dead.mkdir()
    link.symlink_to(tmp_path / "kept")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    folder = private_folder()
    assert alive.exists() and not dead.exists() and link.is_symlink() and (tmp_path / "kept").exists()
    folder.cleanup()


class Session:
    """A browser's session, by the queue's own protocol."""

    def __init__(self, address):
        self.address, self.hash = address, uuid.uuid4().hex[:10]

    def call(self, fn_index, data):
        """Put a call into the queue; returns the connection on which its events come."""
        body = json.dumps({"fn_index": fn_index, "session_hash": self.hash, "data": data})
        status, said = ask(self.address, "POST", "/gradio_api/queue/join", body, Content_Type="application/json")
        assert status == 200, said
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.hash}")
        return connection.getresponse()


def until(response, message):
    """The first event of that kind."""
    for line in response:
        event = json.loads(line[5:]) if line.startswith(b"data:") else {}
        if event.get("msg") == message:
            return event
    raise AssertionError(f"no {message}")


def test_who_draws_does_not_wait_for_sixty_who_wait(base_folder, tmp_path, record_property):
    """The slowest of ten draws beside 60 visitors whose looks wait for their turn."""
    with served(base_folder, tmp_path / "temp") as (address, _):
        functions = {f["api_name"]: f["id"] for f in json.loads(ask(address, "GET", "/config")[1])["dependencies"]}

        def number(of):
            return next(i for name, i in functions.items() if name and re.fullmatch(rf"_?{of}(_\d+)?", name))

        start, draw, watchers = number("start_look"), number("draw"), [number("watch_look"), number("follow_look")]

        def seconds(session):
            begun = time.monotonic()
            data = [[], {}, *["No look"] * 8, uuid.uuid4().hex, 1, 0.7, False]
            assert until(session.call(draw, data), "process_completed")["success"]
            return time.monotonic() - begun

        alone = max(seconds(Session(address)) for _ in range(3))
        files = []
        for i in range(3):  # noise: pictures that training takes
            from io import BytesIO

            from PIL import Image

            buffer = BytesIO()
            Image.effect_noise((64, 64), 50 + i).convert("RGB").save(buffer, "PNG")
            path = json.loads(upload(address, buffer.getvalue())[1])[0]
            files.append({"path": path, "orig_name": f"{i}.png", "meta": {"_type": "gradio.FileData"}})
        waiting = []
        for _ in range(60):
            key, session = uuid.uuid4().hex, Session(address)
            assert until(session.call(start, [key, files, "mine", 400]), "process_completed")["success"]
            given = [key, *["No look"] * 8], [key]
            for watcher, data, first in zip(watchers, given, ("process_generating", "progress"), strict=True):
                waiting.append(Session(address).call(watcher, data))
                until(waiting[-1], first)
        slowest = max(seconds(Session(address)) for _ in range(10))
        record_property("slowest_draw_seconds", round(slowest, 2))
        print(f"slowest draw beside 60 waiting visitors: {slowest:.2f} s; alone {alone:.2f} s")
        for response in waiting:
            response.close()
        assert slowest < 10 + 5 * alone  # a training is under way beside it; with held threads it was 33 s


def test_looks_of_equal_names_and_persons(base_folder, tmp_path):
    generator = FewShotGAN.from_pretrained(base_folder).generator
    for place in ("a/mine", "b/mine", ".hidden"):
        LeFTAdapter.for_model(generator).save_pretrained(tmp_path / place)
    person = LeFTAdapter.for_model(generator, latents_shape=[1, generator.num_ws, generator.w_dim])
    person.save_pretrained(tmp_path / "me")
    studio = Studio(str(base_folder), [str(tmp_path / place) for place in ("a/mine", "b/mine", ".hidden")])
    assert studio.looks == ["mine", "mine-2", "look"]
    key = studio.enter(None)
    with pytest.raises(ValueError, match="there is no face 10 of 8; click a picture"):
        studio.keep(key, 9, 8, FIRST)
    with pytest.raises(ValueError, match="choose the zip file of a look"):
        studio.bring_back(key, None)
    studio.close()
    with pytest.raises(ValueError, match="me is a person, whom the page would show to every visitor as a look"):
        Studio(str(base_folder), [str(tmp_path / "me")])
