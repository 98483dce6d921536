"""Which of the presets that ship fit the card here."""

from __future__ import annotations

from collections.abc import Iterator

import tomli

from fluxtune.config.presets import built_in_folder
from fluxtune.doctor.graphics import FREE_ENOUGH
from fluxtune.environment.card import Graphics
from fluxtune.events import Finding

_AS_SOLD = 1.03
"""Cards show a little less than they are sold as: 23.99 GiB of 24, 79.6 of 80. Plans are made for what is free."""


def check_presets(graphics: Graphics) -> Iterator[Finding]:
    """The presets whose budget the foremost card has; each is simulated to fit its budget (docs/memory.md)."""
    card = graphics.foremost
    if card is None or card.total is None:
        yield Finding("note", "presets", "--preset nano fits any machine; the others are made for NVIDIA cards")
        return
    budgets = _budgets()
    fitting = [name for name, budget in budgets.items() if budget <= _AS_SOLD * card.total]
    if not fitting:
        smallest = min(budgets, key=lambda name: budgets[name])
        yield Finding(
            "warning",
            "presets",
            f"no preset is made for {card.total:.1f} GiB; the smallest is {smallest}",
            hint=f"see what a plan for this card takes: fluxtune train photos --preset {smallest} --dry-run",
        )
        return
    largest = max(fitting, key=lambda name: budgets[name])
    held = card.free is not None and card.free < FREE_ENOUGH * budgets[largest]
    yield Finding(
        "ok",
        "presets",
        f"{', '.join(fitting)} fit {card.name}; the largest for it is {largest}"
        + (f", which is planned for what is free: {card.free:.1f} GiB now" if held else ""),
    )


def _budgets() -> dict[str, float]:
    """GiB that each preset which ships is made for, the smallest first; those without a budget need no card."""
    files = built_in_folder().glob("*.toml")
    settings = {file.stem: tomli.loads(file.read_text(encoding="utf-8")) for file in files}
    budgets = {name: each["memory"]["budget"] for name, each in settings.items() if "budget" in each["memory"]}
    return dict(sorted(budgets.items(), key=lambda item: (item[1], item[0])))
