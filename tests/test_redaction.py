"""Tokens are shown nowhere; the home folder in no file that people pass on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fluxtune.events import Preview, Warning, as_record
from fluxtune.redaction import _stored_tokens, for_sharing, redacted, without_tokens
from fluxtune.runs import Run

STORED, NAMED = "a-stored-token-of-no-known-form", "another-stored-token"
SECRETS = {
    "HF_TOKEN": "plain-token-without-a-form",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+K7MDENG",
    "DB_PASSWORD": "pass.word(1)[2]",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the files of the hub's client."""
    folder = tmp_path / "home" / "ada"
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "token").write_text(f"{STORED}\n")
    (folder / ".cache" / "huggingface" / "stored_tokens").write_text(f"[work]\nhf_token = {NAMED}\n")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    _stored_tokens.cache_clear()
    return folder


@pytest.mark.parametrize("secret", [*SECRETS.values(), STORED, NAMED, "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"])
def test_a_token_becomes_three_stars_wherever_it_stands(secret: str) -> None:
    assert without_tokens(f"refused: {secret}, try again") == "refused: ***, try again"
    assert secret not in without_tokens(json.dumps({"header": f"x{secret}y"}))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://ada:lovelace@example.org/x", "https://***@example.org/x"),
        ("GET https://tok123@example.org failed", "GET https://***@example.org failed"),
        ("Authorization: Bearer abc.def-123", "Authorization***"),
        ("{'authorization': 'Basic YWRhOmxvdmVsYWNl'}", "{'authorization***'}"),
        ("sent Bearer abcdefgh12345==", "sent Bearer ***"),
        ("https://cdn/x?Signature=ab%2F&Expires=1", "https://cdn/x?***&Expires=1"),
        ("https://api/x?q=1&access_token=abc", "https://api/x?q=1&***"),
    ],
)
def test_what_opens_an_account_is_hidden_in_addresses_and_headers(text: str, hidden: str) -> None:
    assert without_tokens(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "a photo of hf_cat in a boat",
        "3 tokens of 77; token_id: 5",
        "someone@example.org took this",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev",
        "the author's authorization is missing",
        "photos/hf_portraits/1.png",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert for_sharing(text) == text


def test_switches_and_paths_in_such_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("MY_TOKEN_FOLDER", str(tmp_path))
    assert without_tokens(f"1 picture in {tmp_path}") == f"1 picture in {tmp_path}"


def test_the_home_folder_becomes_a_tilde_only_where_it_is_one(home: Path) -> None:
    assert for_sharing(f"{home}/photos/1.png") == "~/photos/1.png"
    assert for_sharing(f"where='{home}'") == "where='~'"
    assert for_sharing(f"file://{home}/x") == "file://~/x"
    assert for_sharing(f"{home}s/photos and /mnt{home}") == f"{home}s/photos and /mnt{home}"


@pytest.mark.parametrize("folder", ["/", ""])
def test_a_home_that_is_the_root_folder_hides_nothing(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("HOME", folder)
    assert for_sharing("/data/photos/1.png") == "/data/photos/1.png"


def test_all_texts_of_a_value_are_redacted_and_nothing_else() -> None:
    value = {"a": [1, 2.5, None, True, STORED], f"key of {STORED}": {"b": (STORED,)}}
    assert redacted(value, without_tokens) == {"a": [1, 2.5, None, True, "***"], "key of ***": {"b": ["***"]}}


def test_an_events_record_shows_no_token_and_keeps_paths(home: Path) -> None:
    record = as_record(Warning(f"refused {STORED}", where=f"{home}/x.toml"))
    assert (record["message"], record["where"]) == ("refused ***", f"{home}/x.toml")


def test_a_runs_files_show_neither_tokens_nor_the_home_folder(home: Path) -> None:
    run = Run.create(home / "runs" / "mug", "", {"name": f"{home}/fluxtune.toml:3"}, {})
    run.append(Warning(f"refused {STORED}", where=f"{home}/x.toml"))
    run.append(Preview(1, "a star", 7, str(run.preview_path(1, 0, 7))))
    for name in ("events.jsonl", "log.txt", "origins.json"):
        text = (run.folder / name).read_text()
        assert "~/" in text
        assert not re.search(f"{re.escape(str(home))}|{STORED}", text)


def test_what_is_shown_on_the_terminal_has_no_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    from fluxtune.cli.render import PlainLines, report
    from fluxtune.errors import UsageError

    report(UsageError(f"refused {STORED}", hint=f"not {NAMED}"), as_json=False)
    report(UsageError(f"refused {STORED}", where=NAMED), as_json=True)
    PlainLines(sys.stderr)(Warning(f"seen {SECRETS['HF_TOKEN']}"))
    shown = "".join(capsys.readouterr())
    assert shown.count("***") >= 5
    assert not any(secret in shown for secret in (STORED, NAMED, SECRETS["HF_TOKEN"]))


def test_the_file_of_an_unexpected_error_has_neither(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from fluxtune.cli import app

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"{STORED} in {home}/x")

    monkeypatch.setattr(app.typer.main, "get_command", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert app.main(["train", f"{home}/photos", SECRETS["HF_TOKEN"]]) == 1
    (file,) = tmp_path.glob("fluxtune-error-*.txt")
    text = file.read_text()
    assert "~/photos" in text and "*** in ~/x" in text
    assert str(home) not in text and STORED not in text and SECRETS["HF_TOKEN"] not in text
    assert STORED not in capsys.readouterr().err


def test_a_token_is_hidden_from_the_moment_that_it_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    token, later = "a-token-that-comes-later", "another-in-its-place"
    assert without_tokens(f"{token} {later}") == f"{token} {later}"
    monkeypatch.setenv("LATER_TOKEN", token)
    assert without_tokens(f"{token} {later}") == f"*** {later}"
    monkeypatch.setenv("LATER_TOKEN", later)
    assert without_tokens(f"{token} {later}") == f"{token} ***"
