"""How each layout describes a data set: the file that its trainer is given.

The counterparts of the readers in ``config/descriptions``: what those do not read out of it again goes into a file
beside it, see ``dataset.py``. Paths of other trainers are absolute, for those take relative ones from where they run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, sqrt
from pathlib import Path
from typing import Any

from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.descriptions.reading import OWN_FILE, changed, own_text
from fluxtune.dataset.folder import PICTURES
from fluxtune.dataset.layouts import kohya_folder
from fluxtune.exporting.groups import Group, Traits
from fluxtune.exporting.layouts import Layout

_KOHYA_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_COMMON_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Convention:
    """One layout.

    Attributes:
        file: name of the file that describes the data set.
        traits: what it can say of pictures.
        describe: (groups, shared settings, where the directories will be) -> the file's text.
        has_metadata: captions stand in a metadata.jsonl of each directory instead of text files.
    """

    file: str
    traits: Traits
    describe: Callable[[Sequence[Group], DatasetConfig, Path], str]
    has_metadata: bool = False


def _own(groups: Sequence[Group], dataset: DatasetConfig, root: Path) -> str:
    rows = [
        {
            "path": group.directory,
            "repeats": group.repeats,
            "kind": group.kind,
            "weight": group.weight,
            "masks": group.masks,
            # A name such as "10_zorvex dog" would count once more.
            "folder_names": kohya_folder(group.directory) is None,
        }
        for group in groups
    ]
    return own_text(changed(dataset), rows)


def _kohya(groups: Sequence[Group], dataset: DatasetConfig, root: Path) -> str:
    import tomlkit

    datasets = []
    # A data set with masks is of another kind there, of which every folder has them.
    kinds = [[group for group in groups if _has_masks(group) is masked] for masked in (False, True)]
    for side in dataset.resolution:
        for each in filter(None, kinds):
            # Those are dealt out there until they are as many as the subject's: without any of those, to none.
            has_subject = any(group.kind == "train" for group in each)
            subsets = [_subset(group, dataset, root, has_subject) for group in each]
            # Its own bounds are made for 1024 px.
            bounds = {
                "min_bucket_reso": floor(side / sqrt(dataset.max_aspect) / 64) * 64 or 64,
                "max_bucket_reso": ceil(side * sqrt(dataset.max_aspect) / 64) * 64,
            }
            datasets.append({"resolution": side, "enable_bucket": dataset.buckets, **bounds, "subsets": subsets})
    return tomlkit.dumps({"datasets": datasets})


def _subset(group: Group, dataset: DatasetConfig, root: Path, has_subject: bool) -> dict[str, Any]:
    subset: dict[str, Any] = {
        "image_dir": str(root / group.directory),
        "caption_extension": ".txt",
        "num_repeats": group.repeats,
        "flip_aug": dataset.flip,
        "caption_dropout_rate": dataset.caption_dropout,
    }
    if group.prefix:
        subset["caption_prefix"] = group.prefix
    if _has_masks(group):
        # Neither is_reg nor class_tokens may stand beside it; a prefix is put in front of no caption, too.
        prefix = {"caption_prefix": group.default} if group.default else {}
        return subset | prefix | {"conditioning_data_dir": str(root / group.masks)}
    if group.default:
        subset["class_tokens"] = group.default
    if group.masks == "alpha":
        subset["alpha_mask"] = True
    if group.kind == "regularization" and has_subject:
        subset["is_reg"] = True
    return subset


def _ai_toolkit(groups: Sequence[Group], dataset: DatasetConfig, root: Path) -> str:
    import yaml

    process: dict[str, Any] = {"type": "sd_trainer"}
    if dataset.trigger is not None:
        process["trigger_word"] = dataset.trigger
    process["datasets"] = [_dataset(group, dataset, root) for group in groups]
    job = {"job": "extension", "config": {"name": root.name, "process": [process]}}
    return yaml.safe_dump(job, allow_unicode=True, sort_keys=False, width=1000)


def _dataset(group: Group, dataset: DatasetConfig, root: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "folder_path": str(root / group.directory),
        "caption_ext": "txt",
        "num_repeats": group.repeats,
        "resolution": list(dataset.resolution),
        "caption_dropout_rate": dataset.caption_dropout,
        "flip_x": dataset.flip,
        "buckets": dataset.buckets,
    }
    if group.kind == "regularization":
        row["is_reg"] = True
    if group.weight != 1.0:
        row["loss_multiplier"] = group.weight
    if group.default:
        row["default_caption"] = group.default
    if group.masks == "alpha":
        row["alpha_mask"] = True
    elif _has_masks(group):
        row["mask_path"] = str(root / group.masks)
    if group.masks != "none":
        row["mask_min_value"] = dataset.unmasked_weight
    return row


def _simpletuner(groups: Sequence[Group], dataset: DatasetConfig, root: Path) -> str:
    backends: list[dict[str, Any]] = []
    for side in dataset.resolution:
        for group in groups:
            backends += _backends(group, side, dataset, root)
    text = {"id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True,
            "cache_dir": str(root / "cache" / "text")}  # fmt: skip
    return json.dumps([*backends, text], indent=2, ensure_ascii=False) + "\n"


def _backends(group: Group, side: int, dataset: DatasetConfig, root: Path) -> list[dict[str, Any]]:
    """A group at one resolution, and its masks."""
    name = group.directory if len(dataset.resolution) == 1 else f"{group.directory}-{side}"
    common = {
        "type": "local",
        "resolution": side,
        "resolution_type": "pixel_area",
        "crop": not dataset.buckets,
        "crop_style": "center",
        "crop_aspect": "square",
        "metadata_backend": "discovery",
    }
    backend = {
        "id": name,
        "dataset_type": "image",
        **common,
        "instance_data_dir": str(root / group.directory),
        "caption_strategy": "textfile",
        # What is counted there comes on top of the first time.
        "repeats": group.repeats - 1,
        "cache_dir_vae": str(root / "cache" / "vae" / name),
    }
    if group.default:
        backend |= {"caption_strategy": "instanceprompt", "instance_prompt": group.default}
    if group.prefix:
        backend |= {"prepend_instance_prompt": True, "instance_prompt": group.prefix}
    if group.kind == "regularization":
        backend["is_regularisation_data"] = True
    if not _has_masks(group):
        return [backend]
    masks = {
        "id": f"{name}-masks",
        "dataset_type": "conditioning",
        "conditioning_type": "mask",
        "source_dataset_id": name,
        **common,
        "instance_data_dir": str(root / group.masks),
    }
    return [backend | {"conditioning_data": masks["id"]}, masks]


def _onetrainer(groups: Sequence[Group], dataset: DatasetConfig, root: Path) -> str:
    concepts = [
        {
            "name": group.directory,
            "path": str(root / group.directory),
            "enabled": True,
            "type": "STANDARD",
            "include_subdirectories": False,
            "balancing": float(group.repeats),
            "balancing_strategy": "REPEATS",
            "loss_weight": group.weight,
            "image": {"enable_crop_jitter": False, "enable_random_flip": dataset.flip},
            "text": {"prompt_source": "sample"},
        }
        for group in groups
    ]
    return json.dumps(concepts, indent=2, ensure_ascii=False) + "\n"


def _has_masks(group: Group) -> bool:
    """Whether the masks of a group have a directory of their own."""
    return group.masks not in ("none", "alpha", "auto")


_OURS = Traits(
    trigger=True,
    prompts=True,
    class_word=True,
    alpha=True,
    some_masks=True,
    masks_beside=True,
    whole_mask_names=False,
    mask_sizes=False,
    picture_endings=PICTURES,
    mask_endings=PICTURES,
)

CONVENTIONS = {
    Layout.FOLDER: Convention(OWN_FILE, _OURS, _own),
    Layout.METADATA: Convention(OWN_FILE, replace(_OURS, masks_beside=False), _own, has_metadata=True),
    Layout.KOHYA: Convention(
        "dataset_config.toml",
        Traits(
            trigger=False,
            prompts=True,
            class_word=False,
            alpha=True,
            some_masks=False,
            masks_beside=False,
            whole_mask_names=False,
            mask_sizes=True,
            picture_endings=_KOHYA_ENDINGS,
            mask_endings=(".png",),
        ),
        _kohya,
    ),
    Layout.AI_TOOLKIT: Convention(
        "ai-toolkit.yaml",
        Traits(
            trigger=True,
            prompts=True,
            class_word=False,
            alpha=True,
            # In a batch with masks, pictures without one count nothing there.
            some_masks=False,
            masks_beside=False,
            whole_mask_names=False,
            mask_sizes=False,
            picture_endings=_COMMON_ENDINGS,
            mask_endings=_COMMON_ENDINGS,
        ),
        _ai_toolkit,
    ),
    Layout.SIMPLETUNER: Convention(
        "multidatabackend.json",
        Traits(
            trigger=False,
            prompts=True,
            class_word=False,
            alpha=False,
            some_masks=False,
            masks_beside=False,
            whole_mask_names=True,
            mask_sizes=False,
            picture_endings=PICTURES,
            mask_endings=PICTURES,
        ),
        _simpletuner,
    ),
    Layout.ONETRAINER: Convention(
        "concepts.json",
        Traits(
            trigger=False,
            prompts=False,
            class_word=False,
            alpha=False,
            some_masks=True,
            masks_beside=True,
            whole_mask_names=False,
            mask_sizes=False,
            picture_endings=PICTURES,
            mask_endings=(".png",),
        ),
        _onetrainer,
    ),
    # Its scripts read a folder of pictures through the library datasets, and have no file that describes it.
    Layout.DIFFUSERS: Convention(
        OWN_FILE, replace(_OURS, trigger=False, prompts=False, class_word=False, masks_beside=False), _own, True
    ),
}
