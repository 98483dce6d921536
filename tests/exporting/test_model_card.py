from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from fluxtune.exporting.model_card import Card, Sample, text_of
from fluxtune.hub.licenses import LICENSES

DEV = "black-forest-labs/FLUX.1-dev"
CARD = Card(
    title="zorvex",
    base=DEV,
    license=LICENSES[DEV],
    trigger="zorvex",
    description="A LoRA of a dog.",
    author="Ada",
    tags=["dog"],
    file="zorvex.safetensors",
    format="diffusers",
    repository="ada/zorvex",
    steps=28,
    guidance=3.5,
    samples=[Sample("images/00.png", "a zorvex on the beach"), Sample("images/01.png")],
    training={"Steps": "300"},
    hashes={"SHA-256": "ab" * 32, "AutoV2": "ABABABABAB"},
)
HOSTILE = [
    '"]\n---\nlicense: mit\n# <script>alert(1)</script>',
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![x](http://example.org/x.png)",
    "```\n</code></pre><script>1</script>\n```",
    "`` ` ``",
    "| a | b |\n| - | - |",
    "- item\n1. item",
    "&lt;script&gt; &amp; \\<script>",
    "*bold* _it_ ~~no~~ $x$ <!-- hidden -->",
    "key: value # comment",
    "{{ jinja }} %YAML !tag &anchor",
    "\x1b]0;taken\x07\u202egnp.exe",
    "'single' \"double\" $(touch x) \\",
    "null",
    "2024-01-01",
    "\ud800",
]


def parts_of(text: str) -> tuple[dict[str, Any], str]:
    """Front matter as YAML reads it, and what Markdown makes of the rest."""
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), MarkdownIt("gfm-like", {"linkify": False}).render(body)


def code_of(text: str, language: str) -> str:
    (block,) = [token.content for token in MarkdownIt().parse(text) if token.type == "fence" and token.info == language]
    return block


def test_the_hub_reads_base_model_licence_trigger_and_pictures() -> None:
    header, _ = parts_of(text_of(CARD))
    assert header == {
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": f"https://huggingface.co/{DEV}/blob/main/LICENSE.md",
        "base_model": DEV,
        "base_model_relation": "adapter",
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["text-to-image", "flux", "lora", "diffusers", "template:sd-lora", "fluxtune", "dog"],
        "instance_prompt": "zorvex",
        "widget": [
            {"text": "a zorvex on the beach", "output": {"url": "images/00.png"}},
            {"text": "-", "output": {"url": "images/01.png"}},
        ],
    }


def test_the_hubs_own_client_reads_the_header() -> None:
    read = ModelCard(text_of(CARD)).data
    assert (read.base_model, read.license_name, read.tags[-1]) == (DEV, "flux-1-dev-non-commercial-license", "dog")


def test_people_read_how_it_is_used_trained_and_known() -> None:
    text = text_of(CARD)
    _, page = parts_of(text)
    assert "<h1>zorvex</h1>" in page
    assert "Put <code>zorvex</code> into the prompt." in page
    assert "<td>Steps</td>\n<td>300</td>" in page
    assert "<td>AutoV2</td>\n<td>ABABABABAB</td>" in page
    assert "<Gallery />" in text
    program = code_of(text, "python")
    assert f'FluxPipeline.from_pretrained("{DEV}"' in program
    assert 'load_lora_weights("ada/zorvex", weight_name="zorvex.safetensors")' in program
    shell = code_of(text, "bash")
    assert shell == f"fluxtune sample 'a zorvex on the beach' --base {DEV} --lora ./zorvex.safetensors\n"


def test_in_a_folder_the_file_is_loaded_from_beside_the_card() -> None:
    assert 'load_lora_weights("zorvex.safetensors")' in code_of(text_of(replace(CARD, repository=None)), "python")


def test_a_base_model_that_is_not_on_the_hub_is_no_link_to_it() -> None:
    for base in ("nano", "my-flux", "", "a/b c", "a/b/c", "ada/$(touch x)", "-a/b"):
        text = text_of(replace(CARD, base=base, license=None))
        header, _ = parts_of(text)
        assert not {"base_model", "license"} & header.keys()
        assert "FluxPipeline" not in text


def test_another_format_is_to_be_converted_for_diffusers() -> None:
    text = text_of(replace(CARD, format="kohya"))
    assert "FluxPipeline" not in text
    assert "fluxtune export ./zorvex.safetensors --format diffusers" in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_files_say_is_text_and_never_markup(hostile: str) -> None:
    card = replace(
        CARD,
        title=hostile,
        trigger=hostile,
        description=hostile,
        author=hostile,
        tags=[hostile],
        file=f"{hostile}.safetensors".replace("/", "-"),
        samples=[Sample("images/00.png", hostile)],
        training={hostile: hostile},
    )
    text = text_of(card)
    header, page = parts_of(text)
    plain, plain_page = parts_of(text_of(CARD))
    # The same keys, headings and blocks as of a card with tame words: nothing broke out of its place.
    assert header.keys() == plain.keys()
    assert header["license"] == "other"
    assert isinstance(header["instance_prompt"], str) and isinstance(header["widget"][0]["text"], str)
    tags = ("<h1", "<h2", "<pre", "<table", "<tr", "<td", "<ul", "<ol", "<li", "<img", "<script", "<a ", "<strong")
    rows = {tag: page.count(tag) for tag in tags}
    assert rows == {tag: plain_page.count(tag) for tag in tags}
    assert page.lower().count("<gallery") == 1
    assert "\x1b" not in text and "\u202e" not in text
    program = ast.parse(code_of(text, "python"))
    assert sum(isinstance(node, ast.Call) for node in ast.walk(program)) == 5
    text.encode("utf-8")
