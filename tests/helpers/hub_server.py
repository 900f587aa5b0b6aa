"""A Hub on localhost: the part of the real HTTP API through which repos are created, pushed, listed and fetched.

    with HubServer() as hub:  # hub.url answers until the block ends
        hub.commit("me/sketch", {"adapter_config.json": b"{}"})  # as if somebody had pushed it

Model repos, in memory; what `commit` puts there is a data set to those who ask for one. `Authorization: Bearer <token>`
is one of TOKENS or refused. What goes wrong on purpose: `fail` answers the next requests with an error, `cut` ends
downloads early, and file names are not checked.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"write-me": ("me", "write"), "read-me": ("me", "read"), "write-you": ("you", "write")}  # token: user, role
LARGE = (".safetensors", ".png")  # stored by the LFS protocol


@dataclass
class Repo:
    private: bool = False
    sdk: str | None = None  # of a Space
    gated: bool = False  # readable on request only, and nobody was admitted
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # id: path: content
    branches: dict[str, str] = field(default_factory=dict)  # name: commit
    messages: list[str] = field(default_factory=list)

    def add(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        sha = hashlib.sha1(f"{branch}{message}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


class Refused(Exception):
    """An error answer: HTTP status, the Hub's error code, what it says."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


@dataclass
class Request:
    method: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: str | None
    role: str | None

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Reply:
    body: bytes | dict | list
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stop_at: int | None = None  # bytes of the body that are sent before the connection breaks


class HubServer:
    """Context manager; inside it `url` answers.

    Attributes:
        repos: id → `Repo`.
        log: (method, path) of every request.
        cut: downloads break before this byte of a file; None: they do not.
        spoiled: paths of files that are sent with their last byte changed.
        hang: while this event is not set, commits get no answer.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.log: list[tuple[str, str]] = []
        self.cut: int | None = None
        self.spoiled: set[str] = set()
        self.hang = threading.Event()
        self.hang.set()
        self._large: dict[str, bytes] = {}  # sha256: uploaded, perhaps not yet part of a commit
        self._failures = [0, 0, ""]  # how many, status, part of the path
        self._lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    stop = __exit__  # may be called twice

    def commit(self, repo_id: str, files: dict[str, bytes], branch: str = "main", **visibility) -> str:
        """Add or replace files without a client; returns the commit's id."""
        repo = self.repos.setdefault(repo_id, Repo(**visibility))
        before = repo.commits.get(repo.branches.get(branch) or repo.branches.get("main"), {})
        return repo.add(branch, {**before, **files}, "set up by a test")

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo.commits[repo.branches.get(revision, revision)]

    def fail(self, count: int, status: int = 503, on: str = "") -> None:
        """Answer the next `count` requests whose path contains `on` with `status`."""
        self._failures = [count, status, on]

    def fetched(self) -> list[str]:
        """Paths of the files that were downloaded, in their repo."""
        return [p.split("/resolve/")[1].split("/", 1)[1] for m, p in self.log if m == "GET" and "/resolve/" in p]

    # ------------------------------------------------------------------------------------------------------- answering

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        url = urlsplit(target)
        if "/commit/" in url.path:
            self.hang.wait(timeout=60)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        with self._lock:
            self.log.append((method, unquote(url.path)))
            try:
                if self._failures[0] > 0 and self._failures[2] in url.path:
                    self._failures[0] -= 1
                    raise Refused(self._failures[1], "", "failing on purpose")
                if token and token not in TOKENS:
                    raise Refused(401, "", "Invalid credentials in Authorization header")
                user, role = TOKENS.get(token, (None, None))
                request = Request(method, parse_qs(url.query), headers, body, user, role)
                for methods, pattern, handler in ROUTES:
                    if method in methods and (match := re.fullmatch(pattern, url.path)):
                        return handler(self, request, *(g and unquote(g) for g in match.groups()))
                raise Refused(404, "", f"no route for {method} {url.path}")
            except Refused as refused:
                return Reply({"error": str(refused)}, refused.status, refused.headers)

    def _readable(self, request: Request, repo_id: str) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and request.user != repo_id.split("/")[0]):
            raise Refused(404 if request.user else 401, "RepoNotFound", "Repository not found")  # one answer for both
        return repo

    def _writable(self, request: Request, repo_id: str) -> None:
        if request.user is None:
            raise Refused(401, "", "Invalid username or password.")
        if request.role != "write" or request.user != repo_id.split("/")[0]:
            raise Refused(403, "", f"you have no right to write to {repo_id} with this token")

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def whoami(self, request):
        if request.user is None:
            raise Refused(401, "", "Invalid username or password.")
        auth = {"accessToken": {"role": request.role}}
        return Reply({"type": "user", "name": request.user, "orgs": [], "auth": auth})

    def create(self, request):
        repo_id = f"{request.json.get('organization') or request.user}/{request.json['name']}"
        self._writable(request, repo_id)
        exists = repo_id in self.repos
        if not exists:
            repo = self.repos[repo_id] = Repo(private=request.json.get("visibility") == "private")
            repo.sdk = request.json.get("sdk")
            repo.add("main", {}, "initial commit")
        return Reply({"url": f"{self.url}/{repo_id}"}, 409 if exists else 200)

    def branch(self, request, repo_id, name):
        repo = self._readable(request, repo_id)
        self._writable(request, repo_id)
        if name in repo.branches:
            raise Refused(409, "", "Reference already exists")
        repo.branches[name] = self._commit_of(repo, request.json.get("startingPoint", "main"))
        return Reply({})

    def refs(self, request, repo_id):
        branches = self._readable(request, repo_id).branches.items()
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in branches]
        return Reply({"branches": listed, "tags": [], "converts": []})

    def info(self, request, repo_id, revision):
        repo = self._readable(request, repo_id)
        sha = self._commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        facts = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False, "tags": []}
        return Reply({"id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings, **facts})

    def tree(self, request, repo_id, revision, folder):
        repo = self._readable(request, repo_id)
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for path, content in sorted(repo.commits[self._commit_of(repo, revision)].items()):
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                for depth in range(1, len(parts)):
                    parent = prefix + "/".join(parts[:depth])
                    entries[parent] = {"type": "directory", "path": parent, "size": 0, "oid": _blob_id(parent.encode())}
                entries[path] = _entry(path, content)
        if folder and not entries:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        if request.query.get("recursive", ["false"])[0].lower() != "true":
            entries = {path: e for path, e in entries.items() if "/" not in path.removeprefix(prefix)}
        return Reply(list(entries.values()))

    def paths_info(self, request, repo_id, revision):
        files = self.repos[repo_id].commits[self._commit_of(self._readable(request, repo_id), revision)]
        wanted = parse_qs(request.body.decode()).get("paths", [])
        return Reply([_entry(path, files[path]) for path in wanted if path in files])

    def resolve(self, request, repo_id, revision, path):
        repo = self._readable(request, repo_id)
        if repo.gated:
            raise Refused(403 if request.user else 401, "GatedRepo", "Access to this model is restricted")
        sha = self._commit_of(repo, revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(path, content)}"', "Accept-Ranges": "bytes"}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if path in self.spoiled:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, end, status = 0, len(content), 200
        if asked := re.match(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            start, end, status = int(asked[1]), int(asked[2] or end - 1) + 1, 206
            if start >= len(content):
                return Reply(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        stop_at = None if self.cut is None or self.cut >= end else max(0, self.cut - start)
        return Reply(content[start:end], status, headers, stop_at)

    def preupload(self, request, repo_id, revision):
        repo = self._readable(request, repo_id)
        if "create_pr" not in request.query:  # anybody may propose
            self._writable(request, repo_id)
        files = repo.commits[self._commit_of(repo, revision)]

        def plan(path):
            old = _etag(path, files[path]) if path in files else None
            mode = "lfs" if path.endswith(LARGE) else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old}

        return Reply({"files": [plan(file["path"]) for file in request.json["files"]]})

    def large_batch(self, request, repo_id):
        self._readable(request, repo_id)
        objects = []
        for item in request.json["objects"]:
            if item["oid"] not in self._large:
                upload, verify = f"{self.url}/large/{item['oid']}", f"{self.url}/large-verify"
                item = {**item, "authenticated": True, "actions": {"upload": {"href": upload}}}
                item["actions"]["verify"] = {"href": verify}
            objects.append(item)
        content_type = {"Content-Type": "application/vnd.git-lfs+json"}
        return Reply({"transfer": "basic", "objects": objects}, headers=content_type)

    def large_put(self, request, oid):
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refused(400, "", "the content is not what its name says")
        self._large[oid] = request.body
        return Reply({})

    def large_verify(self, request):
        if len(self._large.get(request.json["oid"], b"")) != request.json["size"]:
            raise Refused(404, "", "no such object of that size")
        return Reply({})

    def make_commit(self, request, repo_id, revision):
        repo = self._readable(request, repo_id)
        propose = "create_pr" in request.query
        if not propose:
            self._writable(request, repo_id)
        files, message = dict(repo.commits[self._commit_of(repo, revision)]), ""
        for line in request.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and value["oid"] in self._large:
                files[value["path"]] = self._large[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "", f"{kind} {value} cannot be committed")
        number = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
        sha = repo.add(f"refs/pr/{number}" if propose else revision, files, message)
        reply = {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"}
        return Reply(reply | ({"pullRequestUrl": f"{self.url}/{repo_id}/discussions/{number}"} if propose else {}))


_API, _ID, _REV = "/api/(?:models|datasets|kernels|spaces)", "([^/]+/[^/]+)", "([^/]+)"
ROUTES = (
    (("GET",), "/api/whoami-v2", HubServer.whoami),
    (("POST",), "/api/validate-yaml", lambda hub, request: Reply({"errors": [], "warnings": []})),
    (("POST",), "/api/repos/create", HubServer.create),
    (("GET",), f"{_API}/{_ID}(?:/revision/{_REV})?", HubServer.info),
    (("GET",), f"{_API}/{_ID}/refs", HubServer.refs),
    (("POST",), f"{_API}/{_ID}/branch/(.+)", HubServer.branch),
    (("GET",), f"{_API}/{_ID}/tree/{_REV}(?:/(.+))?", HubServer.tree),
    (("POST",), f"{_API}/{_ID}/paths-info/{_REV}", HubServer.paths_info),
    (("POST",), f"{_API}/{_ID}/preupload/{_REV}", HubServer.preupload),
    (("POST",), f"{_API}/{_ID}/commit/{_REV}", HubServer.make_commit),
    (("POST",), rf"/(?:spaces/)?{_ID}\.git/info/lfs/objects/batch", HubServer.large_batch),
    (("PUT",), "/large/([0-9a-f]{64})", HubServer.large_put),
    (("POST",), "/large-verify", HubServer.large_verify),
    (("GET", "HEAD"), f"/(?:(?:datasets|kernels|spaces)/)?{_ID}/resolve/{_REV}/(.+)", HubServer.resolve),
)


def _blob_id(content: bytes) -> str:
    """Git's name for the content of a file."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _blob_id(content)


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _etag(path, content), "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    """One request per connection (HTTP/1.0), so that a stopped server stops at once."""

    hub: HubServer

    def _handle(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.hub.answer(self.command, self.path, headers, self._read(headers))
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: reply.stop_at])

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read(self, headers) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


@contextmanager
def connected(monkeypatch, cache):
    """A running `HubServer`, and huggingface_hub of this process turned to it, with an empty cache and no token."""
    from huggingface_hub import close_session, constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as hub:
        changes = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # files then go by the LFS protocol and plain downloads
        }
        for name, value in changes.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        yield hub
    close_session()
