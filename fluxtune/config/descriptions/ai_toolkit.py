"""ai-toolkit's YAML: the ``datasets`` of a job's process, with its trigger word.

After toolkit/config_modules.py (DatasetConfig), toolkit/data_loader.py and toolkit/dataloader_mixins.py of
ostris/ai-toolkit.
"""

from __future__ import annotations

from typing import Any

from fluxtune.config.descriptions.documents import Document, Table
from fluxtune.config.descriptions.draft import Draft, is_side
from fluxtune.config.documents import Layer

NAME = "ai-toolkit"

_TECHNICAL = ("cache_latents", "cache_latents_to_disk", "cache_text_embeddings", "cache_tensors_to_disk", "num_workers",
              "cache_latents_num_workers", "prefetch_factor", "bucket_tolerance", "batch_size", "fast_image_size",
              "debug", "type", "cache_clip_vision_to_disk", "load_image_when_caching_latents", "num_frames", "fps",
              "shrink_video_to_frames", "guidance_type", "replay_transforms")  # fmt: skip

_OTHERWISE = {
    "shuffle_tokens": "captions keep their order here",
    "keep_tokens": "captions keep their order here",
    "token_dropout_rate": "captions are left out as a whole or not at all (dataset.caption_dropout)",
    "random_crop": "dataset.crops trains on several crops of each picture",
    "random_scale": "dataset.crops trains on several crops of each picture",
    "flip_y": "pictures are mirrored from left to right alone (dataset.flip)",
    "prior_reg": "what the base model makes of pictures is kept by training.preservation here",
    "control_path": "pictures to edit from are not read",
}


def read(document: Document) -> Layer:
    """The settings that the document comes to; its problems and remarks are left in it."""
    draft = Draft(document)
    root = Table(document, (), document.content.values)
    found = False
    for process in _processes(root):
        # The rest of a job is about the run, not about the data: nobody expects it to be taken over.
        train = Table(document, (*process.path, "train"), process.take("train", dict) or {})
        trigger, trigger_at = process.take("trigger_word", str), process.where("trigger_word")
        for dataset in process.tables("datasets"):
            found = True
            _dataset(dataset, draft, (trigger, trigger_at), train.take("reg_weight", int, float))
    if not found:
        message = "there are no datasets in it: wanted config: process: - datasets:"
        document.refuse((), message, "give a job of ai-toolkit, or its list of datasets alone")
    return draft.layer()


def _processes(root: Table) -> list[Table]:
    """The processes of a job; a document that has ``datasets`` at its top is one itself."""
    if "datasets" in root.values:
        return [root]
    config = Table(root.document, ("config",), root.take("config", dict) or {})
    return list(config.tables("process"))


def _dataset(dataset: Table, draft: Draft, job_trigger: tuple[str | None, Any], reg_weight: float | None) -> None:
    document = dataset.document
    folder = dataset.take("folder_path", str) or dataset.take("dataset_path", str)
    if not folder:
        document.refuse(dataset.path, "a dataset has no folder_path", "say where its pictures are")
        return
    if folder.endswith(".json"):
        message = "captions in a JSON of dataset_path are not read"
        hint = "put them into a metadata.jsonl in the folder, with file_name and text, and give the folder"
        document.refuse(dataset.where("dataset_path"), message, hint)
    if dataset.take("invert_mask", bool):
        hint = "invert the mask files themselves"
        document.refuse(dataset.where("invert_mask"), "masks are white where is learned; invert_mask is not read", hint)
    masks, is_alpha = dataset.take("mask_path", str), dataset.take("alpha_mask", bool)
    is_regularization = bool(dataset.take("is_reg", bool))
    weight = dataset.take("loss_multiplier", int, float)
    if is_regularization and reg_weight is not None:
        weight = (1.0 if weight is None else weight) * reg_weight
    ending = dataset.take("caption_ext", str) or dataset.take("caption_type", str) or ".txt"
    row = {
        "path": document.folder_at(folder),
        "repeats": dataset.take("num_repeats", int),
        "kind": "regularization" if is_regularization else None,
        "weight": None if weight is None else float(weight),
        "masks": "alpha" if is_alpha else document.folder_at(masks) if masks else "none",
        "captions": f".{ending.removeprefix('.')}",
        "default_caption": dataset.take("default_caption", str),
        "folder_names": False,
    }
    draft.row(dataset.path, row, _resolution(dataset, draft))
    own = dataset.take("trigger_word", str)
    trigger, place = (own, dataset.where("trigger_word")) if own is not None else job_trigger
    if not is_regularization:
        draft.share("trigger", trigger or None, place if trigger else None)
    if masks or is_alpha:
        least = dataset.take("mask_min_value", int, float)
        draft.share("unmasked_weight", float(least or 0.0), dataset.where("mask_min_value"))
    for key, ours, kinds, usual in (
        ("flip_x", "flip", (bool,), False),
        ("buckets", "buckets", (bool,), True),
        ("caption_dropout_rate", "caption_dropout", (int, float), 0.0),
    ):
        value = dataset.take(key, *kinds)
        draft.share(ours, usual if value is None else value, None if value is None else dataset.where(key))
    for key, message in _OTHERWISE.items():
        dataset.warn(key, message)
    dataset.finish(_TECHNICAL)


def _resolution(dataset: Table, draft: Draft) -> list[int]:
    value: Any = dataset.take("resolution", int, list)
    place = dataset.where("resolution")
    if value is None:
        return []
    sides: list[int] = value if isinstance(value, list) else [value]
    if not all(map(is_side, sides)):
        dataset.document.refuse(place, "resolution is neither a number nor a list of them", "resolution: [512, 1024]")
        return []
    return [draft.side(place, side) for side in sides]
