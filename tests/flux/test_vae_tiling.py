"""Pictures that the VAE goes over tile by tile, on nano's and on one of FLUX.1's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from PIL import Image

import fluxtune.nano
from fluxtune.config.model import ModelConfig
from fluxtune.flux.base import open_base
from fluxtune.flux.load import VAE_TILE, load_vae
from fluxtune.memory.ledger import Ledger
from fluxtune.memory.simulate import DEVICE, give_content, simulate

SIZE = (768, 640)
FLUX1 = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def nano_vae(tiling: bool) -> Any:
    return load_vae(open_base(ModelConfig(base="nano")), torch.float32, "cpu", tiling)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """``[1, 3, 640, 768]``: the demo's pictures side by side."""
    pictures = sorted(Path(fluxtune.nano.__file__).parent.rglob("*.png"))
    sheet = Image.new("RGB", SIZE)
    for number, corner in enumerate((x, y) for y in range(0, SIZE[1], 128) for x in range(0, SIZE[0], 128)):
        sheet.paste(Image.open(pictures[number % len(pictures)]).convert("RGB").resize((128, 128)), corner)
    return torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def test_a_picture_of_tiles_differs_by_less_than_the_vae_loses_anyway(pixels: torch.Tensor) -> None:
    """Norms see a tile instead of the picture. Measured: 2.3 % of the latents' mean, 0.013 of pixels in [-1, 1]; the
    VAE's own loss is 0.040."""
    whole, tiled = nano_vae(tiling=False), nano_vae(tiling=True)
    latents, of_tiles = (vae.encode(pixels).latent_dist.mean for vae in (whole, tiled))
    assert latents.shape == of_tiles.shape
    assert 0 < (of_tiles - latents).abs().mean() / latents.abs().mean() < 0.04
    decoded, from_tiles = (vae.decode(latents).sample for vae in (whole, tiled))
    lost = (decoded - pixels).abs().mean()
    assert 0 < (from_tiles - decoded).abs().mean() < lost / 2


@torch.no_grad()
def test_a_picture_no_larger_than_a_tile_is_the_same_to_the_bit(pixels: torch.Tensor) -> None:
    whole, tiled = nano_vae(tiling=False), nano_vae(tiling=True)
    small = pixels[:, :, :VAE_TILE, :VAE_TILE]
    latents = whole.encode(small).latent_dist.mean
    assert torch.equal(tiled.encode(small).latent_dist.mean, latents)
    assert torch.equal(tiled.decode(latents).sample, whole.decode(latents).sample)


def simulated_peak(side: int, tile: int | None) -> float:
    """GiB of FLUX.1's VAE in bf16, encoding and decoding one picture."""
    with init_empty_weights():
        vae = AutoencoderKL(**FLUX1).requires_grad_(False)
    if tile is not None:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 8

    def build(ledger: Ledger) -> Any:
        give_content(vae, lambda _: torch.bfloat16)
        for tensor in vae.parameters():
            ledger.claim(tensor, "weights")
        return vae

    @torch.no_grad()
    def step(vae: Any, _: Ledger) -> None:
        vae.decode(vae.encode(torch.zeros(1, 3, side, side, dtype=torch.bfloat16, device=DEVICE)).latent_dist.mean)

    return simulate(build, step, as_cuda=True).peak.bytes / 2**30


def test_tiles_bound_the_memory_of_flux1s_vae() -> None:
    assert simulated_peak(1024, None) == pytest.approx(1.66, abs=0.05)
    assert simulated_peak(1024, VAE_TILE) == pytest.approx(0.54, abs=0.05)
    assert simulated_peak(1536, VAE_TILE) < 0.6
