"""What the text encoders would not see of captions: words beyond their length, triggers they cannot spell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fluxtune.config.model import ModelConfig
from fluxtune.dataset.caption_checks import ESTIMATES, TokenLimit
from fluxtune.errors import BaseModelError, some_names
from fluxtune.events import Sink, Warning
from fluxtune.flux.base import Base, base_in, load_tokenizers
from fluxtune.flux.families import FLUX1
from fluxtune.hub.locate import at_hand


def warn_of_tokens(base: Base, captions: Iterable[str], trigger: str | None, on_event: Sink) -> None:
    """Say which captions are cut, and whether the trigger has letters that the long text encoder does not know.

    The long text encoder (T5) reads the words one by one; the short one (CLIP) gives but an impression of the whole,
    so what it cuts is not worth a warning.
    """
    tokenizer = load_tokenizers(base)[-1]
    if trigger and _unknown(tokenizer, trigger):
        on_event(
            Warning(
                f"the trigger word {trigger!r} has letters that the base model's text encoder does not know",
                where="dataset.trigger",
                hint="take a rare word in plain Latin letters, for instance zorvex",
            )
        )
    lengths = {caption: len(tokenizer(caption).input_ids) for caption in dict.fromkeys(captions)}
    cut = sorted((caption for caption, length in lengths.items() if length > base.text_tokens), key=lengths.__getitem__)
    if cut:
        longest = lengths[cut[-1]]
        count = f"{len(cut)} caption is" if len(cut) == 1 else f"{len(cut)} captions are"
        on_event(
            Warning(
                f"{count} longer than the {base.text_tokens} tokens that the base model reads (up to {longest}), and "
                f"cut off: {some_names((f'{caption[:40]!r}...' for caption in reversed(cut)), 3)}",
                hint="shorten them, and put what matters first",
            )
        )


def limits_at_hand(model: ModelConfig) -> tuple[list[TokenLimit], int]:
    """How to count captions for a base model, and what its sides are multiples of, without using the network.

    Returns:
        A limit for each text encoder, by the model's own tokenizers where they are on this machine, else by estimates
        for FLUX.1-dev; and the multiple in pixels.
    """
    folder = at_hand(model.base, model.revision)
    try:
        base = base_in(folder, model.base) if folder else None
        tokenizers = load_tokenizers(base) if base else []
    except BaseModelError:
        base, tokenizers = None, []
    if base is None:
        return list(ESTIMATES), FLUX1.side_multiple
    lengths = [*(int(tokenizer.model_max_length) for tokenizer in tokenizers[:-1]), base.text_tokens]
    names = [(limit.check, limit.encoder) for limit in ESTIMATES]
    return [
        TokenLimit(check, encoder, length, _counter(tokenizer), exact=True)
        for (check, encoder), length, tokenizer in zip(names, lengths, tokenizers, strict=True)
    ], base.family.side_multiple


def _counter(tokenizer: Any) -> Callable[[str], int]:
    return lambda caption: len(tokenizer(caption).input_ids)


def _unknown(tokenizer: Any, word: str) -> bool:
    return tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
