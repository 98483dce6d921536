"""A run of ours for another trainer: its settings, its data set, and what of ours it cannot hold.

What that is, is not guessed: the written files are read back as anybody's are, and every setting that is another one
then is told, with what it becomes or what the trainer does instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import isclose
from pathlib import Path
from shlex import quote
from typing import Any

from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.schema import Config
from fluxtune.config.settings import shown, values_of
from fluxtune.dataset.captions import with_trigger
from fluxtune.dataset.folder import Item, is_subject, list_folders
from fluxtune.errors import UsageError
from fluxtune.events import Sink
from fluxtune.exporting.conventions import CONVENTIONS
from fluxtune.exporting.dataset import export_dataset
from fluxtune.files import require_new_folder, whole_folder, write_text
from fluxtune.handover.common import LEARNED, NOT_LEARNED
from fluxtune.handover.rules import Trainer, Values, Wanted, reason
from fluxtune.handover.taking_over import take_over
from fluxtune.handover.targets import Target
from fluxtune.handover.trainers import TRAINERS
from fluxtune.nano import EMBEDDED, model_folder
from fluxtune.runs import lora_in


@dataclass(frozen=True)
class Loss:
    """A setting that the other trainer does not hold as it is.

    Attributes:
        key: ours; ``value``, what it is.
        becomes: what it is there, as a setting of ours; None where it has no counterpart.
        why: what the trainer does instead, or how the two differ.
        learned: whether it decides what is learned.
    """

    key: str
    value: Any
    becomes: Any
    why: str
    learned: bool

    @property
    def shown_value(self) -> str:
        """What it is, as TOML writes it."""
        return shown(self.value)

    def __str__(self) -> str:
        there = f" becomes {shown(self.becomes)}" if self.becomes is not None else " has no counterpart"
        return f"{self.key} = {self.shown_value}{there}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class HandedOver:
    """What was written.

    Attributes:
        settings: the file of settings; ``files`` are all that were written for the trainer.
        command: what starts the trainer, in the folder that it is installed in.
        to_do: what has to be done before.
        losses: settings that the trainer does not hold as they are.
        remarks: what it does otherwise, whatever the settings are, and to pictures and captions.
    """

    trainer: str
    destination: str
    settings: str
    files: tuple[str, ...]
    command: str
    to_do: tuple[str, ...]
    losses: tuple[Loss, ...]
    remarks: tuple[str, ...]
    pictures: int


def hand_over(
    config: Config,
    target: Target,
    destination: Path,
    on_event: Sink,
    *,
    link: bool = False,
    accept_errors: bool = False,
) -> HandedOver:
    """Write the settings and the data set of a run for another trainer, whole or not at all.

    Args:
        destination: the folder to make.
        link, accept_errors: as for ``export_dataset``.

    Raises:
        UsageError: there are no pictures, the destination is there already, or ``lora.init_from`` is no run's folder.
        DataError: something is wrong with the pictures or captions.
        StorageError: it cannot be written.
    """
    if not config.dataset.folders:
        hint = "name a folder of pictures, or [[dataset.folders]] in your settings"
        raise UsageError("no pictures to hand over", where="fluxtune export config", hint=hint)
    require_new_folder(destination, "the export")
    trainer = TRAINERS[target]
    given = _for_others(config, trainer)
    place = destination.absolute()
    with whole_folder(destination) as root:
        exported = export_dataset(
            given.dataset,
            trainer.layout,
            root,
            on_event,
            link=link,
            accept_errors=accept_errors,
            final=place,
            reserved=("output", "workspace", "class", trainer.file),
        )
        wanted = _wanted(given, trainer, root, place)
        if not any(wanted.prompts):
            # Nothing is known that previews could be of.
            previews = given.previews.model_copy(update={"every": 0})
            wanted = replace(wanted, config=given.model_copy(update={"previews": previews}))
        texts = trainer.text(written(trainer, wanted), wanted)
        for name, text in texts.items():
            write_text(root / name, text)
        back = take_over(root / trainer.file, trainer.file, alone=True)
        losses = tuple(_losses(config, back.config, trainer, wanted))
        remarks = (*_of_pictures(config.dataset, back.config.dataset), *exported.remarks, *trainer.nature)
    return HandedOver(
        trainer=trainer.title,
        destination=str(destination),
        settings=str(destination / trainer.file),
        files=tuple(str(destination / name) for name in texts),
        command=trainer.command(quote(str(place / trainer.file)), wanted),
        to_do=tuple(trainer.to_do(wanted)) if trainer.to_do is not None else (),
        losses=losses,
        remarks=remarks,
        pictures=exported.pictures,
    )


def written(trainer: Trainer, wanted: Wanted) -> Values:
    """The settings of the other trainer by their dotted names: what it needs for FLUX.1, and ours."""
    values: Values = {each.theirs: each.value for each in trainer.fixed}
    for rule in trainer.rules:
        values |= rule.write(wanted)
    return values


def as_data(handed: HandedOver) -> dict[str, Any]:
    """What was written, for programs."""
    return asdict(handed)


def _for_others(config: Config, trainer: Trainer) -> Config:
    """The run with what only fluxtune knows by its name spelled out, and without masks where nobody reads them."""
    base = str(model_folder()) if config.model.base == EMBEDDED else config.model.base
    rows = [row if trainer.masks else row.model_copy(update={"masks": "none"}) for row in config.dataset.folders]
    dataset = config.dataset.model_copy(update={"folders": rows})
    model = config.model.model_copy(update={"base": base})
    start = config.lora.init_from
    lora = config.lora.model_copy(update={"init_from": start and str(lora_in(Path(start)))})
    return config.model_copy(update={"dataset": dataset, "model": model, "lora": lora})


def _wanted(config: Config, trainer: Trainer, root: Path, place: Path) -> Wanted:
    items = list_folders(config.dataset.folders).items
    sides = len(config.dataset.resolution) if trainer.name != Target.ONETRAINER else 1
    subjects = [item for item in items if is_subject(item)] or items
    caption = with_trigger(subjects[0].caption or "", config.dataset.trigger or "")
    file = CONVENTIONS[trainer.layout].file
    return Wanted(
        config=config,
        pictures=sides * sum(item.repeats for item in items),
        caption=caption.strip(", "),
        data=str(place / file),
        described=root / file,
        folder=str(place),
    )


def _losses(config: Config, back: Config, trainer: Trainer, wanted: Wanted) -> Iterator[Loss]:
    """Every setting that reads back as another one, those first that decide what is learned."""
    ours = {key: rule for rule in trainer.rules for key in rule.ours}
    was, meant, is_now = values_of(config), _spelled_out(wanted), values_of(back)
    found = []
    for key, value in was.items():
        rule = ours.get(key)
        if key == "dataset.folders" or _same(meant.get(key, value) if rule is not None else value, is_now[key]):
            continue
        becomes = is_now[key] if rule is not None or key.startswith("dataset.") else None
        why = rule.note if rule is not None else reason(trainer.without, key) or ""
        learned = key.startswith(LEARNED) and not key.startswith(NOT_LEARNED)
        found.append(Loss(key, value, becomes, _within_a_sentence(why), learned))
    yield from sorted(found, key=lambda loss: not loss.learned)


def _spelled_out(wanted: Wanted) -> dict[str, Any]:
    """What settings come to that are written out, though they are unset here."""
    width, height = wanted.size
    spelled: dict[str, Any] = {
        "lora.alpha": wanted.alpha,
        "lora.init_from": wanted["lora.init_from"],
        "name": wanted["name"] or "fluxtune",
    }
    if wanted["previews.every"]:
        spelled |= {
            "previews.prompts": wanted.prompts,
            "previews.width": width,
            "previews.height": height,
            "previews.steps": wanted.preview_steps,
        }
    return spelled


def _within_a_sentence(note: str) -> str:
    """A note as it reads behind a colon."""
    return (f"{note[:1].lower()}{note[1:]}" if note[1:2].islower() else note).rstrip(".").replace("`", "")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _of_pictures(here: DatasetConfig, there: DatasetConfig) -> Iterator[str]:
    """What is said of single pictures here, and is not there."""
    items = [list_folders(dataset.folders).items for dataset in (here, there)]
    for what, value in _OF_A_PICTURE.items():
        ours, theirs = (Counter(map(value, each)) for each in items)
        if ours != theirs:
            lost = ours - theirs
            told = ", ".join(f"{count} of {shown(each)}" for each, count in sorted(lost.items(), key=str))
            yield f"{what} of pictures that it does not hold: {told}"


_OF_A_PICTURE: Mapping[str, Callable[[Item], Any]] = {
    "repeats": lambda item: item.repeats,
    "weights": lambda item: item.folder.weight,
    "kinds": lambda item: item.folder.kind,
    "masks": lambda item: item.mask is not None,
}
