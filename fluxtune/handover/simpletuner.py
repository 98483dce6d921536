"""SimpleTuner's config.json or config.env: after documentation/OPTIONS.md, simpletuner/helpers/models/common.py,
simpletuner/helpers/models/flux/model.py, simpletuner/helpers/training/custom_schedule.py and the registry of settings
in simpletuner/simpletuner_sdk of bghira/SimpleTuner. Names are those of its arguments.
"""

from __future__ import annotations

import json
from math import sqrt

from fluxtune.exporting.layouts import Layout
from fluxtune.handover import layers, noise, technical
from fluxtune.handover.common import WITHOUT
from fluxtune.handover.given import Given
from fluxtune.handover.pace import adamw, diffusers_schedule, run_name, steps_of
from fluxtune.handover.rules import Fixed, Rule, Trainer, Values, Wanted, named, same

FILE = "config.json"
PROMPTS = "prompts.json"

_GENERIC = diffusers_schedule("lr_scheduler", "lr_warmup_steps", "constant_with_warmup", 0, "max_train_steps")


def _write_schedule(wanted: Wanted) -> Values:
    if wanted["training.schedule"] == "cosine":
        # Its warm-up steps are how long the cosine takes.
        return {"lr_scheduler": "cosine", "lr_warmup_steps": wanted["training.steps"], "lr_end": "0.0"}
    return _GENERIC.write(wanted)


def _read_schedule(given: Given) -> Values:
    name, period = given.text("lr_scheduler", "constant_with_warmup"), given.whole("lr_warmup_steps", 0)
    steps, end = given.whole("max_train_steps", 0), given.number("lr_end", 4e-7)
    if name not in ("cosine", "sine", "cosine_with_restarts"):
        return _GENERIC.read(given)
    if name != "cosine" or period < steps or end:
        given.warn("lr_scheduler", f"{name} takes lr_warmup_steps and goes on anew there; here it falls once, to zero")
    return {"training.schedule": "cosine"}


_PRECISIONS = {
    "bf16": "no_change",
    "fp32": "no_change",
    "int8-weights": "int8-quanto",
    "int8": "int8-quanto",
    "auto": "int8-quanto",
    "fp8": "fp8-quanto",
    "nf4": "nf4-bnb",
}


def _base_precision() -> Rule:
    ours, key = "memory.base_precision", "base_model_precision"
    names = named(
        key,
        ours,
        "no_change",
        _PRECISIONS,
        also={"int8-torchao": "int8-weights", "fp8-torchao": "fp8", "fp8wo-torchao": "fp8", "bf16": "bf16",
              "fp8uz-quanto": "fp8", "fp8-native": "fp8"},
        near={"int4-quanto": ("nf4", "its 4 bits are uniform steps"),
              "int4-torchao": ("nf4", "its 4 bits are uniform steps"),
              "int2-quanto": ("nf4", "there are no 2 bits here")},
        otherwise="int8-weights",
        note="Its 8 bits are weights alone (`int8-weights`).",
    )  # fmt: skip

    def write(wanted: Wanted) -> Values:
        via = {"quantize_via": "pipeline" if wanted[ours] == "nf4" else "cpu"}
        return names.write(wanted) | (via if wanted[ours] not in ("bf16", "fp32") else {})

    return Rule((key,), (ours,), write, names.read, names.note)


def _write_noise(wanted: Wanted) -> Values:
    sampling, shift = wanted["training.timestep_sampling"], noise.factor(wanted)
    if sampling == "uniform":
        return {"flow_use_uniform_schedule": True, "flow_schedule_shift": 0.0}
    values: Values = {"flow_sigmoid_scale": wanted["training.logit_std"]}
    if sampling == "flux-shift":
        return values | {"flow_schedule_shift": 0.0, "flow_schedule_auto_shift": True}
    return values | {"flow_schedule_shift": 0.0 if shift == 1.0 else shift}


def _read_noise(given: Given) -> Values:
    shift, std = float(given.number("flow_schedule_shift", 3.0)), float(given.number("flow_sigmoid_scale", 1.0))
    by_size = given.switch("flow_schedule_auto_shift") and shift <= 0
    shift = shift if shift > 0 else 1.0
    if given.switch("flow_use_uniform_schedule"):
        return noise.uniform(shift, by_size)
    for key in ("flow_use_beta_schedule", "flux_fast_schedule", "flow_cubic_schedule_weights", "flow_custom_timesteps"):
        if given.get(key) and given.switch(key, True):
            given.warn(key, f"{key} has no counterpart here: noise levels are logit-normal")
    return noise.logit_normal(std=std, shift=shift, by_size=by_size)


_TARGETS = {"attention": "all", "attention+mlp": "all+ffs"}


def _write_targets(wanted: Wanted) -> Values:
    targets = wanted["lora.targets"]
    if targets == layers.BLOCKS:
        return {"flux_lora_target": "ai-toolkit"}
    if isinstance(targets, str):
        return {"flux_lora_target": _TARGETS.get(targets, "all+ffs+embedder")}
    return {"peft_lora_target_modules": layers.words(targets, layers.ENDS)}


def _read_targets(given: Given) -> Values:
    manual, name = given.get("peft_lora_target_modules"), given.text("flux_lora_target", "all")
    if isinstance(manual, list) and manual:
        return {"lora.targets": layers.targets(given.words("peft_lora_target_modules"), layers.ENDS)}
    known: dict[str, str | list[str]] = {
        **{theirs: mine for mine, theirs in _TARGETS.items()},
        "all+ffs+embedder": "all-linear",
        "ai-toolkit": list(layers.BLOCKS),
        "tiny": ["*single_transformer_blocks.7.proj_out", "*single_transformer_blocks.20.proj_out"],
        "nano": ["*single_transformer_blocks.7.proj_out"],
        "context": ["*attn.add_[qkv]_proj", "*attn.to_add_out"],
        "context+ffs": ["*attn.add_[qkv]_proj", "*attn.to_add_out", "*ff_context.net.0.proj", "*ff_context.net.2"],
    }
    if name not in known:
        given.warn("flux_lora_target", f"{name} has no counterpart here; lora.targets becomes attention")
    return {"lora.targets": known.get(name, "attention")}


_FLAVOURS = {
    "dev": "FLUX.1-dev",
    "schnell": "FLUX.1-schnell",
    "krea": "FLUX.1-Krea-dev",
    "kontext": "FLUX.1-Kontext-dev",
}


def _read_base(given: Given) -> Values:
    base, flavour = given.text("pretrained_model_name_or_path"), given.text("model_flavour")
    if flavour is not None and flavour not in _FLAVOURS:
        given.refuse("model_flavour", f"model_flavour is {flavour}: wanted one of {', '.join(_FLAVOURS)}")
    if base is None or flavour == "kontext":
        base = f"black-forest-labs/{_FLAVOURS.get(flavour or 'dev', 'FLUX.1-dev')}"
    return {"model.base": base}


def _write_steps(wanted: Wanted) -> Values:
    return {
        "max_train_steps": wanted["training.steps"],
        "num_train_epochs": 0,
        "gradient_accumulation_steps": wanted["training.accumulation"],
    }


def _read_steps(given: Given) -> Values:
    accumulation, steps = given.whole("gradient_accumulation_steps", 1), given.whole("max_train_steps", 0)
    epochs = given.number("num_train_epochs", 1)
    if steps <= 0:
        steps = steps_of(given, "num_train_epochs", epochs, given.whole("train_batch_size", 4), accumulation)
    return {"training.accumulation": accumulation} | ({"training.steps": steps} if steps else {})


def _read_clip(given: Given) -> Values:
    method, norm = given.text("grad_clip_method", "value"), float(given.number("max_grad_norm", 2.0))
    if method != "norm" and norm:
        message = f"each gradient is cut to {norm:g} there (grad_clip_method {method}); here their norm is"
        given.warn("grad_clip_method" if given.has("grad_clip_method") else "max_grad_norm", message)
    return {"training.max_grad_norm": norm}


def _read_resolution(given: Given) -> Values:
    value, unit = given.number("resolution", 1024), given.text("resolution_type", "pixel_area")
    # Megapixels become the nearest multiple of 64, as in the data set's file.
    side = round(sqrt(max(0, value) * 1e6) / 64) * 64 if unit == "area" else round(value / 16) * 16
    return {"dataset.resolution": [side]}


def _write_previews(wanted: Wanted) -> Values:
    width, height = wanted.size
    prompts = wanted.prompts
    library = {"user_prompt_library": f"{wanted.folder}/{PROMPTS}"} if len(prompts) > 1 else {}
    return {
        "validation_step_interval": wanted["previews.every"],
        "validation_prompt": prompts[0],
        "validation_seed": wanted["previews.seeds"][0],
        "validation_num_inference_steps": wanted.preview_steps,
        "validation_guidance": wanted["previews.guidance"],
        "validation_resolution": f"{width}x{height}",
        "validation_disable_unconditional": True,
        **library,
    }


def _read_previews(given: Given) -> Values:
    every = given.whole("validation_step_interval", given.whole("validation_steps", 100))
    prompt, seed = given.text("validation_prompt"), given.whole("validation_seed")
    prompts = [prompt] if prompt else []
    for _, row in given.rows("user_prompt_library.rows"):
        prompts += [text for text in row.values() if isinstance(text, str) and text not in prompts]
    if not prompts:
        return {"previews.every": 0}
    values: Values = {
        "previews.every": every,
        "previews.prompts": prompts,
        "previews.steps": given.whole("validation_num_inference_steps", 30),
        "previews.guidance": float(given.number("validation_guidance", 7.5)),
        **_sides(given),
    }
    return values | ({} if seed is None else {"previews.seeds": [seed]})


def _sides(given: Given) -> Values:
    """Width and height of ``1024x768`` or ``1024``, the first of several."""
    text = given.text("validation_resolution", "256")
    sizes = text.split(",")
    if len(sizes) > 1:
        given.warn("validation_resolution", f"of the sizes {text} the first is taken")
    sides = [given.number_in("validation_resolution", part) for part in sizes[0].lower().split("x")]
    if not all(sides) or len(sides) > 2:
        return {}
    fit = [round(side / 16) * 16 for side in sides]
    return {"previews.width": fit[0], "previews.height": fit[-1]}


def _write_ema(wanted: Wanted) -> Values:
    decay = wanted["training.ema_decay"]
    return {"use_ema": decay > 0} | ({"ema_decay": decay} if decay else {})


def _read_ema(given: Given) -> Values:
    decay = float(given.number("ema_decay", 0.995))
    return {"training.ema_decay": decay if given.switch("use_ema") else 0.0}


def _write_trackers(wanted: Wanted) -> Values:
    trackers = wanted["tracking.trackers"]
    kind = "none" if not trackers else trackers[0] if len(trackers) == 1 else "all"
    return {"report_to": kind} | ({"tracker_project_name": wanted["tracking.project"]} if trackers else {})


def _read_trackers(given: Given) -> Values:
    kind, project = given.text("report_to", "none"), given.text("tracker_project_name", "simpletuner")
    kinds = ["tensorboard", "wandb"] if kind == "all" else kind.split(",")
    trackers = [each for each in kinds if each in ("tensorboard", "wandb")]
    return {"tracking.trackers": trackers, "tracking.project": project} if trackers else {}


def _read_guidance(given: Given) -> Values:
    if given.text("flux_guidance_mode", "constant") != "constant":
        given.warn("flux_guidance_mode", "guidance is the same in all steps here")
    for key in ("flux_guidance_min", "flux_guidance_max"):
        given.number(key)
    return {"training.guidance": float(given.number("flux_guidance_value", 1.0))}


RULES = (
    Rule(
        ("pretrained_model_name_or_path", "model_flavour"),
        ("model.base",),
        lambda wanted: {"pretrained_model_name_or_path": wanted["model.base"]},
        _read_base,
        "A hub id or a diffusers folder.",
    ),
    same("revision", "model.revision", None),
    run_name("tracker_run_name"),
    _base_precision(),
    same("lora_rank", "lora.rank", 16),
    Rule(
        ("lora_alpha",),
        ("lora.alpha",),
        lambda wanted: {"lora_alpha": wanted.alpha},
        lambda given: {"lora.alpha": float(given.number("lora_alpha", given.whole("lora_rank", 16)))},
        "Unset is written out as the rank.",
    ),
    same("lora_dropout", "lora.dropout", 0.1),
    Rule(("flux_lora_target", "peft_lora_target_modules"), ("lora.targets",), _write_targets, _read_targets,
         "`all-linear` is `all+ffs+embedder`, which leaves out the modulation."),
    same("init_lora", "lora.init_from", None),
    Rule(
        ("max_train_steps", "num_train_epochs", "gradient_accumulation_steps"),
        ("training.steps", "training.accumulation"),
        _write_steps,
        _read_steps,
        "Epochs count where `max_train_steps` is 0.",
    ),
    same("train_batch_size", "training.batch_size", 4),
    same("learning_rate", "training.learning_rate", 4e-7),
    Rule(("lr_scheduler", "lr_warmup_steps", "lr_end"), ("training.schedule", "training.warmup"),
         _write_schedule, _read_schedule, "The warm-up steps of its cosine are how long it takes to fall."),
    adamw(
        "optimizer",
        {"adamw": "torch-adamw", "adamw-8bit": "bnb-adamw8bit"},
        "adamw_bf16",
        "optimizer_config",
        also={"adamw_bf16": "adamw", "optimi-adamw": "adamw", "bnb-adamw": "adamw", "ao-adamw8bit": "adamw-8bit",
              "bnb-adamw8bit-paged": "adamw-8bit", "bnb-adamw-paged": "adamw"},
        decay="adam_weight_decay",
    ),
    Rule(
        ("max_grad_norm", "grad_clip_method"),
        ("training.max_grad_norm",),
        lambda wanted: {"max_grad_norm": wanted["training.max_grad_norm"], "grad_clip_method": "norm"},
        _read_clip,
        "By default it cuts each value instead.",
    ),
    Rule(
        ("flow_schedule_shift", "flow_schedule_auto_shift", "flow_sigmoid_scale", "flow_use_uniform_schedule"),
        noise.OURS,
        _write_noise,
        _read_noise,
        "A mean of the logit is a shift by its exponential, and is written as that.",
    ),
    Rule(("flux_guidance_value", "flux_guidance_mode"), ("training.guidance",),
         lambda wanted: {"flux_guidance_mode": "constant", "flux_guidance_value": wanted["training.guidance"]},
         _read_guidance),
    Rule(("use_ema", "ema_decay"), ("training.ema_decay",), _write_ema, _read_ema),
    named("mixed_precision", "training.precision", "bf16", {"bf16": "bf16", "fp32": "no"}, also={"fp32": "fp32"},
          near={"fp16": ("bf16", "there is no half precision here")}),
    same("seed", "training.seed", None),
    Rule(
        ("gradient_checkpointing",),
        ("memory.recompute",),
        lambda wanted: {"gradient_checkpointing": wanted["memory.recompute"] != "none"},
        lambda given: {"memory.recompute": "all" if given.switch("gradient_checkpointing", True) else "none"},
    ),
    same("musubi_blocks_to_swap", "memory.streamed_blocks", 0),
    same("caption_dropout_probability", "dataset.caption_dropout", 0.1),
    Rule(
        ("resolution", "resolution_type"),
        ("dataset.resolution",),
        lambda wanted: {"resolution": wanted["dataset.resolution"][0], "resolution_type": "pixel_area"},
        _read_resolution,
        "Of folders that say none in the data set's file.",
    ),
    Rule(
        ("checkpoint_step_interval", "checkpointing_steps"),
        ("checkpoints.every",),
        lambda wanted: {"checkpoint_step_interval": wanted["checkpoints.every"] or wanted["training.steps"]},
        lambda given: {
            "checkpoints.every": given.whole("checkpoint_step_interval", given.whole("checkpointing_steps", 500))
        },
    ),
    same("checkpoints_total_limit", "checkpoints.keep", 5),
    Rule(
        ("validation_step_interval", "validation_prompt", "user_prompt_library", "validation_seed",
         "validation_num_inference_steps", "validation_guidance", "validation_resolution"),
        ("previews.every", "previews.prompts", "previews.seeds", "previews.guidance", "previews.steps",
         "previews.width", "previews.height"),
        _write_previews,
        _read_previews,
        "One seed for all prompts. Without prompts the first caption is written out.",
    ),
    Rule(("report_to", "tracker_project_name"), ("tracking.trackers", "tracking.project"),
         _write_trackers, _read_trackers),
)  # fmt: skip

_FIXED = (
    Fixed("model_type", "lora", "the whole model is trained there, and a LoRA of it here"),
    Fixed("model_family", "flux", "this is another model than FLUX.1", refused=True),
    Fixed("lora_type", "standard", "a plain LoRA is trained here", usual="standard"),
    Fixed("use_dora", False, "a plain LoRA is trained here", usual=False),
    Fixed("controlnet", False, "there are no control nets here", usual=False, refused=True),
    Fixed("loss_type", "l2", "the loss is the mean squared error here", usual="l2"),
    Fixed("flux_attention_masked_training", False, "empty tokens of T5 are seen here", usual=False),
)


def _text(values: Values, wanted: Wanted) -> dict[str, str]:
    kept = {key: value for key, value in values.items() if value is not None}
    kept |= {"data_backend_config": wanted.data, "output_dir": f"{wanted.folder}/output"}
    # Small data sets are what a person has.
    kept["disable_bucket_pruning"] = True
    texts = {FILE: json.dumps(kept, indent=2, ensure_ascii=False) + "\n"}
    if "user_prompt_library" in kept:
        library = {f"preview_{number}": prompt for number, prompt in enumerate(wanted.prompts[1:], start=2)}
        texts[PROMPTS] = json.dumps(library, indent=2, ensure_ascii=False) + "\n"
    return texts


TRAINER = Trainer(
    name="simpletuner",
    title="SimpleTuner",
    source="bghira/SimpleTuner",
    layout=Layout.SIMPLETUNER,
    file=FILE,
    rules=RULES,
    fixed=_FIXED,
    without=WITHOUT | {"checkpoints.dtype": "it saves the weights as mixed_precision says"},
    nature=("a bucket's sides are multiples of 64 px",),
    technical=technical.SIMPLETUNER,
    meanings={
        "tread_config": "all tokens go through all blocks here",
        "snr_gamma": "losses count alike at all noise levels",
        "layer_freeze_strategy": "lora.targets says what is trained",
        "t5_padding": "T5 sees padding as in the FLUX pipelines",
        "distillation_method": "nothing is distilled here",
    },
    text=_text,
    command=lambda file, wanted: f"ENV={file.removesuffix('/' + FILE)} simpletuner train",
)  # fmt: skip
