"""Which layers get an adapter, as words that stand in or at the end of their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

BLOCKS = ["transformer_blocks.*", "single_transformer_blocks.*"]
"""All linear layers of the blocks, those of the modulation among them."""

ATTENTION_AND_DOUBLE_MLP = [
    "*attn.to_[qkv]",
    "*attn.to_out.0",
    "*attn.add_[qkv]_proj",
    "*attn.to_add_out",
    "*ff.net.0.proj",
    "*ff.net.2",
    "*ff_context.net.0.proj",
    "*ff_context.net.2",
]
"""What diffusers' script takes by default: attention of all blocks, MLP of the double ones."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn.",),
    "attention+mlp": ("attn.", "ff.net.", "ff_context.net.", "proj_mlp", "proj_out"),
}
"""Words that stand in the names of the layers of our groups."""

_OF_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_OF_MLP = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")
ENDS: Mapping[str, tuple[str, ...]] = {
    "attention": tuple(f"attn.{name}" for name in _OF_ATTENTION),
    "attention+mlp": (*(f"attn.{name}" for name in _OF_ATTENTION), *_OF_MLP),
}
"""Words at which the names of the layers of our groups end."""

_SET = re.compile(r"\[([^]!]+)\]")


def words(targets: str | Sequence[str], groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The words of a group or of patterns; of a pattern the longest piece without a wildcard, or what it ends with.

    Args:
        groups: ``PARTS`` or ``ENDS``; a group that is not in it has no words.
    """
    if isinstance(targets, str):
        return list(groups.get(targets, ()))
    found = []
    for pattern in targets:
        for spread in _spread(pattern):
            pieces = re.split(r"[*?]+", spread)
            found.append(
                pieces[-1].removeprefix(".") or max(pieces, key=len) if groups is ENDS else max(pieces, key=len)
            )
    return list(dict.fromkeys(filter(None, found)))


def targets(given: Sequence[str], groups: Mapping[str, tuple[str, ...]]) -> str | list[str]:
    """The group whose words these are, or patterns of layers that have one of them in or at the end of their name."""
    for group, known in groups.items():
        if set(given) == set(known):
            return group
    return [f"*{word}" if groups is ENDS else f"*{word}*" for word in given]


def _spread(pattern: str) -> list[str]:
    """``to_[qk]`` -> ``to_q``, ``to_k``"""
    match = _SET.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [each for letter in match[1] for each in _spread(f"{before}{letter}{after}")]
