"""``[model]``: which FLUX is taught."""

from __future__ import annotations

from fluxtune.config.base import Section, setting


class ModelConfig(Section):
    """The base model."""

    base: str = setting(
        "black-forest-labs/FLUX.1-dev",
        "Base model: a hub id, a local diffusers folder, or nano for the small model that ships with fluxtune.",
        path="path or id",
    )
    revision: str | None = setting(None, "Branch, tag or commit of a hub model; pin it to make a run repeatable.")
    offline: bool = setting(False, "Never use the network: take the base from the local hub cache or fail.")
    transformer: str | None = setting(
        None,
        "Single .safetensors file with the transformer, as for ComfyUI; configs and all else are the base's.",
        path="path",
    )
    vae: str | None = setting(None, "Single .safetensors file with the VAE (ae.safetensors).", path="path")
    text_encoder: str | None = setting(
        None, "Single .safetensors file with the text encoder CLIP-L (clip_l.safetensors).", path="path"
    )
    text_encoder_2: str | None = setting(
        None,
        "Single .safetensors file with the text encoder T5 (t5xxl_fp16.safetensors or one in fp8).",
        path="path",
    )
