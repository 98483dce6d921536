"""Whether an export reads back as what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import ImageChops

from fluxtune.config.dataset import DatasetConfig
from fluxtune.dataset.folder import Item, list_folders
from fluxtune.dataset.images import Size
from fluxtune.dataset.masks import checked_mask
from fluxtune.dataset.survey import Look
from fluxtune.errors import VerificationError, some_names
from fluxtune.exporting.groups import Group, Place
from fluxtune.files import sha256_of


def compare(
    seen: DatasetConfig, groups: Sequence[Group], dataset: DatasetConfig, root: Path, looks: Mapping[Item, Look]
) -> None:
    """Compare what was read back with what was to be written: shared settings, and all of each picture.

    Args:
        seen: the data set as the description in ``root`` reads.
        looks: what was seen in the original picture files.

    Raises:
        VerificationError: they differ.
    """
    shared = {"folders"}
    if seen.model_dump(exclude=shared) != dataset.model_dump(exclude=shared):
        raise _differs(["its settings"], root)
    listed = list_folders(seen.folders).items
    items = {item.path.resolve(): item for item in listed}
    wanted = {(root / place.picture).resolve(): (group, place) for group in groups for place in group.places}
    if items.keys() != wanted.keys():
        raise _differs(sorted(path.name for path in items.keys() ^ wanted.keys()), root)
    if len(items) != len(listed):
        raise _differs(["how often pictures are listed"], root)
    if differing := list(_differing(items, wanted, looks)):
        raise _differs(differing, root)


def _differing(
    items: Mapping[Path, Item], wanted: Mapping[Path, tuple[Group, Place]], looks: Mapping[Item, Look]
) -> Iterator[str]:
    for path, item in items.items():
        group, place = wanted[path]
        if (item.repeats, item.folder.kind, item.folder.weight) != (group.repeats, group.kind, group.weight):
            yield f"repeats, kind or weight of {place.picture}"
        if item.caption != place.caption:
            yield f"the caption of {place.picture}"
        if sha256_of(path) != looks[place.item].digest:
            yield place.picture
        if not _same_mask(item, place.item, looks[place.item].size):
            yield f"the mask of {place.picture}"


def _same_mask(item: Item, original: Item, size: Size) -> bool:
    """Whether the masks say the same of each pixel of a picture of ``size``."""
    if item.mask is None or original.mask is None:
        return item.mask is original.mask
    written, _ = checked_mask(item.mask, item.path, size)
    source, _ = checked_mask(original.mask, original.path, size)
    return ImageChops.difference(written, source).getbbox() is None


def _differs(what: Sequence[str], root: Path) -> VerificationError:
    return VerificationError(
        f"what was written reads back otherwise: {some_names(what)}",
        where=str(root),
        hint="this is a bug in fluxtune: please report it with the layout and an example",
    )
