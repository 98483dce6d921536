"""``[sampling]``: how ``fluxtune sample`` makes pictures, beside what ``[previews]`` says of previews too."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, setting


class SamplingConfig(Section):
    """Pictures of ``fluxtune sample``."""

    negative_prompt: str | None = setting(
        None,
        "What pictures are to be led away from, by true guidance: each denoising step is computed twice then. Empty "
        "text leads away from pictures of no prompt.",
    )
    true_guidance: float = setting(
        2.0, "How far pictures are led away from the negative prompt, where there is one.", gt=1.0, le=100.0
    )
    strength: float = setting(
        0.6,
        "How much of a start picture is painted over: near 0 hardly anything, at 1 everything.",
        gt=0.0,
        le=1.0,
    )
    wildcards: str | None = setting(
        None,
        "Folder of text files: __colour__ in a prompt becomes a line of colour.txt, drawn by the picture's seed.",
        path="path",
    )
    format: Literal["png", "jpeg", "webp"] = setting(
        "png", "File format of pictures; all three say how a picture was made. Grids are always PNG."
    )
    quality: int = setting(92, "Quality of JPEG and WebP.", ge=1, le=100)
    batch_size: int = setting(
        1, "How many pictures are made at once, where they differ in prompt and seed alone.", ge=1, le=64
    )
    compile: bool = setting(
        False,
        "Compile the transformer's blocks with torch.compile: the first picture of each size takes longer, the others "
        "less. The last bits of pictures can differ from those made without.",
    )
