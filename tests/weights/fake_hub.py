"""A hub on loopback: the few addresses that a download asks for, every request in a log."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants

REPO = "somebody/small-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = b'{"model_type": "gpt2"}\n'
WEIGHTS = random.Random(3).randbytes(100_003)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    token: str | None


def etag(file: str, content: bytes) -> str:
    """As the hub does it: sha256 of weights, git's checksum of everything else."""
    if file.endswith((".safetensors", ".bin")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(file: str, content: bytes) -> dict[str, object]:
    """A file as the hub lists it."""
    found: dict[str, object] = {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
    if file.endswith((".safetensors", ".bin")):
        return found | {"lfs": {"oid": etag(file, content), "size": len(content), "pointerSize": 130}}
    return found | {"oid": etag(file, content)}


@dataclass
class FakeHub:
    """Answers for the models in `models`; the other fields make it misbehave."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """owner/name to file to content."""
    commit: str = COMMIT
    damaged: dict[str, bytes] = field(default_factory=dict)
    """Content to send in place of the announced one."""
    announced: dict[str, str] = field(default_factory=dict)
    """ETags to send in place of the right ones."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """How many bytes of a file to send before the connection is cut, one for each request."""
    stall: bool = False
    """Keep a cut connection open, so that only the reader's death ends it."""
    ignores_range: bool = False
    token: str | None = None
    """The token without which nothing is given."""
    status: int = 0
    """Answer to everything, with a page for people, when not 0."""
    log: list[Request] = field(default_factory=list)

    def __enter__(self) -> FakeHub:
        hub, self.released = self, threading.Event()

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """Where large files lie: for a client it is another host, which must not see the token."""
        return f"http://localhost:{self.port}/storage"

    def bodies(self, file: str) -> list[str | None]:
        """The Range of every request for the content of one file."""
        return [
            r.range for r in self.log if r.method == "GET" and r.path.endswith(f"/{file}") and self._body(r)
        ]

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [r.path.rsplit("/", 1)[1] for r in self.log if r.method == "GET" and self._body(r)]

    def _body(self, request: Request) -> bool:
        large = request.path.endswith((".safetensors", ".bin"))
        return request.path.startswith("/storage") or ("/resolve/" in request.path and not large)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        token = self.headers.get("Authorization")
        hub.log.append(Request(self.command, path, self.headers.get("Range"), token))
        _, *parts = path.split("/")
        if hub.status:
            return self._send(hub.status, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
        if parts[0] == "storage":
            return self._content("/".join(parts[1:3]), parts[-1], {})
        if hub.token and token != f"Bearer {hub.token}":
            return self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in hub.models:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api" and parts[4:5] == ["tree"]:
            body = [entry(file, content) for file, content in hub.models[repo].items()]
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        if parts[0] == "api":
            files = [{"rfilename": file} for file in hub.models[repo]]
            body = {"_id": "1", "id": repo, "sha": hub.commit, "siblings": files}
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        file = "/".join(parts[4:])
        headers = {"X-Repo-Commit": hub.commit}
        if file not in hub.models[repo]:
            return self._send(404, headers | {"X-Error-Code": "EntryNotFound"})
        content = hub.models[repo][file]
        checksum = f'"{hub.announced.get(file) or etag(file, content)}"'
        if not file.endswith((".safetensors", ".bin")):
            return self._content(repo, file, headers | {"ETag": checksum})
        headers |= {"X-Linked-ETag": checksum, "X-Linked-Size": str(len(content))}
        return self._send(302, headers | {"Location": f"{hub.storage}/{repo}/{file}"})

    def _content(self, repo: str, file: str, headers: dict[str, str]) -> None:
        hub, content = self.hub, self.hub.damaged.get(file, self.hub.models[repo][file])
        if "gzip" in self.headers.get("Accept-Encoding", ""):  # a range then counts compressed bytes
            content, headers = gzip.compress(content), headers | {"Content-Encoding": "gzip"}
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start and not hub.ignores_range:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            status, body = 206, content[start:]
        else:
            status, body = 200, content
        if self.command == "GET" and hub.cuts.get(file):
            sent = hub.cuts[file].pop(0)
            self._send(status, headers | {"Content-Length": str(len(body))}, body[:sent])
            self.wfile.flush()
            if hub.stall:
                hub.released.wait()
            self.close_connection = True
            return None
        return self._send(status, headers, body)


def index(*files: object) -> bytes:
    """An index in which each parameter lies in the next of the files."""
    places = {f"h.{i}.weight": file for i, file in enumerate(files)}
    return json.dumps({"metadata": {}, "weight_map": places}).encode()


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library ask this hub, although it reads HF_ENDPOINT only when imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
