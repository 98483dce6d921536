"""Several LoRAs as one: exactly, by putting their products one after the other; cut down; or TIES and DARE of peft.

TIES keeps of each LoRA its largest values, and of those that disagree in sign the stronger side (arXiv 2306.01708);
DARE drops values at random and enlarges the rest (arXiv 2311.03099). Both work on the changes themselves, which are
formed one layer at a time and decomposed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from fluxtune import rng
from fluxtune.errors import BaseModelError
from fluxtune.events import Progress, Sink, ignore
from fluxtune.exporting.conversion import Wanted, Written, read, write
from fluxtune.exporting.methods import Method
from fluxtune.flux.base import Base
from fluxtune.flux.families import FLUX1, Family
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import compressed, factors_of, rank_of, summed
from fluxtune.lora.reading import LoraFile
from fluxtune.lora.use import LoraUse

Layers = Mapping[str, LoraLayer]


@dataclass(frozen=True)
class Merging:
    """What to do.

    Attributes:
        rank: of every layer at the end; ``exact`` needs none, the others take by default the largest that goes in.
        density: share of the values that ``ties`` and ``dare`` keep.
        seed: of what ``dare`` drops.
    """

    method: Method = Method.EXACT
    rank: int | None = None
    density: float = 0.5
    seed: int = 42


def merge_files(
    uses: Sequence[LoraUse],
    merging: Merging,
    wanted: Wanted,
    on_event: Sink = ignore,
    family: Family = FLUX1,
    base: Base | None = None,
) -> Written:
    """Write one LoRA file of several, each at its scale.

    Args:
        base: the model that they were trained on, which a DoRA needs.

    Raises:
        UsageError, StorageError, BaseModelError, VerificationError: as ``convert``.
    """
    loras = [read(use.path, on_event, family, base) for use in uses]
    _require_same_shapes(loras)
    weighted = [
        (replace(use, scale=1.0).acting(lora.layers, family.lora_groups), use.scale)
        for use, lora in zip(uses, loras, strict=True)
    ]
    layers, errors = merged(weighted, merging, on_event)
    # What is true of one of several files is not true of what they make.
    facts = {
        "modelspec.title": wanted.output.stem,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.merged_from": ", ".join(lora.metadata.get("modelspec.title", lora.path.stem) for lora in loras),
        "ss_output_name": wanted.output.stem,
        "modelspec.trigger_phrase": ", ".join(
            dict.fromkeys(phrase for lora in loras if (phrase := lora.metadata.get("modelspec.trigger_phrase")))
        ),
    }
    for key in ("modelspec.architecture", "ss_sd_model_name", "ss_base_model_version"):
        if len(said := {lora.metadata.get(key) for lora in loras}) == 1 and (value := said.pop()):
            facts[key] = value
    written = write(layers, {key: value for key, value in facts.items() if value}, wanted, on_event, family)
    return replace(written, cut=max(written.cut, *errors.values())) if errors else written


def _require_same_shapes(loras: Sequence[LoraFile]) -> None:
    seen: dict[str, tuple[list[int], LoraFile]] = {}
    for lora in loras:
        for path, layer in lora.layers.items():
            own = [layer.b.shape[0], layer.a.shape[1]]
            shape, first = seen.setdefault(path, (own, lora))
            if own != shape:
                raise BaseModelError(
                    f"these LoRAs are for different models: {path} is {own} here, and {shape} in {first.path}",
                    where=str(lora.path),
                    hint="merge LoRAs of one base model",
                )


@torch.no_grad()
def merged(
    loras: Sequence[tuple[Layers, float]], merging: Merging, on_event: Sink
) -> tuple[dict[str, LoraLayer], dict[str, float]]:
    """The layers of all LoRAs, each with its weight, as one LoRA.

    Returns:
        The layers, and for those that are not exact the relative error of the decomposition.
    """
    paths = list(dict.fromkeys(path for layers, _ in loras for path in layers))
    made: dict[str, LoraLayer] = {}
    errors: dict[str, float] = {}
    for done, path in enumerate(paths, 1):
        present = [(layers[path], weight) for layers, weight in loras if path in layers]
        if merging.method is Method.EXACT:
            made[path] = _single(summed(present))
        else:
            rank = merging.rank or max(rank_of(layer) for layer, _ in present)
            if merging.method is Method.SVD:
                made[path], errors[path] = compressed(summed(present), rank)
            else:
                made[path], errors[path] = factors_of(_combined(present, merging, path), rank)
        on_event(Progress("merge", done, len(paths), "layers"))
    return made, errors


def _combined(present: Sequence[tuple[LoraLayer, float]], merging: Merging, path: str) -> torch.Tensor:
    """The change ``[out, in]`` that peft's arithmetic makes of several."""
    from peft.utils.merge_utils import dare_linear, dare_ties, ties

    changes = [layer.scale * (layer.b.float() @ layer.a.float()) for layer, _ in present]
    weights = torch.tensor([weight for _, weight in present])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(merging.seed, "merge", path))
        match merging.method:
            case Method.TIES:
                combined = ties(changes, weights, merging.density)
            case Method.DARE:
                combined = dare_linear(changes, weights, merging.density)
            case _:
                combined = dare_ties(changes, weights, merging.density)
    return torch.as_tensor(combined)


def _single(layer: LoraLayer) -> LoraLayer:
    return LoraLayer(layer.a.float(), layer.b.float(), layer.scale)
