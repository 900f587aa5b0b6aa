"""Protect the demo: refuse requests of other sites, and keep uploads in a private folder.

A page of another site must not reach a server on this machine, neither through a host name that its owner points here
(DNS rebinding) nor with a form sent across sites (CSRF).
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

PREFIX = "fewshot-gan-demo-"  # start of the private folder's name; the process id follows


class SameSite:
    """ASGI middleware that refuses requests to another host name, and requests from another site's page.

    IP addresses are always accepted, since only a name can be pointed to another machine.

    Args:
        app: ASGI application.
        allowed_hosts: host names of the server, besides localhost and this machine's name.
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
        """Return why a request with these Host and Origin headers is refused, or None if it is accepted."""
        place, name = _place_of(f"//{host}")
        if not (name in self.names or _is_address(name)):
            return f"this server does not answer for the host {host[:100]!r}; start it with --allowed-host NAME"
        if origin is None:
            return None
        origin_place, origin_name = _place_of(origin)
        if origin_place != place and origin_name not in self.names - {"localhost"}:
            return f"pages of {origin[:100]!r} may not use this server; start it with --allowed-host NAME"
        return None


def _place_of(url: str) -> tuple[str, str]:
    """Return `name:port` and the name of a URL, in lower case; both empty if the URL is invalid."""
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
    """Create a folder that only this user can read, for everything that visitors upload or make.

    Also remove the folders of servers that no longer run, and make Gradio keep its files in the new folder. The
    object's `cleanup` deletes it.
    """
    for other in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = other.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not lives(int(pid)) and _is_ours(other):
            shutil.rmtree(other, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder.name) / "gradio")
    return folder


def _is_ours(folder: Path) -> bool:
    return not folder.is_symlink() and (not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid())


@contextmanager
def ended_by_sigterm():
    """Let SIGTERM end the block like Ctrl-C, so that cleanup runs; the exit code is 143.

    An existing handler stays in place. Outside the main thread this does nothing, since Python sets no handlers there.
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
