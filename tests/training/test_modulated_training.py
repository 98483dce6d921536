from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import Trained, config_for, plain_config, stop_after, train_in

from fluxtune.config.model import ModelConfig
from fluxtune.config.schema import Config
from fluxtune.errors import Stopped, UsageError
from fluxtune.events import Step, ignore
from fluxtune.flux.base import Base, open_base
from fluxtune.flux.families import FLUX1
from fluxtune.flux.load import load_transformer
from fluxtune.flux.modulation import foreseen, is_modulation
from fluxtune.flux.weights import DTYPES
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.training import foresight
from fluxtune.training.load import make_accelerator, recompute
from fluxtune.training.preflight import preflight, settled_memory
from fluxtune.training.prepare import prepare
from fluxtune.training.prior import Prior
from fluxtune.training.samples import SampleSource
from fluxtune.training.step import Learner, MicroBatch, clip, learn, preserve, update, velocity

NORMS = ["*norm*.linear", "*.attn.to_q"]


@pytest.fixture(scope="module")
def nano() -> Base:
    return open_base(ModelConfig(base="nano"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs here: what it holds is the same for all."""
    return tmp_path_factory.mktemp("shared")


def learner_for(base: Base, modulation: str, config: Config) -> Learner:
    """A learner whose adapter has some effect."""
    dtype = DTYPES[config.training.precision]
    memory = config.memory.model_copy(update={"modulation": modulation})
    transformer = load_transformer(base, memory, dtype, "cpu")
    attach(transformer, config.lora, base.family, seed=0)
    parameters = list(adapter_parameters(transformer).values())
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    recompute(transformer, base.family, config.memory)
    accelerator = make_accelerator(config, "cpu")
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(parameters, lr=0.1))
    return Learner(base.family, transformer.train(), optimizer, accelerator, parameters, dtype, 1.0, 0.0)


def micro_batch(base: Base, learner: Learner) -> MicroBatch:
    generator = torch.Generator().manual_seed(4)
    config = learner.transformer.config
    text = {
        "prompt_embeds": torch.randn(2, base.text_tokens, config.joint_attention_dim, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, config.pooled_projection_dim, generator=generator),
    }
    latents, noise = (torch.randn(2, 64, 4, 6, generator=generator) for _ in range(2))
    return MicroBatch(latents, noise, torch.tensor([0.25, 0.9]), text)


def two_steps(base: Base, modulation: str, config: Config) -> list[torch.Tensor]:
    """Losses, gradients and weights of two steps that learn and preserve."""
    learner = learner_for(base, modulation, config)
    batch, seen = micro_batch(base, learner), []
    with foreseen(learner.transformer, lambda: velocity(learner, batch)):
        for _ in range(2):
            torch.manual_seed(0)
            seen += [learn(learner, batch), preserve(learner, batch, 0.5)]
            seen += [parameter.grad.clone() for parameter in learner.parameters]
            seen.append(clip(learner))
            update(learner)
    return [*seen, *learner.parameters]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("targets", ["attention", NORMS], ids=["attention", "norms"])
@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize(
    ("precision", "held"), [("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")], ids=["fp32", "bf16", "autocast"]
)
def test_losses_and_gradients_are_the_same_to_the_bit(
    nano: Base, precision: str, held: str, recompute: str, targets: Any, passes: Callable[[], int]
) -> None:
    config = Config.model_validate(
        {
            "training": {"precision": precision},
            "memory": {"base_precision": held, "recompute": recompute},
            "lora": {"rank": 4, "targets": targets, "dropout": 0.1},
        }
    )
    card, ahead = (two_steps(nano, modulation, config) for modulation in ("card", "ahead"))
    assert same(ahead, card)
    assert all(float(seen.detach().norm()) > 0 for seen in ahead)
    layers = [path for path, _ in learner_for(nano, "card", config).transformer.named_modules()]
    layers = {path.removesuffix(".base_layer") for path in layers}
    assert passes() == sum(is_modulation(path, nano.family) for path in layers)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantised_base_is_nearer_to_the_whole_one_with_its_modulation_ahead(nano: Base, precision: str) -> None:
    config = Config.model_validate({"training": {"precision": "fp32"}, "memory": {"base_precision": "fp32"}})
    whole = _velocity_of(nano, "card", config)
    quantised = changed(config, base_precision=precision)
    card, ahead = (
        float((_velocity_of(nano, modulation, quantised) - whole).norm() / whole.norm())
        for modulation in ("card", "ahead")
    )
    assert 0 < ahead < card


def _velocity_of(base: Base, modulation: str, config: Config) -> torch.Tensor:
    learner = learner_for(base, modulation, config)
    learner.transformer.disable_adapters()
    with torch.no_grad():
        return velocity(learner, micro_batch(base, learner))


def changed(config: Config, **memory: str) -> Config:
    return config.model_copy(update={"memory": config.memory.model_copy(update=memory)})


def assert_same_run(ours: Trained, theirs: Trained) -> None:
    assert ours.losses == theirs.losses
    assert set(ours.tensors) == set(theirs.tensors)
    assert all(torch.equal(tensor, ours.tensors[name]) for name, tensor in theirs.tensors.items())
    pictures = [sorted((run.folder / "previews").rglob("*.png")) for run in (ours, theirs)]
    assert len(pictures[0]) == len(pictures[1])
    for mine, other in zip(*pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(mine)), np.asarray(Image.open(other)))


def test_a_run_on_nano_ends_with_the_same_file_and_previews_to_the_bit(
    few_pictures: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "SAMPLES_AHEAD", 8)  # two steps, and the previews between
    config = config_for(
        Path("nano"),
        few_pictures,
        training__steps=5,
        training__accumulation=2,
        memory__recompute="all",
        lora__targets=NORMS,
    )
    card = train_in(tmp_path / "card" / "mug", config, cache=cache)
    ahead = train_in(tmp_path / "ahead" / "mug", changed(config, modulation="ahead"), cache=cache)
    assert_same_run(ahead, card)
    assert len(list((ahead.folder / "previews").rglob("*.png"))) == 3


def test_the_weights_are_taken_once_for_many_steps(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path, passes: Callable[[], int]
) -> None:
    config = changed(config_for(tiny_flux, few_pictures), modulation="ahead")
    train_in(tmp_path / "mug", config, cache=cache)
    layers = 2 * 2 + 2 + 1
    assert passes() == layers * (1 + 1 + 3)  # the rehearsal, all six steps; the previews of steps 0, 3 and 6


def test_a_run_stopped_between_resumes_to_the_bit(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path, trained: Trained
) -> None:
    config = changed(trained.config, modulation="ahead")
    run = tmp_path / "mug"
    with pytest.raises(Stopped):
        train_in(run, config, cache=trained.cache, should_stop=stop_after(3))
    resumed = train_in(run, config, cache=trained.cache, resume=run)
    assert [step.loss for step in resumed.seen(Step)] == trained.losses[3:]
    assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in trained.tensors.items())


def test_prior_pictures_and_their_preservation_are_the_same(
    tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path, passes: Callable[[], int]
) -> None:
    guard = {"method": "prior", "prompts": ["a red star", "a blue ball"], "pictures": 2}
    config = plain_config(tiny_flux, few_pictures, training__steps=2, training__preservation=guard)
    card = train_in(tmp_path / "card" / "mug", config, cache=cache)
    ahead = train_in(tmp_path / "ahead" / "mug", changed(config, modulation="ahead"), cache=cache)
    assert_same_run(ahead, card)
    assert passes() == (2 * 2 + 2 + 1) * 3  # the pictures, the rehearsal, both steps


@pytest.mark.parametrize("method", ["none", "output", "prior"])
def test_conditions_are_those_of_the_samples(
    tiny_flux: Path, few_pictures: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = {"method": method, "prompts": ["a red star"], "every": 2}
    config = config_for(tiny_flux, few_pictures, training__preservation=guard)
    ready = preflight(config, ignore)
    prepared = prepare(config, ready.base, ready.pictures, ready.prompts, torch.float32, "cpu", ignore)
    source = SampleSource(config, prepared, [Prior("a red star", torch.zeros(64, 8, 4))], "cpu")
    samples = [source.at(step) for step in range(5)]
    monkeypatch.setattr(prepared.latents, "read", None)
    for step, expected in enumerate(samples):
        batches = [each for each in (expected.subject, expected.preserved) if each is not None]
        conditions = source.conditions(step)
        assert len(conditions) == len(batches) == (2 if method != "none" and step % 2 == 0 else 1)
        for condition, batch in zip(conditions, batches, strict=True):
            assert torch.equal(condition.sigmas, batch.sigmas)
            assert all(torch.equal(text, batch.text[name]) for name, text in condition.text.items())


def test_training_the_embedders_with_modulation_ahead_is_refused_before_anything_loads(
    tiny_flux: Path, few_pictures: Path
) -> None:
    config = changed(config_for(tiny_flux, few_pictures, lora__targets="all-linear"), modulation="ahead")
    with pytest.raises(UsageError, match=r"lora.targets trains time_text_embed\..* and 1 more") as error:
        preflight(config, ignore)
    assert error.value.where == "memory.modulation"
    assert 'memory.modulation = "auto" or "card"' in str(error.value.hint)


@pytest.mark.parametrize(("targets", "settled"), [("attention+mlp", "ahead"), ("all-linear", "card")])
def test_auto_computes_ahead_unless_the_embedders_are_trained(
    tiny_flux: Path, few_pictures: Path, targets: str, settled: str
) -> None:
    config = changed(config_for(tiny_flux, few_pictures, lora__targets=targets), modulation="auto")
    assert settled_memory(config, FLUX1) == config.memory.model_copy(update={"modulation": settled})


def test_under_auto_everything_can_be_trained(tiny_flux: Path, few_pictures: Path, tmp_path: Path, cache: Path) -> None:
    config = plain_config(tiny_flux, few_pictures, training__steps=2, lora__targets="all-linear")
    card = train_in(tmp_path / "card" / "mug", config, cache=cache)
    auto = train_in(tmp_path / "auto" / "mug", changed(config, modulation="auto"), cache=cache)
    assert_same_run(auto, card)
    assert any("time_text_embed" in name for name in card.tensors)
