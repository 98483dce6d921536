"""What a base model is: its folder, its family, and what its configs and the headers of its files say.

It is a folder in diffusers' layout, and single files in the place of some of its parts. No weights are loaded here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fluxtune.config.model import ModelConfig
from fluxtune.dataset.cache import key_of
from fluxtune.errors import BaseModelError
from fluxtune.events import Sink, ignore
from fluxtune.files import fingerprint_of
from fluxtune.flux.empty import empty_text_encoder, empty_transformer, empty_vae, transformer_config
from fluxtune.flux.families import FAMILIES, Family, family_of
from fluxtune.flux.single_files import require_part, stream
from fluxtune.flux.weights import checked, read_json, shapes_of, weight_files, wrong_weights
from fluxtune.hub.layouts import INDEX, base_model
from fluxtune.hub.locate import locate
from fluxtune.nano import EMBEDDED

WITH_WEIGHTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""The parts of a base model that have weights, each of which a single file can have instead; as ``[model]`` names
them."""


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
        with told_as_damage(self.folder):
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


def open_base(model: ModelConfig, on_event: Sink = ignore, with_weights: bool = True) -> Base:
    """Find the base model and check what it is, without loading weights.

    Of single files the names and shapes of all tensors are compared with the base's configs.

    Args:
        with_weights: also download the weights of a hub model; those of a folder here must be there in any case.

    Raises:
        BaseModelError: missing, gated, offline, incomplete, or of a family fluxtune does not train; or a single file
            is not what it was named as.
    """
    named = {part: getattr(model, part) for part in WITH_WEIGHTS}
    files = {part: Path(os.path.expanduser(name)) for part, name in named.items() if name is not None}

    def check_index(index: Path) -> None:
        family = _family_in(index)
        for part, file in files.items():
            require_part(file, part, family.names)

    is_here = model.base == EMBEDDED or Path(os.path.expanduser(model.base)).exists()
    elsewhere = files if with_weights or is_here else WITH_WEIGHTS
    folder = locate(model.base, model.revision, model.offline, on_event, check_index, base_model(without=elsewhere))
    check_index(folder / INDEX)
    base = replace(base_in(folder, model.base), files=files)
    for part, file in files.items():
        names, shapes = base.family.names[part], shapes_of(empty_part(base, part))
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
        BaseModelError: fluxtune trains no such models, or a part of it is of a class of its own.
    """
    parts = read_json(index)
    pipeline = str(parts.get("_class_name"))
    family = family_of(pipeline)
    if family is None:
        known = ", ".join(known.pipeline for known in FAMILIES)
        raise BaseModelError(
            f"this is a {pipeline} model; fluxtune trains {known}",
            where=str(index),
            hint="choose a FLUX.1 model, for instance --base black-forest-labs/FLUX.1-dev",
        )
    for name in ("scheduler", *WITH_WEIGHTS, *family.text_folders):
        if not _is_of_the_libraries(parts.get(name)):
            raise BaseModelError(
                f"its {name} is {parts.get(name)!r:.80}, no class of diffusers or transformers; code that comes with a "
                "model is never run",
                where=str(index),
                hint="choose a model in diffusers' own layout",
            )
    return family


def _is_of_the_libraries(part: Any) -> bool:
    """Whether an entry of a ``model_index.json`` names a class that can be no code of the model's own."""
    if not isinstance(part, list) or len(part) != 2 or not all(isinstance(name, str) for name in part):
        return False
    library, kind = part
    # Automatic classes take what another file of the model names.
    automatic = kind == "AutoModel" or (library == "transformers" and kind.startswith("Auto"))
    return library in ("diffusers", "transformers") and kind.isidentifier() and not automatic


def load_tokenizers(base: Base) -> list[Any]:
    """The tokenizers of the text encoders, in their order; the last one's text is what the transformer reads.

    Raises:
        BaseModelError: their files are damaged.
    """
    from transformers import AutoTokenizer

    folders = [base.folder / part for part in base.family.text_folders if part.startswith("tokenizer")]
    with told_as_damage(base.folder):
        return [
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True) for folder in folders
        ]


def empty_part(base: Base, part: str) -> Any:
    """A part of a base model on the meta device.

    Raises:
        BaseModelError: its config is damaged.
    """
    with told_as_damage(base.folder / part):
        if part == "transformer":
            return empty_transformer(base.family, transformer_config(base.family, base.folder))
        return empty_vae(base.folder) if part == "vae" else empty_text_encoder(base.folder, part)


@contextmanager
def told_as_damage(place: Path) -> Iterator[None]:
    """Turns what the libraries raise over damaged files into one message. Lack of memory is something else."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise wrong_weights(place, f"a part of the base model cannot be read ({error})") from error
