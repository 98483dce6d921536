"""The store of tensors: whole entries or none, found by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from fluxtune.dataset.cache import Store, cache_folder, key_of
from fluxtune.errors import StorageError
from fluxtune.events import Event, Warning

KEY = key_of("entry")


@pytest.fixture
def store(tmp_path: Path, events: list[Event]) -> Store:
    return Store(tmp_path / "cache" / "latents", events.append)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_come_back_to_the_bit(store: Store, dtype: torch.dtype) -> None:
    tensors = {"mean": (torch.randn(16, 8, 6) * 100).to(dtype), "pooled": torch.zeros(0, dtype=dtype)}
    store.write(KEY, tensors)
    read = store.read(KEY)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name], tensor)


def test_views_and_tensors_with_gradients_can_be_written(store: Store) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    store.write(KEY, {"turned": base.t(), "row": base[1], "trained": torch.ones(2, requires_grad=True)})
    read = store.read(KEY)
    assert torch.equal(read["turned"], base.t())
    assert torch.equal(read["row"], base[1])
    assert not read["trained"].requires_grad


def test_entries_lie_in_folders_of_two_letters_and_leave_nothing_else(store: Store) -> None:
    store.write(KEY, {"x": torch.ones(1)})
    files = [path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file()]
    assert files == [Path(KEY[:2]) / f"{KEY}.safetensors"]


def test_missing_keys_are_told_once_and_in_order(store: Store) -> None:
    keys = [key_of(number) for number in range(4)]
    store.write(keys[1], {"x": torch.ones(1)})
    assert store.missing([keys[3], keys[1], keys[0], keys[3]]) == [keys[3], keys[0]]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_entry_counts_as_missing_with_a_warning_and_is_made_again(
    store: Store, events: list[Event], keep: int
) -> None:
    store.write(KEY, {"x": torch.ones(64)})
    path = store.path(KEY)
    path.write_bytes(path.read_bytes()[:keep])

    assert store.missing([KEY]) == [KEY]
    assert [(type(event), event.where) for event in events if isinstance(event, Warning)] == [(Warning, str(path))]
    with pytest.raises(StorageError, match="cannot be read"):
        store.read(KEY)

    store.write(KEY, {"x": torch.ones(64)})
    assert store.missing([KEY]) == []
    assert torch.equal(store.read(KEY)["x"], torch.ones(64))


def test_reading_what_is_not_there_says_what_to_do(store: Store) -> None:
    with pytest.raises(StorageError) as caught:
        store.read(KEY)
    assert caught.value.where == str(store.path(KEY))
    assert caught.value.hint is not None and "run the command again" in caught.value.hint


def test_keys_of_different_parts_differ() -> None:
    parts: list[tuple[str | int | float | bytes, ...]] = [
        ("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (b"abc",), ("1",), (1,), (1.0,), (True,), (1, 0),
        (10,), (), ("caf\u00e9",), ("3:str:",),
    ]  # fmt: skip
    assert len({key_of(*part) for part in parts}) == len(parts)


def test_a_key_is_the_same_in_every_process() -> None:
    assert key_of("vae", 512, 1.5, b"\x00") == key_of("vae", 512, 1.5, b"\x00")
    assert key_of("a") == hashlib.sha256(b"str:1:a").hexdigest()


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("FLUXTUNE_CACHE", "")
    assert "fluxtune" in cache_folder().parts
