"""ai-toolkit's jobs: after toolkit/config_modules.py, toolkit/optimizer.py, toolkit/scheduler.py,
toolkit/samplers/custom_flowmatch_sampler.py and jobs/process/BaseSDTrainProcess.py of ostris/ai-toolkit.

Names are those within a process of the job.
"""

from __future__ import annotations

from typing import Any

from fluxtune.exporting.layouts import Layout
from fluxtune.handover import layers, noise, technical
from fluxtune.handover.common import WITHOUT
from fluxtune.handover.given import Given
from fluxtune.handover.pace import run_name
from fluxtune.handover.rules import Fixed, Rule, Trainer, Values, Wanted, named, nested, same

FILE = "ai-toolkit.yaml"

_PRECISIONS = {
    "bf16": None,
    "fp32": None,
    "int8-weights": "qint8",
    "int8": "qint8",
    "auto": "qint8",
    "fp8": "qfloat8",
    "nf4": "uint4",
}
_READ_PRECISIONS = {"qint8": "int8-weights", "int8": "int8-weights", "qfloat8": "fp8", "float8": "fp8", "uint4": "nf4"}


def _quantised(switch: str, kind: str, ours: str, text: bool) -> Rule:
    def write(wanted: Wanted) -> Values:
        name = _PRECISIONS[wanted[ours]]
        return {switch: name is not None} | ({} if name is None else {kind: name})

    def read(given: Given) -> Values:
        usual = given.switch("model.quantize") if text else False
        name, is_on = given.text(kind, "qfloat8"), given.switch(switch, usual)
        if not is_on:
            return {ours: "bf16"}
        plain = name.partition("|")[0]
        if plain not in _READ_PRECISIONS:
            bits = "".join(filter(str.isdigit, plain))
            nearest = "nf4" if bits and int(bits) < 7 else "int8-weights"
            given.warn(kind, f"{kind} = {name} has no counterpart here; {ours} becomes {nearest}")
            return {ours: nearest}
        if name != plain:
            given.warn(kind, f"{name}: there are no adapters here that recover what quantising loses")
        return {ours: _READ_PRECISIONS[plain]}

    note = "Its 8 bits are weights alone (`int8-weights`); its 4 bits are uniform steps, not NF4."
    return Rule((switch, kind), (ours,), write, read, note)


def _write_pace(wanted: Wanted) -> Values:
    return {"train.steps": wanted["training.steps"], "train.gradient_accumulation": wanted["training.accumulation"]}


def _read_pace(given: Given) -> Values:
    steps, whole = given.whole("train.steps", 1000), given.whole("train.gradient_accumulation", 1)
    parts = given.whole("train.gradient_accumulation_steps", 1)
    if parts > 1:
        fewer = max(1, steps // parts)
        message = f"each of the {steps} steps is a micro-batch there: {fewer} steps of {parts} here"
        given.note("train.gradient_accumulation_steps", message)
        return {"training.steps": fewer, "training.accumulation": parts}
    if parts < 1:
        given.warn("train.gradient_accumulation_steps", "gradients are not gathered over an epoch here")
    return {"training.steps": steps, "training.accumulation": whole}


_SCHEDULES = named(
    "train.lr_scheduler",
    "training.schedule",
    "constant",
    {"constant": "constant", "linear": "linear", "cosine": "cosine"},
    also={"constant_with_warmup": "constant"},
    near={"cosine_with_restarts": ("cosine", "there are no restarts here")},
    otherwise="constant",
)


def _write_schedule(wanted: Wanted) -> Values:
    schedule, warmup = wanted["training.schedule"], wanted["training.warmup"]
    if schedule == "constant" and warmup:
        return {"train.lr_scheduler": "constant_with_warmup", "train.lr_scheduler_params.num_warmup_steps": warmup}
    if schedule == "linear":
        # Without these it rises from a third of the learning rate to all of it.
        ends = {"train.lr_scheduler_params.start_factor": 1.0, "train.lr_scheduler_params.end_factor": 0.0}
        return {"train.lr_scheduler": "linear"} | ends
    return {"train.lr_scheduler": schedule}


def _read_schedule(given: Given) -> Values:
    values, name = _SCHEDULES.read(given), given.text("train.lr_scheduler", "constant")
    warmup = given.whole("train.lr_scheduler_params.num_warmup_steps", 1000)
    if name == "linear":
        start = given.number("train.lr_scheduler_params.start_factor", 1 / 3)
        if (start, given.number("train.lr_scheduler_params.end_factor", 1.0)) != (1.0, 0.0):
            given.warn("train.lr_scheduler", "linear without start_factor 1 and end_factor 0 does not fall to zero")
            return {"training.schedule": "constant"}
    return values | ({"training.warmup": warmup} if name == "constant_with_warmup" else {})


_SAMPLINGS = {"uniform": "linear", "logit-normal": "sigmoid", "flux-shift": "flux_shift", "shift": "flux_shift"}


def _read_noise(given: Given) -> Values:
    name = given.text("train.timestep_type", "sigmoid")
    weighted = given.switch("train.linear_timesteps") or given.switch("train.linear_timesteps2")
    if weighted or name == "weighted":
        given.warn("train.timestep_type", "noise levels are uniform and weighted there; here their losses count alike")
        return noise.uniform()
    if name in ("flux_shift", "shift", "lumina2_shift"):
        return noise.uniform(by_size=True)
    if name not in ("sigmoid", "linear"):
        given.warn("train.timestep_type", f"{name} has no counterpart here; training.timestep_sampling is logit-normal")
    return noise.uniform() if name == "linear" else noise.logit_normal()


def _write_targets(wanted: Wanted) -> Values:
    key = "network.network_kwargs.only_if_contains"
    targets = wanted["lora.targets"]
    if targets == layers.BLOCKS:
        return {}
    found = layers.words(targets, layers.PARTS)
    return {key: found} if found else {"network.transformer_only": False}


def _read_targets(given: Given) -> Values:
    key = "network.network_kwargs.only_if_contains"
    given.get("network.transformer_only")
    if given.has("network.network_kwargs.ignore_if_contains"):
        given.warn("network.network_kwargs.ignore_if_contains", "no layers are left out here; lora.targets names them")
    if parts := given.words(key):
        plain = [part.removeprefix("transformer.").replace("$$", ".") for part in parts]
        return {"lora.targets": layers.targets(plain, layers.PARTS)}
    return {"lora.targets": list(layers.BLOCKS) if given.switch("network.transformer_only", True) else "all-linear"}


def _write_ema(wanted: Wanted) -> Values:
    decay = wanted["training.ema_decay"]
    key = "train.ema_config"
    return {f"{key}.use_ema": decay > 0} | ({f"{key}.ema_decay": decay} if decay else {})


def _read_ema(given: Given) -> Values:
    decay = given.number("train.ema_config.ema_decay", 0.999)
    return {"training.ema_decay": float(decay) if given.switch("train.ema_config.use_ema") else 0.0}


def _write_every(wanted: Wanted) -> Values:
    return {"save.save_every": wanted["checkpoints.every"] or wanted["training.steps"]}


def _read_every(given: Given) -> Values:
    every = given.whole("save.save_every", 1000)
    return {"checkpoints.every": 0 if every >= given.whole("train.steps", 1000) else every}


def _write_previews(wanted: Wanted) -> Values:
    width, height = wanted.size
    every = wanted["previews.every"]
    return {
        "train.disable_sampling": not every,
        "sample.sampler": "flowmatch",
        "sample.sample_every": every or wanted["training.steps"],
        "sample.prompts": wanted.prompts,
        "sample.neg": "",
        "sample.seed": wanted["previews.seeds"][0],
        "sample.walk_seed": False,
        "sample.guidance_scale": wanted["previews.guidance"],
        "sample.sample_steps": wanted.preview_steps,
        "sample.width": width,
        "sample.height": height,
    }


def _read_previews(given: Given) -> Values:
    prompts = given.words("sample.prompts")
    for index, row in given.rows("sample.samples"):
        prompts += [row["prompt"]] if isinstance(row.get("prompt"), str) else []
        if others := sorted(row.keys() - {"prompt"}):
            given.warn("sample.samples", f"of sample {index + 1} {', '.join(others)} is not taken over")
    if trigger := given.text("trigger_word"):
        prompts = [prompt.replace("[trigger]", trigger) for prompt in prompts]
    every = given.whole("sample.sample_every", 100)
    if given.switch("sample.walk_seed"):
        given.note("sample.walk_seed", "each prompt has the same seeds here")
    values: Values = {
        "previews.every": 0 if given.switch("train.disable_sampling") or not prompts else every,
        "previews.seeds": [given.whole("sample.seed", 0)],
        "previews.guidance": float(given.number("sample.guidance_scale", 7)),
        "previews.steps": given.whole("sample.sample_steps", 20),
    }
    values |= {f"previews.{side}": given.whole(f"sample.{side}", 512) for side in ("width", "height")}
    return values | ({"previews.prompts": prompts} if prompts else {})


def _write_preservation(wanted: Wanted) -> Values:
    is_on = wanted["training.preservation.method"] == "output" and not wanted["training.preservation.prompts"]
    key = "train.diff_output_preservation"
    if not is_on:
        return {key: False}
    weight, word = wanted["training.preservation.weight"], wanted["dataset.class_word"]
    return {key: True, f"{key}_multiplier": weight, f"{key}_class": word or ""}


def _read_preservation(given: Given) -> Values:
    key = "train.diff_output_preservation"
    weight, word = given.number(f"{key}_multiplier", 1.0), given.text(f"{key}_class")
    if not given.switch(key):
        return {}
    word = {"dataset.class_word": word} if word else {}
    return {"training.preservation.method": "output", "training.preservation.weight": float(weight)} | word


def _write_trackers(wanted: Wanted) -> Values:
    return {
        "logging.use_wandb": "wandb" in wanted["tracking.trackers"],
        "logging.project_name": wanted["tracking.project"],
    }


def _read_trackers(given: Given) -> Values:
    project = given.text("logging.project_name", "ai-toolkit")
    return {"tracking.trackers": ["wandb"], "tracking.project": project} if given.switch("logging.use_wandb") else {}


RULES = (
    run_name("name"),
    same("model.name_or_path", "model.base", None, "A hub id or a diffusers folder."),
    _quantised("model.quantize", "model.qtype", "memory.base_precision", text=False),
    _quantised("model.quantize_te", "model.qtype_te", "memory.text_precision", text=True),
    Rule(
        ("network.linear", "network.rank"),
        ("lora.rank",),
        lambda wanted: {"network.linear": wanted["lora.rank"]},
        lambda given: {"lora.rank": given.whole("network.rank", given.whole("network.linear", 4))},
        "`rank` counts before `linear`.",
    ),
    Rule(
        ("network.linear_alpha",),
        ("lora.alpha",),
        lambda wanted: {"network.linear_alpha": wanted.alpha},
        lambda given: {"lora.alpha": float(given.number("network.linear_alpha", given.number("network.alpha", 1.0)))},
        "Unset is written out as the rank.",
    ),
    same("network.dropout", "lora.dropout", 0.0),
    Rule(
        ("network.network_kwargs.only_if_contains", "network.transformer_only"),
        ("lora.targets",),
        _write_targets,
        _read_targets,
        "Without it, all linear layers of the blocks; patterns become the longest word in them.",
    ),
    same("network.pretrained_lora_path", "lora.init_from", None),
    Rule(
        ("train.steps", "train.gradient_accumulation", "train.gradient_accumulation_steps"),
        ("training.steps", "training.accumulation"),
        _write_pace,
        _read_pace,
        "With `gradient_accumulation_steps` its steps are micro-batches, with `gradient_accumulation` optimizer steps.",
    ),
    same("train.batch_size", "training.batch_size", 1),
    same("train.lr", "training.learning_rate", 1e-6),
    Rule(
        ("train.lr_scheduler", "train.lr_scheduler_params"),
        ("training.schedule", "training.warmup"),
        _write_schedule,
        _read_schedule,
        "It has a warm-up before a constant learning rate alone.",
    ),
    named(
        "train.optimizer",
        "training.optimizer",
        "adamw",
        {"adamw": "adamw", "adamw-8bit": "adamw8bit"},
        also={"adamw8": "adamw-8bit"},
        otherwise="adamw",
    ),
    same("train.optimizer_params.weight_decay", "training.weight_decay", 0.01),
    same("train.max_grad_norm", "training.max_grad_norm", 1.0),
    Rule(
        ("train.timestep_type",),
        noise.OURS,
        lambda wanted: {"train.timestep_type": _SAMPLINGS[wanted["training.timestep_sampling"]]},
        _read_noise,
        "Its shifted levels are uniform before they are shifted by the picture's size: nearly `logit_std` 1.7.",
    ),
    same("train.cfg_scale", "training.guidance", 1.0),
    Rule(("train.ema_config",), ("training.ema_decay",), _write_ema, _read_ema,
         "Its decay does not rise with the steps."),
    named("train.dtype", "training.precision", "fp32", {"bf16": "bf16", "fp32": "fp32"},
          also={"bfloat16": "bf16", "float32": "fp32", "float": "fp32"},
          near={"fp16": ("bf16", "there is no half precision here"),
                "float16": ("bf16", "there is no half precision here")}),
    same("training_seed", "training.seed", None),
    Rule(
        ("train.gradient_checkpointing",),
        ("memory.recompute",),
        lambda wanted: {"train.gradient_checkpointing": wanted["memory.recompute"] != "none"},
        lambda given: {"memory.recompute": "all" if given.switch("train.gradient_checkpointing", True) else "none"},
    ),
    Rule(("save.save_every",), ("checkpoints.every",), _write_every, _read_every, "0 is as many as there are steps."),
    same("save.max_step_saves_to_keep", "checkpoints.keep", 5),
    named("save.dtype", "checkpoints.dtype", "float16",
          {"bf16": "bf16", "fp16": "float16", "fp32": "float32"},
          also={"bfloat16": "bf16", "fp16": "fp16", "fp32": "fp32", "float": "fp32"}),
    Rule(
        ("train.disable_sampling", "sample"),
        ("previews.every", "previews.prompts", "previews.seeds", "previews.guidance", "previews.steps",
         "previews.width", "previews.height"),
        _write_previews,
        _read_previews,
        "One seed for all prompts. Without prompts the first caption is written out.",
    ),
    Rule(
        ("train.diff_output_preservation", "train.diff_output_preservation_multiplier",
         "train.diff_output_preservation_class"),
        ("training.preservation.method", "training.preservation.weight"),
        _write_preservation,
        _read_preservation,
        "`output` without prompts.",
    ),
    Rule(("logging.use_wandb", "logging.project_name"), ("tracking.trackers", "tracking.project"),
         _write_trackers, _read_trackers),
)  # fmt: skip

_FIXED = (
    Fixed("type", "sd_trainer", "this is no training of a LoRA", also=("diffusion_trainer", "ui_trainer"),
          usual="sd_trainer", refused=True),
    Fixed("model.is_flux", True),
    Fixed("network.type", "lora", "a plain LoRA is trained here", usual="lora"),
    Fixed("train.noise_scheduler", "flowmatch", "FLUX is trained by flow matching alone", usual="flowmatch"),
    Fixed("train.train_unet", True, "the transformer is what is trained here", usual=True),
    Fixed("train.train_text_encoder", False, "text encoders are not trained here", usual=False),
    Fixed("train.loss_type", "mse", "the loss is the mean squared error here", usual="mse"),
    Fixed("train.content_or_style", "balanced", "noise levels are drawn as timestep_type says", usual="balanced"),
)  # fmt: skip


def _text(values: Values, wanted: Wanted) -> dict[str, str]:
    import yaml

    with open(wanted.described, encoding="utf-8") as file:
        job: dict[str, Any] = yaml.safe_load(file)
    plain = dict(values)
    job["config"]["name"] = plain.pop("name")
    process = job["config"]["process"][0]
    process |= {"training_folder": "output", "device": "cuda:0"} | nested(plain)
    return {FILE: yaml.safe_dump(job, allow_unicode=True, sort_keys=False, width=1000)}


def other_model(given: Given) -> str | None:
    """Why a job is not about FLUX.1; None if it is."""
    arch = str(given.text("model.arch") or "").partition(":")[0]
    if given.switch("model.is_flux") or arch == "flux":
        return None
    named = arch or given.text("model.name_or_path")
    return f"the model is {named}, as its arch or is_flux says" if named else "no model is named"


TRAINER = Trainer(
    name="ai-toolkit",
    title="ai-toolkit",
    source="ostris/ai-toolkit",
    layout=Layout.AI_TOOLKIT,
    file=FILE,
    rules=RULES,
    fixed=_FIXED,
    without=WITHOUT | {
        "lora.rank_stabilized": "it scales by alpha / rank",
        "training.preservation": "it preserves outputs at captions with the class word alone",
    },
    nature=("buckets have sides that are multiples of 64 px, and no bound on how elongated they are",),
    technical=technical.AI_TOOLKIT,
    meanings={
        "train.unet_lr": "all layers have one learning rate here",
        "model.assistant_lora_path": "schnell is trained as it is, without an adapter that undoes its distillation",
        "train.bypass_guidance_embedding": "guidance is embedded here as training.guidance says",
        "train.skip_first_sample": "a preview before the first step is always made",
        "train.blank_prompt_preservation": "training.preservation with prompts of its own is what comes nearest",
    },
    text=_text,
    command=lambda file, wanted: f"python run.py {file}",
    other_model=other_model,
)  # fmt: skip
