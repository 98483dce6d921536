"""kohya's dataset TOML, or the same as JSON: ``[general]``, ``[[datasets]]``, ``[[datasets.subsets]]``; the innermost
value of a key counts.

After docs/config_README-en.md and library/config_util.py of kohya-ss/sd-scripts.
"""

from __future__ import annotations

from typing import Any

from fluxtune.config.descriptions.documents import Document, Table
from fluxtune.config.descriptions.draft import Draft, is_side
from fluxtune.config.documents import Layer
from fluxtune.config.settings import shown

NAME = "kohya's trainers"

_TECHNICAL = ("batch_size", "cache_info", "debug_dataset", "bucket_reso_steps", "min_bucket_reso",
              "max_bucket_reso", "caption_separator",
              "resize_interpolation", "max_token_length", "skip_cache_check")  # fmt: skip

_OTHERWISE = {
    "bucket_no_upscale": "small pictures are enlarged here; dataset.upscale = false leaves them out",
    "random_crop": "dataset.crops trains on several crops of each picture",
    "face_crop_aug_range": "dataset.crops trains on several crops of each picture",
    "enable_wildcard": "captions are taken as they are; the first line counts",
    "shuffle_caption": "captions keep their order here",
    "keep_tokens": "captions keep their order here",
    "keep_tokens_separator": "captions keep their order here",
    "caption_tag_dropout_rate": "captions are left out as a whole or not at all (dataset.caption_dropout)",
    "caption_dropout_every_n_epochs": "captions are left out by chance (dataset.caption_dropout)",
}


def is_one(values: dict[str, Any]) -> bool:
    """Whether values are kohya's: nobody else has ``subsets`` in his ``datasets``."""
    datasets = values.get("datasets")
    return isinstance(datasets, list) and any(isinstance(each, dict) and "subsets" in each for each in datasets)


def read(document: Document) -> Layer:
    """The settings that the document comes to; its problems and remarks are left in it."""
    root = Table(document, (), document.content.values)
    draft = Draft(document)
    general = Table(document, ("general",), root.take("general", dict) or {})
    for dataset in root.tables("datasets"):
        dataset.above = general
        folders: set[str] = set()
        for subset in dataset.tables("subsets"):
            subset.above = dataset
            _subset(subset, draft, folders)
        _finish(dataset)
    _finish(general)
    root.finish()
    return draft.layer()


def _subset(subset: Table, draft: Draft, folders: set[str]) -> None:
    """A folder; ``folders`` are those of its dataset so far."""
    document = subset.document
    if subset.take("metadata_file", str):
        document.refuse(
            subset.where("metadata_file"),
            "captions in kohya's metadata files are not read",
            "put them into a metadata.jsonl in the folder, with file_name and text, and leave metadata_file out",
        )
    folder = subset.take("image_dir", str)
    if folder is None:
        document.refuse(subset.path, "a subset has no image_dir", "say where its pictures are")
        return
    masks = subset.take("conditioning_data_dir", str)
    is_alpha = subset.take("alpha_mask", bool)
    repeats = subset.take("num_repeats", int)
    if repeats is not None and repeats < 1:
        document.warn(subset.where("num_repeats"), "num_repeats below 1 leaves the folder out")
        return
    if folder in folders:
        document.warn(subset.where("image_dir"), "of the subsets of a dataset with one image_dir the first counts")
        return
    folders.add(folder)
    is_regularization = subset.take("is_reg", bool)
    if is_regularization:
        message = "these are seen as often as repeats says, and not until there are as many as of the subject"
        document.note(subset.where("is_reg"), message)
    row = {
        "path": document.folder_at(folder),
        "repeats": repeats,
        "kind": "regularization" if is_regularization else None,
        "masks": document.folder_at(masks) if masks else "alpha" if is_alpha else "none",
        "captions": _ending(subset),
        "default_caption": subset.take("class_tokens", str),
        "caption_prefix": subset.take("caption_prefix", str),
        "caption_suffix": subset.take("caption_suffix", str),
        "caption_lines": "first",
        # Only what lies directly in the folder counts there, and its name means nothing.
        "nested": False,
        "folder_names": False,
    }
    draft.row(subset.path, row, _resolution(subset, draft))
    if masks or is_alpha:
        # What is black counts nothing there.
        draft.share("unmasked_weight", 0.0, subset.where("conditioning_data_dir" if masks else "alpha_mask"))
    for key, ours, kinds, usual in (
        ("flip_aug", "flip", (bool,), False),
        ("caption_dropout_rate", "caption_dropout", (int, float), 0.0),
        ("enable_bucket", "buckets", (bool,), False),
    ):
        value = subset.take(key, *kinds)
        draft.share(ours, usual if value is None else value, None if value is None else subset.where(key))
    _finish(subset)


def _ending(subset: Table) -> str:
    """The ending of caption files, which is put behind a picture's name there as it is."""
    ending = subset.take("caption_extension", str) or ".caption"
    if not ending.startswith("."):
        message = f"caption_extension is {shown(ending)}: wanted an ending with its dot"
        subset.document.refuse(subset.where("caption_extension"), message, 'caption_extension = ".txt"')
        return ".caption"
    return ending


def _resolution(subset: Table, draft: Draft) -> list[int]:
    value: Any = subset.take("resolution", int, list)
    place = subset.where("resolution")
    if value is None:
        return []
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(map(is_side, sides)):
        subset.document.refuse(place, "resolution is neither a number nor [width, height]", "resolution = 1024")
        return []
    return [draft.square(place, *sides)]


def _finish(table: Table) -> None:
    for key, message in _OTHERWISE.items():
        if key in table.values:
            table.taken.add(key)
            table.warn(key, message)
    table.finish(_TECHNICAL)
