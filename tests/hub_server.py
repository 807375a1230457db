"""A Hub on loopback: serves repositories from folders and takes commits, as far as huggingface_hub asks for it.

Files are sent by HTTP with ranges, so that an interrupted download goes on; ``cut`` ends the next one half way.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
RESOLVE = re.compile(r"/(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[\w.-]+)/(?P<file>.+)")
API = re.compile(
    r"/api/models/(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<what>revision|tree|preupload|commit)/(?P<revision>[\w.-]+))?"
)


class Hub(ThreadingHTTPServer):
    """Repositories are folders ``root/OWNER/NAME``; ``asked`` are the files that were sent, with the ranges."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.asked, self.cut = root, list[tuple[str, str]](), ""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve the repositories in ``root`` while the block runs."""
    server = Hub(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        asked = API.fullmatch(unquote(urlsplit(self.path).path))
        if asked is None:
            self._file(body=True)
            return
        folder = self.hub.root / asked["name"]
        if not folder.is_dir():
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        if asked["what"] == "tree":
            entries = [(name, path.stat().st_size, _etag(path)) for name, path in zip(names, files, strict=True)]
            self._json(200, [{"type": "file", "path": n, "size": s, "oid": e} for n, s, e in entries])
        else:
            self._json(200, {"id": asked["name"], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said.get('organization') or 'me'}/{said['name']}"
            (self.hub.root / name).mkdir(parents=True, exist_ok=True)
            self._json(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})
            return
        if self.path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
            return
        asked = API.fullmatch(urlsplit(self.path).path)
        assert asked is not None, self.path
        if asked["what"] == "preupload":
            files = json.loads(body)["files"]
            answer = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json(200, {"files": answer})
            return
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                path = self.hub.root / asked["name"] / entry["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(entry["value"]["content"]))
        address = f"{self.hub.endpoint}/{asked['name']}/commit/{COMMIT}"
        self._json(200, {"commitUrl": address, "commitOid": COMMIT, "pullRequestUrl": None, "success": True})

    def _file(self, *, body: bool) -> None:
        asked = RESOLVE.fullmatch(unquote(urlsplit(self.path).path))
        path = self.hub.root / asked["name"] / asked["file"] if asked else None
        if path is None or not path.is_file():
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        content, wanted = path.read_bytes(), re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        self.hub.asked.append((path.name, self.headers.get("Range", "")))
        if self.hub.cut == path.name:
            self.hub.cut = ""
            self.wfile.write(content[start : start + len(content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
