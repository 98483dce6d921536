"""`python -m fluxtune.recipes.demo`: checks the demo pictures, captions them, trains, then shows and scores the result.

The subject score is the share of pictures of trigger prompts that show the subject, on backgrounds and in sizes at
places that no training picture has; retention is the share of ordinary prompts whose pictures show everything asked.
It fails, with exit code 1, when the scores are so low that something must be broken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from fluxtune.environment.device import quiet_libraries
from fluxtune.nano import TRIGGER, demo_folder, model_folder
from fluxtune.nano.captions import background_of, noun_phrase
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS
from fluxtune.nano.scenes import held_out_prompts
from fluxtune.recipes.nano.demo import BACKGROUNDS
from fluxtune.runs import Run

# Sizes and places that no picture of the demo data set shows together.
PLACEMENTS = (("large", "right"), ("", "top"), ("small", ""), ("large", "left"), ("small", "right"))
SHOWN = (
    f"a {TRIGGER} on a plain yellow background",
    f"a small {TRIGGER} at the left on a striped purple background",
    f"a large {TRIGGER} on a hilly navy background",
    f"a {TRIGGER} at the right on a dotted pink background",
    "a red boat on a plain green background",
)

# Below these something is broken: the figures that the README gives are well above, by more than chance moves them.
LEAST_SUBJECT, MOST_RETENTION_LOST = 0.6, 0.15


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] over `pictures` pictures each, without the LoRA and with it.

    `leaked` is the share of ordinary prompts whose pictures show the subject all the same.
    """

    subject_before: float
    subject_after: float
    retention_before: float
    retention_after: float
    leaked: float
    pictures: int

    @property
    def shortfall(self) -> str:
        """What is so low that training or the model must be broken; empty when all is well."""
        if self.subject_after < LEAST_SUBJECT:
            return (
                f"the subject is in {self.subject_after:.0%} of its pictures, {LEAST_SUBJECT:.0%} are expected at least"
            )
        if self.retention_after < self.retention_before - MOST_RETENTION_LOST:
            return (
                f"ordinary prompts fell from {self.retention_before:.0%} to {self.retention_after:.0%}, "
                f"at most {100 * MOST_RETENTION_LOST:.0f} points are expected"
            )
        return ""


def trigger_prompts(number: int) -> list[str]:
    """Prompts with the trigger word over all backgrounds and placements that no picture of the demo data set has."""
    unseen = [
        (kind, colour)
        for colour in BACKGROUND_COLOURS
        for kind in BACKGROUND_KINDS
        if (kind, colour) not in BACKGROUNDS
    ]
    prompts = []
    for index in range(number):
        again, which = divmod(index, len(unseen))
        kind, colour = unseen[which]
        size, place = PLACEMENTS[(which + again) % len(PLACEMENTS)]
        at = f" at the {place}" if place else ""
        prompts.append(background_of(noun_phrase(size, TRIGGER) + at, kind, colour))
    return prompts


def free_folders(runs: Path) -> tuple[Path, Path]:
    """Where a run goes and where its pictures: the first number that neither of them has taken."""
    names = chain(["demo"], (f"demo-{number}" for number in count(2)))
    pairs = ((runs / name, runs / f"{name}-pictures") for name in names)
    return next(pair for pair in pairs if not any(map(os.path.lexists, pair)))


def copy_pictures(folder: Path) -> Path:
    """A new folder of one's own with the demo pictures and their settings, to which captions can be added.

    Raises:
        FileExistsError: it is there already.
    """
    folder.mkdir(parents=True)
    for picture in demo_folder().glob("*.png"):
        shutil.copy(picture, folder)
    settings = (demo_folder() / "dataset.toml").read_text(encoding="utf-8")
    (folder / "dataset.toml").write_text(settings.replace('"nano:demo"', '"."'), encoding="utf-8")
    return folder


def score_lora(base: Path, lora: Path, seeds: Sequence[int], prompts: int = 60) -> Scores:
    """Scores of a LoRA file on a base model's folder: for each seed, `prompts` prompts of either sort."""
    from fluxtune.recipes.nano.measure import open_pipeline

    pipeline = open_pipeline(base)
    subject_before, retention_before, _ = score_pipeline(pipeline, seeds, prompts)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    subject_after, retention_after, leaked = score_pipeline(pipeline, seeds, prompts)
    return Scores(subject_before, subject_after, retention_before, retention_after, leaked, prompts * len(seeds))


def score_pipeline(pipeline: Any, seeds: Sequence[int], prompts: int) -> tuple[float, float, float]:
    """Shares of pictures: of trigger prompts that show the subject, of ordinary prompts that show all that is asked,
    and of those that show the subject."""
    from fluxtune.nano.judge import Judge
    from fluxtune.recipes.nano.measure import pictures_of, shares

    judge = Judge.load()
    triggers, ordinary = trigger_prompts(prompts), held_out_prompts(prompts)
    asked = [verdict for seed in seeds for verdict in judge.look(pictures_of(pipeline, triggers, seed))]
    texts = [prompt.prompt for prompt in ordinary]
    others = [verdict for seed in seeds for verdict in judge.look(pictures_of(pipeline, texts, seed))]
    return (
        sum(verdict.subject for verdict in asked) / len(asked),
        shares(others, ordinary * len(seeds))["all"],
        sum(verdict.subject for verdict in others) / len(others),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fluxtune.recipes.demo", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folder goes")
    parser.add_argument("--seed", type=int, default=42, help="seed of the training")
    parser.add_argument("--prompts", type=int, default=60, help="prompts of either sort to score")
    options = parser.parse_args()
    run, pictures = free_folders(options.runs)
    started = time.monotonic()
    copy_pictures(pictures)
    for arguments in (
        ["validate", str(pictures), "--preset", "nano"],
        ["caption", str(pictures)],
        ["train", str(pictures), "--preset", "nano", "--output", str(run), "--seed", str(options.seed)],
        ["sample", *SHOWN, "--lora", str(run), "--compare", "--output", str(run / "samples"), "--seed", "1"],
    ):
        print(f"\n$ fluxtune {' '.join(repr(word) if ' ' in word else word for word in arguments)}", flush=True)
        if code := subprocess.run([sys.executable, "-m", "fluxtune", *arguments], check=False).returncode:
            return code
    print(f"\nscoring {4 * options.prompts} pictures with the judge ...", flush=True)
    quiet_libraries()
    lora = run / str(Run.open(run).state.result)
    scores = score_lora(model_folder(), lora, [options.seed], options.prompts)
    (run / "scores.json").write_text(json.dumps(asdict(scores), indent=2) + "\n", encoding="utf-8")
    _show(scores, run, time.monotonic() - started)
    if scores.shortfall:
        print(f"\nerror: the demo learned too little: {scores.shortfall}", file=sys.stderr)
        return 1
    return 0


def _show(scores: Scores, run: Path, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"What the LoRA learned, over {scores.pictures} pictures of either sort (one seed)")
    for column in ("", "without", "with"):
        table.add_column(column, justify="left" if not column else "right")
    rows: tuple[tuple[str, Any, Any], ...] = (
        (f'"{TRIGGER}" shows the mascot', scores.subject_before, scores.subject_after),
        ("other prompts show all that is asked", scores.retention_before, scores.retention_after),
    )
    for words, before, after in rows:
        table.add_row(words, f"{before:.0%}", f"{after:.0%}")
    console = Console(soft_wrap=True)
    console.print()
    console.print(table)
    grid = next(iter(sorted((run / "samples").glob("*compare.png"))))
    console.print(f"\nDone in {seconds / 60:.1f} minutes. Look at:", highlight=False)
    console.print(f"  {grid}    the same prompts without and with the LoRA", highlight=False, markup=False)
    console.print(f"  {run / 'previews'}    the learning, step by step", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
