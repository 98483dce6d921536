"""The tables of correspondences as people read them: ``python -m fluxtune.handover.tables docs/moving.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from fluxtune.handover.common import WITHOUT
from fluxtune.handover.rules import Trainer
from fluxtune.handover.trainers import TRAINERS

BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"


def tables() -> str:
    """Every trainer's table in Markdown."""
    pages = ["\n".join(_table(trainer)) + "\n" for trainer in TRAINERS.values()]
    rest = [f"- `{key}`: {instead}" for key, instead in WITHOUT.items()]
    head = [
        "### What is in no row",
        "",
        "Where nothing else is said of a trainer, this is what it does without a setting:",
        "",
    ]
    return "\n".join([*pages, "\n".join([*head, *rest]) + "\n"])


def with_tables(text: str) -> str:
    """A page with the tables between its two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def _table(trainer: Trainer) -> Iterator[str]:
    yield f"### {trainer.title}"
    yield ""
    yield f"After the sources of [{trainer.source}](https://github.com/{trainer.source}). Written as `{trainer.file}`."
    yield ""
    yield f"| {trainer.title} | fluxtune | |"
    yield "| --- | --- | --- |"
    for rule in trainer.rules:
        yield f"| {_names(rule.theirs)} | {_names(rule.ours)} | {rule.note} |"
    if own := {key: instead for key, instead in trainer.without.items() if WITHOUT.get(key) != instead}:
        yield ""
        yield "What it has not, and does instead:"
        yield ""
        yield from (f"- `{key}`: {instead}" for key, instead in own.items())
    told = [each for each in trainer.fixed if each.otherwise]
    yield ""
    yield "What is otherwise there, and told on import:"
    yield ""
    for each in told:
        what = "refused" if each.refused else "warned of"
        yield f"- `{each.theirs}` other than `{_value(each.value)}` is {what}: {each.otherwise}"
    for key, meaning in trainer.meanings.items():
        yield f"- `{key}` is warned of: {meaning}"


def _names(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
