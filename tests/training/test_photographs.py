from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from diffusers import FluxPipeline
from PIL import Image
from tiny_runs import config_for, train_in

from fluxtune.events import Phase, Preview, Progress

# Square, wide, greyscale, JPEG, and one with transparency.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "camera.png", "retina.jpg", "logo.png")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs of several sizes and modes, with captions."""
    data = pytest.importorskip("skimage.data", reason="scikit-image ships the photographs")
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        shutil.copy(Path(data.__file__).parent / name, folder)
        (folder / name).with_suffix(".txt").write_text(f"a photograph of a {Path(name).stem}", encoding="utf-8")
    return folder


def test_real_photographs_go_the_whole_way(photographs: Path, tiny_flux: Path, tmp_path: Path) -> None:
    sizes = {Image.open(photographs / name).size for name in PHOTOGRAPHS}
    modes = {Image.open(photographs / name).mode for name in PHOTOGRAPHS}
    assert len(sizes) >= 5
    assert {"RGB", "L", "RGBA"} <= modes
    config = config_for(
        tiny_flux,
        photographs,
        dataset__resolution=[128, 192],
        training__steps=8,
        previews__every=8,
        previews__prompts=[],
        checkpoints__dtype="bf16",
    )
    run = train_in(tmp_path / "photos", config, cache=tmp_path / "cache")

    (buckets,) = [phase.detail for phase in run.seen(Phase) if phase.name == "buckets"]
    assert buckets.startswith("used 6 of 6 pictures as 12 samples")
    assert "192x192" in buckets and "160x96" in buckets
    assert [event.total for event in run.seen(Progress) if event.task == "encode pictures"] == [12] * 12
    assert [(preview.step, preview.prompt.split(", ")[0]) for preview in run.seen(Preview)] == [
        (0, "zorvex"),
        (8, "zorvex"),
    ]
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    pipeline.load_lora_weights(run.file)
    adapted = [name for name, _ in pipeline.transformer.named_parameters() if ".lora_" in name]
    assert len(adapted) == len(run.tensors)
