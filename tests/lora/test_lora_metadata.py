from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_factory import FACTS
from safetensors.torch import save_file

from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat
from fluxtune.lora.metadata import lora_metadata, restated, tensor_hash

PIXEL = "data:image/jpeg;base64,AA=="
TENSORS = {"transformer.proj_out.lora_B.weight": torch.ones(64, 4), "transformer.proj_out.lora_A.weight": torch.eye(4)}


def test_the_header_says_what_other_tools_read() -> None:
    metadata = lora_metadata(FACTS, TENSORS)
    content = tensor_hash(TENSORS)
    assert metadata == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": "zorvex",
        "modelspec.description": "A LoRA for black-forest-labs/FLUX.1-dev: 300 steps on 12 pictures.",
        "modelspec.date": "2023-11-14T22:23:20+00:00",
        "modelspec.resolution": "1024x1024",
        "modelspec.hash_sha256": f"0x{content}",
        "modelspec.trigger_phrase": "zorvex",
        "modelspec.usage_hint": "put zorvex into the prompt",
        "ss_base_model_version": "flux1",
        "ss_sd_model_name": "black-forest-labs/FLUX.1-dev",
        "ss_output_name": "zorvex",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_steps": "300",
        "ss_epoch": "25",
        "ss_learning_rate": "0.0001",
        "ss_optimizer": "adamw-8bit",
        "ss_seed": "42",
        "ss_resolution": "(1024, 1024)",
        "ss_num_train_images": "12",
        "ss_training_started_at": "1700000000.0",
        "ss_training_finished_at": "1700000600.0",
        "sshs_model_hash": content,
        "fluxtune.version": "0.1",
    }


def test_what_a_person_adds_is_in_the_header_under_the_names_of_model_spec() -> None:
    facts = replace(FACTS, author="Ada", description="A dog.", license="mit", tags=("dog", "pet"), thumbnail=PIXEL)
    metadata = lora_metadata(facts, TENSORS)
    added = ("author", "description", "license", "tags", "thumbnail")
    assert [metadata[f"modelspec.{name}"] for name in added] == ["Ada", "A dog.", "mit", "dog, pet", PIXEL]


def test_buckets_and_phrases_are_in_the_form_that_user_interfaces_read() -> None:
    facts = replace(FACTS, buckets={(512, 768): 3, (640, 640): 9}, phrases={"a zorvex": 8, "on a lawn": 2})
    metadata = lora_metadata(facts, TENSORS)
    buckets = {"0": {"resolution": [512, 768], "count": 3}, "1": {"resolution": [640, 640], "count": 9}}
    assert json.loads(metadata["ss_bucket_info"]) == {"buckets": buckets}
    assert json.loads(metadata["ss_tag_frequency"]) == {"zorvex": {"a zorvex": 8, "on a lawn": 2}}


def test_without_a_trigger_there_is_no_phrase_to_use() -> None:
    metadata = lora_metadata(replace(FACTS, trigger=None), TENSORS)
    assert not {"modelspec.trigger_phrase", "modelspec.usage_hint"} & set(metadata)


def test_a_lora_for_schnell_names_the_implementation_by_which_forge_knows_flux() -> None:
    metadata = lora_metadata(replace(FACTS, architecture="flux-1-schnell/lora"), TENSORS)
    assert metadata["modelspec.implementation"] == "https://github.com/black-forest-labs/flux"


def test_the_hash_is_of_the_files_tensor_bytes_whatever_the_header_says(tmp_path: Path) -> None:
    for number, metadata in enumerate(({"a": "b"}, lora_metadata(FACTS, TENSORS))):
        path = tmp_path / f"{number}.safetensors"
        save_file(TENSORS, path, metadata=metadata)
        content = path.read_bytes()
        header = int.from_bytes(content[:8], "little")
        assert hashlib.sha256(content[8 + header :]).hexdigest() == tensor_hash(TENSORS)


@pytest.mark.parametrize("captions", [False, True])
def test_what_is_carried_over_names_no_place_and_captions_only_when_asked(
    captions: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    theirs = {
        "modelspec.title": f"{tmp_path}/secret dog",
        "modelspec.author": "",
        "modelspec.thumbnail": PIXEL,
        "ss_sd_model_name": f"{tmp_path}/flux/dev.safetensors",
        "ss_output_name": "C:\\loras\\dog",
        "ss_dataset_dirs": '{"10_secret": {"img_count": 3}}',
        "ss_tag_frequency": '{"10_secret": {"a secret dog": 3}}',
        "ss_training_comment": "my secret",
        "ss_session_id": "1",
    }
    layers = {"transformer.proj_out": LoraLayer(torch.eye(4), torch.ones(64, 4), 0.5)}
    metadata = restated(theirs, TENSORS, layers, CONVENTIONS[LoraFormat.KOHYA], captions)
    assert metadata["modelspec.title"] == "~/secret dog"
    assert metadata["modelspec.thumbnail"] == PIXEL
    assert (metadata["ss_sd_model_name"], metadata["ss_output_name"]) == ("dev.safetensors", "dog")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2")
    gone = {"modelspec.author", "ss_dataset_dirs", "ss_session_id"}
    told = {"ss_tag_frequency", "ss_training_comment"}
    assert not (gone if captions else gone | told) & set(metadata)
    assert {name: metadata[name] for name in told & set(metadata)} == {name: theirs[name] for name in told if captions}


def test_neither_tokens_nor_the_home_folder_go_into_the_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    facts = replace(FACTS, name=f"{tmp_path}/mug", trigger="a-token-of-no-known-form", base="https://ada:secret@hub/x")
    metadata = lora_metadata(facts, TENSORS)
    assert (metadata["ss_output_name"], metadata["ss_sd_model_name"]) == ("~/mug", "https://***@hub/x")
    assert metadata["modelspec.usage_hint"] == "put *** into the prompt"
