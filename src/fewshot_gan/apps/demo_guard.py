"""Who may talk to the demo's server, and where it keeps what visitors upload.

A page of another site must not reach a server on this machine: neither through a name that its owner points here (DNS
rebinding) nor by sending a form across sites.
"""

import ipaddress
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ..utils.files import lives

PREFIX = "fewshot-gan-demo-"  # of the private folder: then the number of its process


class SameSite:
    """ASGI middleware that refuses requests for another site's name, and those that another site's page sends.

    Addresses in numbers are always accepted, since only a name can be pointed somewhere else.

    Args:
        app: the ASGI application.
        allowed_hosts: names under which the server is known, besides localhost and that of this machine.
    """

    def __init__(self, app, allowed_hosts: Iterable[str] = ()):
        self.app = app
        self.names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in allowed_hosts)}

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if reason := self.refusal(headers.get(b"host", ""), headers.get(b"origin")):
            return await _refuse(scope, send, reason)
        return await self.app(scope, receive, send)

    def refusal(self, host: str, origin: str | None) -> str | None:
        """Why a request with these headers is refused; None: it is not."""
        place, name = _place_of(f"//{host}")
        if not (name in self.names or _is_address(name)):
            return f"this server does not answer for the host {host[:100]!r}; start it with --allowed-host NAME"
        origin_place, origin_name = (place, name) if origin is None else _place_of(origin)
        if origin_place != place and origin_name not in self.names - {"localhost"}:
            return f"pages of {origin[:100]!r} may not use this server; start it with --allowed-host NAME"
        return None


def _place_of(url: str) -> tuple[str, str]:
    """`name:port` and name of a URL, in lower case; empty where there is none."""
    try:
        parts = urlsplit(url)
        return parts.netloc.lower(), parts.hostname or ""
    except ValueError:
        return "", ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(scope, send, reason: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def private_folder() -> tempfile.TemporaryDirectory:
    """A folder that only this user can read, for all that visitors upload or make; those of dead servers are removed.

    Gradio keeps its files there too. The folder goes with the object's `cleanup`.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not lives(int(pid)) and _is_ours(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder.name) / "gradio")
    return folder


def _is_ours(folder: Path) -> bool:
    return not folder.is_symlink() and (not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid())


@contextmanager
def ended_by_sigterm():
    """Let SIGTERM end the block as Ctrl-C does, so that what is to be cleaned up is; exit status 143.

    Whoever handles the signal already goes on to do so. In a thread Python sets no handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number, frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
