"""Captions for a training on pictures that have none: said once, kept in the cache, written nowhere else.

`CACHE/captions/KEY.jsonl` holds what one captioner said, asked one way: a line for each picture, by its content.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluxtune.captioning.batches import BatchSize, caption_each
from fluxtune.captioning.captioner import family_of, find_captioner, open_captioner, prompt_for
from fluxtune.captioning.load import model_type_of
from fluxtune.captioning.run import device_for, with_progress
from fluxtune.captioning.wording import Wording
from fluxtune.config.schema import Config
from fluxtune.dataset.cache import key_of
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.dataset.images import open_image
from fluxtune.dataset.pictures import all_in_one
from fluxtune.dataset.sources import framed
from fluxtune.dataset.survey import Look
from fluxtune.environment.device import pick_device
from fluxtune.environment.folders import cache_folder
from fluxtune.errors import DataError
from fluxtune.events import Phase, Sink
from fluxtune.files import append_line, fingerprint_of, json_lines, write_text

_OTHERWISE = "ask it otherwise (captioning.prompt), choose another captioner, or write the caption"


def caption_bare(config: Config, on_event: Sink, pictures: Sequence[tuple[Item, Look]]) -> Mapping[str, str]:
    """Captions by name, worded as the settings say and framed by their folders', of pictures that have none.

    Args:
        pictures: as they were seen; all of them could be read.

    Raises:
        UsageError: the prompt or the template cannot be used.
        BaseModelError: the captioner is missing, gated, or no captioner.
        DataError: it said nothing of a picture, or a picture cannot be read any more; what it said of others is kept.
        OutOfMemoryError: the captioner does not fit.
        StorageError: the cache cannot be read or written.
    """
    wordings = {is_of_subject: Wording.of(config, is_of_subject) for is_of_subject in (True, False)}
    folder = find_captioner(config, on_event)
    kept = cache_folder() / "captions" / f"{_key(folder, config)}.jsonl"
    said = _read(kept)
    missing = [(item, look) for item, look in pictures if look.digest not in said]
    on_event(Phase("caption pictures", f"{len(missing)} new, {len(pictures) - len(missing)} from the cache"))
    if missing:
        said |= _ask(folder, missing, kept, config, on_event)
        gc.collect()
    worded = {item.name: wordings[is_subject(item)](said[look.digest], item.path) for item, look in pictures}
    return {item.name: framed(worded[item.name], item.folder) for item, _ in pictures}


def _ask(
    folder: Path, pictures: Sequence[tuple[Item, Look]], kept: Path, config: Config, on_event: Sink
) -> dict[str, str]:
    """Picture's digest -> what the captioner says of it, which is kept as soon as it is said."""
    if not kept.exists():
        write_text(kept, "")
    texts = caption_each(
        pictures,
        lambda pair: open_image(pair[0].path, config.dataset.background),
        open_captioner(folder, config, device_for(config, on_event), on_event),
        BatchSize(config.captioning.batch_size),
    )
    said: dict[str, str] = {}
    problems: list[DataError] = []
    for (item, look), text in with_progress(texts, len(pictures), on_event):
        if isinstance(text, DataError):
            problems.append(text)
        elif not text.strip():
            problems.append(
                DataError("the captioner said nothing", where=str(item.path), hint=_OTHERWISE, check="empty-caption")
            )
        else:
            append_line(kept, json.dumps({"picture": look.digest, "text": text}, ensure_ascii=False))
            said[look.digest] = text
    if problems:
        raise all_in_one([], problems, can_go_on=False)
    return said


def _key(folder: Path, config: Config) -> str:
    """Of everything that decides what is said: the captioner's files, what it is asked, how it is held and where it
    works, how transparency is filled."""
    family = family_of(model_type_of(folder))
    chosen, device = config.captioning, pick_device(config.captioning.device)
    automatic = "bf16" if device == "cuda" else "fp32"
    return key_of(
        "captions",
        fingerprint_of(folder, sorted(file for file in folder.iterdir() if file.is_file())),
        prompt_for(family, config) or "",
        chosen.max_tokens or family.max_tokens,
        automatic if chosen.precision == "auto" else chosen.precision,
        device,
        config.dataset.background,
    )


def _read(file: Path) -> dict[str, str]:
    """Picture's digest -> what was said."""
    rows = ((row.get("picture"), row.get("text")) for row in json_lines(file))
    return {
        picture: text for picture, text in rows if isinstance(picture, str) and isinstance(text, str) and text.strip()
    }
