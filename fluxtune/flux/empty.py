"""The parts of a base model without weights: made on the meta device from their configs alone."""

from __future__ import annotations

from typing import Any

from fluxtune.flux.load import Base


def transformer_config(base: Base) -> dict[str, Any]:
    """The config of the transformer, complete."""
    import diffusers

    transformer_class = getattr(diffusers, base.family.transformer)
    return dict(transformer_class.load_config(base.folder / "transformer"))


def empty_transformer(base: Base, depths: tuple[int, ...] | None = None) -> Any:
    """The transformer, frozen.

    Args:
        depths: how many blocks of each kind it has; None for as many as the base has.
    """
    import diffusers
    from accelerate import init_empty_weights

    config = transformer_config(base)
    if depths is not None:
        config |= dict(zip(base.family.depths, depths, strict=True))
    with init_empty_weights():
        return getattr(diffusers, base.family.transformer).from_config(config).requires_grad_(False)


def empty_text_encoders(base: Base) -> list[Any]:
    """The text encoders in their order, in evaluation mode."""
    import transformers
    from accelerate import init_empty_weights

    encoders = []
    for part in base.text_encoders:
        config = transformers.AutoConfig.from_pretrained(base.folder / part)
        with init_empty_weights():
            encoders.append(getattr(transformers, config.architectures[0])(config).requires_grad_(False).eval())
    return encoders


def empty_vae(base: Base) -> Any:
    """The VAE in evaluation mode."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    with init_empty_weights():
        return AutoencoderKL.from_config(AutoencoderKL.load_config(base.folder / "vae")).requires_grad_(False).eval()
