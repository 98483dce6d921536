"""From a base model's files to modules in memory, each only while it is needed.

The files are a folder in diffusers' layout, and single files in the place of some of its parts. Whatever has weights is
streamed from memory-mapped safetensors to the device: see ``weights.py``.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from fluxtune.errors import BaseModelError
from fluxtune.events import Sink, ignore
from fluxtune.files import fingerprint_of
from fluxtune.flux.families import FAMILIES, Family, family_of
from fluxtune.flux.kept_weights import kept_weights
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

    def text_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the embeddings of one caption in ``dtype``, as the configs of the text encoders tell.

        Raises:
            BaseModelError: a config is missing or damaged.
        """
        parts = [part for part in self.family.text_folders if not part.startswith("tokenizer")]
        configs = [read_json(self.folder / part / "config.json") for part in parts]
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
        names, shapes = base.family.names[part], shapes_of(_hollow(base, part))
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

    Linear layers of the blocks are held as ``memory.base_precision`` says; everything else is in ``dtype``.

    Raises:
        BaseModelError: a weight is missing, of the wrong shape, or unreadable.
        StorageError: quantised weights are to be kept, and the disk has no room for them.
    """
    holding = Holding(dtype, device, memory.base_precision, _in_blocks(base.family))
    return _load(base, "transformer", holding, memory.cache_quantized, on_event)


def build_transformer(
    family: Family,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    memory: MemoryConfig,
    dtype: torch.dtype,
    device: str,
    where: str,
) -> Any:
    """The transformer of ``config`` with its weights taken from ``tensors``, one at a time.

    Args:
        config: of the family's transformer class, as its ``load_config`` gives it.
        tensors: (name, tensor) of every parameter, in any order.
        where: the place that errors name.

    Raises:
        BaseModelError: a weight is missing, unexpected or of the wrong shape.
    """
    transformer = _hollow_transformer(family, config)
    holding = Holding(dtype, device, memory.base_precision, _in_blocks(family))
    fill(transformer, checked(tensors, shapes_of(transformer), where), holding)
    return transformer


def load_vae(base: Base, dtype: torch.dtype, device: str) -> Any:
    """The frozen VAE on ``device``.

    Raises:
        BaseModelError: its files are damaged.
    """
    return _load(base, "vae", Holding(dtype, device))


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
    # int8 products pass through float16, whose range T5's last projections exceed.
    quantises = (lambda path: not path.endswith(".wo")) if precision == "int8" else (lambda path: True)
    holding = Holding(dtype, device, precision, quantises)
    encoders = {
        "text_encoder": _load(base, "text_encoder", Holding(held, device)),
        "text_encoder_2": _load(base, "text_encoder_2", holding, memory.cache_quantized, on_event),
    }
    with _told_as_damage(base.folder):
        return _pipeline_class(base).from_pretrained(base.folder, transformer=None, vae=None, **encoders)


def _in_blocks(family: Family) -> Callable[[str], bool]:
    """Whether a path lies in the transformer's blocks, whose linear layers are quantised."""
    return lambda path: path.startswith(tuple(f"{blocks}." for blocks in family.blocks))


def _load(base: Base, part: str, holding: Holding, keeps: bool = False, on_event: Sink = ignore) -> Any:
    """A part of the base with its weights.

    Args:
        keeps: quantised weights are taken from the cache, and brought into it.
    """
    module, files = _hollow(base, part), base.weight_files(part)
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


def _hollow(base: Base, part: str) -> Any:
    """A part of the base on the meta device, from its config alone."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    folder = base.folder / part
    if part == "transformer":
        return _hollow_transformer(base.family, getattr(diffusers, base.family.transformer).load_config(folder))
    with _told_as_damage(folder), init_empty_weights():
        if part == "vae":
            return diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(folder))
        config = transformers.AutoConfig.from_pretrained(folder)
        module = getattr(transformers, config.architectures[0])._from_config(config)
    module.tie_weights()  # undone by the making without memory
    return module


def _hollow_transformer(family: Family, config: dict[str, Any]) -> Any:
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights():
        return getattr(diffusers, family.transformer).from_config(config)


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
