"""What was found, as tables in README and docs: between comments, so that the text around them is a person's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_HELD = {"fp32": "fp32", "bf16": "bf16", "int8": "8-bit", "int8-weights": "8-bit", "fp8": "fp8", "nf4": "NF4"}
_GIB, _MB = 2**30, 10**6


def tables_of(figures: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by the name that its comments have."""
    return {
        "presets": _presets(figures["presets"]),
        "phases": _phases(figures["presets"]),
        "blocks": _blocks(figures["blocks"]),
        "kept": _kept(figures["kept"]),
    }


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with what stands between ``<!-- memory NAME: ... -->`` and ``<!-- /memory NAME -->`` made anew."""
    for name, table in tables.items():
        between = re.compile(rf"(<!-- memory {name}: [^>]*-->\n).*?(<!-- /memory {name} -->)", re.DOTALL)
        # No template: a table may hold what reads as a reference in one.
        parts = between.split(page)
        page = page if len(parts) == 1 else f"{parts[0]}{parts[1]}{table}\n{parts[2]}{parts[3]}"
    return page


def _presets(presets: Mapping[str, Any]) -> str:
    head = ("preset", "base held in", "pixels", "batch", "peak, GiB", "reserved, GiB", "computed again", "blocks keep")
    rows = []
    for name, each in presets.items():
        memory = each["memory"]
        rows.append(
            (
                f"`{name}`",
                _HELD[memory["base_precision"]],
                str(each["pixels"]),
                str(each["batch"]),
                f"{each['peak'] / _GIB:.1f}",
                f"{each['reserved'] / _GIB:.1f}",
                f"{each['recomputed_share']:.0%}" if memory["recompute"] != "none" else "nothing",
                _kept_blocks(each),
            )
        )
    return _table(head, rows, numbers=range(2, 7))


def _kept_blocks(preset: Mapping[str, Any]) -> str:
    """``40 attention, 14 products, 1 everything``"""
    memory, number = preset["memory"], preset["blocks"]
    if memory["recompute"] == "none":
        return f"everything: {number}"
    kept = {name: sum(numbers) for name, numbers in memory["keep"].items()}
    kept["input alone"] = number - sum(kept.values())
    return ", ".join(f"{name}: {count}" for name, count in kept.items() if count)


def _phases(presets: Mapping[str, Any]) -> str:
    phases = [each["phase"] for each in next(iter(presets.values()))["phases"]]
    head = ("preset", *phases, "text encoders in", "system memory, GB")
    rows = []
    for name, each in presets.items():
        peaks = [f"{phase['peak'] / _GIB:.2f}" for phase in each["phases"]]
        system = sum(each["system"].values()) / 10**9
        rows.append((f"`{name}`", *peaks, _HELD[each["memory"]["text_precision"]], f"{system:.1f}" if system else "0"))
    return _table(head, rows, numbers=(*range(1, len(phases) + 1), len(phases) + 2))


def _blocks(kinds: Sequence[Mapping[str, Any]]) -> str:
    titles = [f"a {_kind(each)} block" for each in kinds]
    head = ("what a block keeps", *(f"{title}{what}" for title in titles for what in (" holds, MB", " computes again")))
    rows = []
    for kept in kinds[0]["held"]:
        cells = []
        for each in kinds:
            cells += [f"{each['held'][kept] / _MB:.0f}", f"{each['recomputed_share'][kept]:.0%}"]
        rows.append((f"`{kept}`" if kept != "nothing" else "its input alone", *cells))
    return _table(head, rows, numbers=range(1, len(head)))


def _kind(block: Mapping[str, Any]) -> str:
    return "single" if "single" in block["kind"] else "double"


def _kept(points: Sequence[Mapping[str, int]]) -> str:
    head = ("blocks that keep products", "added up, GiB", "simulated, GiB", "difference")
    rows = [
        (
            str(each["blocks"]),
            f"{each['foretold'] / _GIB:.3f}",
            f"{each['simulated'] / _GIB:.3f}",
            f"{each['foretold'] / each['simulated'] - 1:+.3%}",
        )
        for each in points
    ]
    return _table(head, rows, numbers=range(4))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    rule = ["---:" if column in numbers else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
