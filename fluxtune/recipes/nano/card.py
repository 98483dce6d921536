"""`python -m fluxtune.recipes.nano.card`: measures the embedded model on held-out prompts and writes its model card."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from string import Template
from typing import Any

from fluxtune.environment.device import quiet_libraries
from fluxtune.nano import model_folder
from fluxtune.nano.judge import Judge
from fluxtune.nano.scenes import held_out_prompts
from fluxtune.recipes.nano.measure import GUIDANCE, STEPS, open_pipeline, pictures_of, shares

FIGURES = "figures.json"
PROMPTS, CARD_SEED = 240, 1

CARD = Template("""---
license: mit
pipeline_tag: text-to-image
library_name: diffusers
---
# nano: a FLUX small enough for any machine

A genuine text-to-image model of the FLUX.1 architecture with $millions million weights ($size MB on disk), made for
the first five minutes with fluxtune and for its tests. It paints 128 x 128 pixels: sixteen kinds of things and a family
of little critters, in ten colours, on four kinds of backgrounds in eight colours. It is no small FLUX.1-dev: it knows
nothing else, and its words are those of its captions.

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("fluxtune/nano/model")
length = pipe.tokenizer_2.model_max_length
pipe("a red boat on a striped blue background", height=128, width=128, max_sequence_length=length).images[0]
```

Every part has the class that FLUX.1-dev has: `FluxTransformer2DModel` with a guidance embedding, `AutoencoderKL` with
16 latent channels at an eighth of the side, `CLIPTextModel`, `T5EncoderModel`, `FlowMatchEulerDiscreteScheduler`.
Train it at guidance 1.0, sample it at 3.5, as one does with dev. Height, width and `max_sequence_length` must be
given as above: the pipeline's own defaults are those of the big models.

## What it does, measured

$count prompts ("a teal star on a dotted pink background") whose combination of thing, colour and background colour is
in no training picture; $steps steps, guidance $guidance, seed $seed, one picture each:

| shown as asked | of $count |
| --- | --- |
$reached

The judge is a small convolutional network that was trained on painted pictures only, whole ones and spoiled ones; no
training of the model ever used it. On fresh painted pictures it is right this often:

| | |
| --- | --- |
$judged

## Limits

- $missed of the $count pictures miss something that was asked. Small details (faces, strings, spots) are the softest
  part.
- Two things in one picture come out less reliably than one; nothing measures them here.
- The autoencoder was trained on such pictures and on textures: photographs come back soft.
- Captions of more than $words tokens are cut off. A word that it never met is spelled in syllables, so it has a meaning
  of its own to learn, and none before.

## How it was made

All pictures come from the painter in `fluxtune/nano`, so nobody's data is in them. The transformer went to school
twice: first on all things alike, then, from where the distilled model stood, on critters for the most part and many
small ones, which have the most detail. The recipe makes the model again, stage by stage, and measures this page:

```
python -m fluxtune.recipes.nano
```

| stage | seed | minutes on two CPU cores | steps |
| --- | --- | --- | --- |
$stages

`recipe.json` holds what each stage reached, `$figures` the figures of this page.
""")

ROWS = {
    "object": "the thing",
    "colour": "its colour",
    "background_kind": "kind of background",
    "background_colour": "colour of background",
    "all": "all four in one picture",
}
JUDGED = {
    "right": "2,000 true pictures of all sizes: all four attributes found",
    "weathered": "the same, bent, softened, noisy and off in colour as generated pictures are",
    "wrong": "1,000 pictures that differ from their prompt in one attribute: refused",
    "spoiled": "1,000 things torn, twisted, blended, smeared or half erased: refused",
    "subject": "500 pictures of the demo's mascot: found",
    "near_misses": "1,000 critters that differ from it in one trait: not taken for it",
    "ordinary": "1,000 pictures of other things: not taken for it",
}


def measure_model(folder: Path, count: int, seed: int, steps: int = STEPS, sheet: Path | None = None) -> dict[str, Any]:
    """How often pictures of `count` held-out prompts show what was asked; with `sheet`, the pictures in one image."""
    prompts = held_out_prompts(count)
    started = time.monotonic()
    pictures = pictures_of(open_pipeline(folder), [prompt.prompt for prompt in prompts], seed, steps)
    seconds = time.monotonic() - started
    verdicts = Judge.load().look(pictures)
    if sheet is not None:
        _write_sheet(sheet, pictures)
    reached = shares(verdicts, prompts)
    return {
        "prompts": count,
        "seed": seed,
        "steps": steps,
        "guidance": GUIDANCE,
        "shown": reached,
        "shows_the_subject": sum(verdict.subject for verdict in verdicts) / count,
        "seconds": round(seconds, 1),
    }


def card(figures: dict[str, Any], recipe: dict[str, Any], size: int, weights: int, words: int) -> str:
    """The model card's text, from what was measured and recorded; `size` in bytes."""
    shown = figures["shown"]
    return CARD.substitute(
        millions=f"{weights / 1e6:.1f}",
        size=f"{size / 1e6:.1f}",
        count=figures["prompts"],
        steps=figures["steps"],
        guidance=figures["guidance"],
        seed=figures["seed"],
        reached="\n".join(f"| {text} | {shown[name]:.1%} |" for name, text in ROWS.items()),
        judged="\n".join(f"| {text} | {recipe['judge'][name]:.1%} |" for name, text in JUDGED.items()),
        missed=round((1 - shown["all"]) * figures["prompts"]) or "None",
        words=words,
        stages="\n".join(
            f"| {name} | {stage['seed']} | {round(stage['minutes'])} | {stage.get('steps', '')} |"
            for name, stage in recipe.items()
            if "minutes" in stage
        ),
        figures=FIGURES,
    )


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Writes `README.md` and the figures into the model's folder."""
    from safetensors import safe_open

    weights = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                count = 1
                for side in tensors.get_slice(name).get_shape():
                    count *= side
                weights += count
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    words = json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text())["model_max_length"]
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(card(figures, recipe, size, weights, words), encoding="utf-8")


def _write_sheet(path: Path, pictures: list[Any], columns: int = 12) -> None:
    from PIL import Image

    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2)))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + 2), index // columns * (height + 2)))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fluxtune.recipes.nano.card", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--count", type=int, default=PROMPTS, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=CARD_SEED)
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--sheet", type=Path, help="PNG to write all pictures into")
    parser.add_argument("--measure-only", action="store_true", help="print the figures; write no card")
    options = parser.parse_args()
    quiet_libraries()
    figures = measure_model(options.model, options.count, options.seed, options.steps, options.sheet)
    print(json.dumps(figures))
    if not options.measure_only:
        write_card(options.model, figures)


if __name__ == "__main__":
    main()
