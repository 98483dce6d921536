"""The parts of a base model without weights: made on the meta device from their configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxtune.flux.families import Family


def transformer_config(family: Family, folder: Path) -> dict[str, Any]:
    """The complete config of the transformer of the base model in ``folder``."""
    import diffusers

    return dict(getattr(diffusers, family.transformer).load_config(folder / "transformer"))


def empty_transformer(family: Family, config: Mapping[str, Any]) -> Any:
    """The transformer of a config, frozen."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights():
        return getattr(diffusers, family.transformer).from_config(dict(config)).requires_grad_(False)


def empty_vae(folder: Path) -> Any:
    """The VAE of the base model in ``folder``, frozen."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    with init_empty_weights():
        return AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")).requires_grad_(False).eval()


def empty_text_encoder(folder: Path, part: str) -> Any:
    """One text encoder of the base model in ``folder``, frozen."""
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(folder / part, trust_remote_code=False, local_files_only=True)
    with init_empty_weights():
        encoder = getattr(transformers, config.architectures[0])._from_config(config)
    encoder.tie_weights()  # undone by the making without memory
    return encoder.requires_grad_(False).eval()
