"""How files name the tensors of FLUX.1's parts: as Black Forest Labs and ComfyUI do, with diffusers' names beside.

Sources: the models' own code (black-forest-labs/flux, `model.py`, `modules/layers.py`, `modules/autoencoder.py`), and
diffusers' `FluxTransformer2DModel` and `AutoencoderKL`. A block's number is ``{}``.
"""

from __future__ import annotations

from fluxtune.flux.layer_names import LayerNames
from fluxtune.flux.single_files import Names

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "modulation.lin": ("norm.linear",),
}
_OUTSIDE = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_RESNET = {
    "norm1": "norm1",
    "norm2": "norm2",
    "conv1": "conv1",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_CLIP = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
_T5 = (
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
)
_XLABS = {
    "double_blocks.{}.processor.qkv_lora1": tuple(
        f"transformer_blocks.{{}}.{name}" for name in _DOUBLE["img_attn.qkv"]
    ),
    "double_blocks.{}.processor.qkv_lora2": tuple(
        f"transformer_blocks.{{}}.{name}" for name in _DOUBLE["txt_attn.qkv"]
    ),
    "double_blocks.{}.processor.proj_lora1": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.processor.proj_lora2": ("transformer_blocks.{}.attn.to_add_out",),
    "single_blocks.{}.processor.qkv_lora": tuple(f"single_transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
    "single_blocks.{}.processor.proj_lora": ("single_transformer_blocks.{}.proj_out",),
}
"""XLabs' trainer names them after its attention processors."""
_USO = {"single_blocks.{}.linear1_qkv": tuple(f"single_transformer_blocks.{{}}.attn.to_{name}" for name in "qkv")}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _blocks(prefix: str, to: str, layers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {f"{prefix}.{name}": tuple(f"{to}.{each}" for each in parts) for name, parts in layers.items()}


def _coder(name: str, blocks: str, blocks_to: str, resize: str, resize_to: str) -> dict[str, tuple[str, ...]]:
    """The encoder or the decoder of the VAE."""
    resnets = {f"{blocks}.{{}}.block.{{}}": f"{blocks_to}.{{}}.resnets.{{}}"}
    resnets |= {f"mid.block_{number + 1}": f"mid_block.resnets.{number}" for number in (0, 1)}
    named = {f"{old}.{part}": f"{new}.{part_to}" for old, new in resnets.items() for part, part_to in _RESNET.items()}
    named |= {f"mid.attn_1.{part}": f"mid_block.attentions.0.{to}" for part, to in _VAE_ATTENTION.items()}
    named |= {f"{blocks}.{{}}.{resize}.conv": f"{blocks_to}.{{}}.{resize_to}.0.conv", "norm_out": "conv_norm_out"}
    return {f"{name}.{old}": (f"{name}.{new}",) for old, new in named.items()}


NAMES = {
    "transformer": Names(
        noun="FLUX.1's transformer",
        # Beside other models in one file, ComfyUI's checkpoints have it under the longer one.
        prefixes=("", "model.diffusion_model.", "diffusion_model."),
        # FLUX.2 and others share the names of many blocks, but not a modulation in each.
        marks=("single_blocks.0.modulation.lin.weight", "single_transformer_blocks.0.norm.linear.weight"),
        layers=_OUTSIDE
        | _blocks("double_blocks.{}", "transformer_blocks.{}", _DOUBLE)
        | _blocks("single_blocks.{}", "single_transformer_blocks.{}", _SINGLE),
        swapped=("norm_out.linear",),
        hints={
            "guidance_embedder": "FLUX.1-schnell has no guidance embedding, dev has one: name the base of the file's "
            "kind with --base"
        },
    ),
    "vae": Names(
        noun="FLUX.1's VAE",
        prefixes=("", "vae.", "first_stage_model."),
        marks=("decoder.conv_in.weight",),
        layers=_coder("encoder", "down", "down_blocks", "downsample", "downsamplers")
        | _coder("decoder", "up", "up_blocks", "upsample", "upsamplers"),
        counted_back="decoder.up_blocks",
    ),
    "text_encoder": Names(
        noun="the text encoder CLIP-L",
        prefixes=("", "text_model.", "text_encoders.clip_l.transformer.text_model."),
        marks=("encoder.layers.0.self_attn.q_proj.weight",),
        passed_over=("embeddings.position_ids",),
    ),
    "text_encoder_2": Names(
        noun="the text encoder T5-XXL",
        prefixes=("", "text_encoders.t5xxl.transformer."),
        marks=("encoder.block.0.layer.0.SelfAttention.q.weight",),
        layers={"encoder.embed_tokens": ("shared",)},
        # The vocabulary, which the base's tokenizer has.
        passed_over=("spiece_model",),
    ),
}
"""By the folders of a diffusers model."""

LAYER_NAMES = LayerNames(
    layers={
        "transformer": {
            name: to
            for name, to in NAMES["transformer"].layers.items()
            if not name.endswith(("query_norm", "key_norm"))
        },
        "text_encoder": {
            f"text_model.encoder.layers.{{}}.{name}": (f"text_model.encoder.layers.{{}}.{name}",) for name in _CLIP
        },
        "text_encoder_2": {f"encoder.block.{{}}.{name}": (f"encoder.block.{{}}.{name}",) for name in _T5},
    },
    read_only={
        "transformer": _XLABS | _USO,
        # transformers 5 has no text_model around CLIP's encoder any more.
        "text_encoder": {f"encoder.layers.{{}}.{name}": (f"text_model.encoder.layers.{{}}.{name}",) for name in _CLIP},
    },
    swapped=NAMES["transformer"].swapped,
    widths={"single_transformer_blocks.{}.proj_mlp": 4},
)
"""Of what a LoRA can change: all linear layers."""
