"""Previews: the same prompts and seeds again and again, so that learning shows. They equal ``fluxtune sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxtune import files
from fluxtune.config.schema import Config
from fluxtune.events import Phase, Preview, Sink
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request, generate, looking_ahead
from fluxtune.flux.families import Text
from fluxtune.flux.load import free_memory, image_pipeline, load_vae
from fluxtune.runs import Run
from fluxtune.training.examples import Prepared


def preview_requests(config: Config, base: Base, prompts: list[str]) -> list[tuple[int, Request]]:
    """Every prompt with every seed, each with the number of its prompt."""
    previews = config.previews
    side = config.dataset.resolution[0]
    return [
        (
            index,
            Request(
                prompt=prompt,
                width=previews.width or side,
                height=previews.height or side,
                steps=previews.steps or base.sampling_steps,
                guidance=previews.guidance,
                seed=seed,
            ),
        )
        for index, prompt in enumerate(prompts)
        for seed in previews.seeds
    ]


def make_previews(
    run: Run,
    step: int,
    requests: list[tuple[int, Request]],
    base: Base,
    prepared: Prepared,
    transformer: Any,
    vae_tiling: bool,
    on_event: Sink,
) -> list[Path]:
    """Make the previews of one step; the VAE is in memory only meanwhile.

    Args:
        vae_tiling: as ``memory.vae_tiling``.

    Returns:
        The pictures' paths.
    """
    on_event(Phase("previews", f"{len(requests)} pictures at step {step}"))
    # What the steps left free is in pieces that fit steps.
    free_memory()
    device, dtype = transformer.device, transformer.dtype
    pipeline = image_pipeline(base, transformer, load_vae(base, dtype, str(device), vae_tiling))

    def text_of(prompt: str) -> Text:
        return {name: tensor.to(device) for name, tensor in prepared.text(prompt).items()}

    paths = []
    transformer.eval()
    try:
        ahead = looking_ahead(base, pipeline, [request for _, request in requests], text_of)
        for (index, _), request in zip(requests, ahead, strict=True):
            picture = generate(base, pipeline, text_of(request.prompt), request)
            path = run.preview_path(step, index, request.seed)
            files.write_with(path, lambda temporary, picture=picture: picture.save(temporary, format="PNG"))  # type: ignore[misc]
            on_event(Preview(step, request.prompt, request.seed, str(path)))
            paths.append(path)
    finally:
        transformer.train()
    del pipeline
    free_memory()
    return paths
