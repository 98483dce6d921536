from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_captioners
import torch
from PIL import Image

from fluxtune.captioning.captioner import family_of, prompt_for
from fluxtune.captioning.endings import ran_out, without_unfinished_sentence
from fluxtune.captioning.family import caption
from fluxtune.captioning.load import load_model, model_type_of
from fluxtune.config.schema import Config

PICTURE = Image.linear_gradient("L").resize((96, 80)).convert("RGB")


@pytest.mark.parametrize(
    ("cut_off", "kept"),
    [
        ("A dog sits. It looks at the", "A dog sits."),
        ("A dog sits! Is it wet? It looks at", "A dog sits! Is it wet?"),
        ("A dog sits. Dr. Brown looks at St. Mary", "A dog sits."),
        ("A dog sits on the corner of Main St. and looks at", "A dog sits on the corner of Main St. and looks at"),
        ("Fruit, e.g. Apples and", "Fruit, e.g. Apples and"),
        ("Cats vs. Dogs, painted by", "Cats vs. Dogs, painted by"),
        ("A portrait of J. Smith in oil", "A portrait of J. Smith in oil"),
        ("A sign says 3.5 km and", "A sign says 3.5 km and"),
        ('A sign says "Stop." The car', 'A sign says "Stop."'),
        ("a dog. it sits", "a dog. it sits"),
        ("A dog sits. It looks up.", "A dog sits. It looks up."),
        ("A dog sits. It looks at a man called Dr.", "A dog sits."),
        ("a man in a red hat, a blue coat,", "a man in a red hat, a blue coat"),
        ("Un chien. À côté, un", "Un chien."),
        ("一只狗坐着。它看着", "一只狗坐着。"),
        ("", ""),
    ],
)
def test_a_sentence_that_was_cut_off_is_dropped(cut_off: str, kept: str) -> None:
    assert without_unfinished_sentence(cut_off) == kept


def test_a_sentence_of_the_prompt_is_no_reason_to_drop_all_that_follows() -> None:
    assert without_unfinished_sentence("This is art. a dog on a", "This is Art.") == "This is art. a dog on a"
    assert without_unfinished_sentence("This is art. A dog. A c", "This is art.") == "This is art. A dog."


@pytest.mark.parametrize("family", ["blip-2", "llava", "qwen-vl", "smolvlm"])
def test_only_texts_that_the_model_did_not_end_ran_out(folders: dict[str, Path], family: str) -> None:
    loaded = load_model(folders[family], "fp32", "cpu")
    ids = torch.tensor([[1, 5, 6, 7], [1, 5, 2, 0], [1, 5, 6, 2]])
    assert ran_out(loaded.model, loaded.processor.tokenizer, ids, 3) == [True, False, False]


def test_an_end_that_florence_is_forced_to_at_the_limit_is_none(folders: dict[str, Path]) -> None:
    loaded = load_model(folders["florence-2"], "fp32", "cpu")
    assert loaded.model.generation_config.forced_eos_token_id == 2
    ids = torch.tensor([[2, 5, 6, 2], [2, 5, 2, 0]])
    tokenizer = loaded.processor.tokenizer
    assert ran_out(loaded.model, tokenizer, ids, 3) == [True, False]
    assert ran_out(loaded.model, tokenizer, ids, 8) == [False, False]


def test_the_end_of_a_model_within_the_model_counts(folders: dict[str, Path]) -> None:
    loaded = load_model(folders["blip-2"], "fp32", "cpu")
    loaded.model.language_model.generation_config.eos_token_id = [42]
    assert ran_out(loaded.model, loaded.processor.tokenizer, torch.tensor([[1, 42], [1, 43]]), 8) == [False, True]


@pytest.mark.parametrize("family", tiny_captioners.FAMILIES)
def test_every_family_drops_what_the_limit_cut_off_and_nothing_else(folders: dict[str, Path], family: str) -> None:
    config = Config.model_validate({"captioning": {"captioner": str(folders[family]), "max_tokens": 20}})
    kind = family_of(model_type_of(folders[family]))
    loaded = load_model(folders[family], "fp32", "cpu")
    loaded.model.generate = lambda **given: written(loaded.processor.tokenizer, given if kind.goes_on else {})
    texts = caption(kind, loaded, [PICTURE] * 2, prompt_for(kind, config), 20)
    assert texts == ["A dog sits.", "A dog. It looks"]


def written(tokenizer: Any, given: dict[str, Any]) -> torch.Tensor:
    """Rows of tokens as `generate` returns them: one that was cut off at its limit, and one that the model ended."""
    texts = ["A dog sits. It looks", "A dog. It looks</s>"]
    rows = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt").input_ids
    begin = given.get("input_ids", torch.full((2, 1), tokenizer.eos_token_id))
    return torch.cat([begin, rows], dim=1)
