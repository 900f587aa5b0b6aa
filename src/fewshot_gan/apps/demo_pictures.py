"""Show the demo's pictures: small previews on the page, and the full pictures for those who open or save them.

Encoding eight pictures of 1024 px as PNG takes longer than drawing them, and hardly any of them is opened. The page
therefore shows small JPEG previews, and a picture is encoded as PNG when a browser asks for it.
"""

import asyncio
import hashlib
import io
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from ..data.grids import TILE, shrink

MOST_BYTES = 2**31  # of all pictures that are kept: 680 of 1024 px
PREVIEW_QUALITY = 90  # of JPEG
ADDRESS = re.compile(r"/pictures/([0-9a-f]{32})\.(jpg|png)")
KINDS = {"jpg": b"image/jpeg", "png": b"image/png"}
GONE = b"This picture is no longer kept. Draw it again."


class Pictures:
    """Full pictures in files, under names that only those who are shown the picture know.

    A picture has the same name as long as this object lives. When there are too many, those shown least recently go.

    Args:
        folder: private folder; it is created when there is a picture.
        most_bytes: limit of all pictures together.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES):
        self.folder, self.most_bytes = folder, most_bytes
        self._secret = secrets.token_bytes(32)
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: Image.Image) -> str:
        """Keep an RGB picture and return its name, 32 hexadecimal digits."""
        data = image.tobytes()
        name = hashlib.blake2b(data + repr(image.size).encode(), digest_size=16, key=self._secret).hexdigest()
        with self._lock:
            if name not in self._sizes:
                self.folder.mkdir(parents=True, exist_ok=True)
                image.save(self._file(name))
                self._sizes[name] = len(data)
            self._sizes.move_to_end(name)
            while sum(self._sizes.values()) > self.most_bytes and len(self._sizes) > 1:
                oldest, _ = self._sizes.popitem(last=False)
                self._file(oldest).unlink(missing_ok=True)
        return name

    def read(self, name: str, kind: str) -> bytes | None:
        """Return the file of a picture; None if it is not kept.

        Args:
            name: name of the picture.
            kind: "png" for the full picture, "jpg" for a preview of at most 512 px.
        """
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
            image = Image.open(self._file(name), formats=("BMP",))
            image.load()
        buffer = io.BytesIO()
        if kind == "png":
            image.save(buffer, "PNG")
        else:
            shrink(image, TILE).save(buffer, "JPEG", quality=PREVIEW_QUALITY)
        return buffer.getvalue()

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

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bmp"  # written a hundred times as fast as PNG


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
        body = GONE if body is None else body
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        headers += [(b"cache-control", kept), (b"x-content-type-options", b"nosniff")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
