"""Settings of each trainer as people have them, written for these tests in the shape of each."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

AI_TOOLKIT = """\
---
job: extension
config:
  name: zorvex_flux_v2
  process:
    - type: sd_trainer
      training_folder: output
      device: cuda:0
      trigger_word: zorvex
      network:
        type: lora
        linear: 32
        linear_alpha: 16
        network_kwargs:
          only_if_contains:
            - "transformer.single_transformer_blocks.7.proj_out"
            - "transformer.single_transformer_blocks.20.proj_out"
      save:
        dtype: float16
        save_every: 200
        max_step_saves_to_keep: 6
      datasets:
        - folder_path: photos
          caption_ext: txt
          caption_dropout_rate: 0.1
          shuffle_tokens: true
          cache_latents_to_disk: true
          resolution: [512, 768]
      train:
        batch_size: 2
        steps: 3000
        gradient_accumulation_steps: 3
        gradient_checkpointing: true
        noise_scheduler: flowmatch
        optimizer: adamw8bit
        lr: 4e-4
        timestep_type: flux_shift
        ema_config:
          use_ema: true
          ema_decay: 0.99
        dtype: bf16
      model:
        name_or_path: black-forest-labs/FLUX.1-dev
        is_flux: true
        quantize: true
        qtype: qint8
        low_vram: true
      sample:
        sampler: flowmatch
        sample_every: 250
        width: 768
        height: 1024
        prompts:
          - "a [trigger] in a boat"
          - "a [trigger] at the sea"
        seed: 7
        walk_seed: false
        guidance_scale: 4
        sample_steps: 24
meta:
  name: "[name]"
  version: "1.0"
"""

SIMPLETUNER = {
    "--data_backend_config": "multidatabackend.json",
    "--output_dir": "output/zorvex",
    "--model_type": "lora",
    "--model_family": "flux",
    "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "--lora_rank": 16,
    "--lora_alpha": 16,
    "--flux_lora_target": "all+ffs",
    "--max_train_steps": "0",
    "--num_train_epochs": "10",
    "--train_batch_size": "1",
    "--gradient_accumulation_steps": 2,
    "--learning_rate": "8e-5",
    "--lr_scheduler": "polynomial",
    "--lr_warmup_steps": 5,
    "--optimizer": "bnb-adamw8bit",
    "--optimizer_config": "weight_decay=0.02,betas=0.9,0.99",
    "--max_grad_norm": 1.0,
    "--grad_clip_method": "norm",
    "--base_model_precision": "nf4-bnb",
    "--mixed_precision": "bf16",
    "--gradient_checkpointing": "true",
    "--flow_schedule_shift": 0,
    "--flow_schedule_auto_shift": "true",
    "--flux_guidance_value": 1.0,
    "--caption_dropout_probability": 0.05,
    "--seed": 1234,
    "--checkpointing_steps": 100,
    "--checkpoints_total_limit": 4,
    "--validation_prompt": "a photo of zorvex",
    "--validation_steps": 100,
    "--validation_resolution": "1024x768",
    "--validation_guidance": 3.5,
    "--validation_num_inference_steps": "20",
    "--validation_seed": 3,
    "--snr_gamma": 5.0,
    "--push_to_hub": "false",
}

SIMPLETUNER_DATA = [
    {
        "id": "zorvex",
        "type": "local",
        "instance_data_dir": "photos",
        "resolution": 1024,
        "resolution_type": "pixel_area",
        "caption_strategy": "textfile",
        "repeats": 4,
        "cache_dir_vae": "cache/vae",
    },
    {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]

SD_SCRIPTS = """\
[model]
pretrained_model_name_or_path = "flux1-dev.safetensors"
clip_l = "clip_l.safetensors"
t5xxl = "t5xxl_fp16.safetensors"
ae = "ae.safetensors"

[network]
network_module = "networks.lora_flux"
network_dim = 16
network_alpha = 8
network_args = ["img_mod_dim=0", "txt_mod_dim=0", "single_mod_dim=0"]
network_train_unet_only = true

[training]
dataset_config = "dataset.toml"
output_dir = "out"
output_name = "zorvex"
max_train_epochs = 6
save_every_n_epochs = 2
save_last_n_epochs = 2
learning_rate = 1e-4
unet_lr = 2e-4
lr_scheduler = "cosine_with_restarts"
lr_warmup_steps = 4
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1"]
gradient_checkpointing = true
mixed_precision = "bf16"
save_precision = "bf16"
fp8_base = true
timestep_sampling = "shift"
discrete_flow_shift = 3.1582
model_prediction_type = "raw"
guidance_scale = 1.0
loss_type = "l2"
seed = 42
sdpa = true
sample_every_n_steps = 500
sample_prompts = "prompts.txt"
min_snr_gamma = 5
"""

SD_SCRIPTS_DATA = """\
[general]
caption_extension = ".txt"
enable_bucket = true

[[datasets]]
resolution = 768
batch_size = 2

[[datasets.subsets]]
image_dir = "photos"
num_repeats = 5
"""

SD_SCRIPTS_PROMPTS = """\
# previews
a zorvex --w 768 --h 512 --d 5 --s 20 --g 3
a boat --w 768 --h 512 --d 6 --s 20
"""

ONETRAINER = {
    "training_method": "LORA",
    "model_type": "FLUX_DEV_1",
    "base_model_name": "black-forest-labs/FLUX.1-dev",
    "output_model_destination": "models/zorvex.safetensors",
    "output_model_format": "SAFETENSORS",
    "output_dtype": "BFLOAT_16",
    "concepts": [
        {
            "name": "zorvex",
            "path": "photos",
            "balancing": 3.0,
            "balancing_strategy": "REPEATS",
            "image": {"enable_random_flip": True, "enable_crop_jitter": True},
            "text": {"prompt_source": "sample"},
        }
    ],
    "epochs": 20,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.0003,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 20.0,
    "optimizer": {"optimizer": "ADAMW_8BIT", "weight_decay": 0.01, "beta1": 0.9, "stochastic_rounding": False},
    "resolution": "512,768",
    "lora_rank": 8,
    "lora_alpha": 4.0,
    "layer_filter_preset": "attn-only",
    "layer_filter": "attn",
    "transformer": {"train": True, "weight_dtype": "NFLOAT_4", "guidance_scale": 1.0},
    "text_encoder": {"train": False, "weight_dtype": "BFLOAT_16", "dropout_probability": 0.1},
    "text_encoder_2": {"train": False, "weight_dtype": "NFLOAT_4", "dropout_probability": 0.1},
    "train_dtype": "BFLOAT_16",
    "timestep_distribution": "LOGIT_NORMAL",
    "noising_bias": 0.5,
    "noising_weight": 0.25,
    "timestep_shift": 1.8,
    "ema": "GPU",
    "ema_decay": 0.99,
    "ema_update_step_interval": 1,
    "save_every": 100,
    "save_every_unit": "STEP",
    "sample_after": 50,
    "sample_after_unit": "STEP",
    "samples": [
        {"enabled": True, "prompt": "a zorvex", "width": 768, "height": 768, "seed": 42, "diffusion_steps": 20,
         "cfg_scale": 3.5},
        {"enabled": False, "prompt": "never mind", "seed": 1},
    ],
    "tensorboard": False,
    "masked_training": False,
}  # fmt: skip

DIFFUSERS = """\
#!/bin/bash
export MODEL_NAME="black-forest-labs/FLUX.1-dev"
export INSTANCE_DIR="photos"

accelerate launch train_dreambooth_lora_flux.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir="trained-zorvex" \\
  --mixed_precision="bf16" \\
  --instance_prompt="a photo of zorvex dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --guidance_scale=1 \\
  --gradient_accumulation_steps=4 \\
  --optimizer="prodigy" \\
  --learning_rate=1. \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --weighting_scheme="logit_normal" --logit_mean=-0.5 \\
  --max_train_steps=500 \\
  --rank=16 --lora_alpha=16 \\
  --validation_prompt="A photo of zorvex dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0" \\
  --push_to_hub
"""


def photos(folder: Path, count: int = 4) -> Path:
    """A folder of plain pictures with captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        shade = (40 * number, 200 - 30 * number, 90)
        picture = Image.linear_gradient("L").rotate(90 * number).resize((96, 80))
        Image.merge("RGB", [picture.point(lambda value, part=part: (value + part) % 256) for part in shade]).save(
            folder / f"{number}.png"
        )
        (folder / f"{number}.txt").write_text(f"a zorvex, number {number}", encoding="utf-8")
    return folder


def write_all(folder: Path) -> dict[str, Path]:
    """The files of all trainers, in folders of their own with the pictures that they name: trainer -> settings."""
    texts = {
        "ai-toolkit": {"zorvex.yaml": AI_TOOLKIT},
        "simpletuner": {
            "config.json": json.dumps(SIMPLETUNER, indent=2),
            "multidatabackend.json": json.dumps(SIMPLETUNER_DATA, indent=2),
        },
        "sd-scripts": {
            "zorvex.toml": SD_SCRIPTS,
            "dataset.toml": SD_SCRIPTS_DATA,
            "prompts.txt": SD_SCRIPTS_PROMPTS,
        },
        "onetrainer": {"zorvex.json": json.dumps(ONETRAINER, indent=2)},
        "diffusers": {"train.sh": DIFFUSERS},
    }
    written = {}
    for trainer, files in texts.items():
        photos(folder / trainer / "photos")
        for name, text in files.items():
            (folder / trainer / name).write_text(text, encoding="utf-8")
        written[trainer] = folder / trainer / next(iter(files))
    return written
