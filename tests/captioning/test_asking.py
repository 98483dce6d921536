"""What captioners are asked: chats with their templates, tasks, and prompts that they refuse."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image
from transformers import AutoProcessor

from fluxtune.captioning import instructed
from fluxtune.captioning.captioner import family_of, find_captioner, open_captioner
from fluxtune.captioning.family import try_out
from fluxtune.captioning.load import load_model, model_type_of
from fluxtune.config.schema import Config
from fluxtune.errors import BaseModelError, UsageError
from fluxtune.events import ignore
from fluxtune.nano import captioner_folder

PICTURE = Image.fromarray(skimage.data.astronaut())
NO_WEIGHTS = b"never read"


def settings(folder: Path, **captioning: object) -> Config:
    return Config.model_validate({"captioning": {"captioner": str(folder), "max_tokens": 8, **captioning}})


def without_weights(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").write_bytes(NO_WEIGHTS)
    return copy


def asked(processor: Any, prompt: str) -> str:
    """The text that the model is given, with one token for the picture."""
    ids = instructed.inputs(processor, [PICTURE], prompt)["input_ids"][0]
    return re.sub(r"(<image>)+", "<image>", processor.tokenizer.decode(ids))


@pytest.fixture
def llava(folders: dict[str, Path]) -> Any:
    return AutoProcessor.from_pretrained(folders["llava"], local_files_only=True)


def test_an_instructed_model_is_asked_what_the_user_wants(llava: Any) -> None:
    text = asked(llava, "Which mug?")
    assert text.startswith("<|user|><image>")
    assert text.endswith("Which mug?<|assistant|>")


@pytest.mark.parametrize(
    ("template", "question"),
    [
        ("{% for m in messages %}USER: {{ m['content'] }}{% endfor %} ASSISTANT:", "<image>\n{} ASSISTANT:"),
        ("{% for m in messages %}{{ 'USER: ' + m['content'] }}{% endfor %} ASSISTANT:", "<image>\n{} ASSISTANT:"),
        ("{% for m in messages %}{{ m['content'].split('x')[0] }}{% endfor %}", "<image>\n{}"),
        ("{% for m in messages %}<image>{{ m['content'] | trim }}{% endfor %} A:", "<image>{} A:"),
        (
            "{% if messages[0]['content'] is not string %}{{ raise_exception('only text') }}{% endif %}"
            "{{ messages[0]['content'] }}",
            "<image>\n{}",
        ),
    ],
    ids=["shows parts", "adds parts to text", "splits parts", "trims", "raises"],
)
def test_a_chat_template_that_takes_only_text_gets_only_text(llava: Any, template: str, question: str) -> None:
    llava.chat_template = template
    assert asked(llava, "Describe it.").removeprefix("USER: ") == question.format("Describe it.")


def test_a_chat_template_may_trim_the_prompt(llava: Any) -> None:
    llava.chat_template = "{% for m in messages %}<image>{{ m['content'][1]['text'] | trim }}{% endfor %} A:"
    assert asked(llava, " Describe it.\n").endswith("<image>Describe it. A:")


def test_of_several_chat_templates_the_default_is_taken(llava: Any) -> None:
    llava.chat_template = {"tools": "nothing", "default": "<image>{{ messages[0]['content'][1]['text'] }}"}
    assert asked(llava, "Describe it.").endswith("<image>Describe it.")


@pytest.mark.parametrize("template", ["{{ raise_exception('a system message is needed') }}", "{% if %}", "hello"])
def test_a_chat_template_that_never_takes_a_picture_is_refused(llava: Any, template: str) -> None:
    llava.chat_template = template
    with pytest.raises(BaseModelError, match="no place for a picture") as error:
        asked(llava, "Describe it.")
    assert ("a system message is needed" in str(error.value)) == ("system" in template)


@pytest.mark.parametrize("family", ["llava", "qwen-vl", "smolvlm", "blip-2"])
def test_a_prompt_with_the_pictures_token_in_it_is_refused(folders: dict[str, Path], family: str) -> None:
    token = "<|image_pad|>" if family == "qwen-vl" else "<image>"
    config = settings(folders[family], prompt=f"What is in {token}?")
    with pytest.raises(UsageError, match="stands for the picture") as error:
        open_captioner(folders[family], config, "cpu", ignore)
    assert error.value.where == "captioning.prompt"


def test_a_model_without_a_chat_template_is_refused_before_its_weights_are_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = without_weights(folders["llava"], tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BaseModelError, match="no chat template") as error:
        open_captioner(folder, settings(folder), "cpu", ignore)
    assert error.value.where == str(folder)


def test_a_processor_that_takes_no_pictures_is_refused_before_the_weights_are_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = without_weights(folders["blip-2"], tmp_path / "blip-2")
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").unlink()
    with pytest.raises(BaseModelError, match="cannot be loaded") as error:
        open_captioner(folder, settings(folder), "cpu", ignore)
    assert "safetensor" not in str(error.value).lower()


def test_florence_refuses_a_prompt_that_is_no_task_before_its_weights_are_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = without_weights(folders["florence-2"], tmp_path / "florence-2")
    with pytest.raises(UsageError, match="tasks") as error:
        find_captioner(settings(folder, prompt="What is it?"), ignore)
    assert "<MORE_DETAILED_CAPTION>" in str(error.value.hint)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        open_captioner(folder, settings(folder, prompt="<CAPTION>"), "cpu", ignore)


def test_a_blank_picture_tries_out_every_processor(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        family = family_of(model_type_of(folder))
        try_out(family, load_model(folder, "fp32", "cpu").processor, family.prompt(None))


def test_a_picture_of_which_the_embedded_captioner_knows_no_end_is_captioned_all_the_same() -> None:
    caption = open_captioner(captioner_folder(), Config(), "cpu", ignore)
    assert all(text.strip() for text in caption([PICTURE, PICTURE.rotate(90), Image.new("RGB", (64, 64))]))
