"""A Hugging Face Hub on this machine: repositories of models in memory, behind as much of the Hub's HTTP API as
huggingface_hub uses to make, read, change and delete them. It fails where a test asks it to.

Every file is a plain one (no LFS, no Xet), every commit keeps the whole tree, and whoever has the token owns all.
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
    """Commits in their order, each with its message and all files."""

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
class Failing:
    """Which requests fail, and how: a status, or "drop" for a connection that breaks off."""

    asked: re.Pattern[str]
    how: int | str
    times: int


class HubServer(ThreadingHTTPServer):
    """`repositories` is what it holds, `requests` what it was asked, as method and path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.failing: list[Failing] = []
        self.held = threading.Event()
        self.held.set()
        self.busy = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def fails(self, asked: str, how: int | str, times: int = 1000) -> Iterator[None]:
        """While the block runs, so many requests whose method and path match fail: with a status, or "drop"."""
        entry = Failing(re.compile(asked), how, times)
        self.failing.append(entry)
        try:
            yield
        finally:
            self.failing.remove(entry)

    def asked(self, what: str) -> int:
        return sum(bool(re.search(what, request)) for request in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_DELETE = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(asked)
        self.server.held.wait(60)
        for failing in self.server.failing:
            if failing.times and failing.asked.search(asked):
                failing.times -= 1
                self._fail(failing.how)
                return
        for route, work in ROUTES:
            if match := re.fullmatch(route, asked):
                with self.server.busy:
                    work(self, *match.groups())
                return
        self._send(404, {"error": "no such address"})

    def _fail(self, how: int | str) -> None:
        if how == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(int(how), {"error": "as the test asked for"})

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
        """The repository, or None when the refusal has been sent."""
        found = self.server.repositories.get(name)
        if found and (self._authorized() or not (write or found.private)):
            return found
        self._send(404 if self._authorized() else 401, {}, X_Error_Code="RepoNotFound")
        return None

    # --- what is asked of it -------------------------------------------------------------------------------

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        url = {"url": f"{self.server.address}/{name}"}
        if not self._authorized():
            self._send(401, {"error": "Invalid username or password."})
        elif name in self.server.repositories:
            self._send(409, url | {"error": "You already created this model repo"})
        else:
            made = Repository(private=bool(asked.get("private") or asked.get("visibility") == "private"))
            made.add("initial commit", {".gitattributes": b""})
            self.server.repositories[name] = made
            self._send(200, url)

    def delete(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if self._repository(name, write=True):
            del self.server.repositories[name]
            self._send(200, {})

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str | None = None) -> None:
        if found := self._repository(name):
            sha = revision if revision in found.commits else found.head
            siblings = [{"rfilename": path} for path in found.commits[sha][1]]
            self._send(
                200, {"id": name, "modelId": name, "sha": sha, "private": found.private, "siblings": siblings}
            )

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        if found := self._repository(name):
            tree = found.commits[revision if revision in found.commits else found.head][1]
            inside = {
                path: data for path, data in tree.items() if path.startswith(f"{folder}/" if folder else "")
            }
            if folder and not inside:
                self._send(404, {}, X_Error_Code="EntryNotFound")
                return
            self._send(
                200,
                [
                    {"type": "file", "path": path, "size": len(data), "oid": blob(data)}
                    for path, data in inside.items()
                ],
            )

    def preupload(self, name: str) -> None:
        if found := self._repository(name, write=True):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False,
                 "oid": blob(found.files[file["path"]]) if file["path"] in found.files else None}
                for file in json.loads(self.body)["files"]
            ]  # fmt: skip
            self._send(200, {"files": files})

    def commit(self, name: str) -> None:
        if found := self._repository(name, write=True):
            tree, message = dict(found.files), ""
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                else:
                    gone = [
                        path for path in tree if path == value["path"] or path.startswith(f"{value['path']}/")
                    ]
                    for path in gone:
                        del tree[path]
            sha = found.add(message, tree)
            self._send(
                200,
                {
                    "success": True,
                    "commitOid": sha,
                    "commitUrl": f"{self.server.address}/{name}/commit/{sha}",
                },
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self._repository(name)):
            return
        sha = revision if revision in found.commits else found.head
        data = found.commits[sha][1].get(path)
        if data is None:
            self._send(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        headers = {"X_Repo_Commit": sha, "ETag": f'"{blob(data)}"', "Accept_Ranges": "bytes"}
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
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"GET /api/models/{NAME}/revision/([^/]+)", Handler.info),
    (rf"GET /api/models/{NAME}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    (rf"POST /api/models/{NAME}/preupload/[^/]+", Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/[^/]+", Handler.commit),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def blob(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def hub_server(patch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server, running, and this process's huggingface_hub, logged in, talking to it without pauses."""
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
        server.held.set()
        server.shutdown()
