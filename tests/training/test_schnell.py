"""A base without a guidance embedding, as FLUX.1-schnell: the same way through, with its own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import Trained, plain_config, train_in

from fluxtune.events import Warning
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.generate import sample
from fluxtune.sampling.request import SampleRequest


@pytest.fixture(scope="module")
def tiny_schnell(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny FLUX without its guidance embedding."""
    folder = Path(shutil.copytree(tiny_flux, tmp_path_factory.mktemp("schnell") / "flux"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": False}))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if ".guidance_embedder." not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def schnell_run(tiny_schnell: Path, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps on it, with previews."""
    folder = tmp_path_factory.mktemp("runs")
    config = plain_config(tiny_schnell, few_pictures, training__steps=2, previews__every=2, previews__steps=None)
    return train_in(folder / "mug", config, cache=folder / "cache")


def test_it_trains_and_says_that_its_distillation_wears_off(schnell_run: Trained) -> None:
    assert schnell_run.file.is_file()
    assert any("distilled" in warning.message for warning in schnell_run.seen(Warning))


def test_a_picture_takes_its_four_steps_and_equals_the_preview(schnell_run: Trained, tmp_path: Path) -> None:
    config = schnell_run.config
    made = sample(
        SampleRequest(
            model=config.model,
            prompts=tuple(config.previews.prompts),
            seeds=tuple(config.previews.seeds),
            steps=None,
            guidance=config.previews.guidance,
            width=128,
            height=128,
            output=tmp_path / "pictures",
            loras=(LoraUse(schnell_run.file),),
            memory=config.memory,
            precision="fp32",
            device="cpu",
        )
    )
    picture = Image.open(made.pictures[0])
    (preview,) = (schnell_run.folder / "previews" / "step-000002").glob("00-*.png")
    assert json.loads(picture.text["fluxtune"])["steps"] == 4  # type: ignore[attr-defined]
    assert picture.tobytes() == Image.open(preview).tobytes()
