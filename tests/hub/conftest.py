"""Fixtures: a running fake hub, and a way to ask fluxtune for a model of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_hub import MODEL, Answer, Ask, Hub, handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running hub; change its fields to change how it answers."""
    described = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(described))
    described.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield described
    server.shutdown()
    thread.join()
    server.server_close()


_ASK = """
import json, sys
from fluxtune.errors import FluxtuneError
from fluxtune.events import as_record
from fluxtune.hub.layouts import base_model
from fluxtune.hub.locate import locate
events = []
answer = {"folder": None, "error": "", "code": 0, "message": "", "hint": ""}
arguments = json.loads(sys.argv[1])
def check_index(index):
    if json.loads(index.read_text())["_class_name"] in arguments.pop("refused", ()):
        raise FluxtuneError("another kind of model")
try:
    answer["folder"] = str(locate(
        arguments.pop("base"),
        kind=base_model(arguments.pop("without", ())),
        **{name: value for name, value in arguments.items() if name != "refused"},
        on_event=lambda event: events.append(as_record(event)),
        check_index=check_index,
    ))
except FluxtuneError as error:
    answer.update(error=type(error).__name__, code=int(error.exit_code))
    answer.update(message=error.message, hint=error.hint)
print(json.dumps({**answer, "events": events}))
"""


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """Call ``locate`` in a process of its own, with the hub's address in the environment."""

    def ask(base: str = MODEL, *, env: dict[str, str] | None = None, **arguments: object) -> Answer:
        clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        clean = {key: value for key, value in clean.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = {**clean, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), **(env or {})}
        call = [sys.executable, "-c", _ASK, json.dumps({"base": base, **arguments})]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        folder = Path(answer.pop("folder")) if answer["folder"] else (answer.pop("folder"), None)[1]
        return Answer(folder, printed=done.stdout + done.stderr, **answer)

    return ask
