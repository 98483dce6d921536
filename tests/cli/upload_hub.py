"""A model hub on 127.0.0.1 that speaks as much of the hub's protocol as putting files there needs.

Routes and answers as huggingface_hub calls and reads them (``hf_api.py``, ``_commit_api.py``, ``lfs.py``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class UploadHub:
    """What the hub has and how it treats callers.

    Attributes:
        private: repository -> whether it is private.
        files: repository -> its files.
        token: that may write.
        fails: repository -> (part of a path, status), which is answered there; status 0 breaks the connection off.
    """

    token: str
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    fails: dict[str, tuple[str, int]] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    address: str = ""


def handler(hub: UploadHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.serve()

        def do_POST(self) -> None:
            self.serve()

        def do_PUT(self) -> None:
            self.serve()

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            fault = self.fault(path, body)
            if fault == 0:
                self.close_connection = True
                self.connection.close()
            elif fault is not None:
                self.reply(fault, {"error": "no rights"})
            elif path.startswith("/lfs/"):
                # A storage of its own, whose addresses are signed: it is given no token.
                hub.stored[path.rpartition("/")[2]] = body
                self.reply(200, {})
            elif self.headers.get("authorization") != f"Bearer {hub.token}":
                self.reply(401, {"error": "Invalid username or password."})
            else:
                self.answer(path, body)

        def fault(self, path: str, body: bytes) -> int | None:
            repository = path
            if path == "/api/repos/create":
                wanted = json.loads(body)
                repository = f"{wanted['organization']}/{wanted['name']}"
            return next(
                (status for name, (part, status) in hub.fails.items() if name in repository and part in path), None
            )

        def answer(self, path: str, body: bytes) -> None:
            repository = re.sub(r"^/(api/models/)?", "", path).removesuffix(".git/info/lfs/objects/batch")
            repository = "/".join(repository.split("/")[:2])
            if path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                self.reply(200, {"errors": [], "warnings": []})
            elif repository not in hub.private:
                self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            elif path.endswith("/objects/batch"):
                self.reply(200, {"objects": [self.action(repository, each) for each in json.loads(body)["objects"]]})
            elif "/preupload/" in path:
                files = json.loads(body)["files"]
                modes = {each["path"]: "regular" if each["path"].endswith(".md") else "lfs" for each in files}
                rows = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
                self.reply(200, {"files": rows})
            elif "/commit/" in path:
                self.commit(repository, [json.loads(line) for line in body.splitlines()])
            else:
                self.reply(200, {"id": repository, "sha": COMMIT, "private": hub.private[repository], "siblings": []})

        def create(self, wanted: dict[str, Any]) -> None:
            repository = f"{wanted['organization']}/{wanted['name']}"
            hub.private[repository] = wanted.get("visibility") == "private"
            hub.files[repository] = {}
            self.reply(200, {"url": f"{hub.address}/{repository}"})

        def action(self, repository: str, wanted: dict[str, Any]) -> dict[str, Any]:
            href = f"{hub.address}/lfs/{repository}/{wanted['oid']}"
            return {**wanted, "actions": {"upload": {"href": href, "header": {}}}}

        def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
            names = []
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    content = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = hub.stored[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                else:
                    continue
                hub.files[repository][value["path"]] = content
                names.append(value["path"])
            hub.commits.append(sorted(names))
            self.reply(200, {"commitUrl": f"{hub.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

        def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            more = {"X-Error-Message": value["error"]} if "error" in value else {}
            for name, text in {"Content-Length": str(len(body)), **more, **(headers or {})}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

    return Handler
