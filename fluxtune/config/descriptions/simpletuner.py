"""SimpleTuner's multidatabackend.json: a list of backends, of which those with pictures are folders.

After documentation/DATALOADER.md, documentation/DREAMBOOTH.md and simpletuner/helpers/prompts.py of bghira/SimpleTuner.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from fluxtune.config.descriptions.documents import Document, Table
from fluxtune.config.descriptions.draft import Draft, is_side
from fluxtune.config.documents import Layer
from fluxtune.config.settings import shown

NAME = "SimpleTuner"

_TECHNICAL = ("cache_dir", "cache_dir_vae", "metadata_backend", "metadata_update_interval", "text_embeds",
              "image_embeds", "vae_cache_clear_each_epoch", "vae_cache_ondemand", "vae_cache_disable",
              "skip_file_discovery", "preserve_data_backend_cache", "hash_filenames", "shorten_filenames",
              "train_batch_size", "write_batch_size", "maximum_image_size", "target_downsample_size",
              "source_dataset_id", "conditioning_type", "disable_validation", "default")  # fmt: skip

_OTHERWISE = {
    "minimum_image_size": "dataset.upscale = false leaves small pictures out",
    "minimum_aspect_ratio": "buckets go by dataset.max_aspect here, and no picture is left out for its shape",
    "maximum_aspect_ratio": "buckets go by dataset.max_aspect here, and no picture is left out for its shape",
    "crop_aspect_buckets": "buckets go by dataset.max_aspect here",
    "max_upscale_threshold": "dataset.upscale = false leaves small pictures out",
    "caption_shuffle": "captions keep their order here",
    "conditioning": "pictures to edit from are not read",
}


def read(document: Document) -> Layer:
    """The settings that the document comes to; its problems and remarks are left in it."""
    draft = Draft(document)
    backends = list(Table(document, (), document.content.values).tables(""))
    masks = {str(backend.values.get("id")): backend for backend in backends if _is_of_masks(backend)}
    for backend in backends:
        _backend(backend, masks, draft)
    return draft.layer()


def _is_of_masks(backend: Table) -> bool:
    given = backend.values
    return given.get("dataset_type") == "conditioning" and given.get("conditioning_type") == "mask"


def _backend(backend: Table, masks: dict[str, Table], draft: Draft) -> None:
    document = backend.document
    backend.take("id", str)
    kind = backend.take("dataset_type", str) or "image"
    if backend.take("disabled", bool) or backend.take("disable", bool):
        document.note(backend.path, "a disabled data set is left out")
        return
    if kind in ("text_embeds", "image_embeds", "conditioning_image_embeds") or _is_of_masks(backend):
        backend.warn("caption_filter_list", "captions are taken as they are")
        backend.taken |= {"type", "instance_data_dir", "conditioning_type", "default"}
        # Masks go by the settings of their pictures.
        backend.finish((*_TECHNICAL, "resolution", "resolution_type", "crop", "crop_style", "crop_aspect"))
        return
    if kind != "image":
        document.warn(backend.path, f"a data set of {kind} is not read")
        return
    if (place := backend.take("type", str) or "local") != "local":
        hint = "download its pictures into a folder, and give that one"
        document.refuse(backend.where("type"), f"a data set of type {shown(place)} is not on this machine", hint)
        return
    folder = backend.take("instance_data_dir", str)
    if not folder:
        document.refuse(backend.path, "a data set has no instance_data_dir", "say where its pictures are")
        return
    mask_folder = _masks(backend, masks)
    if mask_folder != "none":
        # What is black counts nothing there.
        draft.share("unmasked_weight", 0.0, backend.where("conditioning_data"))
    row = {
        "path": document.folder_at(folder),
        # Repeats are counted there beyond the first time.
        "repeats": (backend.take("repeats", int) or 0) + 1,
        "kind": "regularization" if _is_regularization(backend) else None,
        "masks": mask_folder,
        **_captions(backend),
        "folder_names": False,
    }
    draft.row(backend.path, row, _resolution(backend, draft))
    _share_crop(backend, draft)
    for key, message in _OTHERWISE.items():
        backend.warn(key, message)
    if backend.take("probability", int, float) not in (None, 1):
        document.warn(backend.where("probability"), "how often a folder is seen is said by repeats here")
    backend.finish(_TECHNICAL)


def _is_regularization(backend: Table) -> bool:
    for key in ("is_regularisation_data", "is_regularization_data"):
        if backend.take(key, bool):
            message = "these are trained on as they are; the base model's output is kept by training.preservation here"
            backend.document.note(backend.where(key), message)
            return True
    return False


def _masks(backend: Table, masks: dict[str, Table]) -> str:
    named = backend.take("conditioning_data", str, list)
    for name in [named] if isinstance(named, str) else named or []:
        if isinstance(name, str) and name in masks and (folder := masks[name].take("instance_data_dir", str)):
            return backend.document.folder_at(folder)
        backend.warn("conditioning_data", "only masks are read (dataset_type conditioning, conditioning_type mask)")
    return "none"


def _captions(backend: Table) -> dict[str, Any]:
    """What a strategy for captions comes to."""
    strategy = backend.take("caption_strategy", str)
    if strategy is None:
        message = "without a caption_strategy captions are in text files here; there its command line says where"
        backend.document.warn(backend.path, message)
        strategy = "textfile"
    prompt = backend.take("instance_prompt", str, list)
    if isinstance(prompt, list):
        backend.warn("instance_prompt", "of several prompts the first is taken")
        prompt = next((each for each in prompt if isinstance(each, str)), None)
    is_whole_file = backend.take("disable_multiline_split", bool)
    if strategy == "instanceprompt" or backend.take("only_instance_prompt", bool):
        backend.taken.add("prepend_instance_prompt")
        return {"captions": "none", "default_caption": prompt}
    prefix = prompt if backend.take("prepend_instance_prompt", bool) else None
    if strategy == "filename":
        return {"captions": "names", "caption_prefix": prefix}
    if strategy != "textfile":
        hint = "put the captions into a metadata.jsonl in the folder, with file_name and text, or into text files"
        message = f"captions by the strategy {shown(strategy)} are not read"
        backend.document.refuse(backend.where("caption_strategy"), message, hint)
    elif not is_whole_file:
        message = "of a caption file with several lines the first counts here, and one by chance there"
        backend.document.note(backend.where("caption_strategy"), message)
    return {"captions": ".txt", "caption_prefix": prefix, "caption_lines": None if is_whole_file else "first"}


def _share_crop(backend: Table, draft: Draft) -> None:
    """Whether all pictures are cropped to squares; other shapes are ours by default."""
    is_cropped, aspect = backend.take("crop", bool), backend.take("crop_aspect", str) or "square"
    style = backend.take("crop_style", str)
    place = backend.where("crop") if is_cropped is not None else None
    draft.share("buckets", not (is_cropped and aspect == "square"), place)
    if is_cropped and style not in (None, "center", "centre"):
        backend.document.warn(
            backend.where("crop_style"), f"crop_style {style}: crops are central here; dataset.crops adds moved ones"
        )


def _resolution(backend: Table, draft: Draft) -> list[int]:
    value = backend.take("resolution", int, float)
    unit = backend.take("resolution_type", str) or "pixel_area"
    place = backend.where("resolution")
    if value is None:
        return []
    if not is_side(value):
        backend.document.refuse(place, "resolution is no number of pixels or megapixels", '"resolution": 1024')
        return []
    if unit == "area":
        return [draft.side(place, sqrt(value * 1e6), multiple=64)]
    if unit == "pixel":
        message = "resolution_type pixel is of the shorter side there; here it is that of a square with as many pixels"
        backend.document.warn(place, message)
    return [draft.side(place, value)]
