"""What a run leaves behind: previews, checkpoints, and the finished LoRA."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fluxtune import __version__
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode
from fluxtune.events import Sink
from fluxtune.flux.denoise import Request
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_layers, as_saved, scale_of
from fluxtune.lora.files import write_lora
from fluxtune.lora.metadata import LoraFacts
from fluxtune.runs import Run
from fluxtune.training.checkpoint import save_checkpoint
from fluxtune.training.examples import Prepared
from fluxtune.training.load import Loaded
from fluxtune.training.preflight import Preflight
from fluxtune.training.previews import make_previews, preview_requests


@dataclass(frozen=True)
class Outputs:
    """Writes into one run folder. ``started`` is the time of the process's start, in seconds since 1970."""

    run: Run
    config: Config
    ready: Preflight
    prepared: Prepared
    loaded: Loaded
    started: float
    on_event: Sink
    should_stop: Callable[[], ExitCode | None]

    @property
    def name(self) -> str:
        """The LoRA's name: as configured, or the run folder's."""
        return self.config.name or self.run.folder.resolve().name

    def after_step(self, step: int) -> None:
        """Once in a while: a checkpoint, previews; always both after the last step."""
        last = step == self.config.training.steps
        checkpoints = self.config.checkpoints.every
        if last or (checkpoints and step % checkpoints == 0):
            self.checkpoint(step)
        if self.previews_are_due(step):
            self.previews(step)

    def previews_are_due(self, step: int) -> bool:
        """Whether previews belong to the state after ``step`` steps: also to that before the first one."""
        every = self.config.previews.every
        return bool(every) and (step == self.config.training.steps or step % every == 0)

    def previews(self, step: int, made: Collection[tuple[str, int]] = ()) -> None:
        """The preview pictures, made with what would be saved; a stop that is asked for ends them.

        Args:
            made: prompt and seed of those that are there already.
        """
        requests = [(index, each) for index, each in self._requests() if (each.prompt, each.seed) not in made]
        if not requests:
            return
        transformer = self.loaded.learner.transformer
        saved = as_saved(
            self.loaded.parameters,
            scale_of(self.config.lora),
            DTYPES[self.config.checkpoints.dtype],
            self.loaded.learner.dtype,
        )
        with self.loaded.average.applied(), saved:
            make_previews(
                self.run,
                step,
                requests,
                self.ready.base,
                self.prepared,
                transformer,
                self.config.memory.vae_tiling,
                self.should_stop,
                self.on_event,
            )

    def lacks_previews(self, step: int) -> bool:
        """Whether previews that are due were not all made, because a stop was asked for."""
        paths = (self.run.preview_path(step, index, each.seed) for index, each in self._requests())
        return self.previews_are_due(step) and not all(path.is_file() for path in paths)

    def _requests(self) -> list[tuple[int, Request]]:
        return preview_requests(self.config, self.ready.base, self.ready.preview_prompts)

    def checkpoint(self, step: int) -> None:
        """The whole state after ``step`` steps."""
        save_checkpoint(
            self.run,
            step,
            self.loaded.parameters,
            self.loaded.learner.optimizer.optimizer,
            self.loaded.average,
            scale_of(self.config.lora),
            DTYPES[self.config.checkpoints.dtype],
            self._facts(step),
            self.config.checkpoints.keep,
            self.on_event,
        )

    def write_result(self) -> tuple[Path, str]:
        """Write the finished LoRA and read it back; returns its path and SHA-256."""
        file = self.run.result_path(self.name)
        steps = self.config.training.steps
        layers = adapter_layers(self.loaded.average.weights(), scale_of(self.config.lora))
        digest = write_lora(file, layers, DTYPES[self.config.checkpoints.dtype], self._facts(steps))
        self.run.update(status="finished", step=steps, result=file.name)
        return file, digest

    def _facts(self, step: int) -> LoraFacts:
        config, base = self.config, self.ready.base
        is_local = Path(os.path.expanduser(base.name)).exists()
        return LoraFacts(
            name=self.name,
            base=Path(base.name).name if is_local else base.name,
            architecture=base.family.architecture(base.embeds_guidance),
            rank=config.lora.rank,
            steps=step,
            epochs=int(step / self.loaded.source.steps_per_epoch),
            learning_rate=config.training.learning_rate,
            optimizer=config.training.optimizer,
            seed=config.training.seed,
            resolution=max(config.dataset.resolution),
            pictures=len(self.ready.pictures),
            started=self.started,
            finished=time.time(),
            trigger=config.dataset.trigger,
            version=__version__,
        )
