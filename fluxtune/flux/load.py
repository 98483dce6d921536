"""From a base model's files to modules in memory, each only while it is needed.

The transformer is streamed tensor by tensor from memory-mapped safetensors to the device, quantised on the way: system
memory never holds a second copy of it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError
from fluxtune.events import Sink, ignore
from fluxtune.files import fingerprint_of
from fluxtune.flux.families import FAMILIES, Family, family_of
from fluxtune.hub.layouts import INDEX
from fluxtune.hub.locate import locate
from fluxtune.memory.quantize import QUANTIZATIONS, is_quantized, quantize_linears, quantized_linear, replace_module

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Base:
    """A base model on disk: its name as configured, its folder, its family, and what its configs say."""

    name: str
    folder: Path
    family: Family
    embeds_guidance: bool
    text_tokens: int

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
        configs = [_read_json(self.folder / part / "config.json") for part in parts]
        with _told_as_damage(self.folder):
            return self.family.text_values(configs, self.text_tokens) * dtype.itemsize

    def fingerprint(self, *parts: str) -> str:
        """Hex digest of the files of some parts (``vae``, ``text_encoder``...), for cache keys."""
        return fingerprint_of(
            self.folder, (file for part in parts for file in sorted((self.folder / part).rglob("*")) if file.is_file())
        )


def open_base(model: ModelConfig, on_event: Sink = ignore) -> Base:
    """Find the base model and check what it is, without loading weights.

    Raises:
        BaseModelError: missing, gated, offline, incomplete, or of a family fluxtune does not train.
    """
    return base_in(locate(model.base, model.revision, model.offline, on_event, _family_in), model.base)


def base_in(folder: Path, name: str) -> Base:
    """The base model in a folder, as its small files tell; its weights need not be there.

    Raises:
        BaseModelError: of a family fluxtune does not train, or damaged.
    """
    family = _family_in(folder / INDEX)
    embeds_guidance = bool(_read_json(folder / "transformer" / "config.json").get("guidance_embeds"))
    tokenizer_file = folder / family.text_folders[-1] / "tokenizer_config.json"
    tokenizer_length = _read_json(tokenizer_file).get("model_max_length")
    if tokenizer_length is None:
        raise _wrong_weights(tokenizer_file, "model_max_length is missing")
    text_tokens = family.text_tokens(embeds_guidance, int(tokenizer_length))
    return Base(name, folder, family, embeds_guidance, text_tokens)


def _family_in(index: Path) -> Family:
    """The family that a ``model_index.json`` names.

    Raises:
        BaseModelError: fluxtune trains no such models.
    """
    pipeline = str(_read_json(index).get("_class_name"))
    family = family_of(pipeline)
    if family is None:
        known = ", ".join(known.pipeline for known in FAMILIES)
        raise BaseModelError(
            f"this is a {pipeline} model; fluxtune trains {known}",
            where=str(index),
            hint="choose a FLUX.1 model, for instance --base black-forest-labs/FLUX.1-dev",
        )
    return family


def load_transformer(base: Base, memory: MemoryConfig, dtype: torch.dtype, device: str) -> Any:
    """The frozen transformer on ``device``.

    Linear layers of the blocks are held as ``memory.base_precision`` says; everything else is in ``dtype``.

    Raises:
        BaseModelError: a weight is missing, of the wrong shape, or unreadable.
    """
    import diffusers

    folder = base.folder / "transformer"
    config = getattr(diffusers, base.family.transformer).load_config(folder)
    return build_transformer(base.family, config, stream_tensors(folder), memory, dtype, device, str(folder))


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
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights():
        transformer = getattr(diffusers, family.transformer).from_config(config)
    precision = memory.base_precision
    held = DTYPES.get(precision, dtype)
    blocks = tuple(f"{name}." for name in family.blocks)
    for name, tensor in tensors:
        path, _, leaf = name.rpartition(".")
        try:
            module = transformer.get_submodule(path)
            expected = module.get_parameter(leaf)
        except AttributeError:
            raise _wrong_weights(where, f"unexpected tensor {name}") from None
        if tensor.shape != expected.shape:
            raise _wrong_weights(where, f"{name} is {list(tensor.shape)}, should be {list(expected.shape)}")
        is_weight = leaf == "weight" and type(module) is nn.Linear and path.startswith(blocks)
        if is_weight and is_quantized(precision):
            replace_module(transformer, path, quantized_linear(module, tensor, precision, dtype, device))
        else:
            setattr(module, leaf, nn.Parameter(tensor.to(device=device, dtype=held), requires_grad=False))
    absent = [name for name, parameter in transformer.named_parameters() if parameter.is_meta]
    if absent:
        raise _wrong_weights(where, f"{len(absent)} tensors are missing, the first is {absent[0]}")
    transformer.requires_grad_(False)
    return transformer.eval()


def load_vae(base: Base, dtype: torch.dtype, device: str) -> Any:
    """The frozen VAE on ``device``.

    Raises:
        BaseModelError: its files are damaged.
    """
    from diffusers import AutoencoderKL

    with _told_as_damage(base.folder / "vae"):
        vae = AutoencoderKL.from_pretrained(base.folder, subfolder="vae", torch_dtype=dtype)
    vae.requires_grad_(False)
    return vae.to(device).eval()


def load_text_pipeline(base: Base, memory: MemoryConfig, dtype: torch.dtype, device: str) -> Any:
    """The family's pipeline with tokenizers and text encoders only, held as ``memory.text_precision`` says.

    Args:
        dtype: precision of what is not quantised, where the T5 encoder is.

    Raises:
        BaseModelError: the files of the text encoders or tokenizers are damaged.
    """
    precision = memory.text_precision
    held = DTYPES.get(precision, dtype)
    with _told_as_damage(base.folder):
        pipeline = _pipeline_class(base).from_pretrained(base.folder, transformer=None, vae=None, torch_dtype=held)
    if is_quantized(precision):
        # T5's last projections exceed the range of float16.
        keep = ("wo",) if QUANTIZATIONS[precision].float16_products else ()
        quantize_linears(pipeline.text_encoder_2, precision, dtype, device, keep)
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.requires_grad_(False)
        encoder.to(device)
    return pipeline


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
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def stream_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a diffusers weight folder (one file or shards), memory-mapped, in file order.

    Raises:
        BaseModelError: there are no safetensors weights, or a file is missing or damaged.
    """
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    yield name, tensors.get_tensor(name)
        except FileNotFoundError:
            raise _wrong_weights(file, "the file is missing") from None
        except SafetensorError as error:
            raise _wrong_weights(file, f"the file is damaged ({error})") from error


def _weight_files(folder: Path) -> list[Path]:
    """The shards of the index, or the one file: never a variant that lies beside them."""
    stem = folder / "diffusion_pytorch_model.safetensors"
    index = stem.with_name(f"{stem.name}.index.json")
    if index.is_file():
        files = [folder / name for name in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    else:
        files = [stem] if stem.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(
            "there are no .safetensors weights here",
            where=str(folder),
            hint="download the model again; other weight formats are not read",
        )
    return files


def _pipeline_class(base: Base) -> Any:
    import diffusers

    return getattr(diffusers, base.family.pipeline)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise _wrong_weights(file, "the file is missing") from None
    except ValueError as error:
        raise _wrong_weights(file, f"the file is not JSON ({error})") from error


def _wrong_weights(place: Path | str, message: str) -> BaseModelError:
    return BaseModelError(message, where=str(place), hint="the base model is incomplete or damaged: download it again")


@contextmanager
def _told_as_damage(place: Path) -> Iterator[None]:
    """Turns what the libraries raise over damaged files into one message. Lack of memory is something else."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise _wrong_weights(place, f"a part of the base model cannot be read ({error})") from error
