"""Runs wrong command lines in this process and says which of them were not answered as they must be.

``python run_wrong_configs.py SEED COUNT`` in an empty folder writes one JSON object: how many were run, what failed,
and what was imported or left behind that should not have been.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from wrong_configs import Case, cases

from fluxtune.cli.app import main

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "PIL", "huggingface_hub")
ONE_ERROR = re.compile(r"error: (?P<message>[^\n]+)\n\nhint: (?P<hint>[^\n]+)\n")


def faults(case: Case, folder: Path) -> list[str]:
    """What is wrong with the answer to a case; nothing is right."""
    presets = Path(os.environ["FLUXTUNE_CONFIG"]) / "presets"
    files = {presets / name[9:] if name.startswith("@presets/") else folder / name: c for name, c in case.files.items()}
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    where = case.where.replace("@presets", str(presets))
    before = _contents(folder)
    streams = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            code = int(main(list(case.arguments)))
    except BaseException as error:
        return [f"{type(error).__name__} came out of main: {error}"[:300]]
    finally:
        after = _contents(folder)
        for file in files:
            file.unlink()
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode("utf-8") for stream in streams)  # type: ignore[attr-defined]
    found = [] if code == 2 else [f"exit code {code}"]
    found += ["a control character"] if any(letter < " " and letter != "\n" for letter in out + err) else []
    if "--json" in case.arguments:
        found += [] if not err else [f"on stderr: {err[:200]}"]
        out, err = "", _as_text(out)
    found += [] if not out else [f"on stdout: {out[:200]}"]
    found += [] if before == after else [f"left behind: {sorted(after - before)}"]
    return found + _faults_of_text(err, where, case)


def _as_text(out: str) -> str:
    """The one error of JSON lines as a person would be told it."""
    *before, last = map(json.loads, out.splitlines())
    if before or (last["event"], last["code"], len(last["problems"])) != ("error", 2, 1):
        return out
    (problem,) = last["problems"]
    return f"error: {problem['where']}: {problem['message']}\n\nhint: {problem['hint']}\n"


def _faults_of_text(err: str, where: str, case: Case) -> list[str]:
    one = ONE_ERROR.fullmatch(err)
    if one is None:
        return [f"not one error with one hint: {err[:1500]}"]
    message, hint = one["message"], one["hint"]
    found = [] if message.startswith(f"{where}: ") else [f"not at {where}: {message}"]
    found += [f"{word!r} is not in the message: {message}" for word in case.said if word not in message]
    found += [f"{word!r} is not in the hint: {hint} ({message})" for word in case.advised if word not in hint]
    found += [f"{len(err)} characters"] if len(err) > 1500 else []
    return found


def _contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def run(seed: int, count: int) -> dict[str, Any]:
    """Run cases; see the module."""
    folder = Path.cwd()
    failed = []
    kinds: dict[str, int] = {}
    for number, case in enumerate(islice(cases(seed), count)):
        kinds[case.kind] = kinds.get(case.kind, 0) + 1
        if found := faults(case, folder):
            files = {name: content.decode("utf-8", "replace")[:2000] for name, content in case.files.items()}
            shown = [argument[:200] for argument in case.arguments]
            failed.append({"number": number, "kind": case.kind, "arguments": shown, "files": files, "faults": found})
    return {
        "run": sum(kinds.values()),
        "kinds": kinds,
        "failed": failed,
        "imported": [name for name in HEAVY if name in sys.modules],
        "caches": [name for name in ("FLUXTUNE_CACHE", "HF_HOME") if Path(os.environ[name]).exists()],
        "logs": [path.name for path in Path(tempfile.gettempdir()).glob("fluxtune-error-*")],
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
