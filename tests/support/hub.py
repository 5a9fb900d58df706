"""A hub on this machine: what huggingface_hub asks of huggingface.co, answered by a real server from files in memory.

    with Hub({"owner/rows": Repo({"train.jsonl": b"..."})}) as hub:
        use(hub, tmp_path, monkeypatch)  # in this process, and in those that it starts

Data sets and models (`kind`), branches and tags by name, gated and private repositories with a token, ranges, and the faults that
a connection has: a body that breaks off or stands still, a list of files that says something else than what comes. Weights
(.safetensors) are listed with their SHA-256, as git-lfs has them, and come from another host, which wants no token.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_tests"


@dataclass
class Repo:
    """One repository. Its commit is a hash of its files, so that a change of them is a new commit."""

    files: dict[str, bytes]
    kind: Literal["dataset", "model"] = "dataset"
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)  # others than main: their files
    gated: bool = False  # listed for everybody, files for the token alone
    private: bool = False  # there for the token alone
    listed: dict[str, int] = field(default_factory=dict)  # sizes that the list of files tells instead of the true ones
    cut: dict[str, int] = field(default_factory=dict)  # the next answer with more bytes of the file breaks off after so many
    held: dict[str, int] = field(default_factory=dict)  # the same, but it stands still
    reset: dict[str, int] = field(default_factory=dict)  # the same, but the connection is reset
    served: dict[str, bytes] = field(default_factory=dict)  # what comes instead of what the file is listed to be

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch or a commit."""
        for name, files in (("main", self.files), *self.branches.items()):
            commit = hashlib.sha1(b"".join(f"{path}\0".encode() + files[path] for path in sorted(files))).hexdigest()
            if revision in (name, commit):
                return commit, files
        return None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None


_API = re.compile(r"/api/(?P<kind>dataset|model)s/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>revision|tree)/(?P<revision>[^?]+))?")
_STORE = "/store"  # the path of contents that the hub has elsewhere
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub:
    """The server, from `with` to its end. `requests` are those that it got; clear it to see what comes next."""

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        self.repos = dict(repos)
        self.requests: list[Request] = []
        self.asked: list[tuple[str, str | None]] = []  # the files whose contents were sent, and the range that was asked for
        self.sent: Counter[str] = Counter()  # bytes of files' contents, by path
        self.released = threading.Event()  # lets what stands still go on
        self.connections: set[socket.socket] = set()

    def __enter__(self) -> Hub:
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """No network from here on: connections break, and new ones are refused."""
        if not self._thread.is_alive():
            return
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.connections:
            with suppress(OSError):  # its client has closed it
                connection.shutdown(socket.SHUT_RDWR)

    def ranges(self, path: str) -> list[str | None]:
        """What was asked for of the file, each time that its contents were sent."""
        return [asked for name, asked in self.asked if name == path]

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for."""
        return [match["path"] for each in self.requests if each.method == "GET" and (match := _FILE.fullmatch(each.path))]


def use(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, *, token: str | None = None) -> None:
    """Let huggingface_hub ask this hub, and keep what it gets in `home`. It reads the environment when it is imported, which may
    have been before: so its constants are set as well."""
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    for name, constant in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "DOWNLOAD_CHUNK_SIZE": 1 << 16,  # so that small files come in several
    }.items():
        monkeypatch.setattr(constants, name, constant)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    hub: Hub

    def setup(self) -> None:
        self.hub.connections.add(self.request)
        super().setup()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        api, file = _API.fullmatch(path), _FILE.fullmatch(path.removeprefix(_STORE))
        with suppress(ConnectionError):  # its client may be killed
            if api is not None:
                self._api(api)
            elif file is not None:
                self._file(file, from_store=path.startswith(_STORE))
            else:
                self._refuse(404, "")

    do_HEAD = do_GET

    def _repo(self, match: re.Match[str], kind: str, *, files: bool) -> Repo | None:
        """The repository, unless it is not there for this caller; then the refusal is sent."""
        repo = self.hub.repos.get(match["repo"])
        knows = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or repo.kind != kind or (repo.private and not knows):
            self._refuse(401 if not knows else 404, "RepoNotFound")
        elif files and repo.gated and not knows:
            self._refuse(401 if self.headers.get("Authorization") is None else 403, "GatedRepo")
        else:
            return repo
        return None

    def _api(self, match: re.Match[str]) -> None:
        repo = self._repo(match, match["kind"], files=False)
        if repo is None:
            return
        found = repo.at(match["revision"] or "main")
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        if match["verb"] == "tree":
            self._json([self._entry(repo, path, content) for path, content in sorted(files.items())])
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            about = {"id": match["repo"], "sha": commit, "private": repo.private, "gated": repo.gated and "auto"}
            self._json({**about, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _entry(self, repo: Repo, path: str, content: bytes) -> dict[str, Any]:
        size = repo.listed.get(path, len(content))
        entry = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest()}
        if _is_large(path):
            entry["lfs"] = {"oid": _etag(path, content), "size": size, "pointerSize": 130}
        return entry

    def _file(self, match: re.Match[str], from_store: bool) -> None:
        if from_store and self.headers.get("Authorization") is not None:
            self._refuse(400, "")  # its address is signed: a token beside that is one too many
            return
        repo = (
            self.hub.repos[match["repo"]]
            if from_store
            else self._repo(match, "dataset" if match["kind"] else "model", files=True)
        )
        if repo is None:
            return
        found = repo.at(match["revision"])
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        if match["path"] not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        path = match["path"]
        headers = {"ETag": f'"{_etag(path, files[path])}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        content = repo.served.get(path, files[path])
        if _is_large(path) and not from_store:
            where = f"{self.hub.url.replace('127.0.0.1', 'localhost')}{_STORE}{self.path}"
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(files[path])), "X-Repo-Commit": commit}
            self._head(302, 0, {"Location": where, **linked})
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, stop = (int(asked[1]), int(asked[2] or len(content)) + 1) if asked else (0, len(content))
        body = content[first:stop]
        if asked:
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        self._head(206 if asked else 200, len(body), headers)
        if self.command == "HEAD":
            return
        self.hub.asked.append((path, self.headers.get("Range")))
        faults = (repo.cut, repo.held, repo.reset)
        cut, held, reset = (fault.pop(path) if fault.get(path, len(body)) < len(body) else None for fault in faults)
        self._send(path, body[: next((at for at in (cut, held, reset) if at is not None), None)])
        if held is not None:
            self.hub.released.wait()
            self._send(path, body[held:])
        if cut is not None or reset is not None:
            self.close_connection = True  # before all that was promised
        if reset is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send(self, path: str, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()
        self.hub.sent[path] += len(content)

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, 0, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal: `Hub.requests` has it."""


def _etag(path: str, content: bytes) -> str:
    return hashlib.new("sha256" if _is_large(path) else "sha1", content).hexdigest()


def _is_large(path: str) -> bool:
    """Whether git-lfs would hold the file."""
    return path.endswith(".safetensors")
