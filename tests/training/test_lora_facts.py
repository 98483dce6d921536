from __future__ import annotations

import json
from pathlib import Path

from tiny_runs import Trained, config_for, train_in

from fluxtune.events import Warning
from fluxtune.hub.licenses import LICENSES
from fluxtune.lora.files import read_metadata


def test_a_result_holds_neither_captions_nor_pictures_nor_places_unless_that_is_asked(
    trained: Trained, few_pictures: Path
) -> None:
    header = read_metadata(trained.file)
    assert not {"ss_tag_frequency", "modelspec.thumbnail", "modelspec.author"} & set(header)
    text = json.dumps(header)
    captions = [file.read_text("utf-8") for file in few_pictures.glob("*.txt")]
    names = [str(few_pictures), few_pictures.name, *(file.name for file in few_pictures.iterdir())]
    assert captions
    assert not [secret for secret in (*captions, *names) if secret in text]
    counts = [row["count"] for row in json.loads(header["ss_bucket_info"])["buckets"].values()]
    assert sum(counts) == int(header["ss_num_train_images"]) == 3


def test_what_is_asked_for_is_in_the_result(
    trained: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    settings = {
        "training__steps": 1,
        "previews__every": 1,
        "metadata__caption_words": True,
        "metadata__thumbnail": True,
        "metadata__author": "Ada",
        "metadata__license": "mit",
        "metadata__tags": ["mug", "cup"],
    }
    made = train_in(tmp_path / "mug", config_for(tiny_flux, few_pictures, **settings), cache=trained.cache)
    header = read_metadata(made.file)
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    asked = ("modelspec.author", "modelspec.license", "modelspec.tags")
    assert [header[name] for name in asked] == ["Ada", "mit", "mug, cup"]
    phrases = json.loads(header["ss_tag_frequency"])[header["ss_output_name"]]
    words = {part.strip() for file in few_pictures.glob("*.txt") for part in file.read_text("utf-8").split(",")}
    assert phrases.keys() == {word for word in words if word}
    # A checkpoint's LoRA is written before the previews of its step.
    (checkpoint,) = (tmp_path / "mug" / "checkpoints").glob("*/mug.safetensors")
    assert "modelspec.thumbnail" not in read_metadata(checkpoint)


def test_without_previews_there_is_no_thumbnail_and_a_warning_says_so(
    trained: Trained, tiny_flux: Path, few_pictures: Path, tmp_path: Path
) -> None:
    settings = {"training__steps": 1, "previews__every": 0, "metadata__thumbnail": True}
    made = train_in(tmp_path / "mug", config_for(tiny_flux, few_pictures, **settings), cache=trained.cache)
    assert "modelspec.thumbnail" not in read_metadata(made.file)
    assert [each.where for each in made.events if isinstance(each, Warning)].count("metadata.thumbnail") == 1


def test_the_licence_of_known_base_models_is_that_of_their_cards() -> None:
    assert str(LICENSES["black-forest-labs/FLUX.1-dev"]) == "flux-1-dev-non-commercial-license"
    assert str(LICENSES["black-forest-labs/FLUX.1-schnell"]) == "apache-2.0"
    assert all(bool(each.link) == (each.identifier == "other") for each in LICENSES.values())
