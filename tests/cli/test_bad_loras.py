"""Files that are no LoRA, in every command that takes one: one message, its place, a hint, an exit code, no output."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tensor_zoo import ZOO

Fluxtune = Callable[..., Any]
COMMANDS = {
    "sample": ("sample", "a red ball", "--lora", "mug.safetensors:0.5", "--base", "nano", "--output", "made"),
    "train": ("train", "photos", "--init-from", "mug.safetensors", "--base", "nano", "--output", "made"),
    "export": ("export", "mug.safetensors", "--format", "kohya", "--output", "made.safetensors"),
    "merge": ("export", "merge", "mug.safetensors", "--output", "made.safetensors"),
    "fuse": ("export", "fuse", "mug.safetensors", "--base", "nano", "--output", "made"),
    "inspect": ("export", "inspect", "mug.safetensors"),
}
DAMAGED = ("empty", "cut off", "text", "length of 100 GB", "too much", "torch.save", "bytes behind")
PAIR = {"lora_A": torch.ones(4, 8), "lora_B": torch.ones(8, 4)}


def lora(file: Path, name: str = "transformer.transformer_blocks.0.attn.to_q", **header: str) -> Path:
    save_file({f"{name}.{half}.weight": tensor for half, tensor in PAIR.items()}, file, header or None)
    return file


def one_message(outcome: Any, file: str) -> str:
    """The only error of an outcome, which names the file and ends with a hint."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and outcome.out == "", outcome.err
    assert re.match(rf"error: (\S*/)?{file}: ", errors[0])
    assert outcome.err.count("hint: ") == 1 and "Traceback" not in outcome.err
    return errors[0]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("animal", DAMAGED)
def test_a_damaged_file_gets_one_message(fluxtune: Fluxtune, tmp_path: Path, command: str, animal: str) -> None:
    change, told = ZOO[animal]
    file = lora(tmp_path / "mug.safetensors")
    file.write_bytes(change(file.read_bytes()))
    outcome = fluxtune(*COMMANDS[command])
    assert outcome.code == (2 if animal == "torch.save" else 6)
    assert told in one_message(outcome, "mug.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mug.safetensors"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pickle_under_another_ending_is_refused_unopened(fluxtune: Fluxtune, tmp_path: Path, command: str) -> None:
    (tmp_path / "mug.pt").write_bytes(ZOO["torch.save"][0](b""))
    outcome = fluxtune(*(each.replace("mug.safetensors", "mug.pt") for each in COMMANDS[command]))
    assert outcome.code == 2
    assert "only safetensors is read" in one_message(outcome, "mug.pt")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_lora_of_another_family_is_refused_with_the_reason(fluxtune: Fluxtune, tmp_path: Path, command: str) -> None:
    lora(tmp_path / "mug.safetensors", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    outcome = fluxtune(*COMMANDS[command])
    assert outcome.code == 5
    assert "named as in Stable Diffusion or SDXL" in one_message(outcome, "mug.safetensors")


@pytest.mark.parametrize("command", ["sample", "fuse"])
def test_a_lora_that_does_not_fit_the_base_is_refused_with_the_reason(
    fluxtune: Fluxtune, tmp_path: Path, command: str
) -> None:
    lora(tmp_path / "mug.safetensors", ss_sd_model_name="black-forest-labs/FLUX.1-dev")
    outcome = fluxtune(*COMMANDS[command])
    assert outcome.code == 5
    assert "trained on black-forest-labs/FLUX.1-dev, does not fit nano" in one_message(outcome, "mug.safetensors")
    assert "hint: use its own base model: --base black-forest-labs/FLUX.1-dev" in outcome.err
