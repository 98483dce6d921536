"""What kinds of model are looked for, and which files make each of them whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fluxtune import nano


@dataclass(frozen=True)
class ModelKind:
    """One way in which models lie in folders and on the hub.

    Attributes:
        noun: what it is called in messages.
        layout: the layout's name in messages.
        index: the file that every such model has.
        wanted: patterns of the files that are downloaded.
        unwanted: patterns of those that are not, even so.
        missing: what a folder lacks of such a model; only the index where that is not there.
        embedded: the folder of the model that ships with fluxtune.
        library: whose layout it is.
        known: names that are suggested; the first is the embedded one.
    """

    noun: str
    layout: str
    index: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    missing: Callable[[Path], list[str]]
    embedded: Callable[[], Path]
    library: str
    known: tuple[str, ...]


INDEX = "model_index.json"
_PICKLES_AND_OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.gguf")
# Any one of these sets of files is a tokenizer's vocabulary.
_VOCABULARIES = (
    ["tokenizer.json"],
    ["spiece.model"],
    ["tokenizer.model"],
    ["vocab.json", "merges.txt"],
    ["vocab.txt"],
)


def missing_files(folder: Path, without: Collection[str] = ()) -> list[str]:
    """What a model folder in diffusers' layout lacks of the parts that its ``model_index.json`` lists.

    Args:
        without: parts whose weights need not be there.
    """
    if not (folder / INDEX).is_file():
        return [INDEX]
    try:
        parts = json.loads((folder / INDEX).read_text(encoding="utf-8")).items()
        present = [name for name, kind in parts if isinstance(kind, list) and kind[0] is not None]
    except (ValueError, AttributeError, IndexError, RecursionError):
        return [f"{INDEX} (it is not a readable index)"]
    return [f"{name}/{missing}" for name in present for missing in _missing_of_part(folder / name, name not in without)]


def missing_of_captioner(folder: Path) -> list[str]:
    """What a folder of a transformers model that reads pictures and writes text lacks."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    settings = _first_absent(folder, (["preprocessor_config.json"], ["processor_config.json"]))
    return settings + _first_absent(folder, _VOCABULARIES) + _missing_weights(folder, "model")


def _missing_of_part(part: Path, weights: bool) -> list[str]:
    if part.name.startswith("tokenizer"):
        return _absent(part, ["tokenizer_config.json"]) + _first_absent(part, _VOCABULARIES[:4])
    if part.name == "scheduler":
        return _absent(part, ["scheduler_config.json"])
    if part.name in ("transformer", "vae") or part.name.startswith("text_encoder"):
        stem = "model" if part.name.startswith("text_encoder") else "diffusion_pytorch_model"
        return _absent(part, ["config.json"]) + (_missing_weights(part, stem) if weights else [])
    return []


def _missing_weights(part: Path, stem: str) -> list[str]:
    """Absent shards of the part's index; without an index, the whole weights must be in one file."""
    index = next(part.glob("*.safetensors.index.json"), None)
    if index is not None:
        try:
            shards = {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return [f"{index.name} (it is not a readable index)"]
        return _absent(part, sorted(shards))
    if any(path.is_file() and "-of-" not in path.name for path in part.glob("*.safetensors")):
        return []
    return [f"{stem}.safetensors"]


def _first_absent(folder: Path, choices: tuple[list[str], ...]) -> list[str]:
    """What the set of files that is nearest to being whole lacks: nothing where one is."""
    nearest = min(choices, key=lambda names: len(_absent(folder, names)) / len(names))
    return _absent(folder, nearest)


def _absent(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


CAPTIONERS = {
    nano.EMBEDDED: nano.EMBEDDED,
    "blip": "Salesforce/blip-image-captioning-large",
    "blip-2": "Salesforce/blip2-opt-2.7b",
    "florence-2": "florence-community/Florence-2-large",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "qwen-vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "joycaption": "fancyfeast/llama-joycaption-beta-one-hf-llava",
}
"""Short names of captioners -> their names on the hub."""

BASE_MODEL = ModelKind(
    noun="base model",
    layout="diffusers' layout",
    index=INDEX,
    # The folders of a diffusers model; the same weights in one big file beside them are left where they are.
    wanted=(INDEX, "transformer/*", "vae/*", "text_encoder*/*", "tokenizer*/*", "scheduler/*"),
    unwanted=_PICKLES_AND_OTHERS,
    missing=missing_files,
    embedded=lambda: nano.model_folder(),
    library="diffusers",
    known=(
        nano.EMBEDDED,
        "black-forest-labs/FLUX.1-dev",
        "black-forest-labs/FLUX.1-schnell",
        "black-forest-labs/FLUX.1-Krea-dev",
    ),
)


def base_model(without: Collection[str] = ()) -> ModelKind:
    """A base model whose weights of some parts (``vae``...) are elsewhere, and are neither missed nor downloaded."""
    if not without:
        return BASE_MODEL
    weights = tuple(f"{part}/*.safetensors{more}" for part in without for more in ("", ".index.json"))
    return replace(
        BASE_MODEL,
        unwanted=(*BASE_MODEL.unwanted, *weights),
        missing=partial(missing_files, without=tuple(without)),
    )


CAPTIONER = ModelKind(
    noun="captioner",
    layout="transformers' layout",
    index="config.json",
    wanted=("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"),
    # A pattern's star matches slashes, too: other precisions and other programs' files lie in folders below.
    unwanted=(*_PICKLES_AND_OTHERS, "*/*"),
    missing=missing_of_captioner,
    embedded=lambda: nano.captioner_folder(),
    library="transformers",
    known=tuple(CAPTIONERS.values()),
)
