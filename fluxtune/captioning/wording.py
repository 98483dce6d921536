"""From what a captioner says to the caption that is written: tidied, with the trigger word, prefix and suffix."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from pathlib import Path

from fluxtune.config.schema import Config
from fluxtune.dataset.captions import PLACEHOLDER, has_trigger, tidy, with_class, with_trigger
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
_CLOSING = tuple(",.;:!?…)]}»”、。，；：！？）］｝」』")
"""What a suffix may begin with to stand right behind the caption."""
_GAP = "\0"
"""Where the caption goes in a template; no caption has that character."""


@dataclass(frozen=True)
class Wording:
    """How captions are worded; the fields are the settings of the same names.

    Pictures that are not of the subject get the class word wherever the wording would say the trigger.
    """

    trigger: str | None = None
    class_word: str | None = None
    prefix: str = ""
    suffix: str = ""
    template: str | None = None
    is_subject: bool = True

    @classmethod
    def of(cls, config: Config, is_subject: bool = True) -> Wording:
        """The wording that the settings ask for.

        Raises:
            UsageError: the template has a placeholder that there is not, or cannot be read.
        """
        chosen, dataset = config.captioning, config.dataset
        _check(chosen.template)
        return cls(dataset.trigger, dataset.class_word, chosen.prefix, chosen.suffix, chosen.template, is_subject)

    def __call__(self, said: str, picture: Path) -> str:
        """The caption of a picture of which the captioner said that; one tidy line."""
        return self._worded(self._named(without_introduction(self._spelled_out(said))), picture)

    def reworded(self, caption: str, picture: Path) -> str:
        """A caption that somebody wrote, with the same wording; what it already has is not added again.

        What was worded stays as it is, and so does a caption with nothing in it but the wording.
        """
        whole = self._spelled_out(caption)
        bare = self._bare(whole, picture)
        if not bare:
            return whole
        is_named = has_trigger(whole, self._own_trigger)
        return self._worded(bare if is_named else self._named(bare), picture)

    def _spelled_out(self, text: str) -> str:
        return tidy(text).replace(PLACEHOLDER, self._own_trigger or PLACEHOLDER)

    def _named(self, caption: str) -> str:
        trigger, class_word = self._own_trigger, self.class_word
        return named(caption, class_word, trigger) if trigger and class_word else caption

    def _worded(self, caption: str, picture: Path) -> str:
        if self.template is not None:
            caption = self._filled(self.template, picture).replace(_GAP, caption)
        begun = tidy(f"{self._spoken(self.prefix)} {caption}")
        framed = tidy(f"{begun}{self._before_suffix}{self._spoken(self.suffix)}")
        return with_trigger(framed, self._own_trigger) if self._own_trigger and self.template is None else framed

    def _bare(self, caption: str, picture: Path) -> str:
        """The caption without prefix, suffix and template: what `_worded` adds, taken off in the opposite order."""
        suffix, prefix = self._spoken(self.suffix), self._spoken(self.prefix)
        if suffix and f" {caption}".endswith(f"{self._before_suffix}{suffix}"):
            caption = caption.removesuffix(suffix).rstrip()
        trigger = self._own_trigger
        front = f"{trigger}, " if trigger and not has_trigger(prefix, trigger) else ""
        if prefix and f"{caption} ".startswith(f"{front}{prefix} "):
            caption = caption.removeprefix(front)
        if prefix and f"{caption} ".startswith(f"{prefix} "):
            caption = caption.removeprefix(prefix).lstrip()
        if self.template is None:
            return caption
        first, second, *more = map(re.escape, self._filled(self.template, picture).split(_GAP))
        match = re.fullmatch(r"\1".join([f"{first}(.+){second}", *more]), caption)
        return match[1].strip() if match else caption

    def _filled(self, template: str, picture: Path) -> str:
        """The template with everything but the caption, whose places stay open."""
        return self._spoken(
            template.format(
                caption=_GAP,
                trigger=(self.trigger if self.is_subject else self.class_word) or "",
                class_word=self.class_word or "",
                name=picture.stem,
                folder=picture.parent.name,
            )
        )

    def _spoken(self, text: str) -> str:
        """What the settings put around captions, as it stands there."""
        if self.trigger is None:
            return tidy(text)
        with_it = tidy(text).replace(PLACEHOLDER, self.trigger)
        return tidy(with_it if self.is_subject else with_class(with_it, self.trigger, self.class_word or ""))

    @property
    def _own_trigger(self) -> str:
        """The trigger that the caption is to have, if any."""
        return tidy(self.trigger) if self.trigger and self.is_subject else ""

    @property
    def _before_suffix(self) -> str:
        return "" if self.suffix.startswith(_CLOSING) else " "


def without_introduction(caption: str) -> str:
    """Without an introduction such as "the image shows"."""
    shorter = _INTRODUCTION.sub("", caption)
    if shorter != caption and caption[:1].isupper():
        shorter = shorter[:1].upper() + shorter[1:]
    return shorter


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
