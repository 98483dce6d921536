"""Vision-language models that are asked in a chat: Qwen-VL, SmolVLM, LLaVA and its kin such as JoyCaption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from fluxtune.captioning.family import Family
from fluxtune.errors import BaseModelError

PROMPT = (
    "Caption this picture for the training of an image generator, in one paragraph of at most 80 words. Begin with the "
    "main subject and what it does, then say where it is, what else is there, the light, the colours, the angle and "
    "the style of the picture. Tell only what can be seen, in plain statements without opinions; no title, no list, "
    "no introduction such as 'the image shows'."
)
NAMING = ' Call the main subject "{}" and leave its own looks out: they belong to that word.'

_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)


def inputs(processor: Any, images: Sequence[Image.Image], prompt: str | None) -> Any:
    """Chats in which the prompt is asked, each of one picture.

    Raises:
        BaseModelError: the model has no chat template, so it does not take instructions; or it takes no picture.
    """
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    question = _rendered(processor, prompt or PROMPT)
    return processor(
        text=[question] * len(images), images=[[image] for image in images], padding=True, return_tensors="pt"
    )


def _rendered(processor: Any, prompt: str) -> str:
    """The chat as text with the picture's token in it: templates take a message's parts, or only its text."""
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise BaseModelError(
            "this model has no chat template, so it cannot be asked for a caption",
            hint="choose one that follows instructions (often named -Instruct or -it)",
        )
    parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    token = str(processor.image_token)
    refused = None
    for content in (parts, prompt, f"{token}\n{prompt}"):
        try:
            text = _chat(processor, template, content)
        except (TemplateError, TypeError, ValueError) as error:
            refused = error
            continue
        if text.count(token) == 1 and prompt.strip() in text and str(parts) not in text:
            return text
    reason = f": {refused}" if refused else ""
    raise BaseModelError(
        f"this model's chat template has no place for a picture ({token}) and a prompt{reason}",
        hint="choose another captioner",
    )


def _chat(processor: Any, template: str, content: Any) -> str:
    return str(
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    )


FAMILY = Family(
    "vision-language model",
    (),
    lambda class_word: PROMPT + (NAMING.format(class_word) if class_word else ""),
    200,
    inputs,
    beams=1,
    said=lambda text, prompt: _THOUGHTS.sub("", text).strip(),
    goes_on=True,
)
