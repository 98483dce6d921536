"""The store of tensors: whole entries or none, found by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from fluxtune.dataset import cache
from fluxtune.dataset.cache import Store, key_of
from fluxtune.environment.folders import cache_folder
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


def test_many_entries_lie_in_few_files(store: Store) -> None:
    with store.writing() as write:
        for number in range(500):
            write(key_of(number), {"x": torch.full((4,), float(number))})
    assert len(list(store.folder.iterdir())) == 1
    assert store.read(key_of(321))["x"].tolist() == [321.0] * 4


def test_a_full_shard_is_written_before_the_next_begins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 1000)
    with store.writing() as write:
        for number in range(10):
            write(key_of(number), {"x": torch.zeros(100)})
        assert len(list(store.folder.iterdir())) == 3
    assert len(list(store.folder.iterdir())) == 4
    assert store.missing(key_of(number) for number in range(11)) == [key_of(10)]


def test_a_shard_that_waits_long_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_SECONDS", 0.0)
    with store.writing() as write:
        write(KEY, {"x": torch.zeros(1)})
        assert store.missing([KEY]) == []


def test_what_was_made_before_an_interruption_is_kept(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.writing() as write:
        write(KEY, {"x": torch.ones(3)})
        raise KeyboardInterrupt
    assert store.read(KEY)["x"].tolist() == [1, 1, 1]


def test_another_process_finds_what_was_written_meanwhile(store: Store) -> None:
    other = Store(store.folder)
    assert other.missing([KEY]) == [KEY]
    store.write(KEY, {"x": torch.ones(1)})
    assert other.missing([KEY]) == []


def test_what_else_the_store_holds_is_counted(store: Store) -> None:
    for number in range(3):
        store.write(key_of(number), {"x": torch.zeros(5), "y": torch.zeros(5, dtype=torch.bfloat16)})
    assert store.others([key_of(1), "not there"]) == (2, 60)


def test_more_shards_than_are_kept_open_can_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_OPEN_SHARDS", 2)
    for number in range(5):
        store.write(key_of(number), {"x": torch.full((1,), float(number))})
    for number in (0, 4, 2, 0, 1, 3, 0):
        assert store.read(key_of(number))["x"].item() == number


def test_ten_thousand_entries_are_few_files_and_fewer_open_ones(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 2**20)
    keys = [key_of(number) for number in range(10_000)]
    with store.writing() as write:
        for number, key in enumerate(keys):
            write(key, {"x": torch.full((256,), float(number))})
    shards = list(store.folder.iterdir())
    assert len(shards) == 10
    assert max(shard.stat().st_size for shard in shards) < 2**20 * 1.5
    fresh = Store(store.folder)
    assert fresh.missing(keys) == []
    assert [fresh.read(key)["x"][0].item() for key in keys[::-777]] == list(range(9999, -1, -777))
    assert len([file for file in psutil.Process().open_files() if Path(file.path).parent == store.folder]) <= 10


def test_missing_keys_are_told_once_and_in_order(store: Store) -> None:
    keys = [key_of(number) for number in range(4)]
    store.write(keys[1], {"x": torch.ones(1)})
    assert store.missing([keys[3], keys[1], keys[0], keys[3]]) == [keys[3], keys[0]]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_shard_counts_as_missing_with_a_warning_and_is_made_again(
    store: Store, events: list[Event], keep: int
) -> None:
    store.write(KEY, {"x": torch.ones(64)})
    (shard,) = store.folder.iterdir()
    shard.write_bytes(shard.read_bytes()[:keep])
    fresh = Store(store.folder, events.append)
    assert fresh.missing([KEY]) == [KEY]
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert warning.where == str(shard)
    fresh.write(KEY, {"x": torch.ones(64)})
    assert fresh.read(KEY)["x"].sum() == 64


def flip_a_bit(shard: Path, content: bytes) -> None:
    """Turn one bit of the first place where a shard has this content."""
    whole = bytearray(shard.read_bytes())
    whole[whole.index(content) + len(content) - 1] ^= 1
    shard.write_bytes(whole)


@pytest.mark.parametrize("content", [torch.ones(4).numpy().tobytes(), KEY.encode(), b"/x", b'"shape":[6'])
def test_a_flipped_bit_is_told_and_the_entries_are_made_again(
    store: Store, events: list[Event], content: bytes
) -> None:
    store.write(KEY, {"x": torch.ones(64)})
    (shard,) = store.folder.iterdir()
    flip_a_bit(shard, content)
    fresh = Store(store.folder, events.append)
    assert fresh.missing([KEY]) == [KEY]
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert warning.where == str(shard)
    assert not shard.exists()
    fresh.write(KEY, {"x": torch.ones(64)})
    assert Store(store.folder, events.append).missing([KEY]) == []
    assert len(events) == 1


def test_a_flipped_bit_leaves_entries_of_other_shards_alone(store: Store, events: list[Event]) -> None:
    with store.writing() as write:
        for number in range(3):
            write(key_of(number), {"x": torch.full((8,), 0.3)})
    (shard,) = store.folder.iterdir()
    Store(store.folder).write(key_of(1), {"x": torch.full((8,), 0.3)})
    flip_a_bit(shard, torch.full((8,), 0.3).numpy().tobytes())
    fresh = Store(store.folder, events.append)
    assert fresh.missing(map(key_of, range(3))) == [key_of(0), key_of(2)]
    assert len(events) == 1


def test_what_is_damaged_after_the_check_is_not_read(store: Store) -> None:
    store.write(KEY, {"x": torch.ones(64)})
    (shard,) = store.folder.iterdir()
    flip_a_bit(shard, torch.ones(4).numpy().tobytes())
    with pytest.raises(StorageError, match="checksum"):
        store.read(KEY)


def test_shards_without_checksums_are_not_used(store: Store, events: list[Event]) -> None:
    store.folder.mkdir(parents=True)
    save_file({f"{KEY}/x": torch.ones(3)}, store.folder / "a.safetensors")
    assert store.missing([KEY]) == [KEY]
    assert len(events) == 1


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b'{"x": 5}',
        b'{"x": {"dtype": "F32"}}',
        b"{not json",
        b'{"x": {"dtype": "F23", "shape": [0], "data_offsets": [0, 0]}}',
    ],
)
def test_a_header_of_nonsense_counts_as_damage(store: Store, events: list[Event], header: bytes) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert store.missing([KEY]) == [KEY]
    assert len(events) == 1


def test_reading_what_is_not_there_says_what_to_do(store: Store) -> None:
    with pytest.raises(StorageError) as caught:
        store.read(KEY)
    assert caught.value.where == str(store.folder)
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
