"""The pictures of the demo: small on the page, full for those who open or save them, and no picture for others."""

import asyncio
import io
import re
import threading
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fewshot_gan.apps.demo_pictures import GONE, Pictures, PictureServer, file_name


def noise(side, seed=0):
    """A picture that no two seeds share."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path):
    return Pictures(tmp_path / "pictures")


class Tags(HTMLParser):
    """Tags of HTML with their attributes, as a browser reads them."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def ask(app, path, method="GET", kind="http", headers=()):
    """Return the messages that an ASGI application sends."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": kind, "path": path, "method": method, "headers": list(headers)}, None, send))
    return sent


def other(called):
    """An application that notes for what it was asked."""

    async def app(scope, receive, send):
        called.append(scope["path"])

    return app


def test_previews_are_small_and_full_pictures_exact(pictures):
    image = noise(600)
    name = pictures.add(image)
    assert re.fullmatch("[0-9a-f]{32}", name) and pictures.add(image.copy()) == name != pictures.add(noise(600, 1))
    full = Image.open(io.BytesIO(pictures.read(name, "png")))
    assert full.format == "PNG" and np.array_equal(full, image)
    preview = Image.open(io.BytesIO(pictures.read(name, "jpg")))
    assert preview.format == "JPEG" and preview.size == (512, 512)
    assert Image.open(io.BytesIO(pictures.read(pictures.add(noise(32)), "jpg"))).size == (32, 32)
    assert Pictures(pictures.folder).add(image) != name  # nobody can work out the name of a picture


def test_the_page_shows_a_preview_that_opens_and_saves_the_full_picture(pictures):
    image = noise(600)
    name = pictures.add(image)
    html = pictures.show(image, 'Face 1: "<ink>"', "face-0-1")
    tags = Tags(html).found
    assert [tag for tag, _ in tags] == ["div", "a", "img", "a"]
    (_, opened), (_, shown), (_, saved) = tags[1:]
    assert opened["href"] == saved["href"] == f"pictures/{name}.png" and opened["title"] == "Open at 600 px"
    assert shown["src"] == f"pictures/{name}.jpg" and shown["alt"] == 'Face 1: "<ink>"'
    assert saved["download"] == "face-0-1.png" and saved["aria-label"] == 'Save Face 1: "<ink>"'
    gallery = pictures.gallery([("<b>you</b>", image), ("Found face", noise(600, 1))])
    assert "&lt;b&gt;you&lt;/b&gt;</figcaption>" in gallery and "<b>" not in gallery and gallery.count("<figure>") == 2
    assert 'download="found-face.png"' in gallery
    names = [file_name(caption) for caption in ("../../a b", "ink 0.5 + sketch", "für dich", "…")]
    assert names == ["a-b", "ink-0.5-sketch", "für-dich", "picture"]


def test_the_server_answers_for_pictures_alone(pictures):
    called, image = [], noise(64)
    app, name = PictureServer(other(called), pictures), pictures.add(image)
    for kind, content in (("png", b"image/png"), ("jpg", b"image/jpeg")):
        start, body = ask(app, f"/pictures/{name}.{kind}")
        headers = dict(start["headers"])
        assert start["status"] == 200 and body["body"] == pictures.read(name, kind)
        assert headers[b"content-type"] == content and headers[b"content-length"] == str(len(body["body"])).encode()
    start, body = ask(app, f"/pictures/{name}.png", "HEAD")
    assert start["status"] == 200 and body["body"] == b""
    start, body = ask(app, f"/pictures/{'0' * 32}.png")
    assert start["status"] == 404 and body["body"] == GONE
    assert called == []
    elsewhere = ["/", f"/pictures/{name}.bmp", f"/pictures/../{name}.png", f"/x/pictures/{name}.png"]
    assert all(ask(app, path) == [] for path in elsewhere) and called == elsewhere
    ask(app, f"/pictures/{name}.png", "POST")
    ask(app, f"/pictures/{name}.png", kind="websocket")
    assert called == [*elsewhere, *[f"/pictures/{name}.png"] * 2]


def test_pictures_unseen_for_longest_go(tmp_path):
    pictures = Pictures(tmp_path / "pictures", most_bytes=3 * 32 * 32 * 3)
    first, second, third = (pictures.add(noise(32, seed)) for seed in range(3))
    assert pictures.read(first, "jpg")  # seen again
    fourth = pictures.add(noise(32, 3))
    assert pictures.read(second, "png") is None and all(pictures.read(x, "png") for x in (first, third, fourth))
    assert len(list(pictures.folder.iterdir())) == 3
    assert pictures.add(noise(32, 1)) == second and pictures.read(second, "png")  # drawn again


def test_threads_add_and_read_at_once(tmp_path):
    pictures = Pictures(tmp_path / "pictures", most_bytes=4 * 32 * 32 * 3)
    failed = []

    def visit(seed):
        try:
            for i in range(20):
                name = pictures.add(noise(32, seed + i % 3))
                data = pictures.read(name, "png")
                assert data is None or np.array_equal(Image.open(io.BytesIO(data)), noise(32, seed + i % 3))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(list(pictures.folder.iterdir())) == 4


def test_all_pictures_at_once(pictures):
    images = {f"face-{i}": noise(40, i) for i in range(3)}
    address = pictures.bundle(images.items())
    assert re.fullmatch(r"pictures/[0-9a-f]{32}\.zip", address)
    start, body = ask(PictureServer(other([]), pictures), f"/{address}")
    assert start["status"] == 200 and dict(start["headers"])[b"content-disposition"].startswith(b"attachment")
    with zipfile.ZipFile(io.BytesIO(body["body"])) as archive:
        assert archive.namelist() == [f"{name}.png" for name in images]
        for name, image in images.items():
            assert Image.open(io.BytesIO(archive.read(f"{name}.png"))).tobytes() == image.tobytes()
    gone = pictures.add(images["face-1"])
    (pictures.folder / f"{gone}.bmp").unlink()
    assert pictures.read(address.partition("/")[2][:32], "zip") is None  # not an archive that lacks one
    assert pictures.read("0" * 32, "zip") is None


def test_films_are_served_in_the_parts_that_are_asked_for(tmp_path):
    pictures = Pictures(tmp_path / "pictures", most_bytes=100)
    name = pictures.keep(bytes(range(60)), "mp4")
    assert pictures.read(name, "jpg") is None and pictures.read(name, "mp4") == bytes(range(60))
    app = PictureServer(other([]), pictures)
    for given, status, first, last in (
        (None, 200, 0, 59),
        (b"bytes=0-", 206, 0, 59),
        (b"bytes=10-19", 206, 10, 19),
        (b"bytes=50-99", 206, 50, 59),
        (b"bytes=60-", 200, 0, 59),
        (b"lines=1-2", 200, 0, 59),
    ):
        start, body = ask(app, f"/pictures/{name}.mp4", headers=[(b"range", given)] if given else ())
        headers = dict(start["headers"])
        assert start["status"] == status and body["body"] == bytes(range(first, last + 1))
        assert headers[b"content-length"] == str(last - first + 1).encode() and headers[b"accept-ranges"] == b"bytes"
        assert headers.get(b"content-range") == (f"bytes {first}-{last}/60".encode() if status == 206 else None)
    pictures.keep(bytes(90), "mp4")
    assert pictures.read(name, "mp4") is None and len(list(pictures.folder.iterdir())) == 1
