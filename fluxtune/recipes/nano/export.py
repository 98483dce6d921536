"""The finished model as a folder that stock `FluxPipeline.from_pretrained` loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxtune.recipes.nano.architecture import build_transformer
from fluxtune.recipes.nano.text import TextEncoders


def assemble(work: Path, transformer: dict[str, Tensor], folder: Path) -> None:
    """Writes the whole pipeline, weights as bfloat16, whole or not at all."""
    model = build_transformer()
    model.load_state_dict(transformer)
    text = TextEncoders(work / "text")
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
            shift=3.0,
        ),
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=model,
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        round_weights(partial / part)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "text" / "tokenizer" / name, partial / "tokenizer" / name)
    # The name that FLUX.1's own index has: older transformers know the fast tokenizer only by it.
    _rewrite(partial / "model_index.json", lambda index: {**index, "tokenizer_2": ["transformers", "T5TokenizerFast"]})
    # diffusers notes the folder that a part came from, which means nothing to anybody else.
    _rewrite(
        partial / "vae" / "config.json",
        lambda config: {key: value for key, value in config.items() if key != "_name_or_path"},
    )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2) + "\n")


def round_weights(folder: Path) -> None:
    """Stores a component's weights as bfloat16; its config keeps naming float32, which readers then load."""
    for path in folder.glob("*.safetensors"):
        rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in load_file(path).items()}
        save_file(rounded, path, metadata={"format": "pt"})
        path.chmod(0o644)
