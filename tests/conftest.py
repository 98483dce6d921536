"""What several rooms' tests share: a tiny random FLUX of the real classes, and a few pictures."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw


def pytest_configure() -> None:
    """Commands of the tests are interrupted as at a terminal, also where the tests run in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What all tests import is set aside before the first fixture trains."""
    _set_aside()


@pytest.fixture(scope="module", autouse=True)
def imported_objects_are_set_aside() -> None:
    """Runs collect garbage to free memory: without what is imported by then, that takes no time."""
    _set_aside()


def _set_aside() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache or configuration folder."""
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("FLUXTUNE_CONFIG", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a random FLUX of about 0.4 M parameters: every real class, seconds to train."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    from fluxtune.recipes.nano.vocabulary import LENGTH, save_tokenizers

    folder = tmp_path_factory.mktemp("tiny") / "flux"
    save_tokenizers(folder)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer_2 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8, 8, 16, 16],
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=4,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1159,
            scaling_factor=0.3611,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three captioned pictures of two shapes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate([(128, 128), (128, 128), (160, 96)]):
        image = Image.new("RGB", size, (200, 40 * index, 90))
        ImageDraw.Draw(image).ellipse((20, 20, 80, 70), fill=(20, 200, 60 * index))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a zorvex in place {index}", encoding="utf-8")
    return folder


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the weight of a modulation layer has been taken to the device, of all layers together."""
    from fluxtune.flux.modulation import RowLinear

    count, products = 0, RowLinear.products

    def counted(layer: Any, inputs: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        nonlocal count
        count += 1
        return products(layer, inputs)

    monkeypatch.setattr(RowLinear, "products", counted)
    return lambda: count
