"""OneTrainer's concepts: a list of folders, each with the source of its prompts and what is done to its pictures.

After modules/util/config/ConceptConfig.py and modules/dataLoader/mixin of Nerogar/OneTrainer.
"""

from __future__ import annotations

from typing import Any

from fluxtune.config.descriptions.documents import Document, Table
from fluxtune.config.descriptions.draft import Draft, is_side
from fluxtune.config.documents import Layer
from fluxtune.config.settings import shown

NAME = "OneTrainer"

_TECHNICAL = ("name", "seed", "concept_stats", "text_variations", "__version")

_OF_PICTURES = {
    "enable_crop_jitter": "dataset.crops trains on several crops of each picture",
    "enable_fixed_flip": "pictures are mirrored with dataset.flip",
    "enable_random_rotate": "pictures are not turned here",
    "enable_fixed_rotate": "pictures are not turned here",
    "enable_random_brightness": "dataset.colour_jitter changes the colours of crops beyond the first",
    "enable_fixed_brightness": "the colours of whole data sets are not changed here",
    "enable_random_contrast": "dataset.colour_jitter changes the colours of crops beyond the first",
    "enable_fixed_contrast": "the colours of whole data sets are not changed here",
    "enable_random_saturation": "dataset.colour_jitter changes the colours of crops beyond the first",
    "enable_fixed_saturation": "the colours of whole data sets are not changed here",
    "enable_random_hue": "dataset.colour_jitter changes the colours of crops beyond the first",
    "enable_fixed_hue": "the colours of whole data sets are not changed here",
    "enable_random_circular_mask_shrink": "masks are taken as they are",
    "enable_random_mask_rotate_crop": "masks are taken as they are",
}
_OF_CAPTIONS = {
    "enable_tag_shuffling": "captions keep their order here",
    "tag_dropout_enable": "captions are left out as a whole or not at all (dataset.caption_dropout)",
    "caps_randomize_enable": "captions are taken as they are",
}
_STRENGTHS = ("random_rotate_max_angle", "random_brightness_max_strength", "random_contrast_max_strength",
              "random_saturation_max_strength", "random_hue_max_strength")  # fmt: skip
_OF_TAGS = ("tag_delimiter", "keep_tags_count", "tag_dropout_mode", "tag_dropout_probability",
            "tag_dropout_special_tags_mode", "tag_dropout_special_tags", "tag_dropout_special_tags_regex",
            "caps_randomize_mode", "caps_randomize_probability", "caps_randomize_lowercase")  # fmt: skip


def is_one(values: dict[str, Any]) -> bool:
    """Whether values are a list of concepts: in SimpleTuner's lists nothing has a ``path``."""
    rows = values.get("")
    return isinstance(rows, list) and any(isinstance(row, dict) and "path" in row for row in rows)


def read(document: Document) -> Layer:
    """The settings that the document comes to; its problems and remarks are left in it."""
    draft = Draft(document)
    for concept in Table(document, (), document.content.values).tables(""):
        read_concept(concept, draft)
    return draft.layer()


def read_concept(concept: Table, draft: Draft) -> None:
    """One folder."""
    document = concept.document
    kind = concept.take("type", str) or "STANDARD"
    if concept.take("enabled", bool) is False:
        document.note(concept.path, "a concept that is not enabled is left out")
        return
    if kind == "VALIDATION":
        document.warn(concept.where("type"), "pictures for validation alone are left out")
        return
    folder = concept.take("path", str)
    if not folder:
        document.refuse(concept.path, "a concept has no path", "say where its pictures are")
        return
    if kind != "STANDARD":
        message = f"a concept of type {shown(kind)} is trained on as it is; see training.preservation"
        document.warn(concept.where("type"), message)
    weight = concept.take("loss_weight", int, float)
    row = {
        "path": document.folder_at(folder),
        "repeats": _repeats(concept),
        "weight": None if weight is None else float(weight),
        **_captions(concept),
        "nested": bool(concept.take("include_subdirectories", bool)),
        "folder_names": False,
    }
    draft.row(concept.path, row, _pictures(concept, draft))
    if (concept.take("image_variations", int) or 1) > 1:
        concept.warn("image_variations", "dataset.crops trains on several crops of each picture")
    concept.finish(_TECHNICAL)


def _repeats(concept: Table) -> int | None:
    balancing = concept.take("balancing", int, float)
    if (concept.take("balancing_strategy", str) or "REPEATS") != "REPEATS":
        concept.document.warn(concept.where("balancing_strategy"), "how often a folder is seen is said by repeats here")
        return None
    if balancing is None:
        return None
    repeats = max(1, round(balancing))
    if repeats != balancing:
        concept.document.warn(concept.where("balancing"), f"{balancing:g} repeats become {repeats}")
    return repeats


def _captions(concept: Table) -> dict[str, Any]:
    """What the source of prompts comes to."""
    document, values = concept.document, concept.take("text", dict) or {}
    text = Table(document, (*concept.path, "text"), values)
    source = text.take("prompt_source", str) or "sample"
    path = text.take("prompt_path", str)
    for key, message in _OF_CAPTIONS.items():
        text.warn(key, message)
    text.finish(_OF_TAGS)
    if source == "filename":
        return {"captions": "names"}
    if source == "concept":
        message = "a file of prompts for all pictures of a concept is not read"
        hint = "put the caption into default_caption of the row, with captions = none"
        document.warn(text.where("prompt_path") if path else text.path, f"{message}: {hint}")
        return {"captions": "none"}
    return {"captions": ".txt", "caption_lines": "first"}


def _pictures(concept: Table, draft: Draft) -> list[int]:
    """Says what is done to the pictures, and returns the resolutions that the concept has of its own."""
    image = Table(concept.document, (*concept.path, "image"), concept.take("image", dict) or {})
    flip = image.take("enable_random_flip", bool)
    draft.share("flip", bool(flip), image.where("enable_random_flip") if flip is not None else None)
    for key, message in _OF_PICTURES.items():
        image.warn(key, message)
    own, sides = image.take("enable_resolution_override", bool), image.take("resolution_override", str)
    image.finish(_STRENGTHS)
    if not own or not sides:
        return []
    return resolutions(sides, image, "resolution_override", draft)


def resolutions(text: str, table: Table, key: str, draft: Draft) -> list[int]:
    """The sides of ``512,768``; ``WxH`` becomes the square with as many pixels."""
    found: list[int] = []
    for part in text.split(","):
        sides = [int(number) for number in part.strip().lower().split("x") if number.strip().isdigit()]
        if len(sides) not in (1, 2) or not all(map(is_side, sides)):
            message = f"{key} is {shown(text)}: wanted sides in pixels with commas between"
            table.document.refuse(table.where(key), message, f'"{key}": "512,1024"')
            return []
        found.append(draft.square(table.where(key), sides[0], sides[-1]))
    return found
