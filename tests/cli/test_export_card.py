"""`fluxtune export card`: what is in the folder, and what comes to a hub that runs here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from upload_hub import COMMIT, UploadHub, handler

from fluxtune.config.layers import resolve, to_toml
from fluxtune.events import Preview
from fluxtune.manifests import MANIFEST
from fluxtune.runs import Run

Fluxtune = Callable[..., Any]
TOKEN = "hf_aTokenThatNobodyMayEverSee123"
DEV = "black-forest-labs/FLUX.1-dev"


def lora(file: Path, **metadata: str) -> Path:
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 64), f"{layer}.lora_B.weight": torch.ones(64, 2)}
    facts = {"modelspec.title": "zorvex", "modelspec.trigger_phrase": "zorvex", "ss_sd_model_name": DEV}
    save_file(tensors, file, {**facts, **metadata})
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lora(tmp_path / "zorvex.safetensors")


def run_with_previews(folder: Path, **settings: object) -> Path:
    """A finished run, with previews of two steps."""
    flags = {key.replace("__", "."): ("--set", value) for key, value in settings.items()}
    resolved = resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=folder.parent)
    run = Run.create(folder, to_toml(resolved.config), {}, {})
    lora(folder / "zorvex.safetensors")
    for step in (0, 250, 300):
        path = run.preview_path(step, 0, 42)
        path.parent.mkdir(parents=True)
        Image.new("RGB", (64, 64), (step % 256, 0, 0)).save(path)
        run.append(Preview(step, "a secret garden", 42, str(path)))
    run.update(status="finished", step=300, result="zorvex.safetensors")
    return folder


def header_of(card: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(card.read_text("utf-8").split("---\n", 2)[1]))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_the_lora_its_card_and_the_pictures_without_what_their_files_say(
    fluxtune: Fluxtune, source: Path, tmp_path: Path
) -> None:
    info = PngInfo()
    info.add_text("fluxtune", json.dumps({"prompt": "a zorvex in the snow", "loras": [{"file": "secret-name"}]}))
    Image.new("RGB", (96, 64), "#336699").save(tmp_path / "made.png", pnginfo=info)
    outcome = fluxtune("export", "card", "zorvex.safetensors", "--picture", "made.png")
    assert (outcome.code, outcome.out) == (0, "zorvex-card\n"), outcome.err
    card = tmp_path / "zorvex-card"
    assert files_below(card) == {"README.md", "zorvex.safetensors", "images/00.png"}
    assert (card / "zorvex.safetensors").read_bytes() == source.read_bytes()
    assert b"secret-name" not in (card / "images/00.png").read_bytes()
    with Image.open(card / "images/00.png") as picture:
        assert (picture.size, picture.getpixel((5, 5))) == ((96, 64), (0x33, 0x66, 0x99))
    header = header_of(card / "README.md")
    assert (header["base_model"], header["license_name"]) == (DEV, "flux-1-dev-non-commercial-license")
    assert header["widget"] == [{"text": "a zorvex in the snow", "output": {"url": "images/00.png"}}]
    assert fluxtune("export", "card", "zorvex.safetensors").code == 2  # it is there already


def test_a_run_shows_its_last_previews_and_its_settings(fluxtune: Fluxtune, tmp_path: Path) -> None:
    run_with_previews(tmp_path / "run", previews__prompts=["a secret garden"], lora__rank=8)
    outcome = fluxtune("export", "card", "run", "--output", "card", "--json")
    data = outcome.records()[-1]["data"]
    assert data == {"folder": "card", "files": ["README.md", "images/00.png", "zorvex.safetensors"], "pushed": None}
    with Image.open(tmp_path / "card/images/00.png") as picture:
        assert picture.getpixel((0, 0)) == (300 % 256, 0, 0)
    text = (tmp_path / "card/README.md").read_text("utf-8")
    assert header_of(tmp_path / "card/README.md")["widget"][0]["text"] == "a secret garden"
    assert "| Alpha | 8 |" in text
    assert str(tmp_path) not in text


def test_a_checkpoint_shows_the_previews_of_its_step(fluxtune: Fluxtune, tmp_path: Path) -> None:
    run = run_with_previews(tmp_path / "run", previews__prompts=["a secret garden"])
    checkpoint = run / "checkpoints" / "step-000250"
    checkpoint.mkdir(parents=True)
    lora(checkpoint / "zorvex.safetensors")
    (checkpoint / MANIFEST).write_text("{}")
    assert fluxtune("export", "card", str(checkpoint), "--output", "card").code == 0
    with Image.open(tmp_path / "card/images/00.png") as picture:
        assert picture.getpixel((0, 0)) == (250, 0, 0)


def test_captions_are_told_only_when_that_is_asked(fluxtune: Fluxtune, tmp_path: Path) -> None:
    run_with_previews(tmp_path / "run")
    outcome = fluxtune("export", "card", "run", "--output", "card")
    assert "--show-captions" in outcome.err
    assert "secret garden" not in (tmp_path / "card/README.md").read_text("utf-8")
    assert fluxtune("export", "card", "run", "--output", "told", "--show-captions").code == 0
    assert header_of(tmp_path / "told/README.md")["widget"][0]["text"] == "a secret garden"


def test_a_header_that_tells_of_the_data_is_warned_of(fluxtune: Fluxtune, tmp_path: Path) -> None:
    lora(tmp_path / "theirs.safetensors", ss_tag_frequency='{"10_dog": {}}', ss_dataset_dirs="{}")
    told = "names of folders: ss_dataset_dirs, ss_tag_frequency"
    assert told in fluxtune("export", "card", "theirs.safetensors").err
    fluxtune("export", "theirs.safetensors", "-o", "clean.safetensors")
    assert "names of folders" not in fluxtune("export", "card", "clean.safetensors").err


@pytest.mark.parametrize(
    ("said", "flags", "wanted"),
    [
        ({"ss_sd_model_name": "nano"}, [], {"license": "mit"}),
        ({"ss_sd_model_name": "black-forest-labs/FLUX.1-schnell"}, [], {"license": "apache-2.0"}),
        ({}, ["--license", "cc-by-nc-4.0"], {"license": "cc-by-nc-4.0"}),
        ({"modelspec.license": "My own terms"}, [], {"license": "other", "license_name": "My own terms"}),
        ({"ss_sd_model_name": "my-flux"}, [], {}),
    ],
)
def test_the_licence_is_the_one_given_or_stated_or_that_of_the_base_model(
    fluxtune: Fluxtune, tmp_path: Path, said: dict[str, str], flags: list[str], wanted: dict[str, str]
) -> None:
    lora(tmp_path / "zorvex.safetensors", **said)
    outcome = fluxtune("export", "card", "zorvex.safetensors", *flags)
    header = header_of(tmp_path / "zorvex-card/README.md")
    assert {key: header[key] for key in ("license", "license_name") if key in header} == wanted
    assert ("names no licence" in outcome.err) == (not wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.safetensors",), "no such LoRA file"),
        (("zorvex.safetensors", "--picture", "none.png"), "no such picture"),
        (("zorvex.safetensors", "--public"), "nothing is pushed"),
        (("zorvex.safetensors", "--push", "zorvex"), "is no repository"),
        (("zorvex.safetensors", "--push", "https://huggingface.co/ada/zorvex"), "is no repository"),
        (("zorvex.safetensors", "--push", "ada/../zorvex"), "is no repository"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    fluxtune: Fluxtune, source: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = fluxtune("export", "card", *arguments)
    assert (outcome.code, message in outcome.err, "hint:" in outcome.err) == (2, True, True), outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["zorvex.safetensors"]


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    described = UploadHub(TOKEN)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(described))
    described.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield described
    server.shutdown()
    thread.join()
    server.server_close()


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


_RUN_EACH = """
import json, sys
from fluxtune.cli.app import main
for arguments in json.loads(sys.argv[1]):
    code = main(["export", "card", "zorvex.safetensors", *arguments])
    for stream in (sys.stdout, sys.stderr):
        print(f"-- {code}", file=stream, flush=True)
"""
Push = Callable[..., list[Done]]


@pytest.fixture
def push(hub: UploadHub, source: Path, tmp_path: Path) -> Push:
    """`fluxtune export card --push` once or several times, in a process of its own: the hub's client reads its address
    at import."""

    def push(*commands: list[str], **environment: str) -> list[Done]:
        clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        clean = {key: value for key, value in clean.items() if not key.startswith(("HF_", "HUGGING"))}
        # The hub's newer storage has a protocol of its own, which the client leaves alone with the last of these.
        own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        own |= {"HF_HUB_DISABLE_XET": "1", **environment}
        call = [sys.executable, "-c", _RUN_EACH, json.dumps([["--push", *command] for command in commands])]
        done = subprocess.run(
            call, env={**clean, **own}, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        parts = [re.split(r"-- (\d+)\n", text)[:-1] for text in (done.stdout, done.stderr)]
        codes = map(int, parts[0][1::2])
        return [Done(*each) for each in zip(codes, parts[0][::2], parts[1][::2], strict=True)]

    return push


def test_a_push_makes_a_private_repository_with_one_commit(push: Push, hub: UploadHub, source: Path) -> None:
    (done,) = push(["ada/zorvex", "--json"])
    assert done.code == 0, done.err
    data = json.loads(done.out.splitlines()[-1])["data"]
    assert data["pushed"] == {"url": f"{hub.address}/ada/zorvex", "commit": COMMIT, "private": True}
    assert hub.private == {"ada/zorvex": True}
    assert hub.commits == [["README.md", "zorvex.safetensors"]]
    assert hub.files["ada/zorvex"]["zorvex.safetensors"] == source.read_bytes()
    assert b'load_lora_weights("ada/zorvex", weight_name="zorvex.safetensors")' in hub.files["ada/zorvex"]["README.md"]
    assert not (source.parent / "zorvex-card").exists()


def test_a_public_repository_is_made_and_written_only_when_that_is_said(push: Push, hub: UploadHub) -> None:
    hub.private["ada/there"], hub.files["ada/there"] = False, {"other.txt": b"kept"}
    made, refused, written = push(["ada/new", "--public"], ["ada/there"], ["ada/there", "--public", "--output", "kept"])
    assert (made.code, hub.private["ada/new"]) == (0, False)
    assert (refused.code, "this repository is public" in refused.err) == (2, True)
    assert written.code == 0
    assert set(hub.files["ada/there"]) == {"other.txt", "README.md", "zorvex.safetensors"}
    assert len(hub.commits) == 2


def test_a_private_repository_stays_private(push: Push, hub: UploadHub) -> None:
    hub.private["ada/zorvex"], hub.files["ada/zorvex"] = True, {}
    (done,) = push(["ada/zorvex", "--public"])
    assert (done.code, "stays so" in done.err) == (0, True)
    assert hub.private == {"ada/zorvex": True}


REFUSALS = [
    ("/api/repos/create", 403, "may not write there: no rights", "permission to write"),
    ("/api/repos/create", 404, "knows no such user or organization", "whoami"),
    ("/api/repos/create", 409, "changed the repository at the same time", "again"),
    ("/preupload/", 403, "may not write there", "permission to write"),
    ("/objects/batch", 403, "may not write there", "permission to write"),
    ("/lfs/", 403, "may not write there", "permission to write"),
    ("/commit/", 412, "changed the repository at the same time", "again"),
    ("/commit/", 400, "answered 400: no rights", "again"),
    ("/api/repos/create", 500, "the hub failed and answered 500", "wait a little"),
    ("/api/repos/create", 0, "cannot be reached", "connection"),
]


def test_each_refusal_of_the_hub_is_one_message_with_a_hint(push: Push, hub: UploadHub) -> None:
    hub.fails = {f"ada/r{number}": (place, status) for number, (place, status, _, _) in enumerate(REFUSALS)}
    answers = push(*([name] for name in hub.fails))
    for answer, (_, _, message, hint) in zip(answers, REFUSALS, strict=True):
        assert answer.code == 6, answer.err
        assert message in answer.err and hint in answer.err.partition("hint:")[2], answer.err
        assert answer.err.count("error: ") == 1
    assert hub.commits == []


def test_a_wrong_token_none_and_no_network_are_told_apart(push: Push, hub: UploadHub) -> None:
    (wrong,) = push(["ada/zorvex"], HF_TOKEN="hf_anotherTokenThatIsNotTheRightOne")
    assert (wrong.code, "refused your token" in wrong.err) == (6, True), wrong.err
    assert "hf_anotherToken" not in wrong.err
    hub.requests.clear()
    (none,) = push(["ada/zorvex"], HF_TOKEN="")
    assert (none.code, "there is no hub token" in none.err) == (6, True), none.err
    (offline,) = push(["ada/zorvex"], HF_HUB_OFFLINE="1")
    assert (offline.code, "the network is switched off (HF_HUB_OFFLINE)" in offline.err) == (6, True)
    assert hub.requests == []
    (unreachable,) = push(["ada/zorvex"], HF_ENDPOINT="http://127.0.0.1:9")
    assert (unreachable.code, "cannot be reached" in unreachable.err) == (6, True), unreachable.err
