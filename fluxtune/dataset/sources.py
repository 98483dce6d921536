"""Where the caption of a picture comes from: a text file beside it, a metadata file, a folder's name, its own name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.dataset import FolderConfig
from fluxtune.dataset.captions import SUFFIXES, captions_by_stem, read_caption, stem_of, tidy
from fluxtune.dataset.findings import found, found_in
from fluxtune.dataset.layouts import KohyaFolder, Row, kohya_folder, metadata_rows, row_of
from fluxtune.errors import DataError, some_names
from fluxtune.events import Finding


@dataclass(frozen=True)
class Caption:
    """The caption of a picture: its text as in ``folder.Item``, its own file and its place, if any."""

    text: str | None
    file: Path | None = None
    place: str | None = None


def framed(caption: str, folder: FolderConfig) -> str:
    """A caption with what its folder's settings put around it."""
    return tidy(f"{folder.caption_prefix} {caption} {folder.caption_suffix}")


class Captions:
    """The captions of one folder, by the settings of its row.

    Args:
        files: those of the folder that are no masks.
        pictures: those of them that are pictures.
    """

    def __init__(
        self, folder: FolderConfig, root: Path, files: list[Path], pictures: list[Path], findings: list[Finding]
    ) -> None:
        self._folder = folder
        self._root = root
        self._findings = findings
        suffixes = {"auto": SUFFIXES, "names": (), "none": ()}.get(folder.captions, (folder.captions.lower(),))
        self.files = captions_by_stem(files, suffixes)
        self._rows = metadata_rows(files, findings) if folder.captions == "auto" else {}
        self._named = _named_folders(root, pictures, findings) if folder.folder_names else {}

    def of(self, picture: Path, name: str) -> Caption:
        """The caption of a picture that the data set calls ``name``; its text is None where it is no text."""
        folder = self._folder
        if folder.captions == "names":
            caption = Caption(tidy(picture.stem.replace("_", " ")), None, picture.name)
        else:
            caption = self._written(picture, name, self.files.get(stem_of(picture), []), row_of(picture, self._rows))
        meaning = self._named.get(picture.parent)
        if caption.text == "" and folder.default_caption:
            caption = Caption(tidy(folder.default_caption), None, f"{self._root.absolute().name}/")
        elif caption == Caption("") and meaning is not None:
            caption = Caption(meaning.caption, None, f"{picture.parent.name}/")
        if not caption.text:
            return caption
        return Caption(framed(caption.text, folder), caption.file, caption.place)

    def repeats(self, picture: Path) -> int:
        """How often a picture is seen in an epoch, by its row and the name of its folder."""
        meaning = self._named.get(picture.parent)
        return self._folder.repeats * (meaning.repeats if meaning else 1)

    def _written(self, picture: Path, name: str, files: Sequence[Path], row: Row | None) -> Caption:
        """From the text file beside the picture or from a metadata file; from both only if they say the same."""
        if len(files) > 1:
            message = f"the picture has {len(files)} captions: {some_names(file.name for file in files)}"
            self._findings.append(found("two-captions", message, where=str(picture), picture=name))
            return Caption(None, files[0], str(files[0]))
        if not files:
            return Caption("") if row is None else Caption(row.caption, None, row.place)
        try:
            text = read_caption(files[0], first_line=self._folder.caption_lines == "first")
        except DataError as error:
            self._findings.append(found_in(error, name))
            return Caption(None, files[0], str(files[0]))
        if row is not None and row.caption != text:
            message = f"the captions in {files[0].name} and at {row.place} differ"
            self._findings.append(found("two-captions", message, where=str(picture), picture=name))
            return Caption(None, files[0], str(files[0]))
        return Caption(text, files[0], str(files[0]))


def _named_folders(root: Path, pictures: list[Path], findings: list[Finding]) -> dict[Path, KohyaFolder]:
    """Folder of pictures -> what its name says, or the nearest name above it within the data set."""
    named: dict[Path, KohyaFolder] = {}
    told: set[Path] = set()
    for parent in dict.fromkeys(picture.parent for picture in pictures):
        above = [folder for folder in (parent, *parent.parents) if folder.is_relative_to(root)]
        for folder in above:
            # A folder that is given as `.` has a name, too.
            if (meaning := kohya_folder(folder.absolute().name)) is None:
                continue
            named[parent] = meaning
            if folder not in told:
                told.add(folder)
                message = (
                    f"its pictures are seen {meaning.repeats} times; {meaning.caption!r} where there is no caption"
                )
                findings.append(found("named-folder", message, where=str(folder)))
            break
    return named
