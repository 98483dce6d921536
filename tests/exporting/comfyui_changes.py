"""What ComfyUI does to a small FLUX with a LoRA file; run in a process of its own, with ComfyUI's Python.

    python comfyui_changes.py COMFYUI_FOLDER LORA OUTPUT

A model of ComfyUI whose weights are all zero is patched with the LoRA: its weights are then the changes. They go into
OUTPUT as safetensors, and what ComfyUI's log complains of into the header.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys

folder, lora, output = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, folder)

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.flux.model import FluxParams  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

TINY = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
LATER = {"txt_ids_dims": []}
"""What versions of ComfyUI that know FLUX.2 want to be told, too."""


class Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


known = {each.name for each in dataclasses.fields(FluxParams)}
newer = {name: value for name, value in LATER.items() if name in known}
config = comfy.supported_models.Flux({**TINY, **newer})
config.set_inference_dtype(torch.float32, None)
model = config.get_model({}, device="cpu")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
complaints = Complaints()
logging.getLogger().addHandler(complaints)
patched, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(lora, safe_load=True), 1.0, 0.0)
patched.patch_model()
weights = patched.model.diffusion_model.state_dict()
changes = {name: weight.float().contiguous().clone() for name, weight in weights.items() if weight.any()}
save_file(changes, output, {"complaints": json.dumps(complaints.told)})
