"""``[dataset]``: the pictures, and how they become batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fluxtune.config.base import Section, setting

Resolution = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
_NOT_BLANK = "text that is not blank"


NO_FOLDERS = ("auto", "alpha", "none")
"""Values of ``masks`` that name no folder, even where one is called so."""


class FolderConfig(Section):
    """One ``[[dataset.folders]]`` row."""

    path: str = setting(
        help="Folder of pictures with .txt captions beside them, nano:demo for the demo set, or a file that describes "
        "a data set: kohya's TOML, ai-toolkit's YAML, SimpleTuner's or OneTrainer's JSON.",
        path="path",
    )
    repeats: int = setting(1, "How often each picture of this folder is seen in an epoch.", ge=1, le=1000)
    kind: Literal["train", "regularization"] = setting(
        "train",
        "What the pictures are: of the subject, or others of its class, which keep what the model knows of it "
        "(they get no trigger word).",
    )
    weight: float = setting(1.0, "How much the loss of these pictures counts.", gt=0.0, le=10.0)
    masks: str = setting(
        "auto",
        "Where the masks are (white is learned): auto takes NAME-masklabel.png beside a picture, alpha its "
        "transparency, none no mask; or a folder with masks of the same names.",
        path="path or id",
    )
    captions: str = setting(
        "auto",
        "Where the captions are: auto takes .txt and .caption files beside the pictures and metadata files; an ending "
        "such as .txt takes files with that one alone; names takes the pictures' names; none takes nothing.",
        form='"auto", "names", "none" or the ending of caption files, such as ".txt"',
        pattern=r"^(auto|names|none|\.[A-Za-z0-9_.-]+)$",
    )
    default_caption: str = setting("", "Caption of the pictures that have none.")
    caption_prefix: str = setting("", "What is put in front of each caption of this folder, with a space between.")
    caption_suffix: str = setting("", "What is put behind each caption of this folder, with a space between.")
    caption_lines: Literal["all", "first"] = setting(
        "all", "What counts of a caption file with several lines: all of them, joined, or the first."
    )
    nested: bool = setting(True, "Read the folders within this one, too.")
    folder_names: bool = setting(
        True, 'Take the name of a folder for what it means to kohya\'s trainers: "10_zorvex dog".'
    )


class DatasetConfig(Section):
    """Settings shared by all folders of pictures."""

    folders: list[FolderConfig] = setting([], "Folders of pictures; `fluxtune train FOLDER` is one such row.")
    resolution: list[Resolution] = setting(
        [1024],
        "Training resolutions: the side of the square with as many pixels as each picture gets. With several, "
        "every picture is seen at each of them.",
        unit="px",
        min_length=1,
    )
    buckets: bool = setting(
        True, "Keep each picture's shape, cropped to the nearest bucket; off crops every picture to a square."
    )
    max_aspect: float = setting(2.0, "The most elongated bucket, as long side over short side.", ge=1.0, le=4.0)
    upscale: bool = setting(
        True, "Enlarge pictures that are smaller than their bucket; off leaves them out at that resolution."
    )
    crops: int = setting(
        1,
        "Crops of each picture that are trained on: the central one, and others that are moved and zoomed by chance, "
        "so that a subject is not learned at one place alone.",
        ge=1,
        le=1000,
    )
    crop_jitter: float = setting(
        0.1, "The most that a crop beyond the first leaves out of each side, as a share of it.", ge=0.0, le=0.5
    )
    colour_jitter: float = setting(
        0.0,
        "How much brightness, contrast and saturation of a crop beyond the first are changed at most, up or down, as a "
        "share of them (hue by a twentieth of it): not for what is told by its colour.",
        ge=0.0,
        le=0.5,
    )
    flip: bool = setting(
        False,
        "Train on each crop mirrored, too, with left and right changing places in its caption: not for what has a "
        "side, such as text, logos and faces.",
    )
    trigger: str | None = setting(
        None,
        "Word that shall mean the subject; put in front of each caption that lacks it.",
        form=_NOT_BLANK,
        pattern=r"\S",
    )
    class_word: str | None = setting(
        None,
        "What kind of thing the subject is (person, dog, mug); stands for the trigger in preservation.",
        form=_NOT_BLANK,
        pattern=r"\S",
    )
    missing_captions: Literal["error", "trigger", "caption"] = setting(
        "error",
        "Pictures without a caption: error refuses them, trigger captions them with the trigger word alone, caption "
        "asks captioning.captioner (what it says is kept in the cache; nothing is written beside the pictures).",
    )
    unmasked_weight: float = setting(
        0.1, "How much the loss counts where a mask is black; where it is white it counts 1.", ge=0.0, le=1.0
    )
    caption_dropout: float = setting(0.05, "Share of samples whose caption is left empty.", ge=0.0, le=1.0)
    background: str = setting(
        "#ffffff",
        "Colour that transparent pictures are laid on.",
        form='a colour written "#rrggbb"',
        pattern="^#[0-9a-fA-F]{6}$",
    )

    @field_validator("resolution", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value
