"""What making pictures takes of the card, known before weights load: each phase on tensors without content."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fluxtune.config.lora import LoraConfig
from fluxtune.config.memory import MemoryConfig
from fluxtune.dataset.images import Size
from fluxtune.flux.base import Base
from fluxtune.flux.empty import transformer_config
from fluxtune.flux.simulation import (
    claim_transformer,
    claim_weights,
    encoding_texts,
    give_weights,
    held_transformer,
    held_vae,
)
from fluxtune.lora.adapter import attach
from fluxtune.memory.forecast import Forecast, phase_peaks
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.simulate import DEVICE, SimulatedTransfers, simulate

_RANK = 16
"""Of the LoRA that stands for all: what it computes with beside the weights hardly depends on it."""


@dataclass(frozen=True)
class Painting:
    """What decides how much memory pictures take.

    Attributes:
        size: (width, height) in pixels of the largest.
        batch: how many are made at once.
        led_away: some have a negative prompt.
        started: some begin with a picture.
        lora_bytes: of the LoRAs that act together; 0 for none.
        as_cuda: count as a graphics card does, else as the processor.
        capacity: bytes of the card that the allocator can have; None for as many as it asks for.
        to_the_bit: nothing may be planned that changes pixels.
    """

    base: Base
    memory: MemoryConfig
    dtype: torch.dtype
    size: Size
    batch: int
    led_away: bool
    started: bool
    lora_bytes: int
    as_cuda: bool
    capacity: int | None
    to_the_bit: bool = False

    def with_memory(self, **settings: Any) -> Painting:
        """The same with other settings of ``[memory]``."""
        return replace(self, memory=self.memory.model_copy(update=settings))


def foresee_texts(painting: Painting) -> Forecast:
    """Simulates the encoding of prompts alone."""
    memory = painting.memory
    ledger = encoding_texts(painting.base, memory.text_precision, painting.dtype, painting.as_cuda, painting.capacity)
    return Forecast(phase_peaks(ledger.moments))


def foresee_pictures(painting: Painting) -> Forecast:
    """Simulates loading the transformer and the VAE, a denoising step and a picture."""
    # What is held in float32 is computed with in it.
    dtype = torch.float32 if painting.memory.base_precision == "fp32" else painting.dtype
    base, memory, (width, height) = painting.base, painting.memory, painting.size
    config = transformer_config(base.family, base.folder)
    transformer = held_transformer(base.family, config, memory, dtype, painting.as_cuda)
    if painting.lora_bytes:
        with torch.device(DEVICE):
            attach(transformer, LoraConfig(rank=_RANK, targets="attention+mlp"), base.family, seed=0)
        transformer.requires_grad_(False)
    vae = held_vae(base, memory.vae_tiling)
    multiple = base.family.side_multiple
    shape = (painting.batch, config["in_channels"], height // multiple, width // multiple)

    def build(ledger: Ledger) -> dict[str, torch.Tensor]:
        with ledger.phase("load"):
            claim_transformer(transformer, base.family, memory, dtype, ledger, SimulatedTransfers(ledger))
            give_weights(vae, dtype)
            claim_weights(vae, ledger)
            loras = torch.empty(painting.lora_bytes, dtype=torch.uint8, device=DEVICE)
            ledger.claim(loras, "adapter")
            texts = {
                name: tensor.to(DEVICE, dtype)
                for name, tensor in base.family.blank_text(config, painting.batch, base.text_tokens).items()
            }
            for tensor in texts.values():
                ledger.claim(tensor, "inputs")
        return {**texts, "": loras}

    def step(held: dict[str, torch.Tensor], ledger: Ledger) -> None:
        texts = {name: tensor for name, tensor in held.items() if name}
        guidance = base.family.sampling_guidance if base.embeds_guidance else None
        with torch.no_grad():
            if painting.started:
                with ledger.phase("encode the start picture"):
                    pixels = torch.zeros(1, 3, height, width, dtype=dtype, device=DEVICE)
                    base.family.encode_image(vae, pixels, torch.Generator())
                    del pixels
            with ledger.phase("denoise"):
                latents = torch.zeros(shape, dtype=dtype, device=DEVICE)
                sigmas = torch.zeros(painting.batch, device=DEVICE)
                velocity = base.family.forward(transformer, latents, sigmas, texts, guidance)
                if painting.led_away:
                    velocity = velocity + base.family.forward(transformer, latents, sigmas, texts, guidance)
                latents = latents + velocity
            with ledger.phase("decode"):
                base.family.decode_image(vae, latents)

    return Forecast(phase_peaks(simulate(build, step, painting.as_cuda, painting.capacity).moments))
