"""diffusers' train_dreambooth_lora_flux.py: after examples/dreambooth/train_dreambooth_lora_flux.py of
huggingface/diffusers and its training_utils.py. Names are those of the script's arguments.
"""

from __future__ import annotations

from shlex import quote

from fluxtune.exporting.layouts import Layout
from fluxtune.handover import layers, noise, technical
from fluxtune.handover.common import WITHOUT
from fluxtune.handover.given import Given
from fluxtune.handover.pace import diffusers_schedule, run_name, steps_of
from fluxtune.handover.rules import Fixed, Rule, Trainer, Values, Wanted, named, same

FILE = "train.sh"
SCRIPT = "train_dreambooth_lora_flux.py"


def _write_targets(wanted: Wanted) -> Values:
    targets = wanted["lora.targets"]
    if targets == layers.ATTENTION_AND_DOUBLE_MLP:
        return {}
    found = layers.words(targets, layers.ENDS) or layers.words("attention+mlp", layers.ENDS)
    return {"lora_layers": ",".join(found)}


def _read_targets(given: Given) -> Values:
    words = [word.strip() for word in given.text("lora_layers", "").split(",") if word.strip()]
    return {"lora.targets": layers.targets(words, layers.ENDS) if words else list(layers.ATTENTION_AND_DOUBLE_MLP)}


def _write_noise(wanted: Wanted) -> Values:
    if wanted["training.timestep_sampling"] == "uniform":
        return {"weighting_scheme": "none"}
    # Its numbers count from the noisy end.
    mean = 0.0 - noise.whole_mean(wanted)
    return {"weighting_scheme": "logit_normal", "logit_mean": mean, "logit_std": wanted["training.logit_std"]}


def _read_noise(given: Given) -> Values:
    scheme = given.text("weighting_scheme", "none")
    mean, std = given.number("logit_mean", 0.0), given.number("logit_std", 1.0)
    given.number("mode_scale")
    if scheme == "logit_normal":
        return noise.logit_normal(-mean, std)
    if scheme != "none":
        given.warn("weighting_scheme", f"weighting_scheme {scheme} has no counterpart here: noise levels are uniform")
    return noise.uniform()


def _read_steps(given: Given) -> Values:
    accumulation, steps = given.whole("gradient_accumulation_steps", 1), given.whole("max_train_steps")
    if steps is None:
        batch, epochs = given.whole("train_batch_size", 4), given.number("num_train_epochs", 1)
        steps = steps_of(given, "num_train_epochs", epochs, batch, accumulation)
    given.whole("num_train_epochs")
    return {"training.accumulation": accumulation} | ({} if steps is None else {"training.steps": steps})


def _write_optimizer(wanted: Wanted) -> Values:
    return {
        "optimizer": "AdamW",
        "use_8bit_adam": wanted["training.optimizer"] == "adamw-8bit",
        "adam_weight_decay": wanted["training.weight_decay"],
    }


def _read_optimizer(given: Given) -> Values:
    name, is_small = given.text("optimizer", "AdamW"), given.switch("use_8bit_adam")
    if name.lower() != "adamw":
        given.warn("optimizer", f"{name} has no counterpart here; training.optimizer becomes adamw")
        is_small = False
    decay = float(given.number("adam_weight_decay", 1e-4))
    return {"training.optimizer": "adamw-8bit" if is_small else "adamw", "training.weight_decay": decay}


def _write_previews(wanted: Wanted) -> Values:
    if not wanted["previews.every"]:
        return {}
    seeds = wanted["previews.seeds"]
    epochs = max(1, round(wanted["previews.every"] * wanted["training.accumulation"] * wanted["training.batch_size"]
                          / wanted.pictures))  # fmt: skip
    return {"validation_prompt": wanted.prompts[0], "num_validation_images": len(seeds), "validation_epochs": epochs}


def _read_previews(given: Given) -> Values:
    prompt, epochs = given.text("validation_prompt"), given.number("validation_epochs", 50)
    images = given.whole("num_validation_images", 4)
    if prompt is None:
        return {"previews.every": 0}
    batch, accumulation = given.whole("train_batch_size", 4), given.whole("gradient_accumulation_steps", 1)
    every = steps_of(given, "validation_epochs", epochs, batch, accumulation)
    seeds = [given.whole("seed", 42) + number for number in range(max(1, images))]
    values: Values = {"previews.prompts": [prompt], "previews.seeds": seeds}
    return values | ({} if every is None else {"previews.every": every})


def _write_preservation(wanted: Wanted) -> Values:
    if wanted["training.preservation.method"] != "prior":
        return {}
    prompts = wanted["training.preservation.prompts"] or [wanted["dataset.class_word"] or ""]
    return {
        "with_prior_preservation": True,
        "class_data_dir": "class",
        "class_prompt": prompts[0],
        "num_class_images": wanted["training.preservation.pictures"],
        "prior_loss_weight": wanted["training.preservation.weight"],
    }


def _read_preservation(given: Given) -> Values:
    prompt, count = given.text("class_prompt"), given.whole("num_class_images", 100)
    weight = float(given.number("prior_loss_weight", 1.0))
    given.text("class_data_dir")
    if not given.switch("with_prior_preservation"):
        return {}
    key = "training.preservation"
    values: Values = {f"{key}.method": "prior", f"{key}.weight": weight, f"{key}.pictures": count}
    return values | ({f"{key}.prompts": [prompt]} if prompt else {})


def _write_crop(wanted: Wanted) -> Values:
    return {
        "resolution": wanted["dataset.resolution"][0],
        "center_crop": True,
        "random_flip": wanted["dataset.flip"],
    }


def _read_crop(given: Given) -> Values:
    side, is_central = given.whole("resolution", 512), given.switch("center_crop")
    if not is_central:
        given.note("center_crop", "squares are cut anywhere there; here the central one (see dataset.crops)")
    fit = min(4096, max(64, round(side / 16) * 16))
    if fit != side:
        given.warn("resolution", f"a resolution of {side} px becomes {fit}")
    return {"dataset.resolution": [fit], "dataset.buckets": False, "dataset.flip": given.switch("random_flip")}


def _trackers(given: Given) -> Values:
    kind = given.text("report_to", "tensorboard")
    return {"tracking.trackers": ["tensorboard", "wandb"] if kind == "all" else
            [kind] if kind in ("tensorboard", "wandb") else []}  # fmt: skip


def _write_trackers(wanted: Wanted) -> Values:
    trackers = wanted["tracking.trackers"]
    return {"report_to": "none" if not trackers else trackers[0] if len(trackers) == 1 else "all"}


RULES = (
    same("pretrained_model_name_or_path", "model.base", None, "A hub id or a diffusers folder."),
    same("revision", "model.revision", None),
    run_name("output_dir"),
    same("rank", "lora.rank", 4),
    Rule(
        ("lora_alpha",),
        ("lora.alpha",),
        lambda wanted: {"lora_alpha": round(wanted.alpha)},
        lambda given: {"lora.alpha": float(given.number("lora_alpha", 4))},
        "A whole number. Unset is written out as the rank.",
    ),
    same("lora_dropout", "lora.dropout", 0.0),
    Rule(
        ("lora_layers",),
        ("lora.targets",),
        _write_targets,
        _read_targets,
        "Ends of names; without them, attention of all blocks and the MLP of the double ones.",
    ),
    Rule(
        ("max_train_steps", "num_train_epochs", "gradient_accumulation_steps"),
        ("training.steps", "training.accumulation"),
        lambda wanted: {"max_train_steps": wanted["training.steps"],
                        "gradient_accumulation_steps": wanted["training.accumulation"]},
        _read_steps,
        "`max_train_steps` counts before `num_train_epochs`.",
    ),
    same("train_batch_size", "training.batch_size", 4),
    same("learning_rate", "training.learning_rate", 1e-4),
    diffusers_schedule("lr_scheduler", "lr_warmup_steps", "constant", 500, "max_train_steps"),
    Rule(("optimizer", "use_8bit_adam", "adam_weight_decay"), ("training.optimizer", "training.weight_decay"),
         _write_optimizer, _read_optimizer),
    same("max_grad_norm", "training.max_grad_norm", 1.0),
    Rule(
        ("weighting_scheme", "logit_mean", "logit_std"),
        noise.OURS,
        _write_noise,
        _read_noise,
        "Its mean counts from the noisy end; a shift is part of it, that by size as at the square.",
    ),
    same("guidance_scale", "training.guidance", 3.5),
    named("mixed_precision", "training.precision", "no", {"bf16": "bf16", "fp32": "no"},
          near={"fp16": ("bf16", "there is no half precision here")}),
    same("seed", "training.seed", None),
    Rule(
        ("gradient_checkpointing",),
        ("memory.recompute",),
        lambda wanted: {"gradient_checkpointing": wanted["memory.recompute"] != "none"},
        lambda given: {"memory.recompute": "all" if given.switch("gradient_checkpointing") else "none"},
    ),
    Rule(
        ("checkpointing_steps",),
        ("checkpoints.every",),
        lambda wanted: {"checkpointing_steps": wanted["checkpoints.every"] or wanted["training.steps"]},
        lambda given: {"checkpoints.every": given.whole("checkpointing_steps", 500)},
    ),
    same("checkpoints_total_limit", "checkpoints.keep", None),
    Rule(("validation_prompt", "num_validation_images", "validation_epochs"),
         ("previews.every", "previews.prompts", "previews.seeds"), _write_previews, _read_previews,
         "One prompt, as many pictures of it as there are seeds, every so many epochs."),
    Rule(
        ("with_prior_preservation", "class_data_dir", "class_prompt", "num_class_images", "prior_loss_weight"),
        ("training.preservation.method", "training.preservation.weight", "training.preservation.prompts",
         "training.preservation.pictures"),
        _write_preservation,
        _read_preservation,
        "`prior` with one prompt; there the pictures are learned, here the model's own output for them.",
    ),
    Rule(("resolution", "center_crop", "random_flip"), ("dataset.resolution", "dataset.buckets", "dataset.flip"),
         _write_crop, _read_crop, "Squares of one size."),
    Rule(("report_to",), ("tracking.trackers",), _write_trackers, _trackers),
)  # fmt: skip

_FIXED = (
    Fixed("train_text_encoder", False, "text encoders are not trained here", usual=False),
    Fixed("scale_lr", False, "the learning rate is taken as it is here", usual=False),
    Fixed("adam_beta1", 0.9, "the betas of AdamW are 0.9 and 0.999 here", usual=0.9),
    Fixed("adam_beta2", 0.999, "the betas of AdamW are 0.9 and 0.999 here", usual=0.999),
    Fixed("cache_latents", True),
)


def _text(values: Values, wanted: Wanted) -> dict[str, str]:
    data = {"dataset_name": wanted.folder, "caption_column": "text",
            "instance_prompt": wanted["dataset.trigger"] or wanted.caption}  # fmt: skip
    repeats = {row.repeats for row in wanted.config.dataset.folders}
    data |= {"repeats": repeats.pop() if len(repeats) == 1 else 1}
    lines = [f"accelerate launch {SCRIPT}"]
    for key, value in (data | values).items():
        if value is True:
            lines.append(f"  --{key}")
        elif value is not None and value is not False:
            lines.append(f"  --{key}={quote(str(value))}")
    return {FILE: "#!/bin/sh\n" + " \\\n".join(lines) + "\n"}


def other_model(given: Given) -> str | None:
    """Why the arguments are not about a LoRA of FLUX.1; None if they are."""
    script = given.text("script", SCRIPT)
    return None if script.endswith(SCRIPT) else f"{script} trains something else than a LoRA of FLUX.1"


TRAINER = Trainer(
    name="diffusers",
    title="diffusers' script",
    source="huggingface/diffusers",
    layout=Layout.DIFFUSERS,
    file=FILE,
    rules=RULES,
    fixed=_FIXED,
    without=WITHOUT | {
        "memory.base_precision": "it holds the base as mixed_precision says",
        "dataset.caption_dropout": "it leaves no caption out",
        "previews.width": "its previews have the pipeline's size, 1024 px",
        "previews.height": "its previews have the pipeline's size, 1024 px",
        "previews.guidance": "its previews have the pipeline's guidance, 3.5",
        "previews.steps": "its previews have the pipeline's steps, 28",
        "checkpoints.dtype": "it saves the weights in float32 or as mixed_precision says",
    },
    nature=(
        "regularization pictures and weights of folders are not told apart: all pictures are learned alike",
        "each picture is cut to a square",
    ),
    technical=technical.DIFFUSERS,
    meanings={
        "max_sequence_length": "T5 reads as many tokens here as the FLUX pipelines have it read",
        "dataset_config_name": "data sets of the hub are not read: download the pictures into a folder",
    },
    text=_text,
    command=lambda file, wanted: f"sh {file}",
    other_model=other_model,
    masks=False,
)  # fmt: skip
