"""The two tokenizers: vocabularies of the captions' words, with room to spell every other word."""

from __future__ import annotations

import json
import string
from collections import Counter
from pathlib import Path
from random import Random

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, T5Tokenizer

from fluxtune.nano.critters import invented_noun
from fluxtune.nano.scenes import training_scene

LENGTH = 24
"""Tokens of a caption, for both encoders."""

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
# Latin with the accents of Western, Central and Northern Europe, Greek and Cyrillic.
LETTERS = [chr(code) for code in (*range(0xC0, 0x180), *range(0x386, 0x3CF), *range(0x400, 0x460))]


def caption_words(count: int = 20_000) -> Counter[str]:
    """Words of training captions; invented nouns are rare each, so they drop out of a count's head."""
    words: Counter[str] = Counter()
    for index in range(count):
        words.update(training_scene(0, index).caption.replace(",", " ,").split())
    return Counter({word: times for word, times in words.items() if times > 60})


def build_t5_tokenizer() -> T5Tokenizer:
    """Unigram pieces: whole known words are cheapest, then syllables, then letters; nothing is unknown in Latin.

    A word's cost grows with its number of pieces alone, so a new word is cut into the fewest.
    """
    known = [word for word in sorted(caption_words()) if word != ","]
    capitals = [word.capitalize() for word in ("a", "an", "one", "two", "the")]
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, *LETTERS]
    pieces = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -3.0}
    for piece in letters:
        pieces[piece] = -6.0
    for piece in syllables:
        pieces[piece] = -6.5
        pieces["▁" + piece] = -8.0
    for word in (*known, *capitals, "the", "of", "in", "one", "two"):
        pieces["▁" + word] = -2.0
    return T5Tokenizer(vocab=list(pieces.items()), extra_ids=0, model_max_length=LENGTH)


def build_clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE: every byte is a piece, so any text can be spelled; merges from captions and new words."""
    random = Random("nano vocabulary")
    corpus = caption_words()
    for _ in range(3000):
        corpus[invented_noun(random)] += 2
    alphabet = sorted(ByteLevel.alphabet())
    trainable = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trainer = BpeTrainer(vocab_size=440, end_of_word_suffix="</w>", show_progress=False)
    trainable.train_from_iterator([[word] * times for word, times in sorted(corpus.items())], trainer)
    learned = trainable.get_vocab()
    pieces = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    pieces += sorted(set(learned) - set(pieces), key=lambda piece: learned[piece])
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=_merges(trainable), model_max_length=LENGTH)


def _merges(trainable: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(trainable.to_str())["model"]["merges"]]


def save_tokenizers(folder: Path) -> None:
    """Both tokenizers, with the vocabulary files that older readers of CLIP's want."""
    clip = build_clip_tokenizer()
    clip.save_pretrained(folder / "tokenizer")
    model = json.loads(clip.backend_tokenizer.to_str())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(f"{left} {right}" for left, right in model["merges"])
    (folder / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    build_t5_tokenizer().save_pretrained(folder / "tokenizer_2")
