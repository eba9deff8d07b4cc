"""A local Hugging Face Hub: model repositories in memory, behind the part of the Hub's HTTP API that huggingface_hub
uses to create, read, change and delete them. Tests can make requests fail.

All files are regular (no LFS, no Xet), every commit stores the complete tree, and the only token has all permissions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_for_tests"
Tree = dict[str, bytes]


@dataclass
class Repository:
    """Commits in order, each with its message and all files."""

    private: bool
    commits: dict[str, tuple[str, Tree]] = field(default_factory=dict)

    def add(self, message: str, tree: Tree) -> str:
        sha = hashlib.sha1(f"{message}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = (message, tree)
        return sha

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    @property
    def files(self) -> Tree:
        return self.commits[self.head][1]

    @property
    def messages(self) -> list[str]:
        return [message for message, _ in self.commits.values()]


@dataclass
class Failure:
    """Requests that fail, and how: with an HTTP status, or "drop" for a broken connection."""

    pattern: re.Pattern[str]
    how: int | str
    times: int


class HubServer(ThreadingHTTPServer):
    """Serves the repositories. `requests` lists method and path of each request; they wait until `gate` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.failures: list[Failure] = []
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        self.role = "write"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def fail_requests(self, pattern: str, how: int | str, times: int = 1000) -> Iterator[None]:
        """Fails up to `times` requests whose method and path match, within the context: a status, or "drop"."""
        failure = Failure(re.compile(pattern), how, times)
        self.failures.append(failure)
        try:
            yield
        finally:
            self.failures.remove(failure)

    def count_requests(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._respond()

    do_HEAD = do_POST = do_DELETE = do_GET

    def _respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(request)
        assert self.server.gate.wait(60), "the test left the gate closed"
        for failure in self.server.failures:
            if failure.times and failure.pattern.search(request):
                failure.times -= 1
                self._fail(failure.how)
                return
        for route, handle in ROUTES:
            if match := re.fullmatch(route, request):
                with self.server.lock:
                    handle(self, *match.groups())
                return
        self._send(404, {"error": "no such address"})

    def _fail(self, how: int | str) -> None:
        if how == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(int(how), {"error": "requested by the test"})

    def _send(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str, write: bool = False) -> Repository | None:
        """Returns the repository, or None after sending an error."""
        repository = self.server.repositories.get(name)
        if repository and (self._authorized() or not (write or repository.private)):
            return repository
        self._send(404 if self._authorized() else 401, {}, X_Error_Code="RepoNotFound")
        return None

    # --- routes --------------------------------------------------------------------------------------------

    def create(self) -> None:
        body = json.loads(self.body)
        name = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
        url = {"url": f"{self.server.address}/{name}"}
        if not self._authorized():
            self._send(401, {"error": "Invalid username or password."})
        elif name in self.server.repositories:
            self._send(409, url | {"error": "You already created this model repo"})
        else:
            repository = Repository(private=bool(body.get("private") or body.get("visibility") == "private"))
            repository.add("initial commit", {".gitattributes": b""})
            self.server.repositories[name] = repository
            self._send(200, url)

    def delete(self) -> None:
        body = json.loads(self.body)
        name = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
        if self._repository(name, write=True):
            del self.server.repositories[name]
            self._send(200, {})

    def whoami(self) -> None:
        if self._authorized():
            self._send(
                200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": self.server.role}}}
            )
        else:
            self._send(401, {"error": "Invalid credentials in Authorization header"})

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str | None = None) -> None:
        if repository := self._repository(name):
            sha = revision if revision in repository.commits else repository.head
            siblings = [{"rfilename": path} for path in repository.commits[sha][1]]
            self._send(
                200,
                {
                    "id": name,
                    "modelId": name,
                    "sha": sha,
                    "private": repository.private,
                    "siblings": siblings,
                },
            )

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        if repository := self._repository(name):
            tree = repository.commits[revision if revision in repository.commits else repository.head][1]
            files = {
                path: data for path, data in tree.items() if path.startswith(f"{folder}/" if folder else "")
            }
            if folder and not files:
                self._send(404, {}, X_Error_Code="EntryNotFound")
                return
            self._send(
                200,
                [
                    {"type": "file", "path": path, "size": len(data), "oid": git_blob_hash(data)}
                    for path, data in files.items()
                ],
            )

    def preupload(self, name: str) -> None:
        if repository := self._repository(name, write=True):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False,
                 "oid": git_blob_hash(repository.files[file["path"]]) if file["path"] in repository.files else None}
                for file in json.loads(self.body)["files"]
            ]  # fmt: skip
            self._send(200, {"files": files})

    def commit(self, name: str) -> None:
        if repository := self._repository(name, write=True):
            tree, message = dict(repository.files), ""
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                else:
                    deleted = [
                        path for path in tree if path == value["path"] or path.startswith(f"{value['path']}/")
                    ]
                    for path in deleted:
                        del tree[path]
            sha = repository.add(message, tree)
            self._send(
                200,
                {
                    "success": True,
                    "commitOid": sha,
                    "commitUrl": f"{self.server.address}/{name}/commit/{sha}",
                },
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (repository := self._repository(name)):
            return
        sha = revision if revision in repository.commits else repository.head
        data = repository.commits[sha][1].get(path)
        if data is None:
            self._send(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        headers = {"X_Repo_Commit": sha, "ETag": f'"{git_blob_hash(data)}"', "Accept_Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(206, data[first : last + 1], **headers)
        else:
            self._send(200, data, **headers)


NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", Handler.create),
    (r"DELETE /api/repos/delete", Handler.delete),
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"GET /api/models/{NAME}/revision/([^/]+)", Handler.info),
    (rf"GET /api/models/{NAME}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    (rf"POST /api/models/{NAME}/preupload/[^/]+", Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/[^/]+", Handler.commit),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def git_blob_hash(data: bytes) -> str:
    """Returns git's hash of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def run_hub_server(patch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Runs a server and points this process's huggingface_hub at it, logged in and without waits between retries."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        constants = "huggingface_hub.constants"
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(f"{constants}.ENDPOINT", server.address)
        patch.setattr(
            f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        patch.setattr(
            "huggingface_hub.utils._http.time", SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
        )
        yield server
        server.gate.set()
        server.shutdown()
