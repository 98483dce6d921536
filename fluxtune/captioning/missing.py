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
from fluxtune.dataset.cache import cache_folder, key_of
from fluxtune.dataset.folder import Item, is_subject
from fluxtune.dataset.images import open_image
from fluxtune.dataset.survey import Look
from fluxtune.errors import DataError
from fluxtune.events import Phase, Sink
from fluxtune.files import append_line, fingerprint_of, write_text


def caption_bare(config: Config, on_event: Sink, pictures: Sequence[tuple[Item, Look]]) -> Mapping[Path, str]:
    """Captions, worded as the settings say, of pictures that have none.

    Args:
        pictures: as they were seen; all of them could be read.

    Raises:
        BaseModelError: the captioner is missing, gated, or no captioner.
        DataError: a picture cannot be read any more.
        OutOfMemoryError: the captioner does not fit.
    """
    folder = find_captioner(config, on_event)
    kept = cache_folder() / "captions" / f"{_key(folder, config)}.jsonl"
    said = _read(kept)
    missing = [(item, look) for item, look in pictures if look.digest not in said]
    on_event(Phase("caption pictures", f"{len(missing)} new, {len(pictures) - len(missing)} from the cache"))
    if missing:
        if not kept.exists():
            write_text(kept, "")
        captioner = open_captioner(folder, config, device_for(config, on_event), on_event)
        texts = caption_each(
            missing,
            lambda pair: open_image(pair[0].path, config.dataset.background),
            captioner,
            BatchSize(config.captioning.batch_size),
        )
        for (_, look), text in with_progress(texts, len(missing), on_event):
            if isinstance(text, DataError):
                raise text
            append_line(kept, json.dumps({"picture": look.digest, "text": text}, ensure_ascii=False))
            said[look.digest] = text
        del captioner, texts
        gc.collect()
    return {item.path: Wording.of(config, is_subject(item))(said[look.digest], item.path) for item, look in pictures}


def _key(folder: Path, config: Config) -> str:
    """Of everything that decides what is said: the captioner's files, what it is asked, how transparency is filled."""
    family = family_of(model_type_of(folder))
    return key_of(
        "captions",
        fingerprint_of(folder, sorted(file for file in folder.iterdir() if file.is_file())),
        prompt_for(family, config) or "",
        config.captioning.max_tokens or family.max_tokens,
        config.captioning.precision,
        config.dataset.background,
    )


def _read(file: Path) -> dict[str, str]:
    """Picture's digest -> what was said; a last line that a kill cut short is passed over."""
    said = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                said[row["picture"]] = row["text"]
            except (ValueError, KeyError, TypeError):
                continue
    return said
