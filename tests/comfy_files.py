"""Writes the parts of a diffusers model as the single files that ComfyUI has: by the layout of BFL's own code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
LARGEST_FP8 = 448.0


def weights_of(base: Path, part: str) -> Weights:
    """A part's weights by diffusers' or transformers' names."""
    files = (base / part).glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def bfl_transformer(theirs: Weights) -> Weights:
    """BFL's `Flux`, module for module."""
    left, made = dict(theirs), Weights()

    def take(bfl: str, *diffusers: str, leaf: str = "") -> None:
        for each in ("weight", "bias"):
            if f"{diffusers[0]}.{each}" in left:
                made[f"{bfl}.{leaf or each}"] = torch.cat([left.pop(f"{name}.{each}") for name in diffusers])

    def attention(bfl: str, at: str, project: str, norm: str, out: str) -> None:
        take(f"{bfl}.qkv", *(f"{at}.{project.replace('?', each)}" for each in "qkv"))
        take(f"{bfl}.norm.query_norm", f"{at}.{norm}q", leaf="scale")
        take(f"{bfl}.norm.key_norm", f"{at}.{norm}k", leaf="scale")
        take(f"{bfl}.proj", f"{at}.{out}")

    numbers = {(name.split(".")[0], name.split(".")[1]) for name in theirs if "transformer_blocks." in name}
    for kind, number in numbers:
        block = f"{kind}.{number}"
        if kind == "transformer_blocks":
            to = f"double_blocks.{number}"
            attention(f"{to}.img_attn", f"{block}.attn", "to_?", "norm_", "to_out.0")
            attention(f"{to}.txt_attn", f"{block}.attn", "add_?_proj", "norm_added_", "to_add_out")
            for stream, mlp, norm in (("img", "ff", "norm1"), ("txt", "ff_context", "norm1_context")):
                take(f"{to}.{stream}_mlp.0", f"{block}.{mlp}.net.0.proj")
                take(f"{to}.{stream}_mlp.2", f"{block}.{mlp}.net.2")
                take(f"{to}.{stream}_mod.lin", f"{block}.{norm}.linear")
        else:
            to = f"single_blocks.{number}"
            take(f"{to}.linear1", *(f"{block}.attn.to_{each}" for each in "qkv"), f"{block}.proj_mlp")
            take(f"{to}.linear2", f"{block}.proj_out")
            take(f"{to}.norm.query_norm", f"{block}.attn.norm_q", leaf="scale")
            take(f"{to}.norm.key_norm", f"{block}.attn.norm_k", leaf="scale")
            take(f"{to}.modulation.lin", f"{block}.norm.linear")
    take("img_in", "x_embedder")
    take("txt_in", "context_embedder")
    for bfl, embedder in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        take(f"{bfl}_in.in_layer", f"time_text_embed.{embedder}_embedder.linear_1")
        take(f"{bfl}_in.out_layer", f"time_text_embed.{embedder}_embedder.linear_2")
    take("final_layer.linear", "proj_out")
    take("final_layer.adaLN_modulation.1", "norm_out.linear")
    for leaf in ("weight", "bias"):
        scale, shift = made[f"final_layer.adaLN_modulation.1.{leaf}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    assert not left
    return made


def bfl_vae(theirs: Weights) -> Weights:
    """BFL's `AutoEncoder`."""
    blocks = 1 + max(int(name.split(".")[2]) for name in theirs if name.startswith("decoder.up_blocks."))
    made = Weights()
    for name, tensor in theirs.items():
        coder, kind, *rest = name.split(".")
        if kind == "down_blocks" or kind == "up_blocks":
            number = rest[0] if kind == "down_blocks" else str(blocks - 1 - int(rest[0]))
            inner = [f"block.{rest[2]}", *rest[3:]] if rest[1] == "resnets" else [rest[1][:-2], *rest[3:]]
            rest = [kind.removesuffix("_blocks"), number, *inner]
        elif kind == "mid_block" and rest[0] == "resnets":
            rest = ["mid", f"block_{int(rest[1]) + 1}", *rest[2:]]
        elif kind == "mid_block":
            layer = {"group_norm": "norm", "to_out": "proj_out"}.get(rest[2], rest[2].removeprefix("to_"))
            rest = ["mid", "attn_1", layer, rest[-1]]
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        else:
            rest = [kind.replace("conv_norm_out", "norm_out"), *rest]
        made[".".join([coder, *rest]).replace("conv_shortcut", "nin_shortcut")] = tensor
    return made


def comfy_parts(base: Path) -> dict[str, Weights]:
    """All parts as ComfyUI's files name them."""
    clip, t5 = weights_of(base, "text_encoder"), weights_of(base, "text_encoder_2")
    position_ids = torch.arange(len(clip["embeddings.position_embedding.weight"]))[None]
    beside = {"logit_scale": torch.tensor(4.6), "text_projection.weight": torch.eye(3)}
    return {
        "transformer": bfl_transformer(weights_of(base, "transformer")),
        "vae": bfl_vae(weights_of(base, "vae")),
        "text_encoder": {
            **{f"text_model.{name}": tensor for name, tensor in clip.items()},
            "text_model.embeddings.position_ids": position_ids,
            **beside,
        },
        "text_encoder_2": {**t5, "encoder.embed_tokens.weight": t5["shared.weight"].clone()},
    }


def write(file: Path, weights: Weights, prefix: str = "") -> Path:
    """A file of these weights."""
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in weights.items()}, file)
    return file


def in_fp8(weights: Weights) -> Weights:
    """All matrices as fp8."""
    return {name: each.to(torch.float8_e4m3fn) if each.ndim == 2 else each for name, each in weights.items()}


def scaled_fp8(weights: Weights, leaf: str = "scale_weight", by_row: bool = False) -> tuple[Weights, Weights]:
    """All matrices as fp8 with their scales; and what that is worth, in float32 by the same names."""
    stored, worth = Weights({"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}), Weights()
    for name, tensor in weights.items():
        if tensor.ndim != 2:
            stored[name] = worth[name] = tensor
            continue
        most = tensor.float().abs().amax(1, keepdim=True) if by_row else tensor.float().abs().max()
        scale = most.clamp(min=1e-12) / LARGEST_FP8
        stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        layer = name.removesuffix(".weight")
        stored[f"{layer}.{leaf}"], stored[f"{layer}.scale_input"] = scale, torch.tensor(1.0)
        worth[name] = stored[name].float() * scale
    return stored, worth
