"""From a base model's files to modules in memory, each only while it is needed.

Whatever has weights is streamed from memory-mapped safetensors to the device: see ``weights.py``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.errors import UsageError
from fluxtune.events import Sink, ignore
from fluxtune.flux.base import Base, empty_part, told_as_damage
from fluxtune.flux.empty import empty_transformer
from fluxtune.flux.families import Family
from fluxtune.flux.kept_weights import kept_weights
from fluxtune.flux.modulation import compute_ahead, is_modulation
from fluxtune.flux.single_files import stream
from fluxtune.flux.weights import (
    DTYPES,
    Holding,
    checked,
    fill,
    shapes_of,
    told,
)
from fluxtune.memory.heap import trim_heap
from fluxtune.memory.offload import move_frozen, spread, stream_blocks, to_system_memory
from fluxtune.memory.quantize import QUANTIZATIONS

VAE_TILE = 512
"""Side of the VAE's tiles, in pixels. Neighbours share a quarter of it, over which they are blended."""


def load_transformer(base: Base, memory: MemoryConfig, dtype: torch.dtype, device: str, on_event: Sink = ignore) -> Any:
    """The frozen transformer on ``device``.

    Linear layers of the blocks are held as ``memory.base_precision`` says; everything else is in ``dtype``. Modulation
    weights that are not on the card are never quantised. Of the blocks, ``memory.streamed_blocks`` live in system
    memory and come to the device when they are needed.

    Raises:
        BaseModelError: a weight is missing, of the wrong shape, or unreadable.
        StorageError: quantised weights are to be kept, and the disk has no room for them.
        UsageError: more blocks shall be streamed than there are.
    """
    transformer = empty_part(base, "transformer")
    holding = _holding(transformer, base.family, memory, dtype, device)
    _load(base, "transformer", transformer, holding, memory.cache_quantized, on_event)
    return _arranged(transformer, base.family, memory, device)


def build_transformer(
    family: Family,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    memory: MemoryConfig,
    dtype: torch.dtype,
    device: str,
    where: str,
) -> Any:
    """The transformer of ``config`` with its weights taken from ``tensors``, one at a time; as ``load_transformer``.

    Args:
        config: of the family's transformer class, as its ``load_config`` gives it.
        tensors: (name, tensor) of every parameter, in any order.
        where: the place that errors name.

    Raises:
        BaseModelError: a weight is missing, unexpected or of the wrong shape.
        UsageError: more blocks shall be streamed than there are.
    """
    transformer = empty_transformer(family, config)
    fill(
        transformer,
        checked(tensors, shapes_of(transformer), where),
        _holding(transformer, family, memory, dtype, device),
        where,
    )
    return _arranged(transformer, family, memory, device)


def is_held_quantized(path: str, family: Family, memory: MemoryConfig) -> bool:
    """Whether a linear layer of the transformer is quantised, where the precision says so: one of the blocks, unless it
    makes modulation off the card."""
    in_blocks = path.startswith(tuple(f"{blocks}." for blocks in family.blocks))
    return in_blocks and not _stays(path, family, memory)


def streamed_blocks(transformer: nn.Module, family: Family, number: int) -> list[str]:
    """The paths of ``number`` blocks, in the order of the forward: those to be streamed.

    Raises:
        UsageError: there are not so many.
    """
    paths = block_paths(transformer, family)
    if number > len(paths):
        raise UsageError(
            f"{number} blocks shall be streamed, and the base model has {len(paths)}",
            where="memory.streamed_blocks",
            hint=f"set it to {len(paths)} or less",
        )
    return spread(paths, number)


def block_paths(transformer: nn.Module, family: Family) -> list[str]:
    """The paths of all blocks, in the order of the forward."""
    return [
        f"{name}.{index}"
        for name in family.blocks
        for index, _ in enumerate(transformer.get_submodule(name).children())
    ]


def _stays(path: str, family: Family, memory: MemoryConfig) -> bool:
    return memory.modulation != "card" and is_modulation(path, family)


def _holding(transformer: Any, family: Family, memory: MemoryConfig, dtype: torch.dtype, device: str) -> Holding:
    away = tuple(f"{block}." for block in streamed_blocks(transformer, family, memory.streamed_blocks))
    return Holding(
        dtype,
        device,
        memory.base_precision,
        quantises=lambda path: is_held_quantized(path, family, memory),
        stays=lambda path: _stays(path, family, memory),
        streams=lambda path: path.startswith(away),
    )


def _arranged(transformer: Any, family: Family, memory: MemoryConfig, device: str) -> Any:
    """The transformer with its weights, whose modulation is computed ahead and whose blocks are streamed as wanted."""
    if memory.modulation != "card":
        compute_ahead(transformer, family)
    stream_evenly(transformer, family, memory.streamed_blocks, device)
    return transformer


def stream_evenly(transformer: Any, family: Family, number: int, device: str) -> None:
    """Streams ``number`` of the transformer's blocks, however many were streamed before, with an adapter or without.

    Those that are to be streamed leave the device before it is asked for the places that they take turns in; where it
    has none, this can be called again. Not between a forward and its backward.

    Raises:
        UsageError: there are not so many blocks.
        RuntimeError: memory does not suffice.
    """
    streamed = streamed_blocks(transformer, family, number)
    if getattr(transformer, "block_stream", None) is not None:
        transformer.block_stream.end()
        transformer.block_stream = None
    for path in streamed:
        to_system_memory(transformer.get_submodule(path))
    for path in block_paths(transformer, family):
        if path not in streamed:
            move_frozen(transformer.get_submodule(path), device)
    if streamed:
        transformer.block_stream = stream_blocks([transformer.get_submodule(path) for path in streamed], device)


def load_vae(base: Base, dtype: torch.dtype, device: str, tiling: bool = False) -> Any:
    """The frozen VAE on ``device``.

    Args:
        tiling: pictures larger than a tile are encoded and decoded tile by tile.

    Raises:
        BaseModelError: its files are damaged.
    """
    vae = _load(base, "vae", empty_part(base, "vae"), Holding(dtype, device))
    if tiling:
        tile(vae)
    return vae


def tile(vae: Any) -> None:
    """Makes a VAE go over pictures larger than ``VAE_TILE`` tile by tile."""
    vae.enable_tiling()
    vae.tile_sample_min_size = VAE_TILE
    vae.tile_latent_min_size = VAE_TILE // 2 ** (len(vae.config.block_out_channels) - 1)


def load_text_pipeline(
    base: Base, memory: MemoryConfig, dtype: torch.dtype, device: str, on_event: Sink = ignore
) -> Any:
    """The family's pipeline with tokenizers and text encoders only, held as ``memory.text_precision`` says.

    Args:
        dtype: precision of what is not quantised, where the T5 encoder is.

    Raises:
        BaseModelError: the files of the text encoders or tokenizers are damaged.
        StorageError: quantised weights are to be kept, and the disk has no room for them.
    """
    precision = memory.text_precision
    held = DTYPES.get(precision, dtype)
    holding = Holding(dtype, device, precision, lambda path: is_text_quantized(path, precision))
    encoders = {
        "text_encoder": _load(base, "text_encoder", empty_part(base, "text_encoder"), Holding(held, device)),
        "text_encoder_2": _load(
            base, "text_encoder_2", empty_part(base, "text_encoder_2"), holding, memory.cache_quantized, on_event
        ),
    }
    with told_as_damage(base.folder):
        return _pipeline(base, transformer=None, vae=None, **encoders)


def is_text_quantized(path: str, precision: str) -> bool:
    """Whether a linear layer of the long text encoder is quantised, where the precision says so."""
    # Products through float16 exceed its range in T5's last projections.
    return not (QUANTIZATIONS[precision].float16_products and path.endswith(".wo"))


def _load(base: Base, part: str, module: Any, holding: Holding, keeps: bool = False, on_event: Sink = ignore) -> Any:
    """A part of the base, given its weights.

    Args:
        module: the part on the meta device.
        keeps: quantised weights are taken from the cache, and brought into it.
    """
    files = base.weight_files(part)
    names, shapes = base.family.names[part], shapes_of(module)
    where = str(base.files.get(part, base.folder / part))
    weights = checked(stream(files, names, shapes), shapes, where, names.hints)
    total = sum(weight.nbytes for _, weight in stream(files, names, shapes, content=False))
    weights = told(weights, total, f"load {part.replace('_', ' ')}", on_event)
    if keeps and (precision := holding.quantized):
        linears = {path: layer for path, layer in module.named_modules() if type(layer) is nn.Linear}
        layers = {path: layer for path, layer in linears.items() if holding.quantises(path)}
        mark = base.fingerprint(part)
        with kept_weights(layers, mark, precision, holding.dtype, holding.device, on_event) as kept:
            fill(module, weights, replace(holding, kept=kept), where)
    else:
        fill(module, weights, holding, where)
    if part.startswith("text_encoder"):
        module.tie_weights()  # to the ones that came
    return module


def image_pipeline(base: Base, transformer: Any, vae: Any) -> Any:
    """The family's pipeline around a loaded transformer and VAE, without text encoders.

    It computes in the precision of the transformer's weights, and so the VAE takes that one.
    """
    if vae.dtype != transformer.dtype:
        vae.to(transformer.dtype)
    absent = dict.fromkeys(base.family.text_folders)
    pipeline = _pipeline(base, transformer=transformer, vae=vae, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def free_memory() -> None:
    """Give back what dropped modules held, before the next one loads."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pipeline(base: Base, **parts: Any) -> Any:
    """The family's pipeline of these parts; what is not given are the tokenizers and the scheduler of the base."""
    import diffusers

    kind = getattr(diffusers, base.family.pipeline)
    unused = dict.fromkeys(kind._optional_components)
    return kind.from_pretrained(
        base.folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, **{**unused, **parts}
    )
