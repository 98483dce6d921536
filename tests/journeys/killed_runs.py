"""A nano run that is killed again and again, in processes forked from one that has imported everything it needs.

`python killed_runs.py FOLDER KILLS SEED` writes what it saw as JSON on stdout. It is a process of its own: what is
forked may have no threads, and no library has computed anything here before the fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel  # noqa: F401  (what the first run needs)
from PIL import Image, ImageDraw

import fluxtune.training.run  # noqa: F401
from fluxtune.cli.app import main
from fluxtune.files import json_lines

sys.path.insert(0, str(Path(__file__).parents[1]))
from same_runs import left_behind, whole_checkpoints

STEPS = 12
SETTINGS = {
    "dataset.resolution": 64,
    "dataset.crops": 1,
    "dataset.flip": "false",
    "lora.rank": 4,
    "lora.targets": "attention",
    "lora.dropout": 0.1,
    "training.batch_size": 1,
    "training.accumulation": 2,
    "training.warmup": 3,
    "checkpoints.every": 2,
    "checkpoints.keep": 2,
    "previews.every": 6,
    "previews.steps": 2,
    "previews.prompts": '["a red star"]',
}


def pictures_in(folder: Path) -> Path:
    """Three captioned pictures of two shapes."""
    folder.mkdir()
    for number, size in enumerate([(128, 128), (128, 128), (160, 96)]):
        image = Image.new("RGB", size, (200, 40 * number, 90))
        ImageDraw.Draw(image).ellipse((20, 20, 80, 70), fill=(20, 200, 60 * number))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorvex at place {number}", encoding="utf-8")
    return folder


def command(run: Path, pictures: Path) -> list[str]:
    """What begins the run, or goes on with it."""
    if run.exists():
        return ["train", "--resume", str(run)]
    sets = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    return ["train", str(pictures), "--preset", "nano", "--steps", str(STEPS), "--output", str(run), *sets]


def forked(work: Callable[[], int], kill_after: float | None = None) -> int:
    """The exit code of ``work`` in a process of its own; that of SIGKILL where it was killed."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            code = work()
        finally:
            os._exit(code)
    handle = os.pidfd_open(process)
    try:
        if not select.select([handle], [], [], kill_after)[0]:
            os.kill(process, signal.SIGKILL)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def trains(arguments: list[str], folder: Path, names: Path | None = None) -> Callable[[], int]:
    """A command with a cache and a log in ``folder``; it may write down the names of the modules that it imported."""

    def work() -> int:
        os.environ["FLUXTUNE_CACHE"] = str(folder / "cache")
        log = os.open(folder / "terminal.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = main(arguments)
        if names is not None:
            names.write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
        return code

    return work


def events_of(run: Path) -> list[dict[str, Any]]:
    return list(json_lines(run / "events.jsonl"))


def lost(run: Path) -> str | None:
    """What a killed run has lost, if anything: each checkpoint that it told of must be there, or a later one."""
    if not run.exists():
        return None
    told = [row["step"] for row in events_of(run) if row["event"] == "checkpoint"]
    whole = whole_checkpoints(run)
    if told and max(whole, default=0) < max(told):
        return f"told of step {max(told)}, whole are {sorted(whole)}"
    return None


def went_back(run: Path) -> list[str]:
    """Where a run went on from a step before the last checkpoint that it had told of."""
    newest, found = 0, []
    for row in events_of(run):
        if row["event"] == "resumed" and row["step"] < newest:
            found.append(f"told of step {newest}, resumed at {row['step']}")
        if row["event"] == "checkpoint":
            newest = max(newest, row["step"])
    return found


def place_of(run: Path) -> str:
    """What a killed run was doing, by its last event."""
    rows = events_of(run) if run.exists() else []
    last = rows[-1] if rows else {"event": "nothing told"}
    return last.get("name") or last.get("task") or last["event"]


def run_and_kill(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    pictures = pictures_in(folder / "pictures")
    names = folder / "modules.txt"
    unbroken = folder / "unbroken" / "mug"
    unbroken.parent.mkdir()
    code = forked(trains(command(unbroken, pictures), unbroken.parent, names))
    assert code == 0, (unbroken.parent / "terminal.log").read_text()
    for name in names.read_text(encoding="utf-8").split("\n"):
        try:
            importlib.import_module(name)
        except Exception:  # some names are no modules of their own
            continue
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all that was imported
    timed = folder / "timed" / "mug"
    timed.parent.mkdir()
    started = time.monotonic()
    assert forked(trains(command(timed, pictures), timed.parent)) == 0
    span = time.monotonic() - started

    chance = random.Random(seed)
    seen: dict[str, Any] = {"expected": left_behind(unbroken), "seconds": span, "runs": [], "problems": []}
    done, places, run = 0, Counter(), None
    while done < kills or run is not None:
        if run is None:
            run = folder / f"broken-{len(seen['runs'])}" / "mug"
            run.parent.mkdir()
        kill_after = chance.uniform(0, span) if done < kills else None
        code = forked(trains(command(run, pictures), run.parent), kill_after)
        # Whatever the machine's speed, about four of five are killed.
        span *= 1.03 if code == -signal.SIGKILL else 0.88
        if code == -signal.SIGKILL:
            done += 1
            places[place_of(run)] += 1
            if problem := lost(run):
                seen["problems"].append(problem)
        elif code == 0:
            seen["problems"] += went_back(run)
            seen["runs"].append(left_behind(run))
            run = None
        else:
            seen["problems"].append((run.parent / "terminal.log").read_text()[-3000:])
            run = None
    return {**seen, "kills": done, "places": dict(places)}


if __name__ == "__main__":
    place, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(run_and_kill(place, kills, seed)))
