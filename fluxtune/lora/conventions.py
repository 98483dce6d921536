"""How LoRA files name their layers and halves: one record for each convention that is written, and the spellings that
are read beside them.

Names of layers are the family's own table (``Family.layer_names``); here is what stands before and behind them.
Sources: diffusers `loaders/lora_conversion_utils.py`, ComfyUI `comfy/lora.py` and `comfy/weight_adapter/`, kohya
sd-scripts `networks/lora_flux.py`, LyCORIS `modules/`, peft `utils/save_and_load.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fluxtune.flux.layer_names import LayerNames, Layers


class LoraFormat(StrEnum):
    """A convention that LoRA files are written in."""

    DIFFUSERS = "diffusers"
    COMFYUI = "comfyui"
    KOHYA = "kohya"
    AI_TOOLKIT = "ai-toolkit"
    ONETRAINER = "onetrainer"


@dataclass(frozen=True)
class Convention:
    """One way to write a LoRA.

    Attributes:
        title: whose it is, for people.
        prefixes: part of the model -> what stands before its layers; other parts cannot be written.
        fused: whether layers are the published checkpoint's, where query, key and value are one.
        separator: between the names of nested layers.
        down, up: what is behind a layer's name for A and B.
        alpha: whether a layer's alpha is a tensor; without, the scale is folded into B.
        dtype: of the weights, unless another one is asked for.
    """

    title: str
    prefixes: Mapping[str, str]
    fused: bool
    separator: str
    down: str
    up: str
    alpha: bool
    dtype: str = "bf16"


_PEFT = {"fused": False, "separator": ".", "down": "lora_A.weight", "up": "lora_B.weight", "alpha": False}
_ALPHA = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": True}

CONVENTIONS: Mapping[LoraFormat, Convention] = {
    LoraFormat.DIFFUSERS: Convention(
        "diffusers, ComfyUI and Forge (PEFT keys)",
        {"transformer": "transformer.", "text_encoder": "text_encoder."},
        **_PEFT,  # type: ignore[arg-type]
    ),
    LoraFormat.COMFYUI: Convention(
        "ComfyUI (the checkpoint's own names)",
        {
            "transformer": "diffusion_model.",
            "text_encoder": "text_encoders.clip_l.transformer.",
            "text_encoder_2": "text_encoders.t5xxl.transformer.",
        },
        fused=True,
        separator=".",
        **_ALPHA,  # type: ignore[arg-type]
    ),
    LoraFormat.KOHYA: Convention(
        "kohya sd-scripts, ComfyUI and Forge",
        {"transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"},
        fused=True,
        separator="_",
        **_ALPHA,  # type: ignore[arg-type]
    ),
    LoraFormat.AI_TOOLKIT: Convention(
        "ai-toolkit (PEFT keys)",
        {"transformer": "transformer."},
        dtype="fp16",
        **_PEFT,  # type: ignore[arg-type]
    ),
    LoraFormat.ONETRAINER: Convention(
        "OneTrainer",
        {"transformer": "lora_transformer_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
        fused=False,
        separator="_",
        **_ALPHA,  # type: ignore[arg-type]
    ),
}

READ_PREFIXES: tuple[tuple[str, str], ...] = (
    ("lora_transformer_", "transformer"),
    ("lora_unet_", "transformer"),
    ("lycoris_", "transformer"),
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("transformer.", "transformer"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_2"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("", "transformer"),
)
"""What stands before a layer's name in some file, and the part of the model that it means; the first that fits."""

WRAPPERS = ("base_model.model.",)
"""What peft puts before all names when a whole model is saved."""

READ_SUFFIXES: Mapping[str, str] = {
    name: role
    for role, names in {
        "down": (
            ".lora_down.weight",
            ".lora_A.weight",
            ".lora_A.default.weight",
            ".lora_A.default",
            ".lora_A",
            ".lora.down.weight",
            "_lora.down.weight",
            ".lora_linear_layer.down.weight",
            ".down.weight",
        ),
        "up": (
            ".lora_up.weight",
            ".lora_B.weight",
            ".lora_B.default.weight",
            ".lora_B.default",
            ".lora_B",
            ".lora.up.weight",
            "_lora.up.weight",
            ".lora_linear_layer.up.weight",
            ".up.weight",
        ),
        "alpha": (".alpha",),
        "magnitude": (
            ".dora_scale",
            ".lora_magnitude_vector.weight",
            ".lora_magnitude_vector.default.weight",
            ".lora_magnitude_vector.default",
            ".lora_magnitude_vector",
        ),
        **{each: (f".{each}",) for each in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
        **{each: (f".{each}",) for each in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    }.items()
    for name in names
}
"""What stands behind a layer's name -> what the tensor is of the layer."""


def meaning_of(key: str, names: LayerNames) -> tuple[str, Layers, str] | None:
    """What a tensor's key says: the layer's name in the file, the layers it means, what the tensor is of them.

    None where it is no part of a LoRA of the family.
    """
    for suffix, role in _LONGEST_FIRST:
        if key.endswith(suffix) and (layers := _layers_named(key.removesuffix(suffix), names)):
            return key.removesuffix(suffix), layers, role
    return None


def _layers_named(name: str, names: LayerNames) -> Layers | None:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    for prefix, part in READ_PREFIXES:
        if name.startswith(prefix) and (found := names.found(part, name.removeprefix(prefix))):
            return found
    return None


_LONGEST_FIRST = sorted(READ_SUFFIXES.items(), key=lambda each: -len(each[0]))


def described(keys: Iterable[str]) -> str:
    """Whose convention a file's keys follow, for people."""
    keys = list(keys)
    return next((name for name, mark in _MARKS.items() if any(map(mark, keys))), "unknown")


def stranger(keys: Iterable[str]) -> str | None:
    """The other family whose layers a file's keys name; None where that is not known."""
    keys = list(keys)
    return next(
        (family for family, marks in _STRANGERS.items() if any(mark in key for key in keys for mark in marks)), None
    )


_STRANGERS: Mapping[str, tuple[str, ...]] = {
    "Stable Diffusion or SDXL": ("down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks"),
    "Stable Diffusion 3": ("joint_blocks", "attn2.add_k_proj"),
    "FLUX.2": ("to_qkv_mlp_proj", "stream_modulation", "ff.linear_in", "ff_linear_in"),
}

_MARKS: Mapping[str, Callable[[str], bool]] = {
    "LyCORIS": lambda key: ".lokr_" in key or ".hada_" in key,
    "XLabs": lambda key: ".processor." in key,
    "OneTrainer": lambda key: key.startswith("lora_transformer_"),
    "kohya": lambda key: key.startswith("lora_unet_"),
    "peft": lambda key: key.startswith("base_model.model."),
    "ComfyUI": lambda key: key.startswith(("diffusion_model.", "model.diffusion_model.", "text_encoders.")),
    "diffusers": lambda key: key.startswith(("transformer.", "text_encoder.")),
}
