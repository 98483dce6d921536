"""A LoRA from one format into another: read, changed as asked, written, and read back by a reader of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fluxtune.errors import UsageError
from fluxtune.events import Phase, Sink, Warning, ignore
from fluxtune.exporting.limits import require_names, warnings_of
from fluxtune.exporting.resizing import Size, resized
from fluxtune.exporting.second_reader import compare
from fluxtune.flux.families import FLUX1, Family
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat
from fluxtune.lora.decoding import BaseWeight
from fluxtune.lora.encoding import encoded
from fluxtune.lora.files import write_tensors
from fluxtune.lora.metadata import restated
from fluxtune.lora.reading import LoraFile, read_lora_file


@dataclass(frozen=True)
class Wanted:
    """How a LoRA is to be written.

    Attributes:
        dtype: ``fp32``, ``bf16`` or ``fp16``; None is the format's own.
        size: to what it is to be cut down; None keeps all.
        scale: every layer's change is multiplied by it.
        verify: read the file back by the second reader.
        metadata: fields of the header beside what was read; empty ones are taken out.
        captions: keep the fields that hold words of captions, and names of folders.
    """

    format: LoraFormat
    output: Path
    dtype: str | None = None
    size: Size | None = None
    scale: float = 1.0
    verify: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    captions: bool = False


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        layers: of diffusers; ``tensors`` of the file.
        error: the largest relative error of a layer's change against what was read; None where it was not verified.
        cut: the largest relative error of a layer that was cut down; 0 where none was.
    """

    file: Path
    sha256: str
    format: LoraFormat
    layers: int
    tensors: int
    bytes: int
    error: float | None
    cut: float


def convert(
    source: Path,
    wanted: Wanted,
    on_event: Sink = ignore,
    family: Family = FLUX1,
    base_weight: BaseWeight | None = None,
) -> Written:
    """Write a LoRA file in another format.

    Raises:
        UsageError: there is no such file, or the format cannot hold it.
        StorageError: the file is damaged, or the new one cannot be written.
        BaseModelError: it is no LoRA of the family.
        VerificationError: what was written does not say the same; no file is left.
    """
    on_event(Phase("read", str(source)))
    lora = read_lora_file(source, family, base_weight)
    told_of_reading(lora, on_event)
    return write(lora.layers, lora.metadata, wanted, on_event, family)


def write(
    layers: Mapping[str, LoraLayer],
    metadata: Mapping[str, str],
    wanted: Wanted,
    on_event: Sink = ignore,
    family: Family = FLUX1,
) -> Written:
    """Write layers in a format, whatever they come from.

    Args:
        layers: by diffusers' path with the part of the model in front.
        metadata: what the header of the file says, apart from what follows from the tensors.

    Raises:
        UsageError: the format cannot hold them.
        StorageError: the file cannot be written.
        VerificationError: what was written does not say the same; no file is left.
    """
    if wanted.output.suffix.lower() != ".safetensors":
        raise UsageError(
            f"a LoRA is written as .safetensors, not as {wanted.output.suffix or 'a file without a suffix'}",
            where="--output",
            hint=f"--output {wanted.output.with_suffix('.safetensors')}",
        )
    convention = CONVENTIONS[wanted.format]
    require_names(layers, wanted.format)
    for message in warnings_of(layers, wanted.format):
        on_event(Warning(message, where=str(wanted.output)))
    if wanted.scale != 1.0:
        layers = {path: LoraLayer(each.a, each.b, each.scale * wanted.scale) for path, each in layers.items()}
    cut: dict[str, float] = {}
    if wanted.size is not None:
        layers, cut = resized(layers, wanted.size, on_event)
    dtype = DTYPES[wanted.dtype or convention.dtype]
    made = encoded(layers, family.layer_names, convention, dtype)
    on_event(Phase("write", str(wanted.output)))
    header = restated({**metadata, **wanted.metadata}, made.tensors, layers, convention, wanted.captions)
    error: float | None = None

    def verified(file: Path) -> None:
        nonlocal error
        if wanted.verify:
            error = compare(file, layers, tolerance_of(dtype))

    digest = write_tensors(wanted.output, made.tensors, header, check=verified)
    return Written(
        file=wanted.output,
        sha256=digest,
        format=wanted.format,
        layers=len(layers),
        tensors=len(made.tensors),
        bytes=wanted.output.stat().st_size,
        error=error,
        cut=max(cut.values(), default=0.0),
    )


def told_of_reading(lora: LoraFile, on_event: Sink) -> None:
    """Say what was not read exactly."""
    if lora.errors:
        worst = max(lora.errors.values())
        kinds = " and ".join(kind for kind in lora.kinds if kind != "LoRA")
        on_event(
            Warning(
                f"{len(lora.errors)} {kinds} layers became low-rank products, which loses up to {worst:.1%} of a "
                "layer's change",
                where=str(lora.path),
            )
        )


def tolerance_of(dtype: torch.dtype) -> float:
    """Relative Frobenius error that the rounding of A and B to a precision explains."""
    return 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
