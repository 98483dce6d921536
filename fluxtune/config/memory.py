"""``[memory]``: what fits the card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fluxtune.config.base import Section, section, setting

Count = Annotated[int, Field(ge=0, le=1000)]


class KeepConfig(Section):
    """``[memory.keep]``: blocks that keep more than their input, although `memory.recompute` is all.

    For each kind of block, in the order in which the model runs them, how many: of FLUX.1 the 19 double and the 38
    single blocks. The last blocks of a kind keep everything, those before them products, those before them attention.
    """

    attention: list[Count] = setting([], "How many blocks of each kind keep the results of attention.")
    products: list[Count] = setting(
        [],
        "How many blocks of each kind keep the results of matrix products and attention, so that only what goes "
        "element by element is computed again.",
    )
    everything: list[Count] = setting([], "How many blocks of each kind recompute nothing.")


Precision = Literal["fp32", "bf16", "int8", "int8-weights", "fp8", "nf4", "auto"]


class MemoryConfig(Section):
    """The toggles of the memory tiers."""

    budget: float | None = setting(
        None,
        "Memory of the graphics card to plan for, with what CUDA takes for itself; unset means what is free on the "
        "card. Where less is free than that, what is free counts.",
        unit="GiB",
        gt=0.0,
        le=1024.0,
    )
    base_precision: Precision = setting(
        "bf16",
        "How the frozen base is held: fp32, bf16, int8 (bitsandbytes; multiplies in 8 bits on a card), int8-weights or "
        "fp8 (8 bits, multiplied in training.precision), nf4 (4 bits, bitsandbytes), or auto, as precisely as fits: "
        "bf16, int8, nf4. docs/precisions.md compares them.",
    )
    text_precision: Precision = setting(
        "bf16",
        "How the text encoders are held while captions are encoded; auto, as precisely as fits (bf16, int8, nf4).",
    )
    modulation: Literal["card", "ahead", "auto"] = setting(
        "card",
        "Where the modulation (adaLN) weights live, 27 % of the model: card; ahead, in system memory and unquantised, "
        "what they answer being computed ahead; auto, whichever makes a step faster on the card, and card where the "
        "LoRA trains the embedders before them.",
    )
    recompute: Literal["none", "all", "auto"] = setting(
        "all",
        "Gradient checkpointing: all recomputes blocks in the backward pass, save what memory.keep says; none keeps "
        "everything; auto recomputes as little as fits the card, and where not even all fits, tiles the VAE, offloads "
        "activations and streams blocks.",
    )
    streamed_blocks: int = setting(
        0,
        "How many of the transformer's blocks live in system memory and are copied to the card ahead of use; spread "
        "evenly, so that the copies hide behind the blocks that stay.",
        ge=0,
    )
    offload_activations: bool = setting(
        False,
        "Whether the inputs of recomputed blocks wait for the backward pass in system memory: 28 MB a block of FLUX.1 "
        "at 1,024 px.",
    )
    vae_tiling: bool = setting(
        False,
        "Whether the VAE goes over pictures larger than 512 px tile by tile: less memory, and a slightly different "
        "picture.",
    )
    cache_quantized: bool = setting(
        False,
        "Keep quantised weights in the cache, so that the next start takes seconds; FLUX.1 takes 12 GB of disk in "
        "8 bits, 6 GB in NF4.",
    )
    keep: KeepConfig = section(KeepConfig, "What blocks keep all the same, by kind of block.")
