"""From what a captioner says to the caption that is written: tidied, with the trigger word, prefix and suffix."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.schema import Config
from fluxtune.dataset.captions import has_trigger, tidy, with_trigger
from fluxtune.errors import UsageError

# What captioners begin with although every caption is of a picture, and image generators need not be told.
_INTRODUCTION = re.compile(
    r"^(?:certainly[!,.] |sure[!,.] |caption: )?"
    r"(?:in (?:the|this) (?:image|picture|photo|photograph),? we (?:can )?see"
    r"|(?:the|this) (?:image|picture|photo|photograph)"
    r" (?:shows|depicts|features|captures|presents|displays|portrays|is of)) ",
    re.IGNORECASE,
)
_PLACEHOLDERS = ("caption", "trigger", "class_word", "name", "folder")


@dataclass(frozen=True)
class Wording:
    """How captions are worded; the fields are the settings of the same names."""

    trigger: str | None = None
    class_word: str | None = None
    prefix: str = ""
    suffix: str = ""
    template: str | None = None

    @classmethod
    def of(cls, config: Config, is_subject: bool = True) -> Wording:
        """The wording that the settings ask for; pictures that are not of the subject get no trigger.

        Raises:
            UsageError: the template has a placeholder that there is not, or cannot be read.
        """
        chosen, dataset = config.captioning, config.dataset
        _check(chosen.template)
        if not is_subject:
            return cls()
        return cls(dataset.trigger, dataset.class_word, chosen.prefix, chosen.suffix, chosen.template)

    def __call__(self, said: str, picture: Path) -> str:
        """The caption of a picture of which the captioner said that; one tidy line."""
        caption = finished(tidy(said))
        if self.trigger and self.class_word:
            caption = named(caption, self.class_word, self.trigger)
        if self.template is not None:
            filled = self.template.format(
                caption=caption,
                trigger=self.trigger or "",
                class_word=self.class_word or "",
                name=picture.stem,
                folder=picture.parent.name,
            )
            return tidy(self._framed(tidy(filled)))
        framed = tidy(self._framed(caption))
        return with_trigger(framed, self.trigger) if self.trigger else framed

    def reworded(self, caption: str, picture: Path) -> str:
        """A caption that somebody wrote, with the same wording; what it already has is not added again."""
        bare = tidy(caption)
        if self.prefix.strip() and bare.startswith(tidy(self.prefix)):
            bare = bare[len(tidy(self.prefix)) :]
        if self.suffix.strip() and bare.endswith(tidy(self.suffix)):
            bare = bare[: -len(tidy(self.suffix))]
        return self(bare, picture)

    def _framed(self, caption: str) -> str:
        """With prefix and suffix, a space between unless there is one or a punctuation mark follows."""
        gap = "" if self.suffix[:1] in (*string.punctuation, "") else " "
        return f"{self.prefix} {caption}{gap}{self.suffix}"


def finished(caption: str) -> str:
    """Without an introduction such as "the image shows", and without a last sentence that was cut off."""
    shorter = _INTRODUCTION.sub("", caption)
    if shorter != caption and caption[:1].isupper():
        shorter = shorter[:1].upper() + shorter[1:]
    sentences = re.findall(r".+?[.!?](?=\s|$)", shorter)
    whole = "".join(sentences)
    # One sentence without a full stop is how short captions are.
    return whole.strip() if sentences and len(whole) < len(shorter) else shorter


def named(caption: str, class_word: str, trigger: str) -> str:
    """The caption with the trigger in each place of the class word, and the article that goes with it.

    Nothing is replaced in a caption that has the trigger already.
    """
    if has_trigger(caption, trigger):
        return caption
    article = "an" if trigger[:1].lower() in "aeiou" else "a"

    def renamed(match: re.Match[str]) -> str:
        if not match[1]:
            return trigger
        return (article.capitalize() if match[1][0].isupper() else article) + match[2] + trigger

    pattern = rf"(?<!\w)(?:(an?)(\s+))?{re.escape(tidy(class_word))}(?!\w)"
    return re.sub(pattern, renamed, caption, flags=re.IGNORECASE)


def _check(template: str | None) -> None:
    if template is None:
        return
    hint = "placeholders are " + ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the template cannot be read: {error}", where="captioning.template", hint=hint) from error
    for _, name, specification, conversion in parts:
        if name is not None and (name not in _PLACEHOLDERS or specification or conversion):
            raise UsageError(f"the template has no placeholder {{{name}}}", where="captioning.template", hint=hint)
    if not any(name == "caption" for _, name, _, _ in parts):
        raise UsageError("the template leaves the caption out", where="captioning.template", hint=hint)
