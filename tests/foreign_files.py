"""LoRA files as other trainers write them, for the tiny FLUX: keys, precisions, shapes, header; and what they mean.

Of each file the change of every layer is known by a formula of its own, written down beside its tensors. Sources: the
saving code of the trainers named (kohya `networks/lora_flux.py`, ai-toolkit `toolkit/network_mixins.py`, OneTrainer
`modules/module/LoRAModule.py`, XLabs `train_flux_lora_deepspeed.py`, LyCORIS `lycoris/modules/`, diffusers'
`train_dreambooth_lora_flux.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

WIDTH = 64
IMG_Q, IMG_K, IMG_V = (f"transformer.transformer_blocks.0.attn.to_{name}" for name in "qkv")
IMG_OUT = "transformer.transformer_blocks.0.attn.to_out.0"
TXT_OUT = "transformer.transformer_blocks.0.attn.to_add_out"
SINGLE = "transformer.single_transformer_blocks.1"
S_Q, S_K, S_V, S_MLP = (f"{SINGLE}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
CLIP_Q = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@dataclass
class Foreign:
    """A file's tensors and header, and the change of each layer by diffusers' path."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    changes: dict[str, torch.Tensor] = field(default_factory=dict)

    def put(self, dtype: torch.dtype, **tensors: torch.Tensor) -> list[torch.Tensor]:
        """Store tensors in a precision; returns them as they are read."""
        stored = {name.replace("__", "."): tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        self.tensors |= stored
        return [tensor.float() for tensor in stored.values()]

    def pair(
        self, name: str, down: str, up: str, dtype: torch.dtype, rank: int = 4, height: int = WIDTH, width: int = WIDTH
    ) -> torch.Tensor:
        """A layer of two halves; returns ``up @ down`` of what was stored."""
        seed = len(self.tensors)
        a, b = random(rank, width, seed=seed), random(height, rank, seed=seed + 1)
        a, b = self.put(dtype, **{f"{name}{down}": a, f"{name}{up}": b})
        return b @ a


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def shared(paths: tuple[str, ...], whole: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rows of a fused layer, in the order of its parts, the MLP four times as high."""
    return dict(zip(paths, whole.split([4 * WIDTH if path == S_MLP else WIDTH for path in paths]), strict=True))


def kohya(alpha: float = 1.0, dtype: torch.dtype = torch.float16) -> Foreign:
    """sd-scripts, and FluxGym, which runs it: fused layers, an alpha of 1 unless told."""
    made = Foreign()
    made.header = {
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "4",
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": "flux1",
        "modelspec.architecture": "flux-1-dev/lora",
        "ss_sd_model_name": "flux1-dev.sft",
        "sshs_model_hash": "0" * 64,
    }
    for name, paths in (
        ("double_blocks_0_img_attn_qkv", (IMG_Q, IMG_K, IMG_V)),
        ("double_blocks_0_txt_attn_proj", (TXT_OUT,)),
        ("single_blocks_1_linear1", (S_Q, S_K, S_V, S_MLP)),
    ):
        height = sum(4 * WIDTH if path == S_MLP else WIDTH for path in paths)
        product = made.pair(f"lora_unet_{name}", ".lora_down.weight", ".lora_up.weight", dtype, height=height)
        made.tensors[f"lora_unet_{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
        made.changes |= shared(paths, alpha / 4 * product)
    return made


def kohya_with_clip() -> Foreign:
    """sd-scripts that trained CLIP too, in bf16; with a difference of CLIP's unused projection, as some write it."""
    made = kohya(8.0, torch.bfloat16)
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    product = made.pair(name, ".lora_down.weight", ".lora_up.weight", torch.bfloat16, rank=2, height=32, width=32)
    made.tensors[f"{name}.alpha"] = torch.tensor(1.0, dtype=torch.bfloat16)
    made.changes[CLIP_Q] = product / 2
    made.pair("lora_te1_text_projection", ".lora_down.weight", ".lora_up.weight", torch.bfloat16, height=32, width=32)
    return made


def ranks_by_block() -> Foreign:
    """sd-scripts with `train_block_indices` and a rank of each kind of layer (`img_attn_dim` and so on)."""
    made = Foreign(header={"ss_network_module": "networks.lora_flux", "ss_network_dim": "4"})
    for name, path, rank, alpha in (
        ("double_blocks_0_img_attn_proj", IMG_OUT, 2, 1.0),
        ("double_blocks_0_txt_attn_proj", TXT_OUT, 6, 12.0),
    ):
        product = made.pair(f"lora_unet_{name}", ".lora_down.weight", ".lora_up.weight", torch.float32, rank=rank)
        made.tensors[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
        made.changes[path] = alpha / rank * product
    return made


def ai_toolkit() -> Foreign:
    """PEFT keys in fp16, alpha = rank and in no tensor; the header tells of the software."""
    made = Foreign(
        header={
            "format": "pt",
            "name": "zorvex",
            "version": "1.0",
            "ss_base_model_version": "flux1",
            "software": json.dumps({"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit"}),
            "training_info": json.dumps({"step": 2000, "epoch": 100}),
        }
    )
    for path, height in ((IMG_Q, WIDTH), (TXT_OUT, WIDTH), (S_MLP, 4 * WIDTH)):
        made.changes[path] = made.pair(path, ".lora_A.weight", ".lora_B.weight", torch.float16, height=height)
    return made


def simpletuner() -> Foreign:
    """diffusers' own saving in fp32, without settings: alpha = rank."""
    made = Foreign(header={"format": "pt"})
    for path in (IMG_Q, IMG_K, IMG_V, IMG_OUT):
        made.changes[path] = made.pair(path, ".lora_A.weight", ".lora_B.weight", torch.float32, rank=16)
    return made


def diffusers_script(rank_stabilized: bool = False) -> Foreign:
    """`train_dreambooth_lora_flux.py --train_text_encoder`: an alpha for each part in the header's settings."""
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": rank_stabilized}
    settings |= {
        "transformer.target_modules": ["attn.to_k"],
        "transformer.rank_pattern": {},
        "transformer.bias": "none",
    }
    settings |= {"transformer.alpha_pattern": {"transformer_blocks.0.attn.to_add_out": 2}}
    settings |= {"text_encoder.r": 2, "text_encoder.lora_alpha": 1, "text_encoder.use_rslora": False}
    made = Foreign(header={"format": "pt", "lora_adapter_metadata": json.dumps(settings)})
    by = 2.0 if rank_stabilized else 4.0
    for path, alpha in ((IMG_Q, 8.0), (S_K, 8.0), (TXT_OUT, 2.0)):
        made.changes[path] = alpha / by * made.pair(path, ".lora_A.weight", ".lora_B.weight", torch.float32)
    product = made.pair(CLIP_Q, ".lora_A.weight", ".lora_B.weight", torch.float32, rank=2, height=32, width=32)
    made.changes[CLIP_Q] = product / 2
    return made


def onetrainer() -> Foreign:
    """Layers of diffusers with underscores, an alpha beside each, in bf16."""
    made = Foreign(header={"ot_revision": "abc", "ot_config": "{}", "modelspec.architecture": "Flux.1-dev/lora"})
    for name, path, height in (
        ("transformer_blocks_0_attn_to_out_0", IMG_OUT, WIDTH),
        ("single_transformer_blocks_1_proj_mlp", S_MLP, 4 * WIDTH),
    ):
        key = f"lora_transformer_{name}"
        product = made.pair(key, ".lora_down.weight", ".lora_up.weight", torch.bfloat16, height=height)
        made.tensors[f"{key}.alpha"] = torch.tensor(1.0, dtype=torch.bfloat16)
        made.changes[path] = product / 4
    return made


def xlabs() -> Foreign:
    """Named after the attention processors, one A for query, key and value; no alpha."""
    made = Foreign()
    qkv = made.pair("double_blocks.0.processor.qkv_lora1", ".down.weight", ".up.weight", torch.bfloat16, 16, 3 * WIDTH)
    made.changes |= shared((IMG_Q, IMG_K, IMG_V), qkv)
    proj = made.pair("double_blocks.0.processor.proj_lora2", ".down.weight", ".up.weight", torch.bfloat16, 16)
    made.changes[TXT_OUT] = proj
    return made


def peft_model() -> Foreign:
    """A whole model saved by peft, with the checkpoint's own names, as hosted trainers give it out."""
    made = Foreign()
    qkv = made.pair(
        "base_model.model.double_blocks.0.img_attn.qkv",
        ".lora_A.weight",
        ".lora_B.weight",
        torch.bfloat16,
        4,
        3 * WIDTH,
    )
    made.changes |= shared((IMG_Q, IMG_K, IMG_V), qkv)
    return made


def comfyui() -> Foreign:
    """The checkpoint's names behind ComfyUI's prefix, as a merge or an extraction in ComfyUI writes it, untrained
    biases and norms as zeros."""
    made = Foreign()
    name = "diffusion_model.single_blocks.1.linear1"
    whole = made.pair(name, ".lora_down.weight", ".lora_up.weight", torch.float16, 8, 7 * WIDTH)
    made.tensors[f"{name}.alpha"] = torch.tensor(8.0, dtype=torch.float16)
    made.tensors[f"{name}.diff_b"] = torch.zeros(7 * WIDTH, dtype=torch.float16)
    made.tensors["diffusion_model.single_blocks.1.norm.query_norm.diff"] = torch.zeros(16, dtype=torch.float16)
    made.changes |= shared((S_Q, S_K, S_V, S_MLP), whole)
    return made


def stored_in_fp8() -> Foreign:
    """A file that was made small for a site: kohya's names, all weights in fp8."""
    return kohya(4.0, torch.float8_e4m3fn)


def lokr() -> Foreign:
    """LyCORIS LoKr by SimpleTuner, with a full first factor, and by kohya's trainer in full, where alpha has no rank to
    be relative to and does not count."""
    made = Foreign()
    w1, a, b = made.put(
        torch.bfloat16,
        lycoris_transformer_blocks_0_attn_to_k__lokr_w1=random(4, 4, seed=1),
        lycoris_transformer_blocks_0_attn_to_k__lokr_w2_a=random(16, 2, seed=2),
        lycoris_transformer_blocks_0_attn_to_k__lokr_w2_b=random(2, 16, seed=3),
    )
    made.tensors["lycoris_transformer_blocks_0_attn_to_k.alpha"] = torch.tensor(1.0, dtype=torch.bfloat16)
    made.changes[IMG_K] = torch.kron(w1, a @ b) / 2
    name = "lora_unet_double_blocks_0_txt_attn_proj"
    whole1, whole2 = made.put(
        torch.float16, **{f"{name}__lokr_w1": random(8, 8, seed=4), f"{name}__lokr_w2": random(8, 8, seed=5)}
    )
    made.tensors[f"{name}.alpha"] = torch.tensor(1e10, dtype=torch.float32)
    made.changes[TXT_OUT] = torch.kron(whole1, whole2)
    return made


def loha() -> Foreign:
    """LyCORIS LoHa on a fused layer."""
    made = Foreign(header={"ss_network_module": "lycoris.kohya"})
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    w1a, w1b, w2a, w2b = made.put(
        torch.float16,
        **{
            f"{name}__hada_w1_a": random(3 * WIDTH, 3, seed=1),
            f"{name}__hada_w1_b": random(3, WIDTH, seed=2),
            f"{name}__hada_w2_a": random(3 * WIDTH, 3, seed=3),
            f"{name}__hada_w2_b": random(3, WIDTH, seed=4),
        },
    )
    made.tensors[f"{name}.alpha"] = torch.tensor(1.5, dtype=torch.float16)
    made.changes |= shared((IMG_Q, IMG_K, IMG_V), (w1a @ w1b) * (w2a @ w2b) * 0.5)
    return made


FILES: dict[str, Callable[[], Foreign]] = {
    "kohya sd-scripts": lambda: kohya(16.0),
    "FluxGym": kohya,
    "kohya with CLIP": kohya_with_clip,
    "kohya with ranks by kind": ranks_by_block,
    "ai-toolkit": ai_toolkit,
    "SimpleTuner": simpletuner,
    "diffusers' script": diffusers_script,
    "diffusers' script, rank-stabilised": lambda: diffusers_script(True),
    "OneTrainer": onetrainer,
    "XLabs": xlabs,
    "a peft model": peft_model,
    "ComfyUI": comfyui,
    "stored in fp8": stored_in_fp8,
    "LyCORIS LoKr": lokr,
    "LyCORIS LoHa": loha,
}
