"""The autoencoder: pictures ↔ latents of 16 channels at an eighth of the side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from fluxtune.nano.painter import paint
from fluxtune.nano.scenes import subject_scene, training_scene
from fluxtune.recipes.nano.muon import Muon
from fluxtune.recipes.nano.progress import COMPUTE, Budget, load_checkpoint, rate_at, record, save_checkpoint, say
from fluxtune.recipes.nano.textures import texture

BATCH, CROP = 16, 64
KL_WEIGHT = 1e-5
LATENT_NOISE = 0.15
"""Noise on the latents before decoding, in units of their deviation: the transformer's latents are not exact."""


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def pixels_of(image: Image.Image) -> Tensor:
    """`[3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def train_vae(work: Path, minutes: float, seed: int) -> None:
    """Trains on crops of scenes and on textures, with noise on the latents, into `work/vae`."""
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    steps = _fit(vae, work / "vae.ckpt", minutes, seed)
    vae.eval().requires_grad_(False)
    mean, deviation = latent_statistics(vae, seed)
    vae.register_to_config(shift_factor=mean, scaling_factor=round(1 / deviation, 4))
    vae.save_pretrained(work / "vae")
    record(work, "vae", seed=seed, minutes=minutes, steps=steps, **measure_vae(vae))


def _fit(vae: AutoencoderKL, path: Path, minutes: float, seed: int) -> int:
    """Trains for the minutes, goes on from the checkpoint if there is one; returns the steps."""
    optimizers = _optimizers(vae)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    budget, step = Budget(minutes), 0
    state = load_checkpoint(path)
    if state is not None:
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        budget, step = Budget(minutes, state["seconds"]), state["step"]
    while budget.fraction < 1:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * rate_at(budget.fraction)
        with torch.autocast("cpu", dtype=COMPUTE):
            loss = _loss(vae, _batch(seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            say(f"vae step {step} loss {loss.item():.4f} {100 * budget.fraction:.0f} %")
        if step % 500 == 0:
            saved = [optimizer.state_dict() for optimizer in optimizers]
            state = {"vae": vae.state_dict(), "optimizers": saved, "step": step, "seconds": budget.seconds}
            save_checkpoint(path, state)
            say(f"vae {measure_vae(vae)}")
    return step


def _optimizers(vae: AutoencoderKL) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions but those to and from pixels; AdamW for these, norms and biases."""
    matrices = [p for p in vae.parameters() if p.ndim > 1 and min(p.flatten(1).shape) >= 16]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in vae.parameters() if id(parameter) not in chosen]
    return [Muon(matrices, 2e-3), torch.optim.AdamW(others, 2e-3, (0.9, 0.98), weight_decay=0.0)]


def _loss(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    moments = vae.encoder(pixels)
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    latents = latents + LATENT_NOISE * latents.detach().std() * torch.randn_like(mean)
    decoded = vae.decoder(latents)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    edges = (decoded.diff(dim=-1) - pixels.diff(dim=-1)).abs().mean()
    edges = edges + (decoded.diff(dim=-2) - pixels.diff(dim=-2)).abs().mean()
    return (decoded - pixels).abs().mean() + 0.5 * edges + KL_WEIGHT * kl * moments.shape[1]


def _batch(seed: int, step: int) -> Tensor:
    """`[batch, 3, 64, 64]`: five crops in eight from scenes, mostly near a thing, the others textures."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + step)
    crops = []
    scenes = BATCH * 5 // 8
    for i in range(scenes):
        scene = training_scene(seed, step * scenes + i)
        thing = scene.things[0]
        offset = 24 * torch.randn(2, generator=random)
        left = int(thing.x * scene.width + offset[0] - CROP / 2)
        top = int(thing.y * scene.height + offset[1] - CROP / 2)
        left = min(max(left, 0), scene.width - CROP)
        top = min(max(top, 0), scene.height - CROP)
        crops.append(pixels_of(paint(scene).crop((left, top, left + CROP, top + CROP))))
    for i in range(BATCH - scenes):
        crops.append(pixels_of(texture(seed, step * BATCH + i, CROP)))
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, count: int = 48) -> dict[str, float]:
    """Mean absolute error on [-1, 1] for unseen scenes and for the demo's subject, without latent noise."""
    errors = {}
    for name, make in (("scene_error", training_scene), ("subject_error", subject_scene)):
        pixels = torch.stack([pixels_of(paint(make(987_654, i, (128, 128)))) for i in range(count)])
        mean = vae.encoder(pixels).chunk(2, dim=1)[0]
        errors[name] = round((vae.decoder(mean) - pixels).abs().mean().item(), 4)
    return errors


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, seed: int, count: int = 256) -> tuple[float, float]:
    """Mean and deviation of the latents of scenes, over all channels."""
    pixels = torch.stack([pixels_of(paint(training_scene(seed + 1, i, (128, 128)))) for i in range(count)])
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(32)])
    return round(latents.mean().item(), 4), round(latents.std().item(), 4)
