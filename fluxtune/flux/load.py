"""From a base model's files to modules in memory, each only while it is needed.

The files are a folder in diffusers' layout, and single files in the place of some of its parts. Whatever has weights is
streamed from memory-mapped safetensors to the device: see ``weights.py``.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.dataset.cache import key_of
from fluxtune.errors import BaseModelError, UsageError
from fluxtune.events import Sink, ignore
from fluxtune.files import fingerprint_of
from fluxtune.flux.empty import empty_text_encoder, empty_transformer, empty_vae, transformer_config
from fluxtune.flux.families import FAMILIES, Family, family_of
from fluxtune.flux.kept_weights import kept_weights
from fluxtune.flux.modulation import compute_ahead, is_modulation
from fluxtune.flux.single_files import require_part, stream
from fluxtune.flux.weights import (
    DTYPES,
    Holding,
    checked,
    fill,
    read_json,
    shapes_of,
    told,
    weight_files,
    wrong_weights,
)
from fluxtune.hub.layouts import INDEX, base_model
from fluxtune.hub.locate import locate
from fluxtune.memory.heap import trim_heap
from fluxtune.memory.offload import spread, stream_blocks
from fluxtune.memory.quantize import QUANTIZATIONS

VAE_TILE = 512
"""Side of the VAE's tiles, in pixels. Neighbours share a quarter of it, over which they are blended."""


@dataclass(frozen=True)
class Base:
    """A base model on disk: its name as configured, its folder, its family, and what its configs say.

    Attributes:
        files: part (``transformer``, ``vae``...) -> the single file that has its weights instead of the folder.
    """

    name: str
    folder: Path
    family: Family
    embeds_guidance: bool
    text_tokens: int
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def sampling_steps(self) -> int:
        """Denoising steps of a picture, unless somebody asks for others."""
        return self.family.sampling_steps(self.embeds_guidance)

    @property
    def commit(self) -> str | None:
        """The hub's commit that the files are of, as the hub's cache names its folder; None for other folders."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @property
    def text_encoders(self) -> list[str]:
        """Folders of the text encoders, in their order."""
        return [part for part in self.family.text_folders if not part.startswith("tokenizer")]

    def text_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the embeddings of one caption in ``dtype``, as the configs of the text encoders tell.

        Raises:
            BaseModelError: a config is missing or damaged.
        """
        configs = [read_json(self.folder / part / "config.json") for part in self.text_encoders]
        with _told_as_damage(self.folder):
            return self.family.text_values(configs, self.text_tokens) * dtype.itemsize

    def weight_files(self, part: str) -> list[Path]:
        """The files with the weights of a part.

        Raises:
            BaseModelError: there are none.
        """
        return [self.files[part]] if part in self.files else weight_files(self.folder / part)

    def fingerprint(self, *parts: str) -> str:
        """Hex digest of the files of some parts (``vae``, ``text_encoder``...), for cache keys."""
        named = {part: file for part, file in self.files.items() if part in parts}
        digest = fingerprint_of(
            self.folder,
            (
                file
                for part in parts
                for file in sorted((self.folder / part).rglob("*"))
                if file.is_file() and not (part in named and ".safetensors" in file.name)
            ),
        )
        marks = [f"{part}:{fingerprint_of(file.parent, [file])}" for part, file in sorted(named.items())]
        return key_of(digest, *marks) if marks else digest


def open_base(model: ModelConfig, on_event: Sink = ignore) -> Base:
    """Find the base model and check what it is, without loading weights.

    Of single files the names and shapes of all tensors are compared with the base's configs.

    Raises:
        BaseModelError: missing, gated, offline, incomplete, or of a family fluxtune does not train; or a single file
            is not what it was named as.
    """
    named = {part: getattr(model, part) for part in ("transformer", "vae", "text_encoder", "text_encoder_2")}
    files = {part: Path(os.path.expanduser(name)) for part, name in named.items() if name is not None}

    def check_index(index: Path) -> None:
        family = _family_in(index)
        for part, file in files.items():
            require_part(file, part, family.names)

    folder = locate(model.base, model.revision, model.offline, on_event, check_index, base_model(without=files))
    check_index(folder / INDEX)
    base = replace(base_in(folder, model.base), files=files)
    for part, file in files.items():
        names, shapes = base.family.names[part], shapes_of(_empty(base, part))
        for _ in checked(stream([file], names, shapes, content=False), shapes, str(file), names.hints):
            pass
    return base


def base_in(folder: Path, name: str) -> Base:
    """The base model in a folder, as its small files tell; its weights need not be there.

    Raises:
        BaseModelError: of a family fluxtune does not train, or damaged.
    """
    family = _family_in(folder / INDEX)
    embeds_guidance = bool(read_json(folder / "transformer" / "config.json").get("guidance_embeds"))
    tokenizer_file = folder / family.text_folders[-1] / "tokenizer_config.json"
    tokenizer_length = read_json(tokenizer_file).get("model_max_length")
    if tokenizer_length is None:
        raise wrong_weights(tokenizer_file, "model_max_length is missing")
    text_tokens = family.text_tokens(embeds_guidance, int(tokenizer_length))
    return Base(name, folder, family, embeds_guidance, text_tokens)


def _family_in(index: Path) -> Family:
    """The family that a ``model_index.json`` names.

    Raises:
        BaseModelError: fluxtune trains no such models.
    """
    pipeline = str(read_json(index).get("_class_name"))
    family = family_of(pipeline)
    if family is None:
        known = ", ".join(known.pipeline for known in FAMILIES)
        raise BaseModelError(
            f"this is a {pipeline} model; fluxtune trains {known}",
            where=str(index),
            hint="choose a FLUX.1 model, for instance --base black-forest-labs/FLUX.1-dev",
        )
    return family


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
    transformer = _empty(base, "transformer")
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
    paths = [
        f"{name}.{index}"
        for name in family.blocks
        for index, _ in enumerate(transformer.get_submodule(name).children())
    ]
    if number > len(paths):
        raise UsageError(
            f"{number} blocks shall be streamed, and the base model has {len(paths)}",
            where="memory.streamed_blocks",
            hint=f"set it to {len(paths)} or less",
        )
    return spread(paths, number)


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
    streamed = streamed_blocks(transformer, family, memory.streamed_blocks)
    if streamed:
        stream_blocks([transformer.get_submodule(block) for block in streamed], device)
    return transformer


def load_vae(base: Base, dtype: torch.dtype, device: str, tiling: bool = False) -> Any:
    """The frozen VAE on ``device``.

    Args:
        tiling: pictures larger than a tile are encoded and decoded tile by tile.

    Raises:
        BaseModelError: its files are damaged.
    """
    vae = _load(base, "vae", _empty(base, "vae"), Holding(dtype, device))
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
        "text_encoder": _load(base, "text_encoder", _empty(base, "text_encoder"), Holding(held, device)),
        "text_encoder_2": _load(
            base, "text_encoder_2", _empty(base, "text_encoder_2"), holding, memory.cache_quantized, on_event
        ),
    }
    with _told_as_damage(base.folder):
        return _pipeline_class(base).from_pretrained(base.folder, transformer=None, vae=None, **encoders)


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
            fill(module, weights, replace(holding, kept=kept))
    else:
        fill(module, weights, holding)
    if part.startswith("text_encoder"):
        module.tie_weights()  # to the ones that came
    return module


def _empty(base: Base, part: str) -> Any:
    with _told_as_damage(base.folder / part):
        if part == "transformer":
            return empty_transformer(base.family, transformer_config(base.family, base.folder))
        return empty_vae(base.folder) if part == "vae" else empty_text_encoder(base.folder, part)


def load_tokenizers(base: Base) -> list[Any]:
    """The tokenizers of the text encoders, in their order; the last one's text is what the transformer reads.

    Raises:
        BaseModelError: their files are damaged.
    """
    from transformers import AutoTokenizer

    folders = [base.folder / part for part in base.family.text_folders if part.startswith("tokenizer")]
    with _told_as_damage(base.folder):
        return [AutoTokenizer.from_pretrained(folder) for folder in folders]


def image_pipeline(base: Base, transformer: Any, vae: Any) -> Any:
    """The family's pipeline around a loaded transformer and VAE, without text encoders.

    It computes in the precision of the transformer's weights, and so the VAE takes that one.
    """
    if vae.dtype != transformer.dtype:
        vae.to(transformer.dtype)
    pipeline = _pipeline_class(base).from_pretrained(
        base.folder,
        transformer=transformer,
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def free_memory() -> None:
    """Give back what dropped modules held, before the next one loads."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pipeline_class(base: Base) -> Any:
    import diffusers

    return getattr(diffusers, base.family.pipeline)


@contextmanager
def _told_as_damage(place: Path) -> Iterator[None]:
    """Turns what the libraries raise over damaged files into one message. Lack of memory is something else."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise wrong_weights(place, f"a part of the base model cannot be read ({error})") from error
