"""A model hub on 127.0.0.1 that speaks as much of the hub's protocol as downloading a model needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

MODEL = "someone/tiny-flux"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

MODEL_FILES = {
    "model_index.json": json.dumps(
        {
            "_class_name": "FluxPipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "image_encoder": [None, None],
        }
    ),
    "scheduler/scheduler_config.json": "{}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": "clip",
    "text_encoder_2/config.json": "{}",
    "text_encoder_2/model.safetensors": "t5",
    "tokenizer/tokenizer_config.json": "{}",
    "tokenizer/vocab.json": "{}",
    "tokenizer/merges.txt": "",
    "tokenizer_2/tokenizer_config.json": "{}",
    "tokenizer_2/tokenizer.json": "{}",
    "transformer/config.json": "{}",
    "transformer/diffusion_pytorch_model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ),
    "transformer/model-00001-of-00002.safetensors": "first half",
    "transformer/model-00002-of-00002.safetensors": "second half",
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": "vae",
}
BESIDE = {
    "tiny-flux.safetensors": "the same again in one file",
    "README.md": "a card",
    "transformer/diffusion_pytorch_model.bin": "a pickle",
}


@dataclass
class Hub:
    """What the hub has and how it treats callers; ``requests`` are the paths that were asked for."""

    files: dict[str, str] = field(default_factory=lambda: {**MODEL_FILES, **BESIDE})
    gated: bool = False
    accepted: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    status: int = 200
    breaks_at: str = ""
    requests: list[str] = field(default_factory=list)
    address: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(path)
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            if hub.status != 200:
                self.reply(hub.status)
            elif token and token not in hub.tokens:
                self.reply(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
            elif MODEL not in path:
                missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                self.reply(404 if token else 401, headers=missing if token else {})
            elif path.startswith(f"/api/models/{MODEL}"):
                self.describe(path)
            else:
                self.give(path.partition("/resolve/")[2].partition("/")[2], token)

        def describe(self, path: str) -> None:
            if "/revision/" in path and not path.endswith(("/main", COMMIT)):
                self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
            elif "/tree/" in path:
                files = hub.files.items()
                self.reply(200, json.dumps([{**_entry(name, text), "type": "file"} for name, text in files]))
            else:
                siblings = [{"rfilename": name} for name in hub.files]
                self.reply(200, json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}))

        def give(self, name: str, token: str) -> None:
            if hub.gated and token not in hub.accepted:
                self.reply(403 if token else 401, headers={"X-Error-Code": "GatedRepo"})
            elif name == hub.breaks_at:
                self.reply(403)
            else:
                text = hub.files[name]
                etag = f'"{_entry(name, text)["oid"]}"'
                self.reply(200, text, {"ETag": etag, "X-Repo-Commit": COMMIT})

        def reply(self, status: int, text: str = "", headers: dict[str, str] | None = None) -> None:
            body = text.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


def _entry(name: str, text: str) -> dict[str, Any]:
    return {"path": name, "size": len(text), "oid": hashlib.sha1(text.encode()).hexdigest()}


@dataclass
class Answer:
    """What ``locate`` did in a process of its own: the folder or the error, the events, all it printed."""

    folder: Path | None
    error: str
    code: int
    message: str
    hint: str
    events: list[dict[str, Any]]
    printed: str


Ask = Callable[..., Answer]
