"""Trackers follow a run: its figures at each step, its previews and its settings, through accelerate's own classes.

They are other people's code with networks behind: whatever goes wrong in one is told once, it is left out from then on,
and the run goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxtune.config.schema import Config
from fluxtune.config.settings import settings, values_of
from fluxtune.dataset.cache import key_of
from fluxtune.events import Event, Preview, Result, Sink, Step, Warning
from fluxtune.runs import TRACKING, Run

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
    """One of accelerate's trackers: ``make`` starts it, at the first thing that it is told."""

    def __init__(self, name: str, make: Callable[[int], Any], on_event: Sink) -> None:
        self.name = name
        self._make = make
        self._on_event = on_event
        self._tracker: Any = None
        self._ended = False

    def tell(self, step: int, what: Callable[[Any], None]) -> None:
        """Does ``what`` with the tracker, unless it failed before."""
        with self._forgiven():
            if self._tracker is None and not self._ended:
                self._tracker = self._make(step)
            if self._tracker is not None:
                what(self._tracker)

    def finish(self) -> None:
        """Ends it; what it has not sent in a minute stays in its files."""
        if self._tracker is None:
            return
        thread = threading.Thread(target=self._close, daemon=True, name=f"finish {self.name}")
        thread.start()
        thread.join(_SECONDS_TO_FINISH)
        if thread.is_alive():
            self._warn("it has not sent everything yet, and is not waited for")
        self._tracker, self._ended = None, True

    def _close(self) -> None:
        with self._forgiven():
            self._tracker.finish()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises, it is no reason to lose a run
            self._tracker, self._ended = None, True
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
        _Tracker(name, lambda step, make=makers[name]: make(run, config, step), on_event)  # type: ignore[misc]
        for name in dict.fromkeys(config.tracking.trackers)
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
                figures = {name: value for name, value in asdict(event).items() if name not in _NO_METRICS}
                tracker.tell(event.step, lambda each, figures=figures: each.log(figures, step=event.step))  # type: ignore[misc]
            elif isinstance(event, Preview):
                tracker.tell(event.step, lambda each: _show(each, event))

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


def _tensorboard(run: Run, config: Config, step: int) -> Any:
    """Into one folder, however often the run is resumed; steps that come again are taken out of it."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", _folder(run), purge_step=step)
    tracker.start()
    if step <= 1:
        tracker.store_init_configuration(hyper_parameters(config))
    return tracker


def _weights_and_biases(run: Run, config: Config, step: int) -> Any:
    """The same run of W&B after each resume, also from a folder that was moved."""
    import wandb
    from accelerate.tracking import WandBTracker

    wandb.setup(wandb.Settings(**_QUIET))
    if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
        raise ConnectionError("not logged in: run `wandb login` once, or set WANDB_MODE=offline")
    folder = _folder(run)
    folder.mkdir(exist_ok=True)
    tracker = WandBTracker(
        config.tracking.project,
        dir=str(folder),
        id=key_of("wandb", run.state.created)[:16],
        name=config.name or run.folder.resolve().name,
        resume="allow",
        settings={**_QUIET, **_NOTHING_OF_THE_MACHINE},
    )
    tracker.start()
    tracker.store_init_configuration(hyper_parameters(config))
    return tracker


def _show(tracker: Any, preview: Preview) -> None:
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
