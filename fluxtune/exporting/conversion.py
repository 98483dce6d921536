"""A LoRA from one format into another: read, changed as asked, written, and read back by a reader of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fluxtune.errors import UsageError, VerificationError
from fluxtune.events import Phase, Sink, Warning, ignore
from fluxtune.exporting.denoising import compare_denoised
from fluxtune.exporting.diffusers_reader import compare_with_diffusers
from fluxtune.exporting.limits import read_by_diffusers, require_names, warnings_of
from fluxtune.exporting.resizing import Size, resized
from fluxtune.exporting.second_reader import compare
from fluxtune.flux.base import Base
from fluxtune.flux.families import FLUX1, Family
from fluxtune.flux.stored import weight_reader
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat
from fluxtune.lora.encoding import encoded, rows_of
from fluxtune.lora.files import write_tensors
from fluxtune.lora.metadata import restated
from fluxtune.lora.opened import require_fit, require_published
from fluxtune.lora.reading import LoraFile, read_lora_file, require_family, told_of_reading


@dataclass(frozen=True)
class Wanted:
    """How a LoRA is to be written.

    Attributes:
        dtype: ``fp32``, ``bf16`` or ``fp16``; None is the format's own.
        size: to what it is to be cut down; None keeps all.
        scale: every layer's change is multiplied by it.
        verify: read the file back, by the second reader and by diffusers.
        denoise: the base model to compare a denoising step of, too.
        metadata: fields of the header beside what was read; empty ones are taken out.
        captions: keep the fields that hold words of captions, and names of folders.
    """

    format: LoraFormat
    output: Path
    dtype: str | None = None
    size: Size | None = None
    scale: float = 1.0
    verify: bool = True
    denoise: Base | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    captions: bool = False


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        layers: of diffusers; ``tensors`` of the file.
        error: the largest relative error of a layer's change against what was read; None where it was not verified.
        diffusers_error: the same as diffusers reads the file; None where it cannot, or it was not verified.
        denoised_error: of a denoising step's output, relative to what the LoRA changes; None where none was made.
        cut: the largest relative error of a layer that was cut down; 0 where none was.
    """

    file: Path
    sha256: str
    format: LoraFormat
    layers: int
    tensors: int
    bytes: int
    error: float | None
    diffusers_error: float | None
    denoised_error: float | None
    cut: float


def convert(
    source: Path, wanted: Wanted, on_event: Sink = ignore, family: Family = FLUX1, base: Base | None = None
) -> Written:
    """Write a LoRA file in another format.

    Args:
        base: the model that the LoRA was trained on, which a DoRA needs.

    Raises:
        UsageError: there is no such file, or the format cannot hold it.
        StorageError: the file is damaged, or the new one cannot be written.
        BaseModelError: it is no LoRA of the family.
        VerificationError: what was written does not say the same; no file is left.
    """
    lora = read(source, on_event, family, base)
    return write(lora.layers, lora.metadata, wanted, on_event, family)


def read(source: Path, on_event: Sink, family: Family, base: Base | None) -> LoraFile:
    """Read a LoRA file that is to be written anew; of the base model only the layers that a DoRA needs.

    Without the base model it has to fit the family's published models.

    Raises:
        UsageError, StorageError, BaseModelError: as ``convert``.
    """
    on_event(Phase("read", str(source)))
    lora = read_lora_file(source, family, weight_reader(base) if base else None)
    require_family(source, lora.metadata, family)
    if base is None:
        require_published(lora, family)
    else:
        require_fit(lora, base)
    told_of_reading(lora, on_event)
    return lora


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
        rows = {path: rows_of(path, each, family.layer_names, convention) for path, each in layers.items()}
        layers, cut = resized(layers, wanted.size, rows, on_event)
    dtype = DTYPES[wanted.dtype or convention.dtype]
    made = encoded(layers, family.layer_names, convention, dtype)
    on_event(Phase("write", str(wanted.output)))
    said = {"modelspec.title": wanted.output.stem, **metadata, **wanted.metadata}
    header = restated(said, made.tensors, layers, convention, wanted.captions)
    errors: dict[str, float] = {}

    tolerance = tolerance_of(dtype)

    def verified(file: Path) -> None:
        if wanted.verify:
            errors["error"] = compare(file, layers, tolerance)
            if seen := read_by_diffusers(layers, wanted.format, family):
                errors["diffusers_error"] = compare_with_diffusers(file, layers, seen, family, tolerance)
        if wanted.denoise is not None:
            errors["denoised_error"] = compare_denoised(
                file, layers, wanted.format, wanted.denoise, tolerance, on_event
            )

    def explained(file: Path) -> None:
        try:
            verified(file)
        except VerificationError as error:
            exact = encoded(layers, family.layer_names, convention, torch.float32).tensors
            raise (_too_small(exact, made.tensors, tolerance) or error) from None

    digest = write_tensors(wanted.output, made.tensors, header, check=explained)
    return Written(
        file=wanted.output,
        sha256=digest,
        format=wanted.format,
        layers=len(layers),
        tensors=len(made.tensors),
        bytes=wanted.output.stat().st_size,
        error=errors.get("error"),
        diffusers_error=errors.get("diffusers_error"),
        denoised_error=errors.get("denoised_error"),
        cut=max(cut.values(), default=0.0),
    )


def tolerance_of(dtype: torch.dtype) -> float:
    """Relative Frobenius error that the rounding of A and B to a precision explains."""
    return 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6


def _too_small(
    exact: Mapping[str, torch.Tensor], rounded: Mapping[str, torch.Tensor], tolerance: float
) -> VerificationError | None:
    """What a file cannot hold because its values are below what its precision tells apart; None where it can."""
    lost = [
        name
        for name, tensor in exact.items()
        if float((rounded[name].double() - tensor.double()).norm()) > tolerance * float(tensor.double().norm())
    ]
    if not lost:
        return None
    kind = str(rounded[lost[0]].dtype).removeprefix("torch.")
    return VerificationError(
        f"{len(lost)} tensors have values too small for {kind}, the first is {lost[0]}",
        hint="take --dtype fp32, or bf16, which has smaller values than fp16",
    )
