"""What diffusers reads in a LoRA file, through its own converters (`loaders/lora_conversion_utils.py`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from fluxtune.errors import VerificationError, some_names
from fluxtune.flux.families import Family
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import distance, norm_of

State: TypeAlias = dict[str, torch.Tensor]


def state_of(
    path: Path, family: Family
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, dict[str, Any] | None]:
    """A file as the family's pipeline reads it: tensors, alphas, and the adapter's settings in the header.

    Raises:
        VerificationError: it refuses the file.
    """
    import diffusers

    try:
        state, alphas, settings = getattr(diffusers, family.pipeline).lora_state_dict(
            str(path), return_alphas=True, return_lora_metadata=True, use_safetensors=True
        )
    except (ValueError, LookupError, RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise _fails(path, f"diffusers refuses it ({type(error).__name__}: {error})") from error
    return state, alphas, settings


def compare_with_diffusers(
    path: Path, layers: Mapping[str, LoraLayer], read: Collection[str], family: Family, tolerance: float
) -> float:
    """Read a written file with diffusers, and compare every layer's change with that of ``layers``.

    Args:
        layers: by diffusers' path with the part of the model in front.
        read: those of them that diffusers reads in this format.
        tolerance: relative Frobenius error that the file's precision explains.

    Returns:
        The largest relative error of a layer.

    Raises:
        VerificationError: it refuses the file, leaves out layers or has others, or would change one otherwise.
    """
    state, alphas, settings = state_of(path, family)
    if alphas or settings:
        raise _fails(path, "diffusers would scale it again, by what it finds beside the weights")
    seen, left = _layers_in(state, {name.partition(".")[0] for name in read})
    if left:
        raise _fails(path, f"diffusers has {len(left)} keys for it that are no LoRA: {some_names(left)}")
    # A part of a fused layer that was not trained is there with zeros.
    extra = [name for name, layer in seen.items() if name not in read and norm_of(layer) > 0]
    if odd := sorted({name for name in read if name not in seen} | set(extra)):
        raise _fails(path, f"{len(odd)} layers are missing or extra as diffusers reads it: {some_names(odd)}")
    errors = {name: distance(layers[name], seen[name]) for name in read}
    worst = max(errors, key=lambda name: errors[name])
    # Written so that a value that is no number fails too.
    if not errors[worst] <= tolerance:
        raise _fails(path, f"diffusers would change {worst} otherwise, by {errors[worst]:.1e} of its change")
    return errors[worst]


def _layers_in(state: State, parts: Collection[str]) -> tuple[dict[str, LoraLayer], list[str]]:
    """The pairs of some parts of the model, and the keys that are of none.

    Of the outer layers of kohya's names the conversion loses the part, and the loaders pass over them.
    """
    own = {key: tensor for key, tensor in state.items() if key.partition(".")[0] in parts}
    names = [key.removesuffix(".lora_A.weight") for key in own if key.endswith(".lora_A.weight")]
    pairs = {name: (f"{name}.lora_A.weight", f"{name}.lora_B.weight") for name in names}
    found = {name: LoraLayer(own[a], own[b], 1.0) for name, (a, b) in pairs.items() if b in own}
    return found, sorted(set(own) - {key for name in found for key in pairs[name]})


def _fails(path: Path, message: str) -> VerificationError:
    return VerificationError(
        message,
        where=str(path),
        hint="this is a bug in fluxtune, or another diffusers than it was made for: please report it with the format",
    )
