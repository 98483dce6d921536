"""The shipped model: stock diffusers loads it whole, and it fits the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from fluxtune.nano import TRIGGER, captioner_folder, demo_folder, model_folder
from fluxtune.recipes.nano.__main__ import STAGES


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Any]:
    pipeline = FluxPipeline.from_pretrained(model_folder())
    pipeline.set_progress_bar_config(disable=True)
    yield pipeline


def test_the_stock_call_paints_a_picture_without_any_argument_for_types(pipeline: Any) -> None:
    length = pipeline.tokenizer_2.model_max_length
    paint = {"height": 128, "width": 112, "max_sequence_length": length, "num_inference_steps": 4}
    images = [
        pipeline(prompt, generator=torch.Generator().manual_seed(0), **paint).images[0]
        for prompt in ("a red ball on a plain blue background", "a green star on a plain white background")
    ]
    assert all(image.size == (112, 128) for image in images)
    assert images[0].tobytes() != images[1].tobytes()


def test_it_has_the_parts_of_flux_dev(pipeline: Any) -> None:
    assert pipeline.transformer.config.guidance_embeds
    assert pipeline.vae.config.latent_channels == 16
    assert len(pipeline.vae.config.block_out_channels) == 4
    assert pipeline.scheduler.config.use_dynamic_shifting
    names = {type(part).__name__ for part in pipeline.components.values()}
    expected = {"FluxTransformer2DModel", "AutoencoderKL", "CLIPTextModel", "T5EncoderModel", "CLIPTokenizer"}
    assert expected <= names


def test_the_trigger_is_spelled_in_several_known_pieces(pipeline: Any) -> None:
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        ids = tokenizer(TRIGGER, add_special_tokens=False).input_ids
        assert len(ids) > 1
        assert tokenizer.unk_token_id not in ids


def test_all_weights_are_safetensors_and_the_embedded_files_stay_under_ten_megabytes() -> None:
    files = [path for path in model_folder().parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    # The captioner has five megabytes of its own.
    others = [path for path in files if not path.is_relative_to(captioner_folder())]
    assert sum(path.stat().st_size for path in others) <= 10_000_000


def test_no_file_names_a_folder_of_the_machine_that_made_the_model() -> None:
    for path in model_folder().rglob("*.json"):
        values = json.loads(path.read_text())
        assert "_name_or_path" not in values, path


def test_the_record_of_the_recipe_has_a_line_for_each_of_its_stages() -> None:
    folders = (model_folder(), captioner_folder())
    records = [json.loads((folder / "recipe.json").read_text()) for folder in folders]
    assert [stage for record in records for stage in record] == list(STAGES)


def test_the_demo_has_pictures_of_several_shapes_and_no_captions() -> None:
    pictures = sorted(demo_folder().glob("*.png"))
    assert len(pictures) == 16
    assert len({Image.open(path).size for path in pictures}) > 2
    assert {path.suffix for path in demo_folder().iterdir()} == {".png", ".toml"}
