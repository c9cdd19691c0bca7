"""A server that speaks what HfApi asks of the Hugging Face Hub to make a repository and to upload a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_" + "t" * 34
REFUSED = {401: "Invalid user token.", 403: "You don't have the rights to create a model under this namespace"}


@dataclass
class Hub:
    """What the server holds, and how it is to fail."""

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)  # id -> whether it is private
    files: dict[str, bytes] = field(default_factory=dict)  # of the last commit
    large: dict[str, bytes] = field(default_factory=dict)  # SHA-256 -> content
    writers: tuple[str, ...] = (TOKEN,)
    status: int | None = None  # of every answer


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port while the body runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        name = re.fullmatch(r"/api/models/(\w+/[\w-]+)", self.path)
        if not self._refused() and name and name[1] in self.hub.repositories:
            self._answer(200, {"id": name[1], "private": self.hub.repositories[name[1]], "siblings": []})

    def do_PUT(self) -> None:
        content = self._content()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.large[oid] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        content = self._content()
        if self._refused():
            return
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            bad = "library_name: [" in json.loads(content)["content"]
            self._answer(400 if bad else 200, {"errors": [{"message": "bad YAML"}] if bad else [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif "/preupload/" in path:
            modes = [(file["path"], file["path"].endswith(".safetensors")) for file in json.loads(content)["files"]]
            files = [
                {"path": n, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} for n, large in modes
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(content))
        elif "/commit/" in path:
            self._commit(content)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.hub.repositories
        self.hub.repositories.setdefault(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer(409 if there else 200, {"url": f"{self.hub.address}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/put/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, content: bytes) -> None:
        for line in map(json.loads, content.decode().splitlines()):
            if line["key"] == "file":
                self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[line["value"]["path"]] = self.hub.large[line["value"]["oid"]]
        sha = "0" * 40
        self._answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/o/n/commit/{sha}"})

    def _refused(self) -> bool:
        status = self.hub.status
        if status is None and self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.writers:
            status = 401
        if status is not None:
            self._answer(status, {"error": REFUSED.get(status, "down for maintenance")})
        return status is not None

    def _content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
