"""Prompts encoded for all pictures at once, so that the text encoders are in memory only meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxtune.events import Phase, Sink
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.families import Text
from fluxtune.flux.load import free_memory, load_text_pipeline
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.loras import Lora, acting, apply_to_text_encoder
from fluxtune.sampling.request import SampleRequest
from fluxtune.sampling.wanted import Wanted
from fluxtune.sentences import counted


class Texts:
    """The encoded prompts of some pictures, in system memory; those of LoRAs that change the encoders apart."""

    def __init__(self, loras: Mapping[Path, Lora]) -> None:
        self._loras = loras
        self._texts: dict[tuple[tuple[LoraUse, ...], str], Text] = {}

    def of(self, uses: Sequence[LoraUse], prompt: str, device: str) -> Text:
        """A prompt as it is encoded with these LoRAs."""
        return {name: tensor.to(device) for name, tensor in self._texts[self._changing(uses), prompt].items()}

    def encode(
        self, request: SampleRequest, base: Base, pictures: Sequence[Wanted], device: str, on_event: Sink
    ) -> None:
        """Load the text encoders, encode all prompts, and let the encoders go."""
        wanted: dict[tuple[LoraUse, ...], dict[str, None]] = {}
        for picture in pictures:
            prompts = wanted.setdefault(self._changing(picture.loras), {})
            prompts |= dict.fromkeys(text for text in (picture.prompt, picture.negative_prompt) if text is not None)
        number = len({prompt for prompts in wanted.values() for prompt in prompts})
        on_event(Phase("encode", counted(number, "prompt")))
        pipeline = load_text_pipeline(base, request.memory, DTYPES[request.precision], device, on_event)
        # Without LoRAs first: then the encoders are as they are loaded.
        for uses in sorted(wanted, key=len):
            if uses:
                apply_to_text_encoder(pipeline, acting(self._loras, uses))
            for prompt in wanted[uses]:
                self._texts[uses, prompt] = _in_system_memory(encode_prompt(base, pipeline, prompt))
        del pipeline
        free_memory()

    def _changing(self, uses: Sequence[LoraUse]) -> tuple[LoraUse, ...]:
        return tuple(use for use in uses if self._loras[use.path].changes_text)


def _in_system_memory(text: dict[str, Any]) -> Text:
    return {name: tensor.cpu() for name, tensor in text.items()}
