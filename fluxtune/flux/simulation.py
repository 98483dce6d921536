"""The parts of a base model on tensors without content: what loading, encoding text and painting take in memory.

Training and sampling foretell their peaks with these, by the very functions that the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.flux.base import Base
from fluxtune.flux.empty import empty_text_encoder, empty_transformer, empty_vae
from fluxtune.flux.families import Family
from fluxtune.flux.load import is_held_quantized, is_text_quantized, streamed_blocks, tile
from fluxtune.flux.modulation import compute_ahead
from fluxtune.flux.weights import DTYPES
from fluxtune.memory.ledger import TEMPORARIES, Ledger
from fluxtune.memory.offload import stream_blocks
from fluxtune.memory.quantize import QuantizedPrecision, is_quantized, replace_module
from fluxtune.memory.simulate import DEVICE, SimulatedTransfers, give_content, simulate
from fluxtune.memory.stand_ins import QuantizedStandIn


def encoding_texts(base: Base, precision: str, dtype: torch.dtype, as_cuda: bool, capacity: int | None) -> Ledger:
    """Simulates the encoding of one text, with the encoders held in ``precision`` and computed with in ``dtype``."""
    encoders = [empty_text_encoder(base.folder, part) for part in base.text_encoders]
    if is_quantized(precision):
        put_stand_ins(encoders[-1], precision, dtype, as_cuda, lambda path: is_text_quantized(path, precision))

    def build(ledger: Ledger) -> list[Any]:
        with ledger.phase("encode captions"):
            for encoder in encoders:
                give_weights(encoder, DTYPES.get(precision, dtype))
                claim_weights(encoder, ledger)
        return encoders

    def step(encoders: list[Any], ledger: Ledger) -> None:
        with ledger.phase("encode captions"), torch.no_grad(), torch.device(DEVICE):
            for encoder, tokens in zip(encoders, base.family.text_lengths(encoders, base.text_tokens), strict=True):
                encoder(torch.zeros(1, tokens, dtype=torch.long))

    return simulate(build, step, as_cuda, capacity)


def held_transformer(
    family: Family, config: Mapping[str, Any], memory: MemoryConfig, dtype: torch.dtype, as_cuda: bool
) -> Any:
    """The transformer of a config with layers as ``memory`` holds them, before any adapter; still without weights."""
    transformer, precision = empty_transformer(family, config), memory.base_precision
    if memory.modulation == "ahead":
        compute_ahead(transformer, family)
    if is_quantized(precision):
        put_stand_ins(transformer, precision, dtype, as_cuda, lambda path: is_held_quantized(path, family, memory))
    return transformer


def claim_transformer(
    transformer: Any,
    family: Family,
    memory: MemoryConfig,
    dtype: torch.dtype,
    ledger: Ledger,
    transfers: SimulatedTransfers,
) -> None:
    """Gives it weights, and while the last of them comes its own precision beside what it is held in."""
    precision = memory.base_precision
    give_weights(transformer, DTYPES.get(precision, dtype))
    streamed = streamed_blocks(transformer, family, memory.streamed_blocks)
    if streamed:
        stream_blocks([transformer.get_submodule(block) for block in streamed], DEVICE, transfers=transfers)
    claim_weights(transformer, ledger)
    if is_quantized(precision):
        largest = max(
            each.in_features * each.out_features for each in transformer.modules() if isinstance(each, nn.Linear)
        )
        for source in [torch.empty(largest, dtype=kind, device=DEVICE) for kind in (dtype, torch.float16)]:
            ledger.claim(source, TEMPORARIES)


def held_vae(base: Base, tiling: bool) -> Any:
    """The VAE, which goes over pictures tile by tile with ``tiling``; still without weights."""
    vae = empty_vae(base.folder)
    if tiling:
        tile(vae)
    return vae


def give_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Gives a module on the meta device weights: frozen ones in ``dtype``, those of an adapter in float32."""
    give_content(module, lambda each: torch.float32 if each.requires_grad else dtype)


def claim_weights(module: nn.Module, ledger: Ledger) -> None:
    """Counts a module's tensors as weights, those that are trained as an adapter's."""
    for tensor in (*module.parameters(), *module.buffers()):
        ledger.claim(tensor, "adapter" if tensor.requires_grad else "weights")


def put_stand_ins(
    module: nn.Module, precision: QuantizedPrecision, dtype: torch.dtype, as_cuda: bool, wanted: Callable[[str], bool]
) -> None:
    """Puts stand-ins of quantised layers in the place of the linear layers that are wanted."""
    for path, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and wanted(path):
            replace_module(module, path, QuantizedStandIn(layer, precision, dtype, as_cuda))
