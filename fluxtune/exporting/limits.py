"""What the readers of a format do with some layers, known before a file is written.

Tried with the readers themselves: diffusers' `lora_conversion_utils.py`, ComfyUI's `comfy/lora.py`, Forge's port of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fluxtune.errors import UsageError, some_names
from fluxtune.flux.families import Family
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat

_BLOCKS = re.compile(r"transformer\.(single_)?transformer_blocks\.(\d+)\.")
_ATTENTION = re.compile(r"transformer\.(single_)?transformer_blocks\.\d+\.attn\.")


def require_names(paths: Iterable[str], form: LoraFormat) -> None:
    """Refuse a format that has no names for some layers.

    Raises:
        UsageError: it has none; the message names the layers, the hint the formats that have.
    """
    paths = list(paths)
    lost = [path for path in paths if path.partition(".")[0] not in CONVENTIONS[form].prefixes]
    if not lost:
        return
    able = [each for each in LoraFormat if all(path.partition(".")[0] in CONVENTIONS[each].prefixes for path in paths)]
    raise UsageError(
        f"the format {form} has no names for {len(lost)} layers of this LoRA: {some_names(lost)}",
        where="--format",
        hint=f"take {' or '.join(able)}" if able else "no format holds all of them",
    )


def warnings_of(paths: Iterable[str], form: LoraFormat) -> list[str]:
    """What readers of a format would pass over, one sentence for each reader."""
    paths = list(paths)
    told = []
    of_model = [path for path in paths if path.startswith("transformer.")]
    outside = [path for path in of_model if not _BLOCKS.match(path)]
    encoders = [path for path in paths if not path.startswith("transformer.")]
    if form in (LoraFormat.KOHYA, LoraFormat.COMFYUI) and outside:
        told.append(f"diffusers passes over {len(outside)} layers outside the blocks: {some_names(outside)}")
    if form is LoraFormat.ONETRAINER and (rest := [each for each in of_model if not _ATTENTION.match(each)]):
        told.append(f"diffusers reads only the attention of this format, and refuses {len(rest)} other layers")
    if form is LoraFormat.COMFYUI and encoders:
        told.append(f"only ComfyUI knows these names of {len(encoders)} layers of text encoders")
    if any(path.startswith("text_encoder_2.") for path in encoders) and form is not LoraFormat.COMFYUI:
        told.append("diffusers passes over the layers of T5")
    return told


def read_by_diffusers(layers: Mapping[str, LoraLayer], form: LoraFormat, family: Family) -> set[str]:
    """Those layers of a file that diffusers reads; empty where it cannot read the file.

    Its conversion of kohya's names has the sizes of the published models built in; of CLIP's layers it makes names that
    its loader takes only where the output projections are among them.
    """
    known = {path for path in layers if not path.startswith("text_encoder_2.")}
    if form in (LoraFormat.DIFFUSERS, LoraFormat.AI_TOOLKIT):
        return known
    blocks = {path: match for path in known if (match := _BLOCKS.match(path))}
    if form is LoraFormat.ONETRAINER:
        fits = len(known) == len(layers) and all(map(_ATTENTION.match, blocks))
        return known if fits else set()
    width, (doubles, singles) = family.published_width, family.published_depths
    fits = all(
        int(block[2]) < (singles if block[1] else doubles) and width in (*layers[path].b.shape, layers[path].a.shape[1])
        for path, block in blocks.items()
    )
    return set(blocks) if fits else set()
