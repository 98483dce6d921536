"""One denoising step of the base model, with a LoRA as it was read and as it was written.

The step is one of a small picture, on the processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from fluxtune import rng
from fluxtune.config.memory import MemoryConfig
from fluxtune.errors import VerificationError
from fluxtune.events import Phase, Sink
from fluxtune.exporting.diffusers_reader import state_of
from fluxtune.exporting.limits import read_by_diffusers
from fluxtune.flux.base import Base
from fluxtune.flux.empty import transformer_config
from fluxtune.flux.load import load_transformer
from fluxtune.flux.sizes import transformer_bytes
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.attached import set_acting
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.reading import read_lora_file
from fluxtune.memory.shortage import fits_in_memory

EXACT = 1e-4
"""Relative error of the output that rounding explains, where file and computation are float32."""
_SIDE, _TOKENS, _SIGMA, _GUIDANCE = 8, 16, 0.6, 3.5
_PART = "transformer."


@torch.no_grad()
def compare_denoised(
    file: Path, layers: Mapping[str, LoraLayer], form: LoraFormat, base: Base, tolerance: float, on_event: Sink
) -> float:
    """Compare what the base model predicts with a LoRA's layers, and with the file they were written to.

    Diffusers itself loads the file wherever it reads the format; else the reader of this program does. It is computed
    in float32 where memory suffices, else in bfloat16.

    Args:
        tolerance: relative error that the file's precision explains.

    Returns:
        The distance of the two outputs, relative to what the LoRA changes of them.

    Raises:
        VerificationError: it is more than the precisions explain.
        OutOfMemoryError: the base model does not fit in system memory.
    """
    plain = MemoryConfig(base_precision="fp32")
    dtype = "fp32" if transformer_bytes(base, plain, torch.float32) < psutil.virtual_memory().available / 2 else "bf16"
    memory = plain.model_copy(update={"base_precision": dtype})
    with fits_in_memory("the base model", "leave out --denoise"):
        on_event(Phase("load", f"{base.name} in {dtype} on the processor"))
        transformer = load_transformer(base, memory, DTYPES[dtype], "cpu", on_event)
        on_event(Phase("denoise", "one step with the LoRA as read, and as written"))
        without = _velocity(base, transformer)
        wanted = _with(base, transformer, _of_transformer(layers))
        own = {path for path in layers if path.startswith(_PART)}
        if own <= read_by_diffusers(layers, form, base.family):
            _load_by_diffusers(base, transformer, file)
            seen = _velocity(base, transformer)
        else:
            seen = _with(base, transformer, _of_transformer(read_lora_file(file, base.family).layers))
    effect = float((wanted - without).norm())
    error = float((seen - wanted).norm()) / (effect or 1.0)
    allowed = max(EXACT, tolerance if tolerance > EXACT else 0.0)
    if dtype != "fp32":
        # What rounding does to the output is large beside what a weak LoRA changes of it.
        allowed += 4 * torch.finfo(DTYPES[dtype]).eps * float(wanted.norm()) / (effect or 1.0)
    # Written so that a value that is no number fails too.
    if not error <= allowed:
        raise VerificationError(
            f"a denoising step with it comes out otherwise, by {error:.1e} of what the LoRA changes",
            where=str(file),
            hint="this is a bug in fluxtune: please report it with the format and the LoRA",
        )
    return error


def _of_transformer(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    return {path.removeprefix(_PART): layer for path, layer in layers.items() if path.startswith(_PART)}


def _with(base: Base, transformer: Any, layers: Mapping[str, LoraLayer]) -> torch.Tensor:
    set_acting(transformer, {"lora": layers})
    answer = _velocity(base, transformer)
    set_acting(transformer, {})
    return answer


def _load_by_diffusers(base: Base, transformer: Any, file: Path) -> None:
    import diffusers

    state, alphas, settings = state_of(file, base.family)
    kind: Any = getattr(diffusers, base.family.pipeline)
    kind.load_lora_into_transformer(state, alphas, transformer, adapter_name="written", metadata=settings)


def _velocity(base: Base, transformer: Any) -> torch.Tensor:
    """What the model predicts of fixed noise and a fixed random text."""
    config = transformer_config(base.family, base.folder)
    source = rng.generator(0, "export", "denoise")

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source).to(transformer.dtype)

    text = {name: drawn(*each.shape) for name, each in base.family.blank_text(config, 1, _TOKENS).items()}
    noisy = drawn(1, config["in_channels"], _SIDE, _SIDE)
    sigma = torch.full([1], _SIGMA, dtype=transformer.dtype)
    guidance = _GUIDANCE if base.embeds_guidance else None
    return torch.as_tensor(base.family.forward(transformer, noisy, sigma, text, guidance)).float()
