"""A folder of a transformers model that reads pictures and writes text -> the model and its processor.

Only classes of the library itself are used: code that comes with a model is never run, and weights are read from
safetensors alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxtune.captioning.faults import blaming
from fluxtune.errors import BaseModelError
from fluxtune.memory.shortage import fits_in_memory
from fluxtune.tensor_files import TensorFileError, read_header

_OWN = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Loaded:
    """A captioning model ready to work, and where it is from; `dtype` is that of the pixels it takes."""

    folder: Path
    model: Any
    processor: Any
    device: str
    dtype: torch.dtype


def model_type_of(folder: Path) -> str:
    """The architecture of the model in a folder.

    Raises:
        BaseModelError: its config cannot be read, or the installed transformers has no such model that turns pictures
            into text.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    path = folder / "config.json"
    try:
        kind = str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BaseModelError(
            "this is no model's config: it names no model_type", where=str(path), hint="choose another captioner"
        ) from error
    if kind not in KNOWN:
        raise BaseModelError(
            f"a model of type {kind!r} does not caption pictures, or is not in the installed transformers "
            "(code that comes with a model is never run)",
            where=str(path),
            hint="use blip, blip-2, florence-2, qwen-vl, smolvlm, joycaption, or another model that transformers "
            "lists for image-text-to-text",
        )
    return kind


def load_model(
    folder: Path, precision: str, device: str, check_processor: Callable[[Any], object] = lambda _: None
) -> Loaded:
    """Loads model and processor.

    Args:
        precision: ``auto``, ``fp32``, ``bf16``, ``int8`` or ``nf4``.
        device: ``cpu`` or ``cuda``.
        check_processor: is given the processor before the weights are read; may raise.

    Raises:
        BaseModelError: the weights do not fit the architecture, or a file is damaged.
        OutOfMemoryError: the model does not fit.
    """
    from transformers import AutoModelForImageTextToText

    half = precision == "bf16" or (precision != "fp32" and device == "cuda")
    dtype = torch.bfloat16 if half else torch.float32
    with (
        blaming(folder, "the captioner cannot be loaded", "download it again, or choose another"),
        fits_in_memory("the captioner", "hold it in captioning.precision=int8 or nf4, or choose a smaller one"),
    ):
        processor = _load_processor(folder)
        check_processor(processor)
        _require_whole_weights(folder)
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            quantization_config=_quantization(precision, dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # which only means that they are told in the report
            output_loading_info=True,
            **_OWN,
        )
        _require_all_weights(report)
        return Loaded(folder, model.eval(), processor, device, dtype)


def _require_whole_weights(folder: Path) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            read_header(file)
        except TensorFileError as error:
            told = f"the captioner cannot be loaded: {error}"
            raise BaseModelError(told, where=str(file), hint=error.hint) from error


def _quantization(precision: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if precision == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return None


def _require_all_weights(report: dict[str, Any]) -> None:
    """transformers fills what is missing with noise and only warns."""
    unfit = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if unfit:
        raise BaseModelError(
            f"the weights in this folder are not those of its architecture: {len(unfit)} are missing or of another "
            f"shape, such as {unfit[0]}",
            hint="it may be made for code of its own, which is never run; look for a conversion for transformers "
            "(of Florence-2: florence-community/Florence-2-large)",
        )


def _load_processor(folder: Path) -> Any:
    """The model's processor; one that could read videos, too, goes without: that takes torchvision, and captions
    of pictures do not."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(folder, **_OWN)), None)
    if is_torchvision_available() or kind is None or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(folder, **_OWN)

    class PicturesOnly(kind):  # type: ignore[valid-type, misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

    return PicturesOnly.from_pretrained(folder, video_processor=None, **_OWN)
