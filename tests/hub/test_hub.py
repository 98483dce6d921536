from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fake_hub import COMMIT, MODEL, MODEL_FILES, Ask, Hub

from fluxtune.errors import BaseModelError, StorageError
from fluxtune.hub.layouts import missing_files
from fluxtune.hub.locate import locate

TOKEN = "hf_averysecrettokenaverysecrettoken12"


def write_model(folder: Path) -> Path:
    for name, text in MODEL_FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_hub_model_is_downloaded_without_the_files_that_nobody_reads(ask: Ask) -> None:
    answer = ask()
    assert answer.folder is not None
    assert answer.folder.name == COMMIT
    assert files_below(answer.folder) == set(MODEL_FILES)


def test_a_download_is_reported_as_events_and_draws_nothing(ask: Ask) -> None:
    answer = ask()
    assert [event["event"] for event in answer.events if event["event"] == "phase"] == ["phase"]
    progress = [event for event in answer.events if event["event"] == "progress"]
    assert progress[-1]["unit"] == "B"
    assert progress[-1]["done"] == progress[-1]["total"]
    assert len(answer.printed.splitlines()) == 1


def test_weights_that_are_elsewhere_are_not_downloaded_until_they_are_wanted(ask: Ask) -> None:
    answer = ask(without=["transformer", "text_encoder"])
    assert answer.folder is not None
    left_out = {name for name in MODEL_FILES if name.startswith(("transformer/", "text_encoder/")) and "safe" in name}
    assert len(left_out) == 4
    assert files_below(answer.folder) == set(MODEL_FILES) - left_out
    assert ask(without=["transformer", "text_encoder"], offline=True).folder == answer.folder
    assert ask(without=["transformer"], offline=True).message.endswith("missing: text_encoder/model.safetensors")
    assert files_below(ask().folder or Path()) == set(MODEL_FILES)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_downloaded(ask: Ask, hub: Hub) -> None:
    answer = ask(refused=["FluxPipeline"])
    assert answer.message == "another kind of model"
    asked_for = [path.partition(f"/resolve/{COMMIT}/")[2] for path in hub.requests if "/resolve/" in path]
    assert set(asked_for) == {"model_index.json"}


def test_a_complete_model_in_the_cache_is_used_without_the_network(ask: Ask, hub: Hub) -> None:
    first = ask()
    hub.requests.clear()
    again = ask()
    assert again.folder == first.folder
    assert hub.requests == []


def test_a_partly_cached_model_is_completed(ask: Ask) -> None:
    folder = ask().folder
    assert folder is not None
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert ask().folder == folder
    assert missing_files(folder) == []


@pytest.mark.parametrize("how", ["setting", "HF_HUB_OFFLINE"])
def test_offline_and_not_cached_names_the_command_that_fetches_it(ask: Ask, hub: Hub, how: str) -> None:
    answer = ask(offline=True) if how == "setting" else ask(env={"HF_HUB_OFFLINE": "1"})
    assert (answer.error, answer.code) == ("BaseModelError", 5)
    assert "network is switched off" in answer.message
    assert f"hf download {MODEL}" in answer.hint
    assert hub.requests == []


def test_offline_and_partly_cached_names_what_is_missing(ask: Ask) -> None:
    folder = ask().folder
    assert folder is not None
    (folder / "transformer/model-00002-of-00002.safetensors").unlink()
    answer = ask(offline=True)
    assert "only a part" in answer.message
    assert "transformer/model-00002-of-00002.safetensors" in answer.message


def test_a_gated_model_without_a_token_tells_how_to_get_one(ask: Ask, hub: Hub) -> None:
    hub.gated = True
    answer = ask()
    assert answer.code == 5
    assert "no hub token" in answer.message
    assert f"https://huggingface.co/{MODEL}" in answer.hint
    assert "hf auth login" in answer.hint


def test_a_gated_model_whose_licence_was_not_accepted_tells_where_to_accept_it(ask: Ask, hub: Hub) -> None:
    hub.gated, hub.tokens = True, (TOKEN,)
    answer = ask(env={"HF_TOKEN": TOKEN})
    assert answer.code == 5
    assert "has not accepted its licence" in answer.message
    assert f"https://huggingface.co/{MODEL}" in answer.hint
    assert TOKEN not in answer.printed


def test_a_gated_model_is_downloaded_once_the_licence_is_accepted(ask: Ask, hub: Hub) -> None:
    hub.gated, hub.tokens, hub.accepted = True, (TOKEN,), (TOKEN,)
    assert ask(env={"HF_TOKEN": TOKEN}).folder is not None


def test_a_refused_token_is_told_apart_and_never_shown(ask: Ask) -> None:
    answer = ask(env={"HF_TOKEN": TOKEN})
    assert answer.code == 5
    assert "wrong, expired or revoked" in answer.message
    assert TOKEN not in answer.printed


@pytest.mark.parametrize("tokens", [(), (TOKEN,)])
def test_an_id_that_the_hub_does_not_know_names_the_nearest_one(ask: Ask, hub: Hub, tokens: tuple[str, ...]) -> None:
    hub.tokens = tokens
    answer = ask("black-forest-labs/FLUX1-dev", env={"HF_TOKEN": TOKEN} if tokens else {})
    assert answer.code == 5
    assert "no public model black-forest-labs/FLUX1-dev" in answer.message
    assert "did you mean black-forest-labs/FLUX.1-dev?" in answer.hint


def test_an_unknown_revision_is_named(ask: Ask) -> None:
    answer = ask(revision="v99")
    assert answer.code == 5
    assert "no revision v99" in answer.message


def test_an_unreachable_hub_is_told_apart_from_a_wrong_id(ask: Ask) -> None:
    answer = ask(env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert answer.code == 5
    assert "cannot be reached" in answer.message


def test_a_failing_hub_is_named_by_its_status(ask: Ask, hub: Hub) -> None:
    hub.status = 500
    answer = ask()
    assert answer.code == 5
    assert "answered 500" in answer.message


def test_a_download_that_breaks_off_goes_on_where_it_stopped(ask: Ask, hub: Hub) -> None:
    hub.breaks_at = "vae/diffusion_pytorch_model.safetensors"
    answer = ask()
    assert answer.code == 5
    assert "run the command again" in answer.hint
    hub.breaks_at = ""
    assert ask().folder is not None


def test_a_hub_model_of_another_layout_is_refused(ask: Ask, hub: Hub) -> None:
    hub.files = {"config.json": "{}", "model.safetensors": "a language model"}
    answer = ask()
    assert answer.code == 5
    assert "no model_index.json" in answer.message


def test_a_cache_that_cannot_be_written_is_a_storage_error(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = ask(env={"HF_HUB_CACHE": str(tmp_path / "file" / "cache")})
    assert (answer.error, answer.code) == ("StorageError", 6)
    assert "HF_HOME" in answer.hint


def test_a_full_disk_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill_the_disk(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fill_the_disk)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match="disk became full") as error:
        locate(MODEL)
    assert error.value.where == str(tmp_path)


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert locate(str(write_model(tmp_path / "flux"))) == tmp_path / "flux"


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("transformer/model-00002-of-00002.safetensors", "transformer/model-00002-of-00002.safetensors"),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", "transformer/diffusion_pytorch_model"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors"),
        ("text_encoder_2/config.json", "text_encoder_2/config.json"),
        ("tokenizer/merges.txt", "tokenizer/merges.txt"),
        ("tokenizer_2/tokenizer.json", "tokenizer_2/"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json"),
        ("model_index.json", "model_index.json"),
    ],
)
def test_an_incomplete_local_folder_names_what_is_missing(tmp_path: Path, removed: str, named: str) -> None:
    folder = write_model(tmp_path / "flux")
    (folder / removed).unlink()
    with pytest.raises(BaseModelError) as error:
        locate(str(folder))
    assert named in error.value.message


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no model_index\.json"):
        locate(str(tmp_path))


def test_a_single_file_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    path = tmp_path / "flux1-dev.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(BaseModelError, match="single file") as error:
        locate(str(path))
    assert f"--base black-forest-labs/FLUX.1-dev --set model.transformer={path}" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("flux-dev", "black-forest-labs/FLUX.1-dev"), ("nanoo", "nano"), ("./flux", "for instance: nano")],
)
def test_a_name_that_is_neither_folder_nor_id_is_refused(name: str, meant: str) -> None:
    with pytest.raises(BaseModelError, match="neither a folder here nor a hub id") as error:
        locate(name)
    assert meant in (error.value.hint or "")


@pytest.mark.parametrize("index", ["{", "[]", "null", '{"vae": []}'])
def test_an_index_that_lists_no_parts_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index, encoding="utf-8")
    assert missing_files(tmp_path) == ["model_index.json (it is not a readable index)"]


def test_shards_that_are_no_names_are_missing(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    assert missing_files(tmp_path) == ["transformer/1"]


def test_a_base_in_the_home_folder_of_nobody_is_no_base() -> None:
    with pytest.raises(BaseModelError, match="no such base model"):
        locate("~nouser/flux")
