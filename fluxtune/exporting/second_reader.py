"""What a LoRA file does to FLUX.1, as a reader sees it that shares nothing with the one that wrote it.

ComfyUI and Forge patch rows of the checkpoint's own weights: each row of the tables below is a layer of diffusers, the
checkpoint's layer, and which rows of that it is, in widths of the layer's input. ``alpha`` over the rows of ``down`` is
the scale, 1 without alpha. Sources: ComfyUI `comfy/utils.py` (`flux_to_diffusers`), `comfy/lora.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fluxtune.errors import VerificationError, some_names
from fluxtune.lora.adapter import LoraLayer

_BLOCKS = """
transformer_blocks attn.to_q              double_blocks img_attn.qkv  0
transformer_blocks attn.to_k              double_blocks img_attn.qkv  1
transformer_blocks attn.to_v              double_blocks img_attn.qkv  2
transformer_blocks attn.add_q_proj        double_blocks txt_attn.qkv  0
transformer_blocks attn.add_k_proj        double_blocks txt_attn.qkv  1
transformer_blocks attn.add_v_proj        double_blocks txt_attn.qkv  2
transformer_blocks attn.to_out.0          double_blocks img_attn.proj 0
transformer_blocks attn.to_add_out        double_blocks txt_attn.proj 0
transformer_blocks ff.net.0.proj          double_blocks img_mlp.0     0
transformer_blocks ff.net.2               double_blocks img_mlp.2     0
transformer_blocks ff_context.net.0.proj  double_blocks txt_mlp.0     0
transformer_blocks ff_context.net.2       double_blocks txt_mlp.2     0
transformer_blocks norm1.linear           double_blocks img_mod.lin   0
transformer_blocks norm1_context.linear   double_blocks txt_mod.lin   0
single_transformer_blocks attn.to_q       single_blocks linear1        0
single_transformer_blocks attn.to_k       single_blocks linear1        1
single_transformer_blocks attn.to_v       single_blocks linear1        2
single_transformer_blocks proj_mlp        single_blocks linear1        3
single_transformer_blocks proj_out        single_blocks linear2        0
single_transformer_blocks norm.linear     single_blocks modulation.lin 0
"""
_OUTSIDE = """
x_embedder                                    img_in
context_embedder                              txt_in
time_text_embed.timestep_embedder.linear_1    time_in.in_layer
time_text_embed.timestep_embedder.linear_2    time_in.out_layer
time_text_embed.text_embedder.linear_1        vector_in.in_layer
time_text_embed.text_embedder.linear_2        vector_in.out_layer
time_text_embed.guidance_embedder.linear_1    guidance_in.in_layer
time_text_embed.guidance_embedder.linear_2    guidance_in.out_layer
norm_out.linear                               final_layer.adaLN_modulation.1
proj_out                                      final_layer.linear
"""
_ROW_OF_BLOCK = {
    (blocks, layer): (theirs, name, int(offset))
    for blocks, layer, theirs, name, offset in (line.split() for line in _BLOCKS.strip().splitlines())
}
_ROW_OUTSIDE = dict(line.split() for line in _OUTSIDE.strip().splitlines())
_SWAPPED = "final_layer.adaLN_modulation.1"

Change = list[tuple[int, torch.Tensor, torch.Tensor]]
"""(first row, B with the scale in it, A) of each product that is added to one weight."""
Part = Callable[[], tuple[int, torch.Tensor, torch.Tensor]]
"""One product of a change, made when it is needed: all of a large file's in float64 would not fit in memory."""


def compare(path: Path, layers: Mapping[str, LoraLayer], tolerance: float) -> float:
    """Read a written file this way, and compare what it does to each weight with what ``layers`` do.

    Args:
        layers: by diffusers' path with the part of the model in front.
        tolerance: relative Frobenius error that the file's precision, or a cut to a lower rank, explains.

    Returns:
        The largest relative error of a weight.

    Raises:
        VerificationError: keys are unmatched, missing or extra, or a weight would be changed otherwise.
    """
    wanted = _of_layers(layers)
    with safe_open(path, framework="pt") as file:
        seen, unmatched = _of_file(file)
        if unmatched:
            raise _fails(path, f"{len(unmatched)} keys are known to no reader: {some_names(unmatched)}")
        if odd := sorted(set(wanted) ^ set(seen)):
            raise _fails(path, f"{len(odd)} layers are missing or extra: {some_names(odd)}")
        errors = {name: _apart(_made(wanted[name]), _made(seen[name])) for name in wanted}
    worst = max(errors, key=lambda name: errors[name])
    # Written so that a value that is no number fails too.
    if not errors[worst] <= tolerance:
        raise _fails(path, f"{worst} would be changed otherwise, by {errors[worst]:.1e} of its change")
    return errors[worst]


def _made(parts: Sequence[Part]) -> Change:
    return [part() for part in parts]


def _of_layers(layers: Mapping[str, LoraLayer]) -> dict[str, list[Part]]:
    changes: dict[str, list[Part]] = {}
    for path, layer in layers.items():
        part, _, name = path.partition(".")
        target, offset = _row(name) if part == "transformer" else (path, 0)
        changes.setdefault(target, []).append(partial(_of_layer, layer, offset, target == _SWAPPED))
    return changes


def _of_layer(layer: LoraLayer, offset: int, swap: bool) -> tuple[int, torch.Tensor, torch.Tensor]:
    b = layer.b.double() * layer.scale
    return offset * layer.a.shape[1], torch.cat(b.chunk(2)[::-1]) if swap else b, layer.a.double()


def _row(layer: str) -> tuple[str, int]:
    """The checkpoint's layer that a layer of diffusers is in, and at which width."""
    block = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
    if block and (block[1], block[3]) in _ROW_OF_BLOCK:
        theirs, name, offset = _ROW_OF_BLOCK[block[1], block[3]]
        return f"{theirs}.{block[2]}.{name}", offset
    return _ROW_OUTSIDE[layer], 0


def _of_file(file: Any) -> tuple[dict[str, list[Part]], list[str]]:
    """What an open file does to each weight, and its keys that mean nothing."""
    keys = set(file.keys())
    changes: dict[str, list[Part]] = {}
    used: set[str] = set()
    for key in sorted(keys):
        match = re.fullmatch(r"(.+)\.(lora_A|lora_down)\.weight", key)
        place = _place(match[1]) if match else None
        if match is None or place is None:
            continue
        up_key = f"{match[1]}.{'lora_B' if match[2] == 'lora_A' else 'lora_up'}.weight"
        if up_key not in keys:
            continue
        alpha_key = f"{match[1]}.alpha"
        used |= {key, up_key, alpha_key}
        alpha = float(file.get_tensor(alpha_key)) if alpha_key in keys else None
        target, offset, swap = place
        changes.setdefault(target, []).append(partial(_of_keys, file, key, up_key, alpha, offset, swap))
    return changes, sorted(keys - used)


def _of_keys(
    file: Any, down: str, up: str, alpha: float | None, offset: int, swap: bool
) -> tuple[int, torch.Tensor, torch.Tensor]:
    a, b = file.get_tensor(down).double(), file.get_tensor(up).double()
    b = b * (1.0 if alpha is None else alpha / a.shape[0])
    return offset * a.shape[1], torch.cat(b.chunk(2)[::-1]) if swap else b, a


def _place(name: str) -> tuple[str, int, bool] | None:
    """What a key's layer is: the checkpoint's layer, at which width, and whether halves of rows are to be swapped."""
    if name.startswith("transformer.") or name.startswith("lora_transformer_"):
        for layer in _diffusers_layers(name):
            target, offset = _row(layer)
            return target, offset, target == _SWAPPED
    for prefix, separator in (("lora_unet_", "_"), ("diffusion_model.", ".")):
        if name.startswith(prefix):
            for target in _their_layers(name.removeprefix(prefix), separator):
                return target, 0, False
    return _text_layer(name)


def _diffusers_layers(name: str) -> Iterable[str]:
    plain = name.removeprefix("transformer.").removeprefix("lora_transformer_").replace(".", "_")
    for blocks, layer in _ROW_OF_BLOCK:
        if match := re.fullmatch(rf"{blocks}_(\d+)_{re.escape(layer.replace('.', '_'))}", plain):
            yield f"{blocks}.{match[1]}.{layer}"
    yield from (layer for layer in _ROW_OUTSIDE if layer.replace(".", "_") == plain)


def _their_layers(name: str, separator: str) -> Iterable[str]:
    for blocks, layer, _ in _ROW_OF_BLOCK.values():
        pattern = separator.join([blocks, r"(\d+)", re.escape(layer.replace(".", separator))])
        if match := re.fullmatch(pattern, name):
            yield f"{blocks}.{match[1]}.{layer}"
    yield from (layer for layer in _ROW_OUTSIDE.values() if layer.replace(".", separator) == name)


_CLIP = (
    r"(?:text_model[._])?encoder[._]layers[._](\d+)[._](self_attn[._][qkv]_proj|self_attn[._]out_proj|mlp[._]fc[12])"
)
_T5 = r"encoder[._]block[._](\d+)[._]layer[._]([01])[._](SelfAttention|DenseReluDense)[._]([qkvo]|wi_[01]|wo)"


def _text_layer(name: str) -> tuple[str, int, bool] | None:
    if match := re.fullmatch(rf"(?:lora_te1_|text_encoder\.|text_encoders\.clip_l\.transformer\.){_CLIP}", name):
        layer = re.sub(r"^(self_attn|mlp)[._]", r"\1.", match[2])
        return f"text_encoder.text_model.encoder.layers.{match[1]}.{layer}", 0, False
    if match := re.fullmatch(rf"(?:lora_te[23]_|text_encoders\.t5xxl\.transformer\.){_T5}", name):
        return f"text_encoder_2.encoder.block.{match[1]}.layer.{match[2]}.{match[3]}.{match[4]}", 0, False
    return None


def _apart(first: Change, second: Change) -> float:
    """Frobenius norm of the difference of two changes of one weight, as a share of the first one's norm."""
    norm, other = (_squared(change, change) for change in (first, second))
    apart = norm + other - 2 * _squared(first, second)
    # The difference of sums loses half of float64's digits, which are more than float32 has.
    return math.sqrt(max(apart, 0.0) / norm) if norm else math.sqrt(other)


def _squared(first: Change, second: Change) -> float:
    """Inner product of two changes: the trace of their product, without forming either."""
    total = 0.0
    for start, b, a in first:
        for other_start, other_b, other_a in second:
            begin, end = max(start, other_start), min(start + len(b), other_start + len(other_b))
            if begin < end and a.shape[1] == other_a.shape[1]:
                rows = b[begin - start : end - start].T @ other_b[begin - other_start : end - other_start]
                total += float((rows * (a @ other_a.T)).sum())
    return total


def _fails(path: Path, message: str) -> VerificationError:
    return VerificationError(
        message, where=str(path), hint="this is a bug in fluxtune: please report it with the file's `export inspect`"
    )
