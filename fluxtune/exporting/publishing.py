"""A LoRA made ready for others: a folder with the file, its model card, and sample pictures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fluxtune import files
from fluxtune.config.layers import resolve
from fluxtune.config.schema import Config
from fluxtune.dataset.images import open_image
from fluxtune.errors import UsageError
from fluxtune.events import Phase, Sink, Warning
from fluxtune.exporting.inspection import Inspection, inspect
from fluxtune.exporting.model_card import Card, Sample, line, text_of
from fluxtune.flux.families import FLUX1
from fluxtune.hub.licenses import LICENSES, License
from fluxtune.lora.metadata import OF_DATA
from fluxtune.runs import Run, lora_in

README = "README.md"
_PICTURES = "images"
_MOST_PREVIEWS = 8


@dataclass(frozen=True)
class Picture:
    """A picture to show, and the prompt that is told with it."""

    path: Path
    prompt: str | None


@dataclass(frozen=True)
class Source:
    """What a card is made of.

    Attributes:
        lora: the file.
        settings: of the run that it is the result of; None for a file alone.
        pictures: to show.
    """

    lora: Path
    settings: Config | None
    pictures: Sequence[Picture]


def source_of(named: Path, pictures: Sequence[Path], captions: bool, on_event: Sink) -> Source:
    """What a card can be made of.

    Args:
        named: a LoRA file, a run folder, or the folder of one of its checkpoints.
        pictures: to show, in the place of the run's last previews.
        captions: tell prompts that are captions of the training pictures, too.

    Raises:
        UsageError: there is no such file or picture, or the folder is no run.
        StorageError: the run has no result yet, or its settings are damaged.
    """
    if not named.is_dir():
        return Source(named, None, [Picture(path, _own_prompt(path)) for path in pictures])
    lora = lora_in(named)
    run = Run.open(lora.parent if (lora.parent / "config.toml").is_file() else lora.parent.parent.parent)
    resolved = resolve(
        preset=None, config_file=run.config_path, flags={}, sets=[], working_folder=Path.cwd(), data_sets=False
    )
    shown = [Picture(path, _own_prompt(path)) for path in pictures]
    return Source(lora, resolved.config, shown or _previews(run, lora, resolved.config, captions, on_event))


def write_card_folder(
    source: Source, destination: Path, license: str | None, repository: str | None, on_event: Sink
) -> list[Path]:
    """Make the folder, whole or not at all.

    Args:
        license: the hub's identifier of one; None takes what the file says, or the base model's.
        repository: where the folder will be pushed to.

    Returns:
        Its files.

    Raises:
        UsageError: there is no such file, or the folder is there already.
        BaseModelError: the file is no LoRA.
        DataError: a picture cannot be read.
        StorageError: the folder cannot be written.
    """
    files.require_new_folder(destination, "the card")
    on_event(Phase("card", str(source.lora)))
    found = inspect(source.lora)
    if told := sorted(set(OF_DATA) & set(found.metadata)):
        on_event(
            Warning(
                f"the LoRA's header tells words of captions or names of folders: {', '.join(told)}",
                where=str(source.lora),
                hint="to leave them out, make the card of what `fluxtune export` writes of it",
            )
        )
    with files.whole_folder(destination) as folder, files.storage_errors(destination):
        samples = []
        for number, picture in enumerate(source.pictures):
            name = f"{_PICTURES}/{number:02d}.png"
            (folder / _PICTURES).mkdir(exist_ok=True)
            _pixels(picture.path).save(folder / name)
            samples.append(Sample(name, picture.prompt))
        shutil.copyfile(source.lora, folder / source.lora.name)
        card = card_of(found, source.lora.name, source.settings, license, repository, samples)
        if card.license is None:
            on_event(
                Warning(
                    f"the card names no licence, for that of the base model {card.base or 'of this LoRA'} is not known",
                    where=str(source.lora),
                    hint="name one with --license",
                )
            )
        files.write_text(folder / README, text_of(card))
        return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def card_of(
    found: Inspection,
    file: str,
    settings: Config | None,
    license: str | None,
    repository: str | None,
    samples: Sequence[Sample],
) -> Card:
    """What the card of a LoRA says, of what its file and its run tell."""
    said = found.metadata
    base = said.get("ss_sd_model_name", "")
    embeds_guidance = said.get("modelspec.architecture") != FLUX1.architecture(False)
    return Card(
        title=said.get("modelspec.title") or Path(file).stem,
        base=base,
        license=_license(license, said.get("modelspec.license", ""), base),
        trigger=found.trigger or "",
        description=said.get("modelspec.description", ""),
        author=said.get("modelspec.author", ""),
        tags=said.get("modelspec.tags", "").split(","),
        file=file,
        format=found.format,
        repository=repository,
        steps=FLUX1.sampling_steps(embeds_guidance),
        guidance=FLUX1.sampling_guidance if embeds_guidance else 0.0,
        samples=samples,
        training={**_of_file(found), **(_of_run(settings) if settings else {})},
        hashes={"SHA-256": found.hashes["sha256"], "AutoV2": found.hashes["autov2"], "AutoV3": found.hashes["autov3"]},
    )


def _license(asked: str | None, stated: str, base: str) -> License | None:
    known = LICENSES.get(base)
    if asked is None and (not stated or stated == str(known)):
        return known
    wanted = line(asked or stated)
    same = next((each for each in LICENSES.values() if wanted == str(each)), None)
    # An identifier of the hub's is lower case, without spaces.
    return same or (License(wanted) if re.fullmatch(r"[a-z0-9.+-]+", wanted) else License("other", wanted))


_HEADER_ROWS = {
    "Base model": "ss_sd_model_name",
    "Pictures": "ss_num_train_images",
    "Steps": "ss_steps",
    "Epochs": "ss_epoch",
    "Learning rate": "ss_learning_rate",
    "Optimizer": "ss_optimizer",
    "Resolution": "modelspec.resolution",
    "Seed": "ss_seed",
    "Date": "modelspec.date",
}


def _of_file(found: Inspection) -> dict[str, str]:
    rows = {name: found.metadata[key] for name, key in _HEADER_ROWS.items() if found.metadata.get(key)}
    ranks = sorted({rank for group in found.groups for rank in group.ranks})
    rows["Rank"] = ", ".join(map(str, ranks))
    if version := found.metadata.get("fluxtune.version"):
        rows["Trained with"] = f"fluxtune {version}"
    return rows


def _of_run(settings: Config) -> dict[str, str]:
    lora, training = settings.lora, settings.training
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    return {
        "Layers": targets,
        "Alpha": f"{lora.rank if lora.alpha is None else lora.alpha:g}",
        "Batch": f"{training.batch_size} x {training.accumulation}",
        "Base held in": settings.memory.base_precision,
        "Noise levels": training.timestep_sampling,
    }


def _previews(run: Run, lora: Path, settings: Config, captions: bool, on_event: Sink) -> list[Picture]:
    """The run's last previews up to the step of the LoRA, with their prompts as far as those may be told."""
    of_checkpoint = re.fullmatch(r"step-(\d+)", lora.parent.name)
    last = int(of_checkpoint[1]) if of_checkpoint else run.state.step
    prompts: dict[str, str] = {}
    for event in files.json_lines(run.folder / "events.jsonl"):
        if event.get("event") == "preview" and isinstance(event.get("prompt"), str):
            prompts["/".join(Path(str(event.get("path"))).parts[-2:])] = event["prompt"]
    folders = {path: int(path.name.removeprefix("step-")) for path in (run.folder / "previews").glob("step-*[0-9]")}
    shown = max((path for path in folders if 0 < folders[path] <= last), key=lambda path: folders[path], default=None)
    if shown is None:
        return []
    is_told = bool(settings.previews.prompts) or captions
    if not is_told:
        on_event(
            Warning(
                "the previews were made with a caption of the training pictures, which the card does not tell",
                where=str(shown),
                hint="--show-captions tells it; or show pictures that you made with `fluxtune sample`, by --picture",
            )
        )
    pictures = sorted(shown.glob("*.png"))[:_MOST_PREVIEWS]
    return [Picture(path, prompts.get(f"{shown.name}/{path.name}") if is_told else None) for path in pictures]


def _own_prompt(picture: Path) -> str | None:
    """The prompt in a PNG that `fluxtune sample` made."""
    if not picture.is_file():
        raise UsageError("there is no such picture", where=str(picture), hint="check the path")
    try:
        with Image.open(picture) as image:
            facts: Any = json.loads(image.info.get("fluxtune", "{}"))
    except (OSError, ValueError, RecursionError, Image.DecompressionBombError):
        return None
    prompt = facts.get("prompt") if isinstance(facts, Mapping) else None
    return prompt if isinstance(prompt, str) else None


def _pixels(picture: Path) -> Image.Image:
    """A picture without anything that its file says beside its pixels: prompts, places, comments."""
    image = open_image(picture, "#ffffff")
    return Image.frombytes("RGB", image.size, image.tobytes())
