from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_runs import STEPS, Trained, config_for, train_in

from fluxtune.config.model import ModelConfig
from fluxtune.events import Preview
from fluxtune.flux.base import open_base
from fluxtune.flux.denoise import Request, encode_prompt, generate
from fluxtune.flux.load import image_pipeline, load_text_pipeline, load_transformer, load_vae
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import SampleRequest
from fluxtune.training.previews import preview_requests


def picture_of(trained: Trained, base_folder: Path, lora: Path | None) -> Image.Image:
    """The preview's request made through the sampler, with a LoRA file as diffusers loads it."""
    base = open_base(ModelConfig(base=str(base_folder)))
    memory, dtype = trained.config.memory, DTYPES["fp32"]
    previews = trained.config.previews
    request = Request(previews.prompts[0], 128, 128, previews.steps, previews.guidance, previews.seeds[0])
    text = encode_prompt(base, load_text_pipeline(base, memory, dtype, "cpu"), request.prompt)
    pipeline = image_pipeline(base, load_transformer(base, memory, dtype, "cpu"), load_vae(base, dtype, "cpu"))
    if lora is not None:
        pipeline.load_lora_weights(lora)
    return generate(base, pipeline, text, request)


def preview(trained: Trained, step: int) -> np.ndarray:
    return np.asarray(Image.open(trained.folder / "previews" / f"step-{step:06d}" / "00-seed7.png"))


def test_the_last_preview_is_the_picture_made_with_the_saved_lora_to_the_bit(trained: Trained, tiny_flux: Path) -> None:
    assert np.array_equal(preview(trained, STEPS), np.asarray(picture_of(trained, tiny_flux, trained.file)))


def test_a_preview_is_made_with_what_a_half_precision_file_holds(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(
        tiny_flux,
        few_pictures,
        training__steps=2,
        training__learning_rate=0.02,
        lora={"rank": 4, "alpha": 8.0},
        checkpoints__dtype="bf16",
        previews__every=2,
    )
    run = train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    assert np.array_equal(preview(run, 2), np.asarray(picture_of(run, tiny_flux, run.file)))


def test_a_preview_in_half_precision_is_the_picture_that_sample_makes_of_the_result(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(
        tiny_flux,
        few_pictures,
        training__steps=2,
        training__learning_rate=0.02,
        training__precision="bf16",
        lora={"rank": 4, "alpha": 8.0},
        memory__base_precision="bf16",
        memory__text_precision="bf16",
        checkpoints__dtype="bf16",
        previews__every=2,
    )
    run = train_in(tmp_path / "mug", config, cache=tmp_path / "cache")
    made = sample(
        SampleRequest(
            model=config.model,
            prompts=("a red star",),
            seeds=(7,),
            steps=config.previews.steps,
            guidance=config.previews.guidance,
            width=128,
            height=128,
            output=tmp_path / "pictures",
            loras=(LoraUse(run.file),),
            memory=config.memory,
            precision="bf16",
            device="cpu",
        )
    )
    assert not np.array_equal(preview(run, 2), preview(run, 0))
    assert np.array_equal(preview(run, 2), np.asarray(Image.open(made.pictures[0])))


def test_the_first_preview_is_the_base_models_picture_to_the_bit(trained: Trained, tiny_flux: Path) -> None:
    assert np.array_equal(preview(trained, 0), np.asarray(picture_of(trained, tiny_flux, None)))
    assert not np.array_equal(preview(trained, 0), preview(trained, STEPS))


def test_previews_are_reported_with_their_files(trained: Trained) -> None:
    seen = trained.seen(Preview)
    assert [(event.step, event.prompt, event.seed) for event in seen] == [
        (step, "a red star", 7) for step in (0, 3, STEPS)
    ]
    assert all(Path(event.path).is_file() for event in seen)


def test_previews_leave_the_training_as_it_is(
    trained: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_flux, few_pictures, previews__every=0)
    assert train_in(tmp_path / "mug", config, cache=trained.cache).losses == trained.losses


def test_every_prompt_is_made_with_every_seed_at_the_asked_size(tiny_flux: Path, few_pictures: Path) -> None:
    config = config_for(tiny_flux, few_pictures, previews__seeds=[1, 2], previews__width=160)
    base = open_base(config.model)
    made = [(index, request.prompt, request.seed) for index, request in preview_requests(config, base, ["a", "b"])]
    assert made == [(0, "a", 1), (0, "a", 2), (1, "b", 1), (1, "b", 2)]
    assert {(request.width, request.height) for _, request in preview_requests(config, base, ["a"])} == {(160, 128)}


def test_a_run_started_from_a_lora_begins_where_that_one_ended(
    trained: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    config = config_for(
        tiny_flux, few_pictures, lora__init_from=str(trained.file), training__steps=1, training__ema_decay=0.0
    )
    run = train_in(tmp_path / "mug", config, cache=trained.cache)
    assert np.array_equal(preview(run, 0), preview(trained, STEPS))
