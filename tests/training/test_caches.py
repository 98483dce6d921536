from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import plain_config, small_pictures, train_in

from fluxtune.errors import BaseModelError
from fluxtune.events import Event, Progress
from fluxtune.training.preflight import preflight
from fluxtune.training.prepare import prepare


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    return small_pictures(tmp_path / "own")


@pytest.fixture(scope="module")
def filled(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds everything for the unchanged pictures and settings."""
    cache = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(cache))
        encoded(tiny_flux, small_pictures(tmp_path_factory.mktemp("unchanged")))
    return cache


@pytest.fixture
def filled_cache(own_cache: None, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work with the filled cache; what a test changes, no other one changes the same way."""
    monkeypatch.setenv("FLUXTUNE_CACHE", str(filled))


def encoded(base: Path, pictures: Path, **changes: Any) -> dict[str, int]:
    """Prepare a run; how many entries of each kind had to be made."""
    config = plain_config(base, pictures, **changes)
    events: list[Event] = []
    ready = preflight(config, events.append)
    prepare(config, ready.base, ready.pictures, ready.prompts, torch.float32, "cpu", events.append)
    tasks = [event.task for event in events if isinstance(event, Progress)]
    return {kind: tasks.count(f"encode {kind}") for kind in ("captions", "pictures")}


def test_everything_is_encoded_once(tiny_flux: Path, own_pictures: Path) -> None:
    # Three captions and the empty one of caption dropout.
    assert encoded(tiny_flux, own_pictures) == {"captions": 4, "pictures": 3}
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 0}


def test_further_crops_are_entries_of_their_own_and_keep_the_first(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    assert encoded(tiny_flux, own_pictures, dataset__crops=3) == {"captions": 0, "pictures": 6}
    assert encoded(tiny_flux, own_pictures, dataset__crops=2) == {"captions": 0, "pictures": 0}
    assert encoded(tiny_flux, own_pictures, dataset__crops=2, dataset__crop_jitter=0.3)["pictures"] == 3


def test_a_changed_caption_re_encodes_that_caption_alone(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    (own_pictures / "1.txt").write_text("a zorvex at sea")
    assert encoded(tiny_flux, own_pictures) == {"captions": 1, "pictures": 0}


def test_a_changed_picture_re_encodes_that_picture_alone(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    Image.new("RGB", (128, 128), (1, 2, 3)).save(own_pictures / "1.png")
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 1}


def test_a_file_that_is_there_twice_is_encoded_once(filled_cache: None, tiny_flux: Path, own_pictures: Path) -> None:
    Image.new("RGB", (128, 128), (3, 2, 1)).save(own_pictures / "1.png")
    (own_pictures / "2.png").write_bytes((own_pictures / "1.png").read_bytes())
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 1}


def test_embeddings_that_are_no_numbers_are_refused_and_not_kept(
    own_cache: None, tiny_flux: Path, own_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"prompt_embeds": torch.full((1, 4, 8), float("nan"))}
    with monkeypatch.context() as patch:
        patch.setattr("fluxtune.training.prepare.encode_prompt", lambda *arguments: broken)
        with pytest.raises(BaseModelError, match="no finite numbers for one of the captions"):
            encoded(tiny_flux, own_pictures)
    assert encoded(tiny_flux, own_pictures)["captions"] == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset__trigger": "mug"}, {"captions": 3, "pictures": 0}),
        ({"dataset__resolution": [96, 128]}, {"captions": 0, "pictures": 3}),
        ({"dataset__background": "#000000"}, {"captions": 0, "pictures": 3}),
        ({"memory__text_precision": "bf16"}, {"captions": 4, "pictures": 0}),
        ({"memory__base_precision": "nf4"}, {"captions": 0, "pictures": 0}),
        ({"training__seed": 7}, {"captions": 0, "pictures": 0}),
    ],
)
def test_a_changed_setting_re_encodes_what_it_decides(
    filled_cache: None, tiny_flux: Path, own_pictures: Path, changes: dict[str, Any], expected: dict[str, int]
) -> None:
    assert encoded(tiny_flux, own_pictures, **changes) == expected


def test_prior_pictures_are_made_once(tiny_flux: Path, own_pictures: Path, tmp_path: Path) -> None:
    guard = {"method": "prior", "prompts": ["a red star", "a blue ball"], "pictures": 3}
    config = plain_config(tiny_flux, own_pictures, training__preservation=guard, training__steps=1)
    other = plain_config(
        tiny_flux, own_pictures, training__preservation=guard, training__steps=1, memory__text_precision="bf16"
    )
    made = []
    for number, chosen in enumerate((config, config, other)):
        run = train_in(tmp_path / f"run-{number}", chosen, cache=tmp_path / "cache")
        made.append([event.task for event in run.seen(Progress)].count("prior pictures"))
    assert made == [3, 0, 3]


def test_nothing_is_written_into_the_folder_of_pictures(tiny_flux: Path, own_pictures: Path) -> None:
    before = sorted(path.name for path in own_pictures.iterdir())
    encoded(tiny_flux, own_pictures)
    assert sorted(path.name for path in own_pictures.iterdir()) == before
