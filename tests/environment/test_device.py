from __future__ import annotations

import os
import platform

import pytest
import torch

from fluxtune.environment.device import memory_in_use, pick_device, versions
from fluxtune.errors import ExitCode, UsageError


def test_auto_takes_the_graphics_card_where_there_is_one() -> None:
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_cuda_without_a_usable_card_is_a_usage_error_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="cuda was asked for") as error:
        pick_device("cuda")
    assert error.value.exit_code == ExitCode.USAGE
    assert "training.device=cpu" in (error.value.hint or "")


@pytest.mark.parametrize("chosen", [None, "max_split_size_mb:64"])
def test_the_allocator_of_a_card_expands_its_segments_unless_the_user_says_something_of_it(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sys.platform", "linux")
    # So that what the function sets is undone.
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.delenv("PYTORCH_HIP_ALLOC_CONF", raising=False)
    if chosen is None:
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    else:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", chosen)
    assert pick_device("cpu") == "cpu"
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    assert pick_device("cuda") == "cuda"
    assert os.environ.get("PYTORCH_ALLOC_CONF") == (None if chosen else "expandable_segments:True")


def test_versions_name_what_decides_about_numbers() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert "diffusers" in found


def test_memory_in_use_grows_with_what_the_process_holds() -> None:
    before = memory_in_use("cpu")
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert memory_in_use("cpu") - before == pytest.approx(0.25, abs=0.05)
    del held
