"""`python -m fluxtune.recipes.nano --work DIR`: makes the embedded model again, stage by stage."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from fluxtune.environment.device import quiet_libraries
from fluxtune.nano import captioner_folder, demo_folder, model_folder
from fluxtune.recipes.nano.captioner import train_captioner
from fluxtune.recipes.nano.captioner_card import finish_captioner
from fluxtune.recipes.nano.card import CARD_SEED, PROMPTS, measure_model, write_card
from fluxtune.recipes.nano.demo import write_demo
from fluxtune.recipes.nano.distill import distill_again, distill_first
from fluxtune.recipes.nano.export import assemble
from fluxtune.recipes.nano.judge import train_judge
from fluxtune.recipes.nano.latents import encode_all_things, encode_critters
from fluxtune.recipes.nano.progress import require_checkpoint, say
from fluxtune.recipes.nano.text import train_text
from fluxtune.recipes.nano.transformer import train_critters, train_transformer
from fluxtune.recipes.nano.vae import train_vae
from fluxtune.recipes.nano.workers import in_processes

# Each stage with the minutes that the shipped model took on two cores: until the first distillation with AMX for
# bfloat16, from then on with AVX-512. Its critters were schooled in two sittings, of 66 minutes on the first half of
# the scenes and of 81 on all of them, and it was in the second that things weighed more than backgrounds; the learning
# rate came down at the end of each.
STAGES: dict[str, tuple[Callable[[Path, float, int], None], float]] = {
    "vae": (train_vae, 15),
    "text": (train_text, 3.5),
    "latents": (encode_all_things, 3.5),
    "transformer": (train_transformer, 68),
    "distilled": (distill_first, 8),
    "critter-latents": (encode_critters, 13),
    "critters": (train_critters, 147),
    "finished": (distill_again, 8),
    "judge": (train_judge, 13),
    "captioner": (train_captioner, 35),
}
SHARED = ("latents", "transformer", "distilled", "critter-latents", "critters", "finished")
"""What the processes do together."""


def export(work: Path) -> None:
    """Puts the finished models into the package, with the recipe's record and their cards, measured anew."""
    state = require_checkpoint(work / "finished.ckpt", "finished")
    assemble(work, state["averaged"], model_folder())
    records = json.loads((work / "recipe.json").read_text())
    records.pop("captioner")
    (model_folder() / "recipe.json").write_text(json.dumps(records, indent=2) + "\n")
    quiet_libraries()
    write_card(model_folder(), measure_model(model_folder(), PROMPTS, CARD_SEED))
    finish_captioner(work, captioner_folder())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fluxtune.recipes.nano", description=__doc__)
    parser.add_argument("--stage", choices=["all", *STAGES, "export", "demo"], default="all")
    parser.add_argument("--work", type=Path, default=Path("nano-work"), help="folder of checkpoints, to resume from")
    parser.add_argument("--minutes", type=float, help="the stage's budget, instead of its own")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each, where a stage can be shared")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name, (stage, minutes) in STAGES.items():
        if options.stage in ("all", name):
            say(f"stage {name}")
            arguments = (options.work, options.minutes or minutes, options.seed)
            if name in SHARED:
                in_processes(options.processes, stage, *arguments)
            else:
                stage(*arguments)
    if options.stage in ("all", "export"):
        export(options.work)
    if options.stage in ("all", "demo"):
        write_demo(demo_folder())


if __name__ == "__main__":
    main()
