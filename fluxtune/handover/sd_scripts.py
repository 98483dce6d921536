"""kohya's sd-scripts, flux_train_network.py: after library/train_util.py, library/flux_train_utils.py,
networks/lora_flux.py and train_network.py of kohya-ss/sd-scripts.

Names are those of its arguments, which a file for --config_file has, too, in any sections.
"""

from __future__ import annotations

from math import sqrt

from fluxtune.exporting.layouts import Layout
from fluxtune.handover import noise, sd_scripts_layers, technical
from fluxtune.handover.common import WITHOUT
from fluxtune.handover.given import Given
from fluxtune.handover.pace import adamw, diffusers_schedule, run_name, steps_of
from fluxtune.handover.rules import Fixed, Rule, Trainer, Values, Wanted, alpha_of_one, named, nested, same

FILE = "sd-scripts.toml"
PROMPTS = "sample_prompts.txt"
_DEV, _SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
_OURS = {"clip_l": "model.text_encoder", "t5xxl": "model.text_encoder_2", "ae": "model.vae"}
_USUAL = {"clip_l": "clip_l.safetensors", "t5xxl": "t5xxl_fp16.safetensors", "ae": "ae.safetensors"}


def _file_of(base: str) -> str:
    """The single file that sd-scripts takes for a base model of ours."""
    if base.endswith((".safetensors", ".sft")) or "/" not in base:
        return base
    return f"{base.rpartition('/')[2].lower().replace('flux.1', 'flux1')}.safetensors"


def _write_model(wanted: Wanted) -> Values:
    files = {key: wanted[ours] or _USUAL[key] for key, ours in _OURS.items()}
    return {"pretrained_model_name_or_path": wanted["model.transformer"] or _file_of(wanted["model.base"]), **files}


def _read_model(given: Given) -> Values:
    path = given.text("pretrained_model_name_or_path")
    values = {ours: file for key, ours in _OURS.items() if (file := given.text(key))}
    if path is None:
        return values
    base = _SCHNELL if "schnell" in path.lower() else _DEV
    message = f"configs and tokenizers are those of {base} (model.base)"
    given.note("pretrained_model_name_or_path", message)
    return values | {"model.base": base, "model.transformer": path}


def _write_noise(wanted: Wanted) -> Values:
    sampling, shift = wanted["training.timestep_sampling"], noise.factor(wanted)
    if sampling == "uniform":
        return {"timestep_sampling": "uniform"}
    values: Values = {"sigmoid_scale": wanted["training.logit_std"]}
    if sampling == "flux-shift":
        return {"timestep_sampling": "flux_shift"} | values
    if shift == 1.0:
        return {"timestep_sampling": "sigmoid"} | values
    return {"timestep_sampling": "shift", "discrete_flow_shift": shift} | values


def _read_noise(given: Given) -> Values:
    sampling, std = given.text("timestep_sampling", "sigma"), float(given.number("sigmoid_scale", 1.0))
    shift = float(given.number("discrete_flow_shift", 3.0))
    scheme = given.text("weighting_scheme", "uniform")
    mean, deviation = given.number("logit_mean", 0.0), given.number("logit_std", 1.0)
    match sampling:
        case "uniform":
            return noise.uniform()
        case "sigmoid":
            return noise.logit_normal(std=std)
        case "flux_shift":
            return noise.logit_normal(std=std, by_size=True)
        case "shift":
            return noise.logit_normal(std=std, shift=shift)
        case "sigma" if scheme == "logit_normal":
            # Its numbers count from the noisy end.
            return noise.logit_normal(-mean, deviation, shift)
        case "sigma":
            if scheme not in ("uniform", "none"):
                given.warn("weighting_scheme", f"weighting_scheme {scheme} has no counterpart here: losses count alike")
            given.note("timestep_sampling", "sigma draws uniform levels and shifts them: nearly logit_std 1.7")
            return noise.uniform(shift)
    given.refuse(
        "timestep_sampling", f"timestep_sampling is {sampling}: wanted sigma, uniform, sigmoid, shift, flux_shift"
    )
    return {}


def _batch(given: Given) -> int:
    """The batch of the data set's file counts before that of the command line."""
    return int(given.whole("dataset.batch_size", given.whole("train_batch_size", 1)))


def _write_steps(wanted: Wanted) -> Values:
    return {"max_train_steps": wanted["training.steps"], "gradient_accumulation_steps": wanted["training.accumulation"]}


def _read_steps(given: Given) -> Values:
    accumulation, steps = given.whole("gradient_accumulation_steps", 1), given.whole("max_train_steps", 1600)
    if (epochs := given.number("max_train_epochs")) is not None:
        steps = steps_of(given, "max_train_epochs", epochs, _batch(given), accumulation)
    return {"training.accumulation": accumulation} | ({} if steps is None else {"training.steps": steps})


def _read_rate(given: Given) -> Values:
    return {"training.learning_rate": float(given.number("unet_lr", given.number("learning_rate", 2e-6)))}


def _every(given: Given, kind: str) -> int | None:
    """Steps between what is done every so many steps or epochs; None for never."""
    every, epochs = given.whole(f"{kind}_every_n_steps"), given.number(f"{kind}_every_n_epochs")
    if every is None and epochs:
        every = steps_of(
            given, f"{kind}_every_n_epochs", epochs, _batch(given), given.whole("gradient_accumulation_steps", 1)
        )
    return every


def _write_checkpoints(wanted: Wanted) -> Values:
    every = wanted["checkpoints.every"]
    return {"save_every_n_steps": every, "save_last_n_steps": every * (wanted["checkpoints.keep"] - 1)} if every else {}


def _read_checkpoints(given: Given) -> Values:
    every, last, epochs = _every(given, "save"), given.whole("save_last_n_steps"), given.whole("save_last_n_epochs")
    keep = last // every + 1 if last is not None and every else epochs
    return {"checkpoints.every": every or 0, "checkpoints.keep": max(1, keep) if keep is not None else 10_000}


def _write_previews(wanted: Wanted) -> Values:
    every = wanted["previews.every"]
    if not every:
        return {}
    return {"sample_every_n_steps": every, "sample_prompts": f"{wanted.folder}/{PROMPTS}", "sample_at_first": True}


def _prompt_lines(wanted: Wanted) -> str:
    width, height = wanted.size
    steps, guidance = wanted.preview_steps, wanted["previews.guidance"]
    lines = [
        f"{prompt} --w {width} --h {height} --d {seed} --s {steps} --g {guidance}"
        for prompt in wanted.prompts
        for seed in wanted["previews.seeds"]
    ]
    return "".join(f"{line}\n" for line in lines)


def _read_previews(given: Given) -> Values:
    every, file = _every(given, "sample"), given.text("sample_prompts")
    if not every or not file:
        return {"previews.every": 0}
    rows = [row for _, row in given.rows("sample_prompts.rows")]
    if not rows:
        given.warn("sample_prompts", f"{file} is not here: previews have the first caption as their prompt")
        return {"previews.every": every}
    values: Values = {"previews.every": every, "previews.prompts": list(dict.fromkeys(row["prompt"] for row in rows))}
    for key, ours in (("w", "width"), ("h", "height"), ("s", "steps"), ("g", "guidance")):
        found = {row[key] for row in rows if key in row}
        if len(found) > 1:
            given.warn("sample_prompts", f"--{key} differs from prompt to prompt; here previews.{ours} is one for all")
        elif found:
            value = given.number_in("sample_prompts", found.pop())
            values[f"previews.{ours}"] = float(value or 0) if ours == "guidance" else int(value or 0)
    seeds = [given.number_in("sample_prompts", row["d"]) for row in rows if "d" in row]
    return values | ({"previews.seeds": list(dict.fromkeys(seeds))} if seeds else {})


def _write_precision(wanted: Wanted) -> Values:
    return {"fp8_base": wanted["memory.base_precision"] not in ("bf16", "fp32")}


def _read_precision(given: Given) -> Values:
    is_quantised = [given.switch(key) for key in ("fp8_base", "fp8_base_unet")]
    return {"memory.base_precision": "fp8" if any(is_quantised) else "bf16"}


def _read_resolution(given: Given) -> Values:
    if not given.has("resolution"):
        return {}
    sides = [given.number_in("resolution", part) or 0 for part in str(given.text("resolution", "")).split(",")]
    side = round(sqrt(max(0, sides[0] * sides[-1])) / 16) * 16
    return {"dataset.resolution": [side]}


RULES = (
    Rule(
        ("pretrained_model_name_or_path", "clip_l", "t5xxl", "ae"),
        ("model.base", "model.transformer", "model.text_encoder", "model.text_encoder_2", "model.vae"),
        _write_model,
        _read_model,
        "It takes single files: those of ComfyUI.",
    ),
    run_name("output_name"),
    Rule(
        ("fp8_base", "fp8_base_unet"),
        ("memory.base_precision",),
        _write_precision,
        _read_precision,
        "It has 8-bit floats alone.",
    ),
    same("network_dim", "lora.rank", 4),
    alpha_of_one("network_alpha"),
    same("network_dropout", "lora.dropout", 0.0),
    Rule(
        ("network_args",),
        ("lora.targets",),
        sd_scripts_layers.write,
        sd_scripts_layers.read,
        "Its single blocks have one matrix for attention and MLP, which get an adapter together.",
    ),
    same("network_weights", "lora.init_from", None),
    Rule(
        ("max_train_steps", "max_train_epochs", "gradient_accumulation_steps"),
        ("training.steps", "training.accumulation"),
        _write_steps,
        _read_steps,
        "`max_train_epochs` counts before `max_train_steps`.",
    ),
    Rule(
        ("train_batch_size",),
        ("training.batch_size",),
        lambda wanted: {"train_batch_size": wanted["training.batch_size"]},
        lambda given: {"training.batch_size": _batch(given)},
        "`batch_size` of the data set's file counts before it.",
    ),
    Rule(
        ("learning_rate", "unet_lr"),
        ("training.learning_rate",),
        lambda wanted: {"learning_rate": wanted["training.learning_rate"]},
        _read_rate,
        "`unet_lr` counts before `learning_rate`.",
    ),
    diffusers_schedule("lr_scheduler", "lr_warmup_steps", "constant", 0, "max_train_steps"),
    adamw(
        "optimizer_type",
        {"adamw": "AdamW", "adamw-8bit": "AdamW8bit"},
        "AdamW",
        "optimizer_args",
        also={"": "adamw", "PagedAdamW8bit": "adamw-8bit", "PagedAdamW": "adamw"},
    ),
    same("max_grad_norm", "training.max_grad_norm", 1.0),
    Rule(
        ("timestep_sampling", "sigmoid_scale", "discrete_flow_shift", "weighting_scheme", "logit_mean", "logit_std"),
        noise.OURS,
        _write_noise,
        _read_noise,
        "A mean of the logit is a shift by its exponential, and is written as that.",
    ),
    same("guidance_scale", "training.guidance", 3.5),
    named("mixed_precision", "training.precision", "no", {"bf16": "bf16", "fp32": "no"},
          near={"fp16": ("bf16", "there is no half precision here")}),
    same("seed", "training.seed", None),
    Rule(("resolution",), ("dataset.resolution",), lambda wanted: {}, _read_resolution,
         "Of data sets that say none in their own file."),
    Rule(
        ("gradient_checkpointing",),
        ("memory.recompute",),
        lambda wanted: {"gradient_checkpointing": wanted["memory.recompute"] != "none"},
        lambda given: {"memory.recompute": "all" if given.switch("gradient_checkpointing") else "none"},
    ),
    same("blocks_to_swap", "memory.streamed_blocks", 0, "Two single blocks count as one there."),
    Rule(("save_every_n_steps", "save_every_n_epochs", "save_last_n_steps", "save_last_n_epochs"),
         ("checkpoints.every", "checkpoints.keep"), _write_checkpoints, _read_checkpoints,
         "It keeps those of the last steps, and by default all."),
    named("save_precision", "checkpoints.dtype", "float", {"bf16": "bf16", "fp16": "fp16", "fp32": "float"}),
    Rule(
        ("sample_every_n_steps", "sample_every_n_epochs", "sample_prompts"),
        ("previews.every", "previews.prompts", "previews.seeds", "previews.guidance", "previews.steps",
         "previews.width", "previews.height"),
        _write_previews,
        _read_previews,
        "Without prompts the first caption is written out.",
    ),
    Rule(
        ("log_with", "log_tracker_name"),
        ("tracking.trackers", "tracking.project"),
        lambda wanted: _log_with(wanted["tracking.trackers"], wanted["tracking.project"]),
        lambda given: _trackers(given),
    ),
)  # fmt: skip


def _log_with(trackers: list[str], project: str) -> Values:
    if not trackers:
        return {}
    return {
        "log_with": trackers[0] if len(trackers) == 1 else "all",
        "logging_dir": "logs",
        "log_tracker_name": project,
    }


def _trackers(given: Given) -> Values:
    kind, project = given.text("log_with"), given.text("log_tracker_name")
    trackers = ["tensorboard", "wandb"] if kind == "all" else [kind] if kind in ("tensorboard", "wandb") else []
    return {"tracking.trackers": trackers} | ({"tracking.project": project} if project and trackers else {})


_FIXED = (
    Fixed("network_module", "networks.lora_flux", "this is no LoRA of FLUX", also=("lycoris.kohya",), refused=True),
    Fixed("model_prediction_type", "raw", "its losses count by the square of the noise level; here they count alike",
          usual="sigma_scaled"),
    Fixed("network_train_unet_only", True, "text encoders are not trained here", usual=False),
    Fixed("loss_type", "l2", "the loss is the mean squared error here", usual="l2"),
    Fixed("apply_t5_attn_mask", False, "empty tokens of T5 are seen here, as in the FLUX pipelines", usual=False),
    Fixed("save_model_as", "safetensors"),
    Fixed("sdpa", True),
    Fixed("cache_latents", True),
    Fixed("cache_text_encoder_outputs", True),
    Fixed("model_type", "flux", "the model is another one than FLUX.1", usual="flux", refused=True),
)  # fmt: skip


def _text(values: Values, wanted: Wanted) -> dict[str, str]:
    import tomlkit

    kept = {key: value for key, value in values.items() if value is not None}
    masked = {"masked_loss": True} if any(each.masks != "none" for each in wanted.config.dataset.folders) else {}
    table = nested(kept | masked | {"dataset_config": wanted.data, "output_dir": f"{wanted.folder}/output"})
    prompts = {PROMPTS: _prompt_lines(wanted)} if wanted["previews.every"] else {}
    return {FILE: tomlkit.dumps(table), **prompts}


def _to_do(wanted: Wanted) -> list[str]:
    files = _write_model(wanted)
    mine = {"pretrained_model_name_or_path": "model.transformer", **_OURS}
    missing = [file for key, file in files.items() if not wanted[mine[key]]]
    if not missing:
        return []
    return [f"say in {FILE} where these files are, the ones that ComfyUI takes: {', '.join(missing)}"]


def other_model(given: Given) -> str | None:
    """Why the file is not about FLUX.1; None if it is."""
    script = given.text("script", "")
    if script and not script.endswith("flux_train_network.py"):
        return f"{script} trains another model"
    return None


TRAINER = Trainer(
    name="sd-scripts",
    title="kohya's sd-scripts",
    source="kohya-ss/sd-scripts",
    layout=Layout.KOHYA,
    masks_by="masked_loss",
    file=FILE,
    rules=RULES,
    fixed=_FIXED,
    without=WITHOUT | {"memory.text_precision": "T5 is held as its file is"},
    nature=("a bucket's sides are multiples of 64 px",),
    technical=technical.SD_SCRIPTS,
    meanings={
        "text_encoder_lr": "text encoders are not trained here",
        "scale_weight_norms": "the norm of the weights is not bounded here",
        "min_timestep": "all noise levels are trained here",
        "max_timestep": "all noise levels are trained here",
        "full_bf16": "the adapter is kept in float32 here",
        "prior_loss_weight": "the weight of a row says how much regularization counts",
        "min_snr_gamma": "losses count alike at all noise levels",
        "ip_noise_gamma": "no noise is added to what is seen",
        "noise_offset": "noise has no offset here",
    },
    text=_text,
    command=lambda file, wanted: f"accelerate launch {_launch(wanted)}flux_train_network.py --config_file {file}",
    other_model=other_model,
    to_do=_to_do,
)  # fmt: skip


def _launch(wanted: Wanted) -> str:
    return f"--mixed_precision {'bf16' if wanted['training.precision'] == 'bf16' else 'no'} "


def rows_of(text: str) -> list[dict[str, str]]:
    """The lines of a file of prompts: ``a dog --w 1024 --d 42``."""
    rows = []
    for line in text.split("\n"):
        prompt, *options = line.strip().split(" --")
        if prompt and not prompt.startswith("#"):
            pairs = [option.split(" ", 1) for option in options if " " in option]
            rows.append({"prompt": prompt, **{key.lower(): value.strip() for key, value in pairs}})
    return rows
