"""Captioners whose files are damaged, or do not belong together: an error of the folder, never a crash."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_captioners
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxtune.captioning import blip2
from fluxtune.captioning.captioner import find_captioner, open_captioner
from fluxtune.captioning.family import caption
from fluxtune.captioning.load import load_model
from fluxtune.config.schema import Config
from fluxtune.errors import BaseModelError, OutOfMemoryError
from fluxtune.events import ignore

PICTURE = Image.linear_gradient("L").resize((96, 80)).convert("RGB")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "garbage": lambda data: random.Random(1).randbytes(1000),
    "no text": lambda data: b'{"model_type": "\xff\xfe"}',
    "a list": lambda data: b"[1, 2]",
    "null": lambda data: b"null",
    "nested deeply": lambda data: b"[" * 100_000,
}
WRONG_VALUES = (None, "x", -1, 0, [], {}, 1.5, True)


def captions(folder: Path) -> list[str]:
    config = Config.model_validate({"captioning": {"captioner": str(folder), "max_tokens": 4, "precision": "fp32"}})
    return open_captioner(find_captioner(config, ignore), config, "cpu", ignore)([PICTURE])


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(folders[family], tmp_path / family))


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as error:
        captions(folder)
    assert str(error.value.where).startswith(str(folder))
    assert error.value.hint
    return error.value.message


def set_value(file: Path, value: Any, *keys: str) -> None:
    whole = part = json.loads(file.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    file.write_text(json.dumps(whole))


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_cannot_be_read_are_told_as_such(copy_of: Callable[[str], Path], damage: str) -> None:
    folder = copy_of("llava")
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_config_that_cannot_be_read_is_told_as_such(copy_of: Callable[[str], Path], damage: str) -> None:
    folder = copy_of("llava")
    file = folder / "config.json"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert "names no model_type" in refusal(folder)


def test_weights_of_another_shape_are_told_by_their_name(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llava")
    weights = load_file(folder / "model.safetensors")
    head = next(name for name in weights if name.endswith("lm_head.weight"))
    save_file({**weights, head: torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    assert refusal(folder).endswith("1 are missing or of another shape, such as lm_head.weight")


@pytest.mark.parametrize("family", tiny_captioners.FAMILIES)
def test_weights_that_are_no_numbers_are_told_instead_of_captions(copy_of: Callable[[str], Path], family: str) -> None:
    folder = copy_of(family)
    weights = load_file(folder / "model.safetensors")
    damaged = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    save_file(damaged, folder / "model.safetensors", {"format": "pt"})
    assert "NaN" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "file", "keys", "value"),
    [
        ("llava", "config.json", ("vision_config", "patch_size"), 0),
        ("llava", "config.json", ("model_type",), ["llava"]),
        ("blip-2", "config.json", ("qformer_config", "layer_norm_eps"), "small"),
        ("llava", "preprocessor_config.json", ("size",), {"shortest_edge": 0}),
        ("florence-2", "preprocessor_config.json", ("image_mean",), "grey"),
        ("blip-2", "preprocessor_config.json", ("size",), {"height": 56, "width": 56}),
        ("florence-2", "preprocessor_config.json", ("image_seq_length",), 3),
        ("smolvlm", "processor_config.json", ("image_seq_len",), 3),
        ("llava", "config.json", ("image_token_index",), 5),
        ("llava", "generation_config.json", ("eos_token_id",), "x"),
    ],
    ids=lambda value: str(value),
)
def test_values_that_fit_nothing_are_told_when_loading_or_when_first_asked(
    copy_of: Callable[[str], Path], family: str, file: str, keys: tuple[str, ...], value: object
) -> None:
    folder = copy_of(family)
    set_value(folder / file, value, *keys)
    refusal(folder)


def test_memory_that_ends_while_loading_is_not_blamed_on_the_folder(folders: dict[str, Path]) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError):
        load_model(folders["llava"], "fp32", "cpu", fail)


@pytest.mark.parametrize("ending", [MemoryError(), RuntimeError("CUDA out of memory"), OutOfMemoryError("full")])
def test_memory_that_ends_while_captioning_is_not_blamed_on_the_folder(
    folders: dict[str, Path], ending: Exception
) -> None:
    def fail(*_: object) -> None:
        raise ending

    loaded = load_model(folders["blip-2"], "fp32", "cpu")
    with pytest.raises(OutOfMemoryError):
        caption(replace(blip2.FAMILY, inputs=fail), loaded, [PICTURE], None, 4)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_blamed_on_the_folder(folders: dict[str, Path], ending: type[BaseException]) -> None:
    def stop(_: object) -> None:
        raise ending

    with pytest.raises(ending):
        load_model(folders["llava"], "fp32", "cpu", stop)


def damaged_files(folder: Path, seed: int) -> Iterator[tuple[str, Path, bytes]]:
    """A share of all damages: for each file one as a whole, and of each JSON file a value of a wrong type."""
    chance = random.Random(seed)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        name = chance.choice(list(DAMAGES))
        yield f"{file.name} {name}", file, DAMAGES[name](data)
        if file.suffix == ".json":
            whole = part = json.loads(data)
            key = chance.choice(list(part))
            while isinstance(part[key], dict) and part[key] and chance.random() < 0.9:
                part = part[key]
                key = chance.choice(list(part))
            part[key] = chance.choice(WRONG_VALUES)
            yield f"{file.name} with {key} = {part[key]!r}", file, json.dumps(whole).encode()


@pytest.mark.parametrize("family", tiny_captioners.FAMILIES)
def test_no_damage_to_any_file_is_a_crash(copy_of: Callable[[str], Path], family: str) -> None:
    folder = copy_of(family)
    for damage, file, data in damaged_files(folder, seed=4):
        sound = file.read_bytes()
        file.write_bytes(data)
        try:
            assert len(captions(folder)) == 1
        except BaseModelError as error:
            assert error.hint and str(error.where).startswith(str(folder)), damage
        except Exception as error:
            raise AssertionError(f"{damage} is a crash") from error
        file.write_bytes(sound)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_of_weights_that_cannot_be_read_is_told_as_such(copy_of: Callable[[str], Path], damage: str) -> None:
    folder = copy_of("llava")
    index = json.dumps({"weight_map": {"lm_head.weight": "model.safetensors"}}).encode()
    (folder / "model.safetensors.index.json").write_bytes(DAMAGES[damage](index))
    assert "not a readable index" in refusal(folder)
