"""What a run leaves behind: previews, checkpoints, and the finished LoRA."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from fluxtune.config.schema import Config
from fluxtune.errors import DataError, ExitCode, StorageError
from fluxtune.events import Sink, Warning
from fluxtune.files import require_space, waiting_helps
from fluxtune.flux.denoise import Request
from fluxtune.flux.load import free_memory
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_layers, as_saved, scale_of
from fluxtune.lora.files import write_lora
from fluxtune.lora.metadata import LoraFacts
from fluxtune.lora.thumbnail import thumbnail_of
from fluxtune.memory.shortage import Shortage, tried
from fluxtune.runs import Run
from fluxtune.training.checkpoint import Counters, size_of, take_snapshot
from fluxtune.training.examples import Prepared
from fluxtune.training.health import sound_steps
from fluxtune.training.load import Loaded
from fluxtune.training.lora_facts import lora_facts
from fluxtune.training.preflight import Preflight
from fluxtune.training.previews import make_previews, preview_requests
from fluxtune.training.retention import Retention
from fluxtune.training.saving import Saver, patiently


@dataclass(frozen=True)
class Outputs:
    """Writes into one run folder. ``started`` is the time of the process's start, in seconds since 1970.

    ``counters`` are what the loop counts; every checkpoint holds them as they are at its step.
    """

    run: Run
    config: Config
    ready: Preflight
    prepared: Prepared
    loaded: Loaded
    started: float
    on_event: Sink
    should_stop: Callable[[], ExitCode | None]
    counters: Counters = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The LoRA's name: as configured, or the run folder's."""
        return self.config.name or self.run.folder.resolve().name

    def require_space(self, first_step: int) -> None:
        """Check that the run folder's disk has room for all that will be saved from ``first_step`` on.

        Raises:
            StorageError: it has not.
        """
        config, loaded = self.config.checkpoints, self.loaded
        checkpoint, lora = size_of(
            loaded.parameters, loaded.learner.optimizer.optimizer, loaded.average, DTYPES[config.dtype]
        )
        steps = self.config.training.steps
        saved = -(-steps // config.every) - first_step // config.every if config.every else 1
        # One is kept to go back to, and a new one is whole before an old one goes.
        kept = config.keep + 1
        count = min(max(1, saved), kept + 1 - min(kept, len(self.run.checkpoints())))
        purpose = f"{count} checkpoints and the result" if count > 1 else "a checkpoint and the result"
        require_space(self.run.folder, count * checkpoint + lora, purpose)

    def after_step(self, step: int) -> None:
        """Once in a while: a checkpoint, previews; always both after the last step."""
        self._saver.look()
        last = step == self.config.training.steps
        checkpoints = self.config.checkpoints.every
        if last or (checkpoints and step % checkpoints == 0):
            self.checkpoint(step)
        if last:
            self.settle()
        if self.previews_are_due(step):
            self.previews(step)

    def previews_are_due(self, step: int) -> bool:
        """Whether previews belong to the state after ``step`` steps: also to that before the first one."""
        every = self.config.previews.every
        return bool(every) and (step == self.config.training.steps or step % every == 0)

    def previews(self, step: int, made: Collection[tuple[str, int]] = ()) -> None:
        """The preview pictures, made with what would be saved; a stop that is asked for ends them.

        Those that fit neither in memory nor on the disk are left out.

        Args:
            made: prompt and seed of those that are there already.
        """
        requests = [(index, each) for index, each in self._requests() if (each.prompt, each.seed) not in made]
        if not requests:
            return
        self.run.require_there()
        try:
            shortage = tried(partial(self._make_previews, step, requests))
        except StorageError as error:
            if not waiting_helps(error):
                raise
            self.on_event(Warning(f"previews of step {step} are missing: {error.message}", error.where, error.hint))
            return
        if isinstance(shortage, Shortage):
            free_memory()
            reason = f" ({shortage.reason})" if shortage.reason else ""
            self.on_event(
                Warning(
                    f"previews of step {step} are missing: they did not fit in memory{reason}",
                    where="previews",
                    hint="set memory.vae_tiling = true, or previews.width and previews.height smaller",
                )
            )

    def _make_previews(self, step: int, requests: list[tuple[int, Request]]) -> None:
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
        """Begin to save the whole state after ``step`` steps, unless that is done or being done; ``settle`` waits.

        Raises:
            DivergedError: it is not finite, and is not saved.
            StorageError: the checkpoint before it could not be saved.
        """
        if self._saver.has(step):
            return
        snapshot = take_snapshot(
            step,
            self.loaded.parameters,
            self.loaded.learner.optimizer.optimizer,
            self.loaded.average,
            self.counters,
            scale_of(self.config.lora),
            DTYPES[self.config.checkpoints.dtype],
            self._facts(step),
        )
        self._saver.begin(snapshot)

    def settle(self) -> None:
        """Wait until every checkpoint that was begun is whole on disk.

        Raises:
            StorageError: it could not be saved, however often it was tried.
        """
        self._saver.settle()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Whatever ends what is inside, a checkpoint that is being written then is finished and recorded."""
        with self._saver:
            yield

    def write_result(self) -> tuple[Path, str]:
        """Write the finished LoRA and read it back; returns its path and SHA-256."""
        file = self.run.result_path(self.name)
        steps = self.config.training.steps
        layers = adapter_layers(self.loaded.average.weights(), scale_of(self.config.lora))
        facts, dtype = replace(self._facts(steps), thumbnail=self._thumbnail()), DTYPES[self.config.checkpoints.dtype]

        def write() -> str:
            self.run.require_there()
            digest = write_lora(file, layers, dtype, facts)
            self.run.update(status="finished", step=steps, result=file.name)
            return digest

        return file, patiently(write, "writing the LoRA", self.on_event)

    def tidy(self, step: int) -> None:
        """Drop the checkpoints that a process had not come to drop when it was killed."""
        self._retention.tidy(step, sound_steps(step, self.counters))

    @cached_property
    def _retention(self) -> Retention:
        config = self.config.checkpoints
        return Retention(self.run, config.keep, config.every)

    @cached_property
    def _saver(self) -> Saver:
        return Saver(self.run, self._retention, self.on_event)

    def _facts(self, step: int) -> LoraFacts:
        epochs = int(step / self.loaded.source.steps_per_epoch)
        pictures, examples = self.ready.pictures, self.prepared.examples
        return lora_facts(self.name, step, epochs, self.started, self.config, self.ready.base, pictures, examples)

    def _thumbnail(self) -> str | None:
        """The first preview of the last step, where it is wanted and there is one."""
        steps = self.config.training.steps
        paths = (self.run.preview_path(steps, index, each.seed) for index, each in self._requests())
        if not self.config.metadata.thumbnail:
            return None
        try:
            first = next(filter(Path.is_file, paths), None)
            reason = "there is no preview of the last step"
            if first is not None:
                return thumbnail_of(first)
        except DataError as error:
            reason = error.message
        self.on_event(Warning(f"the LoRA gets no thumbnail: {reason}", where="metadata.thumbnail"))
        return None
