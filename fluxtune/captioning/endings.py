"""Texts that end where a model's tokens ran out, cut back to their last whole sentence."""

from __future__ import annotations

import re
from typing import Any

import torch

# A sentence's last sign, with what closes behind it; then the text ends, or the next word begins.
_END = re.compile(r"""(?P<stop>[.!?])["'”’)\]]*(?=\s+["'“‘(\[]*(?P<next>\w)|\s*$)|[。！？]""")
_NO_PART_OF_A_WORD = re.compile(r"[^\w.]")
_ABBREVIATIONS = re.compile(
    r"a\.m|approx|apt|ave|blvd|ca|capt|cf|co|col|corp|dept|dr|e\.g|est|fig|ft|gen|gov|i\.e|inc|jr|lt|ltd|mme|mrs?|ms|mt|"
    r"nos?|p\.m|ph\.d|pp|prof|rev|sgt|sr|st|u\.k|u\.s|vol|vs",
    re.IGNORECASE,
)


def ran_out(model: Any, tokenizer: Any, ids: torch.Tensor, max_tokens: int) -> list[bool]:
    """Of each row of generated ids `[pictures, tokens]`: whether the limit ended it, and not the model.

    A row that the model ended goes on in padding, so the last token of each tells.
    """
    ends = torch.tensor(sorted(_end_ids(model, tokenizer)), device=ids.device)
    # Such a model (BART's kin) gets an end token put into the last place, finished or not.
    forced = model.generation_config.forced_eos_token_id is not None and ids.shape[1] > max_tokens
    last = ids[:, -2 if forced and model.config.is_encoder_decoder else -1]
    return (~torch.isin(last, ends)).tolist()


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text or fill its row; models within the model (BLIP-2's language model) may have their own."""
    ends = set(tokenizer.all_special_ids)
    for part in model.modules():
        end = getattr(getattr(part, "generation_config", None), "eos_token_id", None)
        ends.update(end if isinstance(end, list) else [] if end is None else [end])
    return ends


def without_unfinished_sentence(text: str, beginning: str = "") -> str:
    """The text up to the end of its last whole sentence, or all its words where there is no such end.

    Args:
        beginning: what the text may begin with that was not generated, and so is not searched for ends.
    """
    start = len(beginning) if text.lower().startswith(beginning.lower()) else 0
    ends = [match.end() for match in _END.finditer(text, start) if _ends_a_sentence(match)]
    return text[: ends[-1]] if ends else text.rstrip(" \n,;:-–—")


def _ends_a_sentence(match: re.Match[str]) -> bool:
    if match["next"] and not match["next"].isupper():
        return False
    word = _NO_PART_OF_A_WORD.split(match.string[: match.start()])[-1]
    is_initial = len(word) == 1 and word.isupper()
    return match["stop"] != "." or not (is_initial or _ABBREVIATIONS.fullmatch(word))
