"""What must not leave this machine: tokens are shown nowhere, the home folder in no file that people pass on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_HIDDEN = "***"
_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters; shorter values of such variables are switches and numbers, and stand in other words too."""
_PATTERNS = (
    re.compile(r"hf_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"),
    re.compile(r"(?i)(?<=authorization)(['\"]?\s*[:=]\s*['\"]?)(bearer |basic |token )?[^\s,'\"]+"),
    re.compile(r"(?i)\b(?<=bearer )[A-Za-z0-9._~+/-]{8,}=*"),
    re.compile(
        r"(?i)(?<=[?&])((?:access_|auth_)?token|api_?key|signature|sig|x-amz-(?:signature|security-token))=[^&\s'\"]+"
    ),
)


def without_tokens(text: str) -> str:
    """Text with ``***`` in place of what opens an account: the tokens of the environment and of the hub's client,
    whatever looks like one of the hub's, logins in addresses, and what stands behind ``Authorization``."""
    for secret in _known_secrets():
        text = text.replace(secret, _HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(_HIDDEN, text)
    return text


def for_sharing(text: str) -> str:
    """Text for a file that people pass on: without tokens, and with ``~`` for the home folder."""
    text = without_tokens(text)
    home = os.path.expanduser("~")
    for folder in {home, os.path.realpath(home)}:
        # As paths stand in text, and as they stand in what quotes backslashes. The root folder is nobody's home.
        for written in {folder, folder.replace("\\", "\\\\")} if len(Path(folder).parts) > 1 else ():
            text = re.sub(rf"(?<![\w.~-]){re.escape(written)}(?![\w.-])", "~", text)
    return text


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """The same JSON value with every text in it redacted, those of keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redacted(key, redact): redacted(each, redact) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(each, redact) for each in value]
    return value


def _known_secrets() -> list[str]:
    """The tokens that this process could use, the longest first."""
    values = {os.environ.get(name, "") for name in _secret_names(tuple(os.environ))}
    from_environment = {value for value in values if not os.path.exists(value)}
    secrets = {secret.strip() for secret in from_environment} | _stored_tokens(*_token_files())
    return sorted((each for each in secrets if len(each) >= _SHORTEST_SECRET), key=len, reverse=True)


@lru_cache(maxsize=1)
def _secret_names(names: tuple[str, ...]) -> list[str]:
    """Those variables of the environment that are named as secrets are. Asked for each text, of names that stay."""
    return [name for name in names if _SECRET_NAMES.search(name)]


def _token_files() -> tuple[str, str]:
    """Where the hub's client keeps its tokens (huggingface_hub, ``constants.py``)."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = os.path.expanduser(os.environ.get("HF_HOME") or os.path.join(cache_home, "huggingface"))
    return os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"), os.path.join(home, "stored_tokens")


@cache
def _stored_tokens(token_file: str, named_tokens: str) -> frozenset[str]:
    """The tokens in the files of the hub's client, read once: the one in use, and those with a name."""
    found = set()
    for file in (token_file, named_tokens):
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found |= {line.rpartition("=")[2].strip() for line in lines if not line.startswith("[")}
    return frozenset(found)
