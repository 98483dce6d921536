"""Which mask belongs to which picture, and what it comes to on the grid of tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fluxtune.config.dataset import FolderConfig
from fluxtune.dataset.captions import stem_of
from fluxtune.dataset.findings import found, found_special
from fluxtune.dataset.images import Crop, Size, crop_box, read_mask
from fluxtune.errors import DataError
from fluxtune.events import Finding
from fluxtune.files import is_special

if TYPE_CHECKING:
    import torch

BESIDE = "-masklabel"
"""What a mask beside its picture is called: ``dog-masklabel.png`` belongs to ``dog.jpg``."""

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SAME_SHAPE = 0.02
"""How far the shapes of a mask and its picture may lie apart: rounding, no more."""


class Masks:
    """The masks of one folder, by the setting ``masks`` of its row."""

    def __init__(self, folder: FolderConfig, files: list[Path], findings: list[Finding]) -> None:
        self._how = folder.masks
        self._beside: dict[str, Path] = {}
        self._apart: dict[str, Path] = {}
        self._used: set[Path] = set()
        self._root: str | None = None
        self._flat = False
        self._files = {stem_of(file) for file in files}
        if self._how == "auto":
            self._beside = {stem_of(file): file for file in files if self.is_mask(file) and _is_picture(file)}
        elif self._how not in ("alpha", "none"):
            root = Path(os.path.expanduser(self._how))
            if not os.path.isdir(root):
                message = "there is no such folder of masks"
                hint = "masks = auto, alpha, none, or a folder"
                findings.append(found("no-folder", message, where=str(root), hint=hint))
            else:
                named = [file for file in _files_below(root, findings) if _is_picture(file)]
                findings += map(found_special, filter(is_special, named))
                masks = [file for file in named if not is_special(file)]
                if not masks:
                    message = "there are no masks in this folder"
                    findings.append(found("no-pictures", message, where=str(root), severity="warning"))
                self._apart = {stem_of(file.relative_to(root)): file for file in masks}
                self._flat = all(file.parent == root for file in masks)
                self._root = os.path.realpath(root)

    def is_mask(self, file: Path) -> bool:
        """Whether a file is a mask of a picture, or belongs to one: no matter what the setting says, nobody trains on
        those."""
        if self._root is not None and Path(os.path.realpath(file)).is_relative_to(self._root):
            return True
        return file.stem.endswith(BESIDE)

    def of(self, picture: Path, root: Path) -> Path | None:
        """The mask of a picture in the folder ``root``."""
        if self._how == "alpha":
            return picture
        mask = self._beside.get(stem_of(picture) + BESIDE) or self._apart.get(stem_of(picture.relative_to(root)))
        if mask is None and self._flat and stem_of(root / picture.name) not in self._files:
            # Masks that lie in one folder belong to pictures in nested ones by name, as ai-toolkit has it.
            mask = self._apart.get(stem_of(Path(picture.name)))
        if mask is not None:
            self._used.add(mask)
        return mask

    def without_a_picture(self) -> Iterator[Finding]:
        """To be asked when all pictures have been."""
        for mask in (*self._beside.values(), *self._apart.values()):
            if mask not in self._used:
                yield found("stray-mask", "no picture has this name", where=str(mask))


def _files_below(root: Path, findings: list[Finding]) -> list[Path]:
    def unreadable(error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        findings.append(found("unreadable-folder", f"the masks cannot be read: {reason}", where=str(error.filename)))

    walk = os.walk(root, onerror=unreadable)
    return sorted(Path(parent, name) for parent, _, names in walk for name in names)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _ENDINGS


def checked_mask(mask: Path, picture: Path, size: Size) -> tuple[Image.Image, str]:
    """The mask in the size of its picture, and what is wrong with it, if anything, that does no harm to the run.

    Raises:
        DataError: it cannot be read, or its shape is another one than the picture's.
    """
    image = read_mask(mask, picture)
    if abs(image.width * size[1] / (image.height * size[0]) - 1) > _SAME_SHAPE:
        raise DataError(
            f"the mask has {image.width} x {image.height} pixels, the picture {size[0]} x {size[1]}: another shape",
            where=str(mask),
            hint="save it in the size of its picture",
            check="bad-mask",
        )
    if image.size != size:
        image = image.resize(size, Image.Resampling.BOX)
    low, high = image.getextrema()
    told = "the mask is black all over: all of it counts as what is outside of masks" if high == 0 else ""
    return image, told or ("the mask is white all over: it changes nothing" if low == 255 and mask != picture else "")


def on_tokens(mask: Image.Image, width: int, height: int, crop: Crop, multiple: int) -> torch.Tensor:
    """The mask of a crop as ``[1, h, w]`` from 0 to 1: the mean over each token's square of ``multiple`` pixels."""
    import torch

    box = crop_box(mask.size, width, height, crop)
    grid = mask.resize((width // multiple, height // multiple), Image.Resampling.BOX, box=box)
    if crop.mirrored:
        grid = grid.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(grid, dtype=np.float32) / 255)[None]
