"""``[captioning]``: who captions the pictures, and how the captions are worded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fluxtune.config.base import Section, setting


class CaptioningConfig(Section):
    """What `fluxtune caption` reads."""

    captioner: str = setting(
        "blip",
        "Model that captions: blip, blip-2, florence-2, qwen-vl, smolvlm, joycaption, nano (small, ships with "
        "fluxtune, knows painted pictures only), or a hub id or folder of a transformers model.",
        path="path or id",
    )
    revision: str | None = setting(None, "Branch, tag or commit of the captioner on the hub.")
    prompt: str | None = setting(
        None,
        "What the captioner is asked: an instruction, a task of Florence-2 such as <CAPTION>, or for BLIP the "
        "beginning of the caption; {class_word} in it is dataset.class_word. None is the family's own.",
        min_length=1,
    )
    max_tokens: Annotated[int, Field(ge=4, le=2048)] | None = setting(
        None, "Longest caption in the captioner's tokens; None is the family's own."
    )
    precision: Literal["auto", "fp32", "bf16", "int8", "nf4"] = setting(
        "auto",
        "How the captioner is held: auto is bf16 on a card and fp32 on a processor; int8 and nf4 (bitsandbytes) fit "
        "big ones on small cards.",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where the captioner works.")
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = setting(
        None, "Pictures that are captioned at once; None finds the fastest number that fits in memory."
    )
    existing: Literal["keep", "skip", "overwrite"] = setting(
        "keep",
        "Pictures that have a caption: keep writes only missing and empty ones, skip leaves empty caption files alone, "
        "too, overwrite captions all anew (the old captions are kept for --undo).",
    )
    prefix: str = setting("", "Put in front of each new caption, those of regularization pictures, too.")
    suffix: str = setting(
        "", "Put behind each new caption, with a space between unless it begins with a mark such as a comma."
    )
    template: str | None = setting(
        None,
        "Wording of each new caption, with {caption}, {trigger} (for regularization pictures the class word), "
        "{class_word}, {name} (of the file) and {folder}; None is the caption, its class word replaced by the trigger, "
        "or the trigger in front of it.",
        min_length=1,
    )
