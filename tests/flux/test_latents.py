from __future__ import annotations

import torch
from diffusers import FluxPipeline

from fluxtune.flux.latents import image_ids, pack, patchify, unpack


def latents() -> torch.Tensor:
    """``[2, 16, 6, 10]``, every value different."""
    return torch.arange(2 * 16 * 6 * 10, dtype=torch.float32).reshape(2, 16, 6, 10)


def test_patchified_and_packed_latents_are_the_pipelines() -> None:
    expected = FluxPipeline._pack_latents(latents(), 2, 16, 6, 10)
    assert torch.equal(pack(patchify(latents())), expected)


def test_unpack_undoes_pack() -> None:
    patches = patchify(latents())
    assert torch.equal(unpack(pack(patches), 3, 5), patches)


def test_the_pipeline_unpacks_what_we_pack() -> None:
    unpacked = FluxPipeline._unpack_latents(pack(patchify(latents())), 48, 80, vae_scale_factor=8)
    assert torch.equal(unpacked, latents())


def test_position_ids_are_the_pipelines() -> None:
    expected = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(3, 5), expected)
