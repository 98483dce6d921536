"""The families of FLUX: one frozen record each, values and the functions that truly differ.

Nothing outside this room asks which family a model is of; it calls the record. Adding a family means one record here
and, where its mathematics differ, one file beside ``flux1.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxtune.flux import flux1, flux1_names
from fluxtune.flux.layer_names import LayerNames
from fluxtune.flux.single_files import Names

Text = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """What fluxtune needs to know of one family of models.

    ``encode_text(pipeline, caption, tokens) -> Text``: one caption, cached as it is.
    ``encode_image(vae, pixels, generator) -> latents``: ``[batch, 3, H, W]`` in [-1, 1] to normalised, patchified
    latents ``[batch, features, H / side_multiple, W / side_multiple]``.
    ``forward(transformer, noisy, sigmas, text, guidance) -> velocity``: both patchified; ``guidance`` is None for
    models that do not embed it.
    ``decode_image(vae, latents) -> pixels``: the way back from ``encode_image``.
    ``blank_text(config, batch, tokens) -> Text``: zeros in the shapes of ``encode_text``, for a transformer's config.
    ``names``: how files name the tensors of each part, by its folder; ``layer_names``: how LoRA files name its layers.
    ``lora_targets``, ``lora_groups``: patterns of layers under the names of `lora.targets` and of scales by group; the
    latter of text encoders' layers too, which have their part of the model in front.
    ``generate``: text to picture through the family's own pipeline.
    ``blocks`` names the transformer's lists of blocks, ``depths`` the keys of its config that say how long each is;
    ``published_width`` and ``published_depths`` are those of the published models.
    ``modulation``: patterns of the modulation layers, which map what ``conditioner``, a module, answers; ``embedders``
    are its linear layers.
    """

    name: str
    pipeline: str
    transformer: str
    text_folders: tuple[str, ...]
    text_tokens: Callable[[bool, int], int]
    text_values: Callable[[Sequence[Mapping[str, Any]], int], int]
    text_lengths: Callable[[Sequence[Any], int], tuple[int, ...]]
    side_multiple: int
    sampling_guidance: float
    sampling_steps: Callable[[bool], int]
    lora_targets: Mapping[str, tuple[str, ...]]
    lora_groups: Mapping[str, tuple[str, ...]]
    architecture: Callable[[bool], str]
    blocks: tuple[str, ...]
    depths: tuple[str, ...]
    published_width: int
    published_depths: tuple[int, int]
    modulation: tuple[str, ...]
    conditioner: str
    embedders: tuple[str, ...]
    names: Mapping[str, Names]
    layer_names: LayerNames
    encode_text: Callable[..., Text]
    blank_text: Callable[[Mapping[str, Any], int, int], Text]
    encode_image: Callable[..., torch.Tensor]
    decode_image: Callable[..., torch.Tensor]
    forward: Callable[..., torch.Tensor]
    generate: Callable[..., object]


FLUX1 = Family(
    name="flux1",
    pipeline="FluxPipeline",
    transformer="FluxTransformer2DModel",
    text_folders=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    text_tokens=flux1.text_tokens,
    text_values=flux1.text_values,
    text_lengths=flux1.text_lengths,
    side_multiple=16,
    sampling_guidance=3.5,
    sampling_steps=flux1.sampling_steps,
    lora_targets=flux1.LORA_TARGETS,
    lora_groups=flux1.LORA_GROUPS,
    architecture=flux1.architecture,
    blocks=("transformer_blocks", "single_transformer_blocks"),
    depths=("num_layers", "num_single_layers"),
    published_width=3072,
    published_depths=(19, 38),
    modulation=flux1.MODULATION,
    conditioner="time_text_embed",
    embedders=flux1.EMBEDDERS,
    names=flux1_names.NAMES,
    layer_names=flux1_names.LAYER_NAMES,
    encode_text=flux1.encode_text,
    blank_text=flux1.blank_text,
    encode_image=flux1.encode_image,
    decode_image=flux1.decode_image,
    forward=flux1.forward,
    generate=flux1.generate,
)

FAMILIES: tuple[Family, ...] = (FLUX1,)


def family_of(pipeline: str) -> Family | None:
    """The family whose pipeline class a ``model_index.json`` names, or None."""
    return next((family for family in FAMILIES if family.pipeline == pipeline), None)
