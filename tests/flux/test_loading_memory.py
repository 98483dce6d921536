"""Loading needs little memory beside what it loads: measured on models of a few hundred MB, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy_files import bfl_transformer, scaled_fp8, weights_of, write
from diffusers import FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel

from fluxtune.nano import model_folder

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no such memory")

MIB = 2**20
IN_16_BITS = {"transformer": 250, "text_encoder_2": 190}
"""MiB of each part at least, of which no layer takes more than 5."""
FEW_LAYERS = 32
"""MiB: some copies of a layer in 32 bits."""
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc otherwise keeps some of what was freed, and how much differs from run to run."""

_LOAD = """
import json, sys, threading
import bitsandbytes, torch, diffusers, transformers
from diffusers import FluxPipeline, FluxTransformer2DModel, AutoencoderKL
from transformers import T5EncoderModel, CLIPTextModel, T5TokenizerFast, CLIPTokenizer
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.flux.base import open_base
from fluxtune.flux.load import load_text_pipeline, load_transformer
from fluxtune.memory.quantize import quantized_linear

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

asked = json.loads(sys.argv[1])
base = open_base(ModelConfig(**asked["model"]))
precision = asked["precision"]
# What libraries make at their first use is none of the model's.
quantized_linear(torch.nn.Linear(512, 512), torch.ones(512, 512), precision if precision != "bf16" else "nf4",
                 torch.bfloat16, "cpu")
memory = MemoryConfig(base_precision=precision, text_precision=precision, cache_quantized=asked["kept"])
load = load_transformer if asked["part"] == "transformer" else load_text_pipeline
before, peak, over = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not over.wait(0.002):
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
loaded = load(base, memory, torch.bfloat16, "cpu")
after = anonymous()
over.set()
thread.join()
print(json.dumps({"peak": max(peak, after) - before, "after": after - before}))
"""


@pytest.fixture(scope="module")
def middle_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a random transformer and T5 of more than 100 M parameters in bf16; the rest is nano's."""
    folder = tmp_path_factory.mktemp("middle") / "flux"
    for part in model_folder().rglob("*"):
        if part.is_file() and part.parent.name not in ("transformer", "text_encoder_2"):
            target = folder / part.relative_to(model_folder())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(part.read_bytes())
    torch.manual_seed(0)
    FluxTransformer2DModel(
        in_channels=64,
        num_layers=4,
        num_single_layers=24,
        attention_head_dim=128,
        num_attention_heads=4,
        joint_attention_dim=512,
        pooled_projection_dim=64,
        guidance_embeds=True,
    ).to(torch.bfloat16).save_pretrained(folder / "transformer", max_shard_size="100MB")
    T5EncoderModel(T5Config(vocab_size=5000, d_model=512, d_kv=64, d_ff=2048, num_layers=32, num_heads=8)).to(
        torch.bfloat16
    ).save_pretrained(folder / "text_encoder_2")
    return folder


def loaded(base: Path, part: str, precision: str, kept: bool = False, **files: str) -> dict[str, float]:
    """MiB of anonymous memory at the peak of a load and after it, above those before."""
    asked = {"model": {"base": str(base), **files}, "part": part, "precision": precision, "kept": kept}
    call = [sys.executable, "-c", _LOAD, json.dumps(asked)]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | FREED_AT_ONCE)
    assert done.returncode == 0, done.stderr
    seen = {name: size / MIB for name, size in json.loads(done.stdout.splitlines()[-1]).items()}
    print(part, precision, seen)
    return seen


def size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MIB


@pytest.mark.parametrize(
    ("part", "precision"),
    [
        ("transformer", "bf16"),
        ("transformer", "int8"),
        pytest.param("transformer", "nf4", marks=pytest.mark.slow),
        pytest.param("text_encoder_2", "nf4", marks=pytest.mark.slow),
    ],
)
def test_beside_what_it_holds_loading_takes_a_few_layers_and_leaves_nothing_behind(
    middle_size: Path, part: str, precision: str
) -> None:
    whole = size_of(middle_size / part)
    assert whole > IN_16_BITS[part]
    seen = loaded(middle_size, part, precision)
    # Weights that are not quantised stay in the mapped file.
    assert seen["after"] < whole * {"bf16": 0.02, "int8": 0.52, "nf4": 0.29}[precision] + 8
    assert seen["peak"] - seen["after"] < FEW_LAYERS


def test_one_file_in_scaled_fp8_takes_no_more(middle_size: Path, tmp_path: Path) -> None:
    stored, _ = scaled_fp8(bfl_transformer(weights_of(middle_size, "transformer")))
    file = write(tmp_path / "flux.safetensors", stored, "model.diffusion_model.")
    seen = loaded(middle_size, "transformer", "int8", transformer=str(file))
    assert seen["after"] < 0.52 * size_of(middle_size / "transformer") + 8
    assert seen["peak"] - seen["after"] < FEW_LAYERS


@pytest.mark.slow
def test_from_the_cache_nothing_is_held_but_its_mapped_files(
    middle_size: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path))
    first, again = (loaded(middle_size, "transformer", "nf4", kept=True) for _ in range(2))
    # Of the shard that is being filled there are three copies: its tensors, and what is written of them.
    assert first["peak"] - first["after"] < FEW_LAYERS + 3 * 64
    assert again["peak"] < 24
