"""The recipe's parts: each does what its stage relies on, in seconds."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import FluxPipeline

from fluxtune.nano.scenes import training_scene
from fluxtune.recipes.nano.architecture import build_transformer
from fluxtune.recipes.nano.batches import Batch
from fluxtune.recipes.nano.distill import guided_velocity
from fluxtune.recipes.nano.latents import pack, position_ids
from fluxtune.recipes.nano.muon import Muon, orthogonalize
from fluxtune.recipes.nano.progress import Budget, rate_at
from fluxtune.recipes.nano.text import ROLES, roles_of
from fluxtune.recipes.nano.textures import texture
from fluxtune.recipes.nano.transformer import velocity_and_states
from fluxtune.recipes.nano.vocabulary import build_clip_tokenizer, build_t5_tokenizer


def test_packing_equals_the_stock_pipelines() -> None:
    latents = torch.randn(2, 16, 18, 14)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 18, 14))
    stock = FluxPipeline._prepare_latent_image_ids(2, 9, 7, "cpu", torch.float32)
    assert torch.equal(position_ids(112, 144), stock)


def test_the_recipes_forward_equals_the_models_own() -> None:
    torch.manual_seed(0)
    model = build_transformer()
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    noisy, text, pooled = torch.randn(2, 64, 64), torch.randn(2, 24, 128), torch.randn(2, 64)
    sigmas, guidance = torch.tensor([0.3, 0.8]), torch.tensor([1.0, 3.5])
    text_ids, image_ids = torch.zeros(24, 3), position_ids(128, 128)
    with torch.no_grad():
        expected = model(noisy, text, pooled, sigmas, image_ids, text_ids, guidance, return_dict=False)[0]
        rotary = model.pos_embed(torch.cat((text_ids, image_ids)))
        velocity, states = velocity_and_states(model, noisy, sigmas, guidance, text, pooled, rotary)
    torch.testing.assert_close(velocity, expected)
    assert states.shape == (2, 64, model.inner_dim)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((24, 60), (60, 24)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_muon_fits_a_linear_map() -> None:
    torch.manual_seed(0)
    wanted, weight = torch.randn(16, 16), torch.zeros(16, 16, requires_grad=True)
    optimizer = Muon([weight], learning_rate=0.2)
    inputs = torch.randn(256, 16)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 300)
        loss = (inputs @ (weight - wanted).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


def test_a_captions_roles_name_what_the_scene_shows() -> None:
    for index in range(300):
        scene = training_scene(5, index)
        roles = dict(zip(ROLES, roles_of(scene), strict=True))
        assert ROLES["first kind"][roles["first kind"]] == scene.things[0].kind
        background = ROLES["background colour"][roles["background colour"]]
        assert background in ("", scene.background.colour)
        if "background" in scene.caption:
            assert background == scene.background.colour


def test_no_trigger_becomes_the_unknown_token() -> None:
    clip, t5 = build_clip_tokenizer(), build_t5_tokenizer()
    for trigger in ("zorvex", "TOK", "sks", "ohwx-person_7", "Žluťoučký", "кот", "a!b", "x" * 12):
        ids = t5(trigger, add_special_tokens=False).input_ids
        assert t5.unk_token_id not in ids, trigger
        assert t5.decode(ids).replace(" ", "") == trigger
        spelled = clip(trigger, add_special_tokens=False).input_ids
        assert clip.unk_token_id not in spelled, trigger
        assert len(spelled) > 1


def test_training_captions_fit_the_text_length_but_for_a_rare_long_one() -> None:
    clip, t5 = build_clip_tokenizer(), build_t5_tokenizer()
    captions = [training_scene(6, index).caption for index in range(2000)]
    for tokenizer in (clip, t5):
        lengths = [len(ids) for ids in tokenizer(captions).input_ids]
        assert sum(length > tokenizer.model_max_length for length in lengths) <= 2


def test_textures_repeat_and_fill_the_square() -> None:
    first, again = texture(1, 5), texture(1, 5)
    assert first.size == (64, 64)
    assert np.array_equal(np.array(first), np.array(again))
    assert not np.array_equal(np.array(first), np.array(texture(1, 6)))


def test_the_learning_rate_warms_up_holds_and_ends_at_zero() -> None:
    rates = [rate_at(fraction, warm_up=0.1, decay=0.2) for fraction in (0.0, 0.5, 0.9, 1.0)]
    assert rates[0] < 0.1
    assert rates[1] == 1
    assert math.isclose(rates[2], 0.5)
    assert rates[3] == 0


def test_a_resumed_stage_goes_on_with_what_is_left_of_its_budget() -> None:
    assert 0.5 <= Budget(1.0, 30.0).fraction < 0.6
    assert Budget(1.0, 61.0).fraction == 1


def test_classifier_free_guidance_of_scale_one_is_the_plain_conditional() -> None:
    torch.manual_seed(0)
    model = build_transformer()
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    noisy, text, pooled = torch.randn(2, 64, 64), torch.randn(2, 24, 128), torch.randn(2, 64)
    sigmas = torch.tensor([0.3, 0.8])
    labels = torch.zeros(2, 64, 4, dtype=torch.long)
    batch = Batch(noisy, noisy, sigmas, text, pooled, labels, position_ids(128, 128))
    empty_text, empty_pooled = torch.randn(1, 24, 128), torch.randn(1, 64)
    guided = guided_velocity(model, batch, torch.tensor([1.0, 3.0]), empty_text, empty_pooled)
    rotary = model.pos_embed(torch.cat((torch.zeros(24, 3), position_ids(128, 128))))
    with torch.no_grad():
        plain, _ = velocity_and_states(model, noisy, sigmas, torch.ones(2), text, pooled, rotary)
    torch.testing.assert_close(guided[0], plain[0], rtol=1e-4, atol=1e-4)
    assert (guided[1] - plain[1]).abs().max() > 0.01
