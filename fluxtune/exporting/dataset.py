"""A copy of a data set in another layout, from which nothing is missing: what the layout cannot hold stands beside it.

What that is, is not guessed. The description is read back by our own reader, and where it says less than the data set
does, the rest goes into ``beside(description)``, which the reader takes into account. Then everything is read once more
and compared with what was to be written, before the copy gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fluxtune.config.dataset import NO_FOLDERS, DatasetConfig, FolderConfig
from fluxtune.config.descriptions.reading import Description, beside, description_at
from fluxtune.dataset.caption_checks import check_captions
from fluxtune.dataset.findings import as_warnings, name_of
from fluxtune.dataset.folder import Item, folder_path
from fluxtune.dataset.images import Size, read_mask
from fluxtune.dataset.masks import checked_mask
from fluxtune.dataset.picture_checks import check_pictures
from fluxtune.dataset.pictures import OF_FOLDERS, all_in_one
from fluxtune.dataset.survey import Look, Seen, Survey, survey
from fluxtune.errors import UsageError, some_names
from fluxtune.events import Progress, Sink, Warning
from fluxtune.exporting.conventions import CONVENTIONS, Convention
from fluxtune.exporting.groups import Group, Place, grouped, source_of
from fluxtune.exporting.layouts import Layout
from fluxtune.exporting.reading_back import compare
from fluxtune.files import require_new_folder, require_space, whole_folder, write_text, write_with


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        description: the file for the trainer; reading it gives the data set again.
        beside: the file with what the layout cannot hold, if there is any, and ``kept_beside`` what that is.
        directories: directory in the copy -> folder that its pictures come from.
        linked: pictures that are hard links to the originals.
        renamed: picture in the data set -> file in the copy, where the names differ.
        left_out: pictures with errors, which were accepted.
        remarks: what the trainer will do otherwise.
    """

    destination: str
    layout: str
    description: str
    beside: str | None
    kept_beside: tuple[str, ...]
    directories: dict[str, str]
    pictures: int
    captions: int
    masks: int
    linked: int
    renamed: dict[str, str]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...]


def export_dataset(
    dataset: DatasetConfig,
    layout: Layout,
    destination: Path,
    on_event: Sink,
    *,
    link: bool = False,
    accept_errors: bool = False,
    final: Path | None = None,
    reserved: Iterable[str] = (),
) -> Exported:
    """Write a copy of a data set in another layout; pictures byte for byte.

    Args:
        link: hard links in place of copies of pictures, where the file system has them.
        accept_errors: leave out what cannot be read.
        final: where the copy will lie in the end, if not at ``destination``.
        reserved: names that no directory in it may have.

    Raises:
        DataError: something is wrong with the pictures or captions.
        UsageError: the destination is there already, or lies within the data set.
        StorageError: it cannot be written; nothing is left behind.
        VerificationError: what was written does not read back as what it was made of.
    """
    if not dataset.folders:
        raise UsageError(
            "no folder of pictures is given", where="fluxtune export dataset", hint="fluxtune export dataset FOLDER"
        )
    folders = [path for folder in dataset.folders for path in (folder.path, folder.masks) if path not in NO_FOLDERS]
    require_new_folder(destination, "the export", filter(os.path.isdir, map(folder_path, folders)))
    surveyed = survey(dataset, on_event)
    usable, left_out = _usable(surveyed, dataset, accept_errors, on_event)
    convention = CONVENTIONS[layout]
    reserved = (convention.file, beside(Path(convention.file)).name, "cache", *reserved)
    groups = grouped([seen.item for seen in usable], dataset, convention.traits, reserved)
    size = sum(_size(place, link) for group in groups for place in group.places)
    require_space(destination, size, "the exported pictures")
    looks = {seen.item: seen.look for seen in usable if seen.look is not None}
    with whole_folder(destination) as root:
        linked = _write_pictures(groups, convention, root, looks, link, on_event)
        write_text(root / convention.file, convention.describe(groups, dataset, (final or destination).absolute()))
        kept_beside = _write_beside(groups, dataset, root / convention.file)
        compare(_described(root / convention.file).dataset, groups, dataset, root, looks)
    places = [place for group in groups for place in group.places]
    return Exported(
        destination=str(destination),
        layout=layout.value,
        description=str(destination / convention.file),
        beside=str(destination / beside(Path(convention.file)).name) if kept_beside else None,
        kept_beside=kept_beside,
        directories={group.directory: str(source_of(group)) for group in groups},
        pictures=len(places),
        captions=sum(bool(place.item.caption) for place in places),
        masks=sum(place.item.mask is not None for place in places),
        linked=linked,
        renamed={
            place.item.name: place.picture for place in places if Path(place.picture).name != place.item.path.name
        },
        left_out=tuple(left_out),
        remarks=tuple(_remarks(groups, dataset, layout, convention, looks)),
    )


def _usable(
    surveyed: Survey, dataset: DatasetConfig, accept_errors: bool, on_event: Sink
) -> tuple[list[Seen], list[str]]:
    """The pictures that can be written, and the names of the others."""
    items = [seen.item for seen in surveyed.seen]
    findings = [*surveyed.findings, *check_pictures(surveyed), *check_captions(items, dataset.trigger, limits=())]
    errors = [each for each in findings if each.severity == "error"]
    usable = [
        seen
        for seen in surveyed.seen
        if seen.look is not None and seen.mask_error is None and seen.item.caption is not None
    ]
    refused = errors if not (accept_errors and usable) else [each for each in errors if each.check in OF_FOLDERS]
    if refused:
        raise all_in_one(refused, [], can_go_on=bool(usable))
    if errors:
        names = some_names(name_of(each) for each in errors)
        on_event(
            Warning(f"{len(usable)} of {len(items)} pictures are exported, in spite of what is wrong with {names}")
        )
    # Files that nobody will find in the copy.
    for warning in as_warnings(surveyed.findings):
        on_event(warning)
    kept = {id(seen) for seen in usable}
    return usable, [seen.item.name for seen in surveyed.seen if id(seen) not in kept]


def _size(place: Place, link: bool) -> int:
    """Bytes that a picture and its mask take; a link takes none."""
    picture = 0 if link else place.item.path.stat().st_size
    mask = place.item.mask if place.mask is not None else None
    return picture + (mask.stat().st_size if mask is not None else 0)


def _write_pictures(
    groups: Sequence[Group], convention: Convention, root: Path, looks: Mapping[Item, Look], link: bool, on_event: Sink
) -> int:
    """Writes pictures, captions and masks; returns how many pictures became links."""
    total, done, linked = sum(len(group.places) for group in groups), 0, 0
    for group in groups:
        for place in group.places:
            target = root / place.picture
            target.parent.mkdir(parents=True, exist_ok=True)
            if link and _linked(place.item.path, target):
                linked += 1
            else:
                write_with(target, partial(shutil.copyfile, place.item.path))
            if place.mask is not None:
                _write_mask(place, root / place.mask, looks[place.item].size if convention.traits.mask_sizes else None)
            if place.caption and not convention.has_metadata:
                write_text(target.with_suffix(".txt"), f"{place.caption}\n")
            done += 1
            on_event(Progress("write pictures", done, total, "pictures"))
        if convention.has_metadata:
            rows = [{"file_name": Path(place.picture).name, "text": place.caption} for place in group.places]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            write_text(root / group.directory / "metadata.jsonl", "".join(f"{line}\n" for line in lines))
    return linked


def _linked(source: Path, target: Path) -> bool:
    """Whether a hard link could be made: some file systems have none, and none reaches another one."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def _write_mask(place: Place, target: Path, size: Size | None) -> None:
    """Writes the mask of a picture, in ``size`` where that is given."""
    mask = place.item.mask
    assert mask is not None, "a place for a mask is one of a picture that has one"
    if size is not None and read_mask(mask, place.item.path).size != size:
        write_with(target, lambda temporary: checked_mask(mask, place.item.path, size)[0].save(temporary, "PNG"))
    elif _is_recoded(place):
        write_with(target, lambda temporary: read_mask(mask, place.item.path).save(temporary, "PNG"))
    else:
        write_with(target, partial(shutil.copyfile, mask))


def _is_recoded(place: Place) -> bool:
    """Whether a mask is written as PNG: it is a picture's transparency, or its file has an ending that is not read."""
    mask = place.item.mask
    return mask is None or mask == place.item.path or mask.suffix.lower() != Path(place.mask or "").suffix.lower()


def _described(file: Path) -> Description:
    description = description_at(file, file.name)
    assert description is not None, "a file that was just written describes the data set"
    return description


def _write_beside(groups: Sequence[Group], dataset: DatasetConfig, file: Path) -> tuple[str, ...]:
    """Writes what the description does not say of the data set, and returns what that is; ours says everything.

    Prompts that the trainer needs in place of a trigger, and the data set has not, are taken back there, too.
    """
    seen = _described(file).dataset
    shared = {
        key: value
        for key, value in dataset.model_dump(exclude={"folders"}).items()
        if value is not None and value != getattr(seen, key)
    }
    by_path = {Path(row.path).name: row for row in seen.folders}
    rows = []
    for group in groups:
        # One that is missing there is noticed when all is compared.
        row = by_path.get(group.directory)
        if row is not None and (lacking := _lacking(group, row, file.parent)):
            rows.append({"path": group.directory, **lacking})
    if not shared and not rows:
        return ()
    import tomlkit

    table = {"dataset": {**shared, **({"folders": rows} if rows else {})}}
    text = f"# What {file.name} cannot hold; fluxtune reads it together with that file.\n\n{tomlkit.dumps(table)}"
    write_text(beside(file), text)
    named = [
        f"{key} of {each['path']}" for each in rows for key in each if key in ("repeats", "kind", "weight", "masks")
    ]
    return (*(f"dataset.{key}" for key in shared), *named)


def _lacking(group: Group, row: FolderConfig, root: Path) -> dict[str, Any]:
    """What a row that was read back says otherwise than the group."""
    masks = group.masks if group.masks in ("none", "alpha", "auto") else str(root / group.masks)
    wanted = {"repeats": group.repeats, "kind": group.kind, "weight": group.weight, "masks": masks}
    wanted |= {"default_caption": "", "caption_prefix": ""}
    if row.captions == "none":
        wanted["captions"] = "auto"
    lacking = {key: value for key, value in wanted.items() if getattr(row, key) != value}
    return {**lacking, "masks": group.masks} if "masks" in lacking else lacking


def _remarks(
    groups: Sequence[Group], dataset: DatasetConfig, layout: Layout, convention: Convention, looks: Mapping[Item, Look]
) -> Iterator[str]:
    """What the trainer does not read, or reads otherwise."""
    traits, places = convention.traits, [place for group in groups for place in group.places]
    for group in groups:
        if group.prefix:
            yield f"{group.prefix!r} is put in front of the captions in {group.directory} by {convention.file}"
        if group.default:
            yield f"{group.default!r} is the caption of what has none in {group.directory}, by {convention.file}"
    unread = [place.picture for place in places if Path(place.picture).suffix.lower() not in traits.picture_endings]
    if unread:
        yield f"{layout.value} does not read {some_names(unread)}: save them as PNG for it"
    spelled_out = [place.picture for place in places if place.caption != (place.item.caption or "")]
    if spelled_out:
        what = "[trigger]" if traits.prompts else "the trigger word"
        yield f"{what} is written out in the captions of {some_names(spelled_out)}"
    renamed = [place.mask for place in places if place.mask and traits.whole_mask_names and _is_recoded(place)]
    if renamed:
        yield f"{layout.value} wants a mask under the name of its picture: {some_names(renamed)} are PNGs all the same"
    if layout is Layout.KOHYA and any(place.mask for place in places):
        yield "kohya's trainers look at the masks with --masked_loss alone"
    if any(group.kind == "regularization" for group in groups):
        if layout is Layout.KOHYA:
            yield "kohya's trainers see regularization as often as the subject, whatever its repeats are"
        if layout is Layout.SIMPLETUNER:
            yield "simpletuner keeps what the base model makes of regularization, and does not learn its pictures"
    turned = [place.picture for place in places if looks[place.item].stored.turn != 1]
    if turned and layout is Layout.KOHYA:
        yield f"kohya's trainers do not turn {some_names(turned)} upright: fluxtune validate --fix writes them so"
    if layout is Layout.DIFFUSERS and any(place.mask for place in places):
        yield "diffusers' scripts have no masks, and take the folders of them for pictures: move those away"
    if layout is Layout.AI_TOOLKIT and not dataset.buckets and any(group.masks != "none" for group in groups):
        yield "ai-toolkit takes masks with buckets alone: set dataset.buckets"
    bare = [place.picture for group in groups if not group.default for place in group.places if not place.caption]
    if bare and layout is Layout.SIMPLETUNER:
        yield f"simpletuner wants a caption for each picture: {some_names(bare)} have none"
