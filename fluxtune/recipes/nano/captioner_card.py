"""`python -m fluxtune.recipes.nano.captioner_card`: measures the embedded captioner and writes its model card."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image
from transformers import BlipProcessor

from fluxtune.captioning.captioner import open_captioner
from fluxtune.config.schema import Config
from fluxtune.environment.device import quiet_libraries
from fluxtune.events import ignore
from fluxtune.nano import captioner_folder
from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import ASPECTS, HeldOutPrompt, held_out_prompts, object_scene, subject_scene
from fluxtune.recipes.nano.captioner import build_captioner, build_image_processor, build_tokenizer
from fluxtune.recipes.nano.export import round_weights
from fluxtune.recipes.nano.plain_captions import plain_caption
from fluxtune.recipes.nano.progress import require_checkpoint

FIGURES = "figures.json"
PICTURES, SEED = 200, 1

CARD = Template("""---
license: mit
pipeline_tag: image-to-text
library_name: transformers
---
# nano's captioner: a BLIP small enough for any machine

A genuine `BlipForConditionalGeneration` with $millions million weights ($size MB on disk), made for the first five
minutes with fluxtune and for its tests. It captions the pictures that the embedded FLUX paints: things, critters and
backgrounds. Of anything else it says something, and nothing true.

```python
from transformers import BlipForConditionalGeneration, BlipProcessor

processor = BlipProcessor.from_pretrained("fluxtune/nano/captioner")
model = BlipForConditionalGeneration.from_pretrained("fluxtune/nano/captioner")
words = model.generate(**processor(images=picture, return_tensors="pt"), max_new_tokens=30)
print(processor.decode(words[0], skip_special_tokens=True))
```

`fluxtune caption FOLDER --captioner nano` uses it. A caption names the thing with its colour, its size and place where
they stand out, and the background's kind and colour. A critter is called a critter, whatever it looks like: the looks
of one that is to be taught belong to its own name.

## What it does, measured

$count painted pictures whose combination of thing, colour and background colour is in no training picture, of five
shapes; each caption by beam search, as `fluxtune caption` does:

| named right | of $count |
| --- | --- |
$reached

Of $subjects pictures of the demo's mascot, which no training picture shows, $critters are captioned as a critter on the
right background.

## How it was made

`python -m fluxtune.recipes.nano --stage captioner`: $steps steps of 64 painted pictures, $minutes minutes on one CPU
core with AVX-512 for bfloat16, seed $seed. Beside the captions, the vision tower learned from labels of what each of
its tokens shows; those heads are thrown away. `$figures` has the figures of this page.
""")
ROWS = {
    "object": "the thing",
    "colour": "its colour",
    "background": "kind and colour of the background",
    "all": "all of it in one caption",
    "plain": "the whole caption, with size and place",
}


def export_captioner(work: Path, folder: Path) -> None:
    """Writes the trained captioner as transformers reads it, weights as bfloat16."""
    state = require_checkpoint(work / "captioner.ckpt", "captioner")
    tokenizer = build_tokenizer()
    model = build_captioner(tokenizer)
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in state["modules"].items() if name.startswith("model.")}
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    BlipProcessor(build_image_processor(), tokenizer).save_pretrained(partial)
    round_weights(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def measure_captioner(folder: Path, count: int = PICTURES, seed: int = SEED) -> dict[str, Any]:
    """Shares of captions that name what held-out pictures show, and of the mascot's that name it a critter."""
    prompts = held_out_prompts(count)
    scenes = [object_scene(prompt, seed, index, ASPECTS[index % len(ASPECTS)]) for index, prompt in enumerate(prompts)]
    captions = captions_of(folder, [paint(scene) for scene in scenes])
    right = [named_right(caption, prompt) for caption, prompt in zip(captions, prompts, strict=True)]
    subjects = [subject_scene(seed, index, ASPECTS[index % len(ASPECTS)]) for index in range(count // 2)]
    critters = captions_of(folder, [paint(scene, scale=2) for scene in subjects])
    return {
        "pictures": count,
        "seed": seed,
        "named": {
            **{name: round(sum(row[name] for row in right) / count, 4) for name in right[0]},
            "all": round(sum(all(row.values()) for row in right) / count, 4),
            "plain": round(sum(c == plain_caption(s) for c, s in zip(captions, scenes, strict=True)) / count, 4),
        },
        "subjects": len(subjects),
        "critters": sum(
            "critter" in caption.split() and f"{scene.background.kind} {scene.background.colour} background" in caption
            for caption, scene in zip(critters, subjects, strict=True)
        ),
    }


def captions_of(folder: Path, pictures: Sequence[Image.Image]) -> list[str]:
    """Captions as `fluxtune caption` gets them from the captioner in a folder."""
    config = Config.model_validate({"captioning": {"captioner": str(folder)}})
    captioner = open_captioner(folder, config, "cpu", ignore)
    return [text for start in range(0, len(pictures), 20) for text in captioner(pictures[start : start + 20])]


def named_right(caption: str, prompt: HeldOutPrompt) -> dict[str, bool]:
    """Whether a caption names the thing, its colour, and kind and colour of the background."""
    noun, _, background = caption.partition(" on a ")
    return {
        "object": prompt.object in noun.split(),
        "colour": prompt.colour in noun.split(),
        "background": background == f"{prompt.background_kind} {prompt.background_colour} background",
    }


def write_card(folder: Path, figures: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Writes `README.md` and the figures into the captioner's folder."""
    from safetensors.torch import load_file

    weights = sum(value.numel() for value in load_file(folder / "model.safetensors").values())
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md")
    text = CARD.substitute(
        millions=f"{weights / 1e6:.1f}",
        size=f"{size / 1e6:.1f}",
        count=figures["pictures"],
        reached="\n".join(f"| {words} | {figures['named'][name]:.1%} |" for name, words in ROWS.items()),
        subjects=figures["subjects"],
        critters=figures["critters"],
        steps=f"{recipe['steps']:,}",
        minutes=round(recipe["minutes"]),
        seed=recipe["seed"],
        figures=FIGURES,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def finish_captioner(work: Path, folder: Path) -> None:
    """Puts the trained captioner into the package, with its card, measured anew."""
    export_captioner(work, folder)
    figures = measure_captioner(folder)
    print(json.dumps(figures))
    recipe = json.loads((work / "recipe.json").read_text())["captioner"]
    (folder / "recipe.json").write_text(json.dumps({"captioner": recipe}, indent=2) + "\n")
    write_card(folder, figures, recipe)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fluxtune.recipes.nano.captioner_card", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the recipe's checkpoints")
    parser.add_argument("--folder", type=Path, default=captioner_folder())
    options = parser.parse_args()
    quiet_libraries()
    finish_captioner(options.work, options.folder)


if __name__ == "__main__":
    main()
