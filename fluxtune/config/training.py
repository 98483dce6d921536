"""``[training]``: the loop, the optimizer, and what is kept as it was."""

from __future__ import annotations

from typing import Literal

from fluxtune.config.base import Section, section, setting


class PreservationConfig(Section):
    """``[training.preservation]``: guards what the base model knows while the subject is learned."""

    method: Literal["none", "output", "prior"] = setting(
        "none",
        "none; output: on the same noisy pictures, captions with the class word keep the base model's own output; "
        "prior: on pictures that the base model makes of the preservation prompts, it keeps its own output "
        "(after arXiv 2208.12242).",
    )
    weight: float = setting(1.0, "Weight of the preservation loss beside the subject's loss.", ge=0.0, le=100.0)
    prompts: list[str] = setting(
        [], "Captions to preserve. Without any, output uses the captions with the class word, prior the class word."
    )
    every: int = setting(
        1,
        "Guard only each n-th micro-batch, with n times the weight: cheaper where the guard has little to do.",
        ge=1,
        le=100,
    )
    pictures: int = setting(50, "How many pictures prior makes, spread over its prompts.", ge=1, le=10_000)


class DivergenceConfig(Section):
    """``[training.divergence]``: what is done when losses, gradients or weights stop being finite numbers."""

    patience: int = setting(
        5,
        "A step whose loss or gradients are not finite is skipped; after so many of them in a row, action is taken.",
        ge=1,
        le=10_000,
    )
    action: Literal["roll-back", "stop"] = setting(
        "roll-back",
        "What is done then: roll-back goes on from the last checkpoint, or the beginning, with a lower learning rate; "
        "stop ends the run.",
    )
    learning_rate_factor: float = setting(
        0.5, "What each roll-back multiplies the learning rate by, for the rest of the run.", gt=0.0, le=1.0
    )
    rollbacks: int = setting(3, "Roll back at most so often; then the run is stopped.", ge=0, le=100)


class TrainingConfig(Section):
    """How long and how fast."""

    steps: int = setting(1500, "Optimizer steps in all; a resumed run ends at the same total.", ge=1, le=10_000_000)
    batch_size: int = setting(1, "Pictures a micro-batch.", ge=1, le=4096)
    accumulation: int = setting(1, "Micro-batches an optimizer step.", ge=1, le=4096)
    learning_rate: float = setting(1e-4, "Peak learning rate.", gt=0.0, le=1.0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "What the learning rate does after the warm-up; linear and cosine fall to zero at the last step."
    )
    warmup: int = setting(0, "Steps over which the learning rate rises from zero.", unit="steps", ge=0)
    optimizer: Literal["adamw", "adamw-8bit"] = setting("adamw-8bit", "AdamW, or bitsandbytes' AdamW with 8-bit state.")
    weight_decay: float = setting(0.01, "Weight decay of the adapter.", ge=0.0, le=10.0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm; 0 never clips.", ge=0.0)
    timestep_sampling: Literal["uniform", "logit-normal", "shift", "flux-shift"] = setting(
        "flux-shift",
        "Distribution of the noise level sigma: uniform; logit-normal; shift, logit-normal moved by a fixed shift; "
        "flux-shift, logit-normal moved by the picture's size as the FLUX pipelines do.",
    )
    logit_mean: float = setting(0.0, "Mean of the normal behind the logit-normal samplings.", ge=-10.0, le=10.0)
    logit_std: float = setting(1.0, "Standard deviation of that normal.", gt=0.0, le=10.0)
    shift: float = setting(3.0, "Factor k of the shift sampling.", gt=0.0, le=100.0)
    guidance: float = setting(1.0, "Guidance fed to models that embed it.", ge=0.0, le=100.0)
    ema_decay: float = setting(
        0.0, "Decay of the moving average of the adapter, which is then what is saved; 0 keeps none.", ge=0.0, lt=1.0
    )
    precision: Literal["bf16", "fp32"] = setting(
        "bf16", "Precision of the computation; adapter weights are always float32."
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to train; auto takes the graphics card if any.")
    seed: int = setting(42, "Seed of everything random: the same seed on a CPU gives the same file.", ge=0, lt=2**63)
    divergence: DivergenceConfig = section(DivergenceConfig, "What is done about numbers that are not finite.")
    preservation: PreservationConfig = section(PreservationConfig, "Guards what the base model knows.")
