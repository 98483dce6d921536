"""FLUX.1 (dev, schnell, Krea): how it reads text, encodes pictures and predicts velocity.

The reference is ``FluxPipeline`` of diffusers; sampling and text encoding call it, so that fluxtune's pictures are
the pipeline's pictures to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from fluxtune.flux.latents import image_ids, pack, patchify, unpack, unpatchify

_ATTENTION = (
    "transformer_blocks.*.attn.to_[qkv]",
    "transformer_blocks.*.attn.to_out.0",
    "transformer_blocks.*.attn.add_[qkv]_proj",
    "transformer_blocks.*.attn.to_add_out",
    "single_transformer_blocks.*.attn.to_[qkv]",
)
_MLP = (
    "transformer_blocks.*.ff.net.*",
    "transformer_blocks.*.ff_context.net.*",
    "single_transformer_blocks.*.proj_mlp",
    "single_transformer_blocks.*.proj_out",
)
EMBEDDERS = tuple(
    f"time_text_embed.{embedder}.linear_{number}"
    for embedder in ("timestep_embedder", "guidance_embedder", "text_embedder")
    for number in (1, 2)
)
MODULATION = (
    "transformer_blocks.*.norm1.linear",
    "transformer_blocks.*.norm1_context.linear",
    "single_transformer_blocks.*.norm.linear",
    "norm_out.linear",
)
LORA_GROUPS = {
    "double": ("transformer_blocks.*",),
    "single": ("single_transformer_blocks.*",),
    "outside": ("x_embedder", "context_embedder", "time_text_embed.*", "norm_out.*", "proj_out"),
    "attention": _ATTENTION,
    "mlp": _MLP,
    "modulation": MODULATION,
    "text": ("text_encoder.*", "text_encoder_2.*"),
}
LORA_TARGETS = {"attention": _ATTENTION, "attention+mlp": (*_ATTENTION, *_MLP), "all-linear": ("*",)}


def text_tokens(embeds_guidance: bool, tokenizer_length: int) -> int:
    """Length of the T5 sequence: 512 for dev, 256 for schnell, less for a model whose tokenizer says so."""
    return min(tokenizer_length, 512 if embeds_guidance else 256)


def text_values(encoders: Sequence[Mapping[str, Any]], tokens: int) -> int:
    """Numbers in the embeddings of one caption: see ``encode_text``.

    Args:
        encoders: the configs of CLIP and T5.
    """
    clip, t5 = encoders
    return int(clip["hidden_size"]) + tokens * int(t5["d_model"])


def text_lengths(encoders: Sequence[Any], tokens: int) -> tuple[int, ...]:
    """How many tokens each text encoder reads: CLIP as many as it can, T5 ``tokens``."""
    clip, _ = encoders
    return int(clip.config.max_position_embeddings), tokens


def architecture(embeds_guidance: bool) -> str:
    """What the metadata of LoRA files call the model."""
    return f"flux-1-{'dev' if embeds_guidance else 'schnell'}/lora"


def sampling_steps(embeds_guidance: bool) -> int:
    """Denoising steps of a picture: dev's usual 28; schnell is distilled to 4 (the models' cards)."""
    return 28 if embeds_guidance else 4


def encode_text(pipeline: Any, caption: str, tokens: int) -> dict[str, torch.Tensor]:
    """One caption as the transformer takes it.

    Args:
        pipeline: a ``FluxPipeline`` that holds the text encoders.
        tokens: length of the T5 sequence; FLUX.1 attends to the padding too, so there is no mask.

    Returns:
        ``prompt_embeds [1, tokens, width]`` of T5 and ``pooled_prompt_embeds [1, width]`` of CLIP.
    """
    prompt_embeds, pooled, _ = pipeline.encode_prompt(caption, max_sequence_length=tokens)
    return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled}


def blank_text(config: Mapping[str, Any], batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Zeros in the shapes of ``encode_text`` for ``batch`` captions.

    Args:
        config: of the transformer.
    """
    return {
        "prompt_embeds": torch.zeros(batch, tokens, config["joint_attention_dim"]),
        "pooled_prompt_embeds": torch.zeros(batch, config["pooled_projection_dim"]),
    }


def encode_image(vae: Any, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``[batch, 3, H, W]`` in [-1, 1] to patchified latents ``[batch, 64, H / 16, W / 16]``.

    ``(sample - shift_factor) * scaling_factor`` of the VAE's posterior, with both factors from its config.
    """
    sample = vae.encode(pixels).latent_dist.sample(generator)
    return patchify((sample - vae.config.shift_factor) * vae.config.scaling_factor)


def decode_image(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Patchified latents ``[batch, 64, h, w]`` to ``[batch, 3, 16 h, 16 w]`` in [-1, 1], as the pipeline does it."""
    pixels: torch.Tensor = vae.decode(unpatchify(latents) / vae.config.scaling_factor + vae.config.shift_factor).sample
    return pixels


def forward(
    transformer: Any,
    noisy: torch.Tensor,
    sigmas: torch.Tensor,
    text: dict[str, torch.Tensor],
    guidance: float | None,
) -> torch.Tensor:
    """The model's velocity at ``noisy`` (``[batch, 64, h, w]``), same shape.

    Args:
        sigmas: ``[batch]`` in [0, 1]; the transformer multiplies by 1000 itself.
        text: ``prompt_embeds [batch, tokens, width]`` and ``pooled_prompt_embeds [batch, width]``.
        guidance: fed to the guidance embedding; None for a model without one.
    """
    batch, _, height, width = noisy.shape
    device, dtype = noisy.device, noisy.dtype
    text_length = text["prompt_embeds"].shape[1]
    tokens = transformer(
        hidden_states=pack(noisy),
        encoder_hidden_states=text["prompt_embeds"].to(dtype),
        pooled_projections=text["pooled_prompt_embeds"].to(dtype),
        timestep=sigmas.to(dtype),
        guidance=None if guidance is None else torch.full([batch], guidance, device=device, dtype=torch.float32),
        img_ids=image_ids(height, width).to(device, dtype),
        txt_ids=torch.zeros(text_length, 3, device=device, dtype=dtype),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def generate(
    pipeline: Any,
    text: dict[str, torch.Tensor],
    *,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    seeds: Sequence[int],
    negative: dict[str, torch.Tensor] | None = None,
    true_guidance: float = 1.0,
    start: Image.Image | None = None,
    strength: float = 1.0,
    on_step: Callable[[], None] | None = None,
    as_latents: bool = False,
) -> list[Image.Image] | torch.Tensor:
    """Pictures from encoded text through ``FluxPipeline`` itself, or ``FluxImg2ImgPipeline`` from a start picture.

    Args:
        pipeline: holds transformer, VAE and scheduler; text encoders are not needed.
        text: what ``encode_text`` returned, in any precision, one after the other for each picture.
        width, height: pixels, multiples of 16.
        seeds: one for each picture, of a CPU generator, so that every device starts from the same noise.
        negative: as ``text``, what is not wanted; each step is computed with it too, and the velocity is
            ``negative + true_guidance * (positive - negative)`` (arXiv 2207.12598, equation 6).
        start: of the size that is wanted; noise is added to it up to ``strength``, from 0 to 1.
        on_step: called after each denoising step.
        as_latents: return patchified latents ``[batch, 64, height / 16, width / 16]`` instead of pictures.
    """

    def report(_: Any, __: Any, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step()
        return tensors

    dtype = pipeline.transformer.dtype
    given: dict[str, Any] = {name: tensor.to(dtype) for name, tensor in text.items()}
    if negative is not None:
        given |= {f"negative_{name}": tensor.to(dtype) for name, tensor in negative.items()}
        given["true_cfg_scale"] = true_guidance
    if start is not None:
        pipeline = _from_pictures(pipeline)
        given |= {"image": [start] * len(seeds), "strength": strength}
    with torch.inference_mode():
        result = pipeline(
            **given,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            callback_on_step_end=report,
            output_type="latent" if as_latents else "pil",
        )
    if as_latents:
        return unpack(result.images, height // 16, width // 16).clone()
    return list(result.images)


def _from_pictures(pipeline: Any) -> Any:
    """The pipeline that begins with pictures, around the same parts."""
    import diffusers

    other = diffusers.FluxImg2ImgPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    return other
