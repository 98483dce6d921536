from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import config_for, plain_config

from fluxtune.config.schema import Config
from fluxtune.errors import ConfigError
from fluxtune.events import Event, Warning, ignore
from fluxtune.training.examples import Prepared
from fluxtune.training.preflight import preflight
from fluxtune.training.prepare import prepare
from fluxtune.training.prior import Prior
from fluxtune.training.samples import Samples, SampleSource


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here: what it holds is the same for all."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def shared_cache(own_cache: None, module_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(module_cache))


def prepared_for(config: Config) -> Prepared:
    ready = preflight(config, ignore)
    return prepare(config, ready.base, ready.pictures, ready.prompts, torch.float32, "cpu", ignore)


def source_for(config: Config, priors: list[Prior] | None = None) -> SampleSource:
    return SampleSource(config, prepared_for(config), priors or [], "cpu")


def caption_of(prepared: Prepared, picture: str) -> str:
    return next(example.caption for example in prepared.examples if str(example.picture.path) == picture)


def same(first: Samples, second: Samples) -> bool:
    return (
        torch.equal(first.subject.latents, second.subject.latents)
        and torch.equal(first.subject.noise, second.subject.noise)
        and torch.equal(first.subject.sigmas, second.subject.sigmas)
        and all(torch.equal(first.subject.text[name], text) for name, text in second.subject.text.items())
    )


def test_a_sample_depends_on_its_number_alone(tiny_flux: Path, few_pictures: Path) -> None:
    config = config_for(tiny_flux, few_pictures)
    straight, jumping = source_for(config), source_for(config)
    expected = [straight.at(step) for step in range(5)]
    assert all(same(jumping.at(step), expected[step]) for step in (4, 0, 3))


def test_another_seed_draws_other_noise(tiny_flux: Path, few_pictures: Path) -> None:
    first, second = (
        source_for(plain_config(tiny_flux, few_pictures, training__seed=seed)).at(0).subject for seed in (1, 2)
    )
    assert not torch.equal(first.noise, second.noise)
    assert not torch.equal(first.sigmas, second.sigmas)


def test_every_draw_of_an_epoch_has_its_own_noise(tiny_flux: Path, few_pictures: Path) -> None:
    source = source_for(plain_config(tiny_flux, few_pictures, training__batch_size=1))
    drawn = torch.stack([source.at(step).subject.noise.flatten()[:8] for step in range(12)])
    assert len(drawn.unique(dim=0)) == 12


def test_captions_are_dropped_as_often_as_asked(tiny_flux: Path, few_pictures: Path) -> None:
    config = plain_config(
        tiny_flux, few_pictures, dataset__caption_dropout=0.25, training__batch_size=1, training__seed=3
    )
    prepared = prepared_for(config)
    source = SampleSource(config, prepared, [], "cpu")
    empty = prepared.text("")["prompt_embeds"]
    draws = 200
    dropped = sum(torch.equal(source.at(step).subject.text["prompt_embeds"], empty) for step in range(draws))
    assert dropped / draws == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_captions_are_dropped_never_or_always_at_the_ends(tiny_flux: Path, few_pictures: Path, share: float) -> None:
    config = plain_config(tiny_flux, few_pictures, dataset__caption_dropout=share)
    prepared = prepared_for(config)
    source = SampleSource(config, prepared, [], "cpu")
    for step in range(6):
        samples = source.at(step)
        captions = ["" if share else caption_of(prepared, picture) for picture in source.pictures(step)]
        expected = torch.cat([prepared.text(caption)["prompt_embeds"] for caption in captions])
        assert torch.equal(samples.subject.text["prompt_embeds"], expected)


def test_output_preservation_reads_the_class_word_on_the_same_noisy_pictures(
    tiny_flux: Path, few_pictures: Path
) -> None:
    config = config_for(tiny_flux, few_pictures)
    prepared = prepared_for(config)
    source = SampleSource(config, prepared, [], "cpu")
    samples = source.at(0)
    assert samples.preserved is not None
    assert samples.preserved.latents is samples.subject.latents
    assert samples.preserved.noise is samples.subject.noise
    assert samples.preserved.sigmas is samples.subject.sigmas
    captions = [caption_of(prepared, picture).replace("zorvex", "critter") for picture in source.pictures(0)]
    assert all("critter in place" in caption for caption in captions)
    expected = torch.cat([prepared.text(caption)["prompt_embeds"] for caption in captions])
    assert torch.equal(samples.preserved.text["prompt_embeds"], expected)


def test_prior_preservation_trains_the_prior_pictures_with_their_prompts(tiny_flux: Path, few_pictures: Path) -> None:
    config = config_for(
        tiny_flux, few_pictures, training__preservation={"method": "prior", "prompts": ["a red star", "a blue ball"]}
    )
    prepared = prepared_for(config)
    priors = [
        Prior("a red star", torch.full((64, 8, 8), 1.0)),
        Prior("a blue ball", torch.full((64, 8, 8), 2.0)),
    ]
    source = SampleSource(config, prepared, priors, "cpu")
    seen = set()
    for step in range(8):
        samples = source.at(step)
        assert samples.preserved is not None
        for latents, text in zip(samples.preserved.latents, samples.preserved.text["prompt_embeds"], strict=True):
            (prior,) = [prior for prior in priors if torch.equal(prior.latents, latents)]
            assert torch.equal(text, prepared.text(prior.prompt)["prompt_embeds"][0])
            seen.add(prior.prompt)
        assert not torch.equal(samples.preserved.noise[0].flatten()[:8], samples.subject.noise[0].flatten()[:8])
    assert seen == {"a red star", "a blue ball"}


def test_class_captions_are_encoded_only_where_they_are_read(tiny_flux: Path, few_pictures: Path) -> None:
    texts = set(prepared_for(plain_config(tiny_flux, few_pictures)).text_keys)
    assert texts == {"", *(f"a zorvex in place {index}" for index in range(3))}


def test_a_bfloat16_base_under_float32_and_missing_pictures_are_told_together(tiny_flux: Path) -> None:
    config = config_for(tiny_flux, Path("unused"), dataset__folders=[], memory__base_precision="bf16")
    with pytest.raises(ConfigError) as error:
        preflight(config, ignore)
    assert {problem.where for problem in error.value.problems} == {"dataset.folders", "training.precision"}


def test_a_guard_on_each_second_micro_batch_guards_the_first_and_every_other(
    tiny_flux: Path, few_pictures: Path
) -> None:
    config = config_for(tiny_flux, few_pictures)
    guard = config.training.preservation.model_copy(update={"every": 2})
    seldom = config.model_copy(update={"training": config.training.model_copy(update={"preservation": guard})})
    source, often = source_for(seldom), source_for(config)
    assert [source.at(step).preserved is not None for step in range(4)] == [True, False, True, False]
    assert all(same(source.at(step), often.at(step)) for step in range(4))


def test_with_flip_pictures_are_trained_on_mirrored_with_captions_to_match(tiny_flux: Path, few_pictures: Path) -> None:
    events: list[Event] = []
    config = plain_config(tiny_flux, few_pictures, dataset__flip=True)
    ready = preflight(config, ignore)
    pictures = [replace(picture, caption="a zorvex at the left") for picture in ready.pictures]
    prepared = prepare(config, ready.base, pictures, ready.prompts, torch.float32, "cpu", events.append)
    captions = Counter(example.caption for example in prepared.examples)
    assert captions == {"a zorvex at the left": 3, "a zorvex at the right": 3}
    assert len({example.latents for example in prepared.examples}) == 6
    assert any(isinstance(event, Warning) and event.where == "dataset.flip" for event in events)
