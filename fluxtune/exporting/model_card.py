"""A LoRA's model card: ``README.md`` as the hub reads it (https://huggingface.co/docs/hub/model-cards).

What comes from files (names, triggers, prompts, descriptions) is text here, and never markup: it is escaped for YAML,
for Markdown and HTML, or for the language of a code block.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

import yaml

from fluxtune.hub.licenses import License
from fluxtune.nano import EMBEDDED

_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_READ_BY_DIFFUSERS = ("diffusers", "ai-toolkit")


@dataclass(frozen=True)
class Sample:
    """A sample picture: its file beside the card, and the prompt that it was made with, where that may be told."""

    file: str
    prompt: str | None = None


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        base: a hub id, ``nano``, or the bare name of a model that is neither; empty where nobody knows.
        file: the LoRA's name beside the card; ``format`` is whose names it uses.
        repository: where the card will lie on the hub; None for a folder.
        steps, guidance: a picture of the base model usually takes.
        training: what was trained how, in the order of the table.
        hashes: name -> digits.
    """

    title: str
    base: str
    license: License | None
    trigger: str
    description: str
    author: str
    tags: Sequence[str]
    file: str
    format: str
    repository: str | None
    steps: int
    guidance: float
    samples: Sequence[Sample] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_on_hub(self) -> bool:
        """Whether the base model is one of the hub's."""
        return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+", self.base) is not None

    @property
    def example(self) -> str:
        """A prompt to try it with."""
        told = next((sample.prompt for sample in self.samples if sample.prompt), None)
        return line(told or (f"a photo of {self.trigger}" if self.trigger else "a photo"))


def text_of(card: Card) -> str:
    """The card as the content of ``README.md``."""
    header = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True, width=1000)
    parts = [f"---\n{header}---", f"# {escaped(card.title)}"]
    if card.samples:
        # The hub shows the pictures of the header here.
        parts.append("<Gallery />")
    if card.description:
        parts.append(escaped(card.description))
    if card.author:
        parts.append(f"By {escaped(card.author)}.")
    if card.trigger:
        parts.append(f"## Trigger\n\nPut {code(card.trigger)} into the prompt.")
    parts += ["## Use", *_use(card)]
    parts += ["## Training", _table(card.training)] if card.training else []
    parts += ["## File", f"{code(card.file)}, in the format of {escaped(card.format)}.", _table(card.hashes)]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Card) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if card.license is not None:
        values["license"] = card.license.identifier
        if card.license.name:
            values |= {"license_name": card.license.name, "license_link": card.license.link}
    if card.is_on_hub:
        values |= {"base_model": card.base, "base_model_relation": "adapter"}
    values |= {"pipeline_tag": "text-to-image", "library_name": "diffusers"}
    values["tags"] = list(dict.fromkeys([*_TAGS, *filter(None, map(line, card.tags))]))
    if card.trigger:
        values["instance_prompt"] = line(card.trigger)
    if card.samples:
        # The hub wants a text for each picture, and takes a dash for none.
        rows = [{"text": line(each.prompt or "") or "-", "output": {"url": each.file}} for each in card.samples]
        values["widget"] = rows
    return {name: value for name, value in values.items() if value is not None}


_TAGS = ("text-to-image", "flux", "lora", "diffusers", "template:sd-lora", "fluxtune")


def _use(card: Card) -> list[str]:
    parts = []
    if card.is_on_hub and card.format in _READ_BY_DIFFUSERS:
        place = [card.repository, card.file] if card.repository else [card.file]
        named = literal(place[0]) + (f", weight_name={literal(place[1])}" if len(place) > 1 else "")
        lines = [
            "import torch",
            "from diffusers import FluxPipeline",
            "",
            f'pipeline = FluxPipeline.from_pretrained({literal(card.base)}, torch_dtype=torch.bfloat16).to("cuda")',
            f"pipeline.load_lora_weights({named})",
            f"prompt = {literal(card.example)}",
            f"picture = pipeline(prompt, num_inference_steps={card.steps}, guidance_scale={card.guidance:g}).images[0]",
            'picture.save("picture.png")',
        ]
        parts.append("With diffusers:\n\n" + block("python", lines))
    base = f" --base {card.base}" if card.is_on_hub or card.base == EMBEDDED else ""
    here = quote(f"./{line(card.file)}")
    sample = f"fluxtune sample {quote(card.example)}{base} --lora {here}"
    parts.append("With fluxtune:\n\n" + block("bash", [sample]))
    if card.format not in _READ_BY_DIFFUSERS:
        convert = f"fluxtune export {here} --format diffusers"
        parts.append("For diffusers, write it in another format first:\n\n" + block("bash", [convert]))
    if card.base != EMBEDDED:
        parts.append(
            f"In ComfyUI, put {code(card.file)} into `models/loras` and choose it in a *Load LoRA* node, strength 1."
        )
    return parts


def line(text: str) -> str:
    """Text on one line, without control characters and what turns the direction of writing around."""
    shown = " ".join(text.encode("utf-8", "replace").decode().split())
    return "".join(each for each in shown if unicodedata.category(each) != "Cc" and each not in _DIRECTIONS)


def escaped(text: str) -> str:
    """Text from a file as Markdown shows it: no markup, no HTML, on one line."""
    shown = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", html.escape(line(text), quote=False))
    # At its beginning these make lists, quotations and headings.
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(r"^([-+=:])", r"\\\1", shown))


def code(text: str) -> str:
    """Text as inline code, fenced by more backticks than it holds."""
    shown = line(text)
    fence = "`" * (1 + _longest_run(shown))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def literal(text: str) -> str:
    """Text as a string of Python."""
    return json.dumps(line(text), ensure_ascii=False)


def block(language: str, lines: Sequence[str]) -> str:
    """Lines as a code block, fenced by more backticks than they hold."""
    fence = "`" * max(3, 1 + max(map(_longest_run, lines)))
    return "\n".join([f"{fence}{language}", *lines, fence])


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {escaped(name)} | {escaped(rows[name])} |" for name in rows)])
