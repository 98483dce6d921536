"""The header of a tensor file is believed only where it is true of the file, and nothing else is opened."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tensor_zoo import ZOO, assembled, mutated

from fluxtune.tensor_files import PICKLES, PickleError, TensorFileError, pickles_in, read_header

WHOLE = save(
    {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "none": torch.empty(0, 4)},
    metadata={"title": "whole {with, brackets}"},
)


def test_a_whole_file_reads_as_its_library_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    file.write_bytes(WHOLE)
    header = read_header(file)
    with safe_open(file, framework="pt") as theirs:
        assert header.tensors.keys() == set(theirs.keys())
        assert header.metadata == theirs.metadata()
        for name, entry in header.tensors.items():
            assert list(entry.shape) == theirs.get_slice(name).get_shape()
            assert entry.dtype == theirs.get_slice(name).get_dtype()


@pytest.mark.parametrize("animal", ZOO)
def test_each_file_of_the_zoo_is_refused_for_what_is_wrong_with_it(tmp_path: Path, animal: str) -> None:
    change, told = ZOO[animal]
    file = tmp_path / "bad.safetensors"
    file.write_bytes(change(WHOLE))
    with pytest.raises(TensorFileError) as error:
        read_header(file)
    assert told in str(error.value)
    assert len(str(error.value)) < 400
    assert error.value.hint


def test_reading_the_largest_header_takes_bounded_memory_and_time(tmp_path: Path) -> None:
    file = tmp_path / "large.safetensors"
    file.write_bytes(assembled(b'{"__metadata__":{"a":"' + b"x" * 24_000_000 + b'"}}', b""))
    started = time.process_time()
    tracemalloc.start()
    read_header(file)
    assert tracemalloc.get_traced_memory()[1] < 150e6
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    file.write_bytes(assembled(b"{" + b"".join(entry % number for number in range(330_000)), b""))
    tracemalloc.reset_peak()
    with pytest.raises(TensorFileError, match="holds too much"):
        read_header(file)
    assert tracemalloc.get_traced_memory()[1] < 1e9
    tracemalloc.stop()
    assert time.process_time() - started < 60


def test_what_500_mutations_make_of_a_file_is_refused_or_as_whole_as_its_library_wants_it(tmp_path: Path) -> None:
    file = tmp_path / "mutated.safetensors"
    outcomes = {}
    for seed in range(500):
        file.write_bytes(mutated(WHOLE, seed))
        try:
            read_header(file)
        except TensorFileError as error:
            outcomes[seed] = str(error)
            continue
        with safe_open(file, framework="pt") as theirs:
            outcomes[seed] = str([theirs.get_tensor(name).shape for name in theirs.keys()])  # noqa: SIM118
    assert len(set(outcomes.values())) > 20
    assert sum("shape" not in outcome for outcome in outcomes.values()) > 300


def test_no_file_that_the_library_refuses_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "mutated.safetensors"
    refused = 0
    for seed in range(500, 1000):
        file.write_bytes(mutated(WHOLE, seed))
        try:
            with safe_open(file, framework="pt"):
                continue
        except SafetensorError:
            refused += 1
        with pytest.raises(TensorFileError):
            read_header(file)
    assert refused > 300


@pytest.mark.parametrize("suffix", [*PICKLES, ".PT"])
def test_a_name_of_a_pickle_is_refused_unread_with_the_way_to_convert_it(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"mug{suffix}"
    file.write_bytes(WHOLE)
    with pytest.raises(PickleError, match="can run code when it is opened: only safetensors is read") as error:
        read_header(file)
    assert "weights_only=True" in error.value.hint


def test_pickles_of_a_folder_are_found_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    for name in ("vae/pytorch_model.bin", "model.safetensors", "a.ckpt"):
        (tmp_path / name).write_bytes(b"")
    assert pickles_in(tmp_path) == ["a.ckpt", "vae/pytorch_model.bin"]
