"""Whether the planner's cost model is right about time: steps of several plans, foretold and measured.

    python benchmarks/recompute.py --rounds 7 --output benchmarks/results/recompute.json

The model says: a step takes as long as its operations, those of the forward and the backward and those that the plan's
blocks compute again. A FLUX transformer of some 40 million random weights, on 384 px, takes a step with each plan in
turn, round after round. Time is what the processor spent on this process, which has one thread, so that waiting for
other processes does not count, and of each plan the quickest step counts. Width and tokens are in the proportion of
FLUX.1-dev at 1024 px, and so is attention's share of the operations. On a graphics card `benchmarks/cards.py` compares
the plan of each preset with recomputing everything.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from random_run import RandomSource, base_of, learner, step_operations
from report import heading, publish

from fluxtune.config.schema import Config
from fluxtune.environment.device import quiet_libraries, versions
from fluxtune.flux.base import base_in
from fluxtune.memory.plan import Counts, operations_of
from fluxtune.training.forecasts import costs_of
from fluxtune.training.simulation import Work
from fluxtune.training.step import clip, learn, update

Keep = Mapping[str, list[int]]
WIDE = {"num_attention_heads": 3, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}
"""What makes the embedded model's transformer a wider one."""
SIDE, DEPTHS = 384, (4, 8)
SETTINGS = {
    "memory": {"base_precision": "fp32", "text_precision": "fp32"},
    "training": {"precision": "fp32", "optimizer": "adamw", "device": "cpu"},
}


def plans_of(double: int, single: int) -> dict[str, Keep]:
    """What blocks of each kind keep; the others keep their inputs alone."""
    return {
        "nothing": {},
        "attention": {"attention": [double, single]},
        "products": {"products": [double, single]},
        "everything": {"everything": [double, single]},
        "everything of single blocks": {"everything": [0, single]},
        "products of double blocks": {"products": [double, 0]},
        "attention of double, products of single blocks": {"attention": [double, 0], "products": [0, single]},
        "everything of half of the blocks": {"everything": [double // 2, single // 2]},
    }


def middle_sized(folder: Path, depths: tuple[int, int], side: int) -> Work:
    """The training of the wider model, whose configs are written to a folder."""
    small = base_of("tiny")
    shutil.copytree(small.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    (folder / "transformer" / "config.json").write_text(json.dumps(config | WIDE), encoding="utf-8")
    base = base_in(folder, "middle")
    return Work(Config.model_validate(SETTINGS), base, (side, side), None, depths=depths, as_cuda=False)


def measure(work: Work, plans: Mapping[str, Keep], rounds: int) -> dict[str, Any]:
    """The steps of each plan, beside what they take over those of the plan that keeps everything."""
    kinds, once = costs_of(work).kinds, step_operations(work)
    operations = {
        name: once + operations_of(kinds, [_counts(keep, kind, each.count) for kind, each in enumerate(kinds)])
        for name, keep in plans.items()
    }
    seconds = _seconds(work, plans, rounds)
    foretold = {name: operations[name] / operations["everything"] for name in plans}
    measured = {name: seconds[name] / seconds["everything"] for name in plans}
    pairs = [pair for pair in combinations(plans, 2) if foretold[pair[0]] != foretold[pair[1]]]
    right = sum((foretold[a] < foretold[b]) == (measured[a] < measured[b]) for a, b in pairs)
    return {
        "plans": {
            name: {
                "seconds": round(seconds[name], 4),
                "times_as_long": round(measured[name], 4),
                "foretold_times_as_long": round(foretold[name], 4),
                "foretold_too_high_percent": round(100 * (foretold[name] / measured[name] - 1), 2),
            }
            for name in sorted(plans, key=lambda name: foretold[name])
        },
        "pairs": len(pairs),
        "pairs_in_the_right_order": right,
        "largest_error_percent": round(max(abs(100 * (foretold[name] / measured[name] - 1)) for name in plans), 2),
        "operations_a_step": operations["everything"],
    }


def _counts(keep: Keep, kind: int, number: int) -> Counts:
    kept = {name: numbers[kind] for name, numbers in keep.items()}
    return {"nothing": number - sum(kept.values()), **kept}


def _seconds(work: Work, plans: Mapping[str, Keep], rounds: int) -> dict[str, float]:
    """The quickest step of each plan, after one that does not count."""
    learners = {}
    for name, keep in plans.items():
        memory = work.config.memory.model_validate({**SETTINGS["memory"], "recompute": "all", "keep": dict(keep)})
        settled = replace(work, config=work.config.model_copy(update={"memory": memory}))
        learners[name] = learner(settled, "cpu")
    batch = RandomSource(work, "cpu").at(0).subject
    best = dict.fromkeys(plans, float("inf"))
    for number in range(rounds + 1):
        for name, each in learners.items():
            begun = time.process_time()
            learn(each, batch)
            clip(each)
            update(each)
            if number:
                best[name] = min(best[name], time.process_time() - begun)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = middle_sized(Path(folder) / "base", DEPTHS, SIDE)
        figures = measure(work, plans_of(*DEPTHS), options.rounds)
    report = {
        **heading(f"python benchmarks/recompute.py --rounds {options.rounds}"),
        "device": platform.processor() or "cpu",
        "clock": "processor time of one thread",
        "versions": versions(),
        "side": SIDE,
        "depths": DEPTHS,
        **figures,
    }
    publish(report, options.output)


if __name__ == "__main__":
    main()
