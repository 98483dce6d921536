"""``[metadata]``: what the LoRA file says of itself, beside how it was trained."""

from __future__ import annotations

from fluxtune.config.base import Section, setting


class MetadataConfig(Section):
    """What user interfaces and sites show of the file.

    No path, file name or caption is in its header unless it is asked for here.
    """

    author: str = setting("", "Who made the LoRA; empty says nothing of that.", max_length=200)
    description: str = setting(
        "", "What the LoRA is for; empty says the base model, the steps and the number of pictures.", max_length=2000
    )
    license: str = setting("", "Licence of the LoRA; empty means the base model's where it is known.", max_length=200)
    tags: list[str] = setting([], "Words that the LoRA is found by.", max_length=50)
    thumbnail: bool = setting(False, "Put the first of the last previews into the file, as a JPEG of 256 px.")
    caption_words: bool = setting(
        False,
        "Put into the file how often each part of the captions between commas occurs (`ss_tag_frequency`). Whoever "
        "has the file can then read words of your captions.",
    )
