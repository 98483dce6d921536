"""Trackers follow a run: its figures at each step, its previews and its settings, through accelerate's own classes.

Where a run goes on from an earlier step, what they were told of later ones is not of the run any more. TensorBoard
takes it out of its charts; Weights & Biases cannot, so what follows after a run turned back is another run there.

They are other people's code with networks behind: whatever goes wrong in one is told once, it is left out from then on,
and the run goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fluxtune.config.schema import Config
from fluxtune.config.settings import settings, values_of
from fluxtune.dataset.cache import key_of
from fluxtune.events import Event, Preview, Result, Resumed, RolledBack, Sink, Step, Warning
from fluxtune.runs import TRACKING, Run
from fluxtune.training.resuming import rolled_back_to

_NO_METRICS = ("step", "total", "seconds_left")
_SECONDS_TO_FINISH = 60.0
_QUIET: dict[str, Any] = {"silent": True, "console": "off"}
_NOTHING_OF_THE_MACHINE: dict[str, Any] = {
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
}
"""W&B would note the command with its paths, the user's name and what else runs here."""


class _Tracker:
    """One of accelerate's trackers: ``make`` starts it, given the steps done, at the first thing that it is told."""

    def __init__(self, name: str, make: Callable[[int], Any], on_event: Sink) -> None:
        self.name = name
        self._make = make
        self._on_event = on_event
        self._tracker: Any = None
        self._steps_done = 0
        self._failed = False

    def tell(self, what: Callable[[Any], None]) -> None:
        """Does ``what`` with the tracker, unless it failed before."""
        if self._failed:
            return
        with self._forgiven():
            if self._tracker is None:
                self._tracker = self._make(self._steps_done)
            what(self._tracker)

    def go_on_after(self, step: int) -> None:
        """Ends it, and what comes next starts it anew: the run goes on after so many steps."""
        self.finish()
        self._steps_done = step

    def finish(self) -> None:
        """Ends it; what it has not sent in a minute stays in its files."""
        if self._tracker is None:
            return
        thread = threading.Thread(target=self._close, daemon=True, name=f"finish {self.name}")
        thread.start()
        thread.join(_SECONDS_TO_FINISH)
        if thread.is_alive():
            self._failed = True
            self._warn("it has not sent everything yet, and is not waited for")
        self._tracker = None

    def _close(self) -> None:
        with self._forgiven():
            self._tracker.finish()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises, it is no reason to lose a run
            self._tracker, self._failed = None, True
            self._warn(f"{type(error).__name__}: {error}".partition("\n")[0])

    def _warn(self, what: str) -> None:
        self._on_event(
            Warning(f"tracking with {self.name} ended: {what}", hint="the run goes on, and its folder has everything")
        )


@contextmanager
def tracked(run: Run, config: Config, on_event: Sink) -> Iterator[Sink]:
    """A sink that also tells the trackers of the settings what happens; at the end they are finished."""
    makers = {"tensorboard": _tensorboard, "wandb": _weights_and_biases}
    trackers = [
        _Tracker(name, partial(makers[name], run, config), on_event) for name in dict.fromkeys(config.tracking.trackers)
    ]

    def finish() -> None:
        for tracker in trackers:
            tracker.finish()

    def emit(event: Event) -> None:
        if isinstance(event, Result):
            finish()  # what may be said of it comes before the last word
        on_event(event)
        for tracker in trackers:
            if isinstance(event, Step):
                tracker.tell(partial(_log, event))
            elif isinstance(event, Preview):
                tracker.tell(partial(_show, event))
            elif isinstance(event, Resumed | RolledBack):
                tracker.go_on_after(event.step)

    try:
        yield emit
    finally:
        finish()


def hyper_parameters(config: Config) -> dict[str, bool | int | float | str]:
    """The settings as trackers take them: flat, and of paths only the last name, for others may see it."""
    described = settings()
    values = values_of(config)
    values["dataset.folders"] = [_name(folder.path) for folder in config.dataset.folders]
    named = {key: _name(value) if described[key].path and value else value for key, value in values.items()}
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)
        for key, value in named.items()
    }


def _tensorboard(run: Run, config: Config, steps_done: int) -> Any:
    """Into one folder, however often the run is resumed; steps that come again are taken out of it."""
    from accelerate.tracking import TensorBoardTracker

    is_first = not (_folder(run) / "tensorboard").exists()
    tracker = TensorBoardTracker("tensorboard", _folder(run), purge_step=steps_done + 1)
    tracker.start()
    if is_first:
        tracker.store_init_configuration(hyper_parameters(config))
    return tracker


def _weights_and_biases(run: Run, config: Config, steps_done: int) -> Any:
    """The same run of W&B after each resume, also from a folder that was moved; another one after each roll-back.

    W&B's own way to take steps back is not open to everyone, and unknown to its offline runs.
    """
    import wandb
    from accelerate.tracking import WandBTracker

    wandb.setup(wandb.Settings(**_QUIET))
    if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
        raise ConnectionError("not logged in: run `wandb login` once, or set WANDB_MODE=offline")
    folder, name = _folder(run), config.name or run.folder.resolve().name
    turns = rolled_back_to(run)
    folder.mkdir(exist_ok=True)
    tracker = WandBTracker(
        config.tracking.project,
        dir=str(folder),
        id=key_of("wandb", run.state.created, *([len(turns)] if turns else []))[:16],
        name=f"{name} from step {turns[-1] + 1}" if turns else name,
        resume="allow",
        settings={**_QUIET, **_NOTHING_OF_THE_MACHINE},
    )
    tracker.start()
    tracker.store_init_configuration(hyper_parameters(config))
    return tracker


def _log(step: Step, tracker: Any) -> None:
    tracker.log({name: value for name, value in asdict(step).items() if name not in _NO_METRICS}, step=step.step)


def _show(preview: Preview, tracker: Any) -> None:
    import numpy as np
    from PIL import Image

    picture = Image.open(preview.path)
    tag = f"previews/{Path(preview.path).stem}"
    if tracker.name == "tensorboard":
        tracker.log_images({tag: np.asarray(picture)[None]}, step=preview.step, dataformats="NHWC")
    else:
        tracker.log_images({tag: [picture]}, step=preview.step)


def _folder(run: Run) -> Path:
    return run.folder / TRACKING


def _name(path: object) -> str:
    """A path's last part; an id of a hub is none."""
    text = str(path)
    return Path(text).name if Path(text).is_absolute() or text.startswith("~") else text
