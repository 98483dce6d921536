"""OneTrainer's settings: after modules/util/config/TrainConfig.py, modules/modelSetup/mixin/ModelSetupNoiseMixin.py,
modules/modelSetup/BaseFluxSetup.py and modules/util/create.py of Nerogar/OneTrainer.

Its steps are micro-batches, and how long it trains is said in epochs.
"""

from __future__ import annotations

import json
from typing import Any

from fluxtune.exporting.layouts import Layout
from fluxtune.handover import layers, noise, technical
from fluxtune.handover.common import WITHOUT
from fluxtune.handover.given import Given
from fluxtune.handover.pace import epochs_of, run_name, steps_of
from fluxtune.handover.rules import Fixed, Rule, Trainer, Values, Wanted, alpha_of_one, named, nested, same

FILE = "onetrainer.json"
SAMPLES = "samples.json"
_VERSION = 11
"""Of its settings; in files of older versions some keys have other names."""

_PRECISIONS = {"bf16": "BFLOAT_16", "fp32": "FLOAT_32", "int8": "INT_8", "nf4": "NFLOAT_4", "fp8": "FLOAT_8",
               "int8-weights": "INT_8", "auto": "INT_8"}  # fmt: skip
_NEAR_PRECISIONS = {
    "INT_W8A8": ("int8", "it multiplies in 8 bits by other kernels"),
    "FLOAT_W8A8": ("fp8", "products are computed in training.precision here"),
    "FLOAT_16": ("bf16", "there is no half precision here"),
    "TFLOAT_32": ("fp32", "products are computed in training.precision here"),
    "GGUF": ("nf4", "files of GGUF are not read"),
    "GGUF_A8_FLOAT": ("nf4", "files of GGUF are not read"),
    "GGUF_A8_INT": ("nf4", "files of GGUF are not read"),
}


def _text_precision() -> Rule:
    large = named("text_encoder_2.weight_dtype", "memory.text_precision", "FLOAT_32", _PRECISIONS,
                  near=_NEAR_PRECISIONS, otherwise="int8")  # fmt: skip

    def write(wanted: Wanted) -> Values:
        small = "FLOAT_32" if wanted["memory.text_precision"] == "fp32" else "BFLOAT_16"
        return large.write(wanted) | {"text_encoder.weight_dtype": small}

    def read(given: Given) -> Values:
        given.get("text_encoder.weight_dtype")
        return large.read(given)

    keys = ("text_encoder_2.weight_dtype", "text_encoder.weight_dtype")
    return Rule(keys, large.ours, write, read, "T5's; CLIP is not quantised there.")


_FILTERS = {"attn-only": "attention", "attn-mlp": ["*attn*", "*ff.net*", "*proj_mlp*"],
            "blocks": list(layers.BLOCKS), "full": "all-linear"}  # fmt: skip


def _write_targets(wanted: Wanted) -> Values:
    targets = wanted["lora.targets"]
    for preset, mine in _FILTERS.items():
        if targets == mine:
            words = {"attn-only": "attn", "attn-mlp": "attn,ff.net,proj_mlp", "blocks": "transformer_block"}
            return {"layer_filter_preset": preset, "layer_filter": words.get(preset, "")}
    return {"layer_filter_preset": "custom", "layer_filter": ",".join(layers.words(targets, layers.PARTS))}


def _read_targets(given: Given) -> Values:
    preset, words = given.text("layer_filter_preset", "full"), given.text("layer_filter", "")
    if given.switch("layer_filter_regex"):
        given.warn("layer_filter", "regular expressions of layers are not read; lora.targets becomes attention")
        return {"lora.targets": "attention"}
    parts = [word.strip() for word in words.split(",") if word.strip()]
    if not parts or (preset in _FILTERS and preset != "full"):
        return {"lora.targets": _FILTERS.get(preset, "all-linear")}
    return {"lora.targets": layers.targets(parts, layers.PARTS)}


def _write_steps(wanted: Wanted) -> Values:
    return {"epochs": epochs_of(wanted), "gradient_accumulation_steps": wanted["training.accumulation"]}


def _read_steps(given: Given) -> Values:
    accumulation, epochs = given.whole("gradient_accumulation_steps", 1), given.number("epochs", 100)
    steps = steps_of(given, "epochs", epochs, given.whole("batch_size", 1), accumulation)
    return {"training.accumulation": accumulation} | ({} if steps is None else {"training.steps": steps})


_SCHEDULES = named(
    "learning_rate_scheduler",
    "training.schedule",
    "CONSTANT",
    {"constant": "CONSTANT", "linear": "LINEAR", "cosine": "COSINE"},
    near={
        "COSINE_WITH_RESTARTS": ("cosine", "there are no restarts here"),
        "COSINE_WITH_HARD_RESTARTS": ("cosine", "there are no restarts here"),
        "REX": ("linear", "it falls along another curve there"),
    },
    otherwise="constant",
)


def _write_schedule(wanted: Wanted) -> Values:
    micro = wanted["training.warmup"] * wanted["training.accumulation"]
    # From 0 to 1 it is a share of all steps.
    return _SCHEDULES.write(wanted) | {"learning_rate_warmup_steps": float(micro if micro > 1 else 0)}


def _read_schedule(given: Given) -> Values:
    warmup, accumulation = (
        given.number("learning_rate_warmup_steps", 200.0),
        given.whole("gradient_accumulation_steps", 1),
    )
    if given.number("learning_rate_min_factor", 0.0):
        given.warn("learning_rate_min_factor", "the learning rate falls to zero here")
    if 0 < warmup <= 1:
        given.warn("learning_rate_warmup_steps", f"{warmup:g} is a share of all steps there; set training.warmup")
        return _SCHEDULES.read(given)
    return _SCHEDULES.read(given) | {"training.warmup": max(0, round(warmup / max(1, accumulation)))}


def _write_noise(wanted: Wanted) -> Values:
    sampling, shift = wanted["training.timestep_sampling"], wanted["training.shift"]
    values: Values = {
        "timestep_distribution": "UNIFORM" if sampling == "uniform" else "LOGIT_NORMAL",
        "dynamic_timestep_shifting": sampling == "flux-shift",
        "timestep_shift": shift if sampling == "shift" else 1.0,
    }
    bias = {"noising_bias": wanted["training.logit_mean"], "noising_weight": wanted["training.logit_std"] - 1.0}
    return values | ({} if sampling == "uniform" else bias)


def _read_noise(given: Given) -> Values:
    kind, by_size = given.text("timestep_distribution", "UNIFORM"), given.switch("dynamic_timestep_shifting")
    shift = 1.0 if by_size else float(given.number("timestep_shift", 1.0))
    bias, weight = given.number("noising_bias", 0.0), given.number("noising_weight", 0.0)
    if given.has("dynamic_timestep_shifting") and by_size:
        given.number("timestep_shift")
    if kind == "UNIFORM":
        return noise.uniform(shift, by_size)
    if kind != "LOGIT_NORMAL":
        given.warn("timestep_distribution", f"{kind} has no counterpart here: noise levels are logit-normal")
        bias, weight = 0.0, 0.0
    # A sum of binary fractions: 1.7 is written as 0.7 and shall be 1.7 again.
    return noise.logit_normal(bias, round(weight + 1.0, 9), shift, by_size)


def _write_ema(wanted: Wanted) -> Values:
    decay = wanted["training.ema_decay"]
    return {"ema": "GPU", "ema_decay": decay, "ema_update_step_interval": 1} if decay else {"ema": "OFF"}


def _read_ema(given: Given) -> Values:
    decay, every = float(given.number("ema_decay", 0.999)), given.whole("ema_update_step_interval", 5)
    if given.text("ema", "OFF") == "OFF":
        return {"training.ema_decay": 0.0}
    if every > 1:
        given.note("ema_update_step_interval", f"averaged every {every} steps there: {decay:g} becomes its root")
    return {"training.ema_decay": round(decay ** (1 / max(1, every)), 9)}


def _write_crop(wanted: Wanted) -> Values:
    return {
        "resolution": ",".join(map(str, wanted["dataset.resolution"])),
        "aspect_ratio_bucketing": wanted["dataset.buckets"],
    }


def _read_crop(given: Given) -> Values:
    sides = []
    for part in str(given.text("resolution", "512")).lower().split(","):
        numbers = [given.number_in("resolution", number) for number in part.split("x")]
        if not all(numbers):
            return {}
        side = max(0, numbers[0] * numbers[-1]) ** 0.5
        fit = min(4096, max(64, round(side / 16) * 16))
        if fit != side:
            given.warn("resolution", f"a resolution of {part} px becomes {fit}")
        sides.append(fit)
    if len(sides) > 1:
        given.note("resolution", "of several resolutions each picture gets one by chance there, and all of them here")
    return {"dataset.resolution": sides, "dataset.buckets": given.switch("aspect_ratio_bucketing", True)}


def _write_masks(wanted: Wanted) -> Values:
    is_masked = any(row.masks != "none" for row in wanted.config.dataset.folders)
    values = {"masked_training": is_masked, "unmasked_weight": wanted["dataset.unmasked_weight"]}
    return values | ({"unmasked_probability": 0.0, "normalize_masked_area_loss": True} if is_masked else {})


def _read_masks(given: Given) -> Values:
    weight, is_masked = float(given.number("unmasked_weight", 0.1)), given.switch("masked_training")
    if is_masked and given.number("unmasked_probability", 0.1):
        given.note("unmasked_probability", "masks count in every step here")
    for key in ("unmasked_probability", "normalize_masked_area_loss"):
        given.get(key)
    return {"dataset.unmasked_weight": weight}


def _write_dropout(wanted: Wanted) -> Values:
    share = wanted["dataset.caption_dropout"]
    return {"text_encoder.dropout_probability": share, "text_encoder_2.dropout_probability": share}


def _read_dropout(given: Given) -> Values:
    first, second = (given.number(f"text_encoder{each}.dropout_probability", 0.0) for each in ("", "_2"))
    if first != second:
        given.warn(
            "text_encoder_2.dropout_probability", "each encoder leaves captions out by itself there; here both do"
        )
    return {"dataset.caption_dropout": float(second)}


def _write_previews(wanted: Wanted) -> Values:
    every = wanted["previews.every"]
    if not every:
        return {"sample_after_unit": "NEVER", "samples": []}
    width, height = wanted.size
    rows = [
        {
            "enabled": True,
            "prompt": prompt,
            "negative_prompt": "",
            "width": width,
            "height": height,
            "seed": seed,
            "random_seed": False,
            "diffusion_steps": wanted.preview_steps,
            "cfg_scale": wanted["previews.guidance"],
        }
        for prompt in wanted.prompts
        for seed in wanted["previews.seeds"]
    ]
    return {"sample_after": every * wanted["training.accumulation"], "sample_after_unit": "STEP", "samples": rows}


def _every(given: Given, key: str, usual: int, usual_unit: str) -> int:
    """Optimizer steps between two of what is done after so many steps or epochs; 0 for never."""
    count, unit = given.number(key, usual), given.text(f"{key}_unit", usual_unit)
    batch, accumulation = given.whole("batch_size", 1), given.whole("gradient_accumulation_steps", 1)
    if unit == "STEP":
        return max(1, round(count / max(1, accumulation)))
    if unit == "EPOCH" and given.pictures is not None:
        return steps_of(given, key, count, batch, accumulation) or 0
    if unit not in ("NEVER", "ALWAYS"):
        given.note(key, f"{count:g} {unit.lower()}s are not known in steps; here it is 250 steps")
        return 250
    return 0


def _read_previews(given: Given) -> Values:
    rows = [row for _, row in given.rows("samples") if row.get("enabled", True) and row.get("prompt")]
    every = _every(given, "sample_after", 10, "MINUTE") if rows else 0
    if not every:
        return {"previews.every": 0}
    values: Values = {
        "previews.every": every,
        "previews.prompts": list(dict.fromkeys(str(row["prompt"]) for row in rows)),
        "previews.seeds": list(dict.fromkeys(row.get("seed", 42) for row in rows)),
    }
    for key, ours in (
        ("width", "width"),
        ("height", "height"),
        ("diffusion_steps", "steps"),
        ("cfg_scale", "guidance"),
    ):
        found = [row[key] for row in rows if key in row]
        if len(set(map(str, found))) > 1:
            given.warn("samples", f"{key} differs from sample to sample; here previews.{ours} is one for all")
        if found:
            values[f"previews.{ours}"] = (
                float(found[0]) if ours == "guidance" and isinstance(found[0], int) else found[0]
            )
    return values


def _write_saves(wanted: Wanted) -> Values:
    every = wanted["checkpoints.every"]
    if not every:
        return {"save_every_unit": "NEVER"}
    return {"save_every": every * wanted["training.accumulation"], "save_every_unit": "STEP"}


def _read_recompute(given: Given) -> Values:
    old = given.text("gradient_checkpointing")
    given.switch("transformer.gradient_checkpointing", True)
    is_offloaded = given.switch("transformer.activation_offloading") or old == "CPU_OFFLOADED"
    is_on = old != "OFF" if old is not None else given.switch("transformer.gradient_checkpointing", True)
    return {"memory.recompute": "all" if is_on else "none", "memory.offload_activations": is_on and is_offloaded}


def _write_recompute(wanted: Wanted) -> Values:
    return {
        "transformer.gradient_checkpointing": wanted["memory.recompute"] != "none",
        "transformer.activation_offloading": wanted["memory.offload_activations"],
    }


def _read_trackers(given: Given) -> Values:
    return {"tracking.trackers": ["tensorboard"] if given.switch("tensorboard", True) else []}


RULES = (
    same("base_model_name", "model.base", None, "A hub id or a diffusers folder."),
    Rule(
        ("transformer.model_name",),
        ("model.transformer",),
        lambda wanted: {"transformer.model_name": wanted["model.transformer"] or ""},
        lambda given: {"model.transformer": name} if (name := given.text("transformer.model_name")) else {},
    ),
    Rule(
        ("output_model_destination",),
        ("name",),
        lambda wanted: {"output_model_destination": f"models/{wanted['name'] or 'fluxtune'}.safetensors"},
        run_name("output_model_destination").read,
        "An empty one is fluxtune.",
    ),
    named("transformer.weight_dtype", "memory.base_precision", "FLOAT_32", _PRECISIONS, near=_NEAR_PRECISIONS,
          otherwise="int8", note="`INT_8` is bitsandbytes', as `int8`."),
    _text_precision(),
    same("lora_rank", "lora.rank", 16),
    alpha_of_one("lora_alpha"),
    same("dropout_probability", "lora.dropout", 0.0),
    Rule(("layer_filter", "layer_filter_preset"), ("lora.targets",), _write_targets, _read_targets,
         "Words in names; `proj_out` is the last layer's name, too."),
    Rule(
        ("lora_model_name",),
        ("lora.init_from",),
        lambda wanted: {"lora_model_name": wanted["lora.init_from"] or ""},
        lambda given: {"lora.init_from": name} if (name := given.text("lora_model_name")) else {},
    ),
    Rule(("epochs", "gradient_accumulation_steps"), ("training.steps", "training.accumulation"),
         _write_steps, _read_steps, "It trains whole epochs: as many as have the steps, or a few more."),
    same("batch_size", "training.batch_size", 1),
    same("learning_rate", "training.learning_rate", 3e-6),
    Rule(("learning_rate_scheduler", "learning_rate_warmup_steps"), ("training.schedule", "training.warmup"),
         _write_schedule, _read_schedule, "Micro-batches; up to 1 a share of all."),
    named("optimizer.optimizer", "training.optimizer", "ADAMW", {"adamw": "ADAMW", "adamw-8bit": "ADAMW_8BIT"},
          otherwise="adamw"),
    same("optimizer.weight_decay", "training.weight_decay", 0.01),
    same("clip_grad_norm", "training.max_grad_norm", 1.0),
    Rule(
        ("timestep_distribution", "noising_bias", "noising_weight", "timestep_shift", "dynamic_timestep_shifting"),
        noise.OURS,
        _write_noise,
        _read_noise,
        "`noising_weight` is the deviation less 1.",
    ),
    same("transformer.guidance_scale", "training.guidance", 1.0),
    Rule(("ema", "ema_decay", "ema_update_step_interval"), ("training.ema_decay",), _write_ema, _read_ema),
    named("train_dtype", "training.precision", "FLOAT_16", {"bf16": "BFLOAT_16", "fp32": "FLOAT_32"},
          near={"FLOAT_16": ("bf16", "there is no half precision here"),
                "TFLOAT_32": ("fp32", "products are in whole float32 here")}),
    Rule(("transformer.gradient_checkpointing", "transformer.activation_offloading", "gradient_checkpointing"),
         ("memory.recompute", "memory.offload_activations"), _write_recompute, _read_recompute),
    Rule(("resolution", "aspect_ratio_bucketing"), ("dataset.resolution", "dataset.buckets"), _write_crop, _read_crop,
         "Of several resolutions it draws one for each picture."),
    Rule(("masked_training", "unmasked_weight"), ("dataset.unmasked_weight",), _write_masks, _read_masks),
    Rule(("text_encoder.dropout_probability", "text_encoder_2.dropout_probability"), ("dataset.caption_dropout",),
         _write_dropout, _read_dropout, "Each encoder by itself."),
    Rule(
        ("samples", "sample_after", "sample_after_unit"),
        ("previews.every", "previews.prompts", "previews.seeds", "previews.guidance", "previews.steps",
         "previews.width", "previews.height"),
        _write_previews,
        _read_previews,
        "Without prompts the first caption is written out.",
    ),
    Rule(
        ("save_every", "save_every_unit"),
        ("checkpoints.every",),
        _write_saves,
        lambda given: {"checkpoints.every": _every(given, "save_every", 0, "NEVER")},
        "Micro-batches.",
    ),
    named("output_dtype", "checkpoints.dtype", "FLOAT_32",
          {"bf16": "BFLOAT_16", "fp16": "FLOAT_16", "fp32": "FLOAT_32"}, otherwise="bf16"),
    Rule(("tensorboard",), ("tracking.trackers",),
         lambda wanted: {"tensorboard": "tensorboard" in wanted["tracking.trackers"]}, _read_trackers),
)  # fmt: skip

_FIXED = (
    Fixed("training_method", "LORA", "the whole model is trained there, and a LoRA of it here", usual="FINE_TUNE"),
    Fixed("model_type", "FLUX_DEV_1", "this is another model than FLUX.1", usual="STABLE_DIFFUSION_15", refused=True),
    Fixed("peft_type", "LORA", "a plain LoRA is trained here", usual="LORA"),
    Fixed("lora_decompose", False, "a plain LoRA is trained here", usual=False),
    Fixed("transformer.train", True, "the transformer is what is trained here", usual=True),
    Fixed("text_encoder.train", False, "text encoders are not trained here", usual=True),
    Fixed("text_encoder_2.train", False, "text encoders are not trained here", usual=True),
    Fixed("output_model_format", "DIFFUSERS_LORA"),
    Fixed("loss_weight_fn", "CONSTANT", "losses count alike at all noise levels here", usual="CONSTANT"),
    Fixed("mse_strength", 1.0, "the loss is the mean squared error here", usual=1.0),
    Fixed("mae_strength", 0.0, "the loss is the mean squared error here", usual=0.0),
    Fixed("learning_rate_scaler", "NONE", "the learning rate is taken as it is here", usual="NONE"),
    Fixed("transformer.attention_mask", False, "empty tokens of T5 are seen here", usual=False),
    Fixed("optimizer.beta1", 0.9, "the betas of AdamW are 0.9 and 0.999 here", usual=0.9),
    Fixed("optimizer.beta2", 0.999, "the betas of AdamW are 0.9 and 0.999 here", usual=0.999),
    Fixed("backup_after_unit", "NEVER"),
    Fixed("vae.weight_dtype", "FLOAT_32"),
)  # fmt: skip


def _text(values: Values, wanted: Wanted) -> dict[str, str]:
    plain = {key: value for key, value in values.items() if value is not None}
    samples = plain.pop("samples")
    plain |= {"concept_file_name": wanted.data, "sample_definition_file_name": f"{wanted.folder}/{SAMPLES}",
              "workspace_dir": f"{wanted.folder}/workspace", "cache_dir": f"{wanted.folder}/cache"}  # fmt: skip
    config: dict[str, Any] = {"__version": _VERSION, **nested(plain)}
    return {
        FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        SAMPLES: json.dumps(samples, indent=2, ensure_ascii=False) + "\n",
    }


TRAINER = Trainer(
    name="onetrainer",
    title="OneTrainer",
    source="Nerogar/OneTrainer",
    layout=Layout.ONETRAINER,
    masks_by="masked_training",
    file=FILE,
    rules=RULES,
    fixed=_FIXED,
    without=WITHOUT | {
        "checkpoints.keep": "it keeps all",
        "model.vae": "it takes what the base model has",
        "tracking.project": "it has no project",
        "training.seed": "its noise has seeds of its own",
    },
    nature=(
        "a bucket's sides are multiples of 64 px",
        "pictures of a bucket that fill no batch wait for another epoch",
    ),
    technical=technical.ONETRAINER,
    meanings={
        "transformer.learning_rate": "all layers have one learning rate here",
        "min_noising_strength": "all noise levels are trained here",
        "max_noising_strength": "all noise levels are trained here",
        "offset_noise_weight": "noise has no offset here",
        "force_circular_padding": "pictures are no tiles here",
        "masked_prior_preservation_weight": "what lies outside of masks is weighted, and not compared with the base's",
    },
    text=_text,
    command=lambda file, wanted: f"python scripts/train.py --config-path {file}",
)  # fmt: skip
