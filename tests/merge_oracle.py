"""What a LoRA file does to the published FLUX.1 checkpoint, by rules written down row by row.

A second reader, which shares no code with fluxtune's own: for each row of the key tables, where in the fused weight the
product goes, scaled by alpha over the rows of down, or 1. It knows the names that fluxtune writes, and no more.
"""

from __future__ import annotations

import torch

DOUBLE = [  # diffusers, checkpoint, offset of its rows in widths, its rows in widths
    ("attn.to_q", "img_attn.qkv", 0, 1),
    ("attn.to_k", "img_attn.qkv", 1, 1),
    ("attn.to_v", "img_attn.qkv", 2, 1),
    ("attn.add_q_proj", "txt_attn.qkv", 0, 1),
    ("attn.add_k_proj", "txt_attn.qkv", 1, 1),
    ("attn.add_v_proj", "txt_attn.qkv", 2, 1),
    ("attn.to_out.0", "img_attn.proj", 0, 1),
    ("attn.to_add_out", "txt_attn.proj", 0, 1),
    ("ff.net.0.proj", "img_mlp.0", 0, 4),
    ("ff.net.2", "img_mlp.2", 0, 1),
    ("ff_context.net.0.proj", "txt_mlp.0", 0, 4),
    ("ff_context.net.2", "txt_mlp.2", 0, 1),
    ("norm1.linear", "img_mod.lin", 0, 6),
    ("norm1_context.linear", "txt_mod.lin", 0, 6),
]
SINGLE = [
    ("attn.to_q", "linear1", 0, 1),
    ("attn.to_k", "linear1", 1, 1),
    ("attn.to_v", "linear1", 2, 1),
    ("proj_mlp", "linear1", 3, 4),
    ("proj_out", "linear2", 0, 1),
    ("norm.linear", "modulation.lin", 0, 3),
]
OUTSIDE = [
    ("x_embedder", "img_in", 0, 1),
    ("context_embedder", "txt_in", 0, 1),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", 0, 1),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", 0, 1),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer", 0, 1),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer", 0, 1),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", 0, 1),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", 0, 1),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", 0, 2),
    ("proj_out", "final_layer.linear", 0, 1),
]
FUSED_HEIGHT = {"img_attn.qkv": 3, "txt_attn.qkv": 3, "linear1": 7}


def rows(doubles: int, singles: int) -> list[tuple[str, str, int, int]]:
    """The tables for a model of so many blocks."""
    table = [
        (f"transformer_blocks.{block}.{ours}", f"double_blocks.{block}.{theirs}", offset, height)
        for block in range(doubles)
        for ours, theirs, offset, height in DOUBLE
    ]
    table += [
        (f"single_transformer_blocks.{block}.{ours}", f"single_blocks.{block}.{theirs}", offset, height)
        for block in range(singles)
        for ours, theirs, offset, height in SINGLE
    ]
    return table + OUTSIDE


def merged(tensors: dict[str, torch.Tensor], doubles: int, singles: int) -> dict[str, torch.Tensor]:
    """Checkpoint layer -> what the file adds to its weight, in float64.

    Every tensor of the file must be used; one that is not fails.
    """
    left, changes = dict(tensors), {}
    for ours, theirs, offset, _ in rows(doubles, singles):
        for whole, down, up in (
            (False, f"transformer.{ours}.lora_A.weight", f"transformer.{ours}.lora_B.weight"),
            (False, *_pair(f"lora_transformer_{ours.replace('.', '_')}")),
            (True, *_pair(f"lora_unet_{theirs.replace('.', '_')}")),
            (True, *_pair(f"diffusion_model.{theirs}")),
        ):
            if down not in left:
                continue
            a, b = left.pop(down).double(), left.pop(up).double()
            alpha = left.pop(down.removesuffix(".lora_down.weight") + ".alpha", None)
            change = b @ a * (1.0 if alpha is None else float(alpha) / a.shape[0])
            if not whole and theirs == "final_layer.adaLN_modulation.1":
                half = len(change) // 2
                change = torch.cat([change[half:], change[:half]])
            fused = FUSED_HEIGHT.get(theirs.rpartition("s.")[2].partition(".")[2])
            if whole or fused is None:
                changes[theirs] = changes.get(theirs, 0) + change
                continue
            width = a.shape[1]
            into = changes.setdefault(theirs, torch.zeros(fused * width, width, dtype=torch.float64))
            into[offset * width : offset * width + len(change)] += change
    assert not left, f"not used: {sorted(left)}"
    return changes


def _pair(name: str) -> tuple[str, str]:
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"
