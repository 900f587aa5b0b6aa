"""Show the demo's pictures: small previews on the page, and full pictures, films and archives for those who want them.

Encoding eight pictures of 1024 px as PNG takes longer than drawing them, and hardly any of them is opened. The page
therefore shows small JPEG previews, and a picture is encoded as PNG when a browser asks for it.
"""

import asyncio
import hashlib
import io
import re
import secrets
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from PIL import Image

from ..data.grids import TILE, shrink

MOST_BYTES = 2**31  # of all pictures that are kept: 680 of 1024 px
MOST_BUNDLES = 1000  # archives that can be asked for
PREVIEW_QUALITY = 90  # of JPEG
ADDRESS = re.compile(r"/pictures/([0-9a-f]{32})\.(jpg|png|mp4|zip)")
KINDS = {"jpg": b"image/jpeg", "png": b"image/png", "mp4": b"video/mp4", "zip": b"application/zip"}
RANGE = re.compile(rb"bytes=(\d+)-(\d*)")
GONE = b"This picture is no longer kept. Draw it again."


class Pictures:
    """Full pictures in files, under names that only those who are shown the picture know.

    A picture has the same name as long as this object lives. When there are too many, those shown least recently go.

    Args:
        folder: private folder; it is created when there is a picture.
        most_bytes: limit of all pictures and films together.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES):
        self.folder, self.most_bytes = folder, most_bytes
        self._secret = secrets.token_bytes(32)
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bundles: OrderedDict[str, dict[str, str]] = OrderedDict()  # file in the archive → name of its picture
        self._lock = threading.Lock()

    def add(self, image: Image.Image) -> str:
        """Keep an RGB picture and return its name, 32 hexadecimal digits."""
        data = image.tobytes()
        name = self._name(data + repr(image.size).encode())
        with self._lock:
            if name not in self._sizes:
                self.folder.mkdir(parents=True, exist_ok=True)
                image.save(self._file(name))
            self._note(name, len(data))
        return name

    def keep(self, data: bytes, kind: str) -> str:
        """Keep a file of another kind, such as "mp4", and return its name."""
        name = self._name(data)
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file(name, kind).write_bytes(data)
            self._note(name, len(data))
        return name

    def bundle(self, pictures: Iterable[tuple[str, Image.Image]]) -> str:
        """Return the address of a zip archive of pictures, which is made when it is asked for.

        Args:
            pictures: names of files without their endings, and pictures.
        """
        members = {f"{file}.png": self.add(image) for file, image in pictures}
        name = self._name(repr(members).encode())
        with self._lock:
            self._bundles[name] = members
            while len(self._bundles) > MOST_BUNDLES:
                self._bundles.popitem(last=False)
        return f"pictures/{name}.zip"

    def read(self, name: str, kind: str) -> bytes | None:
        """Return a file; None if it is not kept.

        Args:
            name: name of a picture, film or archive.
            kind: "png" for the full picture, "jpg" for a preview of at most 512 px, "mp4", or "zip".
        """
        if kind == "zip":
            return self._archive(self._bundles.get(name))
        with self._lock:
            file = self._file(name, "bmp" if kind in ("jpg", "png") else kind)
            if name not in self._sizes or not file.is_file():
                return None
            self._sizes.move_to_end(name)
            if file.suffix != ".bmp":
                return file.read_bytes()
            image = Image.open(file, formats=("BMP",))
            image.load()
        buffer = io.BytesIO()
        if kind == "png":
            image.save(buffer, "PNG")
        else:
            shrink(image, TILE).save(buffer, "JPEG", quality=PREVIEW_QUALITY)
        return buffer.getvalue()

    def _archive(self, members: Mapping[str, str] | None) -> bytes | None:
        files = {file: self.read(name, "png") for file, name in (members or {}).items()}
        if not files or None in files.values():
            return None
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:  # PNG is compressed
            for file, data in files.items():
                archive.writestr(file, data or b"")
        return buffer.getvalue()

    def _name(self, data: bytes) -> str:
        return hashlib.blake2b(data, digest_size=16, key=self._secret).hexdigest()

    def _note(self, name: str, size: int) -> None:
        """Remember a file as the newest, and delete the oldest ones when there are too many."""
        self._sizes[name] = size
        self._sizes.move_to_end(name)
        while sum(self._sizes.values()) > self.most_bytes and len(self._sizes) > 1:
            oldest, _ = self._sizes.popitem(last=False)
            for kind in ("bmp", "mp4"):
                self._file(oldest, kind).unlink(missing_ok=True)

    def show(self, image: Image.Image, description: str, file: str) -> str:
        """Return a picture as HTML: a preview that opens the full picture, and a link that saves it.

        Args:
            image: RGB picture.
            description: text for those who do not see it.
            file: name of the saved file, without its ending.
        """
        name, (width, height) = self.add(image), image.size
        full, described = f"pictures/{name}.png", escape(description)
        return (
            f'<div class="picture"><a href="{full}" target="_blank" rel="noopener" title="Open at {width} px">'
            f'<img src="pictures/{name}.jpg" alt="{described}" width="{width}" height="{height}"></a>'
            f'<a class="save" href="{full}" download="{escape(file)}.png" aria-label="Save {described}">Save</a></div>'
        )

    def gallery(self, pictures: Iterable[tuple[str, Image.Image]]) -> str:
        """Return captions and pictures as HTML, each picture above its caption."""
        figures = (
            f"<figure>{self.show(image, caption, file_name(caption))}"
            f'<figcaption class="caption-label">{escape(caption)}</figcaption></figure>'
            for caption, image in pictures
        )
        return f'<div class="gallery">{"".join(figures)}</div>'

    def video(self, name: str, file: str) -> str:
        """Return a film as HTML: it plays again and again without sound, and a link saves it.

        Args:
            name: see `keep`.
            file: name of the saved file, without its ending.
        """
        address = f"pictures/{name}.mp4"
        return (
            f'<div class="picture film"><video class="film" src="{address}" controls autoplay loop muted playsinline '
            f'aria-label="Film"></video><a href="{address}" download="{escape(file)}.mp4">Save the film</a></div>'
        )

    def _file(self, name: str, kind: str = "bmp") -> Path:
        return self.folder / f"{name}.{kind}"  # BMP is written a hundred times as fast as PNG


def file_name(caption: str) -> str:
    """Return a caption as the name of a file: lower case, with a dash for everything but letters, digits and dots."""
    return re.sub(r"[^\w.]+", "-", caption.lower()).strip("-.") or "picture"


class PictureServer:
    """ASGI middleware that serves the pictures of `Pictures.show`.

    Args:
        app: ASGI application, which answers everything else.
        pictures: the pictures.
    """

    def __init__(self, app, pictures: Pictures):
        self.app, self.pictures = app, pictures

    async def __call__(self, scope, receive, send):
        asked = ADDRESS.fullmatch(scope.get("path", "")) if scope["type"] == "http" else None
        if asked is None or scope["method"] not in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        body = await asyncio.to_thread(self.pictures.read, *asked.groups())
        status, kind, kept = (404, b"text/plain", b"no-store") if body is None else (200, KINDS[asked[2]], b"private")
        headers = [(b"content-type", kind), (b"cache-control", kept), (b"x-content-type-options", b"nosniff")]
        if body is None:
            body = GONE
        elif asked[2] == "zip":
            headers.append((b"content-disposition", b'attachment; filename="faces.zip"'))
        elif asked[2] == "mp4":  # Safari plays a film only if it gets the parts that it asks for
            headers.append((b"accept-ranges", b"bytes"))
            wanted = RANGE.fullmatch(dict(scope.get("headers") or ()).get(b"range", b""))
            if wanted and int(wanted[1]) < len(body):
                start, total = int(wanted[1]), len(body)
                body = body[start : int(wanted[2]) + 1 if wanted[2] else None]
                status = 206
                headers.append((b"content-range", f"bytes {start}-{start + len(body) - 1}/{total}".encode()))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
