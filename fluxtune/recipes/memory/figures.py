"""What the documentation says of memory, from simulations: each card preset's plan, kept blocks, two steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import tomli

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.presets import built_in_folder
from fluxtune.config.schema import Config
from fluxtune.environment.device import versions
from fluxtune.flux.base import Base
from fluxtune.flux.known import known_base
from fluxtune.memory.ledger import TEMPORARIES, Moment
from fluxtune.memory.plan import Counts
from fluxtune.training.fitting import work_of
from fluxtune.training.forecasts import costs_of, training_of
from fluxtune.training.planning import Planned, planned
from fluxtune.training.simulation import STEP, Work, simulate_training

BASE = "black-forest-labs/FLUX.1-dev"
COMMAND = "python -m fluxtune.recipes.memory"
_STEP_PRESET = "24gb"
"""Whose step is shown, and whose base the blocks are counted on."""
_KEPT = (0, 10, 19, 28, 38, 44, 50, 57)
"""Numbers of blocks that keep their products, of FLUX.1's 57."""
_COLUMNS = 500
"""Of a time-line: what a picture can show."""


def card_presets() -> list[str]:
    """Names of the shipped presets that are made for a card, the smallest card first."""
    budgets = {file.stem: _settings(file.stem).memory.budget for file in built_in_folder().glob("*.toml")}
    made_for_cards = {name: budget for name, budget in budgets.items() if budget is not None}
    return sorted(made_for_cards, key=lambda name: (made_for_cards[name], len(name)))


def work_of_preset(name: str, base: Base) -> Work:
    """Training with a shipped preset and nothing else set, on square pictures of its resolution."""
    config = _settings(name)
    side = max(config.dataset.resolution)
    return work_of(config, base, "cpu", [(side, side)])


def _settings(preset: str) -> Config:
    return Config.model_validate(tomli.loads((built_in_folder() / f"{preset}.toml").read_text(encoding="utf-8")))


def all_figures() -> dict[str, Any]:
    """All that the tables and pictures show, as JSON holds it. Takes minutes; simulations done before are kept."""
    base = known_base(BASE)
    assert base is not None
    plans = {}
    for name in card_presets():
        plans[name] = planned(work_of_preset(name, base))
        print(name, f"{plans[name].forecast.peak.bytes / 2**30:.2f} GiB", flush=True)
    shown = plans[_STEP_PRESET]
    return {
        "base": BASE,
        "command": COMMAND,
        "date": date.today().isoformat(),
        "versions": versions(),
        "presets": {name: preset_figures(plan) for name, plan in plans.items()},
        "blocks": block_figures(shown.work),
        "kept": list(kept_figures(shown.work)),
        "steps": {
            "everything recomputed": step_figures(_keeping(shown.work, {})),
            f"preset {_STEP_PRESET}": step_figures(shown.work),
        },
    }


def preset_figures(plan: Planned) -> dict[str, Any]:
    """A preset's plan and what it takes, in bytes."""
    work, forecast = plan.work, plan.forecast
    return {
        "pixels": work.size[0],
        "batch": work.config.training.batch_size,
        "memory": plan.memory.model_dump(mode="json"),
        "blocks": sum(work.transformer[key] for key in work.base.family.depths),
        "recomputed_share": round(plan.again / plan.forward, 3),
        "capacity": work.capacity,
        "fits": plan.fits,
        "peak": forecast.peak.bytes,
        "peak_phase": forecast.peak.phase,
        "reserved": forecast.reserved,
        "system": forecast.system,
        "phases": [
            {"phase": each.phase, "peak": each.bytes, "reserved": each.reserved, "alive": each.alive}
            for each in forecast.phases
        ],
    }


def block_figures(work: Work) -> list[dict[str, Any]]:
    """Of each kind of block: what one holds, and what its backward computes again, by what it keeps."""
    costs = costs_of(work)
    return [
        {
            "kind": name,
            "count": kind.count,
            "held": {kept: choice.held for kept, choice in kind.choices.items()},
            "recomputed_share": {kept: round(choice.operations / forward, 3) for kept, choice in kind.choices.items()},
        }
        for name, kind, forward in zip(work.base.family.blocks, costs.kinds, costs.operations, strict=True)
    ]


def kept_figures(work: Work) -> Iterator[dict[str, int]]:
    """The peak of a step by how many blocks keep their products: added up, and simulated at full depth."""
    costs = costs_of(work)
    for number in _KEPT:
        # The later blocks keep more, as in any plan.
        left = number
        products: list[int] = []
        for kind in reversed(costs.kinds):
            products.insert(0, min(left, kind.count))
            left -= products[0]
        plan: list[Counts] = [
            {"nothing": kind.count - kept, "products": kept} for kind, kept in zip(costs.kinds, products, strict=True)
        ]
        forecast = training_of(replace(_keeping(work, {"products": products}), preview=None))
        simulated = max(each.bytes for each in forecast.phases if each.phase in STEP)
        yield {"blocks": number, "foretold": costs.peak(plan), "simulated": simulated}


def _keeping(work: Work, keep: dict[str, list[int]]) -> Work:
    memory = MemoryConfig.model_validate({**work.config.memory.model_dump(), "recompute": "all", "keep": keep})
    return replace(work, config=work.config.model_copy(update={"memory": memory}), capacity=None)


def step_figures(work: Work) -> dict[str, Any]:
    """The time-line of a step, in MiB by category, thinned out so that peaks stay; where its phases begin."""
    moments = [moment for moment in simulate_training(replace(work, preview=None)).moments if moment.phase in STEP]
    told = _with_kept(moments)
    stretch = -(-len(told) // _COLUMNS)
    columns = [
        max(told[start : start + stretch], key=lambda each: sum(each[1].values()))
        for start in range(0, len(told), stretch)
    ]
    phases = [phase for phase, _ in columns]
    categories = sorted({category for _, alive in columns for category in alive})
    return {
        "begins": {phase: phases.index(phase) for phase in STEP},
        "mib": {name: [round(alive.get(name, 0) / 2**20) for _, alive in columns] for name in categories},
    }


def _with_kept(moments: Sequence[Moment]) -> list[tuple[str, dict[str, int]]]:
    """What the forward makes and the backward needs has no name yet in the forward: it is what never goes away."""
    told, stays = [], None
    for moment in reversed(moments):
        alive = dict(moment.alive)
        if moment.phase == "forward":
            made = alive.get(TEMPORARIES, 0) + alive.get("activations", 0)
            stays = made if stays is None else min(stays, made)
            alive |= {TEMPORARIES: made - stays, "activations": stays}
        else:
            # Behind the backward nothing of it is there any more.
            stays = None
        told.append((moment.phase, alive))
    return told[::-1]
