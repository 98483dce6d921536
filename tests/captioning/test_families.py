from __future__ import annotations

import json
from pathlib import Path

import pytest
import skimage.data
import tiny_captioners
from PIL import Image

from fluxtune.captioning.captioner import find_captioner, open_captioner
from fluxtune.captioning.load import load_model
from fluxtune.config.schema import Config
from fluxtune.errors import BaseModelError, OutOfMemoryError
from fluxtune.events import ignore
from fluxtune.memory.shortage import fits_in_memory

PICTURES = [Image.fromarray(skimage.data.astronaut()), Image.fromarray(skimage.data.coffee())]


def settings(folder: Path, **captioning: object) -> Config:
    return Config.model_validate({"captioning": {"captioner": str(folder), "max_tokens": 8, **captioning}})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("family", tiny_captioners.FAMILIES)
def test_every_family_captions_in_every_precision(folders: dict[str, Path], family: str, precision: str) -> None:
    config = settings(folders[family], precision=precision)
    captioner = open_captioner(find_captioner(config, ignore), config, "cpu", ignore)
    texts = captioner(PICTURES)
    assert len(texts) == 2
    assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("family", tiny_captioners.FAMILIES)
def test_a_caption_does_not_depend_on_the_other_pictures_of_its_batch(folders: dict[str, Path], family: str) -> None:
    config = settings(folders[family], precision="fp32")
    captioner = open_captioner(folders[family], config, "cpu", ignore)
    assert captioner(PICTURES) == [*captioner(PICTURES[:1]), *captioner(PICTURES[1:])]


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantised_captioner_holds_its_weights_in_bitsandbytes_layers(
    folders: dict[str, Path], precision: str
) -> None:
    import bitsandbytes

    wanted = bitsandbytes.nn.Linear8bitLt if precision == "int8" else bitsandbytes.nn.Linear4bit
    model = load_model(folders["llava"], precision, "cpu").model
    assert any(isinstance(module, wanted) for module in model.modules())


def test_a_model_that_does_not_caption_is_refused_before_it_loads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for name in ("preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(BaseModelError, match="'bert' does not caption pictures"):
        find_captioner(settings(tmp_path), ignore)


def test_weights_of_another_architecture_are_refused_and_not_filled_with_noise(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "renamed"
    shutil.copytree(folders["florence-2"], folder)
    weights = load_file(folder / "model.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match="not those of its architecture"):
        load_model(folder, "fp32", "cpu")


def test_code_that_comes_with_a_model_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "with-code"
    shutil.copytree(folders["llava"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    load_model(folder, "fp32", "cpu")
    assert not (tmp_path / "ran").exists()


def test_weights_in_pickles_count_as_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(folders["llava"], folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"missing: model\.safetensors"):
        find_captioner(settings(folder), ignore)


def test_a_class_word_goes_into_the_question(folders: dict[str, Path]) -> None:
    from fluxtune.captioning.captioner import prompt_for
    from fluxtune.captioning.instructed import FAMILY

    config = Config.model_validate({"dataset": {"class_word": "dog"}})
    assert 'Call the main subject "dog"' in str(prompt_for(FAMILY, config))
    own = Config.model_validate(
        {"dataset": {"class_word": "dog"}, "captioning": {"prompt": "Where is the {class_word}?"}}
    )
    assert prompt_for(FAMILY, own) == "Where is the dog?"


def test_memory_that_ends_is_told_as_such() -> None:
    with pytest.raises(OutOfMemoryError), fits_in_memory("captioning", "less"):
        raise RuntimeError("CUDA out of memory")
